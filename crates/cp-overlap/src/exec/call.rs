//! One call in flight: the executor's side of [`Readiness`].
use std::time::{Duration, Instant};

use fm3_kernels::view::Strides;
use symm_buffer::buffer::SepBytes;
use symm_buffer::layout::Part;
use symm_buffer::{Bytes, Epoch, Fabric, Notice, Pe, Post, Put, RegionId, SignalId, Step, Use};

use super::report::{Blocked, CallReport, PassKind, Queued};
use super::signals::SignalKind;
use super::source::{HeadRow, partial_copies, push_copies};
use super::{CallSpec, Overlap, State, failure, hello, pass_of};
use crate::plan::{Departure, Pass, RankPlan};
use crate::{Compute, Error, PairSpans, Readiness};

pub(crate) struct Call<'a, F: Fabric> {
    fabric: &'a F,
    state: &'a mut State<F>,
    plan: &'a RankPlan,
    pass: &'a Pass,
    kind: PassKind,
    /// Use of the gather buffer, and number of the call.
    at: Use,
    /// Use of the receive slots; backward only.
    slots_at: Option<Use>,
    started: Instant,
    waits: Vec<Blocked>,
    bytes_to: Vec<Bytes>,
    /// Peers whose receive slots are known to be free.
    slot_free: Vec<bool>,
    /// Partials held back until attention is over (overlap off).
    held: Vec<usize>,
}

impl<'a, F: Fabric> Call<'a, F> {
    /// Begins the next use of the buffers and tells everybody which plan it is.
    pub(crate) fn begin(fabric: &'a F, state: &'a mut State<F>, spec: CallSpec<'a>) -> Result<Self, Error> {
        let CallSpec { pass: kind, plan, .. } = spec;
        let started = Instant::now();
        let at = state.gather.begin();
        let slots_at = (kind == PassKind::Backward).then(|| state.slots.begin());
        let world = fabric.world().size();
        let mut call = Self {
            fabric,
            state,
            plan,
            pass: pass_of(plan, kind),
            kind,
            at,
            slots_at,
            started,
            waits: Vec::new(),
            bytes_to: vec![Bytes(0); world],
            slot_free: vec![false; world],
            held: Vec::new(),
        };
        let begun = call.agree_and_reserve(hello::words(&spec));
        begun.map_err(|error| call.explain(error)).map(|()| call)
    }

    /// Pushes, attends, frees, drains.
    pub(crate) fn run<C: Compute + ?Sized>(
        mut self,
        kv: [(RegionId, Strides); 2],
        compute: &mut C,
    ) -> Result<CallReport, Error> {
        match self.walk(kv, compute) {
            Ok(busy) => Ok(self.report(busy)),
            Err(error) => Err(self.explain(error)),
        }
    }

    fn walk<C: Compute + ?Sized>(
        &mut self,
        kv: [(RegionId, Strides); 2],
        compute: &mut C,
    ) -> Result<Duration, Error> {
        self.push_all(kv)?;
        if self.state.settings.overlap == Overlap::Off {
            for piece in 0..self.pass.pieces.len() {
                self.piece(piece)?;
            }
        }
        self.stage_edge()?;
        let (before, start) = (self.exposed(), Instant::now());
        match self.kind {
            PassKind::Forward => compute.forward(self.plan, self)?,
            PassKind::Backward => compute.backward(self.plan, self)?,
        }
        let busy = start.elapsed().saturating_sub(self.exposed() - before);
        self.send_held()?;
        self.stage_edge()?;
        self.finish()?;
        Ok(busy)
    }

    fn agree_and_reserve(&mut self, words: hello::Words) -> Result<(), Error> {
        let Self { fabric, state, plan, .. } = self;
        state.hello.say(*fabric, &state.control, self.at, words)?;
        let (memory, deadline) = (plan.memory, state.settings.collective_deadline());
        let slots = match self.slots_at {
            Some(_) => SepBytes { send: memory.send, receive: memory.receive_half },
            None => SepBytes::default(),
        };
        let room = state.slots.room();
        let grows = memory.gather_half > state.gather.half()
            || slots.send > room.send
            || slots.receive > room.receive;
        if grows {
            // Growth is collective: make sure first that everybody runs this plan and will grow too.
            self.agree_with_all(self.at)?;
            let Self { fabric, state, .. } = self;
            state.gather.ensure(*fabric, memory.gather_half, deadline)?;
            state.slots.ensure(*fabric, slots, deadline)?;
        }
        Ok(())
    }

    fn agree_with_all(&mut self, up_to: Use) -> Result<(), Error> {
        for peer in self.fabric.world().before(self.fabric.me()) {
            self.agree_with(peer, up_to)?;
        }
        Ok(())
    }

    fn agree_with(&mut self, peer: Pe, up_to: Use) -> Result<(), Error> {
        let deadline = self.state.settings.deadline;
        let blocked = self.state.hello.check(self.fabric, peer, up_to, deadline)?;
        self.record(SignalKind::Hello.stage(), peer, 0, blocked);
        Ok(())
    }

    /// Queues all pushes on the push stream, after the receivers' halves are free (rules R3, S4).
    fn push_all(&mut self, kv: [(RegionId, Strides); 2]) -> Result<(), Error> {
        let mut free = vec![false; self.fabric.world().size()];
        for push in &self.pass.pushes {
            if !std::mem::replace(&mut free[push.to.index()], true) {
                self.wait_free(SignalKind::GatherFree, push.to, self.at)?;
            }
        }
        let head_row =
            HeadRow { elems: self.plan.shape.dims().head_dim, elem_size: Bytes(self.plan.dtype.size()) };
        for push in &self.pass.pushes {
            let mut copies = Vec::new();
            for (from, place) in kv.into_iter().zip([push.arrival.k, push.arrival.v]) {
                let to = self.state.gather.span(self.at, at(place))?;
                copies.extend(push_copies(push, from, (to.region, to.offset), head_row));
            }
            let post = self.post(SignalKind::Ready, (self.at, push.arrival.step))?;
            self.put(Lane::Push, push.to, &copies, post)?;
        }
        Ok(())
    }

    /// Waits until `peer` is done with the use before last of a buffer; practically always long ago.
    fn wait_free(&mut self, kind: SignalKind, peer: Pe, at: Use) -> Result<(), Error> {
        match at.0.checked_sub(2) {
            None => Ok(()),
            Some(before_last) => self.wait(kind, peer, (Use(before_last), Step(1)), 0),
        }
    }

    fn wait(&mut self, kind: SignalKind, peer: Pe, at: (Use, Step), piece: u32) -> Result<(), Error> {
        let wait = self.state.wait_for(self.fabric, (kind, peer), at, piece)?;
        let blocked = self.fabric.wait(wait, self.state.settings.deadline)?;
        self.record(kind.stage(), peer, piece, blocked);
        Ok(())
    }

    fn post(&self, kind: SignalKind, (at, step): (Use, Step)) -> Result<Post, Error> {
        let value = Epoch::new(self.fabric.incarnation(), at, step)?;
        Ok(Post { signal: self.state.signals.word(kind, self.fabric.me()), value })
    }

    fn put(&mut self, lane: Lane, to: Pe, copies: &[symm_buffer::Copy2d], post: Post) -> Result<(), Error> {
        let stream = match lane {
            Lane::Push => &self.state.push,
            Lane::Reduce => &self.state.reduce,
        };
        self.fabric.put_signal(stream, Put { to, copies, post: Some(post) })?;
        self.bytes_to[to.index()].0 += copies.iter().map(symm_buffer::Copy2d::bytes).sum::<usize>();
        if self.state.settings.sync_each_stage {
            self.fabric.synchronize(stream, self.state.settings.deadline)?;
        }
        Ok(())
    }

    fn send_partial(&mut self, piece: usize, departure: Departure) -> Result<(), Error> {
        let (pass, slots_at) = (self.pass, self.slots_at.unwrap_or(Use(0)));
        let piece = &pass.pieces[piece];
        if !std::mem::replace(&mut self.slot_free[piece.owner.index()], true) {
            self.wait_free(SignalKind::SlotFree, piece.owner, slots_at)?;
        }
        let mut copies = Vec::new();
        let routes = [(departure.send_dk, departure.slot_dk), (departure.send_dv, departure.slot_dv)];
        for (from, to) in routes {
            let from = self.state.slots.send(at(from))?;
            let to = self.state.slots.receive(slots_at, at(to))?;
            let (from, to) = ((from.region, from.offset), (to.region, to.offset));
            copies.extend(partial_copies(&piece.block, from, to, self.plan.shape.dims().head_dim));
        }
        let post = self.post(SignalKind::Partial, (slots_at, departure.step))?;
        self.put(Lane::Reduce, piece.owner, &copies, post)
    }

    fn send_held(&mut self) -> Result<(), Error> {
        for piece in std::mem::take(&mut self.held) {
            if let Some(departure) = self.pass.pieces[piece].departure {
                self.send_partial(piece, departure)?;
            }
        }
        Ok(())
    }

    /// Frees the halves, compares late hellos, and waits for this rank's own puts (rules S4, S5).
    fn finish(&mut self) -> Result<(), Error> {
        // Peers with which nothing was exchanged are compared one use later, when they have long begun.
        if let Some(before) = self.at.0.checked_sub(1) {
            self.agree_with_all(Use(before))?;
        }
        self.state.post_free(self.fabric, SignalKind::GatherFree, self.at)?;
        if let Some(at) = self.slots_at {
            self.state.post_free(self.fabric, SignalKind::SlotFree, at)?;
        }
        let deadline = self.state.settings.deadline;
        let mut blocked = Duration::ZERO;
        for stream in [&self.state.push, &self.state.reduce, &self.state.control] {
            blocked += self.fabric.synchronize(stream, deadline)?;
        }
        self.record(Notice::Drain.name(), self.fabric.me(), 0, blocked);
        Ok(())
    }

    fn stage_edge(&mut self) -> Result<(), Error> {
        if self.state.settings.sync_each_stage {
            self.fabric.barrier(self.state.settings.collective_deadline())?;
        }
        Ok(())
    }

    fn explain(&self, error: Error) -> Error {
        failure::explain(self.fabric, &self.state.hello, (self.kind, self.at), error)
    }

    fn record(&mut self, stage: &'static str, peer: Pe, piece: u32, time: Duration) {
        if time > Duration::ZERO {
            tracing::debug!(stage, peer = peer.0, piece, us = time.as_micros(), "blocked");
            self.waits.push(Blocked { stage, peer, piece, time });
        }
    }

    fn exposed(&self) -> Duration {
        self.waits.iter().map(|wait| wait.time).sum()
    }

    fn report(self, busy: Duration) -> CallReport {
        CallReport {
            rank: self.fabric.me(),
            pass: self.kind,
            elapsed: self.started.elapsed(),
            busy,
            exposed: self.exposed(),
            waits: self.waits,
            bytes_to: self.bytes_to,
            bytes_mask_blind: self.pass.totals.bytes_mask_blind,
            flops: self.pass.totals.flops,
            queued: Queued::default(),
            device: None,
        }
    }

    fn arrived(&self, piece: usize) -> Result<Option<PairSpans>, Error> {
        let Some(arrival) = self.pass.pieces[piece].arrival else { return Ok(None) };
        let len = self.plan.kv_bytes(&self.pass.pieces[piece].block);
        let span = |place: Bytes| self.state.gather.span(self.at, Part { offset: place.0, len: len.0 });
        Ok(Some(PairSpans { k: span(arrival.k)?, v: span(arrival.v)? }))
    }
}

/// Where something begins, without its length.
fn at(place: Bytes) -> Part {
    Part { offset: place.0, len: 0 }
}

/// Which stream a put takes.
#[derive(Clone, Copy)]
enum Lane {
    Push,
    Reduce,
}

impl<F: Fabric> Readiness for Call<'_, F> {
    fn piece(&mut self, piece: usize) -> Result<Option<PairSpans>, Error> {
        let pass = self.pass;
        let Some(arrival) = pass.pieces[piece].arrival else { return Ok(None) };
        let owner = pass.pieces[piece].owner;
        self.agree_with(owner, self.at)?;
        self.wait(SignalKind::Ready, owner, (self.at, arrival.step), label(piece))?;
        self.arrived(piece)
    }

    fn signal(&self, piece: usize) -> Result<Option<(SignalId, Epoch)>, Error> {
        let piece = &self.pass.pieces[piece];
        let Some(arrival) = piece.arrival else { return Ok(None) };
        let value = Epoch::new(self.fabric.incarnation(), self.at, arrival.step)?;
        Ok(Some((self.state.signals.word(SignalKind::Ready, piece.owner), value)))
    }

    fn partial_out(&mut self, piece: usize) -> Result<Option<PairSpans>, Error> {
        let piece = &self.pass.pieces[piece];
        let Some(departure) = piece.departure else { return Ok(None) };
        let len = self.plan.partial_bytes(&piece.block);
        let span = |place: Bytes| self.state.slots.send(Part { offset: place.0, len: len.0 });
        Ok(Some(PairSpans { k: span(departure.send_dk)?, v: span(departure.send_dv)? }))
    }

    fn partial_done(&mut self, piece: usize) -> Result<(), Error> {
        match (self.pass.pieces[piece].departure, self.state.settings.overlap) {
            (None, _) => Ok(()),
            (Some(_), Overlap::Off) => {
                self.held.push(piece);
                Ok(())
            }
            (Some(departure), Overlap::On) => self.send_partial(piece, departure),
        }
    }

    fn partial_in(&mut self, reduce: usize) -> Result<PairSpans, Error> {
        self.send_held()?;
        let (pass, at) = (self.pass, self.slots_at.unwrap_or(Use(0)));
        let reduce_at = &pass.reduces[reduce];
        self.agree_with(reduce_at.from, self.at)?;
        self.wait(SignalKind::Partial, reduce_at.from, (at, reduce_at.step), label(reduce))?;
        let len = self.plan.partial_bytes(&reduce_at.block);
        let span = |place: Bytes| self.state.slots.receive(at, Part { offset: place.0, len: len.0 });
        Ok(PairSpans { k: span(reduce_at.slot_dk)?, v: span(reduce_at.slot_dv)? })
    }
}

fn label(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}
