//! Device memory that calls need beside their tensors.
#![expect(unsafe_code, reason = "pinned memory is shared with the device")]
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, HostSlice, PinnedHostSlice, SyncOnDrop, sys,
};

use super::check::wrong;
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
        Ok(Some(expired(&report)))
    }

    /// What [`wait_report`](Self::wait_report) would take now, without waiting for the stream and without taking it:
    /// copied on the stream `beside`, which is waited for.
    ///
    /// # Errors
    /// As [`wait_report`](Self::wait_report).
    pub fn look_at_report(&self, beside: &Arc<CudaStream>) -> Result<Option<WaitExpired>, Error> {
        /// Of a report that is complete.
        const WRITTEN: u32 = 2;
        let mut words = [0_u64; size_of::<WaitReport>() / 8];
        let place = self.words.slice(REPORT..REPORT + words.len());
        beside.memcpy_dtoh(&place, &mut words).named("cuMemcpyDtoHAsync")?;
        beside.synchronize().named("cuStreamSynchronize")?;
        let report: WaitReport = bytemuck::cast(words);
        Ok((report.state == WRITTEN).then(|| expired(&report)))
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

fn expired(report: &WaitReport) -> WaitExpired {
    WaitExpired {
        segment: report.segment as usize,
        kv_head: report.kv_head as usize,
        block: report.cta as usize,
        wanted: report.wanted,
        seen: report.seen,
        waited: Duration::from_nanos(report.waited_ns),
    }
}

/// A word that ends calls: from [`set`](Self::set) on their tiles are NaN. It lies in pinned host memory, or is somebody
/// else's.
///
/// Like cudarc's slices it outlives the calls that use it, unless the context's event tracking is switched off.
#[derive(Debug)]
pub struct AbortWord(Word);

#[derive(Debug)]
enum Word {
    Own {
        word: PinnedHostSlice<u32>,
        address: *mut u32,
    },
    /// Device address of a word that its owner sets and clears.
    Foreign(u64),
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
        let abort = Self(Word::Own { word, address });
        abort.store(0);
        Ok(abort)
    }

    /// Somebody else's word of 32 bits, which ends calls when it is not 0. [`set`](Self::set) and [`clear`](Self::clear)
    /// do nothing here: they are its owner's.
    ///
    /// # Errors
    /// [`CudaError::Value`](super::CudaError::Value) for an address that is 0 or not a multiple of 4.
    ///
    /// # Safety
    /// The address is memory that the device can read, for as long as calls with it run.
    pub unsafe fn foreign(address: u64) -> Result<Self, Error> {
        if address == 0 || !address.is_multiple_of(4) {
            return Err(wrong("AbortWord::foreign", "address", address, "a multiple of 4".to_owned()));
        }
        Ok(Self(Word::Foreign(address)))
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
        let Word::Own { address, .. } = self.0 else { return };
        // SAFETY: the allocation is aligned and lives as long as `self`; the host touches it by this atomic alone.
        let word = unsafe { AtomicU32::from_ptr(address) };
        word.store(value, Ordering::SeqCst);
    }

    /// Its address on the device, for a call that is enqueued before the record is dropped.
    pub(super) fn address<'a>(&'a self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        match &self.0 {
            Word::Own { word, address } => {
                // SAFETY: the slice is dropped unread. The record makes the word outlive the call.
                let (_, record) = unsafe { word.stream_synced_slice(stream) };
                // It is the same on the device.
                (*address as u64, record)
            }
            Word::Foreign(address) => (*address, SyncOnDrop::Record(None)),
        }
    }
}
