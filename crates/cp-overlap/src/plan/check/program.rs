//! What the executor does with one rank's pass of a plan, written down as the steps of its calling thread.
//!
//! It mirrors `exec/call.rs` in the order of its waits and puts. Streams need no programs: nothing ever waits on them
//! (rule R3), so a put that is queued is done some time before the next [`Op::Drain`].
use symm_buffer::{Pe, Step};

use crate::exec::{PassKind, SignalKind};
use crate::plan::{Piece, RankPlan, Stage};

/// A buffer in two halves that peers write and its owner reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Buffer {
    Gather,
    Slots,
}

/// Streams on which puts are queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Push,
    Reduce,
    Control,
}

/// One step of a rank's calling thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Waits for `peer`'s word at this rank: `step` of the use `ago` uses before this one, if there was one.
    Wait { kind: SignalKind, peer: Pe, ago: u64, step: Step },
    /// Queues a put to `to` that ends with `step` of this use in this rank's word there.
    Put { lane: Lane, to: Pe, kind: SignalKind, step: Step },
    /// Attention begins: all pushes are queued.
    Compute,
    /// Reads this use of a buffer.
    Read(Buffer),
    /// All remote pieces and local tails are attended to.
    Attended,
    /// Hellos of the use before are compared.
    Compared,
    /// Waits until this rank's puts are done.
    Drain,
}

/// One pass of one rank.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) ops: Vec<Op>,
}

impl Program {
    /// The pass as `exec` walks it. Indices were checked before.
    pub(super) fn new(plan: &RankPlan, kind: PassKind, world: usize) -> Self {
        let mut writer =
            Writer { ops: Vec::new(), me: plan.rank.index(), world, slot_free: vec![false; world] };
        let backward = kind == PassKind::Backward;
        let pass = if backward { &plan.backward } else { &plan.forward };
        writer.tell_all(SignalKind::Hello);
        let mut free = vec![false; world];
        for push in &pass.pushes {
            if !std::mem::replace(&mut free[push.to.index()], true) {
                writer.wait(SignalKind::GatherFree, push.to, 2, Step(1));
            }
        }
        for push in &pass.pushes {
            writer.put(Lane::Push, push.to, SignalKind::Ready, push.arrival.step);
        }
        writer.ops.push(Op::Compute);
        let mut attending = true;
        for stage in &pass.stages {
            match *stage {
                Stage::Attend(piece) => writer.attend(&pass.pieces[piece]),
                Stage::Reduce(reduce) => {
                    if std::mem::take(&mut attending) {
                        writer.ops.push(Op::Attended);
                    }
                    let reduce = &pass.reduces[reduce];
                    writer.wait(SignalKind::Hello, reduce.from, 0, Step(1));
                    writer.wait(SignalKind::Partial, reduce.from, 0, reduce.step);
                    writer.ops.push(Op::Read(Buffer::Slots));
                }
            }
        }
        if attending {
            writer.ops.push(Op::Attended);
        }
        writer.finish(backward);
        Self { ops: writer.ops }
    }

    /// Where a step stands for the last time.
    pub(super) fn last(&self, op: Op) -> Option<usize> {
        self.ops.iter().rposition(|found| *found == op)
    }
}

struct Writer {
    ops: Vec<Op>,
    me: usize,
    world: usize,
    slot_free: Vec<bool>,
}

impl Writer {
    fn wait(&mut self, kind: SignalKind, peer: Pe, ago: u64, step: Step) {
        self.ops.push(Op::Wait { kind, peer, ago, step });
    }

    fn put(&mut self, lane: Lane, to: Pe, kind: SignalKind, step: Step) {
        self.ops.push(Op::Put { lane, to, kind, step });
    }

    fn peers(&self) -> impl Iterator<Item = Pe> + use<> {
        let me = self.me;
        (0..).map(Pe).take(self.world).filter(move |peer| peer.index() != me)
    }

    fn tell_all(&mut self, kind: SignalKind) {
        for to in self.peers() {
            self.put(Lane::Control, to, kind, Step(1));
        }
    }

    fn attend(&mut self, piece: &Piece) {
        if let Some(arrival) = piece.arrival {
            self.wait(SignalKind::Hello, piece.owner, 0, Step(1));
            self.wait(SignalKind::Ready, piece.owner, 0, arrival.step);
            self.ops.push(Op::Read(Buffer::Gather));
        }
        if let Some(departure) = piece.departure {
            if !std::mem::replace(&mut self.slot_free[piece.owner.index()], true) {
                self.wait(SignalKind::SlotFree, piece.owner, 2, Step(1));
            }
            self.put(Lane::Reduce, piece.owner, SignalKind::Partial, departure.step);
        }
    }

    fn finish(&mut self, backward: bool) {
        for peer in self.peers() {
            self.wait(SignalKind::Hello, peer, 1, Step(1));
        }
        self.ops.push(Op::Compared);
        self.tell_all(SignalKind::GatherFree);
        if backward {
            self.tell_all(SignalKind::SlotFree);
        }
        self.ops.push(Op::Drain);
    }
}
