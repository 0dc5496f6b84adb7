//! Bytes arrive whole, where they should and nowhere else, before their signal.
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{Backend, LONG, Rank, WORLDS, below, pattern, run, wait_for, word};
use crate::{Bytes, Copy2d, Corner, Fabric, Layout, Pe, Post, Put, SignalId, Span, layout::Part};

/// Every rank passes a chunk to the next.
pub fn ring<B: Backend>(backend: &B) {
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| pass_on(&Rank::new(&fabric)));
    }
}

/// The body of [`ring`], also used to show that a group works again.
pub(super) fn pass_on<F: Fabric>(rank: &Rank<'_, F>) {
    const LEN: usize = 5000;
    let (fabric, me) = (rank.fabric, rank.me());
    let region = fabric.alloc(Bytes(2 * LEN), LONG).unwrap();
    let signal = fabric.alloc_signals(1, LONG).unwrap();
    fabric.store(Span { region, offset: 0, len: LEN }, &pattern(u64::from(me.0), LEN)).unwrap();
    let post = Post { signal, value: rank.epoch(0, 1) };
    rank.put(rank.next(), &[run(Span { region, offset: 0, len: LEN }, region, LEN)], post);
    rank.wait(rank.previous(), post);
    assert_eq!(fabric.seen(signal).unwrap(), post.value);
    let got = fabric.load(Span { region, offset: LEN, len: LEN }).unwrap();
    assert!(got == pattern(u64::from(rank.previous().0), LEN), "{me} got other bytes");
    rank.synchronize();
    fabric.free(region, LONG).unwrap();
}

/// A rank puts to itself, also from a registered source.
pub fn self_put<B: Backend>(backend: &B) {
    for ranks in [1, 3] {
        backend.run(ranks, &|fabric| {
            let rank = Rank::new(&fabric);
            let region = fabric.alloc(Bytes(512), LONG).unwrap();
            let signal = fabric.alloc_signals(1, LONG).unwrap();
            let data = pattern(u64::from(rank.me().0), 256);
            let post = |step| Post { signal, value: rank.epoch(0, step) };
            B::with_sources(&fabric, &[&data], |ids| {
                rank.put(rank.me(), &[run(Span { region: ids[0], offset: 0, len: 256 }, region, 0)], post(1));
            });
            rank.put(rank.me(), &[run(Span { region, offset: 0, len: 256 }, region, 256)], post(2));
            rank.wait(rank.me(), post(2));
            let both = fabric.load(Span { region, offset: 0, len: 512 }).unwrap();
            assert_eq!(both, [data.clone(), data].concat());
        });
    }
}

/// 2-D copies from the heap and from a source, with pitches of their own; bytes between the rows stay.
pub fn pitched_copies<B: Backend>(backend: &B) {
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| {
            let rank = Rank::new(&fabric);
            for case in 0..12 {
                pitched_copy::<B>(&rank, case);
            }
        });
    }
}

fn pitched_copy<B: Backend>(rank: &Rank<'_, B::Fabric>, case: u64) {
    const LEN: usize = 4096;
    let (fabric, from_source) = (rank.fabric, case % 2 == 1);
    // All ranks draw the same numbers.
    let mut random = ChaCha8Rng::seed_from_u64(case);
    let (width, rows) = (1 + below(&mut random, 60), 1 + below(&mut random, 30));
    let pitches = [0, 1].map(|_| width + below(&mut random, 40) * below(&mut random, 2));
    let offsets = pitches.map(|pitch| below(&mut random, LEN - (rows - 1) * pitch - width + 1));
    let region = fabric.alloc(Bytes(2 * LEN), LONG).unwrap();
    let signal = fabric.alloc_signals(1, LONG).unwrap();
    let all = Span { region, offset: 0, len: 2 * LEN };
    let data = |pe: Pe| pattern(1000 * case + u64::from(pe.0), LEN);
    let mine = data(rank.me());
    let ground = [mine.clone(), vec![0xEE; LEN]].concat();
    fabric.store(all, &ground).unwrap();
    fabric.barrier(LONG).unwrap();
    let post = Post { signal, value: rank.epoch(0, 1) };
    let source = if from_source { vec![mine.as_slice()] } else { vec![] };
    B::with_sources(fabric, &source, |ids| {
        let from = ids.first().copied().unwrap_or(region);
        let src = Corner { region: from, offset: offsets[0], pitch: pitches[0] };
        let dst = Corner { region, offset: LEN + offsets[1], pitch: pitches[1] };
        rank.put(rank.next(), &[Copy2d { src, dst, width, rows }], post);
    });
    rank.wait(rank.previous(), post);
    let (theirs, mut expected) = (data(rank.previous()), ground);
    for row in 0..rows {
        let (from, to) = (offsets[0] + row * pitches[0], LEN + offsets[1] + row * pitches[1]);
        expected[to..to + width].copy_from_slice(&theirs[from..from + width]);
    }
    assert!(fabric.load(all).unwrap() == expected, "case {case} at {}", rank.me());
    rank.synchronize();
    fabric.free(region, LONG).unwrap();
}

/// Streams of each sender in [`many_pieces`].
const STREAMS: usize = 3;

/// A piece of [`many_pieces`] on its way from one rank to another.
struct Piece {
    stream: usize,
    part: Part,
    /// How many pieces of its stream there are up to here.
    step: u32,
    seed: u64,
}

/// All pieces from one rank to another, and the bytes they take; both ends compute the same.
fn pieces(from: Pe, to: Pe, count: usize) -> (Vec<Piece>, usize) {
    let mut random = ChaCha8Rng::seed_from_u64(u64::from(from.0) << 32 | u64::from(to.0));
    let (mut layout, mut steps) = (Layout::new(), [0; STREAMS]);
    let draw = |index| {
        let stream = below(&mut random, STREAMS);
        steps[stream] += 1;
        let part = layout.add(Bytes(below(&mut random, 3000))).unwrap();
        let seed = u64::from(from.0) << 48 | u64::from(to.0) << 32 | index;
        Piece { stream, part, step: steps[stream], seed }
    };
    let list = (0..count as u64).map(draw).collect();
    (list, layout.total().0)
}

/// Thousands of pieces of random sizes on several streams, each checked as soon as its signal says that it is there.
pub fn many_pieces<B: Backend>(backend: &B) {
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| {
            let (me, world) = (fabric.me(), fabric.world());
            let count = 3000 / (world.size() * world.size());
            let room = 3200 * count;
            let region = fabric.alloc(Bytes(room * world.size()), LONG).unwrap();
            let first = fabric.alloc_signals(u32::try_from(STREAMS).unwrap() * ranks, LONG).unwrap();
            let rank = Rank::new(&fabric);
            let plans: Vec<_> = world.ranks().map(|to| (to, pieces(me, to, count))).collect();
            let fill = |(_, (list, len)): &(Pe, (Vec<Piece>, usize))| {
                let mut bytes = vec![0; *len];
                for Piece { part, seed, .. } in list {
                    bytes[part.offset..part.offset + part.len].copy_from_slice(&pattern(*seed, part.len));
                }
                bytes
            };
            let data: Vec<Vec<u8>> = plans.iter().map(fill).collect();
            let slices: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            let streams: Vec<_> = (0..STREAMS).map(|_| fabric.stream("pieces").unwrap()).collect();
            B::with_sources(&fabric, &slices, |ids| {
                for index in 0..count {
                    for (to, (list, _)) in &plans {
                        let Piece { stream, part, step, .. } = list[index];
                        let copy = run(part.of(ids[to.index()]), region, room * me.index() + part.offset);
                        let signal = word(first, me.index() * STREAMS + stream);
                        let post = Some(Post { signal, value: rank.epoch(0, step) });
                        fabric.put_signal(&streams[stream], Put { to: *to, copies: &[copy], post }).unwrap();
                    }
                }
                check_pieces(&rank, count, room, Span { region, offset: 0, len: 0 }, first);
            });
            for stream in &streams {
                fabric.synchronize(stream, LONG).unwrap();
            }
        });
    }
}

fn check_pieces<F: Fabric>(rank: &Rank<'_, F>, count: usize, room: usize, at: Span, first: SignalId) {
    for from in rank.fabric.world().ranks() {
        for Piece { stream, part, step, seed } in pieces(from, rank.me(), count).0 {
            let signal = word(first, from.index() * STREAMS + stream);
            rank.wait(from, Post { signal, value: rank.epoch(0, step) });
            let offset = room * from.index() + part.offset;
            let got = rank.fabric.load(Span { offset, len: part.len, ..at }).unwrap();
            assert!(got == pattern(seed, part.len), "{} got a bad piece {seed:#x}", rank.me());
        }
    }
}

/// One stream is in order: of two puts to one place the second stays, and a word passes through all its values.
pub fn stream_order<B: Backend>(backend: &B) {
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| {
            const LEN: usize = 700;
            let rank = Rank::new(&fabric);
            let region = fabric.alloc(Bytes(3 * LEN), LONG).unwrap();
            let signal = fabric.alloc_signals(1, LONG).unwrap();
            let part = |index| Span { region, offset: LEN * index, len: LEN };
            for index in [0, 1] {
                fabric.store(part(index), &pattern(index as u64, LEN)).unwrap();
            }
            fabric.barrier(LONG).unwrap();
            let (rounds, last) = (40, 0);
            for step in 1..=rounds {
                // The same target every time, alternating; the receiver looks after the last only.
                let from = part((rounds - step) as usize % 2);
                let post = Post { signal, value: rank.epoch(0, step) };
                rank.put(rank.next(), &[run(from, region, 2 * LEN)], post);
            }
            let mut seen = fabric.seen(signal).unwrap();
            let goal = Post { signal, value: rank.epoch(0, rounds) };
            while seen < goal.value {
                let now = fabric.seen(signal).unwrap();
                assert!(seen <= now, "a signal fell from {seen} to {now}");
                let step = Post { signal, value: crate::Epoch(now.0 + 1).min(goal.value) };
                fabric.wait(wait_for(rank.previous(), step), LONG).unwrap();
                seen = now;
            }
            assert!(fabric.load(part(2)).unwrap() == pattern(last, LEN), "an earlier put won");
            rank.synchronize();
        });
    }
}
