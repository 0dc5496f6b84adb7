//! Calls that return at once: everything is queued on streams, and the host waits for nobody (rules R1 to R3).
use std::sync::Arc;
use std::time::{Duration, Instant};

use fm3_kernels::view::Strides;
use symm_buffer::layout::Part;
use symm_buffer::{Bytes, Copy2d, Epoch, Fabric, Pe, Post, Put, RegionId, Span, Step, Use};

use super::handle::{End, Handle, lock};
use super::report::{Blocked, CallReport, PassKind, Queued};
use super::signals::SignalKind;
use super::source::{HeadRow, push_copies};
use super::{CallSpec, Overlap, Sources, State, Tail, notes, pause};
use crate::plan::{Pass, Push, RankPlan};
use crate::{Enqueue, Error, ReadyWords};

/// One forward call that is to be enqueued.
pub struct ForwardCall<'a, F: Fabric> {
    /// This rank's plan.
    pub plan: &'a RankPlan,
    /// Hash of whatever else must be equal on all ranks, such as the softmax scale.
    pub options: u64,
    /// Open sources: they stay as they are until `stream` has come past the call.
    pub sources: Sources<RegionId>,
    /// The caller's stream: K, V are produced there before the call, and outputs are written in its order. When it is
    /// not the stream of the session's call before, it first waits for that one.
    pub stream: &'a Arc<F::Stream>,
}

/// A call on its way into the queues.
pub(super) struct Queueing<'a, F: Fabric> {
    fabric: &'a Arc<F>,
    state: &'a mut State<F>,
    call: ForwardCall<'a, F>,
    pass: &'a Pass,
    at: Use,
    started: Instant,
    queued: Queued,
    waits: Vec<Blocked>,
    bytes_to: Vec<Bytes>,
}

impl<'a, F: Fabric> Queueing<'a, F> {
    /// Begins the next use of the gather buffer.
    pub(super) fn begin(fabric: &'a Arc<F>, state: &'a mut State<F>, call: ForwardCall<'a, F>) -> Self {
        let at = state.gather.begin();
        let (pass, bytes_to) = (&call.plan.forward, vec![Bytes(0); fabric.world().size()]);
        let (started, queued) = (Instant::now(), Queued::default());
        Self { fabric, state, call, pass, at, started, queued, waits: Vec::new(), bytes_to }
    }

    /// Which use of the gather buffer it is.
    pub(super) const fn at(&self) -> Use {
        self.at
    }

    /// Agrees, pushes, attends, frees: all of it later, in the order of the streams.
    pub(super) fn run<E: Enqueue + ?Sized>(mut self, compute: &mut E) -> Result<Handle<F>, Error> {
        self.agree()?;
        self.grow()?;
        self.follow_last()?;
        let pushes = !self.pass.pushes.is_empty();
        if pushes {
            self.follow(Lane::Push, Lane::Main)?;
            self.wait_free()?;
            self.push_all(compute)?;
            self.stage_end(Lane::Push)?;
        }
        if self.state.settings.overlap == Overlap::Off {
            self.wait_all_ready()?;
        }
        let ready = self.ready()?;
        compute.forward(self.call.plan, &ready)?;
        self.stage_end(Lane::Main)?;
        self.post_free()?;
        if pushes {
            // K and V are not free before they have left (rule S5).
            self.follow(Lane::Main, Lane::Push)?;
        }
        self.end(pushes)
    }

    fn agree(&mut self) -> Result<(), Error> {
        let CallSpec { plan, options, .. } = self.spec();
        let note = notes::note(&CallSpec { pass: PassKind::Forward, plan, options });
        let deadline = self.state.settings.deadline;
        let blocked = lock(&self.state.notes).tell(&**self.fabric, self.at, note, deadline)?;
        self.record_agreement(blocked);
        Ok(())
    }

    const fn spec(&self) -> CallSpec<'a> {
        CallSpec { pass: PassKind::Forward, plan: self.call.plan, options: self.call.options }
    }

    /// Collective, so first everybody must run this plan; and nothing may be under way in the old memory.
    fn grow(&mut self) -> Result<(), Error> {
        let half = self.call.plan.memory.gather_half;
        if half <= self.state.gather.half() {
            return Ok(());
        }
        let settings = self.state.settings;
        let blocked = lock(&self.state.notes).await_all(&**self.fabric, self.at, settings.deadline)?;
        self.record_agreement(blocked);
        if let Some(tail) = &self.state.tail {
            let start = Instant::now();
            for look in 0.. {
                if tail.end.is_reached(&**self.fabric)? {
                    break;
                }
                self.fabric.status()?;
                pause(look, start.elapsed());
            }
        }
        self.state.gather.ensure(&**self.fabric, half, settings.collective_deadline())?;
        Ok(())
    }

    /// Calls of a session are in order, also on different streams: their words only grow.
    fn follow_last(&mut self) -> Result<(), Error> {
        match &self.state.tail {
            Some(tail) if !Arc::ptr_eq(&tail.stream, self.call.stream) => {
                self.fabric.follow(self.call.stream, &tail.stream)?;
                self.queued.follows += 1;
            }
            _ => {}
        }
        Ok(())
    }

    /// The receivers' halves: the host looks, and a wait is queued only where the half is not free yet (rule R3).
    fn wait_free(&mut self) -> Result<(), Error> {
        let Some(before_last) = self.at.0.checked_sub(2).map(Use) else { return Ok(()) };
        let mut receivers: Vec<Pe> = self.pass.pushes.iter().map(|push| push.to).collect();
        receivers.sort_unstable();
        receivers.dedup();
        for to in receivers {
            let kind = SignalKind::GatherFree;
            let wait = self.state.wait_for(&**self.fabric, (kind, to), (before_last, Step(1)), 0)?;
            if self.fabric.seen(wait.signal)? < wait.at_least {
                self.fabric.wait_on(&self.state.push, wait, self.state.settings.deadline)?;
                self.queued.waits += 1;
            }
        }
        Ok(())
    }

    /// One batch per head group: the copies to all peers, then a post to each of them (rule P4). The last one also says
    /// to this rank itself that its pushes have left.
    fn push_all<E: Enqueue + ?Sized>(&mut self, compute: &mut E) -> Result<(), Error> {
        let pushes = &self.pass.pushes;
        let groups = pushes.chunk_by(|one, next| one.block.heads == next.block.heads);
        let last = groups.clone().count();
        compute.pushed(0)?;
        for (index, group) in groups.enumerate() {
            let mut puts = self.puts_of(group)?;
            if index + 1 == last {
                puts.push(self.post_to(SignalKind::Ready, self.fabric.me(), Step(1))?);
            }
            let batch: Vec<Put<'_>> =
                puts.iter().map(|(to, copies, post)| Put { to: *to, copies, post: Some(*post) }).collect();
            self.fabric.put_all(&self.state.push, &batch)?;
            self.queued.puts += 1;
            compute.pushed(index + 1)?;
            for (to, copies, _) in &puts {
                self.bytes_to[to.index()].0 += copies.iter().map(Copy2d::bytes).sum::<usize>();
            }
        }
        Ok(())
    }

    /// One put to each receiver: its pieces of the group, and the step of the last.
    fn puts_of(&self, group: &[Push]) -> Result<Vec<OwnedPut>, Error> {
        let Sources { k, v } = self.call.sources;
        let plan = self.call.plan;
        let kv: [(RegionId, Strides); 2] = [(k.memory, k.strides), (v.memory, v.strides)];
        let head_row = HeadRow { elems: plan.shape.dims().head_dim, elem_size: Bytes(plan.dtype.size()) };
        let mut puts = Vec::new();
        for pieces in group.chunk_by(|one, next| one.to == next.to) {
            let Some(Push { to, arrival: last, .. }) = pieces.last() else { continue };
            let (_, mut copies, post) = self.post_to(SignalKind::Ready, *to, last.step)?;
            for push in pieces {
                for (from, place) in kv.into_iter().zip([push.arrival.k, push.arrival.v]) {
                    let at = self.state.gather.span(self.at, Part { offset: place.0, len: 0 })?;
                    copies.extend(push_copies(push, from, (at.region, at.offset), head_row));
                }
            }
            puts.push((*to, copies, post));
        }
        Ok(puts)
    }

    /// Overlap off: the caller's stream waits for the last piece of every owner.
    fn wait_all_ready(&mut self) -> Result<(), Error> {
        let mut last = vec![None; self.fabric.world().size()];
        for piece in &self.pass.pieces {
            last[piece.owner.index()] =
                piece.arrival.map(|arrival| arrival.step).max(last[piece.owner.index()]);
        }
        for (owner, step) in self.fabric.world().ranks().zip(last) {
            let Some(step) = step else { continue };
            let wait = self.state.wait_for(
                &**self.fabric,
                (SignalKind::Ready, owner),
                (self.at, step),
                step.0 - 1,
            )?;
            self.fabric.wait_on(self.call.stream, wait, self.state.settings.deadline)?;
            self.queued.waits += 1;
        }
        Ok(())
    }

    fn ready(&self) -> Result<ReadyWords, Error> {
        let me = self.fabric.me();
        let segments = self.call.plan.segments.iter().map(|segment| segment.owner);
        let signals =
            segments.map(|owner| (owner != me).then(|| self.state.signals.word(SignalKind::Ready, owner)));
        Ok(ReadyWords {
            base: self.epoch(Step(0))?,
            signals: signals.collect(),
            half: self.half()?,
            deadline: self.state.settings.deadline,
        })
    }

    fn half(&self) -> Result<Option<Span>, Error> {
        let len = self.call.plan.memory.gather_half.0;
        match len {
            0 => Ok(None),
            len => Ok(Some(self.state.gather.span(self.at, Part { offset: 0, len })?)),
        }
    }

    /// To every peer, also where nothing was exchanged (rule S4), and to this rank itself: the outputs are written.
    fn post_free(&mut self) -> Result<(), Error> {
        let me = self.fabric.me();
        let to_all = self.fabric.world().after(me).chain([me]);
        let puts: Vec<OwnedPut> =
            to_all.map(|to| self.post_to(SignalKind::GatherFree, to, Step(1))).collect::<Result<_, _>>()?;
        let batch: Vec<Put<'_>> =
            puts.iter().map(|(to, _, post)| Put { to: *to, copies: &[], post: Some(*post) }).collect();
        self.fabric.put_all(self.call.stream, &batch)?;
        self.queued.puts += 1;
        Ok(())
    }

    fn post_to(&self, kind: SignalKind, to: Pe, step: Step) -> Result<OwnedPut, Error> {
        let signal = self.state.signals.word(kind, self.fabric.me());
        Ok((to, Vec::new(), Post { signal, value: self.epoch(step)? }))
    }

    fn epoch(&self, step: Step) -> Result<Epoch, Error> {
        Ok(Epoch::new(self.fabric.incarnation(), self.at, step)?)
    }

    fn lane(&self, lane: Lane) -> &F::Stream {
        match lane {
            Lane::Main => self.call.stream,
            Lane::Push => &self.state.push,
        }
    }

    fn follow(&mut self, lane: Lane, after: Lane) -> Result<(), Error> {
        self.fabric.follow(self.lane(lane), self.lane(after))?;
        self.queued.follows += 1;
        Ok(())
    }

    /// For debugging: a stage is over before the next one is queued.
    fn stage_end(&self, lane: Lane) -> Result<(), Error> {
        let settings = self.state.settings;
        if settings.sync_each_stage {
            self.fabric.synchronize(self.lane(lane), settings.collective_deadline())?;
        }
        Ok(())
    }

    /// The host was ahead of a peer.
    fn record_agreement(&mut self, time: Duration) {
        let behind = self.fabric.world().after(self.fabric.me()).next();
        if let Some(peer) = behind.filter(|_| time > Duration::from_micros(100)) {
            self.waits.push(Blocked { stage: SignalKind::Hello.stage(), peer, piece: 0, time });
        }
    }

    fn end(self, pushes: bool) -> Result<Handle<F>, Error> {
        let (me, value) = (self.fabric.me(), self.epoch(Step(1))?);
        let word = |kind| (self.state.signals.word(kind, me), value);
        let end = End {
            me,
            at: self.at,
            incarnation: self.fabric.incarnation(),
            attended: word(SignalKind::GatherFree),
            pushed: pushes.then(|| word(SignalKind::Ready)),
        };
        self.state.tail = Some(Tail { stream: self.call.stream.clone(), end });
        let report = CallReport {
            rank: me,
            pass: PassKind::Forward,
            elapsed: self.started.elapsed(),
            busy: Duration::ZERO,
            exposed: self.waits.iter().map(|wait| wait.time).sum(),
            waits: self.waits,
            bytes_to: self.bytes_to,
            bytes_mask_blind: self.pass.totals.bytes_mask_blind,
            flops: self.pass.totals.flops,
            queued: self.queued,
            device: None,
        };
        Ok(Handle::new(Arc::downgrade(self.fabric), self.state.notes.clone(), end, report))
    }
}

/// A put that owns its copies.
type OwnedPut = (Pe, Vec<Copy2d>, Post);

/// The streams of a call.
#[derive(Clone, Copy)]
enum Lane {
    Main,
    Push,
}
