//! Calls of a prepared set in random order, with ranks that sleep at random: every result has the bits of the first.
use std::time::Duration;

use fm_cp::{Prepared, ShardingKind};
use half::bf16;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::problem::{Memory, Problem};
use super::processes::{Machine, Part};
use super::scenarios::{case, config};
use super::support::Case;

/// Calls of a test on a GPU, and where attention is computed on the CPU.
const CALLS: [usize; 2] = [2000, 40];

/// A problem of the set; K and V differ from one to the next, so that keys of an earlier call are wrong ones.
struct Member {
    prepared: Prepared,
    memory: Memory<bf16>,
    first: Option<Vec<u32>>,
}

/// All ranks draw the same numbers: what is called, who sleeps when. Whether a call is timed each rank has for itself.
pub(crate) fn random(part: &Part) {
    let seed: u64 = part.scenario.split(':').nth(1).unwrap().parse().unwrap();
    let machine = Machine::meet(part);
    let mut group = machine.group(&config());
    let stream = machine.context().new_stream().unwrap();
    let mut members: Vec<Member> = problems(part)
        .iter()
        .map(|problem| {
            let shape = problem.case.shape::<bf16>();
            let prepared = group.prepare(&problem.mask, shape, &problem.sharding).unwrap();
            Member { prepared, memory: Memory::new(&stream, problem, part.rank as usize), first: None }
        })
        .collect();
    let simulated = machine.context().name().unwrap().contains("gpu-sim");
    let (mut rng, mut own) =
        (ChaCha8Rng::seed_from_u64(seed), ChaCha8Rng::seed_from_u64(seed + 1 + u64::from(part.rank)));
    let mut calls = 0;
    while calls < CALLS[usize::from(simulated)] {
        // A few at once, each of another member, as each has memory for one.
        let first = rng.random_range(0..members.len());
        let burst: Vec<usize> = (first..members.len()).chain(0..first).take(rng.random_range(1..4)).collect();
        let mut handles = Vec::new();
        for at in &burst {
            let (sleeper, micros) = (rng.random_range(0..part.ranks), rng.random_range(0..1500));
            if sleeper == part.rank {
                std::thread::sleep(Duration::from_micros(micros));
            }
            group.measure(own.random_bool(0.3));
            let Member { prepared, memory, .. } = &mut members[*at];
            memory.poison(&stream);
            handles.push(memory.call(&mut group, prepared, &stream).unwrap());
        }
        for (at, handle) in burst.into_iter().zip(handles) {
            handle.wait().unwrap();
            let Member { memory, first, .. } = &mut members[at];
            let bits = memory.bits(&stream);
            let same = *first.get_or_insert_with(|| bits.clone()) == bits;
            assert!(same, "call {calls} of seed {seed}: member {at} has other bits than its first");
            calls += 1;
        }
    }
    for (member, problem) in members.iter().zip(problems(part)) {
        member.memory.check(&stream, &problem.expected::<bf16>(part.rank as usize), "last");
    }
    group.close().unwrap();
    machine.end();
}

fn problems(part: &Part) -> Vec<Problem> {
    let kinds = [ShardingKind::DualChunk, ShardingKind::Contiguous];
    let masks = ["causal", "full", "document", "sliding-window", "causal", "full"];
    let of = |(turn, mask): (usize, &str)| {
        let (seq, heads_q) = ([384, 260, 512][turn % 3], [2, 4][turn % 2]);
        let kind = kinds[usize::from(turn == 4)];
        Problem::new(Case { kind, seq, heads_q, seed: 100 + turn as u64, ..case(part) }, mask)
    };
    masks.into_iter().enumerate().map(of).collect()
}
