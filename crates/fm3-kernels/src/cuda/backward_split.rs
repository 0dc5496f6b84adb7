//! Backward calls whose KV heads are split into parts of their query heads, or whose dK and dV are f32: dK and dV of
//! each part go to sums in f32, which a launch more adds, in order.
#![expect(unsafe_code, reason = "kernels are launched")]
use bytemuck::Zeroable;
use cudarc::driver::CudaStream;

use super::attention::{Attention, query_map};
use super::backward::{BackwardCall, CALL, enqueue, point_to_tables, strides};
use super::backward_views::KeyGrads;
use super::backward_workspace::BackwardWorkspace;
use super::check::{equal, narrow, same_type, wrong};
use super::driver::Named;
use super::launch::{Grid, launch};
use super::problem::{HEAD_DIM, Problem};
use super::view::DeviceViewMut;
use crate::params::{BackwardParams, BackwardSumParams};
use crate::{DType, Error};

/// Whether the sums of a call are made here.
pub(super) fn is_split(call: &BackwardCall<'_>) -> bool {
    let is_wide = |grad: &DeviceViewMut<'_>| grad.tensor.dtype == DType::F32;
    let wide = matches!(call.grads, KeyGrads::Whole { dk, dv } if is_wide(dk) || is_wide(dv));
    wide || call.options.head_parts.is_some_and(|parts| parts != 1)
}

impl Attention {
    /// [`backward`](Self::backward), if [`is_split`].
    pub(super) fn backward_split(
        &self,
        stream: &CudaStream,
        call: &BackwardCall<'_>,
        workspace: &mut BackwardWorkspace,
    ) -> Result<(), Error> {
        let inputs = call.inputs();
        let (kernels, checked) = self.check_backward(stream, call, workspace)?;
        let split = check_parts(call, &checked.problem)?;
        let (dk, dv) = check_grads(stream, call, &checked.problem)?;
        let dims = checked.problem.dims;
        let scratch = workspace.addresses(CALL, dims)?;
        let sums = workspace.split_addresses(CALL, dims, split as usize)?;
        let mut params = BackwardParams::zeroed();
        checked.describe(&mut params, &inputs)?;
        divide_heads(&mut params, split)?;
        let _records = point_to_tables(&mut params, stream, &inputs, scratch);
        [params.dk_sums, params.dv_sums] = sums;
        params.q = query_map(call.q.tensor)?;
        params.dout = query_map(call.dout.tensor)?;
        checked.key_maps(&mut params)?;
        let blocks = self.blocks(CALL, call.options.margin)?.min(params.tiles);
        // What waits for events could not say is said here.
        stream.context().bind_to_thread().named("cuCtxSetCurrent")?;
        enqueue(stream, (kernels, &kernels.split.gradients), call, &params, blocks)?;
        let batch = narrow(CALL, "batch", dims.batch)?;
        let sum = BackwardSumParams {
            dk_sums: params.dk_sums,
            dv_sums: params.dv_sums,
            dk: dk.tensor.address,
            dv: dv.tensor.address,
            dk_strides: strides(dk.tensor),
            dv_strides: strides(dv.tensor),
            heads_kv: params.heads_kv / split,
            split,
            seq_k: narrow(CALL, "seq_k", dims.seq_k)?,
            key_tiles: params.key_tiles,
        };
        let wide = dk.tensor.dtype == DType::F32;
        let (name, function) = match wide {
            true => ("fm3_bwd_sum_f32", &kernels.split.sum_f32),
            false => ("fm3_bwd_sum", &kernels.split.sum),
        };
        let grid = Grid { blocks: [2 * sum.key_tiles, sum.heads_kv, batch], threads: 256, smem: 0 };
        // SAFETY: the sums are the workspace's and were written by the launch before it on the stream; dK and dV are in
        // the bounds that their views were checked for or that their owner promised, and have the sizes of the keys.
        unsafe { launch(name, function, stream, grid, &sum) }
    }
}

/// Parts of each KV head; they divide its query heads.
fn check_parts(call: &BackwardCall<'_>, problem: &Problem) -> Result<u32, Error> {
    if call.options.deterministic {
        let rule =
            "false: head parts and f32 dK, dV come with dQ in any order, or use begin_backward with slots";
        return Err(wrong(CALL, "deterministic", 1, rule.to_owned()));
    }
    let (parts, group) = (call.options.head_parts.unwrap_or(1), problem.dims.heads_q / problem.dims.heads_kv);
    if parts == 0 || !group.is_multiple_of(parts) {
        let rule = format!("a divisor of {group}, the query heads of a KV head");
        return Err(wrong(CALL, "head_parts", parts as u64, rule));
    }
    narrow(CALL, "head_parts", parts)
}

/// dK and dV, ordered for the stream, with the extents of the keys and one type.
fn check_grads<'a>(
    stream: &CudaStream,
    call: &BackwardCall<'a>,
    problem: &Problem,
) -> Result<(&'a DeviceViewMut<'a>, &'a DeviceViewMut<'a>), Error> {
    let segments = call.mask.segments().rows().len();
    let KeyGrads::Whole { dk, dv } = call.grads else {
        let rule =
            "1: head parts and f32 dK, dV are for keys in one tensor, or use begin_backward with slots";
        return Err(wrong(CALL, "segments", segments as u64, rule.to_owned()));
    };
    equal(CALL, ["mask", "segments"], segments, 1)?;
    let dims = problem.dims;
    for (name, grad) in [("dk", dk), ("dv", dv)] {
        grad.order.check(CALL, name, stream)?;
        if grad.tensor.dtype != DType::F32 {
            same_type(CALL, name, grad.tensor.dtype, call.q.tensor.dtype)?;
        }
        same_type(CALL, name, grad.tensor.dtype, dk.tensor.dtype)?;
        let extents = grad.tensor.extents;
        equal(CALL, [name, "batch"], extents.batch, dims.batch)?;
        equal(CALL, [name, "seq"], extents.seq, dims.seq_k)?;
        equal(CALL, [name, "heads"], extents.heads, dims.heads_kv)?;
        equal(CALL, [name, "head_dim"], extents.head_dim, HEAD_DIM)?;
    }
    Ok((dk, dv))
}

/// Makes KV heads of the parts: part i of head h is head h * split + i, with its share of the query heads.
fn divide_heads(params: &mut BackwardParams, split: u32) -> Result<(), Error> {
    let times = |name, number: u32| narrow(CALL, name, number as usize * split as usize);
    params.heads_kv = times("heads_kv", params.heads_kv)?;
    params.tiles = times("tiles", params.tiles)?;
    params.section_heads = times("section_heads", params.section_heads)?;
    params.group /= split;
    params.split = split;
    Ok(())
}
