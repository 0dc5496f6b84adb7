//! Waits of kernels that expired: found by the host without a cost to calls that go well (rules D1, D3).
//!
//! A kernel whose wait expires leaves NaN and a report on the device. A wait cannot expire before its deadline has passed
//! since its call was enqueued, so a call that is seen to be done before that is good, and only other calls cost a look
//! at the report.
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cp_overlap::Session;
use cp_overlap::exec::SignalKind;
use fm3_kernels::cuda::cudarc::driver::CudaStream;
use fm3_kernels::cuda::{WaitExpired, Workspace};
use symm_buffer::nvshmem::{NvshmemFabric, NvshmemStream};
use symm_buffer::{Epoch, Fabric, Label, Pe, Report, SignalId, Step};

use crate::Error;

/// Streams of callers with what kernels need on them, and calls that may still turn out to be bad.
pub(super) struct Guard {
    lanes: Vec<Lane>,
    /// Reports are looked at here, beside the callers' work.
    beside: Arc<CudaStream>,
    deadline: Duration,
    /// For each remote segment in gather order its owner, and the word by which it says that its keys are there.
    owners: Vec<(Pe, SignalId)>,
    /// In the order in which they were enqueued.
    calls: VecDeque<Watched>,
    /// The report of a wait that expired, until all recover.
    failed: Option<Report>,
}

/// A caller's stream: adopted once, and kept.
pub(super) struct Lane {
    pub(super) stream: Arc<NvshmemStream>,
    pub(super) workspace: Workspace,
}

/// A call that is not known to be good.
struct Watched {
    attended: (SignalId, Epoch),
    enqueued: Instant,
    deadline: Duration,
}

impl Guard {
    pub(super) fn new(session: &Session<NvshmemFabric>, beside: Arc<CudaStream>) -> Self {
        let fabric = session.fabric();
        let owners = fabric.world().before(fabric.me()).map(|owner| (owner, session.ready_signal(owner)));
        let (deadline, owners) = (session.settings().deadline, owners.collect());
        Self { lanes: Vec::new(), beside, deadline, owners, calls: VecDeque::new(), failed: None }
    }

    /// The stream on which the device's memory is looked at, beside the callers' work.
    pub(super) const fn beside(&self) -> &Arc<CudaStream> {
        &self.beside
    }

    /// What goes with a caller's stream.
    pub(super) fn lane(
        &mut self,
        fabric: &NvshmemFabric,
        stream: &Arc<CudaStream>,
    ) -> Result<&mut Lane, Error> {
        let known = self.lanes.iter().position(|lane| lane.stream.cuda() == stream);
        let index = match known {
            Some(index) => index,
            None => {
                let adopted = Arc::new(fabric.adopt(stream, "caller")?);
                self.lanes.push(Lane { stream: adopted, workspace: Workspace::new(stream)? });
                self.lanes.len() - 1
            }
        };
        Ok(&mut self.lanes[index])
    }

    /// Watches a call that is about to be enqueued.
    pub(super) fn watch(&mut self, attended: (SignalId, Epoch), enqueued: Instant) {
        self.calls.push_back(Watched { attended, enqueued, deadline: self.deadline });
    }

    /// Lets go of the calls that are done and good.
    ///
    /// # Errors
    /// [`symm_buffer::Error::Timeout`] with the report of a kernel's wait; all other ranks' waits end with it too.
    pub(super) fn settle(&mut self, fabric: &NvshmemFabric) -> Result<(), Error> {
        if let Some(report) = self.failed {
            return Err(symm_buffer::Error::Timeout(report).into());
        }
        let mut looked = false;
        while let Some(call) = self.calls.front() {
            let (signal, value) = call.attended;
            if fabric.seen(signal)? < value {
                break;
            }
            if !looked && call.enqueued.elapsed() >= call.deadline {
                self.look(fabric)?;
                looked = true;
            }
            self.calls.pop_front();
        }
        Ok(())
    }

    /// After a recovery: no call is under way.
    pub(super) fn forget(&mut self) -> Result<(), Error> {
        self.calls.clear();
        self.failed = None;
        for lane in &mut self.lanes {
            _ = lane.workspace.wait_report()?;
        }
        Ok(())
    }

    fn look(&mut self, fabric: &NvshmemFabric) -> Result<(), Error> {
        for lane in &self.lanes {
            if let Some(expired) = lane.workspace.look_at_report(&self.beside)? {
                let report = self.report_of(fabric.me(), expired);
                self.failed = Some(report);
                fabric.abort(report);
                return Err(symm_buffer::Error::Timeout(report).into());
            }
        }
        Ok(())
    }

    /// A kernel's report in the words of all others: segments are in gather order, a step is a head group and one.
    fn report_of(&self, me: Pe, expired: WaitExpired) -> Report {
        let WaitExpired { segment, wanted, seen, waited, .. } = expired;
        let remote = segment.checked_sub(1).and_then(|index| self.owners.get(index));
        let (peer, signal) = remote.copied().unwrap_or((me, SignalId::NONE));
        let step = wanted & u64::from(Step::MAX.0);
        let piece = u32::try_from(step.saturating_sub(1)).unwrap_or(u32::MAX);
        let label = Label { stage: SignalKind::Ready.stage(), piece };
        Report { rank: me, peer, label, signal, wanted: Epoch(wanted), seen: Epoch(seen), waited }
    }
}
