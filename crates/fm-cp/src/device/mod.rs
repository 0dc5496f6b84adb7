//! Groups on GPUs: forward calls that are enqueued on the caller's stream and return at once.
//!
//! Local K and V are read in place and pushed in place; remote ones arrive in the group's symmetric memory, where the one
//! attention kernel of a call waits for each head group by itself. The host waits for nobody.
mod call;
mod guard;
mod launch;
mod prepared;
mod raw;
mod times;

pub use call::{CallHandle, DeviceForward};

pub(crate) use prepared::DevicePrepared;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cp_overlap::exec::{Session, Settings};
use fm3_kernels::cuda::cudarc::driver::CudaStream;
use fm3_kernels::cuda::{Attention, KernelSource, Kernels};
use symm_buffer::Fabric as _;
use symm_buffer::nvshmem::NvshmemFabric;

use crate::Error;
use guard::Guard;

/// One rank's end of a group on GPUs.
pub(crate) struct DeviceGroup {
    pub(crate) session: Session<NvshmemFabric>,
    attention: Attention,
    /// Streams, workspaces and calls; handles of calls look at it too.
    guard: Arc<Mutex<Guard>>,
    /// For what is prepared.
    uploads: Arc<CudaStream>,
    /// What is prepared by one group is of no use to another.
    identity: Arc<()>,
    /// Whether calls take times.
    pub(crate) measure: bool,
}

impl DeviceGroup {
    /// Collective. Loads the kernels unless they are given.
    pub(crate) fn new(
        fabric: NvshmemFabric,
        settings: Settings,
        (attention, measure): (Option<Attention>, bool),
    ) -> Result<Self, Error> {
        let load = || {
            Ok::<_, Error>(Attention::new(Arc::new(Kernels::load(fabric.context(), &KernelSource::Search)?)))
        };
        let attention = attention.map_or_else(load, Ok)?;
        let [uploads, beside] = [(); 2].map(|()| raw::new_stream(fabric.context()));
        let session = Session::new(fabric, settings)?;
        let guard = Arc::new(Mutex::new(Guard::new(&session, beside?)));
        Ok(Self { session, attention, guard, uploads: uploads?, identity: Arc::new(()), measure })
    }

    /// After a failure. Collective. Reports of kernels' waits are forgotten.
    pub(crate) fn recover(&mut self) -> Result<(), Error> {
        self.session.recover()?;
        lock(&self.guard).forget()
    }

    /// The failure of a kernel's wait, or of anything else.
    pub(crate) fn status(&self) -> Result<(), Error> {
        lock(&self.guard).settle(self.session.fabric())?;
        Ok(self.session.fabric().status()?)
    }

    /// Collective; calls are done when it returns.
    pub(crate) fn close(self, deadline: Duration) -> Result<(), Error> {
        let fabric = self.session.into_fabric()?;
        let busy = symm_buffer::Error::InUse { call: "close", what: "a call that somebody waits for" };
        Ok(Arc::into_inner(fabric).ok_or(busy)?.close(deadline)?)
    }
}

/// A guard is whole between any two of its methods, so a panic elsewhere does not spoil it.
fn lock(guard: &Mutex<Guard>) -> MutexGuard<'_, Guard> {
    guard.lock().unwrap_or_else(PoisonError::into_inner)
}
