//! Context-parallel forward and backward against the f64 reference, for whatever users vary.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod support;

use fm_cp::host::HostConfig;
use fm_cp::mask::{Columns, MaskDims, MaskSpec};
use fm_cp::{Config, DType, Element, FlashMask, ShardingKind, Tunables};
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use support::{Case, bits, check, run};

const KINDS: [ShardingKind; 2] = [ShardingKind::Contiguous, ShardingKind::DualChunk];
/// (query heads, KV heads): GQA ratios 1, 2, 7.
const HEADS: [(usize, usize); 3] = [(2, 2), (4, 2), (7, 1)];

fn checked<T: Element>(case: &Case, mask: &FlashMask, config: &Config, what: &str) {
    let outputs = run::<T>(case, mask, config, &HostConfig::default()).unwrap();
    check(case, mask, &outputs, what);
}

fn any_dtype(dtype: DType, case: &Case, mask: &FlashMask, config: &Config, what: &str) {
    match dtype {
        DType::F32 => checked::<f32>(case, mask, config, what),
        DType::Bf16 => checked::<bf16>(case, mask, config, what),
        DType::F16 => checked::<f16>(case, mask, config, what),
    }
}

#[test]
fn every_mask_sharding_and_number_of_ranks() {
    let mut turn = 0;
    for name in MaskSpec::NAMES {
        for ranks in [1, 2, 3, 4, 5, 8] {
            for kind in KINDS {
                let (heads_q, heads_kv) = HEADS[turn % 3];
                let batch = if turn % 4 == 0 { 3 } else { 1 };
                let seq = if turn % 2 == 0 { 333 } else { 640 };
                let case =
                    Case { ranks, kind, seq, batch, heads_q, heads_kv, head_dim: 16, seed: turn as u64 };
                let dtype = DType::ALL[turn / 3 % 3];
                any_dtype(dtype, &case, &case.mask(name), &Config::default(), name);
                turn += 1;
            }
        }
    }
}

#[test]
fn pieces_of_any_size_give_right_results() {
    for (turn, (heads, rows)) in [(1, 128), (2, 128), (1, 256), (9, 512)].into_iter().enumerate() {
        let tunables =
            Tunables { heads_per_piece: Some(heads), rows_per_piece: Some(rows), ..Tunables::h200() };
        let config = Config { tunables, ..Config::default() };
        let kind = KINDS[turn % 2];
        let case =
            Case { ranks: 3, kind, seq: 1500, batch: 1, heads_q: 6, heads_kv: 3, head_dim: 24, seed: 5 };
        checked::<f32>(&case, &case.mask("causal-blockwise"), &config, "pieces");
        checked::<bf16>(&case, &case.mask("global-sliding-window"), &config, "pieces");
    }
}

/// Random bounds of every form, with heads of its own: empty bands, bands past the end, fully masked rows.
fn random_mask(random: &mut ChaCha8Rng, case: &Case) -> FlashMask {
    let (columns, causal) =
        [(Columns::One, true), (Columns::Two, true), (Columns::Two, false), (Columns::Four, false)]
            [random.random_range(0..4_usize)];
    let heads = if random.random() { 1 } else { case.heads_q };
    let dims = MaskDims { heads, ..case.mask_dims() };
    let len = dims.batch * heads * case.seq * columns.count();
    let top = i32::try_from(case.seq + 9).unwrap();
    let bounds = (0..len).map(|_| random.random_range(0..top)).collect();
    FlashMask::new(dims, columns, causal, bounds).unwrap()
}

#[test]
fn random_problems_in_f32_are_exact_to_2e_6() {
    let seed = 20_261_123;
    println!("seed {seed}");
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    for round in 0..40 {
        let (heads_q, heads_kv) = HEADS[random.random_range(0..3_usize)];
        let case = Case {
            ranks: random.random_range(1..9),
            kind: KINDS[random.random_range(0..2_usize)],
            seq: random.random_range(8..500),
            batch: random.random_range(1..4),
            heads_q,
            heads_kv,
            head_dim: 8 * random.random_range(1..5_usize),
            seed: round,
        };
        let mask = random_mask(&mut random, &case);
        checked::<f32>(&case, &mask, &Config::default(), "random");
    }
}

#[test]
fn off_and_sync_each_stage_change_no_bit() {
    let case =
        Case { ranks: 4, kind: KINDS[1], seq: 700, batch: 2, heads_q: 4, heads_kv: 2, head_dim: 32, seed: 9 };
    let mask = case.mask("prefix-lm-document");
    let outputs = |config: &Config| bits(&run::<bf16>(&case, &mask, config, &HostConfig::default()).unwrap());
    let on = outputs(&Config::default());
    assert_eq!(on, outputs(&Config { overlap: fm_cp::Overlap::Off, ..Config::default() }));
    assert_eq!(on, outputs(&Config { sync_each_stage: true, ..Config::default() }));
}

#[test]
fn nothing_is_sent_where_nothing_is_needed() {
    // Two documents, each exactly one rank's rows: ranks have nothing in common.
    let case =
        Case { ranks: 2, kind: KINDS[0], seq: 512, batch: 1, heads_q: 2, heads_kv: 2, head_dim: 16, seed: 3 };
    let mask = case.mask("document:docs=256+256");
    let outputs = run::<f32>(&case, &mask, &Config::default(), &HostConfig::default()).unwrap();
    check(&case, &mask, &outputs, "apart");
    for rank in &outputs.ranks {
        let backward = rank.backward.as_ref().unwrap();
        assert_eq!((rank.forward.bytes_sent().0, backward.bytes_sent().0), (0, 0));
        assert!(rank.forward.bytes_mask_blind.0 > 0);
    }
}

#[test]
fn bytes_are_those_of_the_plan_and_well_under_a_blind_gather() {
    let case = Case {
        ranks: 4,
        kind: KINDS[1],
        seq: 4096,
        batch: 1,
        heads_q: 2,
        heads_kv: 1,
        head_dim: 16,
        seed: 4,
    };
    let lengths = ["256"; 16].join("+");
    let mask = case.mask(&format!("causal-document:docs={lengths}"));
    let outputs = run::<bf16>(&case, &mask, &Config::default(), &HostConfig::default()).unwrap();
    for rank in &outputs.ranks {
        let backward = rank.backward.as_ref().unwrap();
        assert_eq!(rank.forward.bytes_to, rank.plan.forward.totals.bytes_to);
        assert_eq!(backward.bytes_to, rank.plan.backward.totals.bytes_to);
        for report in [&rank.forward, backward] {
            assert!(report.bytes_sent().0 * 2 < report.bytes_mask_blind.0, "{report:?}");
        }
    }
}
