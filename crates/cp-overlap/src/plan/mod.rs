//! A plan: everything that one forward and one backward call do, as data.
//!
//! A plan prints, compares and serialises; executors only walk it. Ranks are PEs, a *segment* is all keys of one
//! owner, a *piece* is (segment, KV heads, rows): the unit that is sent, waited for and attended to (rule P7).
use std::ops::Range;

use fm3_kernels::{DType, Shape};
use serde::{Deserialize, Serialize};
use symm_buffer::{Bytes, Pe, Step};

use crate::Digest;

mod build;
mod check;
mod keys;
mod places;
mod show;

pub use check::check;
pub use keys::{KeyPlaces, MOST_LENGTHS, RemoteKeys, SlabAt};
pub use places::PLACE_ALIGN;

/// Rows per block of the needs: a block of keys is sent whole or not at all.
pub const NEED_ROWS: usize = 128;

/// The plans of all ranks of one problem.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CpPlan {
    /// One per rank, in order.
    pub ranks: Vec<RankPlan>,
}

impl CpPlan {
    /// The largest number of visible pairs of a rank over the mean: 1 is perfect balance, also of a mask that shows nothing.
    pub fn imbalance(&self) -> f64 {
        let pairs = || self.ranks.iter().map(|rank| rank.forward.totals.pairs);
        let sum: u64 = pairs().fold(0, u64::saturating_add);
        let most = pairs().max().unwrap_or(0);
        if sum == 0 { 1.0 } else { most as f64 * self.ranks.len() as f64 / sum as f64 }
    }
}

/// What one rank does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RankPlan {
    /// Whose plan.
    pub rank: Pe,
    /// Hashes of the problem, the same on every rank (rule P1).
    pub digest: Digest,
    /// This rank's problem: `seq_q` is its number of local rows, `seq_k` the whole sequence.
    pub shape: Shape,
    /// Element type of K and V.
    pub dtype: DType,
    /// What the heuristic decided.
    pub choice: Choice,
    /// Key segments in gather order: mine, then me-1, me-2, ... Their columns follow one another in the folded mask.
    pub segments: Vec<Segment>,
    /// The forward pass.
    pub forward: Pass,
    /// The backward pass.
    pub backward: Pass,
    /// Symmetric memory that the plan needs; the same numbers on every rank.
    pub memory: Memory,
}

impl RankPlan {
    /// Bytes of K (or V) of a block in a gather half: [b, rows, heads, d] in the element type.
    pub fn kv_bytes(&self, block: &KvBlock) -> Bytes {
        Bytes(self.elems(block) * self.dtype.size())
    }

    /// Bytes of dK (or dV) of a block in a slot: [b, rows, heads, d] in f32.
    pub fn partial_bytes(&self, block: &KvBlock) -> Bytes {
        Bytes(self.elems(block) * size_of::<f32>())
    }

    fn elems(&self, block: &KvBlock) -> usize {
        let dims = self.shape.dims();
        dims.batch * block.rows.len() * block.heads.len() * dims.head_dim
    }
}

/// All keys of one owner, as one rank sees them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Segment {
    /// Whose keys.
    pub owner: Pe,
    /// How many rows.
    pub rows: usize,
    /// First column in this rank's folded mask.
    pub first_column: usize,
}

/// One pass of one rank: pieces it attends to, what it sends, what it adds up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Pass {
    /// Pieces this rank attends to. Remote pieces that nobody here needs are not in the list.
    pub pieces: Vec<Piece>,
    /// What the compute stream does, in order; indices into `pieces` and `reduces`.
    pub stages: Vec<Stage>,
    /// K, V pushes in the order in which the one push stream takes them (rule P4).
    pub pushes: Vec<Push>,
    /// Partials of dK, dV that come from peers, in the fixed order in which they are added. Empty in the forward.
    pub reduces: Vec<Reduce>,
    /// Totals.
    pub totals: Totals,
}

/// One step of the compute stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Attend to `pieces[i]`: wait for it if it is remote; in the backward also send its dK, dV partial.
    Attend(usize),
    /// Wait for `reduces[i]` and add it to the local dK, dV.
    Reduce(usize),
}

/// Unit of arrival and of work: some KV heads of some rows of one segment, all batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// Index into `segments`.
    pub segment: usize,
    /// Whose keys.
    pub owner: Pe,
    /// KV heads and rows of the segment.
    pub block: KvBlock,
    /// Where it arrives; `None` for local pieces, which are read in place.
    pub arrival: Option<Arrival>,
    /// Where its dK, dV partial leaves from and goes to; backward and remote pieces only.
    pub departure: Option<Departure>,
}

/// Heads and rows, and which of the rows matter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvBlock {
    /// KV heads.
    pub heads: Range<usize>,
    /// Rows of the segment; starts on a multiple of [`NEED_ROWS`].
    pub rows: Range<usize>,
    /// For each batch the runs of rows of the segment that the attending rank needs, in blocks of [`NEED_ROWS`],
    /// increasing, neighbours joined, inside `rows`.
    pub needed: Vec<Vec<Range<usize>>>,
}

/// Place of a piece in a half of the receiver's gather buffer: K, then V, each dense [b, rows, heads, d] in the
/// element type. Only needed rows are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrival {
    /// Offset of K in the half.
    pub k: Bytes,
    /// Offset of V in the half.
    pub v: Bytes,
    /// The step of the owner's `Ready` signal that says it is there: the piece's position in its segment
    /// ([`Choice::step_of`]), whatever was left out before it.
    pub step: Step,
}

/// A piece of K, V that this rank owns and pushes to a peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Push {
    /// The receiver.
    pub to: Pe,
    /// Which of my rows and KV heads.
    pub block: KvBlock,
    /// Where it goes in the receiver's half, and the step it posts.
    pub arrival: Arrival,
    /// Bytes of K and V moved.
    pub bytes: Bytes,
}

/// Route of a dK, dV partial: dK, then dV, each dense [b, rows, heads, d] in f32 (wire type `F32`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Departure {
    /// Offset of dK in my send slots.
    pub send_dk: Bytes,
    /// Offset of dV in my send slots.
    pub send_dv: Bytes,
    /// Offset of dK in the owner's receive half.
    pub slot_dk: Bytes,
    /// Offset of dV in the owner's receive half.
    pub slot_dv: Bytes,
    /// The step of my `Partial` signal at the owner: that of the arrival.
    pub step: Step,
    /// Bytes of dK and dV moved.
    pub bytes: Bytes,
}

/// A partial that arrives here from a peer, for my own keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reduce {
    /// Who computed it.
    pub from: Pe,
    /// Which of my rows and KV heads; `needed` are the rows that were written.
    pub block: KvBlock,
    /// Offset of dK in my receive half.
    pub slot_dk: Bytes,
    /// Offset of dV in my receive half.
    pub slot_dv: Bytes,
    /// The step of the peer's `Partial` signal.
    pub step: Step,
}

/// Sums over one pass of one rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Bytes that this rank sends to each rank (0 to itself).
    pub bytes_to: Vec<Bytes>,
    /// Bytes that this rank would send if every peer needed every row.
    pub bytes_mask_blind: Bytes,
    /// Visible (query, key) pairs times query heads, over batches.
    pub pairs: u64,
    /// Floating-point operations: 4 d per pair forward, 10 d backward.
    pub flops: u64,
}

impl Totals {
    /// Bytes that this rank sends.
    pub fn bytes_sent(&self) -> Bytes {
        Bytes(self.bytes_to.iter().map(|bytes| bytes.0).sum())
    }
}

/// Symmetric memory; each number is the largest over the ranks, so that every rank allocates the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// One half of the gather buffer (K, V); there are two.
    pub gather_half: Bytes,
    /// The send slots of dK, dV.
    pub send: Bytes,
    /// One half of the receive slots of dK, dV; there are two.
    pub receive_half: Bytes,
}

impl Memory {
    /// Bytes of symmetric memory for forward calls: two gather halves.
    pub const fn forward(&self) -> Bytes {
        Bytes(2 * self.gather_half.0)
    }

    /// Bytes of symmetric memory for forward and backward calls: two gather halves, send slots, two receive halves.
    pub const fn both(&self) -> Bytes {
        Bytes(2 * self.gather_half.0 + self.send.0 + 2 * self.receive_half.0)
    }
}

/// What the heuristic decided (rule P7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Choice {
    /// KV heads per piece; the last group may be smaller.
    pub heads_per_piece: usize,
    /// Rows per piece, a multiple of [`NEED_ROWS`].
    pub rows_per_piece: usize,
    /// Share of the local keys that the backward keeps for the end, in 1/256 of the local work.
    pub local_tail: u8,
}

impl Choice {
    /// The step of a piece of a segment of `rows` rows: 1 + its position among all pieces of the segment, head groups
    /// outermost. So a reader that knows a head knows the step, also where pieces before it are not sent.
    pub fn step_of(&self, block: &KvBlock, rows: usize) -> Step {
        let chunks = rows.div_ceil(self.rows_per_piece);
        let group = block.heads.start / self.heads_per_piece;
        let position = group * chunks + block.rows.start / self.rows_per_piece;
        Step(u32::try_from(position + 1).unwrap_or(u32::MAX))
    }
}
