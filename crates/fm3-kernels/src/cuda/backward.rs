//! Backward attention on a Hopper: three launches a call.
#![expect(unsafe_code, reason = "kernels are launched")]
use bytemuck::Zeroable;
use cudarc::driver::{CudaFunction, CudaStream, DevicePtr, SyncOnDrop};

use super::CudaError;
use super::attention::{Attention, query_map};
use super::backward_kernels::Backward;
use super::backward_parts::{GradientPart, PartGrads};
use super::backward_problem::{BackwardProblem, check_like_keys, grad_maps};
use super::backward_split::is_split;
use super::backward_views::{KeyGrads, LseView};
use super::backward_workspace::{Addresses, BackwardWorkspace};
use super::check::wrong;
use super::driver::Named;
use super::keys::Keys;
use super::launch::{Grid, launch};
use super::prepared::PreparedMask;
use super::view::{DeviceView, DeviceViewMut, Tensor};
use crate::Error;
use crate::params::{BackwardFinishParams, BackwardParams, BackwardPrepareParams};

pub(super) const CALL: &str = "Attention::backward";

/// Rows of a block of the preparing pass (`backward_passes.cuh`).
pub(super) const PREPARED_ROWS: u32 = 16;

/// One call: dQ, dK, dV of O = softmax(scale * Q K^T, where the mask lets it) V, all overwritten.
#[derive(Clone, Copy, Debug)]
pub struct BackwardCall<'a> {
    /// Q, [b, sq, hq, 128].
    pub q: &'a DeviceView<'a>,
    /// K and V, the type of Q; without signals.
    pub keys: Keys<'a>,
    /// O of the forward pass, the type and extents of Q.
    pub o: &'a DeviceView<'a>,
    /// dO, the type and extents of Q.
    pub dout: &'a DeviceView<'a>,
    /// LSE of the forward pass, [b, hq, sq].
    pub lse: &'a LseView<'a>,
    /// dQ, the type and extents of Q; fully masked rows are 0.
    pub dq: &'a DeviceViewMut<'a>,
    /// dK and dV, the extents of the keys, and their type or, both [`Whole`](KeyGrads::Whole), f32; rows that nobody sees
    /// are 0.
    pub grads: KeyGrads<'a>,
    /// Who sees whom, prepared for the same key segments.
    pub mask: &'a PreparedMask,
    /// Factor of Q K^T before softmax, above 0: that of the forward pass.
    pub scale: f32,
    /// The rest.
    pub options: BackwardOptions,
}

/// What a backward pass reads: the inputs of [`Attention::begin_backward`].
#[derive(Clone, Copy, Debug)]
pub struct BackwardInputs<'a> {
    /// Q, [b, sq, hq, 128].
    pub q: &'a DeviceView<'a>,
    /// K and V, the type of Q.
    pub keys: Keys<'a>,
    /// O of the forward pass, the type and extents of Q.
    pub o: &'a DeviceView<'a>,
    /// dO, the type and extents of Q.
    pub dout: &'a DeviceView<'a>,
    /// LSE of the forward pass, [b, hq, sq].
    pub lse: &'a LseView<'a>,
    /// Who sees whom, prepared for the same key segments.
    pub mask: &'a PreparedMask,
    /// Factor of Q K^T before softmax, above 0: that of the forward pass.
    pub scale: f32,
    /// The rest.
    pub options: BackwardOptions,
}

/// What a call may leave as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackwardOptions {
    /// KV heads whose tiles run side by side; none: up to 4, by the rows that see a key, and the shortest tiles of all
    /// heads last.
    pub section_heads: Option<usize>,
    /// Multiprocessors that are left to others.
    pub margin: usize,
    /// Whether dQ of equal calls has equal bits, whatever the number of multiprocessors: its sums are then added in one
    /// order, which costs waiting. dK and dV always repeat.
    pub deterministic: bool,
    /// Parts that the query heads of each KV head are divided into, a divisor of hq / hkv; none: 1.
    ///
    /// The tiles of a launch are 128 keys of one KV head with all its query heads, whose dK and dV are summed in registers.
    /// With few KV heads and short sequences these are fewer tiles than the device has multiprocessors (132). Parts are
    /// tiles of their own; their dK and dV are added in f32 by a launch more, in order, so that equal calls still have
    /// equal bits. Only for [`Attention::backward`] with all keys in one tensor, in any order of dQ.
    pub head_parts: Option<usize>,
}

impl<'a> BackwardCall<'a> {
    /// All but the outputs.
    pub const fn inputs(&self) -> BackwardInputs<'a> {
        let Self { q, keys, o, dout, lse, mask, scale, options, .. } = *self;
        BackwardInputs { q, keys, o, dout, lse, mask, scale, options }
    }
}

impl Attention {
    /// Enqueues one backward pass on `stream`, which `workspace` must be of.
    ///
    /// Nothing is allocated, nothing synchronises, nothing is kept from call to call. dK and dV of equal calls have
    /// equal bits; dQ too if [`BackwardOptions::deterministic`] is set, otherwise it is summed in f32 in any order.
    /// Calls can be captured into a graph, if the context does not track events.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`CudaError::NoKernels`] when the backward kernels are not there;
    /// [`CudaError::Workspace`] when the problem does not fit (deterministic calls need
    /// [`BackwardWorkspace::bytes_in_parts`], those with [`head_parts`](BackwardOptions::head_parts) or f32 dK and dV
    /// [`BackwardWorkspace::bytes_split`]); [`CudaError::Value`] for keys with signals, which
    /// [`begin_backward`](Self::begin_backward) takes, for segments whose gradients would lie on each other, and for
    /// head parts or f32 gradients together with segments or `deterministic`.
    pub fn backward(
        &self,
        stream: &CudaStream,
        call: &BackwardCall<'_>,
        workspace: &mut BackwardWorkspace,
    ) -> Result<(), Error> {
        if matches!(call.keys, Keys::Segments { table, .. } if table.waits()) {
            let rule = "0: this call does not wait, give it a table without signals, or use begin_backward"
                .to_owned();
            return Err(wrong(CALL, "signals", 1, rule));
        }
        if is_split(call) {
            return self.backward_split(stream, call, workspace);
        }
        if call.options.deterministic {
            let mut pass = self.begin(CALL, stream, call.inputs(), workspace)?;
            pass.check_dq(call.dq)?;
            let grads = PartGrads::Rounded { grads: call.grads, table: None };
            let tiles = 0..call.mask.key_tiles();
            pass.gradients(&GradientPart { tiles, grads, wait: None, abort: None })?;
            return pass.finish(call.dq);
        }
        let inputs = call.inputs();
        let (kernels, checked) = self.check_backward(stream, call, workspace)?;
        let grads = grad_maps(CALL, stream, call.grads)?;
        check_like_keys(CALL, &checked.problem, call.keys, &grads)?;
        let scratch = workspace.addresses(CALL, checked.problem.dims)?;
        let mut params = BackwardParams::zeroed();
        checked.describe(&mut params, &inputs)?;
        let _records = point_to_tables(&mut params, stream, &inputs, scratch);
        params.q = query_map(call.q.tensor)?;
        params.dout = query_map(call.dout.tensor)?;
        checked.key_maps(&mut params)?;
        checked.grad_maps(&mut params, &grads)?;
        let blocks = self.blocks(CALL, call.options.margin)?.min(params.tiles);
        // What waits for events could not say is said here.
        stream.context().bind_to_thread().named("cuCtxSetCurrent")?;
        enqueue(stream, (kernels, &kernels.gradients), call, &params, blocks)
    }

    /// All of a call but where dK and dV go.
    pub(super) fn check_backward(
        &self,
        stream: &CudaStream,
        call: &BackwardCall<'_>,
        workspace: &BackwardWorkspace,
    ) -> Result<(&Backward, BackwardProblem), Error> {
        if workspace.stream().as_ref() != stream {
            return Err(CudaError::Stream { call: CALL, tensor: "workspace" }.into());
        }
        let kernels = self.kernels().backward(CALL, call.q.tensor.dtype)?;
        let inputs = call.inputs();
        let checked = BackwardProblem::check(CALL, stream, &inputs)?;
        checked.check_dq(stream, &inputs, call.dq)?;
        Ok((kernels, checked))
    }
}

/// The three launches of a call whose parts were all checked, with the main kernel's form.
pub(super) fn enqueue(
    stream: &CudaStream,
    (kernels, gradients): (&Backward, &CudaFunction),
    call: &BackwardCall<'_>,
    params: &BackwardParams,
    blocks: u32,
) -> Result<(), Error> {
    let (heads, batch) = (params.heads_q, params.tiles / (params.heads_kv * params.key_tiles));
    let prepare = prepare_params(&call.inputs(), params);
    let grid = Grid { blocks: [prepare.rows_padded / PREPARED_ROWS, heads, batch], threads: 256, smem: 0 };
    // SAFETY: tensors are in the bounds that their views were checked for or that their owner promised, and fit the
    // sizes; the workspace is this stream's and has room for them. Views and records hold all of it until the last
    // launch is enqueued, and order frees and other uses behind it.
    unsafe { launch("fm3_bwd_prepare", &kernels.prepare, stream, grid, &prepare)? };
    let grid = Grid { blocks: [blocks, 1, 1], threads: 384, smem: kernels.smem };
    // SAFETY: as above; the tables are of the same mask and segments, and rows and sums were written by the kernel
    // before it on the stream.
    unsafe { launch("fm3_bwd_d128", gradients, stream, grid, params)? };
    let finish = finish_params(call.dq.tensor, params);
    let grid = Grid { blocks: [finish.blocks, heads, batch], threads: 256, smem: 0 };
    // SAFETY: as above; the sums are complete when the kernel before it is.
    unsafe { launch("fm3_bwd_finish", &kernels.finish, stream, grid, &finish) }
}

pub(super) fn prepare_params(inputs: &BackwardInputs<'_>, params: &BackwardParams) -> BackwardPrepareParams {
    BackwardPrepareParams {
        o: inputs.o.tensor.address,
        dout: inputs.dout.tensor.address,
        lse: inputs.lse.address,
        lse2: params.lse2,
        delta: params.delta,
        dq_sums: params.dq_sums,
        o_strides: strides(inputs.o.tensor),
        dout_strides: strides(inputs.dout.tensor),
        heads_q: params.heads_q,
        seq_q: params.seq_q,
        rows_padded: params.row_tiles * 128,
        reserved: 0,
    }
}

pub(super) fn finish_params(dq: Tensor, params: &BackwardParams) -> BackwardFinishParams {
    BackwardFinishParams {
        dq_sums: params.dq_sums,
        dq: dq.address,
        dq_strides: strides(dq),
        heads_q: params.heads_q,
        seq_q: params.seq_q,
        blocks: 2 * params.row_tiles,
        scale: params.scale,
        poisoned: params.poisoned,
    }
}

/// Batch, row, head.
pub(super) fn strides(tensor: Tensor) -> [u64; 3] {
    let strides = tensor.strides;
    [strides.batch, strides.seq, strides.heads].map(|stride| stride as u64)
}

/// Addresses in memory that is not the caller's tensors. The records are dropped behind the launches.
pub(super) fn point_to_tables<'a>(
    params: &mut BackwardParams,
    stream: &'a CudaStream,
    inputs: &BackwardInputs<'a>,
    scratch: Addresses,
) -> [Option<SyncOnDrop<'a>>; 2] {
    let (base, mask) = inputs.mask.address(stream);
    let arena = inputs.mask.arena();
    let address = |word: usize| base + 4 * word as u64;
    params.bands = address(arena.bands.start);
    params.counts_t = address(arena.by_keys.counts.start);
    params.entries_t = address(arena.by_keys.entries.start);
    params.ranked_t = address(arena.by_keys.ranked.start);
    params.counts = address(arena.by_rows.counts.start);
    params.entries = address(arena.by_rows.entries.start);
    params.places = address(arena.places.start);
    params.claims = scratch.claims;
    params.lse2 = scratch.lse2;
    params.delta = scratch.delta;
    params.dq_sums = scratch.dq_sums;
    let Keys::Segments { table, .. } = inputs.keys else {
        params.segments = scratch.segment;
        return [Some(mask), None];
    };
    let (segments, record) = table.device().device_ptr(stream);
    params.segments = segments;
    [Some(mask), Some(record)]
}
