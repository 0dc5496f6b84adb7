//! The driver as the tests call it: each call in one place, by addresses, since those are the host's here.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

/// The context of device 0, current here.
pub(crate) fn context() -> Arc<CudaContext> {
    CudaContext::new(0).unwrap()
}

/// A stream.
pub(crate) fn stream(context: &Arc<CudaContext>) -> Arc<CudaStream> {
    context.new_stream().unwrap()
}

/// Words that host and streams see, all zero: pinned memory, so that these tests can run on a real GPU too.
pub(crate) fn words(count: usize) -> &'static [AtomicU64] {
    // SAFETY: a context is current.
    let address = unsafe { result::malloc_host(8 * count, 0) }.unwrap();
    // SAFETY: the range was just made, and is never freed.
    let words = unsafe { std::slice::from_raw_parts(address.cast::<AtomicU64>(), count) };
    words.iter().for_each(|word| set(word, 0));
    words
}

/// Where a word is.
pub(crate) fn at(word: &AtomicU64) -> u64 {
    word.as_ptr() as u64
}

pub(crate) fn write(stream: &CudaStream, word: &AtomicU64, value: u64) {
    write_at(stream, at(word), value).unwrap();
}

pub(crate) fn write_at(stream: &CudaStream, address: u64, value: u64) -> Result<(), DriverError> {
    // SAFETY: the driver checks the address.
    unsafe { sys::cuStreamWriteValue64_v2(stream.cu_stream(), address, value, 0) }.result()
}

/// Waits for at least `value`.
pub(crate) fn wait(stream: &CudaStream, word: &AtomicU64, value: u64) {
    wait_until(stream, at(word), value, 0).unwrap();
}

/// With the driver's flags: 0 at least, 1 equal, 2 and, 3 nor.
pub(crate) fn wait_until(
    stream: &CudaStream,
    address: u64,
    value: u64,
    flags: u32,
) -> Result<(), DriverError> {
    // SAFETY: the driver checks the address.
    unsafe { sys::cuStreamWaitValue64_v2(stream.cu_stream(), address, value, flags) }.result()
}

/// Copies between device addresses.
pub(crate) fn copy(stream: &CudaStream, to: u64, from: u64, bytes: usize) {
    // SAFETY: the tests keep their memory.
    unsafe { result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) }.unwrap();
}

/// Whether all of a stream is complete.
pub(crate) fn is_idle(stream: &CudaStream) -> bool {
    // SAFETY: the stream lives.
    match unsafe { sys::cuStreamQuery(stream.cu_stream()) } {
        sys::CUresult::CUDA_SUCCESS => true,
        sys::CUresult::CUDA_ERROR_NOT_READY => false,
        other => panic!("{other:?}"),
    }
}

/// Waits until it is so; a test that would hang fails.
pub(crate) fn soon(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < Duration::from_secs(10), "{what}");
        thread::sleep(Duration::from_micros(100));
    }
}

/// Watches for a while that it stays so.
pub(crate) fn stays(what: &str, is_so: impl Fn() -> bool) {
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_millis(30) {
        assert!(is_so(), "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) fn get(word: &AtomicU64) -> u64 {
    word.load(Ordering::Acquire)
}

pub(crate) fn set(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Release);
}
