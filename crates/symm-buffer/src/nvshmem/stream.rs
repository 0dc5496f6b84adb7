//! Streams: work in order, a word that counts what is done, and the waits that a watch must end one day.
#![expect(unsafe_code, reason = "work is queued on a stream by bare addresses")]
use std::collections::VecDeque;
use std::time::{Duration, Instant};

use cudarc::driver::CudaStream;

use super::block::At;
use super::driver::{MemOp, Move, Named, copy_all, is_idle, mem_ops};
use super::node::Node;
use crate::deadline::{Deadline, poll_until};
use crate::sync::{Arc, AtomicBool, Mutex, Ordering};
use crate::{Error, Report, Wait};

/// A stream of this rank. Dropping it lets queued work go on; the driver's stream goes when that is done and another is
/// made, or with the fabric.
#[derive(Debug)]
pub struct NvshmemStream {
    pub(super) core: Arc<Core>,
}

impl NvshmemStream {
    /// The stream itself, for events and for kernels of the caller's. [`Fabric::synchronize`](crate::Fabric::synchronize)
    /// waits for them too.
    pub fn cuda(&self) -> &Arc<CudaStream> {
        &self.core.stream
    }
}

impl Drop for NvshmemStream {
    fn drop(&mut self) {
        self.core.is_orphan.store(true, Ordering::Release);
    }
}

/// What the watch needs of a stream.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) name: &'static str,
    pub(super) stream: Arc<CudaStream>,
    /// Which progress word is its.
    pub(super) index: usize,
    pub(super) is_orphan: AtomicBool,
    /// What the fabric's collectives wait for.
    drains: Share,
    queue: Mutex<Queue>,
}

/// Which work on a stream is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// What the fabric has queued. Of a stream that is its owner's, who may queue anything or capture it.
    Fabrics,
    /// Also kernels of the caller's, and what the stream follows.
    All,
}

#[derive(Debug, Default)]
struct Queue {
    /// Pieces of work that were ever queued; the progress word follows.
    queued: u64,
    waits: VecDeque<Pending>,
}

/// A wait on the stream that may not have ended.
#[derive(Clone, Copy, Debug)]
struct Pending {
    /// Its number among the work of the stream.
    number: u64,
    wait: Wait,
    budget: Duration,
    /// When the stream was first seen in it.
    begun: Option<Instant>,
}

/// Work to queue: copies, then memory operations.
#[derive(Debug, Default)]
pub(super) struct Work {
    pub(super) moves: Vec<Move>,
    pub(super) ops: Vec<MemOp>,
    pub(super) wait: Option<(Wait, Duration)>,
}

impl Core {
    /// A stream whose progress word is `index`, which no other uses.
    pub(super) fn new(
        node: &Node,
        (name, drains): (&'static str, Share),
        stream: Arc<CudaStream>,
        index: usize,
    ) -> Self {
        node.block.word(At::Progress(node.me, index)).store(0, Ordering::Release);
        Self { name, stream, index, is_orphan: AtomicBool::new(false), drains, queue: Mutex::default() }
    }

    /// Queues work; its number.
    ///
    /// # Safety
    /// All addresses are memory that the device can reach, words aligned, and stay so until the stream has come past.
    pub(super) unsafe fn push(&self, node: &Node, mut work: Work) -> Result<u64, Error> {
        let mut queue = self.queue.lock();
        self.stream.context().bind_to_thread().named("cuCtxSetCurrent")?;
        // SAFETY: the caller vouches for the addresses.
        unsafe { copy_all(&self.stream, &work.moves) }?;
        let number = queue.queued + 1;
        work.ops
            .push(MemOp::Write { address: node.device(At::Progress(node.me, self.index)), value: number });
        // SAFETY: as before; the progress word is in the block, which outlives the streams.
        unsafe { mem_ops(&self.stream, &work.ops) }?;
        queue.queued = number;
        if let Some((wait, budget)) = work.wait {
            queue.waits.push_back(Pending { number, wait, budget, begun: None });
        }
        Ok(number)
    }

    /// How many pieces of work are done.
    pub(super) fn done(&self, node: &Node) -> u64 {
        node.block.word(At::Progress(node.me, self.index)).load(Ordering::Acquire)
    }

    /// Whether nothing is under way.
    pub(super) fn is_drained(&self, node: &Node) -> bool {
        let queue = self.queue.lock();
        // A stream that cannot be asked any more does nothing.
        self.done(node) == queue.queued
            && (self.drains == Share::Fabrics || is_idle(&self.stream).unwrap_or(true))
    }

    /// As [`Core::drain_share`], of the work that keeps memory of the fabric in use.
    pub(super) fn drain(
        &self,
        node: &Node,
        call: &'static str,
        deadline: Deadline,
    ) -> Result<Duration, Error> {
        self.drain_share(node, (call, self.drains), deadline)
    }

    /// Waits until the work that is queued now is done.
    pub(super) fn drain_share(
        &self,
        node: &Node,
        (call, share): (&'static str, Share),
        deadline: Deadline,
    ) -> Result<Duration, Error> {
        let number = self.queue.lock().queued;
        let mut asked = Instant::now();
        let poll = || {
            let is_counted = self.done(node) >= number;
            if is_counted && share == Share::Fabrics {
                return Some(Ok(()));
            }
            // A failed stream counts no more; until it has counted the driver is asked seldom, as it takes locks.
            if !is_counted && asked.elapsed() < Duration::from_millis(5) {
                return None;
            }
            asked = Instant::now();
            match is_idle(&self.stream) {
                Ok(is_idle) => (is_counted && is_idle).then_some(Ok(())),
                Err(error) => Some(Err(error)),
            }
        };
        match poll_until(deadline, poll) {
            Ok(waited) => waited.value.map(|()| waited.time),
            Err(expired) => {
                let waited = expired.waited;
                Err(Error::Drain { call, me: node.me, stream: self.name, waited })
            }
        }
    }

    /// The wait in which the stream is, if its budget is used up.
    pub(super) fn overdue(&self, node: &Node) -> Option<Report> {
        let mut queue = self.queue.lock();
        let done = self.done(node);
        while queue.waits.front().is_some_and(|wait| wait.number <= done) {
            queue.waits.pop_front();
        }
        let pending = queue.waits.front_mut().filter(|pending| pending.number == done + 1)?;
        let waited = pending.begun.get_or_insert_with(Instant::now).elapsed();
        let seen = node.seen(pending.wait.signal);
        let over = waited >= pending.budget && seen < pending.wait.at_least;
        over.then(|| node.report(pending.wait, seen, waited))
    }

    /// Waits that may still hold the stream.
    pub(super) fn pending(&self) -> Vec<Wait> {
        self.queue.lock().waits.iter().map(|pending| pending.wait).collect()
    }

    /// Whether a wait may still hold the stream.
    pub(super) fn is_waiting(&self) -> bool {
        !self.queue.lock().waits.is_empty()
    }
}
