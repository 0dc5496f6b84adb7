//! Plain f64 attention, for tests and checks: obvious on purpose, and sharing no code with the engine.
//!
//! The mask is read from its dense definition, pair by pair ([`visible`]). Each query row gives its O, LSE and dQ
//! row on its own, each key column its dK and dV row, so a whole problem and a sample of it are the same code:
//! a sample costs (rows or columns sampled) * S * d, with one copy of each sampled head in f64.
use rayon::prelude::*;

use crate::mask::{Columns, FlashMask};
use crate::view::{At, View4};
use crate::{Element, Shape};

/// Names one (query row, key column) pair of one query head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Sequence of the batch.
    pub batch: usize,
    /// Query head.
    pub head: usize,
    /// Query row.
    pub row: usize,
    /// Key column.
    pub column: usize,
}

/// Names one head of one sequence: a query head or a KV head, as the call says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadAt {
    /// Sequence of the batch.
    pub batch: usize,
    /// Head.
    pub head: usize,
}

/// Whether a query row sees a key column, of `heads_q` query heads: the definition of the mask format, word by word.
///
/// # Panics
/// When the pair is outside the mask.
#[inline]
pub fn visible(mask: &FlashMask, heads_q: usize, pair: Pair) -> bool {
    let dims = mask.dims();
    let bound = |k: usize| -> usize {
        let mask_head = pair.head / (heads_q / dims.heads);
        let column = (pair.batch * dims.heads + mask_head) * dims.seq_k + pair.column;
        mask.bounds()[column * mask.columns().count() + k].max(0).unsigned_abs() as usize
    };
    let row = pair.row;
    let above_diagonal = mask.is_causal() && pair.column + dims.seq_q > row + dims.seq_k;
    let masked = match (mask.columns(), mask.is_causal()) {
        (Columns::One, _) => row >= bound(0),
        (Columns::Two, true) => bound(0) <= row && row < bound(1),
        (Columns::Two, false) => row >= bound(0) || row < bound(1),
        (Columns::Four, _) => (bound(0) <= row && row < bound(1)) || (bound(2) <= row && row < bound(3)),
    };
    !masked && !above_diagonal
}

/// An attention problem.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a, T> {
    /// Sizes.
    pub shape: Shape,
    /// Who sees whom.
    pub mask: &'a FlashMask,
    /// Factor of Q K^T before softmax.
    pub scale: f32,
    /// Q, [b, sq, hq, d].
    pub q: View4<'a, T>,
    /// K, [b, sk, hkv, d].
    pub k: View4<'a, T>,
    /// V, [b, sk, hkv, d].
    pub v: View4<'a, T>,
}

/// Forward result of a whole problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Output {
    /// O, dense [b, sq, hq, d].
    pub o: Vec<f64>,
    /// LSE, dense [b, hq, sq], natural logarithm; -inf for fully masked rows.
    pub lse: Vec<f64>,
}

/// Gradients of a whole problem.
#[derive(Clone, Debug, PartialEq)]
pub struct Gradients {
    /// dQ, dense [b, sq, hq, d].
    pub dq: Vec<f64>,
    /// dK, dense [b, sk, hkv, d].
    pub dk: Vec<f64>,
    /// dV, dense [b, sk, hkv, d].
    pub dv: Vec<f64>,
}

/// Forward result of one query row of one head.
#[derive(Clone, Debug, PartialEq)]
pub struct RowOutput {
    /// O, `[d]`.
    pub o: Vec<f64>,
    /// LSE; -inf when the row is fully masked.
    pub lse: f64,
}

/// Gradients of one key row of one KV head.
#[derive(Clone, Debug, PartialEq)]
pub struct ColumnGradients {
    /// dK, `[d]`.
    pub dk: Vec<f64>,
    /// dV, `[d]`.
    pub dv: Vec<f64>,
}

/// A finished forward pass as its user holds it.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a, T> {
    /// O, [b, sq, hq, d].
    pub o: View4<'a, T>,
    /// LSE, [b, hq, sq].
    pub lse: &'a [f32],
    /// dO, [b, sq, hq, d].
    pub dout: View4<'a, T>,
}

impl<T: Element> Attention<'_, T> {
    /// O and LSE of all rows. All methods panic when the tensors do not have the extents that the shape says.
    pub fn forward(&self) -> Output {
        let dims = self.shape.dims();
        let rows: Vec<usize> = (0..dims.seq_q).collect();
        let mut output = Output {
            o: vec![0.0; dims.batch * dims.seq_q * dims.heads_q * dims.head_dim],
            lse: Vec::with_capacity(dims.batch * dims.heads_q * dims.seq_q),
        };
        for at in heads(dims.batch, dims.heads_q) {
            for (row, result) in self.forward_rows(at, &rows).into_iter().enumerate() {
                put(&mut output.o, (at.batch * dims.seq_q + row) * dims.heads_q + at.head, &result.o);
                output.lse.push(result.lse);
            }
        }
        output
    }

    /// dQ, dK, dV of all rows, from this problem's own [`forward`](Self::forward) result.
    pub fn backward(&self, output: &Output, dout: &View4<'_, T>) -> Gradients {
        let dims = self.shape.dims();
        let (sq, sk, d) = (dims.seq_q, dims.seq_k, dims.head_dim);
        let keys = dims.batch * sk * dims.heads_kv * d;
        let mut all = Gradients { dq: vec![0.0; output.o.len()], dk: vec![0.0; keys], dv: vec![0.0; keys] };
        for at in heads(dims.batch, dims.heads_q) {
            let head = Head::new(self, at);
            let dout = widen(dout, at);
            let place = |row: usize| (at.batch * sq + row) * dims.heads_q + at.head;
            let start = (at.batch * dims.heads_q + at.head) * sq;
            let known: Vec<Known<'_>> = (0..sq)
                .map(|row| {
                    Known::new(
                        &dout[row * d..][..d],
                        output.lse[start + row],
                        &output.o[place(row) * d..][..d],
                    )
                })
                .collect();
            let dq: Vec<_> =
                (0..sq).into_par_iter().map(|row| head.query_gradient(row, known[row])).collect();
            dq.iter().enumerate().for_each(|(row, dq)| put(&mut all.dq, place(row), dq));
            let columns: Vec<_> =
                (0..sk).into_par_iter().map(|column| head.column_gradients(column, &known)).collect();
            for (column, ColumnGradients { dk, dv }) in columns.iter().enumerate() {
                let place = (at.batch * sk + column) * dims.heads_kv + at.head / self.shape.group_size();
                put(&mut all.dk, place, dk);
                put(&mut all.dv, place, dv);
            }
        }
        all
    }

    /// O and LSE of chosen rows of query head `at`.
    pub fn forward_rows(&self, at: HeadAt, rows: &[usize]) -> Vec<RowOutput> {
        let head = Head::new(self, at);
        rows.par_iter().map(|row| head.forward_row(*row)).collect()
    }

    /// dQ of chosen rows of query head `at`: `[d]` each. Nothing but the inputs and dO is needed.
    pub fn query_gradients(&self, at: HeadAt, rows: &[usize], dout: &View4<'_, T>) -> Vec<Vec<f64>> {
        let head = Head::new(self, at);
        let dout = widen(dout, at);
        let gradient = |row: &usize| {
            let RowOutput { o, lse } = head.forward_row(*row);
            head.query_gradient(*row, Known::new(head.row_of(&dout, *row), lse, &o))
        };
        rows.par_iter().map(gradient).collect()
    }

    /// dK and dV of chosen key columns of KV head `at`.
    ///
    /// A column needs LSE and rowsum(dO * O) of every row that sees it. To compute those anew would cost S^2 * d a
    /// head, so they come from the forward pass under test. That is sound only together with a check of that pass:
    /// compare its O and LSE with [`forward_rows`](Self::forward_rows). An error e in LSE changes P by a factor
    /// 1 + e; the rounding of O enters delta, as it does in any implementation that keeps O rounded.
    pub fn column_gradients(
        &self,
        at: HeadAt,
        columns: &[usize],
        saved: &Saved<'_, T>,
    ) -> Vec<ColumnGradients> {
        let (dims, group) = (self.shape.dims(), self.shape.group_size());
        let d = dims.head_dim;
        let mut sums = vec![ColumnGradients { dk: vec![0.0; d], dv: vec![0.0; d] }; columns.len()];
        for query_head in at.head * group..(at.head + 1) * group {
            let at = HeadAt { batch: at.batch, head: query_head };
            let head = Head::new(self, at);
            let (o, dout) = (widen(&saved.o, at), widen(&saved.dout, at));
            let start = (at.batch * dims.heads_q + query_head) * dims.seq_q;
            let rows = o.chunks(d).zip(dout.chunks(d)).zip(&saved.lse[start..start + dims.seq_q]);
            let known: Vec<Known<'_>> =
                rows.map(|((o, dout), lse)| Known::new(dout, f64::from(*lse), o)).collect();
            sums.par_iter_mut().zip(columns).for_each(|(sum, column)| {
                let ColumnGradients { dk, dv } = head.column_gradients(*column, &known);
                add_scaled(&mut sum.dk, 1.0, &dk);
                add_scaled(&mut sum.dv, 1.0, &dv);
            });
        }
        sums
    }
}

/// One query head and its keys in f64, dense [s, d].
struct Head<'a> {
    mask: &'a FlashMask,
    heads_q: usize,
    at: HeadAt,
    width: usize,
    scale: f64,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

/// What the gradients of a query row need beside the inputs.
#[derive(Clone, Copy)]
struct Known<'k> {
    /// dO, `[d]`.
    dout: &'k [f64],
    lse: f64,
    /// sum(dO * O)
    delta: f64,
}

impl<'k> Known<'k> {
    fn new(dout: &'k [f64], lse: f64, o: &[f64]) -> Self {
        Self { dout, lse, delta: dot(o, dout) }
    }
}

impl<'a> Head<'a> {
    fn new<T: Element>(problem: &Attention<'a, T>, at: HeadAt) -> Self {
        let dims = problem.shape.dims();
        let kv = HeadAt { batch: at.batch, head: at.head / problem.shape.group_size() };
        Self {
            mask: problem.mask,
            heads_q: dims.heads_q,
            at,
            width: dims.head_dim,
            scale: f64::from(problem.scale),
            q: widen(&problem.q, at),
            k: widen(&problem.k, kv),
            v: widen(&problem.v, kv),
        }
    }

    fn row_of<'r>(&self, tensor: &'r [f64], row: usize) -> &'r [f64] {
        &tensor[row * self.width..(row + 1) * self.width]
    }

    fn sees(&self, row: usize, column: usize) -> bool {
        visible(self.mask, self.heads_q, Pair { batch: self.at.batch, head: self.at.head, row, column })
    }

    fn score(&self, row: usize, column: usize) -> f64 {
        self.scale * dot(self.row_of(&self.q, row), self.row_of(&self.k, column))
    }

    fn forward_row(&self, row: usize) -> RowOutput {
        let columns = (0..self.mask.dims().seq_k).filter(|column| self.sees(row, *column));
        let scores: Vec<(usize, f64)> = columns.map(|column| (column, self.score(row, column))).collect();
        let max = scores.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
        let mut o = vec![0.0; self.width];
        if scores.is_empty() {
            return RowOutput { o, lse: f64::NEG_INFINITY };
        }
        let sum: f64 = scores.iter().map(|(_, score)| (score - max).exp()).sum();
        for (column, score) in scores {
            add_scaled(&mut o, (score - max).exp() / sum, self.row_of(&self.v, column));
        }
        RowOutput { o, lse: max + sum.ln() }
    }

    /// P and dS = P (dP - delta) of a visible pair.
    fn pair(&self, row: usize, column: usize, known: Known<'_>) -> (f64, f64) {
        let p = (self.score(row, column) - known.lse).exp();
        (p, p * (dot(known.dout, self.row_of(&self.v, column)) - known.delta))
    }

    fn query_gradient(&self, row: usize, known: Known<'_>) -> Vec<f64> {
        let mut dq = vec![0.0; self.width];
        for column in (0..self.mask.dims().seq_k).filter(|column| self.sees(row, *column)) {
            let (_, ds) = self.pair(row, column, known);
            add_scaled(&mut dq, self.scale * ds, self.row_of(&self.k, column));
        }
        dq
    }

    fn column_gradients(&self, column: usize, known: &[Known<'_>]) -> ColumnGradients {
        let (mut dk, mut dv) = (vec![0.0; self.width], vec![0.0; self.width]);
        for row in (0..self.mask.dims().seq_q).filter(|row| self.sees(*row, column)) {
            let (p, ds) = self.pair(row, column, known[row]);
            add_scaled(&mut dk, self.scale * ds, self.row_of(&self.q, row));
            add_scaled(&mut dv, p, known[row].dout);
        }
        ColumnGradients { dk, dv }
    }
}

fn heads(batch: usize, heads: usize) -> impl Iterator<Item = HeadAt> {
    (0..batch).flat_map(move |batch| (0..heads).map(move |head| HeadAt { batch, head }))
}

/// One head as dense f64 [s, d].
fn widen<T: Element>(tensor: &View4<'_, T>, at: HeadAt) -> Vec<f64> {
    let rows = (0..tensor.extents().seq).map(|seq| tensor.row(At { batch: at.batch, seq, head: at.head }));
    rows.flatten().map(|value| f64::from(value.to_f32())).collect()
}

/// Adds a row of d elements to the `place`-th of a dense tensor of such rows.
fn put(tensor: &mut [f64], place: usize, row: &[f64]) {
    add_scaled(&mut tensor[place * row.len()..(place + 1) * row.len()], 1.0, row);
}

/// Eight partial sums, so that the compiler may use vectors; d is a multiple of 8.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

fn add_scaled(sum: &mut [f64], factor: f64, row: &[f64]) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum += factor * value;
    }
}
