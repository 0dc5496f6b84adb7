//! How many query rows see the key columns, of a sample of them: enough to choose an order of work.
use super::{FlashMask, MaskDims, MaskHead, Rows};

/// Columns that are looked at, however many there are.
const COLUMNS: usize = 4096;

/// Rows that see each column of a sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RowsSeen {
    /// Largest first; at least one.
    rows: Vec<usize>,
}

impl RowsSeen {
    /// Of columns that are spread evenly over all heads and sequences.
    pub(crate) fn of(mask: &FlashMask) -> Self {
        let MaskDims { seq_q, seq_k, heads, .. } = mask.dims();
        let rows = Rows { start: 0, end: seq_q };
        Self::sample(mask.dims().total_columns(), |index| {
            let at = MaskHead { batch: index / seq_k / heads, head: index / seq_k % heads };
            let column = index % seq_k;
            mask.bands_in(at, column..column + 1).map(|bands| seq_q - bands.masked_in(rows)).sum()
        })
    }

    /// Of no mask, or of plain causality.
    pub(crate) fn of_plain(dims: MaskDims, causal: bool) -> Self {
        let masked = |column| if causal { dims.above_diagonal(column).len() } else { 0 };
        Self::sample(dims.seq_k, |column| dims.seq_q - masked(column))
    }

    fn sample(columns: usize, rows: impl Fn(usize) -> usize) -> Self {
        // Odd, so that it does not fall into step with tiles and documents of even length.
        let step = columns.div_ceil(COLUMNS) | 1;
        let mut rows: Vec<usize> = (0..columns).step_by(step).map(rows).collect();
        rows.sort_unstable_by(|a, b| b.cmp(a));
        Self { rows }
    }

    /// Of all columns.
    pub(crate) fn mean(&self) -> f64 {
        self.sum() / self.rows.len() as f64
    }

    /// Of the column that most see.
    pub(crate) fn most(&self) -> usize {
        self.rows.first().copied().unwrap_or_default()
    }

    /// How many of `of` equal groups of columns, those that most rows see first, have at most `share` of all pairs.
    pub(crate) fn first_with(&self, share: f64, of: usize) -> usize {
        let mut left = share * self.sum();
        let fits = |rows: &&usize| {
            left -= **rows as f64;
            left >= 0.0
        };
        of * self.rows.iter().take_while(fits).count() / self.rows.len()
    }

    fn sum(&self) -> f64 {
        self.rows.iter().sum::<usize>() as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIMS: MaskDims = MaskDims { batch: 2, heads: 3, seq_q: 3000, seq_k: 3000 };

    #[test]
    fn some_columns_tell_how_dense_a_mask_is() {
        let window = |window| FlashMask::sliding_window(DIMS, window).unwrap();
        for mask in [FlashMask::full(DIMS).unwrap(), FlashMask::causal(DIMS).unwrap(), window(1), window(300)]
        {
            let (seen, exact) = (RowsSeen::of(&mask), mask.density());
            assert!((seen.mean() / 3000.0 - exact).abs() < 0.01, "{exact}, got {}", seen.mean() / 3000.0);
        }
    }

    #[test]
    fn plain_causality_is_seen_as_its_mask_is() {
        for (seq_q, seq_k) in [(700, 700), (300, 900), (900, 300)] {
            let dims = MaskDims { batch: 1, heads: 1, seq_q, seq_k };
            let plain = |causal| RowsSeen::of_plain(dims, causal);
            assert_eq!(plain(true), RowsSeen::of(&FlashMask::causal(dims).unwrap()), "{dims:?}");
            assert_eq!(plain(false), RowsSeen::of(&FlashMask::full(dims).unwrap()), "{dims:?}");
        }
    }

    #[test]
    fn the_columns_that_most_rows_see_have_most_pairs() {
        let seen = RowsSeen::sample(5, |column| [10, 40, 0, 30, 20][column]);
        assert_eq!((seen.mean(), seen.most()), (20.0, 40));
        let shares = [0.0, 0.39, 0.4, 0.69, 0.7, 0.9, 1.0];
        assert_eq!(shares.map(|share| seen.first_with(share, 10)), [0, 0, 2, 2, 4, 6, 10]);
        assert_eq!(RowsSeen::sample(3, |_| 0).first_with(0.5, 7), 7);
    }
}
