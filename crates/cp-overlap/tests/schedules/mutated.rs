//! The host backend, weakened in one place: the executor above it is the real one.
use std::time::Duration;

use symm_buffer::host::{HostFabric, HostStream};
use symm_buffer::{
    Bytes, Epoch, Error, Fabric, Incarnation, Note, Pe, PeerAddress, Put, RegionId, Report, SignalId, Span,
    Wait, World,
};

/// One weakened place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// Pushes do not wait until the receiver's half is free.
    MissingFreeWait,
    /// Signals are raised before their data is there.
    SignalBeforeData,
    /// A wait takes an earlier use for this one.
    ReusedEpoch,
    /// A wait ends one step early.
    EarlyStep,
    /// The last rank's partials never post.
    MissingArrival,
    /// Frees are posted as soon as the call begins its pushes.
    EarlyFree,
}

impl Mutant {
    /// With the case in which it must be caught.
    pub(crate) const ALL: [(Mutant, &'static str); 6] = [
        (Self::MissingFreeWait, "forward4"),
        (Self::SignalBeforeData, "forward4"),
        (Self::ReusedEpoch, "forward4"),
        (Self::EarlyStep, "mixed4"),
        (Self::MissingArrival, "mixed4"),
        (Self::EarlyFree, "forward4"),
    ];
}

/// A fabric with or without a weak place.
pub(crate) struct Mutated {
    inner: HostFabric,
    mutant: Option<Mutant>,
}

/// Bits of an epoch: 12 for the step, then 28 for the use.
const STEP: u64 = (1 << 12) - 1;
const USE: u64 = ((1 << 28) - 1) << 12;
/// Position of kinds of signals in the table.
const GATHER_FREE: u32 = 2;
const PARTIAL: u32 = 3;

impl Mutated {
    pub(crate) const fn new(inner: HostFabric, mutant: Option<Mutant>) -> Self {
        Self { inner, mutant }
    }

    fn has(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn kind(&self, signal: SignalId) -> u32 {
        signal.0 / u32::try_from(self.world().size()).unwrap()
    }
}

impl Fabric for Mutated {
    type Stream = HostStream;
    type Source<'a> = &'a [u8];

    fn put_signal(&self, stream: &HostStream, put: Put<'_>) -> Result<(), Error> {
        let kind = put.post.map(|post| self.kind(post.signal));
        if self.has(Mutant::SignalBeforeData) && !put.copies.is_empty() {
            self.inner.put_signal(stream, Put { copies: &[], ..put })?;
            return self.inner.put_signal(stream, Put { post: None, ..put });
        }
        let last = self.me().index() + 1 == self.world().size();
        if self.has(Mutant::MissingArrival) && kind == Some(PARTIAL) && last {
            return self.inner.put_signal(stream, Put { post: None, ..put });
        }
        self.inner.put_signal(stream, put)
    }

    fn wait(&self, mut wait: Wait, deadline: Duration) -> Result<Duration, Error> {
        let Epoch(value) = wait.at_least;
        match self.mutant {
            Some(Mutant::MissingFreeWait) if self.kind(wait.signal) == GATHER_FREE => {
                return Ok(Duration::ZERO);
            }
            Some(Mutant::EarlyFree) if self.kind(wait.signal) == GATHER_FREE => {
                // The use before last counts as read when the peer has begun it.
                wait.signal = SignalId(wait.peer.0);
            }
            Some(Mutant::ReusedEpoch) => wait.at_least = Epoch(value & !USE),
            Some(Mutant::EarlyStep) if value & STEP > 1 => wait.at_least = Epoch(value - 1),
            _ => {}
        }
        self.inner.wait(wait, deadline)
    }

    fn me(&self) -> Pe {
        self.inner.me()
    }

    fn world(&self) -> World {
        self.inner.world()
    }

    fn alloc(&self, bytes: Bytes, deadline: Duration) -> Result<RegionId, Error> {
        self.inner.alloc(bytes, deadline)
    }

    fn free(&self, region: RegionId, deadline: Duration) -> Result<(), Error> {
        self.inner.free(region, deadline)
    }

    fn alloc_signals(&self, count: u32, deadline: Duration) -> Result<SignalId, Error> {
        self.inner.alloc_signals(count, deadline)
    }

    fn stream(&self, name: &'static str) -> Result<HostStream, Error> {
        self.inner.stream(name)
    }

    fn follow(&self, stream: &Self::Stream, after: &Self::Stream) -> Result<(), Error> {
        self.inner.follow(stream, after)
    }

    fn publish(&self, number: u64, note: Note) {
        self.inner.publish(number, note);
    }

    fn published(&self, pe: Pe, number: u64) -> Result<Option<Note>, Error> {
        self.inner.published(pe, number)
    }

    fn wait_on(&self, stream: &HostStream, wait: Wait, deadline: Duration) -> Result<(), Error> {
        self.inner.wait_on(stream, wait, deadline)
    }

    fn seen(&self, signal: SignalId) -> Result<Epoch, Error> {
        self.inner.seen(signal)
    }

    fn synchronize(&self, stream: &HostStream, deadline: Duration) -> Result<Duration, Error> {
        self.inner.synchronize(stream, deadline)
    }

    fn barrier(&self, deadline: Duration) -> Result<(), Error> {
        self.inner.barrier(deadline)
    }

    fn with_sources<R>(&self, sources: &[&[u8]], body: impl FnOnce(&[RegionId]) -> R) -> R {
        self.inner.with_sources(sources, body)
    }

    fn load(&self, span: Span) -> Result<Vec<u8>, Error> {
        self.inner.load(span)
    }

    fn store(&self, span: Span, bytes: &[u8]) -> Result<(), Error> {
        self.inner.store(span, bytes)
    }

    fn peer_address(&self, pe: Pe, span: Span) -> Option<PeerAddress> {
        self.inner.peer_address(pe, span)
    }

    fn status(&self) -> Result<(), Error> {
        self.inner.status()
    }

    fn abort(&self, report: Report) {
        self.inner.abort(report);
    }

    fn recover(&self, deadline: Duration) -> Result<Incarnation, Error> {
        self.inner.recover(deadline)
    }

    fn incarnation(&self) -> Incarnation {
        self.inner.incarnation()
    }
}
