//! One query head in f64: the definition of the mask, and the arithmetic of one row or one column.
use pulp::Arch;

use super::{Attention, ColumnGradients, HeadAt, RowOutput};
use crate::Element;
use crate::mask::{Columns, FlashMask};
use crate::view::{At, View4};

/// The mask as one query head reads it.
pub(super) struct Definition<'a> {
    columns: Columns,
    causal: bool,
    seq_q: usize,
    seq_k: usize,
    /// [s_k, C] of the head's mask head.
    bounds: &'a [i32],
}

impl<'a> Definition<'a> {
    pub(super) fn new(mask: &'a FlashMask, heads_q: usize, at: HeadAt) -> Self {
        let (dims, columns) = (mask.dims(), mask.columns());
        let mask_head = at.batch * dims.heads + at.head / (heads_q / dims.heads);
        let size = dims.seq_k * columns.count();
        let bounds = &mask.bounds()[mask_head * size..(mask_head + 1) * size];
        Self { columns, causal: mask.is_causal(), seq_q: dims.seq_q, seq_k: dims.seq_k, bounds }
    }

    #[inline(always)]
    pub(super) fn sees(&self, row: usize, column: usize) -> bool {
        let bound = |k: usize| self.bounds[column * self.columns.count() + k].unsigned_abs() as usize;
        let above_diagonal = self.causal && column + self.seq_q > row + self.seq_k;
        let masked = match (self.columns, self.causal) {
            (Columns::One, _) => row >= bound(0),
            (Columns::Two, true) => bound(0) <= row && row < bound(1),
            (Columns::Two, false) => row >= bound(0) || row < bound(1),
            (Columns::Four, _) => (bound(0) <= row && row < bound(1)) || (bound(2) <= row && row < bound(3)),
        };
        !masked && !above_diagonal
    }
}

/// One query head and its keys in f64, dense [s, d].
pub(super) struct Head<'a> {
    mask: Definition<'a>,
    width: usize,
    scale: f64,
    q: Vec<f64>,
    k: Vec<f64>,
    v: Vec<f64>,
}

/// What the gradients of a query row need beside the inputs.
#[derive(Clone, Copy)]
pub(super) struct Known<'k> {
    /// dO, `[d]`.
    dout: &'k [f64],
    lse: f64,
    /// sum(dO * O)
    delta: f64,
}

impl<'k> Known<'k> {
    pub(super) fn new(dout: &'k [f64], lse: f64, o: &[f64]) -> Self {
        Self { dout, lse, delta: dot(o, dout) }
    }
}

impl<'a> Head<'a> {
    pub(super) fn new<T: Element>(problem: &Attention<'a, T>, at: HeadAt) -> Self {
        let dims = problem.shape.dims();
        let kv = HeadAt { batch: at.batch, head: at.head / problem.shape.group_size() };
        Self {
            mask: Definition::new(problem.mask, dims.heads_q, at),
            width: dims.head_dim,
            scale: f64::from(problem.scale),
            q: widen(&problem.q, at),
            k: widen(&problem.k, kv),
            v: widen(&problem.v, kv),
        }
    }

    #[inline(always)]
    pub(super) fn row_of<'r>(&self, tensor: &'r [f64], row: usize) -> &'r [f64] {
        &tensor[row * self.width..(row + 1) * self.width]
    }

    #[inline(always)]
    fn score(&self, row: usize, column: usize) -> f64 {
        self.scale * dot(self.row_of(&self.q, row), self.row_of(&self.k, column))
    }

    pub(super) fn forward_row(&self, row: usize) -> RowOutput {
        vectorised(
            #[inline(always)]
            || {
                let mut scores = Vec::new();
                for column in 0..self.mask.seq_k {
                    if self.mask.sees(row, column) {
                        scores.push((column, self.score(row, column)));
                    }
                }
                let mut o = vec![0.0; self.width];
                if scores.is_empty() {
                    return RowOutput { o, lse: f64::NEG_INFINITY };
                }
                let max = scores.iter().map(|(_, score)| *score).fold(f64::NEG_INFINITY, f64::max);
                scores.iter_mut().for_each(|(_, score)| *score = (*score - max).exp());
                let sum: f64 = scores.iter().map(|(_, power)| power).sum();
                for (column, power) in scores {
                    add_scaled(&mut o, power / sum, self.row_of(&self.v, column));
                }
                RowOutput { o, lse: max + sum.ln() }
            },
        )
    }

    /// P and dS = P (dP - delta) of a visible pair.
    #[inline(always)]
    fn pair(&self, row: usize, column: usize, known: Known<'_>) -> (f64, f64) {
        let p = (self.score(row, column) - known.lse).exp();
        (p, p * (dot(known.dout, self.row_of(&self.v, column)) - known.delta))
    }

    pub(super) fn query_gradient(&self, row: usize, known: Known<'_>) -> Vec<f64> {
        vectorised(
            #[inline(always)]
            || {
                let mut dq = vec![0.0; self.width];
                for column in 0..self.mask.seq_k {
                    if self.mask.sees(row, column) {
                        let (_, ds) = self.pair(row, column, known);
                        add_scaled(&mut dq, self.scale * ds, self.row_of(&self.k, column));
                    }
                }
                dq
            },
        )
    }

    pub(super) fn column_gradients(&self, column: usize, known: &[Known<'_>]) -> ColumnGradients {
        vectorised(
            #[inline(always)]
            || {
                let (mut dk, mut dv) = (vec![0.0; self.width], vec![0.0; self.width]);
                for (row, known) in known.iter().enumerate() {
                    if self.mask.sees(row, column) {
                        let (p, ds) = self.pair(row, column, *known);
                        add_scaled(&mut dk, self.scale * ds, self.row_of(&self.q, row));
                        add_scaled(&mut dv, p, known.dout);
                    }
                }
                ColumnGradients { dk, dv }
            },
        )
    }
}

/// Compiles `work`, and what is inlined in it, for the vector instructions of this processor.
fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    Arch::new().dispatch(work)
}

/// One head as dense f64 [s, d].
pub(super) fn widen<T: Element>(tensor: &View4<'_, T>, at: HeadAt) -> Vec<f64> {
    let rows = (0..tensor.extents().seq).map(|seq| tensor.row(At { batch: at.batch, seq, head: at.head }));
    rows.flatten().map(|value| f64::from(value.to_f32())).collect()
}

/// Eight partial sums, so that the compiler may use vectors; d is a multiple of 8.
#[inline(always)]
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    for (a, b) in a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

#[inline(always)]
pub(super) fn add_scaled(sum: &mut [f64], factor: f64, row: &[f64]) {
    for (sum, value) in sum.iter_mut().zip(row) {
        *sum += factor * value;
    }
}
