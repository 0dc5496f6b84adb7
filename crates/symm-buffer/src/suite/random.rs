//! Random programs against a plain model: what a sequential machine would leave in every heap.
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::{Backend, LONG, Rank, WORLDS, below, pattern, wait_for, word};
use crate::{Bytes, Copy2d, Corner, Fabric, Pe, Post, Put, RegionId, SignalId, Span};

/// Each heap is a target of `ROWS` rows of `PITCH` bytes, cut into cells; a cell has one writer in a round.
const ROWS: usize = 16;
/// Bytes of a row.
const PITCH: usize = 192;
/// Rows and columns of a cell.
const CELL: [usize; 2] = [4, 24];
/// Bytes that puts read from.
const ORIGIN: usize = 2000;
/// Streams of a rank.
const STREAMS: usize = 3;
/// Rounds of a program; between two of them all ranks meet.
const ROUNDS: u64 = 4;

/// A put in the program.
#[derive(Clone, Debug)]
struct Op {
    from: Pe,
    to: Pe,
    stream: usize,
    src: usize,
    src_pitch: usize,
    dst: usize,
    width: usize,
    rows: usize,
    /// From a registered source, not from the heap.
    registered: bool,
    /// Its number among the puts of this stream to this rank.
    step: u32,
}

/// Programs from several seeds; a failure prints the seed.
pub fn random_programs<B: Backend>(backend: &B) {
    for (seed, ranks) in (0_u64..10).zip(WORLDS.into_iter().cycle()) {
        backend.run(ranks, &|fabric| {
            let rank = Rank::new(&fabric);
            let region = fabric.alloc(Bytes(ROWS * PITCH + ORIGIN), LONG).unwrap();
            let signals = u32::try_from(STREAMS).unwrap() * ranks;
            let first = fabric.alloc_signals(signals, LONG).unwrap();
            let streams: Vec<_> = (0..STREAMS).map(|_| fabric.stream("random").unwrap()).collect();
            let target = Span { region, offset: 0, len: ROWS * PITCH };
            fabric.store(target, &vec![0; target.len]).unwrap();
            let mut model = vec![vec![0; target.len]; ranks as usize];
            for round in 1..=ROUNDS {
                let program = program(seed << 8 | round, ranks);
                fabric.store(origin_span(region), &origin(seed, round, rank.me())).unwrap();
                fabric.barrier(LONG).unwrap();
                let registered = origin(seed, round, Pe(rank.me().0 + 100));
                B::with_sources(&fabric, &[&registered], |ids| {
                    queue(&rank, &streams, &program, Names { heap: region, source: ids[0], first, round });
                });
                apply(&mut model, &program, seed, round);
                arrive(&rank, &program, first, round);
                let got = fabric.load(target).unwrap();
                assert!(got == model[rank.me().index()], "seed {seed}, round {round}, {}", rank.me());
                for stream in &streams {
                    fabric.synchronize(stream, LONG).unwrap();
                }
                fabric.barrier(LONG).unwrap();
            }
        });
    }
}

fn origin(seed: u64, round: u64, pe: Pe) -> Vec<u8> {
    pattern(seed << 32 | round << 16 | u64::from(pe.0), ORIGIN)
}

fn origin_span(region: RegionId) -> Span {
    Span { region, offset: ROWS * PITCH, len: ORIGIN }
}

/// All puts of a round, of all ranks: some of the cells of every heap get a writer and a stream of it.
fn program(seed: u64, ranks: u32) -> Vec<Op> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut steps = vec![0; (ranks * ranks) as usize * STREAMS];
    let mut ops = Vec::new();
    let cells =
        (0..ROWS / CELL[0]).flat_map(|r| (0..PITCH / CELL[1]).map(move |c| (r * CELL[0], c * CELL[1])));
    for (to, (row, column)) in (0..ranks).flat_map(|to| cells.clone().map(move |cell| (to, cell))) {
        if below(&mut random, 4) == 0 {
            continue;
        }
        let from = u32::try_from(below(&mut random, ranks as usize)).unwrap();
        let stream = below(&mut random, STREAMS);
        let (rows, width) = (below(&mut random, CELL[0] + 1), below(&mut random, CELL[1] + 1));
        let dst = (row + below(&mut random, CELL[0] - rows + 1)) * PITCH
            + column
            + below(&mut random, CELL[1] - width + 1);
        let src_pitch = width + below(&mut random, 50);
        let src = below(&mut random, ORIGIN - CELL[0] * src_pitch);
        let registered = below(&mut random, 2) == 0;
        let step = &mut steps[(from * ranks + to) as usize * STREAMS + stream];
        *step += 1;
        let (from, to, step) = (Pe(from), Pe(to), *step);
        ops.push(Op { from, to, stream, src, src_pitch, dst, width, rows, registered, step });
    }
    ops
}

/// What the program calls its memory and words, in this world.
#[derive(Clone, Copy)]
struct Names {
    heap: RegionId,
    source: RegionId,
    first: SignalId,
    round: u64,
}

fn queue<F: Fabric>(rank: &Rank<'_, F>, streams: &[F::Stream], program: &[Op], names: Names) {
    let Names { heap, source, first, round } = names;
    for op in program.iter().filter(|op| op.from == rank.me()) {
        let (region, base) = if op.registered { (source, 0) } else { (heap, origin_span(heap).offset) };
        let src = Corner { region, offset: base + op.src, pitch: op.src_pitch };
        let dst = Corner { region: heap, offset: op.dst, pitch: PITCH };
        let copies = &[Copy2d { src, dst, width: op.width, rows: op.rows }];
        let signal = word(first, op.from.index() * STREAMS + op.stream);
        let post = Post { signal, value: rank.epoch(round, op.step) };
        if op.step % 5 == 0 {
            // A wait for something that was there in the round before holds nothing up.
            let before = Post { signal, value: rank.epoch(0, 0) };
            rank.fabric.wait_on(&streams[op.stream], wait_for(op.from, before), LONG).unwrap();
        }
        let put = Put { to: op.to, copies, post: Some(post) };
        rank.fabric.put_signal(&streams[op.stream], put).unwrap();
    }
}

fn arrive<F: Fabric>(rank: &Rank<'_, F>, program: &[Op], first: SignalId, round: u64) {
    for op in program.iter().filter(|op| op.to == rank.me()) {
        let signal = word(first, op.from.index() * STREAMS + op.stream);
        rank.wait(op.from, Post { signal, value: rank.epoch(round, op.step) });
    }
}

fn apply(model: &mut [Vec<u8>], program: &[Op], seed: u64, round: u64) {
    for op in program {
        let from = origin(seed, round, if op.registered { Pe(op.from.0 + 100) } else { op.from });
        for row in 0..op.rows {
            let (src, dst) = (op.src + row * op.src_pitch, op.dst + row * PITCH);
            model[op.to.index()][dst..dst + op.width].copy_from_slice(&from[src..src + op.width]);
        }
    }
}
