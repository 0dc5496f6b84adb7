//! Streams: a worker thread each, with an in-order queue of puts and waits.
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{
    faults::{Fate, Fates},
    heap::{Care, CopyOp},
    shared::Shared,
};
use crate::{
    Error, Label, Pe, Post, Report, Wait,
    deadline::{Deadline, Event, wait_until},
    sync::{Arc, Mutex, Ordering, thread},
    word::Word,
};

/// An in-order queue of a rank with a thread that works on it.
///
/// Dropping it does not wait: what is queued is still done, then the thread ends.
pub struct HostStream {
    pub(super) core: Arc<Core>,
}

impl Drop for HostStream {
    fn drop(&mut self) {
        self.core.queue.lock().is_closed = true;
        self.core.event.notify();
    }
}

impl std::fmt::Debug for HostStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostStream('{}' of {})", self.core.name, self.core.me)
    }
}

/// What the worker and the rank share.
pub(super) struct Core {
    pub(super) name: &'static str,
    pub(super) me: Pe,
    /// Told of new work, finished work, aborts.
    pub(super) event: Event,
    queue: Mutex<Queue>,
}

struct Queue {
    ops: VecDeque<Op>,
    fates: Fates,
    pushed: u64,
    done: u64,
    is_closed: bool,
    failure: Option<Error>,
}

/// One operation, and when it was queued.
struct Op {
    work: Work,
    fate: Fate,
    at: Instant,
    life: u64,
}

/// What a stream does.
pub(super) enum Work {
    Put {
        to: Pe,
        copies: Vec<CopyOp>,
        post: Option<(Post, Arc<[Word]>)>,
        spoil: bool,
    },
    Wait {
        wait: Wait,
        words: Arc<[Word]>,
        deadline: Duration,
    },
    /// Until another stream of the rank has done so much.
    Follow {
        after: Arc<Core>,
        goal: u64,
    },
}

/// The thread behind a stream.
pub(super) struct Worker {
    pub(super) core: Arc<Core>,
    thread: thread::JoinHandle<()>,
}

impl Worker {
    /// A new stream of `me` and its thread.
    pub(super) fn start(
        shared: &Arc<Shared>,
        me: Pe,
        name: &'static str,
    ) -> Result<(HostStream, Self), Error> {
        let number = {
            let mut workers = shared.rank(me).workers.lock();
            workers.alive.retain(|worker| !worker.thread.is_finished());
            workers.made += 1;
            workers.made - 1
        };
        let fates = Fates::new(shared.config.faults, me, number);
        let queue =
            Queue { ops: VecDeque::new(), fates, pushed: 0, done: 0, is_closed: false, failure: None };
        let core = Arc::new(Core { name, me, event: Event::default(), queue: Mutex::new(queue) });
        let (its_shared, its_core) = (shared.clone(), core.clone());
        let thread = thread::Builder::new()
            .name(format!("{}-{name}", me.0))
            .spawn(move || work(&its_shared, &its_core))
            .map_err(|error| Error::Stream { call: "stream", stream: name, reason: error.to_string() })?;
        Ok((HostStream { core: core.clone() }, Self { core, thread }))
    }

    pub(super) fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }

    /// Waits for the end of a thread that was told to end.
    pub(super) fn join(self) {
        if self.thread.join().is_err() {
            tracing::error!(stream = self.core.name, "a stream's thread panicked");
        }
    }
}

impl Core {
    /// Queues work of the given life.
    pub(super) fn push(&self, work: Work, life: u64) -> Result<(), Error> {
        let mut queue = self.queue.lock();
        if queue.is_closed {
            let reason = "its thread has ended".to_owned();
            return Err(Error::Stream { call: "push", stream: self.name, reason });
        }
        let fate = queue.fates.draw();
        queue.ops.push_back(Op { work, fate, at: Instant::now(), life });
        queue.pushed += 1;
        drop(queue);
        self.event.notify();
        Ok(())
    }

    /// Blocks until what is queued now is done or dropped; the first failure, if any.
    pub(super) fn drain(&self, call: &'static str, deadline: Deadline) -> Result<Duration, Error> {
        let goal = self.queue.lock().pushed;
        let poll = || (self.queue.lock().done >= goal).then_some(());
        match wait_until(&self.event, deadline, poll) {
            Ok(waited) => self.queue.lock().failure.clone().map_or(Ok(waited.time), Err),
            Err(expired) => {
                Err(Error::Drain { call, me: self.me, stream: self.name, waited: expired.waited })
            }
        }
    }

    /// How much was ever queued.
    pub(super) fn goal(&self) -> u64 {
        self.queue.lock().pushed
    }

    fn has_done(&self, goal: u64) -> bool {
        self.queue.lock().done >= goal
    }

    /// Drops queued work; what runs now ends by itself.
    pub(super) fn drop_queued(&self) {
        let dropped = {
            let mut queue = self.queue.lock();
            let ops = std::mem::take(&mut queue.ops);
            queue.done += ops.len() as u64;
            ops
        };
        drop(dropped);
        self.event.notify();
    }

    pub(super) fn forget_failure(&self) {
        self.queue.lock().failure = None;
    }

    fn next(&self, shared: &Shared) -> Option<Op> {
        let poll = || {
            let mut queue = self.queue.lock();
            match queue.ops.pop_front() {
                Some(op) if !shared.is_closing() => Some(Some(op)),
                None if !queue.is_closed && !shared.is_closing() => None,
                _ => Some(None),
            }
        };
        wait_until(&self.event, Deadline::never(), poll).ok()?.value
    }

    fn finish(&self, result: Result<(), Error>) {
        let mut queue = self.queue.lock();
        queue.done += 1;
        if let Err(error) = result {
            queue.failure.get_or_insert(error);
        }
        drop(queue);
        self.event.notify();
    }
}

/// Whatever ends the worker: nobody waits for work that it will not do.
struct Closing<'a>(&'a Core);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let dropped = {
            let mut queue = self.0.queue.lock();
            queue.is_closed = true;
            queue.done = queue.pushed;
            if thread::panicking() {
                let reason = "its thread panicked; this is a bug of the host backend".to_owned();
                queue.failure = Some(Error::Stream { call: "work", stream: self.0.name, reason });
            }
            std::mem::take(&mut queue.ops)
        };
        drop(dropped);
        self.0.event.notify();
    }
}

fn work(shared: &Shared, core: &Core) {
    let _closing = Closing(core);
    let mut runner = Runner { shared, core, free_from: Instant::now() };
    while let Some(op) = core.next(shared) {
        let result = runner.perform(op);
        if let Err(error) = &result {
            shared.rank(core.me).fail(error);
        }
        core.finish(result);
    }
}

/// Does the operations of one stream.
struct Runner<'a> {
    shared: &'a Shared,
    core: &'a Core,
    /// When the last operation made way for the next. The emulated time of a stream: a worker that gets a core too late
    /// does not make the link slower.
    free_from: Instant,
}

impl Runner<'_> {
    fn perform(&mut self, op: Op) -> Result<(), Error> {
        let Op { work, fate, at, life } = op;
        if let Some(error) = self.shared.stopped(self.core.me, life) {
            return Err(error);
        }
        self.free_from = self.free_from.max(at) + fate.delay;
        if !fate.delay.is_zero() {
            self.sleep(self.free_from, life)?;
        }
        match work {
            Work::Put { to, copies, post, spoil } => {
                self.put(to, (copies, spoil), life)?;
                if !fate.late.is_zero() {
                    self.free_from = Instant::now() + fate.late;
                    self.sleep(self.free_from, life)?;
                }
                let Some((post, words)) = post else { return Ok(()) };
                let posted = self.shared.post(self.core.me, to, &words, post);
                posted.map_err(|error| self.broken(to, error))
            }
            Work::Wait { wait, words, deadline } => {
                let word = &words[self.core.me.index()];
                let deadline = Deadline::after(deadline);
                self.shared.await_word(self.core.me, wait, word, deadline, life)?;
                self.free_from = Instant::now();
                Ok(())
            }
            Work::Follow { after, goal } => {
                // The other stream's waits have deadlines, and it never waits for what comes after its goal.
                let poll = || {
                    let stopped = || self.shared.stopped(self.core.me, life).map(Err);
                    if after.has_done(goal) { Some(Ok(())) } else { stopped() }
                };
                let waited = wait_until(&after.event, Deadline::never(), poll);
                self.free_from = Instant::now();
                waited.map_or(Ok(()), |waited| waited.value)
            }
        }
    }

    fn put(&mut self, to: Pe, (copies, mut spoil): (Vec<CopyOp>, bool), life: u64) -> Result<(), Error> {
        let me = self.core.me;
        // What stays in my memory does not cross the link.
        let link = self.shared.config.link.filter(|_| to != me);
        if copies.is_empty() {
            return self.travel(link, 0, life);
        }
        for copy in copies {
            let (bytes, wanted) = (copy.bytes(), copy.bounds());
            // One copy of a put is spoiled, the first that has bytes.
            let care = Care { spoil: spoil && bytes > 0, verify: self.shared.config.verify_puts };
            spoil &= !care.spoil;
            let begun = copy.begin(me, to);
            let transfer = begun.map_err(|error| self.broken(to, error))?;
            self.travel(link, bytes, life)?;
            if !transfer.run(care) {
                return Err(self.broken(to, Error::Corrupt { call: "put_signal", from: me, to, wanted }));
            }
        }
        Ok(())
    }

    /// Sleeps as long as `bytes` need to arrive.
    fn travel(&mut self, link: Option<super::Link>, bytes: usize, life: u64) -> Result<(), Error> {
        let Some(link) = link else {
            self.free_from = Instant::now();
            return Ok(());
        };
        let slot = self.shared.rank(self.core.me).egress.reserve(link, self.free_from, bytes);
        self.free_from = slot.left;
        self.sleep(slot.due, life)
    }

    fn sleep(&self, due: Instant, life: u64) -> Result<(), Error> {
        self.shared.sleep(&self.core.event, self.core.me, due, life)
    }

    /// The rules were broken: nothing that comes after can be trusted, so the group stops.
    fn broken(&self, to: Pe, error: Error) -> Error {
        let stage = match error {
            Error::Conflict { .. } => "put_signal: memory in use",
            Error::Corrupt { .. } => "put_signal: corrupted",
            Error::SignalWentBack { .. } => "put_signal: signal went back",
            Error::SignalWriters { .. } => "put_signal: two writers",
            _ => "put_signal",
        };
        let report = Report::plain(self.core.me, to, Label { stage, piece: 0 });
        self.shared.claim_report(self.core.me, report, error)
    }
}

/// The life in which work of `me` is queued now.
pub(super) fn life(shared: &Shared, me: Pe) -> u64 {
    shared.rank(me).life.load(Ordering::Acquire)
}
