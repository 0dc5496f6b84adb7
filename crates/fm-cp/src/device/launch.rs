//! The launch of the attention kernel, with keys in segments that may still be on their way.
use std::sync::Arc;

use cp_overlap::{Enqueue, RankPlan, ReadyWords};
use fm3_kernels::cuda::cudarc::driver::CudaStream;
use fm3_kernels::cuda::{
    AbortWord, Attention, ForwardCall, ForwardOptions, KeyMap, KeyView, Keys, Wait, Workspace,
};
use symm_buffer::Fabric as _;
use symm_buffer::nvshmem::NvshmemFabric;

use super::call::DeviceForward;
use super::prepared::DevicePrepared;
use super::raw;
use super::times::Timer;
use crate::Error;

/// L2 that K and V of the heads that run side by side may fill, bytes; as the kernels' own default.
const SECTION_BYTES: usize = 32 << 20;

/// One call's launch.
pub(super) struct Launch<'a> {
    pub(super) fabric: &'a NvshmemFabric,
    pub(super) attention: &'a Attention,
    pub(super) workspace: &'a mut Workspace,
    pub(super) stream: &'a Arc<CudaStream>,
    pub(super) prepared: &'a DevicePrepared,
    pub(super) call: &'a DeviceForward<'a>,
    pub(super) scale: f32,
    pub(super) timer: Option<Timer>,
}

impl Launch<'_> {
    fn launch(&mut self, plan: &RankPlan, ready: &ReadyWords) -> Result<(), Error> {
        let (DeviceForward { q, k, v, o, lse }, prepared) = (self.call, self.prepared);
        let form = raw::HeadForm { dtype: plan.dtype, head_dim: plan.shape.dims().head_dim };
        let mut maps = vec![KeyMap { k: KeyView::whole(k), v: KeyView::whole(v) }];
        if let Some(half) = ready.half {
            for keys in &prepared.places.lengths {
                maps.push(raw::remote_keys(self.fabric, half, keys, form)?);
            }
        }
        let keys = Keys::Segments { maps: &maps, table: &prepared.table };
        let abort = raw::abort_word(self.fabric)?;
        let times = self.timer.as_ref().map(Timer::kernel);
        let options = ForwardOptions { times, ..self.options(plan, ready, &abort) };
        let (mask, scale) = (&prepared.mask, self.scale);
        let call = ForwardCall { q, keys, o, lse, mask, scale, options };
        self.attention.forward(self.stream, &call, self.workspace)?;
        self.timer.as_mut().map_or(Ok(()), |timer| timer.attended(self.stream))
    }

    fn options<'b>(&self, plan: &RankPlan, ready: &ReadyWords, abort: &'b AbortWord) -> ForwardOptions<'b> {
        let heads_per_piece = plan.choice.heads_per_piece;
        let waits = self.prepared.table.waits();
        let wait = Wait { base: ready.base.0, heads_per_piece, deadline: Some(ready.deadline) };
        // Heads that arrive together run side by side, where L2 has room: tiles then want keys in the order of arrival.
        let dims = plan.shape.dims();
        let bytes = 2 * dims.seq_k * heads_per_piece * dims.head_dim * plan.dtype.size();
        let fits = waits && bytes <= SECTION_BYTES;
        ForwardOptions {
            section_heads: fits.then_some(heads_per_piece * plan.shape.group_size()),
            margin: 0,
            wait: waits.then_some(wait),
            abort: Some(abort),
            times: None,
        }
    }
}

impl Launch<'_> {
    fn failed(&self, error: Error) -> cp_overlap::Error {
        let (call, rank) = ("CpAttention::enqueue_forward", self.fabric.me());
        cp_overlap::Error::Compute { call, rank, source: Box::new(error) }
    }
}

impl Enqueue for Launch<'_> {
    fn forward(&mut self, plan: &RankPlan, ready: &ReadyWords) -> Result<(), cp_overlap::Error> {
        self.launch(plan, ready).map_err(|error| self.failed(error))
    }

    fn pushed(&mut self, _batches: usize) -> Result<(), cp_overlap::Error> {
        let timed = self.timer.as_mut().map_or(Ok(()), Timer::pushed);
        timed.map_err(|error| self.failed(error))
    }
}
