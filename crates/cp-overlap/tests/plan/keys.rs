//! Remote keys as strided tensors: every element is where its piece arrives.
use std::ops::Range;

use cp_overlap::plan::{CpPlan, KeyPlaces, RankPlan};
use cp_overlap::{Error, Problem, Sharding, Tunables};
use fm3_kernels::mask::MaskDims;
use fm3_kernels::{DType, Dims, FlashMask, Shape};
use proptest::prelude::*;
use symm_buffer::{Bytes, Pe};

use crate::problems::recipes;

/// Where the head of a row begins in a half: by the tensor, and by the piece.
fn offsets(plan: &RankPlan, places: &KeyPlaces) -> impl Iterator<Item = ([usize; 2], [usize; 2])> {
    let dims = plan.shape.dims();
    let size = plan.dtype.size();
    let mut all = Vec::new();
    for piece in &plan.forward.pieces {
        let Some(arrival) = piece.arrival else { continue };
        let at = places.segments[piece.segment].unwrap();
        let keys = places.lengths[at.length];
        let Range { start: first, end } = piece.block.heads.clone();
        for (batch, row) in
            (0..dims.batch).flat_map(|batch| piece.block.rows.clone().map(move |row| (batch, row)))
        {
            for head in first..end {
                let (group, inside) = (head / keys.heads_per_group, head % keys.heads_per_group);
                let element = (at.slab + batch) * keys.slab_stride
                    + group * keys.group_stride
                    + (row * keys.heads_per_group + inside) * dims.head_dim;
                let dense =
                    ((batch * piece.block.rows.len() + row) * (end - first) + head - first) * dims.head_dim;
                let tensor = [keys.k, keys.v].map(|Bytes(base)| base + element * size);
                all.push((tensor, [arrival.k, arrival.v].map(|Bytes(base)| base + dense * size)));
                assert!(at.slab + batch < keys.slabs && group < keys.groups && row < keys.rows);
            }
        }
    }
    all.into_iter()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_element_is_where_its_piece_arrives(recipe in recipes()) {
        // Heads of 128 bytes, equal groups, whole segments.
        let divisors: Vec<usize> = (1..=recipe.heads.1).filter(|n| recipe.heads.1.is_multiple_of(*n)).collect();
        let heads = recipe.forced.0.map(|heads| divisors[heads % divisors.len()]);
        let tunables = Tunables { heads_per_piece: heads, rows_per_piece: None, ..Tunables::h200() };
        let plan = CpPlan::build(&recipe.tuned(tunables, 64)).unwrap();
        for rank in &plan.ranks {
            let mut lengths: Vec<usize> = rank.segments[1..].iter().map(|segment| segment.rows).collect();
            lengths.sort_unstable();
            lengths.dedup();
            match rank.key_places() {
                Ok(places) => {
                    prop_assert_eq!(places.lengths.len(), lengths.len());
                    for (tensor, piece) in offsets(rank, &places) {
                        prop_assert_eq!(tensor, piece);
                    }
                }
                Err(Error::KeyPlaces { value, .. }) => prop_assert!(value > 3 && value == lengths.len()),
                Err(error) => prop_assert!(false, "{}", error),
            }
        }
    }
}

fn plan(tunables: Tunables, rows: &[usize]) -> Result<RankPlan, Error> {
    let seq = rows.iter().sum();
    let dims = Dims { batch: 1, heads_q: 4, heads_kv: 4, seq_q: seq, seq_k: seq, head_dim: 128 };
    let mask = FlashMask::full(MaskDims { batch: 1, heads: 1, seq_q: seq, seq_k: seq }).unwrap();
    let mut next = 0;
    let ranges = rows.iter().map(|rows| {
        let range = next..next + rows;
        next = range.end;
        Vec::from_iter(Some(range))
    });
    let sharding = Sharding::explicit(seq, ranges.collect())?;
    let problem = Problem::new(Shape::new(dims).unwrap(), mask, sharding, DType::Bf16, tunables)?;
    RankPlan::build(&problem, Pe(0))
}

#[test]
fn what_tensors_cannot_say_is_refused_by_name() {
    let h200 = Tunables::h200();
    let refused = |tunables, rows: &[usize]| match plan(tunables, rows).unwrap().key_places() {
        Err(Error::KeyPlaces { name, value, .. }) => (name, value),
        other => panic!("{other:?}"),
    };
    let three = Tunables { heads_per_piece: Some(3), ..h200 };
    assert_eq!(refused(three, &[200, 200]), ("heads_per_piece", 3));
    let chunks = Tunables { rows_per_piece: Some(128), ..h200 };
    assert_eq!(refused(chunks, &[200, 200]), ("rows_per_piece", 128));
    let four = [100, 200, 300, 400, 500];
    assert_eq!(refused(h200, &four), ("number of lengths of remote segments", 4));
    // The local length does not count, and ranks alone need no tensor.
    assert_eq!(plan(h200, &four[..4]).unwrap().key_places().unwrap().lengths.len(), 3);
    assert_eq!(plan(h200, &[300]).unwrap().key_places().unwrap().lengths, []);
}
