//! What the ranks of one host world share: regions, signal words, the abort word, the meeting places.
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    HostConfig,
    heap::{Origin, Region},
    ledger::Ledger,
    meeting::{Ballot, Meeting, Outcome, Refusal},
    rank::Rank,
    stream::Worker,
};
use crate::{
    Bytes, Epoch, Error, Incarnation, Label, Notice, Pe, Post, RegionId, Report, SignalId, Step, Use, Wait,
    World,
    deadline::{Deadline, Event, wait_until},
    sync::{Arc, AtomicBool, AtomicU32, AtomicUsize, Mutex, Ordering},
    word::{Refused, Word},
};

/// Everything that is common.
pub(super) struct Shared {
    pub(super) world: World,
    pub(super) config: HostConfig,
    pub(super) ledger: Ledger,
    ranks: Box<[Rank]>,
    regions: Mutex<Regions>,
    words: Mutex<Vec<Arc<[Word]>>>,
    pub(super) meeting: Meeting,
    /// Apart from the other collectives: a rank may still sit in one of them when another begins to recover.
    pub(super) recovery: Meeting,
    abort: Mutex<Option<Abort>>,
    /// Whether `abort` holds something: the fast look.
    is_aborted: AtomicBool,
    incarnation: AtomicU32,
    /// Fabrics that are still there; the last one to go ends all workers.
    fabrics: AtomicUsize,
    is_closing: AtomicBool,
}

#[derive(Default)]
struct Regions {
    next: u64,
    known: HashMap<RegionId, Arc<Region>>,
}

/// Who gave up first, and why.
#[derive(Clone, Copy, Debug)]
struct Abort {
    by: Pe,
    report: Report,
}

impl Shared {
    pub(super) fn new(world: World, config: HostConfig) -> Self {
        Self {
            world,
            config,
            ledger: Ledger::default(),
            ranks: world.ranks().map(|me| Rank::new(me, world, config)).collect(),
            regions: Mutex::default(),
            words: Mutex::default(),
            meeting: Meeting::new(world.size()),
            recovery: Meeting::new(world.size()),
            abort: Mutex::default(),
            is_aborted: AtomicBool::new(false),
            incarnation: AtomicU32::new(0),
            fabrics: AtomicUsize::new(world.size()),
            is_closing: AtomicBool::new(false),
        }
    }

    pub(super) fn rank(&self, pe: Pe) -> &Rank {
        &self.ranks[pe.index()]
    }

    pub(super) fn check_pe(&self, call: &'static str, pe: Pe) -> Result<(), Error> {
        let world = self.world.size();
        if pe.index() < world { Ok(()) } else { Err(Error::NoSuchPe { call, pe, world }) }
    }

    pub(super) fn region(&self, id: RegionId) -> Option<Arc<Region>> {
        self.regions.lock().known.get(&id).cloned()
    }

    /// A heap region, or a source of `me`.
    pub(super) fn origin(&self, me: Pe, id: RegionId) -> Option<Origin> {
        let source = || self.rank(me).hold(id).map(Origin::Source);
        self.region(id).map(Origin::Heap).or_else(source)
    }

    /// The word on every rank.
    pub(super) fn words(&self, call: &'static str, signal: SignalId) -> Result<Arc<[Word]>, Error> {
        let words = self.words.lock();
        let found = words.get(signal.0 as usize).cloned();
        found.ok_or(Error::NoSuchSignal { call, signal, len: words.len() })
    }

    /// Raises a word with release and wakes its owner.
    pub(super) fn post(&self, me: Pe, to: Pe, words: &[Word], post: Post) -> Result<(), Error> {
        let (call, Post { signal, value }) = ("put_signal", post);
        let word = &words[to.index()];
        word.raise(me, value).map_err(|refused| match refused {
            Refused::Writer(writer) => Error::SignalWriters { call, to, signal, writer, second: me },
            Refused::WentBack(seen) => Error::SignalWentBack { call, to, signal, seen, value },
        })?;
        self.rank(to).event.notify();
        Ok(())
    }

    /// Waits for a word of `me`, on behalf of work that was queued or called in `life`.
    pub(super) fn await_word(
        &self,
        me: Pe,
        wait: Wait,
        word: &Word,
        deadline: Deadline,
        life: u64,
    ) -> Result<Duration, Error> {
        let poll = || {
            if let Some(error) = self.stopped(me, life) {
                return Some(Err(error));
            }
            (word.seen() >= wait.at_least).then_some(Ok(()))
        };
        let waited = match wait_until(&self.rank(me).event, deadline, poll) {
            Ok(waited) => return waited.value.map(|()| waited.time),
            Err(expired) => expired.waited,
        };
        let Wait { signal, at_least: wanted, peer, label } = wait;
        let report = Report { rank: me, peer, label, signal, wanted, seen: word.seen(), waited };
        Err(self.claim_report(me, report, Error::Timeout(report)))
    }

    /// Sleeps until `due` unless the work is stopped.
    pub(super) fn sleep(&self, event: &Event, me: Pe, due: Instant, life: u64) -> Result<(), Error> {
        match wait_until(event, Deadline::at(due), || self.stopped(me, life)) {
            Ok(stopped) => Err(stopped.value),
            Err(_time_is_up) => Ok(()),
        }
    }

    /// Why work of `me` from `life` must end, if it must.
    pub(super) fn stopped(&self, me: Pe, life: u64) -> Option<Error> {
        if let Some(error) = self.aborted(me) {
            return Some(error);
        }
        let notice = if self.is_closing() {
            Notice::Closing
        } else if self.rank(me).life.load(Ordering::Acquire) != life {
            Notice::Recover
        } else {
            return None;
        };
        let report = Report::plain(me, me, Label { stage: notice.name(), piece: 0 });
        Some(Error::Aborted { me, by: me, report })
    }

    /// What `me` returns while the group is aborted.
    pub(super) fn aborted(&self, me: Pe) -> Option<Error> {
        if !self.is_aborted.load(Ordering::Acquire) {
            return None;
        }
        self.abort.lock().map(|Abort { by, report }| Error::Aborted { me, by, report })
    }

    /// Who gave up first.
    #[cfg(not(loom))]
    pub(super) fn aborted_by(&self) -> Option<Pe> {
        self.abort.lock().map(|abort| abort.by)
    }

    /// Whom the report blames.
    pub(super) fn blamed(&self) -> Option<Pe> {
        self.abort.lock().map(|abort| abort.report.peer)
    }

    /// Ends everybody's waits; false when somebody has already.
    pub(super) fn raise(&self, by: Pe, report: Report) -> bool {
        if !self.claim(by, report) {
            return false;
        }
        tracing::debug!(%report, "{}", Notice::Abort.name());
        self.notify_all();
        true
    }

    /// The first to come writes the abort; nobody is told yet.
    pub(super) fn claim(&self, by: Pe, report: Report) -> bool {
        let mut abort = self.abort.lock();
        if abort.is_some() {
            return false;
        }
        *abort = Some(Abort { by, report });
        self.is_aborted.store(true, Ordering::Release);
        true
    }

    /// One waiter claims the report word and returns `error`; for the others the group was aborted before (rule D2).
    pub(super) fn claim_report(&self, me: Pe, report: Report, error: Error) -> Error {
        let error = if self.raise(me, report) { error } else { self.aborted(me).unwrap_or(error) };
        self.rank(me).fail(&error);
        error
    }

    /// Everybody looks again.
    pub(super) fn notify_all(&self) {
        for rank in &self.ranks {
            rank.event.notify();
            for worker in &rank.workers.lock().alive {
                worker.core.event.notify();
            }
        }
    }

    pub(super) fn incarnation(&self) -> Incarnation {
        Incarnation(self.incarnation.load(Ordering::Acquire))
    }

    pub(super) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    /// A fabric goes. With the last one all work is cancelled, as nobody can see it any more, and the threads end.
    pub(super) fn leave(&self, me: Pe) {
        let before = self.fabrics.fetch_sub(1, Ordering::AcqRel);
        self.rank(me).leave(1 + self.world.size() - before);
        let is_last = before == 1;
        self.is_closing.fetch_or(is_last, Ordering::AcqRel);
        self.notify_all();
        if is_last {
            let workers = self.ranks.iter().flat_map(|rank| std::mem::take(&mut rank.workers.lock().alive));
            workers.for_each(Worker::join);
        }
    }
}

/// What the last rank to come to a meeting does for all.
impl Shared {
    /// Makes a region of the blocks that the ranks brought.
    pub(super) fn add_region(&self, len: Bytes, ballots: Vec<Ballot>) -> Outcome {
        let without = ballots.iter().zip(self.world.ranks()).find(|(ballot, _)| ballot.block.is_none());
        if let Some((_, pe)) = without {
            return Err(Refusal::NoMemory(pe));
        }
        let blocks = ballots.into_iter().filter_map(|ballot| ballot.block).collect();
        let mut regions = self.regions.lock();
        let id = RegionId(regions.next);
        regions.next += 1;
        regions.known.insert(id, Arc::new(Region { id, len, blocks }));
        Ok(id.0)
    }

    pub(super) fn remove_region(&self, id: RegionId) -> Outcome {
        let mut regions = self.regions.lock();
        let region = regions.known.get(&id).ok_or(Refusal::Unknown)?;
        if let Some(holder) = region.blocks.iter().find_map(|block| block.holder()) {
            return Err(Refusal::Busy(holder));
        }
        regions.known.remove(&id);
        Ok(id.0)
    }

    pub(super) fn add_signals(&self, count: u32) -> Outcome {
        let mut words = self.words.lock();
        let first = words.len();
        let len = first.saturating_add(count as usize);
        // The last number means "no signal".
        if len >= SignalId::NONE.0 as usize {
            let signal = SignalId(count);
            return Err(Refusal::Full(Error::NoSuchSignal {
                call: Notice::AllocSignals.name(),
                signal,
                len: first,
            }));
        }
        words.resize_with(len, || (0..self.world.size()).map(|_| Word::default()).collect());
        Ok(first as u64)
    }

    /// All ranks have dropped their work: the next incarnation begins.
    pub(super) fn begin_again(&self) -> Outcome {
        let next = Incarnation(self.incarnation().0.saturating_add(1));
        Epoch::new(next, Use(0), Step(0)).map_err(Refusal::Full)?;
        self.incarnation.store(next.0, Ordering::Release);
        self.ranks.iter().for_each(|rank| rank.losses.recovered());
        *self.abort.lock() = None;
        self.is_aborted.store(false, Ordering::Release);
        Ok(u64::from(next.0))
    }
}
