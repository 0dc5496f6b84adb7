//! The one way to start a kernel.
#![expect(unsafe_code, reason = "a kernel reads and writes whatever its parameters point to")]
use std::ffi::c_void;

use cudarc::driver::{CudaFunction, CudaStream, result};

use super::driver::Named;
use crate::Error;
use crate::params::KernelParams;

/// How many blocks, and what each gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grid {
    pub(super) blocks: [u32; 3],
    pub(super) threads: u32,
    /// Dynamic shared memory, bytes.
    pub(super) smem: u32,
}

/// Enqueues a kernel. The driver copies `params` before it returns; nothing is allocated.
///
/// # Safety
/// `function` takes exactly one P. Every address in `params` stays valid for what the kernel does with it until the
/// work enqueued here has run, and nobody else writes what it reads, or uses what it writes, in that time.
pub(super) unsafe fn launch<P: KernelParams>(
    call: &'static str,
    function: &CudaFunction,
    stream: &CudaStream,
    grid: Grid,
    params: &P,
) -> Result<(), Error> {
    let [x, y, z] = grid.blocks;
    let mut pointers = [std::ptr::from_ref(params).cast::<c_void>().cast_mut()];
    // SAFETY: the function and the stream are alive; one pointer for the one parameter, to all its bytes, which the
    // driver only reads. The rest is promised by the caller.
    unsafe {
        result::launch_kernel(
            function.cu_function(),
            (x, y, z),
            (grid.threads, 1, 1),
            grid.smem,
            stream.cu_stream(),
            &mut pointers,
        )
    }
    .named(call)
}
