//! How segments are cut into pieces, and where pieces lie in symmetric memory.
//!
//! Every place follows from lengths alone, never from the mask: a half holds whole segments, needed or not, in gather
//! order. So each rank can say where a peer keeps a piece without knowing what else that peer needs.
use std::ops::Range;

use symm_buffer::{Bytes, Pe};

use super::{Choice, Memory};
use crate::Problem;

/// Alignment of every tensor of a piece: whole cache line pairs, as bulk copies like them.
pub const PLACE_ALIGN: usize = 128;

/// Cuts segments into pieces: head groups outermost, then row chunks.
pub(crate) struct Cut {
    heads_kv: usize,
    choice: Choice,
}

/// One piece of a segment.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) heads: Range<usize>,
    pub(crate) rows: Range<usize>,
}

impl Cut {
    pub(crate) fn new(problem: &Problem) -> Self {
        Self { heads_kv: problem.shape().dims().heads_kv, choice: problem.choice() }
    }

    /// The head groups in order.
    pub(crate) fn groups(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        chunks(self.heads_kv, self.choice.heads_per_piece)
    }

    /// The row chunks of a segment of `rows` rows.
    pub(crate) fn chunks(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        chunks(rows, self.choice.rows_per_piece)
    }
}

fn chunks(len: usize, size: usize) -> impl Iterator<Item = Range<usize>> {
    (0..len).step_by(size).map(move |start| start..(start + size).min(len))
}

/// Where the two tensors of a piece begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// K or dK.
    pub(crate) first: Bytes,
    /// V or dV.
    pub(crate) second: Bytes,
}

/// Places of segments with one element size.
pub(crate) struct Space {
    /// Bytes of one row of one head over all batches.
    row: usize,
    cut: Cut,
    /// Rows of each rank's segment.
    lengths: Vec<usize>,
    /// Sums of segment bytes twice around the ring; one more at the end.
    sums: Vec<usize>,
}

impl Space {
    fn new(problem: &Problem, elem: usize) -> Self {
        let dims = problem.shape().dims();
        let sharding = problem.sharding();
        let lengths: Vec<usize> = sharding.world().ranks().map(|rank| sharding.len(rank)).collect();
        let (row, cut) = (dims.batch * dims.head_dim * elem, Cut::new(problem));
        let mut space = Self { row, cut, lengths, sums: vec![0] };
        for rank in 0..2 * space.lengths.len() {
            let rows = space.lengths[rank % space.lengths.len()];
            let bytes: usize = space.cut.groups().map(|heads| space.group_bytes(rows, heads.len())).sum();
            space.sums.push(space.sums[rank] + bytes);
        }
        space
    }

    /// Where `cell` of `owner`'s segment begins, counted from the segment's beginning.
    fn in_segment(&self, owner: Pe, cell: &Cell) -> Place {
        let Choice { heads_per_piece, rows_per_piece, .. } = self.cut.choice;
        // All groups before this one are full, and all chunks of this group before this one.
        let groups = cell.heads.start / heads_per_piece;
        let chunks = cell.rows.start / rows_per_piece;
        let before = groups * self.group_bytes(self.lengths[owner.index()], heads_per_piece)
            + chunks * 2 * self.tensor(rows_per_piece, cell.heads.len());
        let second = before + self.tensor(cell.rows.len(), cell.heads.len());
        Place { first: Bytes(before), second: Bytes(second) }
    }

    fn group_bytes(&self, rows: usize, heads: usize) -> usize {
        let size = self.cut.choice.rows_per_piece;
        2 * (rows / size * self.tensor(size, heads) + self.tensor(rows % size, heads))
    }

    fn tensor(&self, rows: usize, heads: usize) -> usize {
        (self.row * rows * heads).next_multiple_of(PLACE_ALIGN)
    }

    /// Bytes of the segments that lie before `owner`'s when `reader`'s remote segments follow in gather order: those of
    /// reader-1, reader-2, ... down to owner+1.
    fn before(&self, owner: Pe, reader: Pe) -> usize {
        let (after_owner, n) = (owner.index() + 1, self.lengths.len());
        let end = if reader > owner { reader.index() } else { reader.index() + n };
        self.sums[end] - self.sums[after_owner]
    }

    fn segment_bytes(&self, owner: usize) -> usize {
        self.sums[owner + 1] - self.sums[owner]
    }

    /// All segments but `rank`'s.
    fn all_but(&self, rank: usize) -> usize {
        self.sums[self.lengths.len()] - self.segment_bytes(rank)
    }
}

fn moved(place: Place, by: usize) -> Place {
    Place { first: Bytes(place.first.0 + by), second: Bytes(place.second.0 + by) }
}

/// Every place of a plan.
pub(crate) struct Places {
    kv: Space,
    partials: Space,
}

impl Places {
    pub(crate) fn new(problem: &Problem) -> Self {
        Self {
            kv: Space::new(problem, problem.dtype().size()),
            partials: Space::new(problem, problem.tunables().wire.size()),
        }
    }

    /// Where a piece of `owner`'s keys arrives in a half of `reader`'s gather buffer.
    pub(crate) fn arrival(&self, owner: Pe, reader: Pe, cell: &Cell) -> Place {
        moved(self.kv.in_segment(owner, cell), self.kv.before(owner, reader))
    }

    /// Where `reader` keeps its partial of a piece of `owner`'s keys until it is sent.
    pub(crate) fn send(&self, owner: Pe, reader: Pe, cell: &Cell) -> Place {
        moved(self.partials.in_segment(owner, cell), self.partials.before(owner, reader))
    }

    /// Where `reader`'s partial arrives in a half of `owner`'s receive slots: a whole segment per reader, those of
    /// owner+1, owner+2, ... one after the other.
    pub(crate) fn slot(&self, owner: Pe, reader: Pe, cell: &Cell) -> Place {
        let n = self.kv.lengths.len();
        let distance = (reader.index() + n - owner.index()) % n;
        let segment = self.partials.segment_bytes(owner.index());
        moved(self.partials.in_segment(owner, cell), (distance - 1) * segment)
    }

    /// What every rank allocates.
    pub(crate) fn memory(&self) -> Memory {
        let n = self.kv.lengths.len();
        let most = |bytes: &dyn Fn(usize) -> usize| Bytes((0..n).map(bytes).max().unwrap_or(0));
        Memory {
            gather_half: most(&|rank| self.kv.all_but(rank)),
            send: most(&|rank| self.partials.all_but(rank)),
            receive_half: most(&|rank| (n - 1) * self.partials.segment_bytes(rank)),
        }
    }
}
