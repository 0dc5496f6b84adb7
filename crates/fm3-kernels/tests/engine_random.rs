//! The engine against the f64 reference over random problems of every dtype, mask, ratio, length and head dim.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]
mod engine_support;

use engine_support::plain::plain;
use engine_support::{Case, Results, lse_err, masks, rel_err};
use fm3_kernels::mask::{MaskDims, MaskSpec};
use fm3_kernels::{DType, Dims, Element, FlashMask, Shape};
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What is promised: relative errors in norm of O and of gradients, largest error of LSE.
struct Bounds {
    o: f64,
    gradients: f64,
    lse: f64,
}

/// LSE comes from f32 scores of exact inputs for every dtype, up to about 16: a few of its units in the last place.
const fn bounds(dtype: DType) -> Bounds {
    match dtype {
        DType::F32 => Bounds { o: 2e-6, gradients: 2e-6, lse: 5e-6 },
        DType::F16 => Bounds { o: 2e-3, gradients: 3e-3, lse: 5e-6 },
        DType::Bf16 => Bounds { o: 5e-3, gradients: 8e-3, lse: 5e-6 },
    }
}

fn errors(got: &Results, want: &Results) -> [(&'static str, f64); 4] {
    [
        ("o", rel_err(&got.o, &want.o)),
        ("dq", rel_err(&got.dq, &want.dq)),
        ("dk", rel_err(&got.dk, &want.dk)),
        ("dv", rel_err(&got.dv, &want.dv)),
    ]
}

fn check<T: Element>(case: &Case) {
    let tensors = case.tensors::<T>();
    let exact = case.exact(&tensors);
    let written = case.engine(&tensors);
    let got = written.widened();
    let bounds = bounds(T::DTYPE);
    let naive = errors(&plain(case, &tensors), &exact);
    for ((name, error), (_, naive)) in errors(&got, &exact).into_iter().zip(naive) {
        let bound = if name == "o" { bounds.o } else { bounds.gradients };
        assert!(error <= bound, "{name}: {error:e} > {bound:e} ({}) {case:?}", T::DTYPE);
        // f32 sums of 256 products lose about 2^-24 * 4 whatever their order: the floor of the rule.
        let bound = 2.0 * naive + 2.4e-7;
        assert!(error <= bound, "{name}: {error:e} > {bound:e}, twice plain ({}) {case:?}", T::DTYPE);
    }
    let error = lse_err(&got.lse, &exact.lse);
    assert!(error <= bounds.lse, "lse: {error:e} ({}) {case:?}", T::DTYPE);
    for (row, lse) in exact.lse.iter().enumerate().filter(|(_, lse)| **lse == f64::NEG_INFINITY) {
        let Dims { heads_q, seq_q, head_dim: d, .. } = case.dims;
        let (batch, head, seq) = (row / seq_q / heads_q, row / seq_q % heads_q, row % seq_q);
        let place = ((batch * seq_q + seq) * heads_q + head) * d;
        assert_eq!((got.lse[row], &got.o[place..place + d]), (*lse, &vec![0.0; d][..]), "{case:?}");
        assert_eq!(&got.dq[place..place + d], vec![0.0; d], "{case:?}");
    }
}

fn check_all(case: &Case) {
    check::<f32>(case);
    check::<bf16>(case);
    check::<f16>(case);
}

fn pick<const N: usize>(rng: &mut ChaCha8Rng, of: [usize; N]) -> usize {
    of[rng.random_range(0..N)]
}

/// Random sizes; `square` for masks that need as many rows as columns.
fn random_case(seed: u64, name: Option<&str>) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (heads_kv, group) = [(1, 1), (2, 1), (1, 2), (2, 2), (1, 7), (3, 2)][rng.random_range(0..6)];
    let length = |rng: &mut ChaCha8Rng| match rng.random_range(0..3) {
        0 => pick(rng, [127, 128, 129, 256]),
        _ => rng.random_range(20..300),
    };
    let (batch, seq_k) = (pick(&mut rng, [1, 1, 3]), length(&mut rng));
    let seq_q = if name.is_some() { seq_k } else { length(&mut rng) };
    let heads_q = heads_kv * group;
    let dims =
        Dims { batch, heads_q, heads_kv, seq_q, seq_k, head_dim: pick(&mut rng, [8, 64, 72, 128, 256]) };
    let divisors: Vec<usize> = (1..=heads_q).filter(|h| heads_q.is_multiple_of(*h)).collect();
    let heads = divisors[rng.random_range(0..divisors.len())];
    let mask_dims = MaskDims { batch, heads, seq_q, seq_k };
    let mask = match name {
        Some(name) => masks::named(name, mask_dims, &mut rng),
        None => {
            let run = pick(&mut rng, [1, 16, 64, 128, 400]);
            masks::raw(mask_dims, run, &mut rng)
        }
    };
    let default = Shape::new(dims).unwrap().default_scale();
    let scale = default * [1.0, 1.0, 0.5, -1.0][rng.random_range(0..4)];
    Case { dims, mask, scale, seed }
}

#[test]
fn every_named_mask_is_right() {
    for (seed, name) in (1000..).zip(MaskSpec::NAMES) {
        check_all(&random_case(seed, Some(name)));
    }
}

#[test]
fn random_raw_masks_are_right() {
    for seed in 0..24 {
        check_all(&random_case(seed, None));
    }
}

#[test]
fn every_head_dim_and_ratio_is_right_at_odd_lengths() {
    for (seed, head_dim) in (2000..).zip([8, 64, 72, 128, 256]) {
        for (batch, heads_q, heads_kv) in [(3, 2, 2), (1, 4, 2), (1, 7, 1)] {
            let dims = Dims { batch, heads_q, heads_kv, seq_q: 141, seq_k: 197, head_dim };
            let mask = causal(dims);
            let scale = Shape::new(dims).unwrap().default_scale();
            check::<f32>(&Case { dims, mask, scale, seed });
        }
    }
}

fn causal(dims: Dims) -> FlashMask {
    let Dims { batch, seq_q, seq_k, .. } = dims;
    FlashMask::causal(MaskDims { batch, heads: 1, seq_q, seq_k }).unwrap()
}

/// More than 16 row tiles and more than 512 blocks: the backward pass needs several bands and waves.
#[test]
fn long_sequences_cross_bands_and_waves() {
    let dims = Dims { batch: 1, heads_q: 2, heads_kv: 1, seq_q: 2330, seq_k: 2077, head_dim: 8 };
    let mask_dims = MaskDims { batch: 1, heads: 1, seq_q: 2330, seq_k: 2077 };
    let full = FlashMask::full(mask_dims).unwrap();
    let raw = masks::raw(MaskDims { heads: 2, ..mask_dims }, 200, &mut ChaCha8Rng::seed_from_u64(4));
    for (mask, seed) in [(full, 4000), (raw, 4001)] {
        check::<f32>(&Case { dims, mask, scale: 0.35, seed });
    }
}

#[test]
fn a_scale_of_zero_averages_v() {
    check::<f32>(&Case { scale: 0.0, ..random_case(7, Some("causal")) });
}

/// With a handful of keys gradients are differences that cancel, exactly so where a row sees one column: relative
/// errors mean nothing there. The data are standard normal, so that every result is of the order of 1.
#[test]
fn tiny_problems_are_right_to_the_rounding_of_unit_data() {
    for seed in 3000..3040 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (seq_q, seq_k) = (rng.random_range(1..12), rng.random_range(1..12));
        let dims = Dims { batch: 2, heads_q: 2, heads_kv: 1, seq_q, seq_k, head_dim: 8 };
        let mask = masks::raw(MaskDims { batch: 2, heads: 2, seq_q, seq_k }, 2, &mut rng);
        let case = Case { dims, mask, scale: 0.35, seed };
        let tensors = case.tensors::<f32>();
        let (got, exact) = (case.engine(&tensors).widened(), case.exact(&tensors));
        let tensors = [(got.o, exact.o), (got.dq, exact.dq), (got.dk, exact.dk), (got.dv, exact.dv)];
        for (got, exact) in tensors {
            assert!(lse_err(&got, &exact) <= 1e-5, "{case:?}");
        }
        assert!(lse_err(&got.lse, &exact.lse) <= 5e-6, "{case:?}");
    }
}
