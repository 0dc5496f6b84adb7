//! A backward pass in parts: each launch takes some of the keys, when they are there, and sends their gradients where
//! they belong.
#![expect(unsafe_code, reason = "kernels are launched")]
use std::ops::Range;
use std::time::Duration;

use bytemuck::Zeroable;
use cudarc::driver::{CudaStream, DevicePtr, SyncOnDrop, sys};

use super::CudaError;
use super::attention::{Attention, Wait, query_map};
use super::backward::{BackwardInputs, PREPARED_ROWS, finish_params, point_to_tables, prepare_params};
use super::backward_kernels::{Backward, Form};
use super::backward_problem::{BackwardProblem, check_like_keys, grad_maps};
use super::backward_slots::GradTable;
use super::backward_views::KeyGrads;
use super::backward_workspace::{Addresses, BackwardWorkspace, Lists, PassAddresses};
use super::check::{narrow, wrong};
use super::driver::Named;
use super::keys::Keys;
use super::launch::{Grid, launch};
use super::problem::KeyTensors;
use super::view::DeviceViewMut;
use super::workspace::AbortWord;
use crate::Error;
use crate::params::{BackwardOrderParams, BackwardParams};

/// Longest wait for a turn beyond all waits for keys: only a mistake, or a device that stands still, lasts longer.
const TURN_DEADLINE: Duration = Duration::from_secs(20);

/// A backward pass that has begun: launches over parts of the keys, then dQ. Dropped without
/// [`finish`](Self::finish) it leaves dQ unwritten.
#[derive(Debug)]
pub struct BackwardPass<'a> {
    call: &'static str,
    attention: &'a Attention,
    stream: &'a CudaStream,
    inputs: BackwardInputs<'a>,
    /// Nobody else uses it while the pass goes on.
    _workspace: &'a mut BackwardWorkspace,
    scratch: Addresses,
    checked: BackwardProblem,
    /// Sizes and scratch; what depends on a launch is filled in for it.
    params: BackwardParams,
    pass: PassAddresses,
    /// Key tiles of the launches so far.
    launched: Vec<Range<usize>>,
}

/// One launch: gradients of some of the keys.
#[derive(Clone, Debug)]
pub struct GradientPart<'a> {
    /// Key tiles, in the order of the mask's columns; see [`BackwardPass::tiles_of`].
    pub tiles: Range<usize>,
    /// Where dK and dV go.
    pub grads: PartGrads<'a>,
    /// How to wait for segments that have signals.
    pub wait: Option<Wait>,
    /// Ends the launch when set.
    pub abort: Option<&'a AbortWord>,
}

/// Where dK and dV of a launch go.
#[derive(Clone, Copy, Debug)]
pub enum PartGrads<'a> {
    /// To tensors of the type of Q, rounded once.
    Rounded {
        /// The tensors: with a table its maps are theirs; otherwise as in a call over all keys.
        grads: KeyGrads<'a>,
        /// Slabs, tiles that are left out, and slots that are added.
        table: Option<&'a GradTable>,
    },
    /// To the slots of a table, in f32.
    Slots(&'a GradTable),
}

/// A launch whose parts were all checked.
struct Launch<'a> {
    tiles: Range<usize>,
    table: Option<&'a GradTable>,
    grads: KeyTensors,
    form: Form,
    wait: Option<Wait>,
    abort: Option<&'a AbortWord>,
    sum_only: bool,
}

impl Attention {
    /// Begins a backward pass on `stream`, which `workspace` must be of: row sums are computed and the sums of dQ zeroed.
    ///
    /// Launches over parts of the keys follow, then dQ. All is enqueued in stream order; nothing is allocated, nothing
    /// synchronises. With [`deterministic`](super::BackwardOptions::deterministic) set, dQ of passes with the same
    /// launches has the same bits.
    ///
    /// # Errors
    /// As [`backward`](Self::backward); the workspace needs [`BackwardWorkspace::bytes_in_parts`].
    pub fn begin_backward<'a>(
        &'a self,
        stream: &'a CudaStream,
        inputs: BackwardInputs<'a>,
        workspace: &'a mut BackwardWorkspace,
    ) -> Result<BackwardPass<'a>, Error> {
        self.begin("Attention::begin_backward", stream, inputs, workspace)
    }

    pub(super) fn begin<'a>(
        &'a self,
        call: &'static str,
        stream: &'a CudaStream,
        inputs: BackwardInputs<'a>,
        workspace: &'a mut BackwardWorkspace,
    ) -> Result<BackwardPass<'a>, Error> {
        if workspace.stream().as_ref() != stream {
            return Err(CudaError::Stream { call, tensor: "workspace" }.into());
        }
        if let Some(parts) = inputs.options.head_parts.filter(|parts| *parts != 1) {
            let rule = "1: parts of heads are for calls of Attention::backward in any order of dQ".to_owned();
            return Err(wrong(call, "head_parts", parts as u64, rule));
        }
        let kernels = self.kernels().backward(call, inputs.q.tensor.dtype)?;
        let checked = BackwardProblem::check(call, stream, &inputs)?;
        self.blocks(call, inputs.options.margin)?;
        let (dims, of_mask) = (checked.problem.dims, inputs.mask.dims());
        let lists = Lists { masks: of_mask.batch * of_mask.heads, key_tiles: inputs.mask.key_tiles() };
        let scratch = workspace.addresses(call, dims)?;
        let pass = workspace.pass_addresses(call, dims, lists)?;
        let mut params = BackwardParams::zeroed();
        checked.describe(&mut params, &inputs)?;
        let _records = point_to_tables(&mut params, stream, &inputs, scratch);
        params.q = query_map(inputs.q.tensor)?;
        params.dout = query_map(inputs.dout.tensor)?;
        checked.key_maps(&mut params)?;
        (params.poisoned, params.turns, params.positions) = (pass.poisoned, pass.turns, pass.positions);
        // What waits for events could not say is said here.
        stream.context().bind_to_thread().named("cuCtxSetCurrent")?;
        workspace.clear_pass(dims, lists)?;
        enqueue_prepare(stream, kernels, &inputs, &params)?;
        Ok(BackwardPass {
            call,
            attention: self,
            stream,
            inputs,
            _workspace: workspace,
            scratch,
            checked,
            params,
            pass,
            launched: Vec::new(),
        })
    }
}

impl BackwardPass<'_> {
    /// Key tiles of some segments.
    ///
    /// # Errors
    /// [`CudaError::Value`] for segments that the mask does not have.
    pub fn tiles_of(&self, segments: Range<usize>) -> Result<Range<usize>, Error> {
        let rows = self.inputs.mask.segments().rows();
        if segments.end > rows.len() || segments.start > segments.end {
            let rule = format!("at most {}, and not before the start", rows.len());
            return Err(wrong(self.call, "end of segments", segments.end as u64, rule));
        }
        let tiles = |end: usize| rows[..end].iter().map(|rows| rows.div_ceil(128)).sum();
        Ok(tiles(segments.start)..tiles(segments.end))
    }

    /// Enqueues the gradients of some keys; each key tile takes part once in a pass.
    ///
    /// # Errors
    /// [`CudaError::Value`] for tiles that are not there or were launched before, for segments with signals without a
    /// `wait`, and for tables that do not fit; [`CudaError::Capture`] when signals are waited for in a capture; those
    /// of the gradients' views as in [`Attention::backward`].
    pub fn gradients(&mut self, part: &GradientPart<'_>) -> Result<(), Error> {
        let tiles = part.tiles.clone();
        if let Some(before) =
            self.launched.iter().find(|before| before.start < tiles.end && tiles.start < before.end)
        {
            let rule = format!("outside the tiles of an earlier launch, {before:?}");
            return Err(wrong(self.call, "first tile", tiles.start as u64, rule));
        }
        let waits = matches!(self.inputs.keys, Keys::Segments { table, .. } if table.waits());
        match part.wait {
            None if waits => {
                let rule = "given, since segments have signals".to_owned();
                return Err(wrong(self.call, "wait", 0, rule));
            }
            Some(_) => refuse_capture(self.call, self.stream)?,
            None => {}
        }
        let (grads, table, slots) = match part.grads {
            PartGrads::Rounded { grads, table } => (grad_maps(self.call, self.stream, grads)?, table, false),
            PartGrads::Slots(table) => (KeyTensors::default(), Some(table), true),
        };
        let form = Form { slots, ordered: self.inputs.options.deterministic };
        let (wait, abort) = (part.wait, part.abort);
        let launch = Launch { tiles, table, grads, form, wait, abort, sum_only: false };
        self.check(&launch)?;
        self.enqueue(&launch)?;
        self.launched.push(launch.tiles);
        Ok(())
    }

    /// Enqueues sums of slots alone: dK and dV of these tiles become what `table` adds, rounded once. With an own slot
    /// first in the table's list this gives the bits of a launch that adds the others to its own gradients.
    ///
    /// # Errors
    /// As [`gradients`](Self::gradients).
    pub fn sum_slots(
        &mut self,
        tiles: Range<usize>,
        grads: KeyGrads<'_>,
        table: &GradTable,
    ) -> Result<(), Error> {
        let grads = grad_maps(self.call, self.stream, grads)?;
        let form = Form { slots: false, ordered: false };
        let launch =
            Launch { tiles, table: Some(table), grads, form, wait: None, abort: None, sum_only: true };
        self.check(&launch)?;
        self.enqueue(&launch)
    }

    /// Enqueues dQ, once all key tiles were launched. It is NaN when a launch did not get its keys.
    ///
    /// # Errors
    /// [`CudaError::Value`] when tiles are missing; those of dQ's view as in [`Attention::backward`].
    pub fn finish(self, dq: &DeviceViewMut<'_>) -> Result<(), Error> {
        self.check_dq(dq)?;
        let all = self.inputs.mask.key_tiles();
        if self.tiles_done() != all {
            let rule = format!("{all}, before dQ is finished");
            return Err(wrong(self.call, "tiles", self.tiles_done() as u64, rule));
        }
        let finish = finish_params(dq.tensor, &self.params);
        let kernels = self.kernels()?;
        self.stream.context().bind_to_thread().named("cuCtxSetCurrent")?;
        let grid = heads_grid(&self.params, finish.blocks);
        // SAFETY: dQ is in the bounds that its view was checked for and has the extents of Q; the sums are the
        // workspace's, and complete when the launches before it on the stream are.
        unsafe { launch("fm3_bwd_finish_part", &kernels.parts.finish, self.stream, grid, &finish) }
    }

    pub(super) fn check_dq(&self, dq: &DeviceViewMut<'_>) -> Result<(), Error> {
        self.checked.check_dq(self.stream, &self.inputs, dq)
    }

    fn kernels(&self) -> Result<&Backward, Error> {
        self.attention.kernels().backward(self.call, self.inputs.q.tensor.dtype)
    }

    fn tiles_done(&self) -> usize {
        self.launched.iter().map(ExactSizeIterator::len).sum()
    }

    /// That the tiles are there, and where their gradients go is.
    fn check(&self, launch: &Launch<'_>) -> Result<(), Error> {
        let (call, tiles, mask) = (self.call, launch.tiles.clone(), self.inputs.mask);
        let all = mask.key_tiles();
        if tiles.is_empty() || tiles.end > all {
            return Err(wrong(
                call,
                "end of tiles",
                tiles.end as u64,
                format!("above the start, at most {all}"),
            ));
        }
        let problem = &self.checked.problem;
        let Some(table) = launch.table else {
            return check_like_keys(call, problem, self.inputs.keys, &launch.grads);
        };
        let segment_of = |tile: usize| (mask.segments().places()[tile] >> 20) as usize;
        let segments = segment_of(tiles.start)..segment_of(tiles.end - 1) + 1;
        table.check_segments(call, mask.segments())?;
        if launch.form.slots {
            table.check_slots(call, segments.clone())?;
            return table.check_adds_nothing(call, segments);
        }
        table.check_maps(call, problem, (&launch.grads, segments))
    }

    fn enqueue(&mut self, part: &Launch<'_>) -> Result<(), Error> {
        let (call, stream) = (self.call, self.stream);
        let mut params = self.params;
        params.part_tiles = narrow(call, "tiles", part.tiles.len())?;
        params.tiles = self.params.tiles / self.params.key_tiles * params.part_tiles;
        // The same part of the launch's tiles; not more than there are of them.
        let ranks = u64::from(self.params.section_ranks) * u64::from(params.part_tiles);
        params.section_ranks =
            u32::try_from(ranks / u64::from(params.key_tiles)).unwrap_or(params.part_tiles);
        let _tables = point_to_tables(&mut params, stream, &self.inputs, self.scratch);
        let order = self.order(part, &params)?;
        params.ranked_t = self.pass.order;
        params.sum_only = u32::from(part.sum_only);
        self.checked.grad_maps(&mut params, &part.grads)?;
        if part.table.is_none() {
            params.grad_heads_per_group = params.heads_per_group;
        }
        let _outputs = point_to_outputs(&mut params, stream, part);
        let segments = self.inputs.mask.segments().rows().len();
        set_waits(call, &mut params, (part.wait, self.pass.report), segments)?;
        let kernels = self.kernels()?;
        let blocks = self.attention.blocks(call, self.inputs.options.margin)?.min(params.tiles);
        stream.context().bind_to_thread().named("cuCtxSetCurrent")?;
        let of_mask = self.inputs.mask.dims();
        let masks = narrow(call, "mask heads", of_mask.batch * of_mask.heads)?;
        let grid = Grid { blocks: [masks, 1, 1], threads: 1024, smem: 0 };
        // SAFETY: the ranked tiles are the mask's; order and positions are the workspace's and have room for all tiles.
        unsafe { launch("fm3_bwd_order", &kernels.parts.order, stream, grid, &order)? };
        let grid = Grid { blocks: [blocks, 1, 1], threads: 384, smem: kernels.smem };
        let function = kernels.parts.gradients(part.form);
        // SAFETY: tensors are in the bounds that their views were checked for or that their owner promised, and fit the
        // sizes; the tables are of the same mask and segments; slots are what their owners promised. Views and records
        // hold all of it until the launch is enqueued, and order frees and other uses behind it.
        unsafe { launch("fm3_bwd_d128_part", function, stream, grid, &params) }
    }

    /// Parameters of the kernel that orders the tiles of a launch, whose tables are the mask's.
    fn order(&self, part: &Launch<'_>, params: &BackwardParams) -> Result<BackwardOrderParams, Error> {
        Ok(BackwardOrderParams {
            ranked_t: params.ranked_t,
            order: self.pass.order,
            positions: if part.form.ordered { self.pass.positions } else { 0 },
            key_tiles: params.key_tiles,
            first_tile: narrow(self.call, "first tile + 1", part.tiles.start + 1)? - 1,
            part_tiles: params.part_tiles,
            base: narrow(self.call, "tiles before + 1", self.tiles_done() + 1)? - 1,
        })
    }
}

/// Blocks of 256 threads for every query head of every sequence.
fn heads_grid(params: &BackwardParams, blocks: u32) -> Grid {
    let batch = params.tiles / (params.heads_kv * params.key_tiles);
    Grid { blocks: [blocks, params.heads_q, batch], threads: 256, smem: 0 }
}

fn enqueue_prepare(
    stream: &CudaStream,
    kernels: &Backward,
    inputs: &BackwardInputs<'_>,
    params: &BackwardParams,
) -> Result<(), Error> {
    let prepare = prepare_params(inputs, params);
    let grid = heads_grid(params, prepare.rows_padded / PREPARED_ROWS);
    // SAFETY: tensors are in the bounds that their views were checked for or that their owner promised, and fit the
    // sizes; the workspace is this stream's and has room for the sums.
    unsafe { launch("fm3_bwd_prepare", &kernels.prepare, stream, grid, &prepare) }
}

/// Tables of gradients and the abort word. The records are dropped behind the launch.
fn point_to_outputs<'a>(
    params: &mut BackwardParams,
    stream: &'a CudaStream,
    part: &Launch<'a>,
) -> [Option<SyncOnDrop<'a>>; 2] {
    let mut records = [None, None];
    if let Some(table) = part.table {
        let (address, record) = table.device().device_ptr(stream);
        (params.grad_segments, params.grad_slots) = (address, address + table.slots_at());
        records[0] = Some(record);
    }
    if let Some(abort) = part.abort {
        let (address, record) = abort.address(stream);
        (params.abort, records[1]) = (address, Some(record));
    }
    records
}

/// Deadlines. A turn may be late by all waits for keys, one after the other.
fn set_waits(
    call: &'static str,
    params: &mut BackwardParams,
    (wait, report): (Option<Wait>, u64),
    segments: usize,
) -> Result<(), Error> {
    // 0 would mean no deadline; 584 years are one.
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).max(1);
    params.report = report;
    params.heads_per_piece = 1;
    params.turn_deadline_ns = nanoseconds(TURN_DEADLINE);
    let Some(wait) = wait else { return Ok(()) };
    params.signal_base = wait.base;
    params.heads_per_piece = narrow(call, "heads_per_piece", wait.heads_per_piece)?;
    params.deadline_ns = wait.deadline.map_or(0, nanoseconds);
    let all = wait.deadline.map(|deadline| {
        let times = u32::try_from(segments).unwrap_or(u32::MAX).saturating_add(1);
        nanoseconds(deadline.saturating_mul(times).saturating_add(TURN_DEADLINE))
    });
    params.turn_deadline_ns = all.unwrap_or(0);
    Ok(())
}

fn refuse_capture(call: &'static str, stream: &CudaStream) -> Result<(), Error> {
    match stream.capture_status().named("cuStreamIsCapturing")? {
        sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE => Ok(()),
        _ => Err(CudaError::Capture { call }.into()),
    }
}
