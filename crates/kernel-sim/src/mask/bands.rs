//! Masked rows of a column, as the tables hold them.

/// Rows `start <= i < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RowRange {
    pub(crate) start: i32,
    pub(crate) end: i32,
}

/// The two bands of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ColumnBands {
    pub(crate) a: RowRange,
    pub(crate) b: RowRange,
}

impl RowRange {
    pub(crate) const fn new(start: i32, end: i32) -> Self {
        Self { start, end }
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.start >= self.end
    }

    pub(crate) fn within(self, other: Self) -> Self {
        Self { start: self.start.max(other.start), end: self.end.min(other.end) }
    }

    /// Rows, 0 when empty.
    pub(crate) fn len(self) -> i32 {
        self.end.saturating_sub(self.start).max(0)
    }

    pub(crate) fn contains(self, row: i32) -> bool {
        self.start <= row && row < self.end
    }
}

impl ColumnBands {
    /// Of a column past the end of its segment.
    pub(crate) const ALL: Self = Self { a: RowRange::new(0, i32::MAX), b: Self::NO_B };

    const NO_A: RowRange = RowRange::new(i32::MAX, i32::MAX);
    const NO_B: RowRange = RowRange::new(0, 0);

    /// Bands of two ranges of rows, clipped to `seq_q`: `a` is the one that starts later, and a single one that covers
    /// the first rows but not the last is `b`.
    pub(crate) fn ordered(x: RowRange, y: RowRange, seq_q: i32) -> Self {
        match (x.is_empty(), y.is_empty()) {
            (false, false) if (x.start, x.end) >= (y.start, y.end) => Self { a: x, b: y },
            (false, false) => Self { a: y, b: x },
            (true, true) => Self { a: Self::NO_A, b: Self::NO_B },
            (x_is_empty, _) => {
                let only = if x_is_empty { y } else { x };
                if only.start == 0 && only.end < seq_q {
                    Self { a: Self::NO_A, b: only }
                } else {
                    Self { a: only, b: Self::NO_B }
                }
            }
        }
    }

    pub(crate) fn from_words([a_start, b_end, a_end, b_start]: [i32; 4]) -> Self {
        Self { a: RowRange::new(a_start, a_end), b: RowRange::new(b_start, b_end) }
    }

    pub(crate) const fn words(self) -> [i32; 4] {
        [self.a.start, self.b.end, self.a.end, self.b.start]
    }

    /// How many of `rows` are masked.
    pub(crate) fn masked_in(self, rows: RowRange) -> i32 {
        let (a, b) = (self.a.within(rows), self.b.within(rows));
        a.len() + b.len() - a.within(b).len()
    }

    /// Whether the row is masked, by what a block of this class looks at: simple ones know starts of `a` and ends of `b`.
    pub(crate) fn masks(self, row: i32, is_simple: bool) -> bool {
        if is_simple {
            row >= self.a.start || row < self.b.end
        } else {
            self.a.contains(row) || self.b.contains(row)
        }
    }
}
