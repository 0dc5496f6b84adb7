//! Plain f64 attention, for tests and checks: obvious on purpose, and sharing no code with the engine.
//!
//! The mask is read from its dense definition, pair by pair ([`visible`]). Each query row gives its O, LSE and dQ
//! row on its own, each key column its dK and dV row, so a whole problem and a sample of it are the same code:
//! a sample costs (rows or columns sampled) * S * d, with one copy of each sampled head in f64.
mod head;

use rayon::prelude::*;

use head::{Definition, Head, Known, add_scaled, widen};

use crate::mask::FlashMask;
use crate::view::View4;
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
pub fn visible(mask: &FlashMask, heads_q: usize, pair: Pair) -> bool {
    let at = HeadAt { batch: pair.batch, head: pair.head };
    Definition::new(mask, heads_q, at).sees(pair.row, pair.column)
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

fn heads(batch: usize, heads: usize) -> impl Iterator<Item = HeadAt> {
    (0..batch).flat_map(move |batch| (0..heads).map(move |head| HeadAt { batch, head }))
}

/// Adds a row of d elements to the `place`-th of a dense tensor of such rows.
fn put(tensor: &mut [f64], place: usize, row: &[f64]) {
    add_scaled(&mut tensor[place * row.len()..(place + 1) * row.len()], 1.0, row);
}
