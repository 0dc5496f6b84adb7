//! Forward pass: one task per (sequence, query head, row tile), online softmax over the pieces of keys.
use rayon::prelude::*;

use super::check::{self, Piece};
use super::convert::{load_rows, load_rows_scaled, store};
use super::gemm::{Into, Matrix, multiply};
use super::softmax::{Running, online_step};
use super::tile::{Hidden, Scratch, tiles_mut};
use super::{Keys, Problem, TILE};
use crate::Error;
use crate::dtype::Element;
use crate::mask::{BlockClass, BlockLists, MaskHead, QueryHead, TileAt};
use crate::view::{At, View4, View4Mut};

/// A forward pass under way: O so far (unnormalised f32), row maxima and row sums.
#[derive(Debug)]
pub struct Forward<'a, T> {
    problem: Problem<'a, T>,
    /// [b, hq, sq, d]
    o: Vec<f32>,
    /// [b, hq, sq], log2 units
    max: Vec<f32>,
    /// [b, hq, sq]
    sum: Vec<f32>,
}

/// One row tile of one query head, with what it accumulates.
struct Task<'t> {
    batch: usize,
    head: usize,
    tile: usize,
    running: Running<'t>,
}

impl<'a, T: Element> Forward<'a, T> {
    /// Starts a pass that has seen no keys.
    ///
    /// # Errors
    /// [`Error::Mismatch`], [`Error::MaskHeads`], [`Error::Scale`] when the parts do not fit each other.
    pub fn new(problem: Problem<'a, T>) -> Result<Self, Error> {
        check::problem("cpu::Forward::new", &problem)?;
        let dims = problem.shape.dims();
        let rows = dims.batch * dims.heads_q * dims.seq_q;
        let (o, max, sum) = (vec![0.0; rows * dims.head_dim], vec![f32::NEG_INFINITY; rows], vec![0.0; rows]);
        Ok(Self { problem, o, max, sum })
    }

    /// Adds one piece of keys.
    ///
    /// `blocks` are those of the problem's mask, with tile size [`TILE`], for a range of columns that holds the
    /// piece; the piece starts on a tile edge of that range, and ends on one unless nothing follows it.
    /// Each (column, KV head) must come exactly once in a pass.
    ///
    /// # Errors
    /// [`Error::Mismatch`], [`Error::Outside`], [`Error::PieceStart`].
    pub fn attend(&mut self, keys: &Keys<'_, T>, blocks: &BlockLists) -> Result<(), Error> {
        let piece = check::piece("cpu::Forward::attend", &self.problem, keys, blocks)?;
        let problem = self.problem;
        self.tasks(&piece)
            .into_par_iter()
            .with_max_len(1)
            .for_each(|task| Scratch::lend(|scratch| task.run(&problem, keys, blocks, &piece, scratch)));
        Ok(())
    }

    /// Writes O [b, sq, hq, d], normalised and rounded once, and LSE [b, hq, sq] (natural logarithm).
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn finish(self, o: &mut View4Mut<'_, T>, lse: &mut [f32]) -> Result<(), Error> {
        let shape = self.problem.shape;
        check::outputs("cpu::Forward::finish", shape, o, lse)?;
        let dims = shape.dims();
        let sums = &self.sum;
        let rows = View4::bhsd(&self.o, check::query_extents(shape))?;
        store(o, |at| {
            let sum = sums[(at.batch * dims.heads_q + at.head) * dims.seq_q + at.seq];
            (rows.row(at), if sum == 0.0 { 0.0 } else { sum.recip() })
        });
        for (lse, (max, sum)) in lse.iter_mut().zip(self.max.iter().zip(sums)) {
            *lse = natural_lse(*max, *sum);
        }
        Ok(())
    }

    fn tasks(&mut self, piece: &Piece) -> Vec<Task<'_>> {
        let dims = self.problem.shape.dims();
        let group = self.problem.shape.group_size();
        let query_heads = piece.kv_heads.start * group..piece.kv_heads.end * group;
        let (rows, width) = (dims.seq_q, dims.head_dim);
        let row_tiles = rows.div_ceil(TILE.rows);
        let o = tiles_mut(&mut self.o, rows * width, TILE.rows * width);
        let max = tiles_mut(&mut self.max, rows, TILE.rows);
        let sum = tiles_mut(&mut self.sum, rows, TILE.rows);
        let tasks = o.into_iter().zip(max).zip(sum).enumerate().map(|(index, ((o, max), sum))| {
            let head = index / row_tiles;
            let running = Running { o, max, sum };
            Task { batch: head / dims.heads_q, head: head % dims.heads_q, tile: index % row_tiles, running }
        });
        tasks.filter(|task| query_heads.contains(&task.head)).collect()
    }
}

impl Task<'_> {
    fn run<T: Element>(
        mut self,
        problem: &Problem<'_, T>,
        keys: &Keys<'_, T>,
        blocks: &BlockLists,
        piece: &Piece,
        scratch: &mut Scratch,
    ) {
        let dims = problem.shape.dims();
        let (rows, width) = (self.running.max.len(), dims.head_dim);
        let mask_head = problem.mask.head_of(QueryHead { head: self.head, of: dims.heads_q });
        let entries = blocks.for_rows(TileAt { batch: self.batch, head: mask_head, tile: self.tile });
        let entries = piece.within(entries);
        if entries.is_empty() {
            return;
        }
        let first = At { batch: self.batch, seq: self.tile * TILE.rows, head: self.head };
        let q = &mut scratch.q[..rows * width];
        load_rows_scaled(&problem.q, first, problem.log2_scale(), q);
        let q = Matrix::rows_of(q, width);
        for entry in entries {
            let range = piece.rows_of(entry.tile as usize - piece.first_tile);
            let cols = range.len();
            let kv_head = self.head / problem.shape.group_size() - piece.kv_heads.start;
            let at = At { batch: self.batch, seq: range.start, head: kv_head };
            let (k, v) = (&mut scratch.k[..cols * width], &mut scratch.v[..cols * width]);
            let scores = &mut scratch.scores[..rows * cols];
            load_rows(&keys.k, at, k);
            multiply(scores, Into::Write, q, Matrix::rows_of(k, width).transposed());
            if entry.class != BlockClass::Full {
                let columns = piece.first_column + range.start..piece.first_column + range.end;
                let at = MaskHead { batch: self.batch, head: mask_head };
                Hidden::load(problem.mask, at, columns, first.seq).apply(scores, cols);
            }
            online_step(&mut self.running, scores);
            load_rows(&keys.v, at, v);
            multiply(self.running.o, Into::Add, Matrix::rows_of(scores, cols), Matrix::rows_of(v, width));
        }
    }
}

/// ln(sum of e^score) from the maximum in log2 units and the sum of 2^(score - max); -inf when nothing was seen.
fn natural_lse(max: f32, sum: f32) -> f32 {
    if sum == 0.0 {
        return f32::NEG_INFINITY;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the rounding to f32 is wanted")]
    let lse = ((f64::from(max) + f64::from(sum).log2()) * std::f64::consts::LN_2) as f32;
    lse
}
