//! Turns of the deterministic dQ, as a model: blocks of a device in random interleavings, over the block lists of random
//! masks. Every 64 rows are added to in one order, nobody waits for ever; and two mutants do.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#[allow(dead_code, unreachable_pub, reason = "others use the rest")]
#[path = "gpu_common/masks.rs"]
mod masks;
mod turns;

use std::ops::Range;

use fm3_kernels::FlashMask;
use fm3_kernels::mask::{Columns, KeySegments, ListAt, MaskDims, MaskTables};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use turns::clock::{Walk, makespan};
use turns::schedule::{Launch, Positions, Problem, Rule};
use turns::world::{End, Grid, Sums, World};

const GRIDS: [usize; 4] = [1, 2, 3, 132];

/// The kernel's grid: all blocks may run.
const fn grid(blocks: usize) -> Grid {
    Grid { blocks, resident: blocks, first_by_number: false }
}

/// A problem with a raw random mask over random segments.
fn random_problem(seed: u64) -> Problem {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut pick = |of: &[usize]| of[random.random_range(0..of.len())];
    let (batch, heads_kv, group) = (pick(&[1, 2, 3]), pick(&[1, 2, 3]), pick(&[1, 2, 3, 4]));
    let heads_q = heads_kv * group;
    let divisors: Vec<usize> = (1..=heads_q).filter(|heads| heads_q.is_multiple_of(*heads)).collect();
    let (mask_batch, heads) = (pick(&[1, batch]), pick(&divisors));
    let seq_q = pick(&[1, 64, 65, 128, 200, 640, 1000]);
    let rows: Vec<usize> = (0..pick(&[1, 2, 3, 5])).map(|_| pick(&[1, 128, 130, 300, 700])).collect();
    let section_heads = pick(&[1, 2, 3, 100]).min(batch * heads_kv);
    let section_ranks = pick(&[0, 1, 2, 5, 100]);
    let segments = KeySegments::new(rows).unwrap();
    let dims = MaskDims { batch: mask_batch, heads, seq_q, seq_k: segments.seq_k() };
    let tables = MaskTables::build(&masks::raw(dims, &mut random), &segments).unwrap();
    Problem { tables, batch, heads_q, heads_kv, section_heads, section_ranks }
}

/// One head, as many key tiles as row tiles.
fn square(tiles: usize, mask: impl Fn(MaskDims) -> FlashMask) -> Problem {
    let dims = MaskDims { batch: 1, heads: 1, seq_q: 128 * tiles, seq_k: 128 * tiles };
    let tables = MaskTables::build(&mask(dims), &KeySegments::whole(dims.seq_k).unwrap()).unwrap();
    Problem { tables, batch: 1, heads_q: 1, heads_kv: 1, section_heads: 1, section_ranks: tiles }
}

/// Keys that more and more rows see: the last key tile has most work.
fn growing(dims: MaskDims) -> FlashMask {
    let rows = |column: usize| i32::try_from(column / 128 * 128 + 128).unwrap();
    let bounds = (0..dims.seq_k).flat_map(|column| [rows(column), 0]).collect();
    FlashMask::new(dims, Columns::Two, false, bounds).unwrap()
}

/// All launches one after the other, as the stream has them.
fn run(problem: &Problem, ranges: &[Range<usize>], (rule, grid): (Rule, Grid), seed: u64) -> (End, Sums) {
    let mut positions = Positions::new(problem);
    let mut sums = vec![Vec::new(); problem.targets()];
    for (index, range) in ranges.iter().enumerate() {
        let launch = Launch::new(problem, range.clone(), &mut positions);
        let world = World::new((problem, &launch, &positions), rule, grid, seed + 1000 * index as u64);
        match world.run(&mut sums) {
            End::Done => {}
            end @ End::Deadlock { .. } => return (end, sums),
        }
    }
    (End::Done, sums)
}

/// One launch over all keys.
fn run_whole(problem: &Problem, how: (Rule, Grid), seed: u64) -> (End, Sums) {
    run(problem, std::slice::from_ref(&(0..problem.key_tiles())), how, seed)
}

/// What T1 says, from the schedule and the lists of the key tiles alone: tiles in the order of the counter.
fn expected(problem: &Problem, ranges: &[Range<usize>]) -> Sums {
    let mut positions = Positions::new(problem);
    let mut sums = vec![Vec::new(); problem.targets()];
    let group = problem.heads_q / problem.heads_kv;
    let per_mask = problem.heads_q / problem.tables.dims.heads;
    for range in ranges {
        let launch = Launch::new(problem, range.clone(), &mut positions);
        for tile in (0..launch.tiles).map(|number| launch.locate(problem, number)) {
            for query_head in tile.kv_head * group..(tile.kv_head + 1) * group {
                let sequence = if problem.tables.dims.batch == 1 { 0 } else { tile.batch };
                let head = sequence * problem.tables.dims.heads + query_head / per_mask;
                for entry in problem.tables.by_keys.list(ListAt { head, tile: tile.key_tile }) {
                    let first = (entry >> 2) as usize * 2;
                    let blocks = (first..first + 2).filter(|block| block * 64 < problem.tables.dims.seq_q);
                    let start = (tile.batch * problem.heads_q + query_head) * problem.row_tiles() * 2;
                    blocks.for_each(|block| sums[start + block].push(tile.key_tile));
                }
            }
        }
    }
    sums
}

/// One launch, or a few over the tiles cut at random places and shuffled.
fn random_ranges(tiles: usize, random: &mut ChaCha8Rng) -> Vec<Range<usize>> {
    let mut cuts: Vec<usize> =
        (0..random.random_range(0..4)).map(|_| random.random_range(0..=tiles)).chain([0, tiles]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut ranges: Vec<_> = cuts.windows(2).map(|pair| pair[0]..pair[1]).collect();
    let len = ranges.len();
    ranges.rotate_left(random.random_range(0..len));
    ranges
}

#[test]
fn every_row_is_added_to_in_one_order_and_nobody_waits_for_ever() {
    let mut longest = 0;
    for seed in 0..150 {
        let problem = random_problem(seed);
        let mut random = ChaCha8Rng::seed_from_u64(seed ^ 0xA5);
        let ranges = random_ranges(problem.key_tiles(), &mut random);
        let wanted = expected(&problem, &ranges);
        longest = longest.max(wanted.iter().map(Vec::len).max().unwrap());
        for blocks in GRIDS {
            for run_seed in 0..3 {
                let (end, sums) = run(&problem, &ranges, (Rule::Position, grid(blocks)), seed + 7 * run_seed);
                assert_eq!(end, End::Done, "seed {seed}, {blocks} blocks, run {run_seed}, {ranges:?}");
                assert!(sums == wanted, "seed {seed}, {blocks} blocks, run {run_seed}, {ranges:?}");
            }
        }
    }
    assert!(longest > 10, "{longest}: the lists are too short to show anything");
}

/// Many more tiles than blocks, all shapes of work.
#[test]
fn long_schedules_end_on_few_blocks_and_on_many() {
    let all = [
        square(60, |dims| FlashMask::full(dims).unwrap()),
        square(60, |dims| FlashMask::causal(dims).unwrap()),
        square(60, growing),
        square(60, |dims| FlashMask::sliding_window(dims, 1000).unwrap()),
    ];
    for (index, problem) in all.iter().enumerate() {
        let ranges = [20..50, 50..60, 0..20];
        let wanted = expected(problem, &ranges);
        for blocks in GRIDS {
            let (end, sums) = run(problem, &ranges, (Rule::Position, grid(blocks)), 3);
            assert_eq!(end, End::Done, "problem {index}, {blocks} blocks");
            assert!(sums == wanted, "problem {index}, {blocks} blocks");
        }
    }
}

/// Multiprocessors that others hold are no reason to hang: blocks start when one ends.
#[test]
fn blocks_that_cannot_start_yet_hold_up_nobody() {
    for seed in 0..40 {
        let problem = random_problem(seed);
        let wanted = expected(&problem, std::slice::from_ref(&(0..problem.key_tiles())));
        for resident in [1, 2, 5] {
            let few = Grid { resident, ..grid(12) };
            let (end, sums) = run_whole(&problem, (Rule::Position, few), seed);
            assert_eq!(end, End::Done, "seed {seed}, {resident} of 12 blocks run");
            assert!(sums == wanted, "seed {seed}, {resident} of 12 blocks run");
        }
    }
}

/// The mutant of T1: with turns by index, tiles in the order of work wait for tiles that nobody holds.
#[test]
fn turns_by_index_hang() {
    let problem = square(300, growing);
    for blocks in GRIDS {
        let (end, _) = run_whole(&problem, (Rule::Index, grid(blocks)), 1);
        assert!(matches!(end, End::Deadlock { .. }), "{blocks} blocks: {end:?}");
        let (end, _) = run_whole(&problem, (Rule::Position, grid(blocks)), 1);
        assert_eq!(end, End::Done, "{blocks} blocks");
    }
    // Causal work falls with the index, so that one launch ends; local keys first do not.
    let causal = square(20, |dims| FlashMask::causal(dims).unwrap());
    for blocks in [1, 2, 3] {
        let (end, _) = run(&causal, &[10..20, 0..10], (Rule::Index, grid(blocks)), 1);
        assert!(matches!(end, End::Deadlock { .. }), "{blocks} blocks: {end:?}");
    }
}

/// The mutant of the counter: a tile that belongs to a block from the start, and the block does not run yet.
#[test]
fn tiles_given_out_by_block_number_hang_when_a_block_does_not_run() {
    let problem = square(8, |dims| FlashMask::full(dims).unwrap());
    let by_number = Grid { blocks: 4, resident: 3, first_by_number: true };
    let (end, _) = run_whole(&problem, (Rule::Position, by_number), 1);
    assert!(matches!(end, End::Deadlock { .. }), "{end:?}");
    let counted = Grid { first_by_number: false, ..by_number };
    assert_eq!(run_whole(&problem, (Rule::Position, counted), 1).0, End::Done);
    let all_run = Grid { resident: 4, ..by_number };
    assert_eq!(run_whole(&problem, (Rule::Position, all_run), 1).0, End::Done);
}

/// Why rows are walked from the end: tiles that add first then come first, and turns cost little.
#[test]
fn rows_from_the_end_wait_little() {
    let problem = |mask: &dyn Fn(MaskDims) -> FlashMask| Problem {
        heads_q: 16,
        heads_kv: 16,
        section_heads: 4,
        section_ranks: 64,
        ..square(64, mask)
    };
    let all: [(&str, &dyn Fn(MaskDims) -> FlashMask); 3] = [
        ("full", &|dims| FlashMask::full(dims).unwrap()),
        ("causal", &|dims| FlashMask::causal(dims).unwrap()),
        ("window", &|dims| FlashMask::sliding_window(dims, 1024).unwrap()),
    ];
    for (name, mask) in all {
        let problem = problem(mask);
        let time = |walk| makespan(&problem, 132, walk) as f64;
        let [end, start] = [Walk::FromEnd, Walk::FromStart].map(|walk| time(Walk::Unordered) / time(walk));
        println!("{name}: {end:.2} of the rate without turns from the end, {start:.2} from the start");
        assert!(end > 0.9, "{name}: {end}");
        assert!(name == "full" || start < 0.75, "{name}: {start}");
    }
}
