//! The kernels of backward passes.
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction};

use super::CudaError;
use super::files::{Binary, KernelSource};
use super::kernels::{function, module, shared_memory, with_shared_memory};
use crate::Error;

/// The kernels for one type.
#[derive(Debug)]
pub(super) struct Backward {
    pub(super) prepare: CudaFunction,
    /// The plain form: all keys in one launch.
    pub(super) gradients: CudaFunction,
    /// Dynamic shared memory that all forms of `gradients` want, bytes.
    pub(super) smem: u32,
    pub(super) finish: CudaFunction,
    pub(super) parts: PartKernels,
    pub(super) split: SplitKernels,
}

/// What calls take whose KV heads are split, or whose dK and dV are f32.
#[derive(Debug)]
pub(super) struct SplitKernels {
    pub(super) gradients: CudaFunction,
    /// Sums of parts, to tensors of the kernels' type.
    pub(super) sum: CudaFunction,
    /// The same to f32.
    pub(super) sum_f32: CudaFunction,
}

/// What launches over some of the keys take.
#[derive(Debug)]
pub(super) struct PartKernels {
    pub(super) order: CudaFunction,
    rounded: CudaFunction,
    slots: CudaFunction,
    ordered: CudaFunction,
    ordered_slots: CudaFunction,
    pub(super) finish: CudaFunction,
}

/// A form of the kernel, for some of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// dK and dV go to f32 slots.
    pub(super) slots: bool,
    /// dQ is added in one order.
    pub(super) ordered: bool,
}

impl PartKernels {
    pub(super) const fn gradients(&self, form: Form) -> &CudaFunction {
        match form {
            Form { slots: false, ordered: false } => &self.rounded,
            Form { slots: true, ordered: false } => &self.slots,
            Form { slots: false, ordered: true } => &self.ordered,
            Form { slots: true, ordered: true } => &self.ordered_slots,
        }
    }
}

/// The kernels of both types, bf16 first; that a binary is missing is kept for who asks for them.
pub(super) fn load(
    context: &Arc<CudaContext>,
    source: &KernelSource,
) -> Result<Result<[Backward; 2], CudaError>, Error> {
    let one = |binary, dtype| load_one(context, source, (binary, dtype));
    let both =
        one(Binary::BackwardBf16, "bf16").and_then(|first| Ok([first, one(Binary::BackwardF16, "f16")?]));
    match both {
        Err(Error::Cuda(missing @ CudaError::NoKernels { .. })) => Ok(Err(missing)),
        both => both.map(Ok),
    }
}

fn load_one(
    context: &Arc<CudaContext>,
    source: &KernelSource,
    (binary, dtype): (Binary, &str),
) -> Result<Backward, Error> {
    let module = module(context, binary, source)?;
    let smem = shared_memory(context, &module)?;
    let small = |name| function(&module, &format!("fm3_bwd_{name}_{dtype}"));
    let main = |name| with_shared_memory(function(&module, &format!("fm3_bwd_d128_{name}{dtype}"))?, smem);
    Ok(Backward {
        prepare: small("prepare")?,
        gradients: main("")?,
        smem,
        finish: small("finish")?,
        parts: PartKernels {
            order: small("order")?,
            rounded: main("part_")?,
            slots: main("slots_")?,
            ordered: main("ordered_")?,
            ordered_slots: main("ordered_slots_")?,
            finish: small("finish_part")?,
        },
        split: SplitKernels { gradients: main("split_")?, sum: small("sum")?, sum_f32: small("sum_f32")? },
    })
}
