//! Row intervals and the two masked bands of a key column.

/// Query rows `start <= i < end`. Intervals made here have `start <= end`; an empty one is `0..0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Rows {
    /// First row.
    pub start: usize,
    /// One past the last row.
    pub end: usize,
}

impl Rows {
    /// No rows.
    pub const EMPTY: Rows = Rows { start: 0, end: 0 };

    /// Number of rows; 0 when `start >= end`.
    #[inline]
    pub const fn len(self) -> usize {
        self.end.saturating_sub(self.start)
    }

    /// Whether there are none.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.start >= self.end
    }

    /// Whether `row` is one of them.
    #[inline]
    pub const fn contains(self, row: usize) -> bool {
        self.start <= row && row < self.end
    }

    /// Rows in both.
    #[inline]
    pub fn intersect(self, other: Rows) -> Rows {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        if start < end { Rows { start, end } } else { Rows::EMPTY }
    }

    /// A band of the mask format: bounds above `seq_q` act as `seq_q`.
    #[inline]
    pub(super) fn clipped(start: i32, end: i32, seq_q: usize) -> Rows {
        // Bounds are checked to be non-negative, so `unsigned_abs` is the value itself.
        let clip = |bound: i32| (bound.unsigned_abs() as usize).min(seq_q);
        Rows { start: clip(start), end: clip(end) }.intersect(Rows { start: 0, end: seq_q })
    }
}

/// Masked rows of one key column: the union of two intervals, which may overlap, touch or be empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bands {
    /// From LTS and LTE (or the end of the sequence).
    pub a: Rows,
    /// From UTS (or row 0) and UTE, or from causality.
    pub b: Rows,
}

impl Bands {
    /// Whether `row` may not see the column.
    #[inline]
    pub const fn masks(self, row: usize) -> bool {
        self.a.contains(row) || self.b.contains(row)
    }

    /// How many of `rows` are masked.
    #[inline]
    pub fn masked_in(self, rows: Rows) -> usize {
        let (a, b) = (self.a.intersect(rows), self.b.intersect(rows));
        a.len() + b.len() - a.intersect(b).len()
    }

    /// The visible part of `rows`: at most three intervals, increasing, none empty.
    pub fn visible(self, rows: Rows) -> impl Iterator<Item = Rows> {
        let (first, second) = if self.a.start <= self.b.start { (self.a, self.b) } else { (self.b, self.a) };
        // With `first` empty or inside `second` a gap comes out reversed, and is dropped as empty.
        let reach = first.end.max(second.end);
        let gaps = [(0, first.start), (first.end, second.start), (reach, usize::MAX)];
        gaps.into_iter()
            .map(move |(start, end)| Rows { start, end }.intersect(rows))
            .filter(|gap| !gap.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visible_and_masked_agree_with_row_by_row_for_all_small_bands() {
        let ends = || (0..6).flat_map(|start| (0..6).map(move |end| Rows { start, end }));
        let rows = Rows { start: 1, end: 5 };
        for a in ends().map(|rows| rows.intersect(Rows { start: 0, end: 6 })) {
            for b in ends().map(|rows| rows.intersect(Rows { start: 0, end: 6 })) {
                let bands = Bands { a, b };
                let expected: Vec<usize> = (1..5).filter(|row| !bands.masks(*row)).collect();
                let got: Vec<usize> = bands.visible(rows).flat_map(|gap| gap.start..gap.end).collect();
                assert_eq!(got, expected, "{bands:?}");
                assert_eq!(bands.masked_in(rows), 4 - expected.len(), "{bands:?}");
            }
        }
    }
}
