//! Blocks (CTAs) of a launch, on a few threads.
//!
//! Threads are the launch's own: a launch that waits must not hold up another one.
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::memory::word32;

/// Threads of a launch at most: many processes may share the machine.
const MOST_THREADS: usize = 8;

/// Blocks, threads of each, and its dynamic shared memory in bytes, as launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_memory: u32,
}

impl Shape {
    /// Runs the kernel for every block, given its index.
    pub(crate) fn each(self, kernel: impl Fn([u32; 3]) + Sync) {
        let [x, y, z] = self.grid.map(|extent| extent as usize);
        let next = AtomicUsize::new(0);
        on_threads(x * y * z, |_, _| {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= x * y * z {
                    break;
                }
                let index = |number: usize| u32::try_from(number).expect("an index of a grid");
                kernel([index(at % x), index(at / x % y), index(at / x / y)]);
            }
        });
    }
}

/// How the blocks of a persistent kernel share its tiles.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claims {
    pub(crate) tiles: u32,
    /// Address of u32 `[2]`: tiles claimed, blocks done.
    pub(crate) words: u64,
    /// All tiles come from the counter; if not, the first of each block is the one of its index.
    pub(crate) in_order: bool,
}

/// What a block of a persistent kernel keeps from tile to tile.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) index: u32,
    /// A wait expired or the call was aborted: nothing more is loaded.
    pub(crate) poisoned: bool,
    /// No wait for a turn has ended without it.
    pub(crate) adds: bool,
}

impl Claims {
    /// Runs `work` for every tile that is claimed. Each thread has some of the blocks, which do one tile in turn.
    ///
    /// A tile is claimed when its work begins, never before: so the work of a tile may wait for that of the tiles
    /// claimed before it.
    pub(crate) fn run(self, shape: Shape, work: impl Fn(&mut Block, u32) + Sync) {
        let blocks = shape.grid[0];
        on_threads(blocks as usize, |thread, threads| {
            let mine = (0..blocks).skip(thread).step_by(threads);
            let mut live: Vec<(Block, Option<u32>)> = mine
                .map(|index| {
                    (Block { index, poisoned: false, adds: true }, (!self.in_order).then_some(index))
                })
                .collect();
            while !live.is_empty() {
                live.retain_mut(|(block, first)| {
                    let tile = first.take().unwrap_or_else(|| self.claim(blocks));
                    if tile >= self.tiles {
                        self.finish(blocks);
                        return false;
                    }
                    work(block, tile);
                    true
                });
            }
        });
    }

    fn claim(self, blocks: u32) -> u32 {
        let claimed = word32(self.words).fetch_add(1, Ordering::Relaxed);
        if self.in_order { claimed } else { blocks.wrapping_add(claimed) }
    }

    /// The last block zeroes both words for the next launch.
    fn finish(self, blocks: u32) {
        let [claimed, done] = [word32(self.words), word32(self.words + 4)];
        let wrapped = |done| Some(if done >= blocks - 1 { 0 } else { done + 1 });
        if done.fetch_update(Ordering::AcqRel, Ordering::Relaxed, wrapped) == Ok(blocks - 1) {
            claimed.store(0, Ordering::Relaxed);
        }
    }
}

/// Runs `work` with a thread's number and their count, at most `most` of them.
fn on_threads(most: usize, work: impl Fn(usize, usize) + Sync) {
    let threads = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS).min(most);
    if threads <= 1 {
        return work(0, 1);
    }
    thread::scope(|scope| {
        for thread in 0..threads {
            let work = &work;
            scope.spawn(move || work(thread, threads));
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const SHAPE: Shape = Shape { grid: [3, 2, 2], block: [1; 3], shared_memory: 0 };

    #[test]
    fn every_block_of_a_grid_runs_once() {
        let seen = Mutex::new(Vec::new());
        SHAPE.each(|at| seen.lock().unwrap().push(at));
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        let all = (0..12).map(|at| [at / 4, at / 2 % 2, at % 2]);
        assert_eq!(seen, all.collect::<Vec<_>>());
    }

    #[test]
    fn every_tile_is_done_once_and_the_words_are_zero_again() {
        for (blocks, in_order) in [(1, false), (3, false), (132, false), (1, true), (3, true), (132, true)] {
            let mut words = [0_u64];
            let claims = Claims { tiles: 200, words: (&raw mut words).expose_provenance() as u64, in_order };
            for _ in 0..2 {
                let seen = Mutex::new(Vec::new());
                let shape = Shape { grid: [blocks, 1, 1], ..SHAPE };
                claims.run(shape, |block, tile| seen.lock().unwrap().push((tile, block.index)));
                let mut seen = seen.into_inner().unwrap();
                seen.sort_unstable();
                assert_eq!(
                    seen.iter().map(|(tile, _)| *tile).collect::<Vec<_>>(),
                    (0..200).collect::<Vec<_>>()
                );
                let own = seen.iter().take(blocks as usize).all(|(tile, block)| tile == block);
                assert!(own || in_order);
                assert_eq!([0, 4].map(|at| word32(claims.words + at).load(Ordering::Relaxed)), [0, 0]);
            }
        }
    }

    #[test]
    fn claims_that_are_left_over_cost_tiles() {
        let mut words = [5_u64];
        let claims =
            Claims { tiles: 10, words: (&raw mut words).expose_provenance() as u64, in_order: false };
        let count = AtomicUsize::new(0);
        claims.run(Shape { grid: [2, 1, 1], ..SHAPE }, |_, _| _ = count.fetch_add(1, Ordering::Relaxed));
        assert_eq!(count.into_inner(), 5);
    }
}
