//! Signals that a test posts.
use fm3_kernels::cuda::Signal;
use fm3_kernels::cuda::cudarc::driver::{CudaSlice, DevicePtr, result, sys};

use super::keys::Half;

/// Some signals, 128 bytes apart. Stream writes refuse memory of the stream-ordered pool, where cudarc's slices lie.
pub struct Words(u64);

impl Words {
    /// One signal for each value.
    pub fn new(starts: &[u64]) -> Self {
        let values: Vec<u64> = starts.iter().flat_map(|start| [*start; 16]).collect();
        // SAFETY: the context is current, since a `Gpu` was made on this thread.
        let address = unsafe { result::malloc_sync(size_of_val(values.as_slice())) }.unwrap();
        // SAFETY: as many bytes were allocated.
        unsafe { result::memcpy_htod_sync(address, &values) }.unwrap();
        Self(address)
    }

    pub fn address(&self, index: u64) -> u64 {
        self.0 + 128 * index
    }

    /// Of a problem that does not outlive the words.
    pub fn signal(&self, index: usize) -> Signal {
        // SAFETY: the words live as long as the problem.
        unsafe { Signal::new(self.address(index as u64)) }.unwrap()
    }

    /// Writes a signal in the order of a stream.
    pub fn post(&self, stream: sys::CUstream, (index, value): (u64, u64)) {
        // SAFETY: the word is device memory of this context, and the stream is alive.
        let answer = unsafe { sys::cuStreamWriteValue64_v2(stream, self.address(index), value, 0) };
        answer.result().unwrap();
    }

    /// Brings data that a running kernel waits for: from the host, by a copy engine, so that no multiprocessor is needed.
    pub fn copy_beside<T: Half>(&self, stream: sys::CUstream, to: &CudaSlice<T>, from: &[T]) {
        let (address, record) = to.device_ptr(to.stream());
        // A bare address: cudarc would order this copy behind the kernel that waits for it.
        std::mem::forget(record);
        assert_eq!(to.len(), from.len());
        // SAFETY: the target has as many elements, and only the waiting kernel reads it.
        unsafe { result::memcpy_htod_async(address, from, stream) }.unwrap();
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: allocated above; freeing waits for the device, so no kernel reads it any more.
        let freed = unsafe { result::free_sync(self.0) };
        assert!(freed.is_ok() || std::thread::panicking(), "{freed:?}");
    }
}
