//! Forward calls on device views.
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use cp_overlap::exec::Handle;
use fm3_kernels::DType;
use fm3_kernels::cuda::cudarc::driver::CudaStream;
use fm3_kernels::cuda::cudarc::driver::sys::CUstreamCaptureStatus;
use fm3_kernels::cuda::{CudaError, DeviceView, DeviceViewMut, LseMut};
use fm3_kernels::view::Extents;
use symm_buffer::nvshmem::NvshmemFabric;

use super::guard::Guard;
use super::launch::Launch;
use super::times::Timer;
use super::{DeviceGroup, DevicePrepared, lock, raw};
use crate::attention::{Heads, check_extents, check_group, check_lse, options_hash};
use crate::{CallReport, CpAttention, CpGroup, Error, Prepared};

const CALL: &str = "CpAttention::enqueue_forward";

/// Local tensors of a forward call in device memory, viewed for the stream of the call.
#[derive(Clone, Copy, Debug)]
pub struct DeviceForward<'a> {
    /// Queries [b, s_local, hq, 128].
    pub q: &'a DeviceView<'a>,
    /// Keys [b, s_local, hkv, 128]; peers' needs are read from here in place.
    pub k: &'a DeviceView<'a>,
    /// Values; as `k`.
    pub v: &'a DeviceView<'a>,
    /// O [b, s_local, hq, 128].
    pub o: &'a DeviceViewMut<'a>,
    /// Log-sum-exp, natural logarithm, f32 [b, hq, s_local]; -inf for rows that see nothing.
    pub lse: &'a LseMut<'a>,
}

/// A call that was enqueued. Dropping it changes nothing: a failure comes from the next call or from
/// [`CpGroup::status`].
pub struct CallHandle {
    inner: Handle<NvshmemFabric>,
    fabric: Weak<NvshmemFabric>,
    guard: Arc<Mutex<Guard>>,
    timer: Option<Timer>,
}

impl CallHandle {
    /// Blocks until the outputs are written and nothing reads the inputs any more. Work that was queued before the call
    /// may take any time; each wait for a peer ends by the deadline.
    ///
    /// # Errors
    /// [`Error::Overlap`] with the report of the wait that expired, here or on another rank; it stays until
    /// [`CpGroup::recover`]. A call that was not waited for before such a failure fails too, though it may have been done.
    pub fn wait(&self) -> Result<CallReport, Error> {
        #[cfg(feature = "nvtx")]
        let _range = fm3_kernels::cuda::NvtxRange::begin("fm-cp: wait for a call");
        let mut report = self.inner.wait_with(|| match self.settle() {
            Ok(()) => Ok(()),
            Err(Error::Fabric(error)) => Err(error.into()),
            Err(Error::Overlap(error)) => Err(error),
            Err(error) => {
                let rank = self.inner.report().rank;
                Err(cp_overlap::Error::Compute { call: CALL, rank, source: Box::new(error) })
            }
        })?;
        if let Some(timer) = &self.timer {
            let beside = lock(&self.guard).beside().clone();
            if let Some(times) = timer.read(&beside)? {
                report.add_device_times(times);
            }
        }
        Ok(report)
    }

    /// Whether [`CallHandle::wait`] would return at once, with a report or with an error.
    pub fn is_done(&self) -> bool {
        self.inner.is_done() || self.settle().is_err()
    }

    /// What is known without waiting: what the call cost the calling thread, and what it sends.
    pub fn report(&self) -> CallReport {
        self.inner.report()
    }

    fn settle(&self) -> Result<(), Error> {
        match self.fabric.upgrade() {
            Some(fabric) => lock(&self.guard).settle(&fabric),
            None => Err(cp_overlap::Error::Abandoned { rank: self.inner.report().rank }.into()),
        }
    }
}

impl std::fmt::Debug for CallHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

impl CpAttention {
    /// Enqueues the forward of this rank's rows on `stream` and returns at once: O and LSE are written in the order of the
    /// stream, and K and V may change behind the call. Every rank makes the same calls of a group in the same order.
    ///
    /// The calling thread waits only when symmetric memory must grow, for all earlier calls of all ranks: that is the
    /// first call of a shape larger than all before. Calls cannot be captured into a graph.
    ///
    /// # Errors
    /// [`Error::WrongBackend`] unless the group is on GPUs; [`Error::WrongGroup`], [`Error::ForeignPreparation`],
    /// [`Error::DTypeMismatch`], [`Error::TensorShape`], [`Error::Kernels`] before anything is queued; [`Error::Overlap`]
    /// with the failure of an earlier call, when a peer makes other calls, when memory would pass
    /// [`Config::symmetric_bytes`](crate::Config::symmetric_bytes), or when nothing could be queued.
    pub fn enqueue_forward(
        &self,
        group: &mut CpGroup,
        prepared: &Prepared,
        stream: &Arc<CudaStream>,
        call: DeviceForward<'_>,
    ) -> Result<CallHandle, Error> {
        #[cfg(feature = "nvtx")]
        let _range = fm3_kernels::cuda::NvtxRange::begin("fm-cp: enqueue forward");
        check_group(CALL, group, prepared)?;
        let device = group.device(CALL)?;
        let on_device = prepared.device(CALL)?;
        if !device.has_prepared(on_device) {
            return Err(Error::ForeignPreparation { call: CALL });
        }
        check_call(prepared, stream, &call)?;
        let scale = self.scale(prepared);
        if scale <= 0.0 {
            return Err(fm3_kernels::Error::from(CudaError::Scale { call: CALL, scale }).into());
        }
        device.enqueue((prepared, on_device), stream, &call, scale)
    }
}

impl DeviceGroup {
    fn enqueue(
        &mut self,
        (prepared, on_device): (&Prepared, &DevicePrepared),
        stream: &Arc<CudaStream>,
        call: &DeviceForward<'_>,
        scale: f32,
    ) -> Result<CallHandle, Error> {
        let Self { session, attention, guard: shared, measure, .. } = self;
        let (fabric, enqueued) = (session.fabric().clone(), Instant::now());
        let mut guard = lock(shared);
        guard.settle(&fabric)?;
        let lane = guard.lane(&fabric, stream)?;
        let (workspace, adopted) = (&mut lane.workspace, &lane.stream);
        let push_stream = session.push_stream().cuda();
        let timer = measure.then(|| Timer::new(prepared.plan(), stream, push_stream)).transpose()?;
        let prepared_plan = prepared.plan();
        let mut launch =
            Launch { fabric: &fabric, attention, workspace, stream, prepared: on_device, call, scale, timer };
        let inner = raw::enqueue(session, (prepared_plan, options_hash(scale)), adopted, &mut launch)?;
        let timer = launch.timer;
        guard.watch(inner.attended(), enqueued);
        Ok(CallHandle { inner, fabric: Arc::downgrade(&fabric), guard: shared.clone(), timer })
    }
}

/// Shapes, types and streams of all tensors.
fn check_call(prepared: &Prepared, stream: &CudaStream, call: &DeviceForward<'_>) -> Result<(), Error> {
    let DeviceForward { q, k, v, o, lse } = *call;
    let tensors: [(&str, Extents, DType, Option<&CudaStream>, Heads); 4] = [
        ("q", q.extents(), q.dtype(), q.stream(), Heads::Query),
        ("k", k.extents(), k.dtype(), k.stream(), Heads::Kv),
        ("v", v.extents(), v.dtype(), v.stream(), Heads::Kv),
        ("o", o.extents(), o.dtype(), o.stream(), Heads::Query),
    ];
    for (name, extents, given, of, heads) in tensors {
        check_extents(CALL, prepared, (name, extents, heads))?;
        check_stream(name, of, stream)?;
        let made_for = prepared.plan().dtype;
        if given != made_for {
            return Err(Error::DTypeMismatch { call: CALL, given, prepared: made_for });
        }
    }
    check_lse(CALL, prepared, lse.numbers())?;
    check_stream("lse", lse.stream(), stream)?;
    let status = stream.capture_status().map_err(|error| raw::driver("cuStreamIsCapturing", error))?;
    if status == CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE {
        return Ok(());
    }
    Err(fm3_kernels::Error::from(CudaError::Capture { call: CALL }).into())
}

fn check_stream(tensor: &'static str, of: Option<&CudaStream>, stream: &CudaStream) -> Result<(), Error> {
    match of {
        Some(own) if own != stream => {
            Err(fm3_kernels::Error::from(CudaError::Stream { call: CALL, tensor }).into())
        }
        _ => Ok(()),
    }
}
