//! Forward attention on a Hopper: one launch a call.
#![expect(unsafe_code, reason = "a kernel is launched")]
use std::sync::Arc;
use std::time::Duration;

use bytemuck::Zeroable;
use cudarc::driver::{CudaStream, DevicePtr, SyncOnDrop, sys};

use super::CudaError;
use super::check::{equal, narrow, wrong};
use super::driver::Named;
use super::kernels::Kernels;
use super::keys::Keys;
use super::launch::{Grid, launch};
use super::prepared::PreparedMask;
use super::problem::{Inputs, Problem};
use super::tensor_map::Tiled;
use super::times::{ForwardTimes, PieceCounts};
use super::view::{DeviceView, DeviceViewMut, LseMut, Tensor};
use super::workspace::{AbortWord, Workspace};
use crate::Error;
use crate::params::{ForwardParams, TensorMap};

const CALL: &str = "Attention::forward";

/// Attention on one device.
#[derive(Clone, Debug)]
pub struct Attention {
    kernels: Arc<Kernels>,
}

/// One call: O = softmax(scale * Q K^T, where the mask lets it) V, and LSE.
#[derive(Clone, Copy, Debug)]
pub struct ForwardCall<'a> {
    /// Q, [b, sq, hq, 128].
    pub q: &'a DeviceView<'a>,
    /// K and V, the type of Q.
    pub keys: Keys<'a>,
    /// O, [b, sq, hq, 128] in the type of Q; fully masked rows are 0.
    pub o: &'a DeviceViewMut<'a>,
    /// LSE, natural logarithm, [b, hq, sq]; fully masked rows are -inf.
    pub lse: &'a LseMut<'a>,
    /// Who sees whom, prepared for the same key segments.
    pub mask: &'a PreparedMask,
    /// Factor of Q K^T before softmax, above 0.
    pub scale: f32,
    /// The rest.
    pub options: ForwardOptions<'a>,
}

/// What a call may leave as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardOptions<'a> {
    /// Query heads whose tiles run side by side, a multiple of hq / hkv; none: as many as have 32 MiB of K and V.
    pub section_heads: Option<usize>,
    /// Multiprocessors that are left to others.
    pub margin: usize,
    /// How to wait for segments that have signals.
    pub wait: Option<Wait>,
    /// Ends the call when set.
    pub abort: Option<&'a AbortWord>,
    /// Takes times of the call, made for its segments and pieces.
    pub times: Option<&'a ForwardTimes>,
}

/// Waits for the signals of key segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// A segment's rows of KV head h are there when its signal is at least `base + h / heads_per_piece + 1`.
    pub base: u64,
    /// KV heads that arrive together.
    pub heads_per_piece: usize,
    /// Longest wait; see [`Workspace::wait_report`]. None: no limit.
    pub deadline: Option<Duration>,
}

impl Attention {
    /// Attention by these kernels.
    pub const fn new(kernels: Arc<Kernels>) -> Self {
        Self { kernels }
    }

    /// The kernels.
    pub const fn kernels(&self) -> &Arc<Kernels> {
        &self.kernels
    }

    /// Enqueues one forward pass on `stream`, which `workspace` must be of.
    ///
    /// Nothing is allocated, nothing synchronises, nothing is kept from call to call. Calls without signals can be
    /// captured into a graph, if the context does not track events.
    ///
    /// # Errors
    /// [`Error::Mismatch`], [`Error::MaskHeads`] and those of [`Shape::new`](crate::Shape::new) when the parts do not
    /// fit each other; [`CudaError::Stream`], [`CudaError::Type`], [`CudaError::Scale`], [`CudaError::Value`];
    /// [`CudaError::Capture`] when signals are waited for in a capture; [`CudaError::Driver`].
    pub fn forward(
        &self,
        stream: &CudaStream,
        call: &ForwardCall<'_>,
        workspace: &mut Workspace,
    ) -> Result<(), Error> {
        if workspace.stream().as_ref() != stream {
            return Err(CudaError::Stream { call: CALL, tensor: "workspace" }.into());
        }
        let kernel = self.kernels.forward(CALL, call.q.tensor.dtype)?;
        let inputs = Inputs { q: call.q, keys: call.keys, mask: call.mask };
        let problem = Problem::check(CALL, stream, inputs)?;
        problem.check_like_q("o", (call.o.tensor, &call.o.order), (call.q.tensor, stream))?;
        call.lse.order.check(CALL, "lse", stream)?;
        problem.check_lse(call.lse.len)?;
        if call.options.wait.is_some() {
            refuse_capture(stream)?;
        }
        let mut params = ForwardParams::zeroed();
        problem.describe(&mut params, call)?;
        let _records = point_to_tables(&mut params, stream, call, workspace);
        set_waits(&mut params, call, workspace)?;
        set_times(&mut params, call, problem.dims.heads_kv)?;
        params.q = query_map(call.q.tensor)?;
        params.o = query_map(call.o.tensor)?;
        problem.key_maps(&mut params)?;
        let blocks = self.blocks(CALL, call.options.margin)?.min(params.tiles);
        let grid = Grid { blocks: [blocks, 1, 1], threads: 384, smem: kernel.smem };
        let function = if call.options.times.is_some() { &kernel.timed } else { &kernel.function };
        // What waits for events could not say is said here.
        stream.context().bind_to_thread().named("cuCtxSetCurrent")?;
        // SAFETY: tensors are in the bounds that their views were checked for or that their owner promised, and fit the
        // sizes; the tables are of the same mask and segments; the workspace is this stream's. The views and records
        // hold all of it until the launch is enqueued, and order frees and other uses behind it.
        unsafe { launch("fm3_fwd_d128", function, stream, grid, &params) }
    }

    /// Blocks that run at once.
    pub(super) fn blocks(&self, call: &'static str, margin: usize) -> Result<u32, Error> {
        let all = self.kernels.multiprocessors;
        match u32::try_from(margin) {
            Ok(margin) if margin < all => Ok(all - margin),
            _ => Err(wrong(call, "margin", margin as u64, format!("below {all}, the multiprocessors"))),
        }
    }
}

fn refuse_capture(stream: &CudaStream) -> Result<(), Error> {
    let status = stream.capture_status().named("cuStreamIsCapturing")?;
    if status == sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
        return Ok(());
    }
    Err(CudaError::Capture { call: CALL }.into())
}

/// Q, O or dO: {d, seq, heads, batch}.
pub(super) fn query_map(tensor: Tensor) -> Result<TensorMap, Error> {
    let (e, s) = (tensor.extents, tensor.strides);
    Tiled {
        address: tensor.address,
        dtype: tensor.dtype,
        dims: [e.head_dim, e.seq, e.heads, e.batch],
        strides: [1, s.seq, s.heads, s.batch],
        box_rows: 64,
    }
    .encode()
}

/// Addresses in memory that is not the caller's tensors. The records are dropped behind the launch.
fn point_to_tables<'a>(
    params: &mut ForwardParams,
    stream: &'a CudaStream,
    call: &ForwardCall<'a>,
    workspace: &Workspace,
) -> [Option<SyncOnDrop<'a>>; 4] {
    let (base, mask) = call.mask.address(stream);
    let arena = call.mask.arena();
    let address = |word: usize| base + 4 * word as u64;
    params.lse = call.lse.address;
    params.bands = address(arena.bands.start);
    params.counts = address(arena.by_rows.counts.start);
    params.entries = address(arena.by_rows.entries.start);
    params.ranked = address(arena.by_rows.ranked.start);
    params.places = address(arena.places.start);
    params.claims = workspace.claims();
    let mut records = [Some(mask), None, None, None];
    params.segments = match call.keys {
        Keys::Whole { .. } => workspace.one_segment(),
        Keys::Segments { table, .. } => {
            let (address, record) = table.device().device_ptr(stream);
            records[1] = Some(record);
            address
        }
    };
    if let Some(abort) = call.options.abort {
        let (address, record) = abort.address(stream);
        (params.abort, records[2]) = (address, Some(record));
    }
    if let Some(times) = call.options.times {
        let (address, record) = times.address(stream);
        (params.times, records[3]) = (address, Some(record));
    }
    records
}

/// Without waits the kernel looks at none of this.
fn set_waits(params: &mut ForwardParams, call: &ForwardCall<'_>, workspace: &Workspace) -> Result<(), Error> {
    params.heads_per_piece = 1;
    let Some(wait) = call.options.wait else {
        return match call.keys {
            Keys::Segments { table, .. } if table.waits() => {
                Err(wrong(CALL, "wait", 0, "given, since segments have signals".to_owned()))
            }
            _ => Ok(()),
        };
    };
    params.report = workspace.report();
    params.signal_base = wait.base;
    params.heads_per_piece = narrow(CALL, "heads_per_piece", wait.heads_per_piece)?;
    params.deadline_ns = wait.deadline.map_or(0, |deadline| {
        // 0 would mean no deadline; 584 years are one.
        u64::try_from(deadline.as_nanos()).unwrap_or(u64::MAX).max(1)
    });
    Ok(())
}

/// The records must be as many as the kernel counts.
fn set_times(params: &mut ForwardParams, call: &ForwardCall<'_>, heads_kv: usize) -> Result<(), Error> {
    let Some(times) = call.options.times else { return Ok(()) };
    let PieceCounts { segments, pieces } = times.counts();
    equal(CALL, ["times", "segments"], segments, call.mask.segments().rows().len())?;
    equal(CALL, ["times", "pieces"], pieces, heads_kv.div_ceil(params.heads_per_piece as usize))?;
    params.pieces = narrow(CALL, "pieces", pieces)?;
    Ok(())
}
