//! Each wait has one post, and posts and waits number pieces alike.
use symm_buffer::{Bytes, Pe, Step};

use super::{View, broken};
use crate::Error;
use crate::plan::{KvBlock, Piece, RankPlan, Stage};

pub(super) fn check(view: View<'_>) -> Result<(), Error> {
    for reader in &view.plan.ranks {
        for owner in view.plan.ranks.iter().filter(|owner| owner.rank != reader.rank) {
            arrivals(view, owner, reader)?;
            partials(view, owner, reader)?;
        }
    }
    Ok(())
}

/// One transfer as either end states it.
#[derive(PartialEq)]
struct Transfer<'a> {
    block: &'a KvBlock,
    first: Bytes,
    second: Bytes,
    step: Step,
}

fn arrivals(view: View<'_>, owner: &RankPlan, reader: &RankPlan) -> Result<(), Error> {
    let transfer = |block, arrival: super::super::Arrival| Transfer {
        block,
        first: arrival.k,
        second: arrival.v,
        step: arrival.step,
    };
    let pushed = view.pass(owner).pushes.iter().filter(|push| push.to == reader.rank);
    let posts = pushed.map(|push| transfer(&push.block, push.arrival)).collect();
    let waited = view.attended(reader).filter(|piece| piece.owner == owner.rank);
    let waits = waited.filter_map(|piece| Some(transfer(&piece.block, piece.arrival?))).collect();
    let rule = "each arrival has one push of its owner";
    matched((owner.rank, reader.rank), owner, rule, (posts, waits))
}

fn partials(view: View<'_>, owner: &RankPlan, reader: &RankPlan) -> Result<(), Error> {
    let leaving = |piece: &'_ Piece| {
        let departure = piece.departure?;
        Some((departure.slot_dk, departure.slot_dv, departure.step))
    };
    let done = view.attended(reader).filter(|piece| piece.owner == owner.rank);
    let posts = done.filter_map(|piece| {
        leaving(piece).map(|(first, second, step)| Transfer { block: &piece.block, first, second, step })
    });
    let pass = view.pass(owner);
    let reduced = pass.stages.iter().filter_map(|stage| match stage {
        Stage::Reduce(reduce) => Some(&pass.reduces[*reduce]),
        Stage::Attend(_) => None,
    });
    let waits = reduced.filter(|reduce| reduce.from == reader.rank).map(|reduce| Transfer {
        block: &reduce.block,
        first: reduce.slot_dk,
        second: reduce.slot_dv,
        step: reduce.step,
    });
    let rule = "each partial is reduced once";
    matched((reader.rank, owner.rank), owner, rule, (posts.collect(), waits.collect()))
}

/// The same transfers of `owner`'s keys in the same order; steps are positions in the segment, and grow.
fn matched(
    (from, to): (Pe, Pe),
    owner: &RankPlan,
    rule: &'static str,
    (posts, waits): (Vec<Transfer<'_>>, Vec<Transfer<'_>>),
) -> Result<(), Error> {
    let mut last = Step(0);
    for post in &posts {
        let position = owner.choice.step_of(post.block, owner.segments[0].rows);
        if post.step != position || post.step <= last || post.step > Step::MAX {
            let detail = format!("to {to}: {:?} after {last:?} where {position:?} belongs", post.step);
            return broken(from, "steps are positions in the segment, and grow", detail);
        }
        last = post.step;
    }
    match posts == waits {
        true => Ok(()),
        false => broken(to, rule, format!("{from} posts {}, {to} waits for {}", posts.len(), waits.len())),
    }
}
