//! `fm3_mask_lists`: entries and work of every row tile, or of every key tile.
use fm3_kernels::params::MaskListsParams;

use super::bands::{ColumnBands, RowRange};
use super::mask_of;
use crate::blocks::Shape;
use crate::memory::Array;
use crate::tile::TILE;

/// Lists of a block: one per warp.
const LISTS: u32 = 4;

const NO_ENTRY: u32 = u32::MAX;

/// What a block of rows and columns is; the numbers are those of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Full = 0,
    Simple = 1,
    General = 2,
    Skip,
}

/// Four lists per block, mask head and sequence.
pub(crate) fn lists(p: &MaskListsParams, shape: Shape) {
    let [lists, pitch] =
        if p.transposed != 0 { [p.key_tiles, p.row_tiles] } else { [p.row_tiles, p.key_tiles] };
    shape.each(|block| {
        let mask = mask_of(block, shape.grid[1]);
        for list in (LISTS * block[0]..LISTS * (block[0] + 1)).filter(|list| *list < lists) {
            let at = mask * lists as usize + list as usize;
            let (entries, work) = one(p, mask, list, pitch);
            Array::at(p.counts).set(at, u32::try_from(entries.len()).unwrap_or(u32::MAX));
            Array::at(p.work).set(at, work);
            let mut words = vec![NO_ENTRY; pitch as usize];
            words[..entries.len()].copy_from_slice(&entries);
            Array::at(p.entries).write(at * pitch as usize, &words);
        }
    });
}

/// Entries and work of a list.
fn one(p: &MaskListsParams, mask: usize, list: u32, pitch: u32) -> (Vec<u32>, u32) {
    let (mut entries, mut work) = (Vec::new(), 0);
    for other in 0..pitch {
        let [row_tile, key_tile] = if p.transposed != 0 { [other, list] } else { [list, other] };
        let first = row_tile * 128;
        let rows = RowRange::new(first.cast_signed(), (first + 128).min(p.seq_q).cast_signed());
        let key_tile = mask * p.key_tiles as usize + key_tile as usize;
        let verdict = by_summary(p, key_tile, rows).unwrap_or_else(|| by_columns(p, key_tile, rows));
        if verdict != Verdict::Skip {
            entries.push(other << 2 | verdict as u32);
            work += if verdict == Verdict::Full { 2 } else { 3 };
        }
    }
    (entries, work)
}

/// What the summary of a key tile knows.
fn by_summary(p: &MaskListsParams, key_tile: usize, rows: RowRange) -> Option<Verdict> {
    let words: [i32; 8] = Array::at(p.summaries).get(key_tile);
    let bands = |at: usize| ColumnBands {
        a: RowRange::new(words[at], words[at + 1]),
        b: RowRange::new(words[at + 2], words[at + 3]),
    };
    if bands(0).masked_in(rows) == rows.len() {
        return Some(Verdict::Skip);
    }
    (bands(4).masked_in(rows) == 0).then_some(Verdict::Full)
}

fn by_columns(p: &MaskListsParams, key_tile: usize, rows: RowRange) -> Verdict {
    let mut columns = [[0; 4]; TILE];
    Array::at(p.bands).read(key_tile * TILE, &mut columns);
    let columns = columns.map(ColumnBands::from_words);
    let masked = columns.map(|bands| bands.masked_in(rows));
    if masked.iter().all(|masked| *masked == rows.len()) {
        return Verdict::Skip;
    }
    if masked.iter().all(|masked| *masked == 0) {
        return Verdict::Full;
    }
    let is_simple = |ColumnBands { a, b }: &ColumnBands| {
        (a.end >= rows.end || a.start >= rows.end) && (b.start <= rows.start || b.end <= rows.start)
    };
    if columns.iter().all(is_simple) { Verdict::Simple } else { Verdict::General }
}
