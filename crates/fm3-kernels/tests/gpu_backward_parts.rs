//! Backward passes in parts: ranges of keys, f32 slots, slots that are added, tiles that are left out.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "slots are addresses")]
mod gpu_common;

use std::ops::Range;

use fm3_kernels::cuda::cudarc::driver::DevicePtr;
use fm3_kernels::cuda::{AddedSlot, GradAt, WrittenTiles};
use fm3_kernels::mask::{KeySegments, ListAt, MaskDims, MaskTables};
use fm3_kernels::{Dims, Element};
use gpu_common::backward::{Out, Part};
use gpu_common::case::Segmented;
use gpu_common::gradients::{Grads, check_gradients};
use gpu_common::parts::{Parted, Slots, bits, part, place_in_tile};
use gpu_common::problems::{columns, shared};
use gpu_common::{Case, Gpu, Layout, Suite, masks};
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Two to six segments of up to three lengths, several heads and masks.
fn case(seed: u64) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let lengths = [1, 127, 128, 129, 300, 385];
    let distinct: [usize; 3] = std::array::from_fn(|_| lengths[rng.random_range(0..lengths.len())]);
    let rows: Vec<usize> = (0..rng.random_range(2..7)).map(|_| distinct[rng.random_range(0..3)]).collect();
    let [heads_q, heads_kv, heads_per_group] =
        [[2, 2, 1], [4, 2, 2], [4, 4, 2], [6, 3, 3], [4, 1, 1]][rng.random_range(0..5)];
    let batch = 1 + usize::from(seed % 3 == 1);
    let (seq_q, seq_k) = (rng.random_range(1..700), rows.iter().sum());
    let dims = Dims { batch, heads_q, heads_kv, seq_q, seq_k, head_dim: 128 };
    let mask = masks::raw(MaskDims { batch, heads: heads_q, ..shared(dims) }, &mut rng);
    let layout = [Layout::Bshd, Layout::Bhsd, Layout::Gaps][rng.random_range(0..3)];
    let margin = [0, 0, 100, 131][rng.random_range(0..4)];
    let segmented = Some(Segmented { rows, heads_per_group });
    Case { layout, segmented, margin, ..Case::new("parts", dims, mask, seed) }
}

/// Runs `check` on problems of both types.
fn each(name: &'static str, seeds: Range<u64>, check: impl Fn(&mut Parted<bf16>) -> Result<(), String>) {
    let Some(_) = Gpu::new() else { return };
    let mut suite = Suite::new(name);
    for case in seeds.map(case) {
        suite.case(&case, || check(&mut Parted::new(Gpu::new().unwrap(), case.clone())));
    }
}

fn same<T: Element>(got: &Grads<T>, want: &Grads<T>) -> Result<(), String> {
    let (got, want) = (bits(got), bits(want));
    match (got[1] == want[1], got[2] == want[2]) {
        (true, true) => Ok(()),
        equal => Err(format!("(dK, dV) have the bits of one call: {equal:?}")),
    }
}

/// dK and dV of a tile do not depend on how the tiles are launched.
#[test]
fn launches_over_ranges_give_the_bits_of_one_call() {
    each("ranges", 0..12, |problem| {
        let want = problem.plain()?;
        let all = problem.all_tiles();
        let out = Out::Rounded(None);
        let tiles: Vec<Part<'_>> = (0..all).rev().map(|tile| part(tile..tile + 1, out)).collect();
        for parts in [vec![part(0..all, out)], vec![part(all / 2..all, out), part(0..all / 2, out)], tiles] {
            let got = problem.run(&parts)?;
            same(&got, &want)?;
            check_gradients(&problem.case, &problem.tensors, &got)?;
        }
        Ok(())
    });
}

/// An own slot alone, rounded, is what one call gives; and it lies as it is documented.
#[test]
fn slots_hold_the_unrounded_gradients() {
    each("slots", 0..12, |problem| {
        let want = problem.plain()?;
        let slots = Slots::new(problem);
        let count = problem.segments().len();
        let own: Vec<[AddedSlot; 1]> =
            (0..count).map(|index| [AddedSlot { slot: slots.slot(index), written: None }]).collect();
        let to_slots = problem.table(|index| GradAt { slot: Some(slots.slot(index)), ..GradAt::default() });
        let sum = problem.table(|index| GradAt { adds: &own[index], ..GradAt::default() });
        let all = 0..problem.all_tiles();
        let got = problem.run(&[part(all.clone(), Out::Slots(&to_slots)), part(all, Out::Sum(&sum))])?;
        same(&got, &want)?;
        check_gradients(&problem.case, &problem.tensors, &got)?;
        let mut first = 0;
        for index in 0..count {
            compare_slot(problem, &slots, (index, first), &want)?;
            first += problem.segments()[index].rows;
        }
        Ok(())
    });
}

fn compare_slot(
    problem: &Parted<bf16>,
    slots: &Slots,
    (index, first): (usize, usize),
    want: &Grads<bf16>,
) -> Result<(), String> {
    let Dims { batch, heads_kv, seq_k, .. } = problem.case.dims;
    let rows = problem.segments()[index].rows;
    let tiles = rows.div_ceil(128);
    let [dk, dv] = slots.read(index);
    for (batch, head) in (0..batch).flat_map(|batch| (0..heads_kv).map(move |head| (batch, head))) {
        for row in (0..rows).step_by(37) {
            for column in [0, 1, 9, 63, 64, 127] {
                let tile = (batch * heads_kv + head) * tiles + row / 128;
                let place = tile * 16384 + place_in_tile([row % 128, column]);
                let at = ((batch * seq_k + first + row) * heads_kv + head) * 128 + column;
                let got = [dk[place], dv[place]].map(bf16::from_f32);
                if got.map(bf16::to_bits) != [want.dk[at], want.dv[at]].map(bf16::to_bits) {
                    return Err(format!("segment {index} row {row} column {column} is {got:?}"));
                }
            }
        }
    }
    Ok(())
}

/// The same gradients from somebody else make exactly twice as much, in the epilogue and in the sum alone.
#[test]
fn slots_are_added_before_rounding() {
    each("added slots", 0..12, |problem| {
        let once = problem.plain()?;
        let (theirs, own) = (Slots::new(problem), Slots::new(problem));
        let added = |slots: &Slots, index| AddedSlot { slot: slots.slot(index), written: None };
        let count = problem.segments().len();
        let one: Vec<[AddedSlot; 1]> = (0..count).map(|index| [added(&theirs, index)]).collect();
        let both: Vec<[AddedSlot; 2]> =
            (0..count).map(|index| [added(&own, index), added(&theirs, index)]).collect();
        let slot = |slots: &Slots, index| GradAt { slot: Some(slots.slot(index)), ..GradAt::default() };
        let to_theirs = problem.table(|index| slot(&theirs, index));
        let to_own = problem.table(|index| slot(&own, index));
        let in_epilogue = problem.table(|index| GradAt { adds: &one[index], ..GradAt::default() });
        let sum = problem.table(|index| GradAt { adds: &both[index], ..GradAt::default() });
        let all = 0..problem.all_tiles();
        problem.enqueue(&[part(all.clone(), Out::Slots(&to_theirs))]).unwrap();
        let epilogue = problem.run(&[part(all.clone(), Out::Rounded(Some(&in_epilogue)))])?;
        let alone = problem.run(&[part(all.clone(), Out::Slots(&to_own)), part(all, Out::Sum(&sum))])?;
        same(&alone, &epilogue)?;
        for (twice, once) in [(&epilogue.dk, &once.dk), (&epilogue.dv, &once.dv)] {
            let wrong = twice.iter().zip(once).find(|(twice, once)| twice.to_f32() != 2.0 * once.to_f32());
            if let Some((twice, once)) = wrong {
                return Err(format!("{twice} is not twice {once}"));
            }
        }
        Ok(())
    });
}

/// Tiles that nobody sees keep the NaN of their slot, and the owner, who knows them, does not add it.
#[test]
fn unseen_tiles_are_neither_written_nor_added() {
    each("unseen", 0..12, |problem| {
        // Every third tile is masked for all.
        let segments = problem.case.segments();
        let mut unseen = vec![false; segments.seq_k()];
        for at in segments.tile_columns().iter().skip(1).step_by(3) {
            let [first, count] = at.map(|column| column as usize);
            unseen[first..first + count].fill(true);
        }
        let start = |j: i32| if unseen[usize::try_from(j).unwrap()] { 0 } else { i32::MAX };
        let mask = columns(problem.case.dims, |j| [start(j), i32::MAX, 0, 0]);
        let case = Case { mask, ..problem.case.clone() };
        let mut problem = Parted::<bf16>::new(Gpu::new().unwrap(), case.clone());
        let want = problem.plain()?;
        let slots = Slots::new(&problem);
        let count = problem.segments().len();
        let to_slots = problem.table(|index| GradAt {
            slot: Some(slots.slot(index)),
            skip_unseen: true,
            ..GradAt::default()
        });
        let all = 0..problem.all_tiles();
        problem.enqueue(&[part(all.clone(), Out::Slots(&to_slots))]).unwrap();
        let seen = seen_tiles(&problem, &case.segments());
        for (index, seen) in seen.iter().enumerate() {
            let dk = &slots.read(index)[0];
            for (tile, seen) in seen.iter().enumerate() {
                let left = dk[tile * 16384..][..16384].iter().filter(|value| value.is_nan()).count();
                if left != if *seen == 1 { 0 } else { 16384 } {
                    return Err(format!("segment {index} tile {tile}, seen {seen}: {left} numbers are NaN"));
                }
            }
        }
        let stream = problem.gpu.stream.clone();
        let memory: Vec<_> = seen.iter().map(|seen| stream.clone_htod(seen).unwrap()).collect();
        let own: Vec<[AddedSlot; 1]> = (0..count)
            .map(|index| {
                let (address, record) = memory[index].device_ptr(&stream);
                std::mem::forget(record);
                // SAFETY: a byte for each tile, which lives until the outputs are taken.
                let written = Some(unsafe { WrittenTiles::new(address) }.unwrap());
                [AddedSlot { slot: slots.slot(index), written }]
            })
            .collect();
        let sum = problem.table(|index| GradAt { adds: &own[index], ..GradAt::default() });
        let got = problem.run(&[part(all.clone(), Out::Slots(&to_slots)), part(all, Out::Sum(&sum))])?;
        same(&got, &want)
    });
}

/// For each segment [b, hkv, tiles], 1 for tiles that some query head of the KV head sees.
fn seen_tiles(problem: &Parted<bf16>, segments: &KeySegments) -> Vec<Vec<u8>> {
    let (case, tables) = (&problem.case, MaskTables::build(&problem.case.mask, segments).unwrap());
    let Dims { batch, heads_kv, .. } = case.dims;
    assert_eq!((case.mask.dims().batch, case.mask.dims().heads), (1, 1), "one mask for all heads");
    let mut first = 0;
    let mut all = Vec::new();
    for rows in segments.rows() {
        let tiles = first..first + rows.div_ceil(128);
        first = tiles.end;
        let seen = tiles.map(|tile| u8::from(!tables.by_keys.list(ListAt { head: 0, tile }).is_empty()));
        all.push(seen.collect::<Vec<u8>>().repeat(batch * heads_kv));
    }
    all
}

/// f16 takes the same ways.
#[test]
fn f16_in_parts() {
    let Some(_) = Gpu::new() else { return };
    let mut suite = Suite::new("f16 parts");
    for case in (20..24).map(case) {
        suite.case(&case, || {
            let mut problem = Parted::<f16>::new(Gpu::new().unwrap(), case.clone());
            let want = problem.plain()?;
            let all = problem.all_tiles();
            let out = Out::Rounded(None);
            let got = problem.run(&[part(all / 2..all, out), part(0..all / 2, out)])?;
            same(&got, &want)
        });
    }
}
