//! What every plan must keep, checked on plans of all ranks together.
//!
//! Nothing here builds plans; it only reads them. So it finds mistakes of the builder as well as damaged plans.
use std::fmt::Display;

use symm_buffer::Pe;

use super::{CpPlan, Pass, Piece, RankPlan, Stage};
use crate::{Error, Problem};

mod blocks;
mod order;
mod places;
mod program;
mod totals;
mod uses;

/// Checks that a plan of all ranks solves `problem` without hanging, reading stale data or counting twice:
///
/// * all ranks have the same digest, choice and memory, and the problem's segments in gather order;
/// * local keys are attended to once, and every needed block of remote keys arrives once;
/// * each arrival has exactly one push of its owner with the same block, places and step; steps are positions in the
///   segment, grow, and are waited for in that order; the same for partials and their reduces;
/// * over seven calls in a row (three forwards, three backwards, a forward) no wait lacks its post and none form a cycle; attention
///   waits for pushes that were queued before any attention began (rules R1 to R3), never for a peer's attention;
/// * over the same calls nothing is overwritten before its reader is done: halves, receive slots, send slots, hellos; and
///   no call ends before its own puts have left (rules S4, S5);
/// * places are aligned, inside the memory and disjoint within a half;
/// * bytes, pairs and flops are as stated.
///
/// The work is linear in the size of the plan, and quadratic in the number of ranks for their hellos and frees.
///
/// # Errors
/// [`Error::BrokenPlan`] with the first rule that is broken, the rank and the numbers.
pub fn check(plan: &CpPlan, problem: &Problem) -> Result<(), Error> {
    agree(plan, problem)?;
    for backward in [false, true] {
        let view = View { plan, problem, backward };
        for rank in &plan.ranks {
            view.shape_of_pass(rank)?;
        }
        for rank in &plan.ranks {
            blocks::check(view, rank)?;
            places::check(view, rank)?;
            totals::check(view, rank)?;
        }
        order::check(view)?;
    }
    uses::check(plan)
}

/// One pass of all ranks.
#[derive(Clone, Copy)]
struct View<'a> {
    plan: &'a CpPlan,
    problem: &'a Problem,
    backward: bool,
}

impl<'a> View<'a> {
    fn pass(self, rank: &'a RankPlan) -> &'a Pass {
        if self.backward { &rank.backward } else { &rank.forward }
    }

    /// The pieces in the order in which they are attended to.
    fn attended(self, rank: &'a RankPlan) -> impl Iterator<Item = &'a Piece> {
        let pass = self.pass(rank);
        pass.stages.iter().filter_map(|stage| match stage {
            Stage::Attend(piece) => Some(&pass.pieces[*piece]),
            Stage::Reduce(_) => None,
        })
    }

    /// Indices and fields that later checks rely on.
    fn shape_of_pass(self, rank: &RankPlan) -> Result<(), Error> {
        let pass = self.pass(rank);
        let me = rank.rank;
        let mut todo = [vec![1; pass.pieces.len()], vec![1; pass.reduces.len()]];
        for stage in &pass.stages {
            let (list, index) = match *stage {
                Stage::Attend(piece) => (0, piece),
                Stage::Reduce(reduce) => (1, reduce),
            };
            match todo[list].get_mut(index) {
                Some(left @ 1) => *left = 0,
                _ => return broken(me, "each piece and reduce is one stage", format!("{stage:?}")),
            }
        }
        if todo.iter().flatten().any(|left| *left != 0) {
            return broken(me, "each piece and reduce is one stage", "one is in no stage");
        }
        for piece in &pass.pieces {
            let remote = piece.owner != me;
            let owned = rank.segments.get(piece.segment).is_some_and(|segment| segment.owner == piece.owner);
            let routed =
                piece.arrival.is_some() == remote && piece.departure.is_some() == (remote && self.backward);
            if !owned || !routed {
                return broken(me, "remote pieces arrive, and their partials leave", format!("{piece:?}"));
            }
        }
        if !self.backward && !pass.reduces.is_empty() {
            return broken(me, "the forward reduces nothing", pass.reduces.len());
        }
        let world = self.plan.ranks.len();
        let peers =
            pass.pushes.iter().map(|push| push.to).chain(pass.reduces.iter().map(|reduce| reduce.from));
        match peers.into_iter().find(|peer| peer.index() >= world || *peer == me) {
            None => Ok(()),
            Some(peer) => broken(me, "peers are other ranks of the world", peer),
        }
    }
}

fn broken<T>(rank: Pe, rule: &'static str, detail: impl Display) -> Result<T, Error> {
    Err(Error::BrokenPlan { rank, rule, detail: detail.to_string() })
}

fn agree(plan: &CpPlan, problem: &Problem) -> Result<(), Error> {
    let (sharding, digest) = (problem.sharding(), problem.digest());
    if plan.ranks.len() != sharding.world().size() {
        return broken(Pe(0), "one plan per rank", plan.ranks.len());
    }
    for (me, rank) in sharding.world().ranks().zip(&plan.ranks) {
        if rank.rank != me {
            return broken(me, "plans are in rank order", rank.rank);
        }
        if rank.digest != digest {
            return broken(me, "the digest is that of the problem", format!("{:?}", rank.digest));
        }
        let same = (rank.choice, rank.memory) == (plan.ranks[0].choice, plan.ranks[0].memory);
        if !same || rank.choice != problem.choice() || rank.dtype != problem.dtype() {
            return broken(
                me,
                "choice, memory and dtype are the same everywhere",
                format!("{:?}", rank.memory),
            );
        }
        let (mine, all) = (rank.shape.dims(), problem.shape().dims());
        if (fm3_kernels::Dims { seq_q: all.seq_q, ..mine }, mine.seq_q) != (all, sharding.len(me)) {
            return broken(me, "the shape is the problem's with local queries", format!("{mine:?}"));
        }
        let mut column = 0;
        for (index, owner) in sharding.gather_order(me).enumerate() {
            let rows = sharding.len(owner);
            let fits = rank.segments.get(index).is_some_and(|segment| {
                (segment.owner, segment.rows, segment.first_column) == (owner, rows, column)
            });
            if !fits || rank.segments.len() != sharding.world().size() {
                return broken(me, "segments are in gather order", format!("{:?}", rank.segments.get(index)));
            }
            column += rows;
        }
    }
    Ok(())
}
