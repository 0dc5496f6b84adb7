//! Device memory that calls need beside their tensors.
#![expect(unsafe_code, reason = "pinned memory is shared with the device")]
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, HostSlice, PinnedHostSlice, SyncOnDrop, sys,
};

use super::driver::Named;
use crate::Error;
use crate::params::WaitReport;

/// Memory for calls on one stream: a counter of tiles and a report of waits. 384 bytes, allocated once.
///
/// Calls that use it may be in flight in any number, since the stream orders them.
#[derive(Debug)]
pub struct Workspace {
    stream: Arc<CudaStream>,
    words: CudaSlice<u64>,
    base: u64,
}

/// Words of 8 bytes; each part has a cache line of its own.
const REPORT: usize = 16;
const SEGMENTS: usize = 32;
const WORDS: usize = 48;

/// A wait for keys that outlasted its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitExpired {
    /// Index of the key segment.
    pub segment: usize,
    /// KV head that was waited for.
    pub kv_head: usize,
    /// Block of the launch that waited.
    pub block: usize,
    /// Value that the signal should have reached.
    pub wanted: u64,
    /// Value that it had.
    pub seen: u64,
    /// How long.
    pub waited: Duration,
}

impl std::fmt::Display for WaitExpired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { segment, kv_head, block, wanted, seen, waited } = self;
        write!(
            f,
            "block {block} waited {waited:?} for KV head {kv_head} of key segment {segment}: its signal is {seen}, wanted {wanted}"
        )
    }
}

impl Workspace {
    /// For calls on `stream`.
    ///
    /// # Errors
    /// [`CudaError::Driver`](super::CudaError::Driver) when the device has no memory.
    pub fn new(stream: &Arc<CudaStream>) -> Result<Self, Error> {
        // Zero is also the table of one segment: no signal, map 0, slab 0.
        let words = stream.alloc_zeros::<u64>(WORDS).named("cuMemAllocAsync")?;
        let base = words.device_ptr(stream).0;
        Ok(Self { stream: stream.clone(), words, base })
    }

    /// Waits for the stream, then takes the report of the first wait that expired since the last report was taken.
    ///
    /// From the moment a wait expires, all tiles that its call has not begun are NaN, and so is all of later calls that
    /// have a deadline, until the report is taken.
    ///
    /// # Errors
    /// [`CudaError::Driver`](super::CudaError::Driver), also for what went wrong on the device before.
    pub fn wait_report(&mut self) -> Result<Option<WaitExpired>, Error> {
        let mut words = [0_u64; size_of::<WaitReport>() / 8];
        let mut place = self.words.slice_mut(REPORT..REPORT + words.len());
        self.stream.memcpy_dtoh(&place, &mut words).named("cuMemcpyDtoHAsync")?;
        self.stream.synchronize().named("cuStreamSynchronize")?;
        let report: WaitReport = bytemuck::cast(words);
        if report.state == 0 {
            return Ok(None);
        }
        self.stream.memset_zeros(&mut place).named("cuMemsetD8Async")?;
        Ok(Some(WaitExpired {
            segment: report.segment as usize,
            kv_head: report.kv_head as usize,
            block: report.cta as usize,
            wanted: report.wanted,
            seen: report.seen,
            waited: Duration::from_nanos(report.waited_ns),
        }))
    }

    /// The stream whose calls it serves.
    pub const fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(super) const fn claims(&self) -> u64 {
        self.base
    }

    pub(super) const fn report(&self) -> u64 {
        self.base + 8 * REPORT as u64
    }

    pub(super) const fn one_segment(&self) -> u64 {
        self.base + 8 * SEGMENTS as u64
    }
}

/// A word in pinned host memory that ends calls: from [`set`](Self::set) on their tiles are NaN.
///
/// Like cudarc's slices it outlives the calls that use it, unless the context's event tracking is switched off.
#[derive(Debug)]
pub struct AbortWord {
    word: PinnedHostSlice<u32>,
    address: *mut u32,
}

// SAFETY: the pointer is that of the pinned word, which is owned here and only used as an atomic.
unsafe impl Send for AbortWord {}
// SAFETY: as above.
unsafe impl Sync for AbortWord {}

impl AbortWord {
    /// A word that is not set.
    ///
    /// # Errors
    /// [`CudaError::Driver`](super::CudaError::Driver).
    pub fn new(context: &Arc<CudaContext>) -> Result<Self, Error> {
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: the word is written below, before anybody reads it.
        let mut word = unsafe { context.alloc_pinned_with_flags::<u32>(1, flags) }.named("cuMemHostAlloc")?;
        let address = word.as_mut_ptr().named("cuEventSynchronize")?;
        let abort = Self { word, address };
        abort.store(0);
        Ok(abort)
    }

    /// Ends calls that run, and those that start before [`clear`](Self::clear).
    pub fn set(&self) {
        self.store(1);
    }

    /// Lets calls run again.
    pub fn clear(&self) {
        self.store(0);
    }

    fn store(&self, value: u32) {
        // SAFETY: the allocation is aligned and lives as long as `self`; the host touches it by this atomic alone.
        let word = unsafe { AtomicU32::from_ptr(self.address) };
        word.store(value, Ordering::SeqCst);
    }

    /// Its address, which is the same on the device, for a call that is enqueued before the record is dropped.
    pub(super) fn address<'a>(&'a self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        // SAFETY: the slice is dropped unread. The record makes the word outlive the call.
        let (_, record) = unsafe { self.word.stream_synced_slice(stream) };
        (self.address as u64, record)
    }
}
