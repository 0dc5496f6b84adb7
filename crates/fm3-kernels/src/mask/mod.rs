//! FlashMask column masks: for every key column, which query rows may not see it.
//!
//! A mask is an i32 array [b, h_mask, s_k, C] of row bounds; start is inclusive, end exclusive, start >= end
//! is empty:
//!
//! | C | causal | bounds of column j | masked rows of column j |
//! |---|---|---|---|
//! | 1 | yes | LTS | LTS <= i, and above the diagonal |
//! | 2 | yes | LTS, LTE | LTS <= i < LTE, and above the diagonal |
//! | 2 | no | LTS, UTE | LTS <= i, and i < UTE |
//! | 4 | no | LTS, LTE, UTS, UTE | LTS <= i < LTE, and UTS <= i < UTE |
//!
//! The diagonal is aligned bottom-right: row i may see column j only if j <= i + s_k - s_q. Bounds above s_q
//! act as s_q. LT and UT stand for lower and upper triangle; without causality nothing ties a band to either.
//! The format is that of FlashMask (Wang et al., "FlashMask: Efficient and Rich Mask Extension of
//! FlashAttention", 2024).
mod blocks;
mod build;
mod build_documents;
mod classify;
mod dense;
mod documents;
mod picture;
mod random;
mod rows;
#[cfg(feature = "cuda")]
mod rows_seen;
mod spec;
mod spec_table;
mod tables;
mod tables_segments;

use std::ops::Range;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::Error;
pub use blocks::{BlockEntry, BlockLists, BlockSize, TileAt};
pub use build::{Eviction, GlobalWindow};
pub use classify::{BlockClass, classify};
pub use documents::Documents;
pub use rows::{Bands, Rows};
#[cfg(feature = "cuda")]
pub(crate) use rows_seen::RowsSeen;
pub use spec::MaskSpec;
pub use tables::{FULL, GENERAL, ListAt, MaskTables, SIMPLE, TileLists};
pub use tables_segments::KeySegments;

/// Sizes of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MaskDims {
    /// Number of sequences, b.
    pub batch: usize,
    /// Mask heads, h_mask: divides the query heads, each serves `heads_q / heads` of them.
    pub heads: usize,
    /// Query rows, s_q.
    pub seq_q: usize,
    /// Key columns, s_k.
    pub seq_k: usize,
}

/// Bounds per key column, C.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Columns {
    /// LTS; causal only.
    One,
    /// LTS, LTE when causal; LTS, UTE when not.
    Two,
    /// LTS, LTE, UTS, UTE; never causal.
    Four,
}

impl Columns {
    /// C as a number.
    pub const fn count(self) -> usize {
        match self {
            Columns::One => 1,
            Columns::Two => 2,
            Columns::Four => 4,
        }
    }

    /// C as the kernels hold it.
    #[cfg(feature = "cuda")]
    pub(crate) const fn number(self) -> u32 {
        match self {
            Columns::One => 1,
            Columns::Two => 2,
            Columns::Four => 4,
        }
    }

    /// The form with `count` bounds.
    ///
    /// # Errors
    /// [`Error::MaskColumns`] unless `count` is 1, 2 or 4.
    pub const fn from_count(count: usize) -> Result<Self, Error> {
        match count {
            1 => Ok(Columns::One),
            2 => Ok(Columns::Two),
            4 => Ok(Columns::Four),
            _ => Err(Error::MaskColumns { columns: count }),
        }
    }
}

/// Names one head of one sequence in a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskHead {
    /// Sequence of the batch.
    pub batch: usize,
    /// Mask head.
    pub head: usize,
}

/// Names one key column of a mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ColumnAt {
    /// Sequence of the batch.
    pub batch: usize,
    /// Mask head.
    pub head: usize,
    /// Key column.
    pub column: usize,
}

/// Names one query head among `of`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueryHead {
    /// Query head, below `of`.
    pub head: usize,
    /// Query heads of the problem.
    pub of: usize,
}

/// A checked column mask. Cloning shares the bounds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawMask", into = "RawMask")]
pub struct FlashMask {
    dims: MaskDims,
    columns: Columns,
    causal: bool,
    bounds: Arc<[i32]>,
}

impl FlashMask {
    /// A mask from a raw array [b, h_mask, s_k, C].
    ///
    /// # Errors
    /// [`Error::ZeroDim`], [`Error::TooLong`]; [`Error::MaskForm`] for C = 1 without causal or C = 4 with it;
    /// [`Error::WrongLength`] when the array does not fit `dims`; [`Error::NegativeBound`].
    pub fn new(dims: MaskDims, columns: Columns, causal: bool, bounds: Vec<i32>) -> Result<Self, Error> {
        dims.check("FlashMask::new")?;
        check_form(columns, causal)?;
        let expected = dims.total_columns().saturating_mul(columns.count());
        if bounds.len() != expected {
            return Err(Error::WrongLength { call: "FlashMask::new", expected, got: bounds.len() });
        }
        if let Some(index) = bounds.iter().position(|bound| *bound < 0) {
            let at = dims.column_at(index / columns.count());
            let ColumnAt { batch, head, column } = at;
            return Err(Error::NegativeBound { batch, head, column, bound: bounds[index] });
        }
        Ok(Self { dims, columns, causal, bounds: bounds.into() })
    }

    /// The sizes.
    pub const fn dims(&self) -> MaskDims {
        self.dims
    }

    /// Bounds per key column.
    pub const fn columns(&self) -> Columns {
        self.columns
    }

    /// Whether rows above the bottom-right diagonal are masked too.
    pub const fn is_causal(&self) -> bool {
        self.causal
    }

    /// The raw array [b, h_mask, s_k, C].
    pub fn bounds(&self) -> &[i32] {
        &self.bounds
    }

    /// Checks that the mask heads divide `heads_q` query heads.
    ///
    /// # Errors
    /// [`Error::MaskHeads`] with both numbers.
    pub const fn check_heads(&self, heads_q: usize) -> Result<(), Error> {
        if heads_q == 0 || !heads_q.is_multiple_of(self.dims.heads) {
            return Err(Error::MaskHeads { heads_mask: self.dims.heads, heads_q });
        }
        Ok(())
    }

    /// The mask head that a query head reads: h / (hq / h_mask). Meaningful after
    /// [`check_heads`](Self::check_heads).
    ///
    /// # Panics
    /// When there are fewer query heads than mask heads.
    pub const fn head_of(&self, query: QueryHead) -> usize {
        query.head / (query.of / self.dims.heads)
    }

    /// Masked rows of one key column, clipped to [0, s_q].
    ///
    /// # Panics
    /// When `at` is outside the mask.
    #[inline]
    pub fn bands(&self, at: ColumnAt) -> Bands {
        let MaskDims { batch, heads, seq_k, .. } = self.dims;
        assert!(
            at.batch < batch && at.head < heads && at.column < seq_k,
            "{at:?} is outside {:?}",
            self.dims
        );
        let count = self.columns.count();
        let start = ((at.batch * heads + at.head) * seq_k + at.column) * count;
        self.decode(at.column, &self.bounds[start..start + count])
    }

    /// [`bands`](Self::bands) of neighbouring columns of one head, in order.
    ///
    /// # Panics
    /// When `at` or `cols` is outside the mask.
    pub fn bands_in(&self, at: MaskHead, cols: Range<usize>) -> impl ExactSizeIterator<Item = Bands> + '_ {
        let MaskDims { batch, heads, seq_k, .. } = self.dims;
        assert!(
            at.batch < batch && at.head < heads && cols.end <= seq_k,
            "{at:?} {cols:?} is outside {:?}",
            self.dims
        );
        let count = self.columns.count();
        let first = (at.batch * heads + at.head) * seq_k;
        let bounds = &self.bounds[(first + cols.start) * count..(first + cols.end) * count];
        bounds.chunks_exact(count).enumerate().map(move |(k, bounds)| self.decode(cols.start + k, bounds))
    }

    /// Visible (row, column) pairs over all batches and mask heads, exact.
    pub fn visible_pairs(&self) -> u64 {
        let MaskDims { batch, heads, seq_q, seq_k } = self.dims;
        let rows = Rows { start: 0, end: seq_q };
        let all_heads = (0..batch).flat_map(|batch| (0..heads).map(move |head| MaskHead { batch, head }));
        let columns = all_heads.flat_map(|at| self.bands_in(at, 0..seq_k));
        columns.map(|bands| (seq_q - bands.masked_in(rows)) as u64).sum()
    }

    /// [`visible_pairs`](Self::visible_pairs) over all b * h_mask * s_q * s_k pairs.
    pub fn density(&self) -> f64 {
        self.visible_pairs() as f64 / (self.dims.total_columns() as f64 * self.dims.seq_q as f64)
    }

    /// The definition table of this module, in code.
    #[inline]
    fn decode(&self, column: usize, bounds: &[i32]) -> Bands {
        let seq_q = self.dims.seq_q;
        let clip = |start: i32, end: i32| Rows::clipped(start, end, seq_q);
        match (bounds, self.causal) {
            (&[lts], _) => Bands { a: clip(lts, i32::MAX), b: self.dims.above_diagonal(column) },
            (&[lts, lte], true) => Bands { a: clip(lts, lte), b: self.dims.above_diagonal(column) },
            (&[lts, ute], false) => Bands { a: clip(lts, i32::MAX), b: clip(0, ute) },
            (&[lts, lte, uts, ute], _) => Bands { a: clip(lts, lte), b: clip(uts, ute) },
            _ => unreachable!("C is 1, 2 or 4"),
        }
    }
}

/// C = 1 needs causality, C = 4 forbids it.
pub(crate) const fn check_form(columns: Columns, causal: bool) -> Result<(), Error> {
    match (columns, causal) {
        (Columns::One, true) | (Columns::Two, _) | (Columns::Four, false) => Ok(()),
        _ => Err(Error::MaskForm { columns: columns.count(), causal }),
    }
}

impl MaskDims {
    /// All positive, lengths within the i32 rows of the format.
    pub(crate) fn check(self, call: &'static str) -> Result<(), Error> {
        let named =
            [("batch", self.batch), ("heads", self.heads), ("seq_q", self.seq_q), ("seq_k", self.seq_k)];
        if let Some((name, _)) = named.into_iter().find(|(_, size)| *size == 0) {
            return Err(Error::ZeroDim { call, name });
        }
        let limit = i32::MAX as usize;
        for (name, length) in [("seq_q", self.seq_q), ("seq_k", self.seq_k)] {
            if length > limit {
                return Err(Error::TooLong { name, length, limit });
            }
        }
        Ok(())
    }

    /// Whether lists of a few words per column could be held at all; asks the allocator, keeps nothing.
    fn check_memory(self, call: &'static str) -> Result<(), Error> {
        let bounds = self.total_columns().saturating_mul(Columns::Four.count());
        let mut lists: Vec<[u64; 4]> = Vec::new();
        lists.try_reserve_exact(self.total_columns()).map_err(|_| Error::MaskMemory { call, bounds })
    }

    /// b * h_mask * s_k, at most `usize::MAX`.
    const fn total_columns(self) -> usize {
        self.batch.saturating_mul(self.heads).saturating_mul(self.seq_k)
    }

    /// Rows that stand before `column` on the diagonal: i + s_k - s_q < column.
    #[inline]
    const fn above_diagonal(self, column: usize) -> Rows {
        Rows { start: 0, end: (column + self.seq_q).saturating_sub(self.seq_k) }
    }

    /// Where the `index`-th column of the array [b, h_mask, s_k] is.
    const fn column_at(self, index: usize) -> ColumnAt {
        let head = index / self.seq_k;
        ColumnAt { batch: head / self.heads, head: head % self.heads, column: index % self.seq_k }
    }
}

/// What is stored on disk; checked again when read.
#[derive(Serialize, Deserialize)]
struct RawMask {
    dims: MaskDims,
    columns: Columns,
    causal: bool,
    bounds: Vec<i32>,
}

impl TryFrom<RawMask> for FlashMask {
    type Error = Error;

    fn try_from(raw: RawMask) -> Result<Self, Error> {
        Self::new(raw.dims, raw.columns, raw.causal, raw.bounds)
    }
}

impl From<FlashMask> for RawMask {
    fn from(mask: FlashMask) -> Self {
        Self { dims: mask.dims, columns: mask.columns, causal: mask.causal, bounds: mask.bounds.to_vec() }
    }
}
