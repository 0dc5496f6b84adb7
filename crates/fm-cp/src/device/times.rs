//! Times of one call: attention's by the kernel itself, those of pushes by events between the batches.
//!
//! Both are put on the device's clock by one point that they share: the last block's end is the moment of an event right
//! behind the launch, to a microsecond or two. Events are all later than the first, whose time is 0.
use std::sync::Arc;
use std::time::Duration;

use cp_overlap::RankPlan;
use cp_overlap::exec::{ClockSpan, DeviceTimes, PushSpan, WaitSpan};
use fm3_kernels::cuda::cudarc::driver::sys::CUevent_flags;
use fm3_kernels::cuda::cudarc::driver::{CudaEvent, CudaStream};
use fm3_kernels::cuda::{DeviceSpan, ForwardTimes, ForwardTook, PieceCounts};
use symm_buffer::{Bytes, Pe};

use super::raw;
use crate::Error;

/// Takes the times of one call. It allocates, records an event for each batch of pushes and two more.
pub(super) struct Timer {
    kernel: ForwardTimes,
    push_stream: Arc<CudaStream>,
    /// Before everything else of the call.
    begun: CudaEvent,
    /// Before the first batch of pushes, and behind each.
    pushed: Vec<CudaEvent>,
    /// Behind attention.
    attended: Option<CudaEvent>,
    /// Owners of the segments.
    owners: Vec<Pe>,
    /// Head group and bytes of each batch.
    batches: Vec<(u32, Bytes)>,
}

impl Timer {
    /// For a call of this plan on `stream`, where nothing of it is queued yet.
    pub(super) fn new(
        plan: &RankPlan,
        stream: &Arc<CudaStream>,
        push_stream: &Arc<CudaStream>,
    ) -> Result<Self, Error> {
        let pieces = plan.shape.dims().heads_kv.div_ceil(plan.choice.heads_per_piece);
        let of = PieceCounts { segments: plan.segments.len(), pieces };
        Ok(Self {
            kernel: ForwardTimes::new(stream, of)?,
            push_stream: push_stream.clone(),
            begun: record(stream)?,
            pushed: Vec::new(),
            attended: None,
            owners: plan.segments.iter().map(|segment| segment.owner).collect(),
            batches: plan.push_batches(),
        })
    }

    /// What the kernel writes to.
    pub(super) const fn kernel(&self) -> &ForwardTimes {
        &self.kernel
    }

    /// A batch of pushes is queued, or will be the next.
    pub(super) fn pushed(&mut self) -> Result<(), Error> {
        self.pushed.push(record(&self.push_stream)?);
        Ok(())
    }

    /// Attention is queued.
    pub(super) fn attended(&mut self, stream: &Arc<CudaStream>) -> Result<(), Error> {
        self.attended = Some(record(stream)?);
        Ok(())
    }

    /// Times of the call, which is over. Nothing when its kernel has not run.
    pub(super) fn read(&self, beside: &Arc<CudaStream>) -> Result<Option<DeviceTimes>, Error> {
        let Some((took, attended)) = self.kernel.read(beside)?.zip(self.attended.as_ref()) else {
            return Ok(None);
        };
        let attended = self.since_begun(attended)?;
        let moments = self.pushed.iter().map(|event| {
            Ok(took.launch.end.saturating_sub(attended).saturating_add(self.since_begun(event)?))
        });
        let moments = moments.collect::<Result<Vec<u64>, Error>>()?;
        Ok(Some(times(&took, &self.owners, pushes(&moments, &self.batches))))
    }

    /// Nanoseconds.
    fn since_begun(&self, event: &CudaEvent) -> Result<u64, Error> {
        let ms = self.begun.elapsed_ms(event).map_err(|error| raw::driver("cuEventElapsedTime", error))?;
        let since = Duration::try_from_secs_f64(f64::from(ms) / 1e3).unwrap_or_default();
        Ok(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

fn record(stream: &Arc<CudaStream>) -> Result<CudaEvent, Error> {
    let event = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
    event.map_err(|error| raw::driver("cuEventRecord", error))
}

fn pushes(moments: &[u64], batches: &[(u32, Bytes)]) -> Vec<PushSpan> {
    let spans = moments.windows(2).map(|pair| ClockSpan { begin: pair[0], end: pair[1] });
    spans.zip(batches).map(|(span, (piece, bytes))| PushSpan { piece: *piece, bytes: *bytes, span }).collect()
}

fn times(took: &ForwardTook, owners: &[Pe], pushes: Vec<PushSpan>) -> DeviceTimes {
    let span = |DeviceSpan { begin, end }| ClockSpan { begin, end };
    let waits = took.waits.iter().filter_map(|wait| {
        Some(WaitSpan {
            peer: *owners.get(wait.segment)?,
            piece: u32::try_from(wait.piece).unwrap_or(u32::MAX),
            span: span(wait.span),
            longest: wait.longest,
            blocks: wait.blocks,
        })
    });
    let sum: Duration = took.waits.iter().map(|wait| wait.sum).sum();
    let idle = sum / u32::try_from(took.blocks.max(1)).unwrap_or(u32::MAX);
    DeviceTimes { attention: span(took.launch), waits: waits.collect(), idle, pushes }
}
