//! What can be wrong with a problem, a plan or a call; every variant carries the numbers.
use std::ops::Range;

use symm_buffer::Pe;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A wait, a put or an allocation failed.
    #[error(transparent)]
    Fabric(#[from] symm_buffer::Error),
    /// A mask or a shape is wrong.
    #[error(transparent)]
    Kernels(#[from] fm3_kernels::Error),
    /// A peer runs another plan; found before its data was used.
    #[error(
        "{rank} and {peer} run different plans: '{field}' differs; make the same calls with the same arguments on every rank"
    )]
    PlanMismatch {
        /// This rank.
        rank: Pe,
        /// The peer that differs.
        peer: Pe,
        /// The first part of the problem that differs.
        field: &'static str,
    },
    /// The arithmetic failed.
    #[error("{call} on {rank}: {source}")]
    Compute {
        /// The pass.
        call: &'static str,
        /// This rank.
        rank: Pe,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No such sharding.
    #[error("unknown sharding '{name}'; use one of {known}")]
    UnknownSharding {
        /// What was given.
        name: String,
        /// All names.
        known: String,
    },
    /// Every rank needs a row.
    #[error("{ranks} ranks for {seq_len} rows; use at most one rank per row")]
    TooManyRanks {
        /// Ranks asked for.
        ranks: usize,
        /// Rows of the sequence.
        seq_len: usize,
    },
    /// A rank owns nothing.
    #[error("{rank} of {ranks} owns none of the {seq_len} rows; use fewer ranks or another sharding")]
    EmptyRank {
        /// The rank.
        rank: Pe,
        /// Rows of the sequence.
        seq_len: usize,
        /// Ranks of the sharding.
        ranks: usize,
    },
    /// A range of rows without rows.
    #[error("{rank}: range {range:?} holds no rows; leave it out")]
    EmptyRange {
        /// Whose range.
        rank: Pe,
        /// The range.
        range: Range<usize>,
    },
    /// A range of rows past the end of the sequence.
    #[error("{rank}: range {range:?} ends after the sequence of {seq_len} rows")]
    RangeOutside {
        /// Whose range.
        rank: Pe,
        /// The range.
        range: Range<usize>,
        /// Rows of the sequence.
        seq_len: usize,
    },
    /// Ranges of one rank must increase, else folding a mask is not exact (rule P2).
    #[error(
        "{rank}: range {range:?} begins before {previous_end}, where the range before it ends; sort the rank's ranges"
    )]
    RangeOrder {
        /// Whose range.
        rank: Pe,
        /// The range.
        range: Range<usize>,
        /// End of the range before it.
        previous_end: usize,
    },
    /// Two ranks own one row.
    #[error("row {row} belongs to {first} and to {second}; give each row to one rank")]
    RangeTwice {
        /// The row.
        row: usize,
        /// An owner.
        first: Pe,
        /// Another owner.
        second: Pe,
    },
    /// Rows without an owner.
    #[error("rows {rows:?} belong to no rank; give each row to one rank")]
    RangeMissing {
        /// The rows.
        rows: Range<usize>,
    },
    /// A rank outside the sharding.
    #[error("{rank} is outside a sharding of {world} ranks")]
    NoSuchRank {
        /// The rank.
        rank: Pe,
        /// Ranks of the sharding.
        world: usize,
    },
    /// A host tensor has the wrong number of elements.
    #[error(
        "{call}: the tensor should have {expected} elements but has {got}; check batch, heads, head dim and length"
    )]
    TensorLength {
        /// Call that refused it.
        call: &'static str,
        /// Elements that the sizes ask for.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// Not one tensor per rank.
    #[error("{call}: {got} local tensors for {expected} ranks; give one per rank, in order")]
    TensorCount {
        /// Call that refused it.
        call: &'static str,
        /// Ranks.
        expected: usize,
        /// Tensors given.
        got: usize,
    },
    /// Two parts of a problem disagree about a size.
    #[error("{name} is {left} in the {left_in} but {right} in the {right_in}; make them equal")]
    SizeMismatch {
        /// The size.
        name: &'static str,
        /// One value.
        left: usize,
        /// Where it was given.
        left_in: &'static str,
        /// The other value.
        right: usize,
        /// Where that was given.
        right_in: &'static str,
    },
    /// A problem whose tensors and slots no machine can address.
    #[error(
        "K, V and their partials for {ranks} ranks take more bytes than can be addressed; make the problem smaller"
    )]
    TooLarge {
        /// Ranks of the sharding.
        ranks: usize,
    },
    /// A tunable out of its range.
    #[error("tunable {name} is {value}; it must be {rule}")]
    Tunable {
        /// Its name.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        rule: &'static str,
    },
    /// More pieces from one rank to another than a signal can count.
    #[error(
        "{pieces} pieces from one rank to another are more than {max}; raise heads_per_piece or rows_per_piece"
    )]
    TooManyPieces {
        /// Pieces of the longest segment.
        pieces: usize,
        /// The most that a signal counts.
        max: usize,
    },
    /// A plan whose remote keys are no few strided tensors, as kernels of a device read them (rule P3).
    #[error("plan of {rank}: {name} is {value}; kernels of a device need {rule}")]
    KeyPlaces {
        /// Whose part of the plan.
        rank: Pe,
        /// What does not fit.
        name: &'static str,
        /// Its value.
        value: usize,
        /// What is needed, with its numbers.
        rule: String,
    },
    /// A plan needs more symmetric memory than the user allows.
    #[error(
        "{rank}: the call needs {needed} bytes of symmetric memory, {bound} are allowed; raise the bound, or give each rank fewer rows or heads"
    )]
    SymmetricMemory {
        /// This rank.
        rank: Pe,
        /// Bytes of all buffers of the group with this call.
        needed: usize,
        /// Bytes that the settings allow.
        bound: usize,
    },
    /// Calls that return at once agree in another way than calls that wait.
    #[error("{rank}: {call} after calls of the other kind; use one kind for a group until it recovers")]
    MixedCalls {
        /// The call.
        call: &'static str,
        /// This rank.
        rank: Pe,
    },
    /// The group of a call was closed, or recovered from a failure, before the call was waited for.
    #[error("{rank}: the call was not waited for before its group was closed or recovered; make it again")]
    Abandoned {
        /// This rank.
        rank: Pe,
    },
    /// A plan that would hang, corrupt memory or miscount. Plans built here never are; edited or damaged ones may be.
    #[error("plan of {rank} breaks '{rule}': {detail}; build it again with CpPlan::build")]
    BrokenPlan {
        /// Whose part of the plan.
        rank: Pe,
        /// What every plan must keep.
        rule: &'static str,
        /// Where it does not.
        detail: String,
    },
}
