//! Several calls in a row, all ranks together: nobody waits for ever, and nothing is written before its reader is done.
//!
//! One run stands for all schedules. A signal has one writer and only grows, so a step that can be taken stays one that
//! can be taken: the order in which ranks move cannot change how far they come. What a wait teaches is that of the first
//! post that satisfies it, and whether a write comes after a read follows from the steps that the writer knows its peer
//! to have taken, not from when the run took them.
use std::collections::VecDeque;

use symm_buffer::{Pe, Step};

use super::broken;
use super::program::{Buffer, Op, Program};
use crate::Error;
use crate::exec::{PassKind, SignalKind};
use crate::plan::CpPlan;

/// Each pass three times in a row, so that it meets its own halves again; and more calls than a ring of hellos holds.
const CALLS: [PassKind; 7] = {
    use PassKind::{Backward, Forward};
    [Forward, Forward, Forward, Backward, Backward, Backward, Forward]
};
/// A hello lies in a ring of four.
const HELLO_RING: usize = 4;

pub(super) fn check(plan: &CpPlan) -> Result<(), Error> {
    let world = plan.ranks.len();
    let of = |kind| plan.ranks.iter().map(|rank| Program::new(rank, kind, world)).collect();
    Run::new(&Programs { forward: of(PassKind::Forward), backward: of(PassKind::Backward) }).all_calls()
}

/// The passes of all ranks.
struct Programs {
    forward: Vec<Program>,
    backward: Vec<Program>,
}

/// Call and place in its program; `(c, usize::MAX)` is the end of call c.
type At = (usize, usize);

/// One signal word: posts that its owner has not waited for yet, and the last one that it has.
#[derive(Clone, Default)]
struct Word {
    posts: VecDeque<(u64, At)>,
    awaited: u64,
}

struct Run<'a> {
    programs: &'a Programs,
    world: usize,
    call: usize,
    /// Place of each rank in its program.
    next: Vec<usize>,
    /// [kind, owner, writer]
    words: Vec<Word>,
    /// [rank, peer]: steps of the peer that the rank knows to have been taken.
    known: Vec<Option<At>>,
    /// For each rank and lane whether puts may still be under way.
    queued: Vec<[bool; 3]>,
    /// Posts of attention that the others do not see yet.
    held: Option<Vec<(usize, (u64, At))>>,
}

impl<'a> Run<'a> {
    fn new(programs: &'a Programs) -> Self {
        let world = programs.forward.len();
        Self {
            programs,
            world,
            call: 0,
            next: vec![0; world],
            words: vec![Word::default(); SignalKind::ALL.len() * world * world],
            known: vec![None; world * world],
            queued: vec![[false; 3]; world],
            held: None,
        }
    }

    fn all_calls(&mut self) -> Result<(), Error> {
        for call in 0..CALLS.len() {
            self.call = call;
            self.next.fill(0);
            self.together(Some(Op::Compute))?;
            self.attention_needs_pushes_only()?;
            self.together(None)?;
            for rank in 0..self.world {
                // With that send slots need no check: within a call each partial has its own.
                if self.queued[rank].iter().any(|queued| *queued) {
                    return broken(pe(rank), "a call ends when its puts have left", format!("call {call}"));
                }
            }
        }
        Ok(())
    }

    /// Every rank goes on to the end, or stops before `until`.
    fn together(&mut self, until: Option<Op>) -> Result<(), Error> {
        loop {
            let (mut moved, mut stuck) = (false, None);
            for rank in 0..self.world {
                moved |= self.advance(rank, until)?;
                stuck = stuck.or((!self.is_at(rank, until)).then_some(rank));
            }
            match stuck {
                None => return Ok(()),
                Some(rank) if !moved => return self.cycle(rank),
                Some(_) => {}
            }
        }
    }

    /// Rules R1 to R3: attention waits for pushes that were queued before any attention began. So each rank comes to
    /// the end of its attention though no other rank's attention begins.
    fn attention_needs_pushes_only(&mut self) -> Result<(), Error> {
        self.held = Some(Vec::new());
        for rank in 0..self.world {
            self.advance(rank, Some(Op::Attended))?;
            if !self.is_at(rank, Some(Op::Attended)) {
                let detail = format!("call {}: {:?}", self.call, self.ops(rank)[self.next[rank]]);
                return broken(pe(rank), "attention waits for nobody's attention", detail);
            }
        }
        for (word, post) in self.held.take().unwrap_or_default() {
            self.words[word].posts.push_back(post);
        }
        Ok(())
    }

    fn advance(&mut self, rank: usize, until: Option<Op>) -> Result<bool, Error> {
        let mut moved = false;
        while !self.is_at(rank, until) && self.step(rank)? {
            self.next[rank] += 1;
            moved = true;
        }
        Ok(moved)
    }

    fn is_at(&self, rank: usize, until: Option<Op>) -> bool {
        let next = self.ops(rank).get(self.next[rank]);
        next.is_none() || next == until.as_ref()
    }

    fn ops(&self, rank: usize) -> &'a [Op] {
        &self.program(rank, self.call).ops
    }

    fn program(&self, rank: usize, call: usize) -> &'a Program {
        match CALLS[call] {
            PassKind::Forward => &self.programs.forward[rank],
            PassKind::Backward => &self.programs.backward[rank],
        }
    }

    /// Takes the next step of a rank if it can be taken.
    fn step(&mut self, rank: usize) -> Result<bool, Error> {
        match self.ops(rank)[self.next[rank]] {
            Op::Wait { kind, peer, ago, step } => return Ok(self.wait(rank, (kind, peer), (ago, step))),
            Op::Put { lane, to, kind, step } => {
                self.may_write(rank, to, kind)?;
                self.queued[rank][lane as usize] = true;
                let (word, value) = (self.word(kind, to, pe(rank)), value(self.uses(kind), step));
                let post = (value, (self.call, self.next[rank]));
                match &mut self.held {
                    Some(held) => held.push((word, post)),
                    None => self.words[word].posts.push_back(post),
                }
            }
            Op::Drain => self.queued[rank] = [false; 3],
            Op::Compute | Op::Read(_) | Op::Attended | Op::Compared => {}
        }
        Ok(true)
    }

    /// Whether the word is high enough; then the rank learns what its writer had done when it posted.
    fn wait(&mut self, rank: usize, (kind, peer): (SignalKind, Pe), (ago, step): (u64, Step)) -> bool {
        let Some(at) = self.uses(kind).checked_sub(ago) else { return true };
        let (word, wanted) = (self.word(kind, pe(rank), peer), value(at, step));
        let word = &mut self.words[word];
        let mut learnt = None;
        while word.awaited < wanted {
            let Some((value, at)) = word.posts.pop_front() else { return false };
            (word.awaited, learnt) = (value, Some(at));
        }
        let known = &mut self.known[rank * self.world + peer.index()];
        *known = (*known).max(learnt);
        true
    }

    /// Whether `rank` knows that `to` has read what a put of this call overwrites there.
    fn may_write(&self, rank: usize, to: Pe, kind: SignalKind) -> Result<(), Error> {
        let (rule, read) = match kind {
            SignalKind::Ready => {
                ("a gather half is written after its last read", self.last_read(to, Buffer::Gather))
            }
            SignalKind::Partial => {
                ("receive slots are written after their last read", self.last_read(to, Buffer::Slots))
            }
            // What was said in call c is compared by the end of call c + 1.
            SignalKind::Hello => {
                let call = (self.call + 1).checked_sub(HELLO_RING);
                let compared = |call| Some((call, self.program(to.index(), call).last(Op::Compared)?));
                ("a hello is written after it was compared", call.filter(|call| *call > 0).and_then(compared))
            }
            SignalKind::GatherFree | SignalKind::SlotFree => return Ok(()),
        };
        let known = self.known[rank * self.world + to.index()];
        match read {
            Some(read) if known.is_none_or(|known| known <= read) => broken(
                pe(rank),
                rule,
                format!("call {} to {to}, last read {read:?}, known {known:?}", self.call),
            ),
            _ => Ok(()),
        }
    }

    /// Where `owner` last reads the half of a buffer that this call writes again.
    fn last_read(&self, owner: Pe, buffer: Buffer) -> Option<At> {
        let uses = |call: &usize| buffer == Buffer::Gather || CALLS[*call] == PassKind::Backward;
        let before_last = (0..self.call).rev().filter(uses).nth(1)?;
        Some((before_last, self.program(owner.index(), before_last).last(Op::Read(buffer))?))
    }

    /// The use of a kind's buffer in this call.
    fn uses(&self, kind: SignalKind) -> u64 {
        let slots = matches!(kind, SignalKind::Partial | SignalKind::SlotFree);
        let before = &CALLS[..self.call];
        before.iter().filter(|pass| !slots || **pass == PassKind::Backward).count() as u64
    }

    fn word(&self, kind: SignalKind, owner: Pe, writer: Pe) -> usize {
        (kind as usize * self.world + owner.index()) * self.world + writer.index()
    }

    /// Nobody can move: who waits for whom, from `rank` on until somebody comes twice.
    fn cycle(&self, mut rank: usize) -> Result<(), Error> {
        let (first, mut told, mut met) = (rank, String::new(), vec![false; self.world]);
        while !std::mem::replace(&mut met[rank], true) {
            let Some(Op::Wait { kind, peer, step, .. }) = self.ops(rank).get(self.next[rank]) else { break };
            told += &format!("{} waits for {peer} in '{}' step {}; ", pe(rank), kind.stage(), step.0);
            rank = peer.index();
        }
        broken(pe(first), "waits form no cycle", format!("call {}: {told}for ever", self.call))
    }
}

/// As in an epoch; above 0, which stands for no post.
fn value(at: u64, step: Step) -> u64 {
    at << 12 | u64::from(step.0)
}

fn pe(rank: usize) -> Pe {
    Pe(u32::try_from(rank).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use fm3_kernels::mask::{Columns, MaskDims};
    use fm3_kernels::{DType, Dims, FlashMask, Shape};
    use symm_buffer::World;

    use super::super::program::Lane;
    use super::*;
    use crate::{Problem, Sharding, Tunables};

    /// Four ranks of 128 rows each.
    fn programs(mask: FlashMask) -> Programs {
        let dims = Dims { batch: 1, heads_q: 2, heads_kv: 2, seq_q: 512, seq_k: 512, head_dim: 16 };
        let sharding = Sharding::contiguous(512, World::new(4).unwrap()).unwrap();
        let shape = Shape::new(dims).unwrap();
        let problem = Problem::new(shape, mask, sharding, DType::Bf16, Tunables::h200()).unwrap();
        let plan = CpPlan::build(&problem).unwrap();
        let of = |kind| plan.ranks.iter().map(|rank| Program::new(rank, kind, 4)).collect();
        Programs { forward: of(PassKind::Forward), backward: of(PassKind::Backward) }
    }

    const DIMS: MaskDims = MaskDims { batch: 1, heads: 1, seq_q: 512, seq_k: 512 };

    fn causal() -> FlashMask {
        FlashMask::causal(DIMS).unwrap()
    }

    /// Each rank sees its own rows only, so ranks exchange hellos and frees alone.
    fn apart() -> FlashMask {
        let bounds = (0..512).map(|key| (key / 128 + 1) * 128).collect();
        FlashMask::new(DIMS, Columns::One, true, bounds).unwrap()
    }

    /// The rule that is broken after `edit` of all ranks' programs.
    fn broken_by(mask: FlashMask, edit: impl Fn(&mut Vec<Op>)) -> &'static str {
        let mut programs = programs(mask);
        let Programs { forward, backward } = &mut programs;
        forward.iter_mut().chain(backward).for_each(|program| edit(&mut program.ops));
        match Run::new(&programs).all_calls() {
            Err(Error::BrokenPlan { rule, .. }) => rule,
            other => panic!("not found: {other:?}"),
        }
    }

    fn without(ops: &mut Vec<Op>, gone: impl Fn(&Op) -> bool) {
        ops.retain(|op| !gone(op));
    }

    fn without_waits(ops: &mut Vec<Op>, kinds: &[SignalKind]) {
        without(ops, |op| matches!(op, Op::Wait { kind, .. } if kinds.contains(kind)));
    }

    #[test]
    fn the_executor_as_it_is_passes() {
        for mask in [causal(), apart(), FlashMask::full(DIMS).unwrap()] {
            Run::new(&programs(mask)).all_calls().unwrap();
        }
    }

    #[test]
    fn each_missing_wait_is_found() {
        use SignalKind::{GatherFree, Hello, Ready, SlotFree};
        let gather = broken_by(causal(), |ops| without_waits(ops, &[GatherFree]));
        assert_eq!(gather, "a gather half is written after its last read");
        // A partial goes to a rank whose keys were waited for, and those it pushed after its call before: so the slots
        // are guarded three times.
        let slots = broken_by(causal(), |ops| {
            without_waits(ops, &[SlotFree, Hello, Ready]);
            without(ops, |op| matches!(op, Op::Put { kind: Hello, .. }));
        });
        assert_eq!(slots, "receive slots are written after their last read");
        let hello = broken_by(apart(), |ops| without_waits(ops, &[Hello]));
        assert_eq!(hello, "a hello is written after it was compared");
        let drain = broken_by(causal(), |ops| without(ops, |op| *op == Op::Drain));
        assert_eq!(drain, "a call ends when its puts have left");
    }

    #[test]
    fn each_missing_post_is_a_wait_without_end() {
        use SignalKind::{GatherFree, Hello, Partial, Ready};
        for (lost, rule) in [
            (Hello, "attention waits for nobody's attention"),
            (Ready, "attention waits for nobody's attention"),
            (GatherFree, "waits form no cycle"),
            (Partial, "waits form no cycle"),
        ] {
            let is_lost = |op: &Op| matches!(op, Op::Put { kind, .. } if *kind == lost);
            assert_eq!(broken_by(causal(), |ops| without(ops, is_lost)), rule, "{lost:?}");
        }
    }

    /// Takes steps out and puts them in before the first `before`.
    fn moved(ops: &mut Vec<Op>, before: Op, which: impl Fn(&Op) -> bool) {
        let taken: Vec<Op> = ops.iter().copied().filter(&which).collect();
        ops.retain(|op| !which(op));
        let at = ops.iter().position(|op| *op == before).unwrap();
        ops.splice(at..at, taken);
    }

    #[test]
    fn a_half_freed_before_its_last_read_is_found() {
        let is_free = |op: &Op| matches!(op, Op::Put { kind: SignalKind::GatherFree, .. });
        let early = broken_by(causal(), |ops| moved(ops, Op::Compute, is_free));
        assert_eq!(early, "a gather half is written after its last read");
    }

    #[test]
    fn a_push_after_attention_breaks_its_rules() {
        let is_push = |op: &Op| matches!(op, Op::Put { lane: Lane::Push, .. });
        let late = broken_by(causal(), |ops| moved(ops, Op::Attended, is_push));
        assert_eq!(late, "attention waits for nobody's attention");
    }
}
