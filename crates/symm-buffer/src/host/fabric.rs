//! [`Fabric`] for ranks that are threads.
use std::time::Duration;

use super::{
    HeapRead, HeapWrite, HostStream, Ledger, Wrong,
    heap::{self, Block, CopyOp},
    meeting::Ballot,
    shared::Shared,
    stream::{Core, Work, Worker, life},
};
use crate::{
    Bytes, Copy2d, Epoch, Error, Fabric, Incarnation, Label, Note, Notice, Pe, PeerAddress, Put, RegionId,
    Report, SignalId, Span, Wait, World,
    ask::Ask,
    deadline::{Deadline, Event, wait_until},
    sync::{Arc, Ordering, thread},
};

/// One rank of a host world. Dropping it never waits for other ranks; they find it missing at the next collective.
pub struct HostFabric {
    pub(super) me: Pe,
    pub(super) shared: Arc<Shared>,
}

impl HostFabric {
    /// Opens bytes of my heap to read in place; the base of a region is aligned to 128 bytes.
    ///
    /// Open what has arrived and no more: a put into the span is [`Error::Conflict`] while the guard lives.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::UnknownRegion`]; [`Error::Conflict`] while somebody writes there.
    pub fn read(&self, span: Span) -> Result<HeapRead<'_>, Error> {
        let (call, region) = ("read", span.region);
        let region = self.shared.region(region).ok_or(Error::UnknownRegion { call, region })?;
        heap::read(call, &region, self.me, span)
    }

    /// Opens bytes of my heap to write in place.
    ///
    /// # Errors
    /// As [`HostFabric::read`]; [`Error::Conflict`] also while somebody reads there.
    pub fn write(&self, span: Span) -> Result<HeapWrite<'_>, Error> {
        let (call, region) = ("write", span.region);
        let region = self.shared.region(region).ok_or(Error::UnknownRegion { call, region })?;
        heap::write(call, &region, self.me, span)
    }

    /// Threads that work on this rank's streams now.
    pub fn workers(&self) -> usize {
        let workers = self.shared.rank(self.me).workers.lock();
        workers.alive.iter().filter(|worker| worker.is_running()).count()
    }

    /// The books of this world's memory.
    pub fn ledger(&self) -> Ledger {
        self.shared.ledger.clone()
    }

    /// What the rank's misstep, if it is this call's turn, does to a put or a wait.
    fn stumble(&self, call: &'static str) -> Result<(), Error> {
        let me = self.me;
        match self.shared.rank(me).missteps.at_call() {
            Some(Wrong::Panics) => panic!("{call}: an injected fault lets {me} panic here"),
            Some(Wrong::Fails) => Err(Error::Injected { call, me }),
            Some(Wrong::Stalls(time)) => {
                // No abort ends it: the thread is not there.
                _ = wait_until(&Event::default(), Deadline::after(time), || None::<()>);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn put_work(&self, put: Put<'_>, spoil: bool) -> Result<Work, Error> {
        let copies = put.copies.iter().map(|copy| self.copy_op(*copy)).collect::<Result<_, _>>()?;
        let mut post = None;
        if let Some(asked) = put.post {
            let words = self.shared.words("put_signal", asked.signal)?;
            let lost = put.to != self.me && self.shared.rank(self.me).losses.takes(put.to, asked.signal);
            post = (!lost).then_some((asked, words));
        }
        Ok(Work::Put { to: put.to, copies, post, spoil })
    }

    fn check_alive(&self) -> Result<(), Error> {
        self.shared.aborted(self.me).map_or(Ok(()), Err)
    }

    /// The stream's queue, if it is one of mine.
    fn core<'a>(&self, call: &'static str, stream: &'a HostStream) -> Result<&'a Core, Error> {
        let core = &*stream.core;
        let is_mine = self.shared.rank(self.me).workers.lock().owns(core);
        if is_mine {
            return Ok(core);
        }
        let reason = format!("it belongs to {} or to another world, not to {}", core.me, self.me);
        Err(Error::Stream { call, stream: core.name, reason })
    }

    fn meet(&self, ask: Ask, block: Option<Block>, budget: Duration) -> Result<u64, Error> {
        self.check_alive()?;
        let shared = &*self.shared;
        let deadline = Deadline::after(budget);
        shared.meeting.meet(shared, self.me, Ballot { ask, block }, deadline, |ballots| match ask {
            Ask::Alloc(len) => shared.add_region(len, ballots),
            Ask::Free(region) => shared.remove_region(region),
            Ask::Signals(count) => shared.add_signals(count),
            _ => Ok(0),
        })
    }

    fn copy_op(&self, copy: Copy2d) -> Result<CopyOp, Error> {
        let call = "put_signal";
        let unknown = |region| Error::UnknownRegion { call, region };
        let target = self.shared.region(copy.dst.region).ok_or(unknown(copy.dst.region))?;
        let origin = self.shared.origin(self.me, copy.src.region).ok_or(unknown(copy.src.region))?;
        CopyOp::new(origin, target, copy)
    }

    /// Drops the rank's queued work and waits until what runs has ended.
    fn drop_work(&self, deadline: Deadline) -> Result<(), Error> {
        let cores = self.shared.rank(self.me).workers.lock().cores();
        cores.iter().for_each(|core| core.drop_queued());
        for core in &cores {
            match core.drain(Notice::Recover.name(), deadline) {
                Err(error @ Error::Drain { .. }) => return Err(error),
                _ => core.forget_failure(),
            }
        }
        Ok(())
    }
}

impl Fabric for HostFabric {
    type Stream = HostStream;
    type Source<'a> = &'a [u8];

    fn me(&self) -> Pe {
        self.me
    }

    fn world(&self) -> World {
        self.shared.world
    }

    fn alloc(&self, bytes: Bytes, deadline: Duration) -> Result<RegionId, Error> {
        self.check_alive()?;
        let block = Block::new(bytes, self.shared.config.poison, &self.shared.ledger);
        self.meet(Ask::Alloc(bytes), block, deadline).map(RegionId)
    }

    fn free(&self, region: RegionId, deadline: Duration) -> Result<(), Error> {
        self.meet(Ask::Free(region), None, deadline).map(drop)
    }

    fn alloc_signals(&self, count: u32, deadline: Duration) -> Result<SignalId, Error> {
        let first = self.meet(Ask::Signals(count), None, deadline)?;
        // The table is shorter than `SignalId::NONE`.
        Ok(SignalId(u32::try_from(first).unwrap_or(SignalId::NONE.0)))
    }

    fn stream(&self, name: &'static str) -> Result<HostStream, Error> {
        let (stream, worker) = Worker::start(&self.shared, self.me, name)?;
        self.shared.rank(self.me).workers.lock().alive.push(worker);
        Ok(stream)
    }

    fn put_signal(&self, stream: &HostStream, put: Put<'_>) -> Result<(), Error> {
        let (call, life) = ("put_signal", life(&self.shared, self.me));
        self.stumble(call)?;
        let core = self.core(call, stream)?;
        self.shared.check_pe(call, put.to)?;
        self.check_alive()?;
        let carries = put.to != self.me && !put.copies.is_empty();
        let wrong = self.shared.rank(self.me).missteps.at_put(carries);
        if wrong == Some(Wrong::Twice) {
            core.push(self.put_work(put, false)?, life)?;
        }
        core.push(self.put_work(put, wrong == Some(Wrong::Corrupt))?, life)
    }

    fn follow(&self, stream: &HostStream, after: &HostStream) -> Result<(), Error> {
        let (call, life) = ("follow", life(&self.shared, self.me));
        let core = self.core(call, stream)?;
        let goal = self.core(call, after)?.goal();
        self.check_alive()?;
        core.push(Work::Follow { after: after.core.clone(), goal }, life)
    }

    fn publish(&self, number: u64, note: Note) {
        self.shared.rank(self.me).publish(number, note);
    }

    fn published(&self, pe: Pe, number: u64) -> Result<Option<Note>, Error> {
        self.shared.check_pe("published", pe)?;
        Ok(self.shared.rank(pe).published(number))
    }

    fn wait_on(&self, stream: &HostStream, wait: Wait, deadline: Duration) -> Result<(), Error> {
        let (call, life) = ("wait_on", life(&self.shared, self.me));
        self.stumble(call)?;
        let core = self.core(call, stream)?;
        self.shared.check_pe(call, wait.peer)?;
        self.check_alive()?;
        let words = self.shared.words(call, wait.signal)?;
        core.push(Work::Wait { wait, words, deadline }, life)
    }

    fn wait(&self, wait: Wait, deadline: Duration) -> Result<Duration, Error> {
        let (call, life) = ("wait", life(&self.shared, self.me));
        self.stumble(call)?;
        self.shared.check_pe(call, wait.peer)?;
        let words = self.shared.words(call, wait.signal)?;
        let word = &words[self.me.index()];
        self.shared.await_word(self.me, wait, word, Deadline::after(deadline), life)
    }

    fn seen(&self, signal: SignalId) -> Result<Epoch, Error> {
        Ok(self.shared.words("seen", signal)?[self.me.index()].seen())
    }

    fn synchronize(&self, stream: &HostStream, deadline: Duration) -> Result<Duration, Error> {
        let core = self.core("synchronize", stream)?;
        let result = core.drain("synchronize", Deadline::after(deadline));
        match result {
            Err(error @ Error::Drain { waited, .. }) => {
                let label = Label { stage: core.name, piece: 0 };
                let report = Report { waited, ..Report::plain(self.me, self.me, label) };
                Err(self.shared.claim_report(self.me, report, error))
            }
            Err(error) => Err(error),
            Ok(waited) => self.check_alive().map(|()| waited),
        }
    }

    fn barrier(&self, deadline: Duration) -> Result<(), Error> {
        self.meet(Ask::Barrier, None, deadline).map(drop)
    }

    fn with_sources<R>(&self, sources: &[&[u8]], body: impl FnOnce(&[RegionId]) -> R) -> R {
        let ids = self.shared.rank(self.me).open_sources(sources);
        let scope = Scope { fabric: self, ids };
        body(&scope.ids)
    }

    fn load(&self, span: Span) -> Result<Vec<u8>, Error> {
        self.read(span).map(|bytes| bytes.to_vec())
    }

    fn store(&self, span: Span, bytes: &[u8]) -> Result<(), Error> {
        if span.len != bytes.len() {
            return Err(Error::OutOfRange { call: "store", span, region_len: Bytes(bytes.len()) });
        }
        self.write(span)?.copy_from_slice(bytes);
        Ok(())
    }

    /// None: kernels of this backend reach peers through puts, which keep the books on who uses what.
    fn peer_address(&self, _pe: Pe, _span: Span) -> Option<PeerAddress> {
        None
    }

    fn status(&self) -> Result<(), Error> {
        self.shared.rank(self.me).failure().map_or_else(|| self.check_alive(), Err)
    }

    fn abort(&self, report: Report) {
        self.shared.raise(self.me, report);
    }

    fn recover(&self, deadline: Duration) -> Result<Incarnation, Error> {
        let (shared, deadline) = (&*self.shared, Deadline::after(deadline));
        let rank = shared.rank(self.me);
        rank.life.fetch_add(1, Ordering::AcqRel);
        shared.notify_all();
        self.drop_work(deadline)?;
        rank.forget_failure();
        let ballot = Ballot { ask: Ask::Recover, block: None };
        shared.recovery.meet(shared, self.me, ballot, deadline, |_| shared.begin_again())?;
        Ok(shared.incarnation())
    }

    fn incarnation(&self) -> Incarnation {
        self.shared.incarnation()
    }
}

/// An open source scope.
struct Scope<'a> {
    fabric: &'a HostFabric,
    ids: Vec<RegionId>,
}

impl Drop for Scope<'_> {
    /// Also on unwind. A panic gives the group up first, so that puts behind stream waits end at once.
    fn drop(&mut self) {
        let HostFabric { me, shared } = self.fabric;
        if thread::panicking() {
            shared.raise(*me, panicked(*me));
        }
        shared.rank(*me).close_sources(&self.ids);
    }
}

impl Drop for HostFabric {
    fn drop(&mut self) {
        if thread::panicking() {
            self.shared.raise(self.me, panicked(self.me));
        }
        self.shared.leave(self.me);
    }
}

impl std::fmt::Debug for HostFabric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HostFabric({} of {})", self.me, self.shared.world.size())
    }
}

/// The report of a rank whose code panicked.
pub(super) const fn panicked(me: Pe) -> Report {
    Report::plain(me, me, Label { stage: "panic", piece: 0 })
}
