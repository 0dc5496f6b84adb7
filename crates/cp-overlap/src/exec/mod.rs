//! Walks one rank's plan over a [`Fabric`]: agreement, pushes, waits, partials, frees, the report.
//!
//! The calling thread is the rank's compute stream. K, V pushes have a stream of their own on which nothing ever waits
//! (rule R3); partials and control messages have one each.
use std::sync::Arc;
use std::time::Duration;

use symm_buffer::{Epoch, Fabric, Label, Pe, Post, Put, SepSrBuffer, SrBuffer, Step, Use, Wait};

mod call;
mod failure;
mod hello;
mod report;
mod signals;
mod source;

pub use report::{Blocked, CallReport, PassKind};
pub use signals::SignalKind;
pub use source::SourceTensor;

use call::Call;
use hello::Hello;
use signals::SignalTable;

use crate::plan::{Pass, RankPlan};
use crate::{Compute, Error};

/// Whether communication hides behind attention.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Overlap {
    /// Attend to what is there while the rest arrives.
    #[default]
    On,
    /// Gather everything, attend, then reduce. Same bits, for comparison.
    Off,
}

/// How a session behaves; the same on every rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Budget of each single wait (rule D1).
    pub deadline: Duration,
    /// Overlap communication with attention.
    pub overlap: Overlap,
    /// For debugging: drain streams and meet all ranks after each stage.
    pub sync_each_stage: bool,
}

impl Settings {
    /// Budget of a collective. A rank that does not come may be in a wait of its own, whose report, at most one deadline
    /// from now, says more than ours would: so collectives wait twice as long.
    pub const fn collective_deadline(&self) -> Duration {
        self.deadline.saturating_mul(2)
    }
}

impl Default for Settings {
    /// 30 s, overlapped, not synchronised.
    fn default() -> Self {
        Self { deadline: Duration::from_secs(30), overlap: Overlap::On, sync_each_stage: false }
    }
}

/// One rank's end of a group: its streams, buffers and signal words. Calls come in the same order on every rank.
pub struct Session<F: Fabric> {
    fabric: Arc<F>,
    state: State<F>,
}

/// Everything but the fabric, so that sources can be registered while a call runs.
pub(crate) struct State<F: Fabric> {
    pub(crate) settings: Settings,
    pub(crate) signals: SignalTable,
    pub(crate) hello: Hello,
    pub(crate) gather: SrBuffer,
    pub(crate) slots: SepSrBuffer,
    /// K, V pushes and nothing else.
    pub(crate) push: F::Stream,
    /// dK, dV partials.
    pub(crate) reduce: F::Stream,
    /// Hellos and frees.
    pub(crate) control: F::Stream,
}

/// One call: what all ranks must agree on before data is used.
#[derive(Clone, Copy, Debug)]
pub struct CallSpec<'a> {
    /// Forward or backward.
    pub pass: PassKind,
    /// This rank's plan.
    pub plan: &'a RankPlan,
    /// Hash of whatever else must be equal on all ranks, such as the softmax scale.
    pub options: u64,
}

/// K and V of this rank.
#[derive(Clone, Copy, Debug)]
pub struct Sources<S> {
    /// Local K.
    pub k: SourceTensor<S>,
    /// Local V.
    pub v: SourceTensor<S>,
}

impl<F: Fabric> Session<F> {
    /// Makes streams, signal words and empty buffers. Collective.
    ///
    /// # Errors
    /// [`Error::Fabric`].
    pub fn new(fabric: F, settings: Settings) -> Result<Self, Error> {
        let (world, deadline) = (fabric.world(), settings.deadline);
        let base = fabric.alloc_signals(SignalTable::words(world), deadline)?;
        let signals = SignalTable::new(base, world);
        let state = State {
            settings,
            signals,
            hello: Hello::new(&fabric, signals, deadline)?,
            gather: SrBuffer::new(),
            slots: SepSrBuffer::new(),
            push: fabric.stream("push")?,
            reduce: fabric.stream("reduce")?,
            control: fabric.stream("control")?,
        };
        Ok(Self { fabric: Arc::new(fabric), state })
    }

    /// The fabric, also for a [`Compute`] that reads symmetric memory in place.
    pub const fn fabric(&self) -> &Arc<F> {
        &self.fabric
    }

    /// How it behaves.
    pub const fn settings(&self) -> Settings {
        self.state.settings
    }

    /// Changes how later calls behave; the same on every rank.
    pub const fn set(&mut self, settings: Settings) {
        self.state.settings = settings;
    }

    /// Runs one pass of a plan: pushes local K, V from the caller's memory, lets `compute` attend, reduces, reports.
    /// Returns when the outputs are written and nothing reads the sources any more (rule S5). Collective.
    ///
    /// # Errors
    /// [`Error::Fabric`] with a report when a peer does not come in time, [`Error::PlanMismatch`], or what `compute`
    /// returned. After an error every rank calls [`Session::recover`] before the next call.
    pub fn run<C: Compute + ?Sized>(
        &mut self,
        spec: CallSpec<'_>,
        sources: Sources<F::Source<'_>>,
        compute: &mut C,
    ) -> Result<CallReport, Error> {
        let pieces = pass_of(spec.plan, spec.pass).pieces.len();
        let rank = self.fabric.me().0;
        let _span = tracing::info_span!("call", pass = spec.pass.name(), rank, pieces).entered();
        self.fabric.status().map_err(|error| failure::heard(error.into()))?;
        let (fabric, state) = (&*self.fabric, &mut self.state);
        let tensors = [sources.k.memory, sources.v.memory];
        fabric.with_sources(&tensors, |regions| {
            let kv = [(regions[0], sources.k.strides), (regions[1], sources.v.strides)];
            Call::begin(fabric, state, spec)?.run(kv, compute)
        })
    }

    /// After a failure: meets the live ranks, drops what was queued, starts the use counters again. Collective.
    ///
    /// # Errors
    /// [`Error::Fabric`] naming a rank that did not come.
    pub fn recover(&mut self) -> Result<(), Error> {
        self.fabric.recover(self.state.settings.deadline)?;
        self.state.gather.reset();
        self.state.slots.reset();
        self.state.hello.reset();
        Ok(())
    }

    /// Gives the symmetric memory back. Collective; a session that is only dropped leaks its buffers.
    ///
    /// # Errors
    /// [`Error::Fabric`].
    pub fn close(self) -> Result<(), Error> {
        let deadline = self.state.settings.collective_deadline();
        self.state.gather.free(&*self.fabric, deadline)?;
        self.state.slots.free(&*self.fabric, deadline)?;
        self.state.hello.free(&*self.fabric, deadline)
    }
}

pub(crate) fn pass_of(plan: &RankPlan, pass: PassKind) -> &Pass {
    match pass {
        PassKind::Forward => &plan.forward,
        PassKind::Backward => &plan.backward,
    }
}

impl<F: Fabric> State<F> {
    /// A wait for one of this group's words.
    pub(crate) fn wait_for(
        &self,
        fabric: &F,
        (kind, peer): (SignalKind, Pe),
        (at, step): (Use, Step),
        piece: u32,
    ) -> Result<Wait, Error> {
        Ok(Wait {
            signal: self.signals.word(kind, peer),
            at_least: Epoch::new(fabric.incarnation(), at, step)?,
            peer,
            label: Label { stage: kind.stage(), piece },
        })
    }

    /// Tells every peer that use `at` is over here, also those with which nothing was exchanged (rule S4).
    pub(crate) fn post_free(&self, fabric: &F, kind: SignalKind, at: Use) -> Result<(), Error> {
        let signal = self.signals.word(kind, fabric.me());
        let value = Epoch::new(fabric.incarnation(), at, Step(1))?;
        for to in fabric.world().after(fabric.me()) {
            fabric.put_signal(&self.control, Put { to, copies: &[], post: Some(Post { signal, value }) })?;
        }
        Ok(())
    }
}
