//! Which key tile a block works on, and which rows see it.
use fm3_kernels::params::BackwardParams;

use super::{Form, STEP};
use crate::memory::Array;
use crate::tile::TILE;

/// A tile of 128 key rows of one KV head.
pub(super) struct KeyPlace {
    pub(super) batch: usize,
    pub(super) kv_head: usize,
    pub(super) key_tile: usize,
    /// Segment << 20 | tile within it.
    pub(super) place: u32,
}

/// 64 query rows of one query head that meet the tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Head of those that share the KV head.
    pub(super) member: usize,
    /// 64 rows, of the head.
    pub(super) block: usize,
    /// 0 full, 1 simple, 2 general.
    pub(super) class: u32,
}

impl KeyPlace {
    /// Sections of KV heads, in each the key tiles of smaller rank; then the others of all heads.
    pub(super) fn of(p: &BackwardParams, form: Form, index: usize) -> Self {
        let head_tiles = if form.part { p.part_tiles } else { p.key_tiles } as usize;
        let [heads_kv, section_heads, ranks, tiles] =
            [p.heads_kv, p.section_heads, p.section_ranks, p.tiles].map(|number| number as usize);
        let all_heads = tiles / head_tiles;
        assert!(ranks <= head_tiles, "{ranks} ranks in sections, of {head_tiles}");
        let (rank, head) = match index.checked_sub(ranks * all_heads) {
            Some(behind) => (ranks + behind / all_heads, behind % all_heads),
            None => {
                let (section, inside) = (index / (section_heads * ranks), index % (section_heads * ranks));
                let first_head = section * section_heads;
                let heads = section_heads.min(all_heads - first_head);
                (inside / heads, first_head + inside % heads)
            }
        };
        let (batch, kv_head) = (head / heads_kv, head % heads_kv);
        let mut place = Self { batch, kv_head, key_tile: 0, place: 0 };
        let ranked = place.mask(p, 0) * head_tiles + rank;
        place.key_tile = Array::<u32>::at(p.ranked_t).get(ranked) as usize;
        place.place = Array::at(p.places).get(place.key_tile);
        place
    }

    /// Index of a query head's mask among all masks.
    pub(super) fn mask(&self, p: &BackwardParams, member: usize) -> usize {
        let head = self.kv_head * p.group as usize + member;
        self.batch * p.mask_batch_step as usize + head / p.heads_per_mask as usize
    }

    pub(super) const fn segment(&self) -> usize {
        (self.place >> 20) as usize
    }

    /// Key tile in its segment.
    pub(super) const fn tile_in_segment(&self) -> usize {
        (self.place & 0xF_FFFF) as usize
    }

    /// Number of the KV head among those of all sequences.
    pub(super) const fn slab_head(&self, p: &BackwardParams) -> usize {
        self.batch * p.heads_kv as usize + self.kv_head
    }

    /// All steps: two of each entry, of which the second may lie past the rows. Ordered ones come from the last rows to
    /// the first of each head.
    pub(super) fn steps(&self, p: &BackwardParams, form: Form) -> Vec<Step> {
        let mut steps = Vec::new();
        for member in 0..p.group as usize {
            let list = self.mask(p, member) * p.key_tiles as usize + self.key_tile;
            let first = steps.len();
            for at in 0..Array::<u32>::at(p.counts_t).get(list) as usize {
                let entry = Array::<u32>::at(p.entries_t).get(list * p.row_tiles as usize + at);
                let (row_tile, class) = ((entry >> 2) as usize, entry & 3);
                let blocks = [row_tile * (TILE / STEP), row_tile * (TILE / STEP) + 1];
                let inside = blocks.into_iter().filter(|block| block * STEP < p.seq_q as usize);
                steps.extend(inside.map(|block| Step { member, block, class }));
            }
            if form.ordered {
                steps[first..].reverse();
            }
        }
        steps
    }

    /// Key tiles that add to the step's rows before this one: those of the row tile's list with smaller positions.
    pub(super) fn turn(&self, p: &BackwardParams, step: Step) -> u32 {
        let list = self.mask(p, step.member) * p.row_tiles as usize + step.block / (TILE / STEP);
        // The order of work is that of the first member's mask, for all members. Tiles of later launches have 0, which
        // becomes the largest.
        let positions = self.mask(p, 0) * p.key_tiles as usize;
        let position = |tile: usize| Array::<u32>::at(p.positions).get(positions + tile).wrapping_sub(1);
        let mine = position(self.key_tile);
        let count = Array::<u32>::at(p.counts).get(list) as usize;
        let entries = (0..count).map(|at| Array::<u32>::at(p.entries).get(list * p.key_tiles as usize + at));
        entries.map(|entry| u32::from(position((entry >> 2) as usize) < mine)).sum()
    }
}
