//! What tasks share: their scratch memory, cutting tensors into tiles, and masking one tile of scores.
use std::cell::RefCell;
use std::ops::Range;

use pulp::Arch;

use super::TILE;
use crate::mask::{Bands, FlashMask, MaskHead, Rows};
use crate::shape::MAX_HEAD_DIM;

/// Buffers of one task, each large enough for any tile; their contents mean nothing between uses.
pub(super) struct Scratch {
    /// [TILE.rows, d]
    pub(super) q: Vec<f32>,
    /// [TILE.rows, d]
    pub(super) dout: Vec<f32>,
    /// [TILE.cols, d]
    pub(super) k: Vec<f32>,
    /// [TILE.cols, d]
    pub(super) v: Vec<f32>,
    /// [TILE.rows, TILE.cols]
    pub(super) scores: Vec<f32>,
}

impl Scratch {
    fn new() -> Self {
        let (rows, cols) = (vec![0.0; TILE.rows * MAX_HEAD_DIM], vec![0.0; TILE.cols * MAX_HEAD_DIM]);
        let scores = vec![0.0; TILE.rows * TILE.cols];
        Self { q: rows.clone(), dout: rows, k: cols.clone(), v: cols, scores }
    }

    /// Lends the thread's buffers to `task`, which must not lend them again.
    pub(super) fn lend<R>(task: impl FnOnce(&mut Scratch) -> R) -> R {
        thread_local!(static SCRATCH: RefCell<Scratch> = RefCell::new(Scratch::new()));
        SCRATCH.with_borrow_mut(task)
    }
}

/// Cuts [heads, rows, width] into tiles of rows, head by head; the last tile of a head may be ragged.
pub(super) fn tiles_mut(data: &mut [f32], head: usize, tile: usize) -> Vec<&mut [f32]> {
    data.chunks_mut(head).flat_map(|head| head.chunks_mut(tile)).collect()
}

/// Masked rows of the columns of one tile, counted from the tile's first row.
pub(super) struct Hidden {
    bands: [Intervals; 2],
}

/// One interval a column: rows `start .. start + len`, where `start` may be negative.
struct Intervals {
    start: [i32; TILE.cols],
    len: [u32; TILE.cols],
}

impl Hidden {
    /// Reads the columns `cols` of the mask for a tile that starts at `first_row`.
    pub(super) fn load(mask: &FlashMask, at: MaskHead, cols: Range<usize>, first_row: usize) -> Self {
        let empty = || Intervals { start: [0; TILE.cols], len: [0; TILE.cols] };
        let mut hidden = Self { bands: [empty(), empty()] };
        let [a, b] = &mut hidden.bands;
        for (column, bands) in mask.bands_in(at, cols).enumerate() {
            let Bands { a: rows_a, b: rows_b } = bands;
            a.set(column, rows_a, first_row);
            b.set(column, rows_b, first_row);
        }
        hidden
    }

    /// Sets masked scores of a tile [rows, cols] to -inf.
    pub(super) fn apply(&self, scores: &mut [f32], cols: usize) {
        let [a, b] = &self.bands;
        Arch::new().dispatch(
            #[inline(always)]
            || {
                for (row, scores) in (0i32..).zip(scores.chunks_exact_mut(cols)) {
                    let columns = a.start.iter().zip(&a.len).zip(b.start.iter().zip(&b.len));
                    for (score, ((start_a, len_a), (start_b, len_b))) in scores.iter_mut().zip(columns) {
                        // A row before the start wraps to a large number: one comparison checks both ends.
                        let in_a = row.wrapping_sub(*start_a).cast_unsigned() < *len_a;
                        let in_b = row.wrapping_sub(*start_b).cast_unsigned() < *len_b;
                        *score = if in_a | in_b { f32::NEG_INFINITY } else { *score };
                    }
                }
            },
        );
    }
}

impl Intervals {
    #[expect(clippy::cast_possible_truncation, reason = "rows are at most i32::MAX, so differences fit i32")]
    fn set(&mut self, column: usize, rows: Rows, first_row: usize) {
        self.start[column] = (rows.start.cast_signed() - first_row.cast_signed()) as i32;
        self.len[column] = rows.len() as u32;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::{Columns, MaskDims};

    #[test]
    fn a_masked_tile_agrees_with_the_bands_pair_by_pair() {
        let dims = MaskDims { batch: 1, heads: 1, seq_q: 20, seq_k: 4 };
        let bounds = vec![2, 6, 4, 9, 0, 20, 3, 1, 18, 19, 0, 7, 20, 20, 5, 5];
        let mask = FlashMask::new(dims, Columns::Four, false, bounds).unwrap();
        let at = MaskHead { batch: 0, head: 0 };
        for first_row in 0..20 {
            let mut scores = vec![1.0; (20 - first_row) * 3];
            Hidden::load(&mask, at, 1..4, first_row).apply(&mut scores, 3);
            let bands: Vec<Bands> = mask.bands_in(at, 1..4).collect();
            for (index, score) in scores.iter().enumerate() {
                let masked = bands[index % 3].masks(first_row + index / 3);
                assert_eq!(*score, if masked { f32::NEG_INFINITY } else { 1.0 }, "{first_row} {index}");
            }
        }
    }
}
