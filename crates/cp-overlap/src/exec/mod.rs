//! Walks one rank's plan over a [`Fabric`]: agreement, pushes, waits, partials, frees, the report.
//!
//! Two ways to call. [`Session::run`] returns when the outputs are written: the calling thread is the rank's compute
//! stream. [`Session::enqueue`] returns at once: the compute stream is one of the caller's.
//!
//! K, V pushes have a stream of their own on which nothing waits but for a receiver's half that is not free yet, which the
//! host looks at first (rule R3); partials and control messages have one each.
use std::sync::{Arc, Mutex};
use std::time::Duration;

use symm_buffer::{
    Bytes, Epoch, Fabric, Label, Pe, Post, Put, SepSrBuffer, SignalId, SrBuffer, Step, Use, Wait,
};

mod call;
mod enqueue;
mod failure;
mod handle;
mod hello;
mod notes;
mod report;
mod signals;
mod source;
mod times;

pub use enqueue::ForwardCall;
pub use handle::Handle;
pub use report::{Blocked, CallReport, PassKind, Queued};
pub use signals::SignalKind;
pub use source::SourceTensor;
pub use times::{ClockSpan, DeviceTimes, PushSpan, WaitSpan};

use call::Call;
use enqueue::Queueing;
use handle::End;
use hello::Hello;
use notes::Notes;
use signals::SignalTable;

use crate::plan::{Pass, RankPlan};
use crate::{Compute, Enqueue, Error};

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
    /// The most symmetric memory that the buffers of a session may take.
    pub symmetric_bytes: Option<Bytes>,
}

impl Settings {
    /// Budget of a collective. A rank that does not come may be in a wait of its own, whose report, at most one deadline
    /// from now, says more than ours would: so collectives wait twice as long.
    pub const fn collective_deadline(&self) -> Duration {
        self.deadline.saturating_mul(2)
    }
}

impl Default for Settings {
    /// 30 s, overlapped, not synchronised, memory as plans need it.
    fn default() -> Self {
        let (deadline, overlap) = (Duration::from_secs(30), Overlap::On);
        Self { deadline, overlap, sync_each_stage: false, symmetric_bytes: None }
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
    /// Agreement of enqueued calls; their handles look at it too.
    pub(crate) notes: Arc<Mutex<Notes>>,
    kind: Option<CallKind>,
    /// The last enqueued call.
    pub(crate) tail: Option<Tail<F>>,
}

/// How calls return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallKind {
    Waits,
    Returns,
}

/// The last enqueued call: what comes after it is behind it.
pub(crate) struct Tail<F: Fabric> {
    pub(crate) stream: Arc<F::Stream>,
    pub(crate) end: End,
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
            notes: Arc::new(Mutex::new(Notes::new(world))),
            kind: None,
            tail: None,
        };
        Ok(Self { fabric: Arc::new(fabric), state })
    }

    /// The fabric, also for a [`Compute`] that reads symmetric memory in place.
    pub const fn fabric(&self) -> &Arc<F> {
        &self.fabric
    }

    /// The stream of K, V pushes, for events between them; nothing else may be queued there.
    pub const fn push_stream(&self) -> &F::Stream {
        &self.state.push
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
        state.admit(fabric, spec, CallKind::Waits)?;
        let tensors = [sources.k.memory, sources.v.memory];
        fabric.with_sources(&tensors, |regions| {
            let kv = [(regions[0], sources.k.strides), (regions[1], sources.v.strides)];
            Call::begin(fabric, state, spec)?.run(kv, compute)
        })
    }

    /// Enqueues one forward call and returns at once; `compute` queues its attention on the caller's stream. Every rank
    /// makes the same calls in the same order.
    ///
    /// The calling thread waits only to let the buffers grow, once, when all ranks have come to this call and all earlier
    /// calls are done; and for a peer that is 128 calls behind.
    ///
    /// # Errors
    /// [`Error::MixedCalls`] and [`Error::SymmetricMemory`] before anything is done; [`Error::PlanMismatch`] naming a peer
    /// whose call, or one before, was different; [`Error::Fabric`], also with the report of an earlier call that failed;
    /// what `compute` returned. After an error every rank calls [`Session::recover`] before the next call.
    pub fn enqueue<E: Enqueue + ?Sized>(
        &mut self,
        call: ForwardCall<'_, F>,
        compute: &mut E,
    ) -> Result<Handle<F>, Error> {
        let rank = self.fabric.me().0;
        let _span = tracing::info_span!("enqueue", rank, pieces = call.plan.forward.pieces.len()).entered();
        self.fabric.status().map_err(|error| failure::heard(error.into()))?;
        let (fabric, state) = (&self.fabric, &mut self.state);
        let spec = CallSpec { pass: PassKind::Forward, plan: call.plan, options: call.options };
        state.admit(&**fabric, spec, CallKind::Returns)?;
        let notes = state.notes.clone();
        let queueing = Queueing::begin(fabric, state, call);
        let at = queueing.at();
        queueing.run(compute).map_err(|error| {
            let error = failure::explain_queued(&**fabric, &notes, at, error);
            // What has been queued may still read the sources (rule S5). The group has given up, so nothing holds it.
            _ = fabric.synchronize(&self.state.push, self.state.settings.deadline);
            error
        })
    }

    /// The word with which `owner` says that its keys are in this rank's gather buffer; the same for all calls.
    pub fn ready_signal(&self, owner: Pe) -> SignalId {
        self.state.signals.word(SignalKind::Ready, owner)
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
        handle::lock(&self.state.notes).reset();
        (self.state.kind, self.state.tail) = (None, None);
        Ok(())
    }

    /// Gives the symmetric memory back. Collective; a session that is only dropped leaks its buffers.
    ///
    /// # Errors
    /// [`Error::Fabric`].
    pub fn close(self) -> Result<(), Error> {
        self.into_fabric().map(drop)
    }

    /// As [`Session::close`]; the fabric outlives the session, for those whose end is collective too. Calls that were
    /// enqueued must be done.
    ///
    /// # Errors
    /// [`Error::Fabric`].
    pub fn into_fabric(self) -> Result<Arc<F>, Error> {
        let deadline = self.state.settings.collective_deadline();
        self.state.gather.free(&*self.fabric, deadline)?;
        self.state.slots.free(&*self.fabric, deadline)?;
        self.state.hello.free(&*self.fabric, deadline)?;
        Ok(self.fabric)
    }
}

pub(crate) fn pass_of(plan: &RankPlan, pass: PassKind) -> &Pass {
    match pass {
        PassKind::Forward => &plan.forward,
        PassKind::Backward => &plan.backward,
    }
}

/// Between two looks of the calling thread at what a device or another process writes: the second look comes at once, later
/// ones after an eighth of the time that it has waited, at least what a sleep takes anyway and at most 1 ms.
pub(crate) fn pause(look: usize, waited: Duration) {
    const LEAST: Duration = Duration::from_micros(20);
    const MOST: Duration = Duration::from_millis(1);
    if look > 0 {
        std::thread::sleep((waited / 8).clamp(LEAST, MOST));
    }
}

impl<F: Fabric> State<F> {
    /// Refuses a call before anything is done.
    fn admit(&mut self, fabric: &F, spec: CallSpec<'_>, kind: CallKind) -> Result<(), Error> {
        let rank = fabric.me();
        if self.kind.is_some_and(|before| before != kind) {
            let call = if kind == CallKind::Waits { "run" } else { "enqueue" };
            return Err(Error::MixedCalls { call, rank });
        }
        let (memory, room) = (spec.plan.memory, self.slots.room());
        let mut needed = 2 * memory.gather_half.max(self.gather.half()).0;
        needed += match spec.pass {
            PassKind::Forward => room.send.0 + 2 * room.receive.0,
            PassKind::Backward => room.send.max(memory.send).0 + 2 * room.receive.max(memory.receive_half).0,
        };
        match self.settings.symmetric_bytes {
            Some(Bytes(bound)) if needed > bound => Err(Error::SymmetricMemory { rank, needed, bound }),
            _ => {
                self.kind = Some(kind);
                Ok(())
            }
        }
    }

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
