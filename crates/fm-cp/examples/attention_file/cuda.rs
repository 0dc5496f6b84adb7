//! The same problem on a GPU: one rank, forward.
use std::sync::Arc;

use anyhow::{Result, bail};
use fm_cp::view::Extents;
use fm_cp::whole::{WholeInputs, WholeOutputs, WholeProblem};
use fm3_kernels::cuda::{
    Attention, DeviceView, DeviceViewMut, ForwardCall, ForwardOptions, KernelSource, Kernels, Keys, LseMut,
    PreparedMask, Workspace, context,
};
use fm3_kernels::mask::KeySegments;

use crate::run::Number;

/// Copies the inputs to the device, runs one call, copies the outputs back.
pub(crate) fn run<T: Number>(
    problem: WholeProblem<'_>,
    inputs: WholeInputs<'_, T>,
) -> Result<WholeOutputs<T>> {
    let (mask, shape) = (problem.mask.dims(), problem.shape);
    if inputs.dout.is_some() {
        bail!("--backend cuda has no gradients; leave dout out, or use --backend host");
    }
    let ranks = problem.sharding.world().size();
    if ranks != 1 {
        bail!("--backend cuda runs 1 rank, not {ranks}; use --backend host for more");
    }
    let context = context(0)?;
    let stream = context.default_stream();
    let attention = Attention::new(Arc::new(Kernels::load(&context, &KernelSource::Search)?));
    let mut workspace = Workspace::new(&stream)?;
    let segments = KeySegments::whole(mask.seq_k)?;
    let prepared = PreparedMask::new(attention.kernels(), &stream, problem.mask, &segments)?;
    let (q, k, v) =
        (stream.clone_htod(inputs.q)?, stream.clone_htod(inputs.k)?, stream.clone_htod(inputs.v)?);
    let mut o = stream.clone_htod(inputs.q)?;
    let mut lse = stream.alloc_zeros::<f32>(shape.batch * shape.heads_q * mask.seq_q)?;
    let extents = |heads| Extents { batch: shape.batch, seq: mask.seq_q, heads, head_dim: shape.head_dim };
    let (queries, keys) = (extents(shape.heads_q), extents(shape.heads_kv));
    {
        let k = DeviceView::bshd(&k, &stream, keys)?;
        let v = DeviceView::bshd(&v, &stream, keys)?;
        let call = ForwardCall {
            q: &DeviceView::bshd(&q, &stream, queries)?,
            keys: Keys::Whole { k: &k, v: &v },
            o: &DeviceViewMut::bshd(&mut o, &stream, queries)?,
            lse: &LseMut::new(&mut lse, &stream),
            mask: &prepared,
            scale: problem.options.scale.unwrap_or_else(|| 1.0 / (shape.head_dim as f32).sqrt()),
            options: ForwardOptions::default(),
        };
        attention.forward(&stream, &call, &mut workspace)?;
    }
    let (o, lse) = (stream.clone_dtoh(&o)?, stream.clone_dtoh(&lse)?);
    stream.synchronize()?;
    Ok(WholeOutputs { o, lse, gradients: None, ranks: Vec::new() })
}
