//! Probes: kernels that measure memory and signals. For benchmarks and tests; attention does not use them.
#![expect(unsafe_code, reason = "kernels are launched on bare addresses")]
use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute;
use cudarc::driver::{CudaContext, CudaFunction, CudaStream};

use super::driver::Named;
use super::files::{Binary, KernelSource};
use super::kernels::{function, module, with_shared_memory};
use super::launch::{Grid, launch};
use crate::Error;
use crate::params::{
    KernelParams, ProbeCheckParams, ProbeClockParams, ProbeCopyParams, ProbeEchoParams, ProbeHoldParams,
};

/// The probes of one context.
#[derive(Debug)]
pub struct Probes {
    copy: CudaFunction,
    hold: CudaFunction,
    echo: CudaFunction,
    check: CudaFunction,
    clock: CudaFunction,
    multiprocessors: u32,
}

/// Blocks of a grid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blocks(pub u32);

/// Shared memory of which two blocks do not fit a multiprocessor, bytes.
const WHOLE: u32 = 128 * 1024;

impl Probes {
    /// Loads them.
    ///
    /// # Errors
    /// As [`Kernels::load`](super::Kernels::load).
    pub fn load(context: &Arc<CudaContext>, source: &KernelSource) -> Result<Self, Error> {
        let module = module(context, Binary::Probe, source)?;
        let count = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        Ok(Self {
            copy: function(&module, "fm3_probe_copy")?,
            hold: with_shared_memory(function(&module, "fm3_probe_hold")?, WHOLE)?,
            echo: function(&module, "fm3_probe_echo")?,
            check: with_shared_memory(function(&module, "fm3_probe_check")?, WHOLE)?,
            clock: function(&module, "fm3_probe_clock")?,
            multiprocessors: count.named("cuDeviceGetAttribute")?.unsigned_abs(),
        })
    }

    /// Copies with so many blocks.
    ///
    /// # Errors
    /// [`CudaError::Driver`](super::CudaError::Driver).
    ///
    /// # Safety
    /// All addresses in `params` are memory that the device can use as said there, until the kernel has ended.
    pub unsafe fn copy(
        &self,
        stream: &CudaStream,
        blocks: Blocks,
        params: &ProbeCopyParams,
    ) -> Result<(), Error> {
        let grid = Grid { blocks: [blocks.0, 1, 1], threads: 512, smem: 0 };
        // SAFETY: the caller vouches for the addresses.
        unsafe { start("fm3_probe_copy", &self.copy, stream, grid, params) }
    }

    /// Fills all multiprocessors until the word comes.
    ///
    /// # Errors
    /// As [`Probes::copy`].
    ///
    /// # Safety
    /// As [`Probes::copy`].
    pub unsafe fn hold(&self, stream: &CudaStream, params: &ProbeHoldParams) -> Result<(), Error> {
        let grid = Grid { blocks: [self.multiprocessors, 1, 1], threads: 32, smem: WHOLE };
        // SAFETY: as in `copy`.
        unsafe { start("fm3_probe_hold", &self.hold, stream, grid, params) }
    }

    /// Answers a word.
    ///
    /// # Errors
    /// As [`Probes::copy`].
    ///
    /// # Safety
    /// As [`Probes::copy`].
    pub unsafe fn echo(&self, stream: &CudaStream, params: &ProbeEchoParams) -> Result<(), Error> {
        let grid = Grid { blocks: [1, 1, 1], threads: 1, smem: 0 };
        // SAFETY: as in `copy`.
        unsafe { start("fm3_probe_echo", &self.echo, stream, grid, params) }
    }

    /// Checks rounds of data with all multiprocessors filled.
    ///
    /// # Errors
    /// As [`Probes::copy`].
    ///
    /// # Safety
    /// As [`Probes::copy`].
    pub unsafe fn check(&self, stream: &CudaStream, params: &ProbeCheckParams) -> Result<(), Error> {
        let grid = Grid { blocks: [self.multiprocessors, 1, 1], threads: 512, smem: WHOLE };
        // SAFETY: as in `copy`.
        unsafe { start("fm3_probe_check", &self.check, stream, grid, params) }
    }

    /// Answers a word with the clock.
    ///
    /// # Safety
    /// As [`Probes::copy`].
    pub(super) unsafe fn clock(&self, stream: &CudaStream, params: &ProbeClockParams) -> Result<(), Error> {
        let grid = Grid { blocks: [1, 1, 1], threads: 1, smem: 0 };
        // SAFETY: as in `copy`.
        unsafe { start("fm3_probe_clock", &self.clock, stream, grid, params) }
    }
}

/// # Safety
/// As [`launch`].
unsafe fn start<P: KernelParams>(
    call: &'static str,
    function: &CudaFunction,
    stream: &CudaStream,
    grid: Grid,
    params: &P,
) -> Result<(), Error> {
    stream.context().bind_to_thread().named("cuCtxSetCurrent")?;
    // SAFETY: the caller vouches for it.
    unsafe { launch(call, function, stream, grid, params) }
}
