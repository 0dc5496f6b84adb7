//! Compact block lists: which tiles of a mask need work, by row tile and by key tile.
use std::ops::Range;

use rayon::prelude::*;

use super::classify::KeyTile;
use super::{BlockClass, FlashMask, MaskDims, MaskHead, Rows};
use crate::Error;

/// Extents of a tile of (query row, key column) pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockSize {
    /// Query rows.
    pub rows: usize,
    /// Key columns.
    pub cols: usize,
}

/// Names a tile of rows or of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileAt {
    /// Sequence of the batch.
    pub batch: usize,
    /// Mask head.
    pub head: usize,
    /// Row tile or key tile.
    pub tile: usize,
}

/// A block that needs work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEntry {
    /// The other tile of the block: key tile in lists by rows, row tile in lists by keys.
    pub tile: u32,
    /// `Partial` or `Full`.
    pub class: BlockClass,
}

/// Blocks of the rectangle "all rows x some columns" that are not skipped, listed by row tile and by key
/// tile.
///
/// Tiles count from row 0 and from the first of the columns; the last of each may be ragged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockLists {
    dims: MaskDims,
    cols: Range<usize>,
    size: BlockSize,
    by_keys: Lists,
    by_rows: Lists,
}

/// One list per (batch, head, tile), end to end; list i is `entries[starts[i]..starts[i + 1]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lists {
    entries: Vec<BlockEntry>,
    starts: Vec<usize>,
}

impl BlockLists {
    /// Classifies every block of all rows x `cols` in tiles of `size`; equal to
    /// [`classify`](super::classify()) of each.
    ///
    /// # Errors
    /// [`Error::ZeroDim`] for an empty tile, [`Error::ColumnRange`] when `cols` is not within the mask's
    /// columns.
    pub fn build(mask: &FlashMask, cols: Range<usize>, size: BlockSize) -> Result<Self, Error> {
        let call = "BlockLists::build";
        let dims = mask.dims();
        if let Some((name, _)) = [("rows", size.rows), ("cols", size.cols)].into_iter().find(|(_, n)| *n == 0)
        {
            return Err(Error::ZeroDim { call, name });
        }
        if cols.start > cols.end || cols.end > dims.seq_k {
            return Err(Error::ColumnRange { call, start: cols.start, end: cols.end, seq_k: dims.seq_k });
        }
        let key_tiles = cols.len().div_ceil(size.cols);
        let lists: Vec<Vec<BlockEntry>> = (0..dims.batch * dims.heads * key_tiles)
            .into_par_iter()
            .map(|index| {
                let head = index / key_tiles;
                let at = MaskHead { batch: head / dims.heads, head: head % dims.heads };
                let start = cols.start + index % key_tiles * size.cols;
                let end = (start + size.cols).min(cols.end);
                list_of_keys(&KeyTile::new(mask.bands_in(at, start..end).collect()), dims.seq_q, size.rows)
            })
            .collect();
        let by_keys = Lists::join(&lists);
        let row_tiles = dims.seq_q.div_ceil(size.rows);
        let by_rows = by_keys.transposed(key_tiles, row_tiles, dims.batch * dims.heads);
        Ok(Self { dims, cols, size, by_keys, by_rows })
    }

    /// Sizes of the mask that was classified.
    pub const fn dims(&self) -> MaskDims {
        self.dims
    }

    /// Extents of a tile.
    pub const fn size(&self) -> BlockSize {
        self.size
    }

    /// The key columns that are covered.
    pub fn cols(&self) -> Range<usize> {
        self.cols.clone()
    }

    /// Row tiles per (batch, head).
    pub const fn row_tiles(&self) -> usize {
        self.dims.seq_q.div_ceil(self.size.rows)
    }

    /// Key tiles per (batch, head).
    pub fn key_tiles(&self) -> usize {
        self.cols.len().div_ceil(self.size.cols)
    }

    /// Key tiles that row tile `at.tile` sees, ascending.
    ///
    /// # Panics
    /// When `at` is outside the mask or its tiles.
    pub fn for_rows(&self, at: TileAt) -> &[BlockEntry] {
        self.by_rows.get(self.index(at, self.row_tiles()))
    }

    /// Row tiles that see key tile `at.tile`, ascending.
    ///
    /// # Panics
    /// When `at` is outside the mask or its tiles.
    pub fn for_keys(&self, at: TileAt) -> &[BlockEntry] {
        self.by_keys.get(self.index(at, self.key_tiles()))
    }

    fn index(&self, at: TileAt, tiles: usize) -> usize {
        let inside = at.batch < self.dims.batch && at.head < self.dims.heads && at.tile < tiles;
        assert!(inside, "{at:?} is outside {:?} of {tiles} tiles", self.dims);
        (at.batch * self.dims.heads + at.head) * tiles + at.tile
    }
}

impl Lists {
    fn join(lists: &[Vec<BlockEntry>]) -> Self {
        let mut starts = Vec::with_capacity(lists.len() + 1);
        starts.push(0);
        let ends = lists.iter().scan(0, |end, list| {
            *end += list.len();
            Some(*end)
        });
        starts.extend(ends);
        Self { entries: lists.concat(), starts }
    }

    fn get(&self, index: usize) -> &[BlockEntry] {
        &self.entries[self.starts[index]..self.starts[index + 1]]
    }

    /// The same blocks listed by the other side, which has `turned` tiles a head where this one has `tiles`.
    fn transposed(&self, tiles: usize, turned: usize, heads: usize) -> Self {
        let mut lists = vec![Vec::new(); heads * turned];
        for index in 0..heads * tiles {
            let (head, tile) = (index / tiles, tile_number(index % tiles));
            for entry in self.get(index) {
                lists[head * turned + entry.tile as usize].push(BlockEntry { tile, class: entry.class });
            }
        }
        Self::join(&lists)
    }
}

fn list_of_keys(keys: &KeyTile, seq_q: usize, rows: usize) -> Vec<BlockEntry> {
    let tiles = (0..seq_q).step_by(rows).enumerate();
    let classes = tiles.map(|(tile, start)| {
        let class = keys.classify(Rows { start, end: (start + rows).min(seq_q) });
        BlockEntry { tile: tile_number(tile), class }
    });
    classes.filter(|entry| entry.class != BlockClass::Skip).collect()
}

/// Tiles number at most rows or columns, which fit i32.
#[expect(clippy::cast_possible_truncation, reason = "lengths are checked to fit i32")]
const fn tile_number(tile: usize) -> u32 {
    tile as u32
}
