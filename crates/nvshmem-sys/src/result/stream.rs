//! Copies, signals and meetings in the order of a CUDA stream
//! ([remote memory access](https://docs.nvidia.com/nvshmem/api/gen/api/rma.html),
//! [signals](https://docs.nvidia.com/nvshmem/api/gen/api/signal.html)).
//!
//! Calls enqueue and return; to a peer that loads and stores cannot reach, some launch a small kernel. With two ranks on
//! one GPU without MPS, the signal wait and the calls on teams end the process: use the driver's own stream waits there.
use std::ffi::{c_int, c_void};

use super::checked;
use crate::Error;
use crate::sys::Api;
use crate::sys::types::{NVSHMEM_CMP_GE, NVSHMEM_SIGNAL_SET, cudaStream_t, nvshmem_team_t};

/// A contiguous copy between my memory and the heap of `pe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Of a put: an address of my heap, which stands for the same place in that of `pe`. Of a get: any of my device
    /// memory.
    pub dest: *mut c_void,
    /// Of a put: any of my device memory. Of a get: an address of my heap, as above.
    pub source: *const c_void,
    /// Length.
    pub bytes: usize,
    /// The other rank.
    pub pe: c_int,
}

/// A signal word becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    /// An address of my heap, which stands for the same place in that of the receiver.
    pub word: *mut u64,
    /// What it becomes.
    pub value: u64,
}

/// When a copy may be said to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// What follows on the stream may use the source again.
    InOrder,
    /// Only after [`quiet`]; the library may overlap it with what follows (`_nbi`).
    AtQuiet,
}

/// Pushes bytes into a peer's heap.
///
/// # Safety
/// The library must be initialised, the addresses as [`Transfer`] says, `pe` a rank, `stream` live; memory stays as it is
/// until the copy is done, and nobody reads the destination before it is told to.
pub unsafe fn put(api: &Api, copy: Transfer, completion: Completion, stream: cudaStream_t) {
    let call = match completion {
        Completion::InOrder => api.nvshmemx_putmem_on_stream,
        Completion::AtQuiet => api.nvshmemx_putmem_nbi_on_stream,
    };
    // SAFETY: the caller vouches for it.
    unsafe { call(copy.dest, copy.source, copy.bytes, copy.pe, stream) }
}

/// Pulls bytes out of a peer's heap.
///
/// # Safety
/// As [`put`]; the peer leaves the source as it is until the copy is done.
pub unsafe fn get(api: &Api, copy: Transfer, completion: Completion, stream: cudaStream_t) {
    let call = match completion {
        Completion::InOrder => api.nvshmemx_getmem_on_stream,
        Completion::AtQuiet => api.nvshmemx_getmem_nbi_on_stream,
    };
    // SAFETY: the caller vouches for it.
    unsafe { call(copy.dest, copy.source, copy.bytes, copy.pe, stream) }
}

/// Pushes bytes, and after they have arrived sets a signal of the receiver. Signals are set, never added to: an
/// addition is a remote atomic.
///
/// # Safety
/// As [`put`]; nobody else writes the signal.
pub unsafe fn put_signal(
    api: &Api,
    copy: Transfer,
    signal: Signal,
    completion: Completion,
    stream: cudaStream_t,
) {
    let call = match completion {
        Completion::InOrder => api.nvshmemx_putmem_signal_on_stream,
        Completion::AtQuiet => api.nvshmemx_putmem_signal_nbi_on_stream,
    };
    let (Transfer { dest, source, bytes, pe }, Signal { word, value }) = (copy, signal);
    // SAFETY: the caller vouches for it.
    unsafe { call(dest, source, bytes, word, value, SET, pe, stream) }
}

/// Sets a signal of `pe`.
///
/// # Safety
/// As [`put_signal`].
pub unsafe fn signal(api: &Api, signal: Signal, pe: c_int, stream: cudaStream_t) {
    // SAFETY: the caller vouches for it.
    unsafe { (api.nvshmemx_signal_op_on_stream)(signal.word, signal.value, SET, pe, stream) }
}

/// Holds what follows on the stream until my own word is at least the value. It has no deadline.
///
/// # Safety
/// The library must be initialised, the word lie in my heap, `stream` be live.
pub unsafe fn wait(api: &Api, at_least: Signal, stream: cudaStream_t) {
    let call = api.nvshmemx_signal_wait_until_on_stream;
    // SAFETY: the caller vouches for it.
    unsafe { call(at_least.word, GE, at_least.value, stream) }
}

/// Holds what follows on the stream until all my copies of before are done at their receivers.
///
/// # Safety
/// The library must be initialised, and `stream` live.
pub unsafe fn quiet(api: &Api, stream: cudaStream_t) {
    // SAFETY: the caller vouches for it.
    unsafe { (api.nvshmemx_quiet_on_stream)(stream) }
}

/// All ranks of a team meet on their streams, and copies of before are done. Collective.
///
/// # Errors
/// [`Error::Call`].
///
/// # Safety
/// As [`quiet`]; every rank of the team calls it.
pub unsafe fn barrier(api: &Api, team: nvshmem_team_t, stream: cudaStream_t) -> Result<(), Error> {
    // SAFETY: the caller vouches for it.
    checked("nvshmemx_barrier_on_stream", unsafe { (api.nvshmemx_barrier_on_stream)(team, stream) })
}

/// As [`barrier`], of the whole world.
///
/// # Safety
/// As [`quiet`]; every rank calls it.
pub unsafe fn barrier_all(api: &Api, stream: cudaStream_t) {
    // SAFETY: the caller vouches for it.
    unsafe { (api.nvshmemx_barrier_all_on_stream)(stream) }
}

/// All ranks of a team meet on their streams; copies may still be under way. Collective.
///
/// # Errors
/// [`Error::Call`].
///
/// # Safety
/// As [`barrier`].
pub unsafe fn team_sync(api: &Api, team: nvshmem_team_t, stream: cudaStream_t) -> Result<(), Error> {
    // SAFETY: the caller vouches for it.
    checked("nvshmemx_team_sync_on_stream", unsafe { (api.nvshmemx_team_sync_on_stream)(team, stream) })
}

/// As [`team_sync`], of the whole world.
///
/// # Safety
/// As [`barrier_all`].
pub unsafe fn sync_all(api: &Api, stream: cudaStream_t) {
    // SAFETY: the caller vouches for it.
    unsafe { (api.nvshmemx_sync_all_on_stream)(stream) }
}

const SET: c_int = NVSHMEM_SIGNAL_SET as c_int;
const GE: c_int = NVSHMEM_CMP_GE as c_int;
