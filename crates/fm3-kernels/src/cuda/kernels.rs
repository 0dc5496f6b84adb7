//! Kernels, loaded into a context and ready to launch.
use std::sync::Arc;

use cudarc::driver::sys::{CUdevice_attribute, CUfunction_attribute_enum, CUresult};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, DriverError};
use cudarc::nvrtc::Ptx;

use super::CudaError;
use super::backward_kernels::{self, Backward};
use super::check::within;
use super::driver::Named;
use super::files::{Binary, KernelSource};
use crate::params::ABI_HASH;
use crate::{DType, Error};

/// All kernels of one context. Loading takes milliseconds: do it once.
#[derive(Debug)]
pub struct Kernels {
    context: Arc<CudaContext>,
    pub(super) forward_bf16: Forward,
    pub(super) forward_f16: Forward,
    /// For bf16 and f16; or which binary is missing, so that the forward pass works without them.
    backward: Result<[Backward; 2], CudaError>,
    pub(super) mask: MaskKernels,
    pub(super) multiprocessors: u32,
}

/// A forward kernel.
#[derive(Debug)]
pub(super) struct Forward {
    pub(super) function: CudaFunction,
    /// The same, with times of its waits.
    pub(super) timed: CudaFunction,
    /// Dynamic shared memory that both want, bytes.
    pub(super) smem: u32,
}

/// The kernels that prepare a mask.
#[derive(Debug)]
pub(super) struct MaskKernels {
    pub(super) tiles: CudaFunction,
    pub(super) lists: CudaFunction,
    pub(super) rank: CudaFunction,
}

/// Tiles that `fm3_mask_rank` sorts at most: 8 bytes each in 64 KiB of shared memory.
pub(super) const MAX_RANKED: u32 = 8192;

/// Shared memory that a block of a Hopper can have, bytes.
const MAX_SMEM: u32 = 227 * 1024;

impl Kernels {
    /// Loads all kernels into `context`. Binaries of the backward pass may be missing until it is called.
    ///
    /// # Errors
    /// [`CudaError::Capability`] unless the device is a Hopper; [`CudaError::NoKernels`] with the folders tried;
    /// [`CudaError::AbiHash`] when they were built from other parameter structs; [`CudaError::Driver`].
    pub fn load(context: &Arc<CudaContext>, source: &KernelSource) -> Result<Self, Error> {
        let capability = context.compute_capability().named("cuDeviceGetAttribute")?;
        // Code for sm_90a runs on 9.0 alone.
        if capability != (9, 0) {
            return Err(CudaError::Capability { ordinal: context.ordinal(), capability }.into());
        }
        let count = context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        let forward = |binary, dtype| -> Result<Forward, Error> {
            let module = module(context, binary, source)?;
            let smem = shared_memory(context, &module)?;
            let one =
                |form| with_shared_memory(function(&module, &format!("fm3_fwd_d128_{form}{dtype}"))?, smem);
            Ok(Forward { function: one("")?, timed: one("timed_")?, smem })
        };
        let mask = module(context, Binary::Mask, source)?;
        Ok(Self {
            context: context.clone(),
            forward_bf16: forward(Binary::ForwardBf16, "bf16")?,
            forward_f16: forward(Binary::ForwardF16, "f16")?,
            backward: backward_kernels::load(context, source)?,
            mask: MaskKernels {
                tiles: function(&mask, "fm3_mask_tiles")?,
                lists: function(&mask, "fm3_mask_lists")?,
                rank: with_shared_memory(function(&mask, "fm3_mask_rank")?, 8 * MAX_RANKED)?,
            },
            multiprocessors: count.named("cuDeviceGetAttribute")?.unsigned_abs(),
        })
    }

    /// The context that they are loaded into.
    pub const fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// Multiprocessors (SMs) of the device.
    pub const fn multiprocessors(&self) -> usize {
        self.multiprocessors as usize
    }

    /// The forward kernel for a type.
    pub(super) fn forward(&self, call: &'static str, dtype: DType) -> Result<&Forward, Error> {
        match dtype {
            DType::Bf16 => Ok(&self.forward_bf16),
            DType::F16 => Ok(&self.forward_f16),
            DType::F32 => Err(no_kernel(call, dtype)),
        }
    }

    /// The backward kernels for a type.
    pub(super) fn backward(&self, call: &'static str, dtype: DType) -> Result<&Backward, Error> {
        let [bf16, f16] = self.backward.as_ref().map_err(Clone::clone)?;
        match dtype {
            DType::Bf16 => Ok(bf16),
            DType::F16 => Ok(f16),
            DType::F32 => Err(no_kernel(call, dtype)),
        }
    }
}

fn no_kernel(call: &'static str, got: DType) -> Error {
    CudaError::Type { call, tensor: "q", got, rule: "the kernels take bf16 and f16" }.into()
}

/// Dynamic shared memory that the main kernel of a binary wants.
pub(super) fn shared_memory(context: &Arc<CudaContext>, module: &Arc<CudaModule>) -> Result<u32, Error> {
    let smem = global(context, module, "fm3_smem_bytes")?.map_or(0, u32::from_le_bytes);
    within("Kernels::load", "fm3_smem_bytes", smem as usize, MAX_SMEM)
}

/// Loads a binary whose parameters are ours.
pub(super) fn module(
    context: &Arc<CudaContext>,
    binary: Binary,
    source: &KernelSource,
) -> Result<Arc<CudaModule>, Error> {
    let bytes = binary.read(source)?.into_owned();
    let module = context.load_module(Ptx::from_binary(bytes)).named("cuModuleLoadData")?;
    let hash = global(context, &module, "fm3_abi_hash")?.map_or(0, u64::from_le_bytes);
    if hash != ABI_HASH {
        let file = binary.file().to_owned();
        return Err(CudaError::AbiHash { file, binary: hash, library: ABI_HASH }.into());
    }
    Ok(module)
}

pub(super) fn function(module: &Arc<CudaModule>, name: &str) -> Result<CudaFunction, Error> {
    module.load_function(name).named("cuModuleGetFunction")
}

/// Allows a kernel `bytes` of dynamic shared memory.
pub(super) fn with_shared_memory(function: CudaFunction, bytes: u32) -> Result<CudaFunction, Error> {
    let attribute = CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(attribute, bytes.cast_signed()).named("cuFuncSetAttribute")?;
    Ok(function)
}

/// The bytes of a variable of the binary; none when it has another size or is not there.
fn global<const N: usize>(
    context: &Arc<CudaContext>,
    module: &Arc<CudaModule>,
    name: &str,
) -> Result<Option<[u8; N]>, Error> {
    let stream = context.default_stream();
    let variable = match module.get_global(name, &stream) {
        Ok(variable) if variable.len() == N => variable,
        Ok(_) | Err(DriverError(CUresult::CUDA_ERROR_NOT_FOUND)) => return Ok(None),
        Err(error) => return Err(error).named("cuModuleGetGlobal"),
    };
    let mut bytes = [0; N];
    stream.memcpy_dtoh(&variable, &mut bytes).named("cuMemcpyDtoHAsync")?;
    stream.synchronize().named("cuStreamSynchronize")?;
    Ok(Some(bytes))
}
