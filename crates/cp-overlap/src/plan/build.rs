//! From a problem to plans.
use std::ops::Range;

use fm3_kernels::{Dims, Shape};
use symm_buffer::{Bytes, Pe};

use super::places::{Cell, Cut, Places};
use super::{
    Arrival, CpPlan, Departure, KvBlock, NEED_ROWS, Pass, Piece, Push, RankPlan, Reduce, Segment, Stage,
    Totals,
};
use crate::needs::{Link, Part};
use crate::{Error, Problem};

impl CpPlan {
    /// The plans of all ranks. Where debug assertions are on, [`check`](super::check) proves each one.
    ///
    /// # Errors
    /// As [`RankPlan::build`]; [`Error::BrokenPlan`] if the check finds a mistake of this crate.
    pub fn build(problem: &Problem) -> Result<Self, Error> {
        let (digest, places) = (problem.digest(), Places::new(problem));
        let ranks = problem.sharding().world().ranks();
        let plans = ranks.map(|me| Builder { problem, me, places: &places }.plan(digest));
        let plan = Self { ranks: plans.collect::<Result<_, _>>()? };
        if cfg!(debug_assertions) {
            super::check(&plan, problem)?;
        }
        Ok(plan)
    }
}

impl RankPlan {
    /// The plan of one rank. It fits the other ranks' plans of an equal problem without talking to them.
    ///
    /// Costs one step per (peer, piece, block of [`NEED_ROWS`] rows) of the keys that this rank reads or owns.
    ///
    /// # Errors
    /// [`Error::NoSuchRank`].
    pub fn build(problem: &Problem, me: Pe) -> Result<Self, Error> {
        problem.sharding().check_rank(me)?;
        Builder { problem, me, places: &Places::new(problem) }.plan(problem.digest())
    }
}

struct Builder<'a> {
    problem: &'a Problem,
    me: Pe,
    places: &'a Places,
}

impl Builder<'_> {
    fn plan(&self, digest: crate::Digest) -> Result<RankPlan, Error> {
        let dims = self.problem.shape().dims();
        Ok(RankPlan {
            rank: self.me,
            digest,
            shape: Shape::new(Dims { seq_q: self.problem.sharding().len(self.me), ..dims })?,
            dtype: self.problem.dtype(),
            choice: self.problem.choice(),
            segments: self.segments(),
            forward: self.forward(),
            backward: self.backward(),
            memory: self.places.memory(),
        })
    }

    fn segments(&self) -> Vec<Segment> {
        let sharding = self.problem.sharding();
        let counted = sharding.gather_order(self.me).scan(0, |next, owner| {
            let (first_column, rows) = (*next, sharding.len(owner));
            *next += rows;
            Some(Segment { owner, rows, first_column })
        });
        counted.collect()
    }

    fn forward(&self) -> Pass {
        let mut pieces = vec![self.local(&self.whole_segment())];
        pieces.extend(self.remote());
        let stages = (0..pieces.len()).map(Stage::Attend).collect();
        let pushes = self.pushes();
        let totals = self.totals(&pieces, &pushes, Work { flops_per_pair_and_dim: 4, sends_partials: false });
        Pass { pieces, stages, pushes, reduces: Vec::new(), totals }
    }

    fn backward(&self) -> Pass {
        let (mut remote, pushes) = (self.remote(), self.pushes());
        self.route_partials(&mut remote);
        let idle = remote.is_empty() && pushes.is_empty();
        // With nothing to hide there is nothing to keep for the end.
        let (first, tail) = if idle { (self.whole_segment(), None) } else { self.split_local() };
        let mut pieces = vec![self.local(&first)];
        pieces.extend(remote);
        pieces.extend(tail.map(|tail| self.local(&tail)));
        let reduces = self.reduces(&pushes);
        let attends = (0..pieces.len()).map(Stage::Attend);
        let stages = attends.chain((0..reduces.len()).map(Stage::Reduce)).collect();
        let totals = self.totals(&pieces, &pushes, Work { flops_per_pair_and_dim: 10, sends_partials: true });
        Pass { pieces, stages, pushes, reduces, totals }
    }

    fn whole_segment(&self) -> Cell {
        Cell { heads: 0..self.heads_kv(), rows: 0..self.problem.sharding().len(self.me) }
    }

    /// Local keys that the backward does first, and those that it keeps for the end: some of the heads, or of the rows
    /// when there is one head. Something is always done first.
    fn split_local(&self) -> (Cell, Option<Cell>) {
        let all = self.whole_segment();
        let share = |of: usize| (of * usize::from(self.problem.choice().local_tail) + 128) / 256;
        let (first, tail) = if all.heads.len() > 1 {
            let at = all.heads.end - share(all.heads.len()).min(all.heads.len() - 1);
            (Cell { heads: 0..at, ..all.clone() }, Cell { heads: at..all.heads.end, ..all })
        } else {
            let blocks = all.rows.len().div_ceil(NEED_ROWS);
            let at = ((blocks - share(blocks).min(blocks - 1)) * NEED_ROWS).min(all.rows.end);
            (Cell { rows: 0..at, ..all.clone() }, Cell { rows: at..all.rows.end, ..all })
        };
        let tail = Some(tail).filter(|tail| !tail.heads.is_empty() && !tail.rows.is_empty());
        (first, tail)
    }

    fn local(&self, cell: &Cell) -> Piece {
        let link = Link { owner: self.me, reader: self.me };
        Piece { segment: 0, owner: self.me, block: self.block(link, cell), arrival: None, departure: None }
    }

    /// Remote pieces that are needed: head groups outermost, owners in arrival order, row chunks.
    fn remote(&self) -> Vec<Piece> {
        let (cut, sharding) = (Cut::new(self.problem), self.problem.sharding());
        let mut pieces = Vec::new();
        for heads in cut.groups() {
            for (segment, owner) in sharding.gather_order(self.me).enumerate().skip(1) {
                for rows in cut.chunks(sharding.len(owner)) {
                    let cell = Cell { heads: heads.clone(), rows };
                    let link = Link { owner, reader: self.me };
                    let Some((block, arrival)) = self.transfer(link, &cell) else { continue };
                    pieces.push(Piece { segment, owner, block, arrival: Some(arrival), departure: None });
                }
            }
        }
        pieces
    }

    /// What peers need of my keys: head groups outermost, peers me+1, me+2, ..., row chunks (rule P4).
    fn pushes(&self) -> Vec<Push> {
        let (cut, sharding) = (Cut::new(self.problem), self.problem.sharding());
        let mut pushes = Vec::new();
        for heads in cut.groups() {
            for to in sharding.world().after(self.me) {
                for rows in cut.chunks(sharding.len(self.me)) {
                    let cell = Cell { heads: heads.clone(), rows };
                    let link = Link { owner: self.me, reader: to };
                    let Some((block, arrival)) = self.transfer(link, &cell) else { continue };
                    let bytes = self.bytes(&block, self.problem.dtype().size());
                    pushes.push(Push { to, block, arrival, bytes });
                }
            }
        }
        pushes
    }

    /// The one description of a piece that moves, for both of its ends; `None` if the reader needs none of it.
    fn transfer(&self, link: Link, cell: &Cell) -> Option<(KvBlock, Arrival)> {
        let block = self.block(link, cell);
        if block.needed.iter().all(Vec::is_empty) {
            return None;
        }
        let place = self.places.arrival(link.owner, link.reader, cell);
        let step = self.problem.choice().step_of(&block, self.problem.sharding().len(link.owner));
        Some((block, Arrival { k: place.first, v: place.second, step }))
    }

    fn block(&self, link: Link, cell: &Cell) -> KvBlock {
        let heads = self.problem.mask_heads(&cell.heads);
        let needed = (0..self.problem.shape().dims().batch).map(|batch| {
            let part = Part { batch, heads: heads.clone(), rows: cell.rows.clone() };
            self.problem.needs().rows(link, &part)
        });
        KvBlock { heads: cell.heads.clone(), rows: cell.rows.clone(), needed: needed.collect() }
    }

    /// Partials leave in the order in which their pieces are done, which is the order of `pieces`.
    fn route_partials(&self, pieces: &mut [Piece]) {
        for piece in pieces {
            let Some(Arrival { step, .. }) = piece.arrival else { continue };
            let cell = cell_of(&piece.block);
            let send = self.places.send(piece.owner, self.me, &cell);
            let slot = self.places.slot(piece.owner, self.me, &cell);
            piece.departure = Some(Departure {
                send_dk: send.first,
                send_dv: send.second,
                slot_dk: slot.first,
                slot_dv: slot.second,
                step,
                bytes: self.bytes(&piece.block, self.problem.tunables().wire.size()),
            });
        }
    }

    /// One for each push and in the same order: what went out comes back as a partial. For each key the partials are
    /// added in the order me+1, me+2, ..., whatever the pieces are.
    fn reduces(&self, pushes: &[Push]) -> Vec<Reduce> {
        let reduce = |push: &Push| {
            let slot = self.places.slot(self.me, push.to, &cell_of(&push.block));
            Reduce {
                from: push.to,
                block: push.block.clone(),
                slot_dk: slot.first,
                slot_dv: slot.second,
                step: push.arrival.step,
            }
        };
        pushes.iter().map(reduce).collect()
    }

    fn totals(&self, pieces: &[Piece], pushes: &[Push], work: Work) -> Totals {
        let dims = self.problem.shape().dims();
        let sharding = self.problem.sharding();
        let mut bytes_to = vec![Bytes(0); sharding.world().size()];
        for push in pushes {
            bytes_to[push.to.index()].0 += push.bytes.0;
        }
        for piece in pieces {
            bytes_to[piece.owner.index()].0 += piece.departure.map_or(0, |departure| departure.bytes.0);
        }
        let row = 2 * dims.batch * dims.heads_kv * dims.head_dim;
        let (mine, others) = (sharding.len(self.me), sharding.seq_len() - sharding.len(self.me));
        let keys = (bytes_to.len() - 1) * mine * row * self.problem.dtype().size();
        let partials = others * row * self.problem.tunables().wire.size();
        let pairs = self.problem.pairs()[self.me.index()].all;
        Totals {
            bytes_to,
            bytes_mask_blind: Bytes(if work.sends_partials { keys + partials } else { keys }),
            pairs,
            flops: pairs.saturating_mul(work.flops_per_pair_and_dim).saturating_mul(dims.head_dim as u64),
        }
    }

    /// Bytes of two tensors: the needed rows of a block.
    fn bytes(&self, block: &KvBlock, elem: usize) -> Bytes {
        let rows: usize = block.needed.iter().flatten().map(Range::len).sum();
        Bytes(2 * rows * block.heads.len() * self.problem.shape().dims().head_dim * elem)
    }

    fn heads_kv(&self) -> usize {
        self.problem.shape().dims().heads_kv
    }
}

/// What a pass does per visible pair, and whether partials leave.
#[derive(Clone, Copy)]
struct Work {
    flops_per_pair_and_dim: u64,
    sends_partials: bool,
}

fn cell_of(block: &KvBlock) -> Cell {
    Cell { heads: block.heads.clone(), rows: block.rows.clone() }
}
