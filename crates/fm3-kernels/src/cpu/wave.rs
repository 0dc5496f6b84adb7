//! The order of the backward pass: waves of (key tile, row tile) blocks that fit a bounded workspace.
//!
//! A unit is one key tile of one KV head with the row tiles of one band that see it, over the group's query heads.
//! A wave computes dS of all its blocks, unit by unit in parallel (each owns its dK and dV), then adds dS K to dQ,
//! row tile by row tile in parallel. Waves follow each other, so each sum has one order: bands ascending for dK and
//! dV, key tiles ascending for dQ.
use super::check::Piece;
use crate::mask::{BlockClass, BlockLists, FlashMask, QueryHead, TileAt};
use crate::shape::Shape;

/// Row tiles of a band: bounds the blocks of a unit to this times the group size.
const BAND: usize = 16;

/// dS tiles of a wave, 32 MiB of them: 32 units of one query head each, so enough to keep many cores busy.
/// Only a unit that is larger by itself (more than 32 query heads a KV head) exceeds it.
const WAVE: usize = 512;

/// One tile of scores.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    /// Query head.
    pub(super) head: usize,
    /// Row tile of the problem.
    pub(super) row_tile: usize,
    pub(super) class: BlockClass,
}

/// One key tile of one KV head and sequence.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) batch: usize,
    /// KV head of the piece, from 0.
    pub(super) kv_head: usize,
    /// Key tile of the piece, from 0.
    pub(super) key_tile: usize,
    /// Slot of the workspace that holds dS of block 0; the others follow.
    pub(super) first_slot: usize,
    pub(super) blocks: Vec<Block>,
}

/// Neighbouring units, in the order (sequence, KV head, key tile).
#[derive(Debug)]
pub(super) struct Wave {
    /// Index of unit 0 among all units of the piece.
    pub(super) first_unit: usize,
    pub(super) units: Vec<Unit>,
    /// dS tiles.
    pub(super) slots: usize,
}

/// A block of a wave seen from its row tile.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowBlock {
    /// (sequence * query heads + query head) * row tiles + row tile
    pub(super) row_index: usize,
    pub(super) batch: usize,
    /// KV head of the piece.
    pub(super) kv_head: usize,
    /// Key tile of the piece.
    pub(super) key_tile: usize,
    pub(super) slot: usize,
}

/// All waves of a piece.
pub(super) struct Waves<'a> {
    pub(super) shape: Shape,
    pub(super) mask: &'a FlashMask,
    pub(super) blocks: &'a BlockLists,
    pub(super) piece: &'a Piece,
    band: usize,
    unit: usize,
}

impl<'a> Waves<'a> {
    pub(super) fn new(shape: Shape, mask: &'a FlashMask, blocks: &'a BlockLists, piece: &'a Piece) -> Self {
        Self { shape, mask, blocks, piece, band: 0, unit: 0 }
    }

    fn unit(&self, index: usize) -> Unit {
        let (tiles, heads) = (self.piece.tiles(), self.piece.kv_heads.len());
        let (batch, kv_head) = (index / tiles / heads, index / tiles % heads);
        let group = self.shape.group_size();
        let first_head = (self.piece.kv_heads.start + kv_head) * group;
        let band = self.band * BAND..(self.band + 1) * BAND;
        let mut blocks = Vec::new();
        for head in first_head..first_head + group {
            let mask_head = self.mask.head_of(QueryHead { head, of: self.shape.dims().heads_q });
            let tile = self.piece.first_tile + index % tiles;
            let entries = self.blocks.for_keys(TileAt { batch, head: mask_head, tile });
            let start = entries.partition_point(|entry| (entry.tile as usize) < band.start);
            let entries = entries[start..].iter().take_while(|entry| (entry.tile as usize) < band.end);
            blocks.extend(entries.map(|entry| Block {
                head,
                row_tile: entry.tile as usize,
                class: entry.class,
            }));
        }
        Unit { batch, kv_head, key_tile: index % tiles, first_slot: 0, blocks }
    }
}

impl Iterator for Waves<'_> {
    type Item = Wave;

    fn next(&mut self) -> Option<Wave> {
        let all = self.shape.dims().batch * self.piece.kv_heads.len() * self.piece.tiles();
        while self.band * BAND < self.blocks.row_tiles() {
            let mut wave = Wave { first_unit: self.unit, units: Vec::new(), slots: 0 };
            while self.unit < all {
                let mut unit = self.unit(self.unit);
                if wave.slots > 0 && wave.slots + unit.blocks.len() > WAVE {
                    return Some(wave);
                }
                unit.first_slot = wave.slots;
                wave.slots += unit.blocks.len();
                wave.units.push(unit);
                self.unit += 1;
            }
            (self.band, self.unit) = (self.band + 1, 0);
            if wave.slots > 0 {
                return Some(wave);
            }
        }
        None
    }
}

impl Wave {
    /// The wave's blocks by row tile; those of one row tile stand together, key tiles ascending.
    pub(super) fn by_rows(&self, shape: Shape, row_tiles: usize) -> Vec<RowBlock> {
        let heads_q = shape.dims().heads_q;
        let mut all = Vec::with_capacity(self.slots);
        for Unit { batch, kv_head, key_tile, first_slot, blocks } in &self.units {
            let (batch, kv_head, key_tile) = (*batch, *kv_head, *key_tile);
            all.extend(blocks.iter().enumerate().map(|(k, block)| RowBlock {
                row_index: (batch * heads_q + block.head) * row_tiles + block.row_tile,
                batch,
                kv_head,
                key_tile,
                slot: first_slot + k,
            }));
        }
        all.sort_by_key(|block| (block.row_index, block.key_tile));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::TILE;
    use crate::mask::MaskDims;
    use crate::shape::Dims;

    #[test]
    fn waves_hold_every_block_once_within_the_workspace() {
        let (seq_q, seq_k) = (40 * TILE.rows - 5, 12 * TILE.cols);
        let dims = Dims { batch: 2, heads_q: 6, heads_kv: 2, seq_q, seq_k, head_dim: 8 };
        let shape = Shape::new(dims).unwrap();
        let mask = FlashMask::causal(MaskDims { batch: 2, heads: 2, seq_q, seq_k }).unwrap();
        let blocks = BlockLists::build(&mask, 0..seq_k, TILE).unwrap();
        let piece = Piece { first_tile: 2, rows: 9 * TILE.cols, first_column: 2 * TILE.cols, kv_heads: 1..2 };
        let mut seen = Vec::new();
        for wave in Waves::new(shape, &mask, &blocks, &piece) {
            assert!(wave.slots <= WAVE, "{}", wave.slots);
            let mut slots = vec![0; wave.slots];
            for row_block in wave.by_rows(shape, blocks.row_tiles()) {
                slots[row_block.slot] += 1;
                seen.push((row_block.row_index, row_block.batch, row_block.kv_head, row_block.key_tile));
            }
            assert!(slots.iter().all(|uses| *uses == 1));
        }
        seen.sort_unstable();
        let mut expected = Vec::new();
        for (batch, head) in (0..2).flat_map(|batch| (3..6).map(move |head| (batch, head))) {
            for tile in 0..blocks.row_tiles() {
                let entries = piece.within(blocks.for_rows(TileAt { batch, head: 1, tile }));
                let row_index = (batch * 6 + head) * blocks.row_tiles() + tile;
                expected.extend(entries.iter().map(|entry| (row_index, batch, 0, entry.tile as usize - 2)));
            }
        }
        assert_eq!(seen, expected);
    }
}
