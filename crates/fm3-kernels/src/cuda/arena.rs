//! Where each table of a prepared mask lies in its one allocation.
use std::ops::Range;

use crate::Error;
use crate::mask::{KeySegments, MaskDims};

/// Tables start on multiples of this many words: 128 bytes, more than any copy of them needs.
const ALIGN: usize = 32;

/// Ranges of 32-bit words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arena {
    pub(super) bands: Range<usize>,
    pub(super) places: Range<usize>,
    pub(super) tile_columns: Range<usize>,
    pub(super) by_rows: ListsAt,
    pub(super) by_keys: ListsAt,
    /// Words of all.
    pub(super) words: usize,
}

/// Tables of the lists of one side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ListsAt {
    pub(super) counts: Range<usize>,
    pub(super) entries: Range<usize>,
    pub(super) work: Range<usize>,
    pub(super) ranked: Range<usize>,
}

impl Arena {
    /// Room for a mask of `dims` over `segments`.
    pub(super) fn new(call: &'static str, dims: MaskDims, segments: &KeySegments) -> Result<Self, Error> {
        let heads = dims.batch.saturating_mul(dims.heads);
        let (row_tiles, key_tiles) = (dims.seq_q.div_ceil(128), segments.key_tiles());
        let mut words = 0_usize;
        let mut take = |factors: [usize; 3]| {
            let start = words;
            let len = factors.into_iter().fold(1, usize::saturating_mul);
            words = start.saturating_add(len).div_ceil(ALIGN).saturating_mul(ALIGN);
            start..start.saturating_add(len)
        };
        let bands = take([heads, key_tiles, 128 * 4]);
        let places = take([1, key_tiles, 1]);
        let tile_columns = take([1, key_tiles, 2]);
        let mut lists = |lists, others| ListsAt {
            counts: take([heads, lists, 1]),
            entries: take([heads, lists, others]),
            work: take([heads, lists, 1]),
            ranked: take([heads, lists, 1]),
        };
        let (by_rows, by_keys) = (lists(row_tiles, key_tiles), lists(key_tiles, row_tiles));
        if words > isize::MAX.unsigned_abs() / 4 {
            return Err(Error::MaskMemory { call, bounds: words });
        }
        Ok(Self { bands, places, tile_columns, by_rows, by_keys, words })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_do_not_overlap() {
        let dims = MaskDims { batch: 2, heads: 3, seq_q: 300, seq_k: 130 };
        let segments = KeySegments::new(vec![129, 1]).unwrap();
        let arena = Arena::new("test", dims, &segments).unwrap();
        let sides = [&arena.by_rows, &arena.by_keys];
        let lists = sides.into_iter().flat_map(|at| [&at.counts, &at.entries, &at.work, &at.ranked]);
        let mut end = 0;
        for range in [&arena.bands, &arena.places, &arena.tile_columns].into_iter().chain(lists) {
            assert!(range.start >= end && range.start.is_multiple_of(32), "{arena:?}");
            end = range.end;
        }
        assert!(end <= arena.words && arena.words < end + 32);
        assert_eq!((arena.bands.len(), arena.by_rows.entries.len()), (6 * 3 * 512, 6 * 3 * 3));
    }
}
