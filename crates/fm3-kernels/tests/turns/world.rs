//! A device whose blocks run in any interleaving: each has a producer, which claims tiles and runs a few steps ahead, and
//! a warp that adds to dQ when it is its turn.
use std::collections::VecDeque;

use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::schedule::{Launch, Positions, Problem, Rule, Step, Tile};

/// Steps that the producer may be ahead: buffers of Q.
const RING: usize = 3;

/// How blocks come by tiles, and by multiprocessors.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    pub blocks: usize,
    /// Blocks that run at once; others start when one ends.
    pub resident: usize,
    /// Whether tile n belongs to block n from the start, as in the plain kernel: a mutant.
    pub first_by_number: bool,
}

/// How a launch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    Done,
    /// All blocks that run wait, and no signal is missing.
    Deadlock {
        waiting: usize,
    },
}

struct Block {
    /// The tile whose steps are being issued.
    tile: Option<(Tile, VecDeque<Step>)>,
    queue: VecDeque<(Tile, Step)>,
    /// No tile is left.
    closed: bool,
    /// In how many of 64 rounds it does something.
    speed: u32,
}

/// A launch under way.
pub struct World<'a> {
    problem: &'a Problem,
    launch: &'a Launch,
    positions: &'a Positions,
    rule: Rule,
    grid: Grid,
    claims: usize,
    started: usize,
    blocks: Vec<Block>,
    /// Segments whose keys are there.
    ready: Vec<bool>,
    random: ChaCha8Rng,
}

/// What stays from launch to launch: for each 64 rows of a query head the key tiles that added, in their order.
pub type Sums = Vec<Vec<usize>>;

impl<'a> World<'a> {
    pub fn new(
        (problem, launch, positions): (&'a Problem, &'a Launch, &'a Positions),
        rule: Rule,
        grid: Grid,
        seed: u64,
    ) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let late = random.random_range(0..3);
        let segments = problem.tables.segments.rows().len();
        let ready = (0..segments).map(|index| late == 0 || (late == 1 && index + 1 < segments)).collect();
        Self {
            problem,
            launch,
            positions,
            rule,
            grid,
            claims: 0,
            started: 0,
            blocks: Vec::new(),
            ready,
            random,
        }
    }

    /// Runs to the end; signals come as late as they can.
    pub fn run(mut self, sums: &mut Sums) -> End {
        loop {
            self.start();
            if self.blocks.is_empty() {
                return End::Done;
            }
            if self.round(sums, false) || self.round(sums, true) {
                self.blocks.retain(|block| !(block.closed && block.queue.is_empty()));
                continue;
            }
            match self.ready.iter().position(|ready| !ready) {
                Some(segment) => self.ready[segment] = true,
                None => return End::Deadlock { waiting: self.blocks.len() },
            }
        }
    }

    fn start(&mut self) {
        while self.started < self.grid.blocks && self.blocks.len() < self.grid.resident {
            let speed = [1, 4, 64][self.random.random_range(0..3)];
            self.blocks.push(Block { tile: None, queue: VecDeque::new(), closed: false, speed });
            if self.grid.first_by_number {
                self.take(self.blocks.len() - 1, self.started);
            }
            self.started += 1;
        }
        let Self { blocks, random, .. } = self;
        blocks.shuffle(random);
    }

    /// Every block, or those whose turn the dice say, does what it can. False: nobody did anything.
    fn round(&mut self, sums: &mut Sums, everybody: bool) -> bool {
        let mut moved = false;
        for index in 0..self.blocks.len() {
            if everybody || self.random.random_range(0..64) < self.blocks[index].speed {
                moved |= self.produce(index);
                moved |= self.add(index, sums);
            }
        }
        moved
    }

    fn produce(&mut self, index: usize) -> bool {
        if self.blocks[index].closed {
            return false;
        }
        let Some((tile, steps)) = &mut self.blocks[index].tile else {
            let number = if self.grid.first_by_number { self.grid.blocks } else { 0 } + self.claims;
            self.claims += 1;
            self.take(index, number);
            return true;
        };
        let segment = (self.problem.tables.segments.places()[tile.key_tile] >> 20) as usize;
        if steps.is_empty() {
            self.blocks[index].tile = None;
            return true;
        }
        if !self.ready[segment] || self.blocks[index].queue.len() == RING {
            return false;
        }
        let block = &mut self.blocks[index];
        if let Some((tile, steps)) = &mut block.tile {
            block.queue.extend(steps.pop_front().map(|step| (*tile, step)));
        }
        true
    }

    fn take(&mut self, index: usize, number: usize) {
        let block = &mut self.blocks[index];
        if number >= self.launch.tiles {
            block.closed = true;
            return;
        }
        let tile = self.launch.locate(self.problem, number);
        block.tile = Some((tile, self.problem.steps(self.positions, self.rule, tile).into()));
    }

    fn add(&mut self, index: usize, sums: &mut Sums) -> bool {
        let queue = &mut self.blocks[index].queue;
        match queue.front() {
            Some((tile, step)) if sums[step.target].len() == step.turn => {
                sums[step.target].push(tile.key_tile);
                queue.pop_front();
                true
            }
            _ => false,
        }
    }
}
