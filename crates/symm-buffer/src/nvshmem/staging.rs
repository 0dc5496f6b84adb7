//! Small messages between the host and the heap, through pinned memory and a stream of their own.
#![expect(unsafe_code, reason = "the device reads and writes the staging memory")]
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaStream};

use super::driver::{Move, Named, Registered, copy_all, is_idle};
use crate::Error;
use crate::deadline::{Deadline, poll_until};
use crate::sync::Arc;

/// Bytes of a chunk: one copy by the device.
const CHUNK: usize = 64 << 10;
const LAYOUT: Layout = match Layout::from_size_align(CHUNK, 4096) {
    Ok(layout) => layout,
    Err(_) => panic!("a power of two"),
};

/// One chunk of pinned memory.
#[derive(Debug)]
pub(super) struct Staging {
    stream: Arc<CudaStream>,
    // Unregistered before it is given back: fields are dropped in order.
    registered: Registered,
    memory: Memory,
}

#[derive(Debug)]
struct Memory(*mut u8);

// SAFETY: it is owned, and reached through `&mut Staging` only.
unsafe impl Send for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(self.0, LAYOUT) };
    }
}

impl Staging {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Self, Error> {
        let stream = context.new_stream().named("cuStreamCreate")?;
        // SAFETY: the layout is not empty.
        let memory = Memory(unsafe { alloc_zeroed(LAYOUT) });
        if memory.0.is_null() {
            std::alloc::handle_alloc_error(LAYOUT);
        }
        // SAFETY: the registration is dropped before the memory, and each copy is waited for.
        let registered = unsafe { Registered::new(context, (memory.0, CHUNK)) }?;
        Ok(Self { stream, registered, memory })
    }

    /// Copies from the device.
    ///
    /// # Safety
    /// `from` is as many bytes of device memory.
    pub(super) unsafe fn download(
        &mut self,
        from: u64,
        bytes: &mut [u8],
        budget: Duration,
    ) -> Result<(), Error> {
        let deadline = Deadline::after(budget);
        for (at, chunk) in bytes.chunks_mut(CHUNK).enumerate() {
            let from = from + (at * CHUNK) as u64;
            // SAFETY: the caller vouches for the device's side.
            unsafe { self.copy("load", (self.registered.device, from), chunk.len(), deadline) }?;
            // SAFETY: the copy is done, so nobody writes there; the chunk is no longer than the staging memory, and
            // apart from it.
            unsafe { std::ptr::copy_nonoverlapping(self.memory.0, chunk.as_mut_ptr(), chunk.len()) };
        }
        Ok(())
    }

    /// Copies to the device.
    ///
    /// # Safety
    /// As [`Staging::download`], and nobody else uses those bytes.
    pub(super) unsafe fn upload(&mut self, into: u64, bytes: &[u8], budget: Duration) -> Result<(), Error> {
        let deadline = Deadline::after(budget);
        for (at, chunk) in bytes.chunks(CHUNK).enumerate() {
            let into = into + (at * CHUNK) as u64;
            // SAFETY: the copy before is done, so nobody reads there; else as in `download`.
            unsafe { std::ptr::copy_nonoverlapping(chunk.as_ptr(), self.memory.0, chunk.len()) };
            // SAFETY: the caller vouches for the device's side.
            unsafe { self.copy("store", (into, self.registered.device), chunk.len(), deadline) }?;
        }
        Ok(())
    }

    /// # Safety
    /// Both are `len` bytes that the device can reach.
    unsafe fn copy(
        &mut self,
        call: &'static str,
        (dst, src): (u64, u64),
        len: usize,
        deadline: Deadline,
    ) -> Result<(), Error> {
        self.stream.context().bind_to_thread().named("cuCtxSetCurrent")?;
        let copy = Move { dst, src, width: len, rows: 1, dst_pitch: len, src_pitch: len };
        // SAFETY: the caller vouches for the addresses, and the copy is waited for.
        unsafe { copy_all(&self.stream, &[copy]) }?;
        let poll = || match is_idle(&self.stream) {
            Ok(true) => Some(Ok(())),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        };
        match poll_until(deadline, poll) {
            Ok(waited) => waited.value,
            Err(expired) => {
                // The copy may still come: that memory must stay as it is, for ever.
                let fresh = Self::new(self.stream.context())?;
                std::mem::forget(std::mem::replace(self, fresh));
                let reason = format!(
                    "a copy is not done after {:.1?}; a stream of this process is blocked",
                    expired.waited
                );
                Err(Error::Driver { call, reason })
            }
        }
    }
}
