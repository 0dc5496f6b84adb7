//! [`Fabric`] for ranks that are processes with a GPU each.
#![expect(unsafe_code, reason = "copies and words are queued by address")]
use std::time::Duration;

use cudarc::driver::{CudaContext, CudaStream};

use super::block::At;
use super::driver::{MemOp, Move, Named};
use super::heap::{Chunk, Heap};
use super::node::Node;
use super::source::{DeviceSource, Scope, Sources};
use super::staging::Staging;
use super::stream::{Core, NvshmemStream, Share, Work};
use super::world::NvshmemWorld;
use crate::ask::Ask;
use crate::deadline::{Deadline, poll_until};
use crate::layout::ALIGNMENT;
use crate::sync::{Arc, Mutex, Ordering, thread};
use crate::{
    Bytes, Copy2d, Epoch, Error, Fabric, Incarnation, Label, Note, Notice, Pe, PeerAddress, Put, RegionId,
    Report, SignalId, Span, Wait, World,
};

/// One rank of a group. Dropping it never waits for other ranks; they find it missing at the next collective.
pub struct NvshmemFabric {
    pub(super) world: Arc<NvshmemWorld>,
    pub(super) node: Arc<Node>,
    pub(super) heap: Mutex<Heap>,
    /// The words that kernels look at.
    pub(super) words: Option<Chunk>,
    pub(super) sources: Sources,
    staging: Mutex<Staging>,
    watch: Option<thread::JoinHandle<()>>,
}

impl NvshmemFabric {
    /// Starts the watch.
    pub(super) fn start(world: Arc<NvshmemWorld>, node: Arc<Node>, words: Chunk) -> Result<Self, Error> {
        let staging = Mutex::new(Staging::new(&world.context)?);
        let watched = node.clone();
        let started = thread::Builder::new().name("watch".to_owned()).spawn(move || watched.watch());
        let watch = started.map_err(|error| Error::Stream {
            call: "fabric",
            stream: "watch",
            reason: error.to_string(),
        })?;
        let (heap, sources) = (Mutex::default(), Sources::default());
        Ok(Self { world, node, heap, words: Some(words), sources, staging, watch: Some(watch) })
    }

    /// The device's context.
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.world.context
    }

    /// A stream of the caller's, for puts and waits in order with its work. One stream may be adopted several times.
    /// Collectives wait for what the fabric has queued on it, and leave other work alone.
    ///
    /// # Errors
    /// [`Error::Stream`] when there are too many.
    pub fn adopt(&self, stream: &Arc<CudaStream>, name: &'static str) -> Result<NvshmemStream, Error> {
        self.add(stream, (name, Share::Fabrics))
    }

    fn add(
        &self,
        stream: &Arc<CudaStream>,
        (name, drains): (&'static str, Share),
    ) -> Result<NvshmemStream, Error> {
        let core = self.node.add(|index| Core::new(&self.node, (name, drains), stream.clone(), index));
        let full =
            || Error::Stream { call: "stream", stream: name, reason: "a rank has at most 128".to_owned() };
        core.map(|core| NvshmemStream { core }).ok_or_else(full)
    }

    /// Lets puts read `sources` in place while `body` runs, and does not wait for them at the end.
    ///
    /// # Safety
    /// The sources stay as they are until the streams with puts that name them have come past those puts.
    pub unsafe fn lend<R>(&self, sources: &[DeviceSource<'_>], body: impl FnOnce(&[RegionId]) -> R) -> R {
        let scope = Scope::lent(&self.sources, sources);
        body(&scope.ids)
    }

    pub(super) fn check_alive(&self, call: &'static str) -> Result<(), Error> {
        self.node.aborted(call).map_or(Ok(()), Err)
    }

    pub(super) fn check_pe(&self, call: &'static str, pe: Pe) -> Result<(), Error> {
        let world = self.world().size();
        if pe.index() < world { Ok(()) } else { Err(Error::NoSuchPe { call, pe, world }) }
    }

    pub(super) fn check_signal(&self, call: &'static str, signal: SignalId) -> Result<(), Error> {
        self.node.block.check_signal(call, signal, self.node.signals.load(Ordering::Acquire))
    }

    /// The stream's queue, if it is one of this fabric's.
    fn core<'a>(&self, call: &'static str, stream: &'a NvshmemStream) -> Result<&'a Arc<Core>, Error> {
        let core = &stream.core;
        if self.node.cores().iter().any(|mine| Arc::ptr_eq(mine, core)) {
            return Ok(core);
        }
        let reason = format!("it is not one of {}'s in this group", self.node.me);
        Err(Error::Stream { call, stream: core.name, reason })
    }

    /// A copy by addresses; nothing when it moves nothing.
    fn locate(&self, heap: &Heap, to: Pe, copy: Copy2d) -> Result<Option<Move>, Error> {
        let call = "put_signal";
        let unknown = |region| Error::UnknownRegion { call, region };
        let Copy2d { src, dst, width, rows } = copy;
        let source = self.sources.find(src.region);
        let src_len = source.map(|source| source.len).or_else(|| heap.len(src.region));
        copy.check_side(src, src_len.ok_or(unknown(src.region))?)?;
        copy.check_side(dst, heap.len(dst.region).ok_or(unknown(dst.region))?)?;
        if copy.bytes() == 0 {
            return Ok(None);
        }
        let from = match source {
            Some(source) => source.address + src.offset as u64,
            None => heap.address(self.node.me, src.region, src.offset).ok_or(unknown(src.region))?,
        };
        let into = heap.address(to, dst.region, dst.offset).ok_or(unknown(dst.region))?;
        let (dst_pitch, src_pitch) = (dst.pitch, src.pitch);
        Ok(Some(Move { dst: into, src: from, width, rows, dst_pitch, src_pitch }))
    }
}

impl Fabric for NvshmemFabric {
    type Stream = NvshmemStream;
    type Source<'a> = DeviceSource<'a>;

    fn me(&self) -> Pe {
        self.node.me
    }

    fn world(&self) -> World {
        self.node.block.sizes().world
    }

    fn alloc(&self, bytes: Bytes, deadline: Duration) -> Result<RegionId, Error> {
        let call = Notice::Alloc.name();
        self.meet(Ask::Alloc(bytes), deadline)?;
        let taken = self.heap.lock().take(bytes);
        if let Some(region) = taken {
            return Ok(region);
        }
        self.grow(bytes, deadline)?;
        let full = Error::NoMemory { call, pe: self.node.me, wanted: bytes };
        self.heap.lock().take(bytes).ok_or(full)
    }

    /// Drains my streams first, those that were adopted included: peers' memory is then free of my puts.
    fn free(&self, region: RegionId, deadline: Duration) -> Result<(), Error> {
        let call = Notice::Free.name();
        self.check_alive(call)?;
        self.drain_all(call, Deadline::after(deadline))?;
        self.meet(Ask::Free(region), deadline)?;
        let mut heap = self.heap.lock();
        heap.len(region).ok_or(Error::UnknownRegion { call, region })?;
        let Some(chunk) = heap.give(region) else { return Ok(()) };
        drop(heap);
        self.world.collective(call, |session| {
            chunk.free(session);
            Ok(())
        })
    }

    fn alloc_signals(&self, count: u32, deadline: Duration) -> Result<SignalId, Error> {
        let call = Notice::AllocSignals.name();
        self.meet(Ask::Signals(count), deadline)?;
        let made = &self.node.signals;
        let first = made.load(Ordering::Acquire);
        match first.checked_add(count).filter(|all| *all <= self.world.config.signals) {
            Some(all) => made.store(all, Ordering::Release),
            None => {
                let wanted = Bytes(count as usize * ALIGNMENT);
                return Err(Error::NoMemory { call, pe: self.node.me, wanted });
            }
        }
        Ok(SignalId(first))
    }

    fn stream(&self, name: &'static str) -> Result<NvshmemStream, Error> {
        let stream = self.world.context.new_stream().named("cuStreamCreate")?;
        self.add(&stream, (name, Share::All))
    }

    fn put_signal(&self, stream: &NvshmemStream, put: Put<'_>) -> Result<(), Error> {
        self.put_all(stream, &[put])
    }

    fn put_all(&self, stream: &NvshmemStream, puts: &[Put<'_>]) -> Result<(), Error> {
        let call = "put_signal";
        let core = self.core(call, stream)?;
        puts.iter().try_for_each(|put| self.check_pe(call, put.to))?;
        self.check_alive(call)?;
        let mut work = Work::default();
        let heap = self.heap.lock();
        for put in puts {
            for copy in put.copies {
                work.moves.extend(self.locate(&heap, put.to, *copy)?);
            }
        }
        drop(heap);
        for (to, post) in puts.iter().filter_map(|put| Some((put.to, put.post?))) {
            self.check_signal(call, post.signal)?;
            let value = post.value.0;
            work.ops.push(MemOp::Write { address: self.word_of(to, post.signal)?, value });
            work.ops.push(MemOp::Write { address: self.node.device(At::Signal(to, post.signal)), value });
        }
        let named = puts.iter().flat_map(|put| put.copies).map(|copy| copy.src.region);
        // SAFETY: heap addresses were checked against their regions, which are only freed when streams are drained;
        // sources stay until their scope ends; words are in the block and in the table of words.
        self.sources.track(core, named, || unsafe { core.push(&self.node, work) })
    }

    fn follow(&self, stream: &NvshmemStream, after: &NvshmemStream) -> Result<(), Error> {
        let call = "follow";
        let (core, after) = (self.core(call, stream)?, self.core(call, after)?);
        core.stream.join(&after.stream).named("cuStreamWaitEvent")
    }

    fn publish(&self, number: u64, note: Note) {
        self.node.block.write_note(self.node.me, number, note);
    }

    fn published(&self, pe: Pe, number: u64) -> Result<Option<Note>, Error> {
        self.check_pe("published", pe)?;
        Ok(self.node.block.read_note(pe, number))
    }

    fn wait_on(&self, stream: &NvshmemStream, wait: Wait, deadline: Duration) -> Result<(), Error> {
        let call = "wait_on";
        let core = self.core(call, stream)?;
        self.check_pe(call, wait.peer)?;
        self.check_signal(call, wait.signal)?;
        self.check_alive(call)?;
        let address = self.node.device(At::Signal(self.node.me, wait.signal));
        let ops = vec![MemOp::Wait { address, at_least: wait.at_least.0 }];
        let work = Work { moves: Vec::new(), ops, wait: Some((wait, deadline)) };
        // SAFETY: the word is in the block, which outlives the streams.
        unsafe { core.push(&self.node, work) }.map(drop)
    }

    fn wait(&self, wait: Wait, deadline: Duration) -> Result<Duration, Error> {
        let (call, node) = ("wait", &*self.node);
        self.check_pe(call, wait.peer)?;
        self.check_signal(call, wait.signal)?;
        let poll = || {
            // The word first: one that was only let go of is as high as this, but then the abort is known.
            let seen = node.seen(wait.signal);
            match node.aborted(call) {
                Some(error) => Some(Err(error)),
                None => (seen >= wait.at_least).then_some(Ok(())),
            }
        };
        match poll_until(Deadline::after(deadline), poll) {
            Ok(waited) => waited.value.map(|()| waited.time),
            Err(expired) => {
                let report = node.report(wait, node.seen(wait.signal), expired.waited);
                Err(node.expire(call, report))
            }
        }
    }

    fn seen(&self, signal: SignalId) -> Result<Epoch, Error> {
        self.check_signal("seen", signal)?;
        Ok(self.node.seen(signal))
    }

    fn synchronize(&self, stream: &NvshmemStream, deadline: Duration) -> Result<Duration, Error> {
        let call = "synchronize";
        let core = self.core(call, stream)?;
        match core.drain_share(&self.node, (call, Share::All), Deadline::after(deadline)) {
            Ok(waited) => self.check_alive(call).map(|()| waited),
            Err(error @ Error::Drain { waited, .. }) => {
                let label = Label { stage: core.name, piece: 0 };
                let me = self.node.me;
                match self.node.raise(Report { waited, ..Report::plain(me, me, label) }) {
                    true => {
                        self.node.fail(&error);
                        Err(error)
                    }
                    false => Err(self.node.aborted(call).unwrap_or(error)),
                }
            }
            Err(error) => {
                self.node.fail(&error);
                Err(error)
            }
        }
    }

    fn barrier(&self, deadline: Duration) -> Result<(), Error> {
        self.meet(Ask::Barrier, deadline)
    }

    fn with_sources<R>(&self, sources: &[DeviceSource<'_>], body: impl FnOnce(&[RegionId]) -> R) -> R {
        let scope = Scope::open(&self.sources, &self.node, sources);
        body(&scope.ids)
    }

    fn load(&self, span: Span) -> Result<Vec<u8>, Error> {
        let from = self.heap.lock().find("load", self.node.me, span)?;
        let mut bytes = vec![0; span.len];
        // SAFETY: the span is in my heap, whose regions are freed only by a call of this rank.
        unsafe { self.staging.lock().download(from, &mut bytes, self.world.config.patience) }?;
        Ok(bytes)
    }

    fn store(&self, span: Span, bytes: &[u8]) -> Result<(), Error> {
        if span.len != bytes.len() {
            return Err(Error::OutOfRange { call: "store", span, region_len: Bytes(bytes.len()) });
        }
        let into = self.heap.lock().find("store", self.node.me, span)?;
        // SAFETY: as in `load`.
        unsafe { self.staging.lock().upload(into, bytes, self.world.config.patience) }
    }

    fn peer_address(&self, pe: Pe, span: Span) -> Option<PeerAddress> {
        self.check_pe("peer_address", pe).ok()?;
        self.heap.lock().find("peer_address", pe, span).ok().map(PeerAddress)
    }

    fn status(&self) -> Result<(), Error> {
        self.node.failure().map_or_else(|| self.check_alive("status"), Err)
    }

    fn abort(&self, report: Report) {
        self.node.raise(report);
    }

    fn recover(&self, deadline: Duration) -> Result<Incarnation, Error> {
        let (node, call, begin) = (&*self.node, Notice::Recover.name(), Deadline::after(deadline));
        // Whoever recovers from what only this rank knows takes the others along.
        node.raise(Report::plain(node.me, node.me, Label { stage: call, piece: 0 }));
        node.release();
        self.drain_all(call, begin)?;
        node.forget_failure();
        self.meet(Ask::Recover, deadline)?;
        Ok(self.incarnation())
    }

    fn incarnation(&self) -> Incarnation {
        let count = self.node.block.word(At::Incarnation).load(Ordering::Acquire);
        Incarnation(u32::try_from(count).unwrap_or(u32::MAX))
    }
}

impl Drop for NvshmemFabric {
    fn drop(&mut self) {
        /// For work that was queued; a stream that waits is let go of.
        const PATIENCE: Duration = Duration::from_secs(5);
        let node = &self.node;
        if thread::panicking() {
            node.raise(Report::plain(node.me, node.me, Label { stage: "panic", piece: 0 }));
        }
        let number = node.block.word(At::Departures).fetch_add(1, Ordering::AcqRel) + 1;
        node.block.word(At::Left(node.me)).store(number, Ordering::Release);
        let released = || {
            node.release();
            node.cores().iter().all(|core| core.is_drained(node)).then_some(())
        };
        if poll_until(Deadline::after(PATIENCE), released).is_err() {
            // The device may still write to the block: it must stay mapped.
            std::mem::forget(node.clone());
        }
        node.end();
        if let Some(watch) = self.watch.take() {
            // A watch that panicked has nothing more to say.
            _ = watch.join();
        }
    }
}

impl std::fmt::Debug for NvshmemFabric {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NvshmemFabric({} of {})", self.node.me, self.world().size())
    }
}
