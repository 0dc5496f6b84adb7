//! The backward kernels: `kernels/include/fm3/attn/backward*.cuh`.
mod epilogue;
mod gradients;
mod passes;
mod place;
mod step;
mod turn;

pub(crate) use gradients::{Form, gradients};
pub(crate) use passes::{finish, finish_part, order, prepare, sum_parts};

use crate::tile::HEAD_DIM;

/// Query rows of a step, and of a block of dQ sums.
const STEP: usize = 64;

/// Elements of a step, and of half a key tile.
const STEP_ELEMENTS: usize = STEP * HEAD_DIM;

/// Where an element of a 64 x 128 block lies in memory that has the order of a warpgroup's registers:
/// [8 columns][thread][4], where four threads share a row and a thread has rows 8 apart.
const fn register([row, column]: [usize; 2]) -> usize {
    let thread = row / 16 * 32 + row % 8 * 4 + column % 8 / 2;
    (column / 8 * 128 + thread) * 4 + row % 16 / 8 * 2 + column % 2
}

/// All elements of a block with their places in that order.
fn registers() -> impl Iterator<Item = (usize, usize)> {
    (0..STEP_ELEMENTS).map(|at| (at, register([at / HEAD_DIM, at % HEAD_DIM])))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_in_register_order_is_of_one_element() {
        // The finishing pass reads the same order the other way: unit i of four, [warpgroup][8 columns][thread].
        let mut seen = vec![false; STEP_ELEMENTS];
        for i in 0..STEP_ELEMENTS / 4 {
            let (warpgroup, eight, thread) = (i / 1024, i / 128 % 8, i % 128);
            let row = thread / 32 * 16 + thread % 32 / 4;
            let column = 2 * (warpgroup * 32 + eight * 4 + thread % 4);
            for (at, element) in [[row, column], [row, column + 1], [row + 8, column], [row + 8, column + 1]]
                .into_iter()
                .enumerate()
            {
                assert_eq!(register(element), 4 * i + at);
                seen[4 * i + at] = true;
            }
        }
        assert!(seen.into_iter().all(|seen| seen));
    }
}
