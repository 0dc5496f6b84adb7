//! What can be wrong with a problem; every variant carries the numbers.
use crate::view::{Extents, Part};

/// Errors of this crate: all are mistakes in the caller's sizes, masks or parameters.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size that must be positive is zero.
    #[error("{call}: {name} is 0; it must be at least 1")]
    ZeroDim {
        /// Call that refused it.
        call: &'static str,
        /// Name of the size.
        name: &'static str,
    },
    /// KV heads must divide query heads.
    #[error(
        "heads_q = {heads_q} is not a multiple of heads_kv = {heads_kv}; give each KV head the same number of query heads"
    )]
    HeadRatio {
        /// Query heads.
        heads_q: usize,
        /// KV heads.
        heads_kv: usize,
    },
    /// Head dim outside what the engine takes.
    #[error("head_dim = {head_dim} is not a multiple of 8 between 8 and {max}; pad the head")]
    HeadDim {
        /// What was given.
        head_dim: usize,
        /// The largest allowed.
        max: usize,
    },
    /// Rows are i32 in the mask format.
    #[error(
        "{name} = {length} is above {limit}, the largest row that a FlashMask bound can name; split the sequence"
    )]
    TooLong {
        /// Which length.
        name: &'static str,
        /// What was given.
        length: usize,
        /// The largest allowed.
        limit: usize,
    },
    /// A strided view reaches past its slice.
    #[error("view needs {needed} elements, the slice has {len}; check extents and strides")]
    ViewBounds {
        /// Elements that the view reaches over.
        needed: usize,
        /// Elements that are there.
        len: usize,
    },
    /// A part of a view that is empty or not inside it.
    #[error("part {part:?} is empty or not inside {extents:?}; cut rows and heads that exist")]
    ViewPart {
        /// What was asked for.
        part: Part,
        /// What there is.
        extents: Extents,
    },
    /// No such element type.
    #[error("unknown dtype '{name}'; use f32, bf16 or f16")]
    UnknownDType {
        /// What was given.
        name: String,
    },
    /// A mask has 1, 2 or 4 bounds per key column.
    #[error("a mask with C = {columns} bounds per key column does not exist; C is 1, 2 or 4")]
    MaskColumns {
        /// What was given.
        columns: usize,
    },
    /// C and causality that do not go together.
    #[error(
        "C = {columns} with causal = {causal} is not a mask form; C = 1 needs causal, C = 4 forbids it, C = 2 takes both"
    )]
    MaskForm {
        /// Bounds per key column.
        columns: usize,
        /// Causal flag.
        causal: bool,
    },
    /// An array or list does not fit the sizes given with it.
    #[error("{call}: the sizes need {expected} elements, the array has {got}")]
    WrongLength {
        /// Call that refused it.
        call: &'static str,
        /// Elements that the sizes ask for.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// Row bounds are not negative.
    #[error(
        "mask bound {bound} at batch {batch}, head {head}, column {column} is negative; a bound is a query row, clip it to 0"
    )]
    NegativeBound {
        /// Sequence of the batch.
        batch: usize,
        /// Mask head.
        head: usize,
        /// Key column.
        column: usize,
        /// What was given.
        bound: i32,
    },
    /// Mask heads must divide query heads.
    #[error(
        "heads_q = {heads_q} is not a multiple of the mask's {heads_mask} heads; give each mask head the same number of query heads"
    )]
    MaskHeads {
        /// Heads of the mask.
        heads_mask: usize,
        /// Query heads.
        heads_q: usize,
    },
    /// Key columns that the mask does not have.
    #[error("{call}: columns {start}..{end} are not within the mask's 0..{seq_k}")]
    ColumnRange {
        /// Call that refused it.
        call: &'static str,
        /// First column.
        start: usize,
        /// One past the last column.
        end: usize,
        /// Columns of the mask.
        seq_k: usize,
    },
    /// A mask whose bounds do not fit in memory.
    #[error(
        "{call}: a mask of {bounds} bounds does not fit in memory; use fewer mask heads or a shorter sequence"
    )]
    MaskMemory {
        /// Call that refused it.
        call: &'static str,
        /// Bounds of the mask, at most `usize::MAX`.
        bounds: usize,
    },
    /// A dense mask that no column form can say.
    #[error(
        "batch {batch}, head {head}, column {column} is masked in {intervals} separate row intervals; a column mask holds at most 2"
    )]
    NotExpressible {
        /// Sequence of the batch.
        batch: usize,
        /// Mask head.
        head: usize,
        /// First key column that does not fit.
        column: usize,
        /// Row intervals that it would need.
        intervals: usize,
    },
    /// A mask that is defined only for as many rows as columns.
    #[error(
        "{call}: seq_q = {seq_q} differs from seq_k = {seq_k}; documents are defined only where they are equal"
    )]
    NotSquare {
        /// Call that refused it.
        call: &'static str,
        /// Query rows.
        seq_q: usize,
        /// Key rows.
        seq_k: usize,
    },
    /// Document lengths must fill the sequence.
    #[error(
        "documents of sequence {batch} sum to {sum}, the sequence has {seq}; add padding as a document of its own"
    )]
    DocumentSum {
        /// Sequence of the batch.
        batch: usize,
        /// Sum of its document lengths.
        sum: usize,
        /// Rows of the sequence.
        seq: usize,
    },
    /// A document without rows.
    #[error("document {document} of sequence {batch} has length 0; leave it out")]
    EmptyDocument {
        /// Sequence of the batch.
        batch: usize,
        /// Index of the document.
        document: usize,
    },
    /// Lists per sequence must be as many as the mask has sequences.
    #[error("{call}: {name} are given for {got} sequences, the mask has batch = {batch}")]
    PerSequence {
        /// Call that refused it.
        call: &'static str,
        /// Which lists.
        name: &'static str,
        /// Lists given.
        got: usize,
        /// Sequences of the mask.
        batch: usize,
    },
    /// Cumulative lengths that do not increase from 0.
    #[error(
        "cu_seqlens[{index}] = {value}; cumulative lengths start at 0, increase at each step and have at least 2 entries"
    )]
    CuSeqlens {
        /// First wrong entry.
        index: usize,
        /// What it holds; 0 when it is missing.
        value: i32,
    },
    /// A parameter of a mask is out of its range.
    #[error("{call}: {name} = {value} is out of range; it must be {rule}")]
    MaskParameter {
        /// Call that refused it.
        call: &'static str,
        /// Which parameter.
        name: &'static str,
        /// What was given.
        value: usize,
        /// What is allowed, with its numbers.
        rule: String,
    },
    /// No such mask.
    #[error("unknown mask '{name}'; use one of {known}")]
    UnknownMask {
        /// What was given.
        name: String,
        /// All names.
        known: String,
    },
    /// A mask has no such parameter.
    #[error("mask {mask} has no parameter '{key}'; it takes {known}")]
    UnknownMaskKey {
        /// Name of the mask.
        mask: &'static str,
        /// What was given.
        key: String,
        /// Parameters of this mask.
        known: String,
    },
    /// A parameter that cannot be read.
    #[error("mask {mask}: '{value}' is not a value for {key}; give {expected}")]
    MaskValue {
        /// Name of the mask.
        mask: &'static str,
        /// Its parameter.
        key: &'static str,
        /// What was given.
        value: String,
        /// What it takes.
        expected: &'static str,
    },
    /// Softmax scale that is not a finite number.
    #[error("{call}: scale = {scale} is not finite; the usual one is 1 / sqrt(head_dim)")]
    Scale {
        /// Call that refused it.
        call: &'static str,
        /// What was given.
        scale: f32,
    },
    /// Two sizes that must be equal differ.
    #[error("{call}: {tensor} has {axis} = {got}, the problem needs {expected}")]
    Mismatch {
        /// Call that refused it.
        call: &'static str,
        /// What has the wrong size.
        tensor: &'static str,
        /// Which of its sizes.
        axis: &'static str,
        /// What was given.
        got: usize,
        /// What fits the rest of the problem.
        expected: usize,
    },
    /// Part of a tensor that lies outside what it belongs to.
    #[error("{call}: {name} {start}..{end} are not within {within_start}..{within_end}")]
    Outside {
        /// Call that refused it.
        call: &'static str,
        /// Columns or heads.
        name: &'static str,
        /// First of the part.
        start: usize,
        /// One past its last.
        end: usize,
        /// First of the whole.
        within_start: usize,
        /// One past its last.
        within_end: usize,
    },
    /// A piece of keys that starts in the middle of a tile.
    #[error(
        "{call}: the piece starts at column {first_column}, which is not {start} plus a multiple of {tile}; cut keys at tile edges"
    )]
    PieceStart {
        /// Call that refused it.
        call: &'static str,
        /// First column of the piece.
        first_column: usize,
        /// First column of the block lists.
        start: usize,
        /// Columns of a tile.
        tile: usize,
    },
    /// Something about the device.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Cuda(#[from] crate::cuda::CudaError),
}
