//! Bytes, pairs and flops are as stated.
use symm_buffer::Bytes;

use super::{View, broken};
use crate::Error;
use crate::plan::{KvBlock, RankPlan};

pub(super) fn check(view: View<'_>, rank: &RankPlan) -> Result<(), Error> {
    let (pass, dims) = (view.pass(rank), rank.shape.dims());
    let (kv, wire) = (rank.dtype.size(), view.problem.tunables().wire.size());
    let moved = |block: &KvBlock, elem: usize| {
        let rows: usize = block.needed.iter().flatten().map(ExactSizeIterator::len).sum();
        Bytes(rows * block.heads.len() * dims.head_dim * 2 * elem)
    };
    let mut sent = vec![Bytes(0); view.plan.ranks.len()];
    let pushes = pass.pushes.iter().map(|push| (push.to, push.bytes, moved(&push.block, kv)));
    let leaving = pass.pieces.iter().filter_map(|piece| {
        piece.departure.map(|departure| (piece.owner, departure.bytes, moved(&piece.block, wire)))
    });
    for (to, stated, counted) in pushes.chain(leaving) {
        if stated != counted {
            let detail = format!("{} stated, {} counted to {to}", stated.0, counted.0);
            return broken(rank.rank, "transfers state their bytes", detail);
        }
        sent[to.index()].0 += counted.0;
    }
    if sent != pass.totals.bytes_to {
        return broken(
            rank.rank,
            "totals are the sums of the transfers",
            format!("{:?}", pass.totals.bytes_to),
        );
    }
    let pairs = view.problem.pairs()[rank.rank.index()].all;
    let per_pair = if view.backward { 10 } else { 4 } * dims.head_dim as u64;
    let work = (pass.totals.pairs, pass.totals.flops);
    if work != (pairs, pairs.saturating_mul(per_pair))
        || pass.totals.bytes_sent() > pass.totals.bytes_mask_blind
    {
        return broken(
            rank.rank,
            "totals state pairs, flops and mask-blind bytes",
            format!("{:?}", pass.totals),
        );
    }
    Ok(())
}
