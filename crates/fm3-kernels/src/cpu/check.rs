//! Everything that is refused before work starts, and the piece of keys as the engine sees it afterwards.
use std::ops::Range;

use super::{Keys, Problem, TILE};
use crate::Error;
use crate::mask::{BlockEntry, BlockLists};
use crate::shape::Shape;
use crate::view::{Extents, View4Mut};

/// A checked piece of keys, in tiles of [`TILE`].
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// Tile 0 of the piece is this key tile of the block lists.
    pub(super) first_tile: usize,
    /// Rows of K and V; the last tile may be ragged.
    pub(super) rows: usize,
    /// Mask column of row 0.
    pub(super) first_column: usize,
    /// KV heads.
    pub(super) kv_heads: Range<usize>,
}

impl Piece {
    /// Tiles, counting a ragged one.
    pub(super) const fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE.cols)
    }

    /// Rows of K and V that are in `tile` of the piece.
    pub(super) fn rows_of(&self, tile: usize) -> Range<usize> {
        tile * TILE.cols..((tile + 1) * TILE.cols).min(self.rows)
    }

    /// The entries of a row tile's list that lie in the piece.
    pub(super) fn within<'b>(&self, entries: &'b [BlockEntry]) -> &'b [BlockEntry] {
        let before = |tile: usize| entries.partition_point(|entry| (entry.tile as usize) < tile);
        &entries[before(self.first_tile)..before(self.first_tile + self.tiles())]
    }
}

/// Compares every extent of a tensor.
pub(super) fn extents(
    call: &'static str,
    tensor: &'static str,
    got: Extents,
    want: Extents,
) -> Result<(), Error> {
    equal(call, tensor, "batch", got.batch, want.batch)?;
    equal(call, tensor, "seq", got.seq, want.seq)?;
    equal(call, tensor, "heads", got.heads, want.heads)?;
    equal(call, tensor, "head_dim", got.head_dim, want.head_dim)
}

/// Checks Q, the mask and the scale against the shape.
pub(super) fn problem<T>(call: &'static str, problem: &Problem<'_, T>) -> Result<(), Error> {
    let (dims, mask) = (problem.shape.dims(), problem.mask.dims());
    extents(call, "q", problem.q.extents(), query_extents(problem.shape))?;
    equal(call, "mask", "batch", mask.batch, dims.batch)?;
    equal(call, "mask", "seq_q", mask.seq_q, dims.seq_q)?;
    equal(call, "mask", "seq_k", mask.seq_k, dims.seq_k)?;
    problem.mask.check_heads(dims.heads_q)?;
    if !problem.scale.is_finite() {
        return Err(Error::Scale { call, scale: problem.scale });
    }
    Ok(())
}

/// Checks O and LSE against the shape.
pub(super) fn outputs<T>(
    call: &'static str,
    shape: Shape,
    o: &View4Mut<'_, T>,
    lse: &[f32],
) -> Result<(), Error> {
    extents(call, "o", o.as_view().extents(), query_extents(shape))?;
    row_count(call, "lse", lse.len(), shape)
}

/// Checks the length of an array [b, hq, sq].
pub(super) fn row_count(
    call: &'static str,
    tensor: &'static str,
    len: usize,
    shape: Shape,
) -> Result<(), Error> {
    let dims = shape.dims();
    equal(call, tensor, "elements", len, dims.batch * dims.heads_q * dims.seq_q)
}

/// Checks that `keys` are all keys.
pub(super) fn whole<T>(call: &'static str, shape: Shape, keys: &Keys<'_, T>) -> Result<(), Error> {
    let dims = shape.dims();
    let want = Extents { batch: dims.batch, seq: dims.seq_k, heads: dims.heads_kv, head_dim: dims.head_dim };
    extents(call, "k", keys.k.extents(), want)?;
    equal(call, "keys", "first_column", keys.first_column, 0)?;
    equal(call, "keys", "first_head", keys.first_head, 0)
}

/// Checks a piece of keys against the shape and the block lists.
pub(super) fn piece<T>(
    call: &'static str,
    problem: &Problem<'_, T>,
    keys: &Keys<'_, T>,
    blocks: &BlockLists,
) -> Result<Piece, Error> {
    let (dims, got) = (problem.shape.dims(), keys.k.extents());
    extents(call, "k", got, Extents { batch: dims.batch, head_dim: dims.head_dim, ..got })?;
    extents(call, "v", keys.v.extents(), got)?;
    equal(call, "block lists", "rows of a tile", blocks.size().rows, TILE.rows)?;
    equal(call, "block lists", "columns of a tile", blocks.size().cols, TILE.cols)?;
    let (listed, mask) = (blocks.dims(), problem.mask.dims());
    equal(call, "block lists", "batch", listed.batch, mask.batch)?;
    equal(call, "block lists", "mask heads", listed.heads, mask.heads)?;
    equal(call, "block lists", "row tiles", blocks.row_tiles(), dims.seq_q.div_ceil(TILE.rows))?;
    within(call, "columns of the block lists", blocks.cols().start, blocks.cols().len(), 0..dims.seq_k)?;
    let kv_heads = within(call, "KV heads", keys.first_head, got.heads, 0..dims.heads_kv)?;
    let columns = within(call, "columns", keys.first_column, got.seq, blocks.cols())?;
    let ahead = columns.start - blocks.cols().start;
    if !ahead.is_multiple_of(TILE.cols) {
        let (first_column, start) = (columns.start, blocks.cols().start);
        return Err(Error::PieceStart { call, first_column, start, tile: TILE.cols });
    }
    Ok(Piece { first_tile: ahead / TILE.cols, rows: got.seq, first_column: columns.start, kv_heads })
}

/// Extents of Q, O, dQ and dO.
pub(super) fn query_extents(shape: Shape) -> Extents {
    let dims = shape.dims();
    Extents { batch: dims.batch, seq: dims.seq_q, heads: dims.heads_q, head_dim: dims.head_dim }
}

fn equal(
    call: &'static str,
    tensor: &'static str,
    axis: &'static str,
    got: usize,
    expected: usize,
) -> Result<(), Error> {
    if got == expected { Ok(()) } else { Err(Error::Mismatch { call, tensor, axis, got, expected }) }
}

fn within(
    call: &'static str,
    name: &'static str,
    start: usize,
    len: usize,
    whole: Range<usize>,
) -> Result<Range<usize>, Error> {
    let end = start.saturating_add(len);
    if start < whole.start || end > whole.end {
        let Range { start: within_start, end: within_end } = whole;
        return Err(Error::Outside { call, name, start, end, within_start, within_end });
    }
    Ok(start..end)
}
