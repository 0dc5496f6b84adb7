//! Who needs which keys: for each block of [`NEED_ROWS`] rows of a segment, the ranks that see any of it.
//!
//! One table for all pairs of ranks, from one pass over the global mask: for each block the union of the query rows
//! that see a column of it, then the owners of those rows. Sender and receiver read the same table, so they agree by
//! construction. It is exact: a block is needed by a rank exactly if the block, folded onto all local rows of that rank,
//! is not [`BlockClass::Skip`](fm3_kernels::mask::BlockClass::Skip).
//!
//! Costs O(b h_mask S log NEED_ROWS) for the unions plus one step per (block, rank that sees it).
use std::ops::Range;

use fm3_kernels::FlashMask;
use fm3_kernels::mask::{Bands, ColumnAt, MaskHead, Rows};
use symm_buffer::Pe;

use crate::plan::NEED_ROWS;
use crate::sharding::Run;
use crate::{Error, Sharding, fold};

/// A pair of ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whose keys.
    pub owner: Pe,
    /// Whose queries. May be the owner.
    pub reader: Pe,
}

/// Which part of a segment is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Sequence of the batch.
    pub batch: usize,
    /// Mask heads; needed by one of them is needed.
    pub heads: Range<usize>,
    /// Local rows of the owner; starts on a multiple of [`NEED_ROWS`].
    pub rows: Range<usize>,
}

/// The needs of all pairs of ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Needs {
    heads: usize,
    /// For each owner the number of its first block when all blocks are counted through; one more at the end.
    first_block: Vec<usize>,
    /// u64 words per block: one bit per rank.
    words: usize,
    /// [b, h_mask, blocks, words].
    bits: Vec<u64>,
}

impl Needs {
    /// The needs of `mask` under `sharding`.
    ///
    /// # Errors
    /// [`Error::SizeMismatch`] unless the mask has as many rows and columns as the sharding.
    pub fn new(mask: &FlashMask, sharding: &Sharding) -> Result<Self, Error> {
        fold::check_lengths(mask, sharding)?;
        let (dims, world) = (mask.dims(), sharding.world());
        let mut first_block = vec![0];
        let mut blocks = 0;
        for rank in world.ranks() {
            blocks += sharding.len(rank).div_ceil(NEED_ROWS);
            first_block.push(blocks);
        }
        let words = world.size().div_ceil(64);
        let mut bits = vec![0; dims.batch * dims.heads * blocks * words];
        let mut rows_of_block = bits.chunks_exact_mut(words);
        let mut seen = Vec::new();
        for at in heads_of(mask) {
            for owner in world.ranks() {
                let mut columns = sharding.rows(owner).iter().cloned().flatten();
                for block in rows_of_block.by_ref().take(sharding.len(owner).div_ceil(NEED_ROWS)) {
                    let columns = columns.by_ref().take(NEED_ROWS);
                    seen_rows(columns.map(|column| bands(mask, at, column)), dims.seq_q, &mut seen);
                    mark_owners(&seen, sharding.runs(), world.size(), block);
                }
            }
        }
        Ok(Self { heads: dims.heads, first_block, words, bits })
    }

    /// The rows of a part that the reader needs: whole blocks (the last may be ragged), increasing, neighbours joined.
    ///
    /// # Panics
    /// When the link or the part is outside the problem.
    pub fn rows(&self, link: Link, part: &Part) -> Vec<Range<usize>> {
        let mut runs: Vec<Range<usize>> = Vec::new();
        for start in part.rows.clone().step_by(NEED_ROWS) {
            let block = start / NEED_ROWS;
            if !part.heads.clone().any(|head| self.bit(link, MaskHead { batch: part.batch, head }, block)) {
                continue;
            }
            let end = (start + NEED_ROWS).min(part.rows.end);
            match runs.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => runs.push(start..end),
            }
        }
        runs
    }

    /// Number of blocks of the owner that the reader needs, summed over batches and mask heads.
    pub(crate) fn blocks(&self, link: Link) -> usize {
        let total = self.first_block.last().copied().unwrap_or(0);
        let blocks = self.first_block[link.owner.index()]..self.first_block[link.owner.index() + 1];
        let heads = self.bits.len() / (total * self.words).max(1);
        let all = (0..heads).flat_map(|head| blocks.clone().map(move |block| head * total + block));
        all.filter(|index| self.bit_at(*index, link.reader)).count()
    }

    fn bit(&self, link: Link, at: MaskHead, block: usize) -> bool {
        let total = self.first_block.last().copied().unwrap_or(0);
        let block = self.first_block[link.owner.index()] + block;
        self.bit_at((at.batch * self.heads + at.head) * total + block, link.reader)
    }

    fn bit_at(&self, index: usize, reader: Pe) -> bool {
        self.bits[index * self.words + reader.index() / 64] >> (reader.index() % 64) & 1 == 1
    }
}

/// What each rank has to compute, in visible (query row, key column) pairs summed over batches and mask heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankPairs {
    /// Its queries against all keys.
    pub all: u64,
    /// Its queries against its own keys.
    pub local: u64,
}

/// The visible pairs of every rank; one pass over the mask and one over the rows.
///
/// # Errors
/// [`Error::SizeMismatch`] unless the mask has as many rows and columns as the sharding.
pub fn count_pairs(mask: &FlashMask, sharding: &Sharding) -> Result<Vec<RankPairs>, Error> {
    fold::check_lengths(mask, sharding)?;
    let rows = Rows { start: 0, end: mask.dims().seq_q };
    let mut pairs = vec![RankPairs::default(); sharding.world().size()];
    // Columns that row i sees minus those that row i - 1 sees.
    let mut steps = vec![0i64; rows.end + 1];
    for at in heads_of(mask) {
        for run in sharding.runs() {
            for bands in mask.bands_in(at, run.rows.clone()) {
                for seen in bands.visible(rows) {
                    steps[seen.start] += 1;
                    steps[seen.end] -= 1;
                    let local = sharding.rows_before(run.owner, seen.end)
                        - sharding.rows_before(run.owner, seen.start);
                    pairs[run.owner.index()].local += local as u64;
                }
            }
        }
    }
    let mut columns = 0;
    for run in sharding.runs() {
        for step in &steps[run.rows.clone()] {
            columns += step;
            pairs[run.owner.index()].all += columns.unsigned_abs();
        }
    }
    Ok(pairs)
}

fn heads_of(mask: &FlashMask) -> impl Iterator<Item = MaskHead> + use<> {
    let dims = mask.dims();
    (0..dims.batch).flat_map(move |batch| (0..dims.heads).map(move |head| MaskHead { batch, head }))
}

fn bands(mask: &FlashMask, at: MaskHead, column: usize) -> Bands {
    mask.bands(ColumnAt { batch: at.batch, head: at.head, column })
}

/// Puts the union of the rows that see any of the columns into `seen`: increasing, disjoint.
fn seen_rows(columns: impl Iterator<Item = Bands>, seq_q: usize, seen: &mut Vec<Rows>) {
    seen.clear();
    let all = Rows { start: 0, end: seq_q };
    for bands in columns {
        for rows in bands.visible(all) {
            // Neighbouring columns mostly see the same rows: this keeps the list at a few entries.
            match seen.last_mut() {
                Some(last) if rows.start <= last.end && last.start <= rows.end => {
                    *last = Rows { start: last.start.min(rows.start), end: last.end.max(rows.end) };
                }
                _ => seen.push(rows),
            }
        }
    }
    seen.sort_unstable_by_key(|rows| rows.start);
    seen.dedup_by(|next, last| {
        let touches = next.start <= last.end;
        if touches {
            last.end = last.end.max(next.end);
        }
        touches
    });
}

/// Sets the bit of every rank that owns one of the rows.
fn mark_owners(seen: &[Rows], runs: &[Run], ranks: usize, block: &mut [u64]) {
    let mut marked = 0;
    for rows in seen {
        let first = runs.partition_point(|run| run.rows.end <= rows.start);
        for run in runs[first..].iter().take_while(|run| run.rows.start < rows.end) {
            let (word, bit) = (run.owner.index() / 64, 1 << (run.owner.index() % 64));
            marked += usize::from(block[word] & bit == 0);
            block[word] |= bit;
            if marked == ranks {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fm3_kernels::mask::MaskDims;
    use symm_buffer::World;

    use super::*;

    #[test]
    fn causal_segments_are_needed_by_later_ranks_only() {
        let dims = MaskDims { batch: 1, heads: 1, seq_q: 900, seq_k: 900 };
        let mask = FlashMask::causal(dims).unwrap();
        let sharding = Sharding::contiguous(900, World::new(3).unwrap()).unwrap();
        let needs = Needs::new(&mask, &sharding).unwrap();
        let part = Part { batch: 0, heads: 0..1, rows: 0..300 };
        for owner in sharding.world().ranks() {
            for reader in sharding.world().ranks() {
                let link = Link { owner, reader };
                let expected = Vec::from_iter((owner <= reader).then_some(0..300));
                assert_eq!(needs.rows(link, &part), expected, "{link:?}");
                assert_eq!(needs.blocks(link), if owner <= reader { 3 } else { 0 });
            }
        }
        let tail = Part { rows: 256..300, ..part };
        let last = needs.rows(Link { owner: Pe(0), reader: Pe(2) }, &tail);
        assert_eq!(last, Vec::from_iter(Some(256..300)));
    }

    #[test]
    fn pairs_of_a_causal_mask() {
        let dims = MaskDims { batch: 2, heads: 1, seq_q: 6, seq_k: 6 };
        let mask = FlashMask::causal(dims).unwrap();
        let sharding = Sharding::contiguous(6, World::new(2).unwrap()).unwrap();
        let pairs = count_pairs(&mask, &sharding).unwrap();
        assert_eq!(pairs, [RankPairs { all: 12, local: 12 }, RankPairs { all: 30, local: 12 }]);
    }
}
