//! Backward pass: recomputes P tile by tile from LSE, in waves (see [`wave`](super::wave)).
use rayon::prelude::*;

use super::check::{self, Piece};
use super::convert::{load_rows, load_rows_scaled, store};
use super::gemm::{Into, Matrix, multiply};
use super::softmax::{probabilities, score_gradients};
use super::tile::{Hidden, Scratch, tiles_mut};
use super::wave::{Block, RowBlock, Unit, Wave, Waves};
use super::{KeyGrads, Keys, Problem, Saved, TILE};
use crate::Error;
use crate::dtype::Element;
use crate::mask::{BlockClass, BlockLists, MaskHead, QueryHead};
use crate::view::{At, View4, View4Mut};

/// Elements that one dS tile takes in the workspace.
const SLOT: usize = TILE.rows * TILE.cols;

/// A backward pass under way: dQ so far (f32, without the scale).
#[derive(Debug)]
pub struct Backward<'a, T> {
    problem: Problem<'a, T>,
    dout: View4<'a, T>,
    /// [b, hq, sq], log2 units; +inf for fully masked rows, which makes their P zero.
    lse: Vec<f32>,
    /// rowsum(dO * O), [b, hq, sq].
    delta: Vec<f32>,
    /// [b, hq, sq, d]
    dq: Vec<f32>,
    /// dS tiles of one wave, kept between pieces.
    workspace: Vec<f32>,
}

/// One unit of a wave with what it writes.
struct UnitTask<'t> {
    unit: &'t Unit,
    /// dS tiles of the unit's blocks.
    ds: &'t mut [f32],
    /// [rows of the key tile, d], in units of ln 2.
    dk: &'t mut [f32],
    dv: &'t mut [f32],
}

/// What all tasks of a piece read.
struct Context<'c, T> {
    problem: &'c Problem<'c, T>,
    dout: &'c View4<'c, T>,
    lse: &'c [f32],
    delta: &'c [f32],
    keys: &'c Keys<'c, T>,
    piece: &'c Piece,
}

impl<'a, T: Element> Backward<'a, T> {
    /// Starts a pass: checks everything and computes delta = rowsum(dO * O).
    ///
    /// # Errors
    /// [`Error::Mismatch`], [`Error::MaskHeads`], [`Error::Scale`] when the parts do not fit each other.
    pub fn new(problem: Problem<'a, T>, saved: Saved<'a, T>) -> Result<Self, Error> {
        let (call, shape) = ("cpu::Backward::new", problem.shape);
        check::problem(call, &problem)?;
        check::extents(call, "o", saved.o.extents(), check::query_extents(shape))?;
        check::extents(call, "dout", saved.dout.extents(), check::query_extents(shape))?;
        check::row_count(call, "lse", saved.lse.len(), shape)?;
        let lse = saved.lse.iter().map(|lse| log2_lse(*lse)).collect();
        let dq = vec![0.0; saved.lse.len() * shape.dims().head_dim];
        let delta = delta(&saved, shape.dims().heads_q);
        Ok(Self { problem, dout: saved.dout, lse, delta, dq, workspace: Vec::new() })
    }

    /// Adds the piece's share to dQ, and writes dK and dV of the piece: 0 in rows that nobody sees.
    ///
    /// Pieces and `blocks` are as in [`Forward::attend`](super::Forward::attend).
    ///
    /// # Errors
    /// [`Error::Mismatch`], [`Error::Outside`], [`Error::PieceStart`].
    pub fn attend(
        &mut self,
        keys: &Keys<'_, T>,
        blocks: &BlockLists,
        mut grads: KeyGrads<'_>,
    ) -> Result<(), Error> {
        let call = "cpu::Backward::attend";
        let Self { problem, dout, lse, delta, dq, workspace } = self;
        let piece = &check::piece(call, problem, keys, blocks)?;
        let extents = keys.k.extents();
        check::extents(call, "dk", grads.dk.as_view().extents(), extents)?;
        check::extents(call, "dv", grads.dv.as_view().extents(), extents)?;
        let size = extents.batch * extents.heads * extents.seq * extents.head_dim;
        let (mut dk, mut dv) = (vec![0.0; size], vec![0.0; size]);
        let context = Context { problem, dout, lse, delta, keys, piece };
        for wave in Waves::new(problem.shape, problem.mask, blocks, piece) {
            let slots = wave.slots * SLOT;
            workspace.resize(slots.max(workspace.len()), 0.0);
            context.key_side(&wave, &mut workspace[..slots], &mut dk, &mut dv);
            context.row_side(&wave, &workspace[..slots], dq);
        }
        let (dk, dv) = (View4::bhsd(&dk, extents)?, View4::bhsd(&dv, extents)?);
        // dK was summed against Q * scale * log2(e).
        store(&mut grads.dk, |at| (dk.row(at), std::f32::consts::LN_2));
        store(&mut grads.dv, |at| (dv.row(at), 1.0));
        Ok(())
    }

    /// Writes dQ [b, sq, hq, d], rounded once.
    ///
    /// # Errors
    /// [`Error::Mismatch`].
    pub fn finish(self, dq: &mut View4Mut<'_, T>) -> Result<(), Error> {
        let extents = check::query_extents(self.problem.shape);
        check::extents("cpu::Backward::finish", "dq", dq.as_view().extents(), extents)?;
        let rows = View4::bhsd(&self.dq, extents)?;
        store(dq, |at| (rows.row(at), self.problem.scale));
        Ok(())
    }
}

impl<T: Element> Context<'_, T> {
    /// First half of a wave: dS of all blocks, and their share of dK and dV.
    fn key_side(&self, wave: &Wave, workspace: &mut [f32], dk: &mut [f32], dv: &mut [f32]) {
        let (head, tile) = (self.piece.rows * self.dims().head_dim, TILE.cols * self.dims().head_dim);
        let grads =
            tiles_mut(dk, head, tile).into_iter().zip(tiles_mut(dv, head, tile)).skip(wave.first_unit);
        let mut rest = workspace;
        let mut tasks = Vec::with_capacity(wave.units.len());
        for (unit, (dk, dv)) in wave.units.iter().zip(grads) {
            let (ds, after) = rest.split_at_mut(unit.blocks.len() * SLOT);
            rest = after;
            tasks.push(UnitTask { unit, ds, dk, dv });
        }
        tasks
            .into_par_iter()
            .with_max_len(1)
            .filter(|task| !task.unit.blocks.is_empty())
            .for_each(|task| Scratch::lend(|scratch| self.unit(task, scratch)));
    }

    /// Second half of a wave: dQ += dS K.
    fn row_side(&self, wave: &Wave, workspace: &[f32], dq: &mut [f32]) {
        let dims = self.dims();
        let row_tiles = dims.seq_q.div_ceil(TILE.rows);
        let by_rows = wave.by_rows(self.problem.shape, row_tiles);
        let mut tiles = tiles_mut(dq, dims.seq_q * dims.head_dim, TILE.rows * dims.head_dim).into_iter();
        let mut passed = 0;
        let mut tasks = Vec::new();
        for blocks in by_rows.chunk_by(|a, b| a.row_index == b.row_index) {
            tasks.extend(tiles.nth(blocks[0].row_index - passed).map(|dq| (blocks, dq)));
            passed = blocks[0].row_index + 1;
        }
        tasks
            .into_par_iter()
            .with_max_len(1)
            .for_each(|(blocks, dq)| Scratch::lend(|scratch| self.row_tile(blocks, workspace, dq, scratch)));
    }

    fn unit(&self, task: UnitTask<'_>, scratch: &mut Scratch) {
        let width = self.dims().head_dim;
        let UnitTask { unit, ds, dk, dv } = task;
        let range = self.piece.rows_of(unit.key_tile);
        let at = At { batch: unit.batch, seq: range.start, head: unit.kv_head };
        let Scratch { q, dout, k, v, scores } = scratch;
        let (k, v) = (&mut k[..range.len() * width], &mut v[..range.len() * width]);
        load_rows(&self.keys.k, at, k);
        load_rows(&self.keys.v, at, v);
        let keys_t = Matrix::rows_of(k, width).transposed();
        let values_t = Matrix::rows_of(v, width).transposed();
        for (block, ds) in unit.blocks.iter().zip(ds.chunks_exact_mut(SLOT)) {
            let first = block.row_tile * TILE.rows;
            let rows = TILE.rows.min(self.dims().seq_q - first);
            let (q, dout) = (&mut q[..rows * width], &mut dout[..rows * width]);
            let (p, ds) = (&mut scores[..rows * range.len()], &mut ds[..rows * range.len()]);
            let at = At { batch: unit.batch, seq: first, head: block.head };
            load_rows_scaled(&self.problem.q, at, self.problem.log2_scale(), q);
            load_rows(self.dout, at, dout);
            let (q, dout) = (Matrix::rows_of(q, width), Matrix::rows_of(dout, width));
            multiply(p, Into::Write, q, keys_t);
            self.mask(unit, block, p);
            let row = (unit.batch * self.dims().heads_q + block.head) * self.dims().seq_q + first;
            probabilities(p, &self.lse[row..row + rows]);
            multiply(dv, Into::Add, Matrix::rows_of(p, range.len()).transposed(), dout);
            multiply(ds, Into::Write, dout, values_t);
            score_gradients(ds, p, &self.delta[row..row + rows]);
            multiply(dk, Into::Add, Matrix::rows_of(ds, range.len()).transposed(), q);
        }
    }

    fn row_tile(&self, blocks: &[RowBlock], workspace: &[f32], dq: &mut [f32], scratch: &mut Scratch) {
        let width = self.dims().head_dim;
        for block in blocks {
            let range = self.piece.rows_of(block.key_tile);
            let k = &mut scratch.k[..range.len() * width];
            load_rows(&self.keys.k, At { batch: block.batch, seq: range.start, head: block.kv_head }, k);
            let ds = &workspace[block.slot * SLOT..][..dq.len() / width * range.len()];
            multiply(dq, Into::Add, Matrix::rows_of(ds, range.len()), Matrix::rows_of(k, width));
        }
    }

    fn mask(&self, unit: &Unit, block: &Block, scores: &mut [f32]) {
        if block.class == BlockClass::Full {
            return;
        }
        let mask = self.problem.mask;
        let range = self.piece.rows_of(unit.key_tile);
        let head = mask.head_of(QueryHead { head: block.head, of: self.dims().heads_q });
        let at = MaskHead { batch: unit.batch, head };
        let columns = self.piece.first_column + range.start..self.piece.first_column + range.end;
        Hidden::load(mask, at, columns, block.row_tile * TILE.rows).apply(scores, range.len());
    }

    const fn dims(&self) -> crate::Dims {
        self.problem.shape.dims()
    }
}

fn log2_lse(lse: f32) -> f32 {
    if lse == f32::NEG_INFINITY {
        return f32::INFINITY;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the rounding to f32 is wanted")]
    let lse = (f64::from(lse) * std::f64::consts::LOG2_E) as f32;
    lse
}

/// rowsum(dO * O), [b, hq, sq], summed in f64 and rounded once.
fn delta<T: Element>(saved: &Saved<'_, T>, heads_q: usize) -> Vec<f32> {
    let seq_q = saved.o.extents().seq;
    let rows = (0..saved.lse.len()).into_par_iter().with_min_len(TILE.rows);
    rows.map(|index| {
        let head = index / seq_q;
        let at = At { batch: head / heads_q, seq: index % seq_q, head: head % heads_q };
        let products = saved.o.row(at).iter().zip(saved.dout.row(at));
        let sum: f64 = products.map(|(o, dout)| f64::from(o.to_f32()) * f64::from(dout.to_f32())).sum();
        #[expect(clippy::cast_possible_truncation, reason = "the rounding to f32 is wanted")]
        let delta = sum as f32;
        delta
    })
    .collect()
}
