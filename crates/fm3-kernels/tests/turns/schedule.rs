//! What the backward kernel reads and computes before it adds to dQ: the order of a launch's tiles, their places, the
//! steps of each tile and the turn of each step. Written after the CUDA code, line by line.
use std::ops::Range;

use fm3_kernels::mask::{ListAt, MaskTables};

/// Sizes of a problem and its mask.
pub struct Problem {
    pub tables: MaskTables,
    pub batch: usize,
    pub heads_q: usize,
    pub heads_kv: usize,
    pub section_heads: usize,
    pub section_ranks: usize,
}

/// Which number a tile's turn goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// The place in the order of the launches (rule T1).
    Position,
    /// The number of the key tile: a mutant.
    Index,
}

/// A key tile of one KV head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub batch: usize,
    pub kv_head: usize,
    pub key_tile: usize,
}

/// 64 rows of one query head, and how many tiles add to them before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub target: usize,
    pub turn: usize,
}

/// One launch over a range of key tiles.
pub struct Launch {
    /// For each mask: the tiles of the range by work.
    order: Vec<Vec<usize>>,
    tiles_per_head: usize,
    pub tiles: usize,
}

/// Places of the key tiles in all launches so far, for each mask.
pub struct Positions(Vec<Vec<Option<usize>>>);

impl Problem {
    pub fn row_tiles(&self) -> usize {
        self.tables.row_tiles()
    }

    pub fn key_tiles(&self) -> usize {
        self.tables.segments.key_tiles()
    }

    pub fn targets(&self) -> usize {
        self.batch * self.heads_q * self.row_tiles() * 2
    }

    fn group(&self) -> usize {
        self.heads_q / self.heads_kv
    }

    /// `KeyTilePlace::mask`.
    fn mask(&self, tile: Tile, member: usize) -> usize {
        let of_mask = self.tables.dims;
        let step = if of_mask.batch == 1 { 0 } else { of_mask.heads };
        let head = tile.kv_head * self.group() + member;
        tile.batch * step + head / (self.heads_q / of_mask.heads)
    }

    /// `produce_ordered_steps`.
    pub fn steps(&self, positions: &Positions, rule: Rule, tile: Tile) -> Vec<Step> {
        let mut steps = Vec::new();
        for member in 0..self.group() {
            let head = self.mask(tile, member);
            let list = self.tables.by_keys.list(ListAt { head, tile: tile.key_tile });
            for entry in list.iter().rev() {
                let row_tile = (entry >> 2) as usize;
                let turn = self.count_before(positions, rule, (tile, member, row_tile));
                let query_head = tile.batch * self.heads_q + tile.kv_head * self.group() + member;
                let first = query_head * self.row_tiles() * 2 + row_tile * 2;
                if (2 * row_tile + 1) * 64 < self.tables.dims.seq_q {
                    steps.push(Step { target: first + 1, turn });
                }
                steps.push(Step { target: first, turn });
            }
        }
        steps
    }

    fn count_before(
        &self,
        positions: &Positions,
        rule: Rule,
        (tile, member, row_tile): (Tile, usize, usize),
    ) -> usize {
        let list = self.tables.by_rows.list(ListAt { head: self.mask(tile, member), tile: row_tile });
        let positions = &positions.0[self.mask(tile, 0)];
        let place = |key_tile: usize| match rule {
            Rule::Position => positions[key_tile].unwrap_or(usize::MAX),
            Rule::Index => key_tile,
        };
        list.iter().filter(|entry| place((**entry >> 2) as usize) < place(tile.key_tile)).count()
    }
}

impl Positions {
    pub fn new(problem: &Problem) -> Self {
        Self(vec![vec![None; problem.key_tiles()]; problem.tables.dims.batch * problem.tables.dims.heads])
    }
}

impl Launch {
    /// `fm3_bwd_order`.
    pub fn new(problem: &Problem, range: Range<usize>, positions: &mut Positions) -> Self {
        let key_tiles = problem.key_tiles();
        let ranked = problem.tables.by_keys.ranked.chunks(key_tiles);
        let mut order = Vec::new();
        for (ranked, positions) in ranked.zip(&mut positions.0) {
            let base = positions.iter().flatten().count();
            let tiles: Vec<usize> =
                ranked.iter().map(|tile| *tile as usize).filter(|tile| range.contains(tile)).collect();
            tiles.iter().enumerate().for_each(|(at, tile)| positions[*tile] = Some(base + at));
            order.push(tiles);
        }
        let tiles = problem.batch * problem.heads_kv * range.len();
        Self { order, tiles_per_head: range.len(), tiles }
    }

    /// `locate`.
    pub fn locate(&self, problem: &Problem, number: usize) -> Tile {
        let all_heads = self.tiles / self.tiles_per_head;
        let ranks = problem.section_ranks.min(self.tiles_per_head);
        let (rank, head) = if number < ranks * all_heads {
            let section_tiles = problem.section_heads * ranks;
            let (section, inside) = (number / section_tiles, number % section_tiles);
            let first_head = section * problem.section_heads;
            let heads = problem.section_heads.min(all_heads - first_head);
            (inside / heads, first_head + inside % heads)
        } else {
            let inside = number - ranks * all_heads;
            (ranks + inside / all_heads, inside % all_heads)
        };
        let mut tile = Tile { batch: head / problem.heads_kv, kv_head: head % problem.heads_kv, key_tile: 0 };
        tile.key_tile = self.order[problem.mask(tile, 0)][rank];
        tile
    }
}
