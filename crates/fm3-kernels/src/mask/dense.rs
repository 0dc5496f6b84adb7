//! From a dense boolean mask to the smallest column form that says the same.
use super::build::bound;
use super::{Columns, FlashMask, MaskDims, Rows};
use crate::Error;

/// Masked rows of one column as maximal runs of rows; only the first two are kept.
#[derive(Clone, Copy)]
struct Runs {
    kept: [Rows; 2],
    count: usize,
    /// One past the last masked row so far.
    end: usize,
}

/// The forms in the order in which they are tried.
const FORMS: [(Columns, bool); 4] =
    [(Columns::One, true), (Columns::Two, true), (Columns::Two, false), (Columns::Four, false)];

impl FlashMask {
    /// A mask from `visible`, row-major [b, h_mask, s_q, s_k], true where row i may see column j. Exact.
    ///
    /// # Errors
    /// [`Error::NotExpressible`] names the first column whose masked rows are more than two intervals;
    /// [`Error::WrongLength`], [`Error::ZeroDim`], [`Error::TooLong`].
    pub fn from_dense(dims: MaskDims, visible: &[bool]) -> Result<Self, Error> {
        dims.check("FlashMask::from_dense")?;
        let expected = dims.total_columns().saturating_mul(dims.seq_q);
        if visible.len() != expected {
            return Err(Error::WrongLength { call: "FlashMask::from_dense", expected, got: visible.len() });
        }
        let heads = visible.chunks_exact(dims.seq_q * dims.seq_k);
        let runs: Vec<Runs> = heads.flat_map(|head| runs_of_head(head, dims.seq_k)).collect();
        if let Some(index) = runs.iter().position(|runs| runs.count > 2) {
            let at = dims.column_at(index);
            let intervals = runs[index].count;
            return Err(Error::NotExpressible {
                batch: at.batch,
                head: at.head,
                column: at.column,
                intervals,
            });
        }
        for (columns, causal) in FORMS {
            if let Some(bounds) = encode_all(dims, (columns, causal), &runs) {
                return Self::new(dims, columns, causal, bounds);
            }
        }
        unreachable!("C = 4 holds any two runs")
    }
}

fn runs_of_head(visible: &[bool], seq_k: usize) -> Vec<Runs> {
    let mut runs = vec![Runs { kept: [Rows::EMPTY; 2], count: 0, end: 0 }; seq_k];
    // Row by row, because that is how the array lies in memory.
    for (row, seen) in visible.chunks_exact(seq_k).enumerate() {
        for (runs, _) in runs.iter_mut().zip(seen).filter(|(_, seen)| !**seen) {
            runs.add(row);
        }
    }
    runs
}

impl Runs {
    fn add(&mut self, row: usize) {
        let continues = self.count > 0 && self.end == row;
        self.end = row + 1;
        if !continues {
            self.count += 1;
        }
        if let Some(run) = self.kept.get_mut(self.count - 1) {
            *run = Rows { start: if continues { run.start } else { row }, end: row + 1 };
        }
    }

    /// Bounds that say these runs in the given form; none when it cannot.
    fn encode(self, form: (Columns, bool), seq_q: usize, above_diagonal: Rows) -> Option<Vec<usize>> {
        let [first, second] = self.kept;
        if let (Columns::Four, _) = form {
            let (lower, upper) = if self.count == 2 { (second, first) } else { (first, Rows::EMPTY) };
            return Some(vec![lower.start, lower.end, upper.start, upper.end]);
        }
        // The other forms fix a start at row 0, of the length of one run there or of the diagonal.
        let at_top = if first.start == 0 { first } else { Rows::EMPTY };
        let top = if form.1 { above_diagonal } else { at_top };
        if top.end > at_top.end {
            return None;
        }
        let below = |run: Rows| run.intersect(Rows { start: top.end, end: seq_q });
        let rest = match [below(first), below(second)] {
            [a, b] if b.is_empty() => a,
            [a, b] if a.is_empty() => b,
            _ => return None,
        };
        let rest = if rest.is_empty() { Rows { start: seq_q, end: seq_q } } else { rest };
        match form {
            (Columns::Two, true) => Some(vec![rest.start, rest.end]),
            (Columns::One, _) => (rest.end == seq_q).then(|| vec![rest.start]),
            _ => (rest.end == seq_q).then(|| vec![rest.start, top.end]),
        }
    }
}

fn encode_all(dims: MaskDims, form: (Columns, bool), runs: &[Runs]) -> Option<Vec<i32>> {
    let mut bounds = Vec::with_capacity(runs.len() * form.0.count());
    for (index, runs) in runs.iter().enumerate() {
        let above_diagonal = dims.above_diagonal(dims.column_at(index).column);
        bounds.extend(runs.encode(form, dims.seq_q, above_diagonal)?.into_iter().map(bound));
    }
    Some(bounds)
}
