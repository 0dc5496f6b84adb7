//! What a result must be: close to f64 attention, as close as a plain implementation in the same type, and complete.
use fm3_kernels::mask::{MaskHead, Rows};
use fm3_kernels::reference::{Attention, HeadAt};
use fm3_kernels::view::At;
use fm3_kernels::{DType, Dims, Element, Shape, View4};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::case::{Case, Outputs, Tensors};

/// Pairs (row, column, head) up to which every row is computed; above, a sample.
const ALL_ROWS: usize = 6_000_000;

/// One row of one head: what it should be, and what a plain implementation gives.
struct Expected {
    batch: usize,
    head: usize,
    row: usize,
    o: Vec<f64>,
    lse: f64,
    plain: Vec<f32>,
}

/// Compares `got` with the reference.
pub fn check<T: Element>(case: &Case, tensors: &Tensors<T>, got: &Outputs<T>) -> Result<(), String> {
    // First the whole output, whatever is sampled: poison that is left is NaN.
    let left = got.o.iter().filter(|value| value.to_f32().is_nan()).count();
    let left_lse = got.lse.iter().filter(|lse| lse.is_nan()).count();
    if left + left_lse > 0 {
        return Err(format!("{left} of {} in O and {left_lse} LSE are NaN", got.o.len()));
    }
    let Dims { heads_q, seq_q, head_dim: d, .. } = case.dims;
    let (mut worst, mut worst_plain, mut square, mut norm) = ((0.0, None), 0.0_f64, 0.0, 0.0);
    for row in expected(case, tensors) {
        let place = ((row.batch * seq_q + row.row) * heads_q + row.head) * d;
        let lse = f64::from(got.lse[(row.batch * heads_q + row.head) * seq_q + row.row]);
        let at = format!("batch {} head {} row {}", row.batch, row.head, row.row);
        if row.lse == f64::NEG_INFINITY {
            let zero = got.o[place..place + d].iter().all(|o| o.to_f32() == 0.0);
            if lse != f64::NEG_INFINITY || !zero {
                return Err(format!("{at} sees nothing; LSE {lse}, O zero: {zero}"));
            }
        } else if (lse - row.lse).abs() > 1e-4 {
            return Err(format!("{at}: LSE {lse} should be {}", row.lse));
        }
        for (c, want) in row.o.iter().enumerate() {
            let value = f64::from(got.o[place + c].to_f32());
            let error = (value - want).abs();
            if error > worst.0 {
                worst = (error, Some(format!("{at} element {c}: {value} should be {want}")));
            }
            worst_plain = worst_plain.max((f64::from(row.plain[c]) - want).abs());
            square += error * error;
            norm += want * want;
        }
    }
    verdict(T::DTYPE, worst, worst_plain, (square / norm.max(f64::MIN_POSITIVE)).sqrt())
}

/// The rule of FlashAttention's tests, and a bound in norm: rounding P and O costs about 2^-9 each in bf16.
fn verdict(dtype: DType, worst: (f64, Option<String>), plain: f64, relative: f64) -> Result<(), String> {
    let bound = 2.0 * plain + 1e-5;
    let in_norm = if dtype == DType::Bf16 { 5e-3 } else { 8e-4 };
    if worst.0 <= bound && relative <= in_norm {
        return Ok(());
    }
    let at = worst.1.unwrap_or_default();
    Err(format!(
        "{dtype}: largest error {:.2e}, allowed {bound:.2e}; in norm {relative:.2e}, allowed {in_norm:.0e}; {at}",
        worst.0
    ))
}

fn expected<T: Element>(case: &Case, tensors: &Tensors<T>) -> Vec<Expected> {
    let (shape, mask) = (Shape::new(case.dims).unwrap(), case.full_mask());
    let keys = case.keys();
    let attention = Attention {
        shape,
        mask: &mask,
        scale: case.scale(),
        q: View4::bshd(&tensors.q, case.queries()).unwrap(),
        k: View4::bshd(&tensors.k, keys).unwrap(),
        v: View4::bshd(&tensors.v, keys).unwrap(),
    };
    let mut all = Vec::new();
    for (at, rows) in chosen(case) {
        let exact = attention.forward_rows(at, &rows);
        let plain = plain_rows(&attention, at, &rows);
        for ((row, exact), plain) in rows.iter().zip(exact).zip(plain) {
            let HeadAt { batch, head } = at;
            all.push(Expected { batch, head, row: *row, o: exact.o, lse: exact.lse, plain });
        }
    }
    all
}

/// All rows of all heads, or some of some.
fn chosen(case: &Case) -> Vec<(HeadAt, Vec<usize>)> {
    let Dims { batch, heads_q, seq_q, seq_k, .. } = case.dims;
    let all = (0..batch).flat_map(|batch| (0..heads_q).map(move |head| HeadAt { batch, head }));
    if batch * heads_q * seq_q * seq_k <= ALL_ROWS {
        return all.map(|at| (at, (0..seq_q).collect())).collect();
    }
    let mut rng = ChaCha8Rng::seed_from_u64(case.seed ^ 0x5A);
    let corners =
        [(0, 0), (batch - 1, heads_q - 1), (rng.random_range(0..batch), rng.random_range(0..heads_q))];
    let rows = |rng: &mut ChaCha8Rng| {
        let mut rows: Vec<usize> = (0..40).map(|_| rng.random_range(0..seq_q)).collect();
        rows.extend([0, 63, 64, 127, 128, seq_q.saturating_sub(65), seq_q - 1].map(|row| row.min(seq_q - 1)));
        rows
    };
    corners.map(|(batch, head)| (HeadAt { batch, head }, rows(&mut rng))).to_vec()
}

/// A framework without a fused kernel: S, its scaled form, P and O are tensors of type T; sums are f32.
fn plain_rows<T: Element>(attention: &Attention<'_, T>, at: HeadAt, rows: &[usize]) -> Vec<Vec<f32>> {
    let dims = attention.shape.dims();
    let round = |value: f32| T::from_f32(value).to_f32();
    let widen = |view: &View4<'_, T>, head, rows: usize| -> Vec<f32> {
        let all = (0..rows).flat_map(|seq| view.row(At { batch: at.batch, seq, head }));
        all.map(|value| value.to_f32()).collect()
    };
    let kv = at.head / attention.shape.group_size();
    let (k, v) = (widen(&attention.k, kv, dims.seq_k), widen(&attention.v, kv, dims.seq_k));
    let q = widen(&attention.q, at.head, dims.seq_q);
    let mask_head = at.head / (dims.heads_q / attention.mask.dims().heads);
    let mask_at = MaskHead { batch: at.batch, head: mask_head };
    let bands: Vec<_> = attention.mask.bands_in(mask_at, 0..dims.seq_k).collect();
    let d = dims.head_dim;
    let one = |row: &usize| -> Vec<f32> {
        let rows = Rows { start: *row, end: row + 1 };
        let columns: Vec<usize> = (0..dims.seq_k).filter(|j| bands[*j].masked_in(rows) == 0).collect();
        let dot = |j: usize| q[row * d..][..d].iter().zip(&k[j * d..][..d]).map(|(q, k)| q * k).sum();
        let scores: Vec<f32> = columns.iter().map(|j| round(round(dot(*j)) * attention.scale)).collect();
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = scores.iter().map(|score| (score - max).exp()).sum();
        let mut o = vec![0.0; d];
        for (j, score) in columns.iter().zip(&scores) {
            let p = round((score - max).exp() / sum);
            o.iter_mut().zip(&v[j * d..][..d]).for_each(|(o, v)| *o += p * v);
        }
        o.into_iter().map(round).collect()
    };
    rows.par_iter().map(one).collect()
}
