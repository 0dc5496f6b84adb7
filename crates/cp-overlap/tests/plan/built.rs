//! Plans as they are built: checked, agreed on, ordered, stored, shown.
use cp_overlap::plan::{CpPlan, RankPlan, Stage, check};
use cp_overlap::{Error, Problem, Sharding, Tunables};
use fm3_kernels::mask::MaskDims;
use fm3_kernels::{DType, Dims, FlashMask, Shape};
use proptest::prelude::*;
use symm_buffer::{Bytes, Pe, World};

use crate::problems::recipes;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn every_built_plan_passes_the_check(recipe in recipes()) {
        let problem = recipe.problem();
        let plan = CpPlan::build(&problem).unwrap();
        check(&plan, &problem).unwrap();
        for rank in &plan.ranks {
            // Each rank alone builds the same plan from a problem of its own.
            prop_assert_eq!(&RankPlan::build(&recipe.problem(), rank.rank).unwrap(), rank);
        }
    }

    #[test]
    fn order_is_that_of_the_protocol(recipe in recipes()) {
        let plan = CpPlan::build(&recipe.problem()).unwrap();
        let n = recipe.ranks;
        for rank in &plan.ranks {
            let me = rank.rank.index();
            // Distances around the ring: pushes go up it, arrivals come from below.
            let sent: Vec<_> = rank.forward.pushes.iter()
                .map(|push| (push.block.heads.start, (push.to.index() + n - me) % n, push.block.rows.start))
                .collect();
            prop_assert!(sent.is_sorted());
            prop_assert_eq!(&rank.forward.pushes, &rank.backward.pushes);
            let pieces = &rank.forward.pieces;
            prop_assert!(pieces[0].owner == rank.rank && pieces[1..].iter().all(|piece| piece.owner != rank.rank));
            let come: Vec<_> = pieces[1..].iter()
                .map(|piece| (piece.block.heads.start, (me + n - piece.owner.index()) % n, piece.block.rows.start))
                .collect();
            prop_assert!(come.is_sorted());
            let in_order = (0..pieces.len()).map(Stage::Attend);
            prop_assert!(rank.forward.stages.iter().copied().eq(in_order));
            // Backward: local, remote as in the forward, perhaps local, then reduces.
            let back = &rank.backward;
            let remote: Vec<_> = back.pieces.iter().filter(|piece| piece.arrival.is_some()).collect();
            prop_assert_eq!(remote.len(), come.len());
            prop_assert!(remote.iter().zip(&pieces[1..]).all(|(b, f)| (&b.block, b.arrival) == (&f.block, f.arrival)));
            prop_assert!(back.pieces[0].arrival.is_none());
            prop_assert!(back.pieces.len() - remote.len() <= 2);
            let stages = (0..back.pieces.len()).map(Stage::Attend).chain((0..back.reduces.len()).map(Stage::Reduce));
            prop_assert!(back.stages.iter().copied().eq(stages));
            let returned = back.reduces.iter().map(|reduce| (reduce.from, &reduce.block));
            prop_assert!(returned.eq(back.pushes.iter().map(|push| (push.to, &push.block))));
        }
    }

    #[test]
    fn plans_survive_storage_and_print_every_stage(recipe in recipes()) {
        let plan = CpPlan::build(&recipe.problem()).unwrap();
        let text = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(&serde_json::from_str::<CpPlan>(&text).unwrap(), &plan);
        let shown = plan.to_string();
        let stages: usize = plan.ranks.iter().map(|r| r.forward.stages.len() + r.backward.stages.len()).sum();
        let pushes: usize = plan.ranks.iter().map(|r| r.forward.pushes.len() + r.backward.pushes.len()).sum();
        prop_assert_eq!(shown.matches("    stage ").count(), stages);
        prop_assert_eq!(shown.matches("    push ").count(), pushes);
        prop_assert!(plan.imbalance() >= 1.0 - 1e-12 && plan.imbalance() <= recipe.ranks as f64 + 1e-12);
    }
}

const DIMS: Dims = Dims { batch: 1, heads_q: 4, heads_kv: 2, seq_q: 1024, seq_k: 1024, head_dim: 64 };
const MASK: MaskDims = MaskDims { batch: 1, heads: 1, seq_q: 1024, seq_k: 1024 };

fn problem(mask: FlashMask, tunables: Tunables) -> Result<Problem, Error> {
    let sharding = Sharding::contiguous(1024, World::new(4).unwrap()).unwrap();
    Problem::new(Shape::new(DIMS).unwrap(), mask, sharding, DType::Bf16, tunables)
}

#[test]
fn a_causal_plan_in_numbers() {
    let plan = CpPlan::build(&problem(FlashMask::causal(MASK).unwrap(), Tunables::h200()).unwrap()).unwrap();
    // 256 rows x 2 heads x 64 x 2 bytes, K and V: 128 KiB a segment; rank 0 sends to three, rank 3 to nobody.
    let sent: Vec<usize> = plan.ranks.iter().map(|rank| rank.forward.totals.bytes_sent().0).collect();
    assert_eq!(sent, [3 << 17, 2 << 17, 1 << 17, 0]);
    assert!(plan.ranks.iter().all(|rank| rank.forward.totals.bytes_mask_blind == Bytes(3 << 17)));
    // Backward: the same, and f32 partials the other way.
    let back: Vec<usize> = plan.ranks.iter().map(|rank| rank.backward.totals.bytes_sent().0).collect();
    assert_eq!(back, [3 << 17, (2 << 17) + (1 << 18), (1 << 17) + (2 << 18), 3 << 18]);
    let memory = plan.ranks[0].memory;
    assert_eq!((memory.gather_half.0, memory.send.0, memory.receive_half.0), (3 << 17, 3 << 18, 3 << 18));
    // Pairs of rows 256 r .. 256 (r + 1), times 4 query heads.
    let pairs = |rank: u64| (256 * 256 * rank + 256 * 257 / 2) * 4;
    let totals: Vec<u64> = plan.ranks.iter().map(|rank| rank.forward.totals.pairs).collect();
    assert_eq!(totals, [pairs(0), pairs(1), pairs(2), pairs(3)]);
    assert_eq!(plan.ranks[3].backward.totals.flops, 10 * 64 * pairs(3));
    let mean = totals.iter().sum::<u64>() as f64 / 4.0;
    assert!((plan.imbalance() - pairs(3) as f64 / mean).abs() < 1e-12);
    // A quarter of two heads rounds to one that the backward keeps for the end.
    let heads: Vec<_> = plan.ranks[3].backward.pieces.iter().map(|piece| piece.block.heads.clone()).collect();
    assert_eq!((heads.first(), heads.last()), (Some(&(0..1)), Some(&(1..2))));
}

#[test]
fn problems_that_do_not_fit_are_refused_with_both_numbers() {
    let mask = FlashMask::causal(MASK).unwrap();
    let h200 = Tunables::h200();
    let refused = problem(FlashMask::causal(MaskDims { batch: 2, ..MASK }).unwrap(), h200);
    assert!(matches!(refused, Err(Error::SizeMismatch { name: "batch", left: 2, right: 1, .. })));
    let refused = problem(FlashMask::causal(MaskDims { heads: 3, ..MASK }).unwrap(), h200).unwrap_err();
    assert!(matches!(refused, Error::Kernels(fm3_kernels::Error::MaskHeads { heads_mask: 3, heads_q: 4 })));
    let refused = problem(FlashMask::causal(MaskDims { seq_k: 1000, ..MASK }).unwrap(), h200).unwrap_err();
    assert!(refused.to_string().contains("1000") && refused.to_string().contains("1024"), "{refused}");
    let short = Sharding::contiguous(1000, World::new(4).unwrap()).unwrap();
    let refused = Problem::new(Shape::new(DIMS).unwrap(), mask.clone(), short, DType::F32, h200);
    assert!(matches!(refused, Err(Error::SizeMismatch { left: 1000, right: 1024, .. })));
    let refused = problem(mask.clone(), Tunables { flops_per_s: f64::NAN, ..h200 });
    assert!(matches!(refused, Err(Error::Tunable { name: "flops_per_s", .. })));
    let huge = Dims { heads_q: usize::MAX / 4, heads_kv: usize::MAX / 4, ..DIMS };
    let sharding = Sharding::contiguous(1024, World::new(4).unwrap()).unwrap();
    let refused = Problem::new(Shape::new(huge).unwrap(), mask.clone(), sharding, DType::F32, h200);
    assert!(matches!(refused, Err(Error::TooLarge { ranks: 4 })));
    let small = problem(mask, h200).unwrap();
    assert!(matches!(RankPlan::build(&small, Pe(4)), Err(Error::NoSuchRank { rank: Pe(4), world: 4 })));
}

#[test]
fn more_pieces_than_a_signal_counts_are_refused() {
    let dims = Dims { heads_q: 5000, heads_kv: 5000, ..DIMS };
    let sharding = Sharding::contiguous(1024, World::new(2).unwrap()).unwrap();
    let tunables = Tunables { heads_per_piece: Some(1), ..Tunables::h200() };
    let mask = FlashMask::causal(MASK).unwrap();
    let refused = Problem::new(Shape::new(dims).unwrap(), mask, sharding, DType::F32, tunables);
    assert!(matches!(refused, Err(Error::TooManyPieces { pieces: 5000, max: 4095 })));
}

#[test]
fn each_part_of_a_problem_has_a_hash_of_its_own() {
    let h200 = Tunables::h200();
    let causal = || FlashMask::causal(MASK).unwrap();
    let base = problem(causal(), h200).unwrap().digest();
    assert_eq!(problem(causal(), h200).unwrap().digest(), base);
    let differing = |digest: cp_overlap::Digest| -> Vec<&str> {
        let both = base.parts().into_iter().zip(digest.parts());
        both.filter(|(a, b)| a.1 != b.1).map(|(a, _)| a.0).collect()
    };
    let window = FlashMask::sliding_window(MASK, 1023).unwrap();
    assert_eq!(differing(problem(window, h200).unwrap().digest()), ["mask"]);
    let tail = Tunables { local_tail: 65, ..h200 };
    assert_eq!(differing(problem(causal(), tail).unwrap().digest()), ["tuning"]);
    let other = |dims: Dims, dtype, kind: fn(usize, World) -> Result<Sharding, Error>| {
        let sharding = kind(1024, World::new(4).unwrap()).unwrap();
        Problem::new(Shape::new(dims).unwrap(), causal(), sharding, dtype, h200).unwrap().digest()
    };
    assert_eq!(differing(other(DIMS, DType::F16, Sharding::contiguous)), ["dtype"]);
    assert_eq!(differing(other(DIMS, DType::Bf16, Sharding::dual_chunk)), ["sharding"]);
    assert_eq!(differing(other(Dims { heads_q: 8, ..DIMS }, DType::Bf16, Sharding::contiguous)), ["shape"]);
    // The same numbers on every machine: plans of mixed clusters must compare equal.
    assert_eq!(base.shape, SHAPE_HASH, "{:#x}", base.shape);
}

/// Hash of the six little-endian words 1, 4, 2, 1024, 1024, 64.
const SHAPE_HASH: u64 = 0x92d9_89d6_4f4f_9b24;
