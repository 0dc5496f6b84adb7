//! Ranks with a session and a device each, and calls of them.
use std::sync::Arc;
use std::time::Duration;

use cp_overlap::exec::{ForwardCall, Handle, Settings};
use cp_overlap::plan::CpPlan;
use cp_overlap::{CallReport, Error, Session};
use symm_buffer::host::{self, HostConfig, HostFabric};
use symm_buffer::{Fabric, World};

use super::device::{Device, Launch};
use super::marks::{Form, Local};
use super::problems::Recipe;

/// Budget of waits that end well.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// What one call does.
#[derive(Clone)]
pub(crate) struct Spec {
    pub(crate) plan: Arc<CpPlan>,
    pub(crate) form: Form,
    pub(crate) options: u64,
    pub(crate) refused: bool,
    /// The rank that enqueues it so much later.
    pub(crate) late: Option<(u32, Duration)>,
    /// Goes to a stream of its own, and so do the calls after it.
    pub(crate) elsewhere: bool,
}

impl Spec {
    pub(crate) fn new(recipe: &Recipe) -> Self {
        let plan = Arc::new(CpPlan::build(&recipe.problem()).unwrap());
        Self { plan, form: Form::Bshd, options: 0, refused: false, late: None, elsewhere: false }
    }
}

/// Two contiguous ranks see each other in all directions, heads in three groups.
pub(crate) const PLAIN: Recipe = Recipe {
    ranks: 3,
    rows: 400,
    batch: 2,
    heads: (2, 3),
    mask: 0,
    mask_heads: 0,
    sharding: 0,
    forced: (Some(1), None),
    local_tail: 0,
    seed: 1,
};

/// One rank.
pub(crate) struct Rank {
    pub(crate) session: Session<HostFabric>,
    pub(crate) device: Device,
    /// Calls that were begun: marks count on over failures.
    calls: u64,
}

impl Rank {
    fn new(fabric: HostFabric, settings: Settings) -> Self {
        let session = Session::new(fabric, settings).unwrap();
        let device = Device::new(session.fabric());
        Self { session, device, calls: 0 }
    }

    pub(crate) fn me(&self) -> u32 {
        self.session.fabric().me().0
    }

    /// Enqueues all calls, then waits for all; what each came to. Sources stay open as long.
    pub(crate) fn calls(&mut self, specs: &[Spec]) -> Vec<Result<CallReport, Error>> {
        let me = self.me() as usize;
        let first = self.calls;
        self.calls += specs.len() as u64;
        let locals: Vec<Local> = (first..)
            .zip(specs)
            .map(|(call, spec)| Local::new(&spec.plan.ranks[me], call, spec.form))
            .collect();
        let memory: Vec<&[u8]> = locals.iter().flat_map(Local::memory).collect();
        let fabric = self.session.fabric().clone();
        fabric.with_sources(&memory, |regions| {
            let mut handles = Vec::new();
            for (index, (spec, local)) in specs.iter().zip(&locals).enumerate() {
                let sources = local.sources(&regions[2 * index..]);
                handles.push(self.enqueue(spec, first + index as u64, sources));
            }
            handles.into_iter().map(|handle| handle.and_then(|handle| handle.wait())).collect()
        })
    }

    fn enqueue(
        &mut self,
        spec: &Spec,
        call: u64,
        sources: cp_overlap::exec::Sources<symm_buffer::RegionId>,
    ) -> Result<Handle<HostFabric>, Error> {
        if let Some((_, delay)) = spec.late.filter(|(late, _)| *late == self.me()) {
            std::thread::sleep(delay);
        }
        if spec.elsewhere {
            self.device.change_stream();
        }
        let plan = Arc::new(spec.plan.ranks[self.me() as usize].clone());
        let stream = self.device.stream().clone();
        let mut launch = Launch { device: &mut self.device, plan: plan.clone(), call, refused: spec.refused };
        let call = ForwardCall { plan: &plan, options: spec.options, sources, stream: &stream };
        self.session.enqueue(call, &mut launch)
    }

    /// As `calls`; all come to a good end.
    pub(crate) fn good(&mut self, specs: &[Spec]) -> Vec<CallReport> {
        let reports = self.calls(specs).into_iter().map(|result| result.unwrap()).collect();
        assert_eq!(self.device.wrong(), Vec::<String>::new());
        reports
    }

    pub(crate) fn meet(&self) {
        self.session.fabric().barrier(SOON).unwrap();
    }

    pub(crate) fn recover(&mut self) {
        self.device.reset();
        self.session.recover().unwrap();
    }

    fn close(self) {
        drop(self.device);
        self.session.close().unwrap();
    }
}

/// Runs every rank on a thread of its own; the group is closed at the end.
pub(crate) fn on_ranks<R: Send>(
    ranks: usize,
    (host, settings): (HostConfig, Settings),
    body: impl Fn(&mut Rank) -> R + Sync,
) -> Vec<R> {
    let world = World::new(u32::try_from(ranks).unwrap()).unwrap();
    host::run(world, host, |fabric| {
        let mut rank = Rank::new(fabric, settings);
        let result = body(&mut rank);
        rank.close();
        result
    })
}

pub(crate) fn settings() -> Settings {
    Settings { deadline: SOON, ..Settings::default() }
}
