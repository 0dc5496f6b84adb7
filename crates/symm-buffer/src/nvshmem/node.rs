//! What a rank's fabric, its streams and its watch share, and the watch itself: a thread that ends what waits too long,
//! lets go of streams when the group has given up, and looks whether the other processes live (rules D1, D2).
use std::time::{Duration, Instant};

use super::block::{At, Block, STREAMS};
use super::driver::Registered;
use super::place::Vigil;
use super::record;
use super::stream::Core;
use crate::deadline::{Deadline, Event, wait_until};
use crate::sync::{Arc, AtomicBool, AtomicU32, Mutex, Ordering};
use crate::{Epoch, Error, Label, Pe, Report, SignalId, Wait};

/// Stage of the report that a process is gone.
const LOST: &str = "lost process";
/// The watch looks this often while a stream waits or the group has given up: a stream is late by as much.
const OFTEN: Duration = Duration::from_millis(1);
/// And this often otherwise, and at the other processes.
const SELDOM: Duration = Duration::from_millis(20);

/// One rank's end of a group.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) me: Pe,
    // Unregistered before it is unmapped: fields are dropped in order.
    pub(super) registered: Registered,
    pub(super) block: Block,
    vigil: Vigil,
    failure: Mutex<Option<Error>>,
    cores: Mutex<Vec<Arc<Core>>>,
    /// Signal words that were given out.
    pub(super) signals: AtomicU32,
    over: Event,
    is_over: AtomicBool,
}

impl Node {
    pub(super) fn new(me: Pe, block: Block, vigil: Vigil, registered: Registered) -> Self {
        Self {
            me,
            registered,
            block,
            vigil,
            failure: Mutex::default(),
            cores: Mutex::default(),
            signals: AtomicU32::new(0),
            over: Event::default(),
            is_over: AtomicBool::new(false),
        }
    }

    /// Where the device finds a word of the block.
    pub(super) fn device(&self, at: At) -> u64 {
        self.registered.device + self.block.offset(at)
    }

    /// What my word is now.
    pub(super) fn seen(&self, signal: SignalId) -> Epoch {
        Epoch(self.block.word(At::Signal(self.me, signal)).load(Ordering::Acquire))
    }

    pub(super) const fn report(&self, wait: Wait, seen: Epoch, waited: Duration) -> Report {
        let Wait { signal, at_least, peer, label } = wait;
        Report { rank: self.me, peer, label, signal, wanted: at_least, seen, waited }
    }

    /// That the group has given up, as this rank's error.
    pub(super) fn aborted(&self, call: &'static str) -> Option<Error> {
        let abort = record::read(&self.block)?;
        let (me, peer) = (self.me, abort.report.peer);
        Some(match abort.report.label.stage {
            LOST => Error::Lost { call, me, peer },
            _ => Error::Aborted { me, by: abort.by, report: abort.report },
        })
    }

    /// Gives up for all, if nobody has; whether I was the first. The watches then let go of the streams.
    pub(super) fn raise(&self, report: Report) -> bool {
        record::claim(&self.block, self.me, report)
    }

    /// Gives up over a wait of mine: the error of whoever was first.
    pub(super) fn expire(&self, call: &'static str, report: Report) -> Error {
        let mine = Error::Timeout(report);
        if self.raise(report) {
            self.fail(&mine);
            return mine;
        }
        self.aborted(call).unwrap_or(mine)
    }

    /// Keeps the failure if it is the first.
    pub(super) fn fail(&self, error: &Error) {
        self.failure.lock().get_or_insert_with(|| error.clone());
    }

    pub(super) fn failure(&self) -> Option<Error> {
        self.failure.lock().clone()
    }

    pub(super) fn forget_failure(&self) {
        *self.failure.lock() = None;
    }

    pub(super) fn cores(&self) -> Vec<Arc<Core>> {
        self.cores.lock().clone()
    }

    /// Adds a stream; nothing when there is no progress word left. Streams that were dropped go first, if they are done.
    pub(super) fn add(&self, make: impl FnOnce(usize) -> Core) -> Option<Arc<Core>> {
        let mut cores = self.cores.lock();
        cores.retain(|core| !(core.is_orphan.load(Ordering::Acquire) && core.is_drained(self)));
        let index = (0..STREAMS).find(|index| cores.iter().all(|core| core.index != *index))?;
        let core = Arc::new(make(index));
        cores.push(core.clone());
        Some(core)
    }

    /// Ends the watch.
    pub(super) fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.over.notify();
    }

    /// The watch's thread. It calls neither the driver nor NVSHMEM, and looks at no memory of theirs: the process may exit
    /// while it runs. The block is our own mapping of a file, which the driver's exit handlers do not unmap.
    pub(super) fn watch(&self) {
        let mut looked = Instant::now();
        while !self.is_over.load(Ordering::Acquire) {
            self.look();
            if looked.elapsed() >= SELDOM {
                looked = Instant::now();
                self.look_at_peers();
            }
            let busy = self.cores.lock().iter().any(|core| core.is_waiting());
            let pause = if busy { OFTEN } else { SELDOM };
            let over = || self.is_over.load(Ordering::Acquire).then_some(());
            _ = wait_until(&self.over, Deadline::after(pause), over);
        }
    }

    fn look(&self) {
        for core in self.cores() {
            if let Some(report) = core.overdue(self) {
                self.expire("wait_on", report);
            }
        }
        if record::read(&self.block).is_some() {
            self.release();
        }
    }

    /// Lets go of my streams, when all can know that nothing that follows means anything. A late post may lower a word
    /// again, so this is done at every look.
    pub(super) fn release(&self) {
        const COUNT: u64 = (1 << 40) - 1;
        for wait in self.cores().iter().flat_map(|core| core.pending()) {
            let word = self.block.word(At::Signal(self.me, wait.signal));
            // The largest of this incarnation: below all of the next.
            word.fetch_max(wait.at_least.0 | COUNT, Ordering::AcqRel);
        }
    }

    fn look_at_peers(&self) {
        for peer in self.vigil.dead() {
            if self.block.word(At::Left(peer)).load(Ordering::Acquire) > 0 {
                continue;
            }
            self.block.word(At::Dead(peer)).store(1, Ordering::Release);
            let report = Report::plain(self.me, peer, Label { stage: LOST, piece: 0 });
            self.raise(report);
            self.fail(&Error::Lost { call: "watch", me: self.me, peer });
        }
    }
}
