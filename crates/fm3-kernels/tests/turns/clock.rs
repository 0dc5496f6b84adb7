//! How long a launch takes when additions to dQ wait for their turns: a model in units of a step's products.
use std::collections::BinaryHeap;

use super::schedule::{Launch, Positions, Problem, Rule};

/// An addition, from its issue until it is complete: about 1.5 us of a step's 2.2.
const ADDITION: u64 = 700;
/// From the end of one tile's addition to the start of the next.
const HAND_OVER: u64 = 400;
/// Products of a step.
const STEP: u64 = 1000;
/// A buffer of dQ is free again this long after its addition was issued.
const READ: u64 = 200;

/// What is modelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// Nobody waits for a turn.
    Unordered,
    /// In turns, each tile's rows from the last to the first, as the kernel has them.
    FromEnd,
    /// In turns, from the first to the last.
    FromStart,
}

/// Thousandths of a step until all tiles are done. Blocks take tiles as they become free, and a tile waits only for
/// earlier ones, so tiles can be timed in their order.
pub fn makespan(problem: &Problem, blocks: usize, walk: Walk) -> u64 {
    let mut positions = Positions::new(problem);
    let launch = Launch::new(problem, 0..problem.key_tiles(), &mut positions);
    let mut added = vec![0; problem.targets()];
    let mut free: BinaryHeap<_> = (0..blocks).map(|block| (std::cmp::Reverse(0), block)).collect();
    let mut end = 0;
    for number in 0..launch.tiles {
        let mut steps = problem.steps(&positions, Rule::Position, launch.locate(problem, number));
        if walk == Walk::FromStart {
            steps.reverse();
        }
        let Some((std::cmp::Reverse(start), block)) = free.pop() else { return 0 };
        // Loads of K and V, and the epilogue.
        let mut time = start + STEP;
        let mut buffer_free = time;
        for step in steps {
            time = time.max(buffer_free) + STEP;
            let after = if walk == Walk::Unordered { 0 } else { added[step.target] + HAND_OVER };
            let issued = time.max(after);
            added[step.target] = issued + ADDITION;
            buffer_free = issued + READ;
        }
        time = time.max(buffer_free);
        end = end.max(time);
        free.push((std::cmp::Reverse(time), block));
    }
    end
}
