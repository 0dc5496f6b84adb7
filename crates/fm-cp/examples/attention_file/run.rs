//! From tensors in a file to tensors in a file.
use anyhow::{Context, Result};
use fm_cp::host::HostConfig;
use fm_cp::mask::{Columns, MaskDims};
use fm_cp::whole::{WholeInputs, WholeOutputs, WholeProblem};
use fm_cp::{Config, CpShape, DType, Element, FlashMask, Options, Sharding, World, whole};
use half::{bf16, f16};
use safetensors::tensor::Dtype;

use crate::Args;
use crate::files::{Input, Output, write};

/// What tensors hold, on every backend.
#[cfg(feature = "cuda")]
pub(crate) trait Number: Element + fm3_kernels::cuda::cudarc::driver::DeviceRepr {}
/// What tensors hold, on every backend.
#[cfg(not(feature = "cuda"))]
pub(crate) trait Number: Element {}
impl Number for f32 {}
impl Number for bf16 {}
impl Number for f16 {}

/// Reads, runs, writes; returns the line to print.
pub(crate) fn execute(args: &Args) -> Result<String> {
    let path = args.input.display();
    let bytes = std::fs::read(&args.input).with_context(|| format!("cannot read {path}"))?;
    let input = Input::parse(&bytes).with_context(|| format!("{path}"))?;
    match input.dtype()? {
        DType::F32 => typed::<f32>(args, &input, Dtype::F32),
        DType::Bf16 => typed::<bf16>(args, &input, Dtype::BF16),
        DType::F16 => typed::<f16>(args, &input, Dtype::F16),
    }
}

fn typed<T: Number>(args: &Args, input: &Input<'_>, dtype: Dtype) -> Result<String> {
    let [batch, seq, heads_q, head_dim] = input.q.shape;
    let heads_kv = input.k.shape[2];
    let keys = [batch, seq, heads_kv, head_dim];
    input.k.expect(keys, "batch, rows and head dim of q")?;
    input.v.expect(keys, "the shape of k")?;
    if let Some(dout) = &input.dout {
        dout.expect(input.q.shape, "the shape of q")?;
    }
    let mask = mask(args, input)?;
    let sharding = Sharding::new(args.sharding, seq, World::new(args.ranks)?)?;
    let shape = CpShape { batch, heads_q, heads_kv, head_dim, dtype: T::DTYPE };
    let (q, k, v) = (input.q.elements::<T>(), input.k.elements::<T>(), input.v.elements::<T>());
    let dout = input.dout.as_ref().map(|dout| dout.elements::<T>());
    let problem = WholeProblem {
        mask: &mask,
        shape,
        sharding: &sharding,
        options: Options { scale: args.scale },
        config: &Config::from_env()?,
        host: &HostConfig::default(),
    };
    let inputs = WholeInputs { q: &q, k: &k, v: &v, dout: dout.as_deref() };
    let outputs = run(args, problem, inputs)?;
    let tensors = tensors(shape, seq, &outputs, dtype);
    write(&args.output, &tensors)?;
    let (density, ranks) = (mask.density(), args.ranks);
    Ok(format!(
        "{batch} x {seq} x {heads_q}/{heads_kv} x {head_dim} {}, density {density:.4}, {ranks} ranks",
        T::DTYPE
    ))
}

#[cfg(feature = "cuda")]
fn run<T: Number>(
    args: &Args,
    problem: WholeProblem<'_>,
    inputs: WholeInputs<'_, T>,
) -> Result<WholeOutputs<T>> {
    if args.backend == "cuda" { crate::cuda::run(problem, inputs) } else { Ok(whole::run(problem, inputs)?) }
}

#[cfg(not(feature = "cuda"))]
fn run<T: Number>(
    _: &Args,
    problem: WholeProblem<'_>,
    inputs: WholeInputs<'_, T>,
) -> Result<WholeOutputs<T>> {
    Ok(whole::run(problem, inputs)?)
}

fn mask(args: &Args, input: &Input<'_>) -> Result<FlashMask> {
    let [batch, seq, ..] = input.q.shape;
    let Some(tensor) = &input.mask else {
        let dims = MaskDims { batch, heads: 1, seq_q: seq, seq_k: seq };
        return Ok(if args.causal { FlashMask::causal(dims)? } else { FlashMask::full(dims)? });
    };
    let [mask_batch, heads, mask_seq, count] = tensor.shape;
    tensor.expect([batch, heads, seq, count], "[batch of q, mask heads, rows of q, 1, 2 or 4]")?;
    let columns = Columns::from_count(count)?;
    let dims = MaskDims { batch: mask_batch, heads, seq_q: seq, seq_k: mask_seq };
    Ok(FlashMask::new(dims, columns, args.causal, tensor.bounds()?)?)
}

fn tensors<T: Element>(shape: CpShape, seq: usize, out: &WholeOutputs<T>, dtype: Dtype) -> Vec<Output> {
    let CpShape { batch, heads_q, heads_kv, head_dim, .. } = shape;
    let (query, key) = ([batch, seq, heads_q, head_dim], [batch, seq, heads_kv, head_dim]);
    let mut tensors = vec![
        Output::new("o", dtype, &query, &out.o),
        Output::new("lse", Dtype::F32, &[batch, heads_q, seq], &out.lse),
    ];
    if let Some(grads) = &out.gradients {
        tensors.push(Output::new("dq", dtype, &query, &grads.dq));
        tensors.push(Output::new("dk", dtype, &key, &grads.dk));
        tensors.push(Output::new("dv", dtype, &key, &grads.dv));
    }
    tensors
}
