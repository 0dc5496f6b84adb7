//! The checker finds what can go wrong: each kind of damage to a good plan breaks a rule.
use cp_overlap::plan::{CpPlan, Pass, Stage, check};
use cp_overlap::{Error, Problem, Sharding, Tunables};
use fm3_kernels::mask::MaskDims;
use fm3_kernels::{DType, Dims, FlashMask, Shape};
use symm_buffer::{Bytes, Pe, Step, World};

fn problem() -> Problem {
    let dims = Dims { batch: 2, heads_q: 4, heads_kv: 2, seq_q: 1200, seq_k: 1200, head_dim: 32 };
    let mask = MaskDims { batch: 2, heads: 2, seq_q: 1200, seq_k: 1200 };
    let mask = FlashMask::sliding_window(mask, 500).unwrap();
    let sharding = Sharding::dual_chunk(1200, World::new(3).unwrap()).unwrap();
    let tunables = Tunables { heads_per_piece: Some(1), rows_per_piece: Some(256), ..Tunables::h200() };
    Problem::new(Shape::new(dims).unwrap(), mask, sharding, DType::Bf16, tunables).unwrap()
}

/// The rule that the damaged plan breaks.
fn broken(damage: impl FnOnce(&mut CpPlan)) -> &'static str {
    let problem = problem();
    let mut plan = CpPlan::build(&problem).unwrap();
    check(&plan, &problem).unwrap();
    damage(&mut plan);
    match check(&plan, &problem) {
        Err(Error::BrokenPlan { rule, .. }) => rule,
        other => panic!("the damage was not found: {other:?}"),
    }
}

/// The same damage to the forward and the backward of rank 1 breaks the same rule.
fn broken_in_both(damage: impl Fn(&mut Pass)) -> &'static str {
    let forward = broken(|plan| damage(&mut plan.ranks[1].forward));
    let backward = broken(|plan| damage(&mut plan.ranks[1].backward));
    assert_eq!(forward, backward);
    forward
}

/// Index of the first remote piece.
fn remote(pass: &Pass) -> usize {
    pass.pieces.iter().position(|piece| piece.arrival.is_some()).unwrap()
}

#[test]
fn lost_doubled_and_misdirected_pushes() {
    let once = "each arrival has one push of its owner";
    let steps = "steps are positions in the segment, and grow";
    let dropped = broken_in_both(|pass| {
        let push = pass.pushes.pop().unwrap();
        pass.totals.bytes_to[push.to.index()].0 -= push.bytes.0;
    });
    assert_eq!(dropped, once);
    let doubled = broken_in_both(|pass| {
        let push = pass.pushes.last().unwrap().clone();
        pass.totals.bytes_to[push.to.index()].0 += push.bytes.0;
        pass.totals.bytes_mask_blind.0 += push.bytes.0;
        pass.pushes.push(push);
    });
    assert_eq!(doubled, steps);
    assert_eq!(broken_in_both(|pass| pass.pushes[0].arrival.step = Step(0)), steps);
    assert_eq!(broken_in_both(|pass| pass.pushes[0].arrival.step.0 += 1), steps);
    let other_place = broken_in_both(|pass| {
        let arrival = &mut pass.pushes[0].arrival;
        std::mem::swap(&mut arrival.k, &mut arrival.v);
    });
    assert_eq!(other_place, once);
    assert_eq!(broken_in_both(|pass| pass.pushes[0].to = Pe(1)), "peers are other ranks of the world");
    assert_eq!(broken_in_both(|pass| pass.pushes[0].to = Pe(9)), "peers are other ranks of the world");
}

#[test]
fn swapped_steps_and_stages() {
    let swapped = broken_in_both(|pass| {
        let to = pass.pushes[0].to;
        let second = pass.pushes.iter().skip(1).position(|push| push.to == to).unwrap() + 1;
        let step = pass.pushes[second].arrival.step;
        pass.pushes[second].arrival.step = std::mem::replace(&mut pass.pushes[0].arrival.step, step);
    });
    assert_eq!(swapped, "steps are positions in the segment, and grow");
    let waits_backwards = broken_in_both(|pass| {
        let owner = pass.pieces[remote(pass)].owner;
        let of_owner: Vec<usize> = (0..pass.stages.len())
            .filter(
                |at| matches!(pass.stages[*at], Stage::Attend(piece) if pass.pieces[piece].owner == owner),
            )
            .collect();
        pass.stages.swap(of_owner[0], of_owner[1]);
    });
    assert_eq!(waits_backwards, "each arrival has one push of its owner");
    let stages = "each piece and reduce is one stage";
    assert_eq!(broken_in_both(|pass| pass.stages.truncate(pass.stages.len() - 1)), stages);
    assert_eq!(broken_in_both(|pass| pass.stages.push(pass.stages[0])), stages);
    assert_eq!(broken_in_both(|pass| pass.stages[0] = Stage::Attend(99)), stages);
}

#[test]
fn overlapping_misaligned_and_outside_places() {
    let onto_first = |pass: &mut Pass| {
        let first = remote(pass);
        let k = pass.pieces[first].arrival.unwrap().k;
        pass.pieces[first].arrival.as_mut().unwrap().v = k;
    };
    assert_eq!(broken_in_both(onto_first), "gather places are disjoint");
    let off_by = |pass: &mut Pass| {
        let first = remote(pass);
        pass.pieces[first].arrival.as_mut().unwrap().k.0 += 2;
    };
    assert_eq!(broken_in_both(off_by), "places are aligned");
    let shrunk = broken(|plan| plan.ranks.iter_mut().for_each(|rank| rank.memory.gather_half = Bytes(128)));
    assert_eq!(shrunk, "places are inside the memory");
    let receive = broken(|plan| {
        let reduces = &mut plan.ranks[1].backward.reduces;
        reduces[1].slot_dk = reduces[0].slot_dk;
    });
    assert_eq!(receive, "receive slots are disjoint");
    let send = broken(|plan| {
        let pass = &mut plan.ranks[1].backward;
        let first = remote(pass);
        let departure = pass.pieces[first].departure.as_mut().unwrap();
        departure.send_dv = departure.send_dk;
    });
    assert_eq!(send, "send slots are disjoint");
}

#[test]
fn missing_and_doubled_work() {
    let once = "each needed block comes once";
    let unneeded = broken_in_both(|pass| {
        let first = remote(pass);
        pass.pieces[first].block.needed[0].clear();
    });
    assert_eq!(unneeded, once);
    assert_eq!(broken_in_both(|pass| pass.pieces[0].block.heads = 1..2), once);
    let outside = broken_in_both(|pass| pass.pieces[0].block.rows.end += 128);
    assert_eq!(outside, "blocks lie inside their segment on block edges");
    let twice = broken_in_both(|pass| {
        let mut piece = pass.pieces[0].clone();
        piece.block.heads = 0..1;
        pass.stages.insert(0, Stage::Attend(pass.pieces.len()));
        pass.pieces.push(piece);
    });
    assert_eq!(twice, once);
}

#[test]
fn partials_lost_doubled_and_too_early() {
    let once = "each partial is reduced once";
    let dropped = broken(|plan| {
        let pass = &mut plan.ranks[1].backward;
        pass.stages.pop();
        pass.reduces.pop();
    });
    assert_eq!(dropped, once);
    let doubled = broken(|plan| {
        let end = plan.ranks[1].memory.receive_half.0;
        let pass = &mut plan.ranks[1].backward;
        let mut reduce = pass.reduces[0].clone();
        // A free place, so that only the count is wrong.
        (reduce.slot_dk, reduce.slot_dv) = (Bytes(end), Bytes(end + (1 << 20)));
        pass.stages.push(Stage::Reduce(pass.reduces.len()));
        pass.reduces.push(reduce);
        plan.ranks.iter_mut().for_each(|rank| rank.memory.receive_half.0 += 1 << 21);
    });
    assert_eq!(doubled, once);
    let kept = broken(|plan| {
        let pass = &mut plan.ranks[1].backward;
        let first = remote(pass);
        pass.pieces[first].departure = None;
    });
    assert_eq!(kept, "remote pieces arrive, and their partials leave");
    let cycle = broken(|plan| {
        for rank in &mut plan.ranks {
            // Everybody adds up what peers send before sending anything.
            rank.backward.stages.sort_by_key(|stage| matches!(stage, Stage::Attend(_)));
        }
    });
    assert_eq!(cycle, "waits form no cycle");
    let forward = broken(|plan| {
        let reduces = plan.ranks[1].backward.reduces.clone();
        let pass = &mut plan.ranks[1].forward;
        pass.stages.extend((0..reduces.len()).map(Stage::Reduce));
        pass.reduces = reduces;
    });
    assert_eq!(forward, "the forward reduces nothing");
}

#[test]
fn wrong_sums() {
    let stated = broken_in_both(|pass| pass.pushes[0].bytes.0 += 2);
    assert_eq!(stated, "transfers state their bytes");
    let total = broken_in_both(|pass| pass.totals.bytes_to[0].0 += 2);
    assert_eq!(total, "totals are the sums of the transfers");
    let work = "totals state pairs, flops and mask-blind bytes";
    assert_eq!(broken_in_both(|pass| pass.totals.flops += 1), work);
    assert_eq!(broken_in_both(|pass| pass.totals.pairs -= 1), work);
    assert_eq!(broken_in_both(|pass| pass.totals.bytes_mask_blind = Bytes(0)), work);
}

#[test]
fn ranks_that_disagree() {
    assert_eq!(broken(|plan| plan.ranks.truncate(2)), "one plan per rank");
    assert_eq!(broken(|plan| plan.ranks.swap(0, 1)), "plans are in rank order");
    assert_eq!(broken(|plan| plan.ranks[2].digest.mask ^= 1), "the digest is that of the problem");
    let same = "choice, memory and dtype are the same everywhere";
    assert_eq!(broken(|plan| plan.ranks[2].memory.send.0 += 128), same);
    assert_eq!(broken(|plan| plan.ranks[2].dtype = DType::F32), same);
    assert_eq!(broken(|plan| plan.ranks[2].segments.swap(1, 2)), "segments are in gather order");
    assert_eq!(broken(|plan| plan.ranks[2].segments.truncate(2)), "segments are in gather order");
}
