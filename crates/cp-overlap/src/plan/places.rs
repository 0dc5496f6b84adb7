//! How segments are cut into pieces, and where pieces lie in symmetric memory.
//!
//! Every place follows from lengths alone, never from the mask: a half holds whole segments, needed or not, ordered by
//! length and then as they are gathered. So each rank can say where a peer keeps a piece without knowing what else that
//! peer needs, and segments of one length lie one after the other, as one tensor map wants them (rule P3).
use std::collections::BTreeMap;
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
    /// For each rank its class.
    class_of: Vec<usize>,
    /// Ranks by the length of their segments, the shortest first.
    classes: Vec<Class>,
}

/// Ranks whose segments have one length.
struct Class {
    rows: usize,
    /// Bytes of one segment.
    bytes: usize,
    /// Bytes of all segments of shorter classes.
    before: usize,
    /// The ranks, increasing.
    ranks: Vec<usize>,
}

impl Space {
    fn new(problem: &Problem, elem: usize) -> Self {
        let dims = problem.shape().dims();
        let sharding = problem.sharding();
        let (row, cut) = (dims.batch * dims.head_dim * elem, Cut::new(problem));
        let mut by_rows = BTreeMap::<usize, Vec<usize>>::new();
        for rank in sharding.world().ranks() {
            by_rows.entry(sharding.len(rank)).or_default().push(rank.index());
        }
        let mut space = Self { row, cut, class_of: vec![0; sharding.world().size()], classes: Vec::new() };
        let mut before = 0;
        for (rows, ranks) in by_rows {
            let bytes: usize = space.cut.groups().map(|heads| space.group_bytes(rows, heads.len())).sum();
            ranks.iter().for_each(|rank| space.class_of[*rank] = space.classes.len());
            let next = before + bytes * ranks.len();
            space.classes.push(Class { rows, bytes, before, ranks });
            before = next;
        }
        space
    }

    fn class(&self, rank: usize) -> &Class {
        &self.classes[self.class_of[rank]]
    }

    /// Where `cell` of `owner`'s segment begins, counted from the segment's beginning.
    fn in_segment(&self, owner: Pe, cell: &Cell) -> Place {
        let Choice { heads_per_piece, rows_per_piece, .. } = self.cut.choice;
        // All groups before this one are full, and all chunks of this group before this one.
        let groups = cell.heads.start / heads_per_piece;
        let chunks = cell.rows.start / rows_per_piece;
        let before = groups * self.group_bytes(self.class(owner.index()).rows, heads_per_piece)
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

    /// Bytes of the segments that lie before `owner`'s in a half of `reader`'s: all shorter ones, and of those of its
    /// length the ones that are gathered before it, reader-1, reader-2, ... down to owner+1.
    fn before(&self, owner: Pe, reader: Pe) -> usize {
        let (class, mine) = (self.class(owner.index()), self.class(reader.index()));
        let below = |rank: usize| class.ranks.partition_point(|other| *other < rank);
        let (from, to) = (below(owner.index() + 1), below(reader.index()));
        let between = if reader > owner { to - from } else { class.ranks.len() - from + to };
        // The reader has no segment of its own there.
        let shorter = class.before - if mine.rows < class.rows { mine.bytes } else { 0 };
        shorter + between * class.bytes
    }

    fn segment_bytes(&self, owner: usize) -> usize {
        self.class(owner).bytes
    }

    /// All segments but `rank`'s.
    fn all_but(&self, rank: usize) -> usize {
        let all: usize = self.classes.iter().map(|class| class.bytes * class.ranks.len()).sum();
        all - self.segment_bytes(rank)
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
        let n = self.kv.class_of.len();
        let distance = (reader.index() + n - owner.index()) % n;
        let segment = self.partials.segment_bytes(owner.index());
        moved(self.partials.in_segment(owner, cell), (distance - 1) * segment)
    }

    /// What every rank allocates.
    pub(crate) fn memory(&self) -> Memory {
        let n = self.kv.class_of.len();
        let most = |bytes: &dyn Fn(usize) -> usize| Bytes((0..n).map(bytes).max().unwrap_or(0));
        Memory {
            gather_half: most(&|rank| self.kv.all_but(rank)),
            send: most(&|rank| self.partials.all_but(rank)),
            receive_half: most(&|rank| (n - 1) * self.partials.segment_bytes(rank)),
        }
    }
}
