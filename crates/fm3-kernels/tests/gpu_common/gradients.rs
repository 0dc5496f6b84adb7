//! What gradients must be: close to f64 ones, as close as a plain implementation in the same type, and complete.
use fm3_kernels::mask::{Bands, FlashMask, MaskDims, MaskHead, Rows};
use fm3_kernels::reference::{Attention, Gradients};
use fm3_kernels::view::Extents;
use fm3_kernels::{DType, Dims, Element, Shape, View4};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::case::{Case, Data, Tensors, count, normal};

/// Pairs (row, column, query head) up to which every KV head is computed; above, two of them.
const ALL_PAIRS: usize = 8_000_000;

/// Gradients as the kernels give them, dense [b, s, h, d].
#[derive(Clone, Debug)]
pub struct Grads<T> {
    pub dq: Vec<T>,
    pub dk: Vec<T>,
    pub dv: Vec<T>,
}

/// dO, dense [b, s, h, d], standard normal.
pub fn dout<T: Element>(case: &Case) -> Vec<T> {
    let mut rng = ChaCha8Rng::seed_from_u64(case.seed ^ 0xD0);
    std::iter::repeat_with(|| T::from_f32(normal(&mut rng))).take(count(case.queries())).collect()
}

/// Compares `got` with the reference.
pub fn check_gradients<T: Element>(case: &Case, tensors: &Tensors<T>, got: &Grads<T>) -> Result<(), String> {
    // First all of it, whatever is sampled: poison that is left is NaN.
    for (name, data) in [("dQ", &got.dq), ("dK", &got.dk), ("dV", &got.dv)] {
        let left = data.iter().filter(|value| !value.to_f32().is_finite()).count();
        if left > 0 {
            return Err(format!("{left} of {} elements of {name} are not finite", data.len()));
        }
    }
    let dout = dout::<T>(case);
    let group = case.dims.heads_q / case.dims.heads_kv;
    let mut errors = ["dQ", "dK", "dV"].map(Errors::new);
    for (batch, kv) in chosen(case) {
        let part = Part::new(case, (tensors, &dout), (batch, kv));
        let (exact, plain) = (part.exact(), part.plain());
        let mine = |data: &[T], extents, heads| cut(data, extents, (batch, kv * heads, heads));
        let dq = mine(&got.dq, case.queries(), group);
        let [dk, dv] = [&got.dk, &got.dv].map(|data| mine(data, case.keys(), 1));
        part.check_unseen([&dq, &dk, &dv]).map_err(|text| format!("batch {batch} KV head {kv}: {text}"))?;
        let all = [(&dq, &exact.dq, &plain.dq), (&dk, &exact.dk, &plain.dk), (&dv, &exact.dv, &plain.dv)];
        for (errors, (got, exact, plain)) in errors.iter_mut().zip(all) {
            errors.add(got, exact, plain, (batch, kv));
        }
    }
    errors.into_iter().try_for_each(|errors| errors.verdict(T::DTYPE, case.data))
}

/// All KV heads, or some.
fn chosen(case: &Case) -> Vec<(usize, usize)> {
    let Dims { batch, heads_q, heads_kv, seq_q, seq_k, .. } = case.dims;
    if batch * heads_q * seq_q * seq_k <= ALL_PAIRS {
        return (0..batch).flat_map(|b| (0..heads_kv).map(move |kv| (b, kv))).collect();
    }
    let mut rng = ChaCha8Rng::seed_from_u64(case.seed ^ 0x5A);
    let mut two =
        vec![(rng.random_range(0..batch), rng.random_range(0..heads_kv)), (batch - 1, heads_kv - 1)];
    two.dedup();
    two
}

/// Errors of one tensor.
pub(super) struct Errors {
    name: &'static str,
    worst: (f64, String),
    plain: f64,
    square: f64,
    plain_square: f64,
    norm: f64,
    count: usize,
}

impl Errors {
    pub(super) fn new(name: &'static str) -> Self {
        let worst = (0.0, String::new());
        Self { name, worst, plain: 0.0, square: 0.0, plain_square: 0.0, norm: 0.0, count: 0 }
    }

    fn add<T: Element>(&mut self, got: &[T], exact: &[f64], plain: &[f64], at: (usize, usize)) {
        for (index, ((got, exact), plain)) in got.iter().zip(exact).zip(plain).enumerate() {
            self.add_one([f64::from(got.to_f32()), *exact, *plain], (at, index));
        }
    }

    /// What was given, what is right, what a plain implementation gives; at an element of a (batch, KV head).
    pub(super) fn add_one(&mut self, [got, exact, plain]: [f64; 3], place: ((usize, usize), usize)) {
        let (error, of_plain) = ((got - exact).abs(), (plain - exact).abs());
        if error > self.worst.0 {
            let (at, index) = place;
            let place = format!("(batch, KV head) {at:?} row {} element {}", index / 128, index % 128);
            self.worst = (error, format!("{place}: {got} should be {exact}"));
        }
        self.plain = self.plain.max(of_plain);
        self.square += error * error;
        self.plain_square += of_plain * of_plain;
        self.norm += exact * exact;
        self.count += 1;
    }

    /// The rule of FlashAttention's tests, and a bound in norm: P, dS and the result are rounded, 2^-9 each in bf16.
    pub(super) fn verdict(self, dtype: DType, data: Data) -> Result<(), String> {
        // Where dP - delta cancels (a row that sees one key) what is left is noise of f32: sums of 128 products.
        let bound = 2.0 * self.plain + 1e-5;
        let noise = 3e-5 * (self.count as f64).sqrt();
        let fixed = if dtype == DType::Bf16 { 6e-3 } else { 1e-3 };
        // dP - delta cancels too where a row sees few keys or its softmax is nearly one-hot: what is left is the
        // rounding of O, in any implementation. A plain one with a rounded O has it as well and is the measure.
        let in_norm = match data {
            Data::Normal => (fixed * self.norm.sqrt()).max(self.plain_square.sqrt()),
            _ => 2.0 * self.plain_square.sqrt(),
        };
        if self.worst.0 <= bound && self.square.sqrt() <= in_norm + noise {
            return Ok(());
        }
        let (norm, relative) = (self.norm.sqrt(), self.square.sqrt() / self.norm.sqrt());
        Err(format!(
            "{dtype} {}: largest error {:.2e}, allowed {bound:.2e}; in norm {:.2e} of {norm:.2e} ({relative:.2e}), allowed {:.2e}; {}",
            self.name,
            self.worst.0,
            self.square.sqrt(),
            in_norm + noise,
            self.worst.1
        ))
    }
}

/// The rows of some heads of one sequence.
fn cut<T: Copy>(data: &[T], e: Extents, (batch, first, heads): (usize, usize, usize)) -> Vec<T> {
    let rows = &data[batch * e.seq * e.heads * e.head_dim..][..e.seq * e.heads * e.head_dim];
    let row = |row: &[T]| row[first * e.head_dim..][..heads * e.head_dim].to_vec();
    rows.chunks(e.heads * e.head_dim).flat_map(row).collect()
}

/// One KV head with its query heads, a problem of its own.
pub(super) struct Part<T> {
    pub(super) shape: Shape,
    pub(super) mask: FlashMask,
    pub(super) scale: f32,
    pub(super) q: Vec<T>,
    pub(super) k: Vec<T>,
    pub(super) v: Vec<T>,
    pub(super) dout: Vec<T>,
    /// For each query head, of each column.
    bands: Vec<Vec<Bands>>,
}

/// What a plain implementation keeps of a row: its softmax, and sum(dO * O).
struct RowSums {
    max: f32,
    sum: f32,
    delta: f32,
    dq: Vec<f32>,
}

impl<T: Element> Part<T> {
    pub(super) fn new(
        case: &Case,
        (tensors, dout): (&Tensors<T>, &[T]),
        (batch, kv): (usize, usize),
    ) -> Self {
        let (dims, of_mask, columns) = (case.dims, case.mask.dims(), case.mask.columns());
        let group = dims.heads_q / dims.heads_kv;
        let mask_dims = MaskDims { batch: 1, heads: group, ..of_mask };
        let size = dims.seq_k * columns.count();
        let sequence = if of_mask.batch == 1 { 0 } else { batch };
        let of_head = |head: usize| {
            let mask_head = sequence * of_mask.heads + head / (dims.heads_q / of_mask.heads);
            &case.mask.bounds()[mask_head * size..][..size]
        };
        let bounds = (kv * group..(kv + 1) * group).flat_map(of_head).copied().collect();
        let mask = FlashMask::new(mask_dims, columns, case.mask.is_causal(), bounds).unwrap();
        let bands = |head| mask.bands_in(MaskHead { batch: 0, head }, 0..dims.seq_k).collect();
        Self {
            shape: Shape::new(Dims { batch: 1, heads_q: group, heads_kv: 1, ..dims }).unwrap(),
            scale: case.scale(),
            q: cut(&tensors.q, case.queries(), (batch, kv * group, group)),
            k: cut(&tensors.k, case.keys(), (batch, kv, 1)),
            v: cut(&tensors.v, case.keys(), (batch, kv, 1)),
            dout: cut(dout, case.queries(), (batch, kv * group, group)),
            bands: (0..group).map(bands).collect(),
            mask,
        }
    }

    fn sees(&self, head: usize, row: usize, column: usize) -> bool {
        self.bands[head][column].masked_in(Rows { start: row, end: row + 1 }) == 0
    }

    /// Gradients of rows and columns without a pair are 0, not merely small.
    fn check_unseen(&self, [dq, dk, dv]: [&[T]; 3]) -> Result<(), String> {
        let Dims { heads_q, seq_q, seq_k, head_dim: d, .. } = self.shape.dims();
        let zero = |data: &[T], row: usize| data[row * d..][..d].iter().all(|value| value.to_f32() == 0.0);
        let bad_row = (0..seq_q * heads_q).into_par_iter().find_any(|index| {
            let (row, head) = (index / heads_q, index % heads_q);
            !(0..seq_k).any(|column| self.sees(head, row, column)) && !zero(dq, *index)
        });
        let bad_column = (0..seq_k).into_par_iter().find_any(|column| {
            let seen = (0..heads_q).any(|head| (0..seq_q).any(|row| self.sees(head, row, *column)));
            let written = [dk, dv].into_iter().any(|grad| !zero(grad, *column));
            !seen && written
        });
        match (bad_row, bad_column) {
            (None, None) => Ok(()),
            (Some(row), _) => Err(format!("row {} sees nothing, dQ is not 0", row / heads_q)),
            (_, Some(column)) => Err(format!("nobody sees column {column}, dK or dV is not 0")),
        }
    }

    pub(super) fn exact(&self) -> Gradients {
        let dims = self.shape.dims();
        let queries = Extents { batch: 1, seq: dims.seq_q, heads: dims.heads_q, head_dim: dims.head_dim };
        let keys = Extents { seq: dims.seq_k, heads: 1, ..queries };
        let attention = Attention {
            shape: self.shape,
            mask: &self.mask,
            scale: self.scale,
            q: View4::bshd(&self.q, queries).unwrap(),
            k: View4::bshd(&self.k, keys).unwrap(),
            v: View4::bshd(&self.v, keys).unwrap(),
        };
        attention.backward(&attention.forward(), &View4::bshd(&self.dout, queries).unwrap())
    }

    /// A framework without a fused kernel: S, its scaled form, P, O, dP and dS are tensors of type T; sums are f32.
    pub(super) fn plain(&self) -> Gradients {
        let Dims { heads_q, seq_q, seq_k, head_dim: d, .. } = self.shape.dims();
        let wide = |data: &[T]| -> Vec<f32> { data.iter().map(|value| value.to_f32()).collect() };
        let [q, k, v, dout] = [&self.q, &self.k, &self.v, &self.dout].map(|data| wide(data));
        let row = |data: &'_ [f32], row: usize| -> [f32; 128] { data[row * d..][..d].try_into().unwrap() };
        let score = |q: &[f32], k: &[f32]| round::<T>(round::<T>(dot(q, k)) * self.scale);
        let sums_of = |index: usize| -> RowSums {
            let (q, dout) = (row(&q, index), row(&dout, index));
            let sees = |column: &usize| self.sees(index % heads_q, index / heads_q, *column);
            let columns: Vec<usize> = (0..seq_k).filter(sees).collect();
            let scores: Vec<f32> = columns.iter().map(|j| score(&q, &k[j * d..][..d])).collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f32 = scores.iter().map(|score| (score - max).exp()).sum();
            let p: Vec<f32> = scores.iter().map(|score| round::<T>((score - max).exp() / sum)).collect();
            let (mut o, mut dq) = (vec![0.0; d], vec![0.0; d]);
            columns.iter().zip(&p).for_each(|(j, p)| add(&mut o, *p, &v[j * d..][..d]));
            o.iter_mut().for_each(|value| *value = round::<T>(*value));
            let delta = dot(&o, &dout);
            for (j, p) in columns.iter().zip(&p) {
                let ds = round::<T>(p * (round::<T>(dot(&dout, &v[j * d..][..d])) - delta));
                add(&mut dq, ds, &k[j * d..][..d]);
            }
            dq.iter_mut().for_each(|value| *value = round::<T>(*value * self.scale));
            RowSums { max, sum, delta, dq }
        };
        let rows: Vec<RowSums> = (0..seq_q * heads_q).into_par_iter().map(sums_of).collect();
        let column_of = |column: usize| -> [Vec<f32>; 2] {
            let (k, v) = (row(&k, column), row(&v, column));
            let mut totals = [vec![0.0; d], vec![0.0; d]];
            for head in 0..heads_q {
                let (mut dk, mut dv) = (vec![0.0; d], vec![0.0; d]);
                for index in (0..seq_q).filter(|i| self.sees(head, *i, column)).map(|i| i * heads_q + head) {
                    let (sums, q, dout) = (&rows[index], &q[index * d..][..d], &dout[index * d..][..d]);
                    let p = round::<T>((score(q, &k) - sums.max).exp() / sums.sum);
                    let ds = round::<T>(p * (round::<T>(dot(dout, &v)) - sums.delta));
                    add(&mut dk, ds, q);
                    add(&mut dv, p, dout);
                }
                let [total_dk, total_dv] = &mut totals;
                total_dk.iter_mut().zip(dk).for_each(|(sum, dk)| *sum += round::<T>(dk * self.scale));
                total_dv.iter_mut().zip(dv).for_each(|(sum, dv)| *sum += round::<T>(dv));
            }
            totals.map(|total| total.into_iter().map(round::<T>).collect())
        };
        let columns: Vec<[Vec<f32>; 2]> = (0..seq_k).into_par_iter().map(column_of).collect();
        let column = |which: usize| columns.iter().flat_map(move |both| &both[which]).copied().map(f64::from);
        Gradients {
            dq: rows.iter().flat_map(|sums| &sums.dq).copied().map(f64::from).collect(),
            dk: column(0).collect(),
            dv: column(1).collect(),
        }
    }
}

fn round<T: Element>(value: f32) -> f32 {
    T::from_f32(value).to_f32()
}

fn add(sum: &mut [f32], factor: f32, row: &[f32]) {
    sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += factor * value);
}

/// Sixteen partial sums, so that the compiler may use vectors.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    for (a, b) in a.as_chunks::<16>().0.iter().zip(b.as_chunks::<16>().0) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum()
}
