//! Pulls by a kernel that calls NVSHMEM itself, where it was built (`cargo xtask build-kernels --nvshmem`).
#![expect(unsafe_code, reason = "a module is initialised, and a kernel is given addresses of the heap")]
use std::sync::Arc;

use fm3_kernels::cuda::{Blocks, CudaError, KernelSource};
use nvshmem_sys::{Session, Version, result};
use symm_buffer::Pe;
use symm_buffer::nvshmem::cudarc::driver::sys::{self, CUmodule};
use symm_buffer::nvshmem::cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, LaunchConfig, PushKernelArg,
};

/// Threads of a block.
const THREADS: u32 = 1024;

/// The kernel, in a module that NVSHMEM knows.
#[derive(Debug)]
pub struct DeviceSide {
    get: CudaFunction,
}

/// What is pulled. Both addresses are of this rank's symmetric memory: the peer's memory at `src` comes to `dst`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// Where from.
    pub src: u64,
    /// Where to.
    pub dst: u64,
    /// How many; all three are multiples of 16.
    pub bytes: u64,
    /// Whose memory.
    pub peer: Pe,
}

impl DeviceSide {
    /// Loads the kernel and makes NVSHMEM initialise its module; none where it was not built.
    ///
    /// # Errors
    /// A binary of another ABI or linked with another NVSHMEM; what the driver or NVSHMEM says.
    pub fn load(
        context: &Arc<CudaContext>,
        session: &Session,
        source: &KernelSource,
    ) -> anyhow::Result<Option<Self>> {
        let module = match source.module(context, "nvshmem_get.sm_90a.cubin") {
            Err(fm3_kernels::Error::Cuda(CudaError::NoKernels { .. })) => return Ok(None),
            loaded => loaded?,
        };
        let version = version(context, &module)?;
        let loaded = Self { get: module.load_function("fm3_nvshmem_get")? };
        context.bind_to_thread()?;
        // SAFETY: a session is an initialised library; the module is live in the current context.
        unsafe { result::module::cumodule_init(session.api(), loaded.module()?.cast(), version) }?;
        Ok(Some(loaded))
    }

    /// Queues a pull.
    ///
    /// # Errors
    /// What the driver says.
    ///
    /// # Safety
    /// Both ranges are symmetric memory of all ranks, and the peer is one of them; nobody writes the source or uses the
    /// destination until the kernel has ended.
    pub unsafe fn pull(&self, stream: &CudaStream, blocks: Blocks, pull: Pull) -> anyhow::Result<()> {
        let grid =
            LaunchConfig { grid_dim: (blocks.0, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        let pe = i32::try_from(pull.peer.0)?;
        let mut launch = stream.launch_builder(&self.get);
        launch.arg(&pull.dst).arg(&pull.src).arg(&pull.bytes).arg(&pe);
        // SAFETY: the arguments are the kernel's; the caller vouches for what they say.
        unsafe { launch.launch(grid) }?;
        Ok(())
    }

    /// Takes the module from NVSHMEM, before `finalize`.
    ///
    /// # Errors
    /// What NVSHMEM says.
    ///
    /// # Safety
    /// No pull is queued or runs.
    pub unsafe fn close(self, session: &Session) -> anyhow::Result<()> {
        // SAFETY: it was initialised by `load`; the caller vouches for its kernels.
        Ok(unsafe { result::module::cumodule_finalize(session.api(), self.module()?.cast()) }?)
    }

    /// The module of the kernel, as the driver knows it.
    fn module(&self) -> anyhow::Result<CUmodule> {
        let mut module = std::ptr::null_mut();
        // SAFETY: the pointer is to a live handle, and the function is loaded.
        unsafe { sys::cuFuncGetModule(&raw mut module, self.get.cu_function()) }.result()?;
        Ok(module)
    }
}

/// Of the device library in the module: major << 16 | minor << 8 | patch.
fn version(context: &Arc<CudaContext>, module: &Arc<CudaModule>) -> anyhow::Result<Version> {
    let stream = context.default_stream();
    let word = module.get_global("fm3_nvshmem_version", &stream)?;
    let mut bytes = [0; 4];
    stream.memcpy_dtoh(&word, &mut bytes)?;
    stream.synchronize()?;
    let word = i32::from_le_bytes(bytes);
    Ok(Version { major: word >> 16, minor: word >> 8 & 0xFF, patch: word & 0xFF })
}
