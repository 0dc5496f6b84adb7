//! A mask as the kernels read it: bands of every key column, compact lists of blocks, the order of work.
//!
//! Everything is in tiles of 128 query rows x 128 key columns. The CUDA kernels build the same tables; both give the
//! same bytes. `mb`, `mh` are the mask's batch and heads.
use std::cmp::Reverse;

use rayon::prelude::*;

use super::build::bound;
use super::classify::KeyTile;
use super::tables_segments::KeySegments;
use super::{Bands, BlockClass, FlashMask, MaskDims, MaskHead, Rows};
use crate::Error;

/// Rows of a row tile, and columns of a key tile.
pub(super) const TILE: usize = 128;

/// Class of a listed block: no pair is masked.
pub const FULL: u32 = 0;
/// Class of a listed block: every column masks a row `i` of the block iff `i >= a_start || i < b_end`.
pub const SIMPLE: u32 = 1;
/// Class of a listed block: any two bands.
pub const GENERAL: u32 = 2;

/// A mask over keys in segments, prepared for the kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MaskTables {
    /// Sizes of the mask.
    pub dims: MaskDims,
    /// The keys.
    pub segments: KeySegments,
    /// Masked rows of each column, [mb, mh, key_tiles * 128] of `[a_start, b_end, a_end, b_start]`: rows
    /// `a_start..a_end` and `b_start..b_end`. Columns behind the end of their segment mask every row.
    pub bands: Vec<[i32; 4]>,
    /// A list of key tiles for each row tile.
    pub by_rows: TileLists,
    /// A list of row tiles for each key tile.
    pub by_keys: TileLists,
}

/// For each tile of one side, the tiles of the other side that make a block which is not skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileLists {
    /// Lists of each mask head: tiles of this side.
    pub lists: usize,
    /// Words of each list: tiles of the other side.
    pub others: usize,
    /// Entries of each list, [mb, mh, lists].
    pub counts: Vec<u32>,
    /// Other tile << 2 | class, ascending, [mb, mh, lists, other tiles]; words past the count are `u32::MAX`.
    pub entries: Vec<u32>,
    /// 2 * full + 3 * partial blocks, [mb, mh, lists].
    pub work: Vec<u32>,
    /// The tiles in the order of work, [mb, mh, lists]: row tiles by work, largest first; key tiles by the grade of
    /// their work, half an octave each, so that neighbours, whom the same rows see, stay together
    /// (`docs/decisions/0005-backward-kernel.md`). Equal ones: the smaller tile first.
    pub ranked: Vec<u32>,
}

impl MaskTables {
    /// Tables of `mask`, whose columns are the rows of `segments` end to end.
    ///
    /// A mask of batch 1 serves any number of sequences.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the segments do not have the mask's columns; [`Error::MaskMemory`].
    pub fn build(mask: &FlashMask, segments: &KeySegments) -> Result<Self, Error> {
        let call = "MaskTables::build";
        let dims = mask.dims();
        if segments.seq_k() != dims.seq_k {
            let (got, expected) = (segments.seq_k(), dims.seq_k);
            return Err(Error::Mismatch { call, tensor: "segments", axis: "rows", got, expected });
        }
        let (row_tiles, key_tiles) = (dims.seq_q.div_ceil(TILE), segments.key_tiles());
        let heads = dims.batch * dims.heads;
        let mut bands = filled(call, heads * key_tiles * TILE, [0; 4])?;
        let mut classes = filled(call, heads * key_tiles * row_tiles, None)?;
        let tiles = bands.par_chunks_exact_mut(TILE).zip(classes.par_chunks_exact_mut(row_tiles));
        tiles.enumerate().for_each(|(index, (bands, classes))| {
            let (head, tile) = (index / key_tiles, index % key_tiles);
            let at = MaskHead { batch: head / dims.heads, head: head % dims.heads };
            let [first, valid] = segments.tile_columns()[tile].map(|word| word as usize);
            let columns = mask.bands_in(at, first..first + valid);
            classify_tile(columns.collect(), dims.seq_q, bands, classes);
        });
        let class = |head: usize, key: usize, row: usize| classes[(head * key_tiles + key) * row_tiles + row];
        let sizes = Sizes { heads, lists: key_tiles, others: row_tiles };
        let by_keys = TileLists::gather(call, (sizes, grade), class)?;
        let sizes = Sizes { heads, lists: row_tiles, others: key_tiles };
        let by_rows = TileLists::gather(call, (sizes, |work| work), |head, row, key| class(head, key, row))?;
        Ok(Self { dims, segments: segments.clone(), bands, by_rows, by_keys })
    }

    /// Tiles of 128 query rows.
    pub const fn row_tiles(&self) -> usize {
        self.dims.seq_q.div_ceil(TILE)
    }
}

/// How many lists there are, and how long each may be.
#[derive(Clone, Copy)]
struct Sizes {
    /// mb * mh.
    heads: usize,
    /// Of each head.
    lists: usize,
    /// Tiles of the other side.
    others: usize,
}

impl TileLists {
    /// `class(head, list, other)` is none for skipped blocks; `rate` says which work is alike.
    fn gather(
        call: &'static str,
        (sizes, rate): (Sizes, fn(u32) -> u32),
        class: impl Fn(usize, usize, usize) -> Option<Class> + Sync,
    ) -> Result<Self, Error> {
        let Sizes { heads, lists, others } = sizes;
        let mut counts = filled(call, heads * lists, 0)?;
        let mut work = filled(call, heads * lists, 0)?;
        let mut entries = filled(call, (heads * lists).saturating_mul(others), u32::MAX)?;
        let numbers = counts.par_iter_mut().zip(&mut work);
        numbers.zip(entries.par_chunks_exact_mut(others)).enumerate().for_each(
            |(index, ((count, work), entries))| {
                let found = (0..others).filter_map(|other| {
                    class(index / lists, index % lists, other).map(|class| (other, class))
                });
                for ((other, class), entry) in found.zip(entries) {
                    *entry = word(other) << 2 | class.word();
                    *count += 1;
                    *work += if class == Class::Full { 2 } else { 3 };
                }
            },
        );
        let ranked = work.par_chunks_exact(lists).flat_map_iter(|work| rank(work, rate)).collect();
        Ok(Self { lists, others, counts, entries, work, ranked })
    }

    /// The entries of one list.
    ///
    /// # Panics
    /// When there is no such list.
    pub fn list(&self, at: ListAt) -> &[u32] {
        assert!(at.tile < self.lists, "{at:?} of {} lists", self.lists);
        let index = at.head * self.lists + at.tile;
        &self.entries[index * self.others..][..self.counts[index] as usize]
    }
}

/// Names one list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListAt {
    /// Mask head, counted through the batch: batch * mh + head.
    pub head: usize,
    /// Tile whose list it is.
    pub tile: usize,
}

/// A block that is not skipped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Full,
    Simple,
    General,
}

impl Class {
    const fn word(self) -> u32 {
        match self {
            Class::Full => FULL,
            Class::Simple => SIMPLE,
            Class::General => GENERAL,
        }
    }
}

/// Writes the bands of one key tile's columns, and the class of its block with every row tile.
fn classify_tile(
    mut columns: Vec<Bands>,
    seq_q: usize,
    bands: &mut [[i32; 4]],
    classes: &mut [Option<Class>],
) {
    // Columns behind the end of the segment are keys that are not there.
    let (filled, padding) = bands.split_at_mut(columns.len());
    filled.iter_mut().zip(&columns).for_each(|(words, columns)| *words = words_of(*columns, seq_q));
    padding.fill([0, 0, i32::MAX, 0]);
    columns.resize(TILE, Bands { a: Rows { start: 0, end: usize::MAX }, b: Rows::EMPTY });
    let tile = KeyTile::new(columns);
    for (index, class) in classes.iter_mut().enumerate() {
        let start = index * TILE;
        let rows = Rows { start, end: (start + TILE).min(seq_q) };
        *class = match tile.classify(rows) {
            BlockClass::Skip => None,
            BlockClass::Full => Some(Class::Full),
            BlockClass::Partial if bands.iter().all(|words| is_simple(*words, rows)) => Some(Class::Simple),
            BlockClass::Partial => Some(Class::General),
        };
    }
}

/// `[a_start, b_end, a_end, b_start]`. Of two bands `a` is the one that starts later. One alone is `a`, unless it is
/// the first rows and not all of them. So in most blocks `a` is open below and `b` open above.
fn words_of(bands: Bands, seq_q: usize) -> [i32; 4] {
    let Bands { a, b } = bands;
    let (a, b) = match (a.is_empty(), b.is_empty()) {
        (true, true) => (None, None),
        (false, false) if (a.start, a.end) < (b.start, b.end) => (Some(b), Some(a)),
        (false, false) => (Some(a), Some(b)),
        (one_is_b, _) => {
            let one = if one_is_b { b } else { a };
            if one.start == 0 && one.end < seq_q { (None, Some(one)) } else { (Some(one), None) }
        }
    };
    let [a_start, a_end] = a.map_or([i32::MAX; 2], |a| [bound(a.start), bound(a.end)]);
    let [b_start, b_end] = b.map_or([0; 2], |b| [bound(b.start), bound(b.end)]);
    [a_start, b_end, a_end, b_start]
}

/// Whether one comparison with each band says all within `rows`.
fn is_simple([a_start, b_end, a_end, b_start]: [i32; 4], rows: Rows) -> bool {
    let (first, end) = (bound(rows.start), bound(rows.end));
    (a_end >= end || a_start >= end) && (b_start <= first || b_end <= first)
}

/// Tiles by the rate of their work, largest first.
fn rank(work: &[u32], rate: impl Fn(u32) -> u32) -> Vec<u32> {
    let mut tiles: Vec<u32> = (0..word(work.len())).collect();
    tiles.sort_unstable_by_key(|tile| (Reverse(rate(work[*tile as usize])), *tile));
    tiles
}

/// Half octaves: 0 for no work, then 1 + floor(2 log2(work)).
const fn grade(work: u32) -> u32 {
    if work == 0 {
        return 0;
    }
    let octave = work.ilog2();
    let square = work as u64 * work as u64;
    // work / 2^octave is in 1..2, and its square in 1..4.
    2 * octave + if square >> (2 * octave + 1) == 0 { 1 } else { 2 }
}

fn filled<T: Clone>(call: &'static str, len: usize, value: T) -> Result<Vec<T>, Error> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|_| Error::MaskMemory { call, bounds: len })?;
    values.resize(len, value);
    Ok(values)
}

/// Columns, tiles and segments are checked to fit.
#[expect(clippy::cast_possible_truncation, reason = "at most i32::MAX, as `KeySegments::new` checks")]
pub(super) const fn word(number: usize) -> u32 {
    number as u32
}
