//! Local keys are attended to once; every needed block of remote keys arrives once.
use std::ops::Range;

use symm_buffer::Pe;

use super::{View, broken};
use crate::Error;
use crate::needs::{Link, Part};
use crate::plan::{KvBlock, NEED_ROWS, RankPlan, Segment};

pub(super) fn check(view: View<'_>, rank: &RankPlan) -> Result<(), Error> {
    let pass = view.pass(rank);
    let pushed = pass.pushes.iter().map(|push| &push.block);
    let returned = pass.reduces.iter().map(|reduce| &reduce.block);
    for block in pushed.chain(returned) {
        well_formed(rank, block, &rank.segments[0])?;
    }
    for piece in &pass.pieces {
        well_formed(rank, &piece.block, &rank.segments[piece.segment])?;
    }
    (0..rank.segments.len()).try_for_each(|segment| covered(view, rank, segment))
}

/// Heads and rows inside the segment, on block edges; needed runs inside the rows, increasing, not touching.
fn well_formed(rank: &RankPlan, block: &KvBlock, segment: &Segment) -> Result<(), Error> {
    let dims = rank.shape.dims();
    let on_edges = |rows: &Range<usize>| {
        let edge = |row: usize| row.is_multiple_of(NEED_ROWS) || row == segment.rows;
        rows.start < rows.end && rows.start.is_multiple_of(NEED_ROWS) && edge(rows.end)
    };
    let sized = block.heads.start < block.heads.end
        && block.heads.end <= dims.heads_kv
        && on_edges(&block.rows)
        && block.rows.end <= segment.rows
        && block.needed.len() == dims.batch;
    let runs_fit = |runs: &Vec<Range<usize>>| {
        runs.iter().all(|run| on_edges(run) && run.start >= block.rows.start && run.end <= block.rows.end)
            && runs.windows(2).all(|pair| pair[0].end < pair[1].start)
    };
    match sized && block.needed.iter().all(runs_fit) {
        true => Ok(()),
        false => broken(rank.rank, "blocks lie inside their segment on block edges", format!("{block:?}")),
    }
}

fn covered(view: View<'_>, rank: &RankPlan, segment: usize) -> Result<(), Error> {
    let dims = rank.shape.dims();
    let owner = rank.segments[segment].owner;
    let blocks = rank.segments[segment].rows.div_ceil(NEED_ROWS);
    // How often each block comes: [b, hkv, blocks].
    let mut times = vec![0usize; dims.batch * dims.heads_kv * blocks];
    for piece in view.pass(rank).pieces.iter().filter(|piece| piece.segment == segment) {
        for batch in 0..dims.batch {
            let whole = std::slice::from_ref(&piece.block.rows);
            let runs = if owner == rank.rank { whole } else { &piece.block.needed[batch] };
            for head in piece.block.heads.clone() {
                for block in runs.iter().flat_map(blocks_of) {
                    times[(batch * dims.heads_kv + head) * blocks + block] += 1;
                }
            }
        }
    }
    for (index, times) in times.chunks_exact(blocks).enumerate() {
        let (batch, head) = (index / dims.heads_kv, index % dims.heads_kv);
        let needed = needed_blocks(view, rank, owner, (batch, head));
        let wrong = times.iter().zip(&needed).position(|(times, needed)| match owner == rank.rank {
            true => *times != 1,
            false => *times > 1 || (*needed && *times == 0),
        });
        if let Some(block) = wrong {
            let detail =
                format!("{owner}, batch {batch}, head {head}, block {block}: {} times", times[block]);
            return broken(rank.rank, "each needed block comes once", detail);
        }
    }
    Ok(())
}

fn needed_blocks(view: View<'_>, rank: &RankPlan, owner: Pe, (batch, head): (usize, usize)) -> Vec<bool> {
    let rows = view.problem.sharding().len(owner);
    let part = Part { batch, heads: view.problem.mask_heads(&(head..head + 1)), rows: 0..rows };
    let mut needed = vec![false; rows.div_ceil(NEED_ROWS)];
    let runs = view.problem.needs().rows(Link { owner, reader: rank.rank }, &part);
    runs.iter().flat_map(blocks_of).for_each(|block| needed[block] = true);
    needed
}

fn blocks_of(rows: &Range<usize>) -> Range<usize> {
    rows.start / NEED_ROWS..rows.end.div_ceil(NEED_ROWS)
}
