//! The one classification of a block of (query row, key column) pairs; everything that skips work asks here.
use super::{Bands, Rows};

/// What a block holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockClass {
    /// No pair is visible: no work, no traffic.
    Skip,
    /// Some pairs are visible: work with a check for each pair.
    Partial,
    /// Every pair is visible: work without checks.
    Full,
}

/// Classifies the block of `rows` x `columns`, exactly: a block that only the two bands together cover is
/// `Skip`.
///
/// A block without rows or without columns has no visible pair: `Skip`.
pub fn classify(columns: impl IntoIterator<Item = Bands>, rows: Rows) -> BlockClass {
    let (mut some_visible, mut some_masked) = (false, false);
    for bands in columns {
        let masked = bands.masked_in(rows);
        some_masked |= masked > 0;
        some_visible |= masked < rows.len();
        if some_masked && some_visible {
            return BlockClass::Partial;
        }
    }
    if some_visible { BlockClass::Full } else { BlockClass::Skip }
}

/// A tile of key columns, summarised once so that most row ranges are classified without looking at each
/// column.
pub(super) struct KeyTile {
    bands: Vec<Bands>,
    /// Rows that every column masks with the same band.
    common: Bands,
    /// Rows between the first and last that any column masks, band by band.
    reach: Bands,
}

impl KeyTile {
    /// `bands` are those of the tile's columns; at least one.
    pub(super) fn new(bands: Vec<Bands>) -> Self {
        let common = |band: fn(&Bands) -> Rows| {
            let all = Rows { start: 0, end: usize::MAX };
            bands.iter().map(band).fold(all, Rows::intersect)
        };
        let reach = |band: fn(&Bands) -> Rows| {
            let rows = || bands.iter().map(band).filter(|rows| !rows.is_empty());
            let start = rows().map(|rows| rows.start).min().unwrap_or(0);
            Rows { start, end: rows().map(|rows| rows.end).max().unwrap_or(0) }
        };
        let common = Bands { a: common(|bands| bands.a), b: common(|bands| bands.b) };
        let reach = Bands { a: reach(|bands| bands.a), b: reach(|bands| bands.b) };
        Self { bands, common, reach }
    }

    /// Equal to [`classify`] of the tile's columns.
    pub(super) fn classify(&self, rows: Rows) -> BlockClass {
        if self.common.masked_in(rows) == rows.len() {
            return BlockClass::Skip;
        }
        if self.reach.masked_in(rows) == 0 {
            return BlockClass::Full;
        }
        classify(self.bands.iter().copied(), rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: Rows = Rows { start: 10, end: 20 };

    #[test]
    fn only_the_union_of_both_bands_covers() {
        let bands = Bands { a: Rows { start: 14, end: 30 }, b: Rows { start: 0, end: 14 } };
        assert_eq!(classify([bands; 3], ROWS), BlockClass::Skip);
        let gap = Bands { b: Rows { start: 0, end: 13 }, ..bands };
        assert_eq!(classify([bands, gap], ROWS), BlockClass::Partial);
    }

    #[test]
    fn mixed_columns_are_partial_and_no_pairs_are_skip() {
        let (all, none) = (Bands { a: ROWS, b: Rows::EMPTY }, Bands { a: Rows::EMPTY, b: Rows::EMPTY });
        assert_eq!(classify([all, none], ROWS), BlockClass::Partial);
        assert_eq!(classify([none, none], ROWS), BlockClass::Full);
        assert_eq!(classify([none], Rows::EMPTY), BlockClass::Skip);
        assert_eq!(classify([], ROWS), BlockClass::Skip);
    }
}
