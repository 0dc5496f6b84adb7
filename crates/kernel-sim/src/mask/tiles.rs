//! `fm3_mask_tiles`: bands of every column, and a summary of every key tile.
use fm3_kernels::params::MaskTilesParams;

use super::bands::{ColumnBands, RowRange};
use super::mask_of;
use crate::blocks::Shape;
use crate::memory::Array;
use crate::tile::TILE;

/// One block per key tile, mask head and sequence.
pub(crate) fn tiles(p: &MaskTilesParams, shape: Shape) {
    shape.each(|block| {
        let mask = mask_of(block, shape.grid[1]);
        let tile = mask * p.key_tiles as usize + block[0] as usize;
        let [first, valid] = Array::<[u32; 2]>::at(p.tile_columns).get(block[0] as usize);
        let mut all = [ColumnBands::ALL; TILE];
        for (column, bands) in (first..first + valid).zip(&mut all) {
            *bands = decode(p, mask, column);
        }
        Array::at(p.bands).write(tile * TILE, &all.map(ColumnBands::words));
        Array::at(p.summaries).set(tile, summary(&all));
    });
}

/// Masked rows of a mask column, from the caller's bounds.
fn decode(p: &MaskTilesParams, mask: usize, column: u32) -> ColumnBands {
    let seq_q = p.seq_q.cast_signed();
    let at = (mask * p.seq_k as usize + column as usize) * p.columns as usize;
    let bound = |number: usize| Array::<i32>::at(p.bounds).get(at + number);
    let clipped = |start: i32, end: i32| RowRange::new(start.min(seq_q), end.min(seq_q));
    let none = RowRange::new(0, 0);
    // Rows above the diagonal, which ends in the lower right corner.
    let diagonal = (i64::from(column) + i64::from(p.seq_q) - i64::from(p.seq_k)).max(0);
    let diagonal = i32::try_from(diagonal).unwrap_or(i32::MAX);
    let above = if p.causal != 0 { RowRange::new(0, diagonal) } else { none };
    let [x, y] = match (p.columns, p.causal != 0) {
        (1, _) => [clipped(bound(0), i32::MAX), above],
        (2, true) => [clipped(bound(0), bound(1)), above],
        (2, false) => [clipped(bound(0), i32::MAX), clipped(0, bound(1))],
        (4, _) => [clipped(bound(0), bound(1)), clipped(bound(2), bound(3))],
        _ => [none, above],
    };
    ColumnBands::ordered(x, y, seq_q)
}

/// Start and end of what all columns mask (a, b), and of what any of them masks (a, b).
fn summary(all: &[ColumnBands]) -> [i32; 8] {
    let common = |of: fn(&ColumnBands) -> RowRange| {
        all.iter().map(of).fold(RowRange::new(i32::MIN, i32::MAX), RowRange::within)
    };
    let reach = |of: fn(&ColumnBands) -> RowRange| {
        let some = all.iter().map(of).filter(|range| !range.is_empty());
        some.fold(RowRange::new(i32::MAX, 0), |reach, range| {
            RowRange::new(reach.start.min(range.start), reach.end.max(range.end))
        })
    };
    let ranges =
        [common(|bands| bands.a), common(|bands| bands.b), reach(|bands| bands.a), reach(|bands| bands.b)];
    let mut words = [0; 8];
    for (words, range) in words.chunks_mut(2).zip(ranges) {
        words.copy_from_slice(&[range.start, range.end]);
    }
    words
}
