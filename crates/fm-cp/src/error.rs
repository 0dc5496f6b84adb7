//! Errors of the facade: those of the layers below, and what only it can see.
use fm3_kernels::DType;
use symm_buffer::Pe;

use crate::whole::RankFailure;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A plan could not be made or a call failed between ranks.
    #[error(transparent)]
    Overlap(#[from] cp_overlap::Error),
    /// A mask, a shape or a view is wrong.
    #[error(transparent)]
    Kernels(#[from] fm3_kernels::Error),
    /// A collective outside a call failed.
    #[error(transparent)]
    Fabric(#[from] symm_buffer::Error),
    /// Ranks joined one group with different settings.
    #[error(
        "{rank} joined with {field} = {mine}, {peer} with {theirs}; give every rank the same configuration"
    )]
    ConfigMismatch {
        /// This rank.
        rank: Pe,
        /// A rank that differs.
        peer: Pe,
        /// The setting.
        field: &'static str,
        /// Its value here.
        mine: u64,
        /// Its value there.
        theirs: u64,
    },
    /// An environment variable holds something else than it may.
    #[error("{name} = '{value}' is not {wanted}; unset it or correct it")]
    Environment {
        /// The variable.
        name: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        wanted: &'static str,
    },
    /// Tensors of another type than was prepared.
    #[error("{call}: tensors are {given}, the preparation was made for {prepared}; prepare again or convert")]
    DTypeMismatch {
        /// The call.
        call: &'static str,
        /// Type of the tensors.
        given: DType,
        /// Type of the preparation.
        prepared: DType,
    },
    /// A tensor of another shape than was prepared.
    #[error("{call}: {name} is {given:?} [b, s, h, d], expected {expected:?} on this rank")]
    TensorShape {
        /// The call.
        call: &'static str,
        /// The tensor.
        name: &'static str,
        /// Its extents.
        given: [usize; 4],
        /// What the plan of this rank needs.
        expected: [usize; 4],
    },
    /// A preparation for another rank or another number of ranks.
    #[error(
        "{call}: prepared for {prepared_rank} of {prepared_world}, this is {rank} of {world}; prepare with this group"
    )]
    WrongGroup {
        /// The call.
        call: &'static str,
        /// Rank of the preparation.
        prepared_rank: Pe,
        /// Ranks of the preparation.
        prepared_world: usize,
        /// This rank.
        rank: Pe,
        /// Ranks of this group.
        world: usize,
    },
    /// Host views for a group on GPUs, or device views for a group of threads.
    #[error("{call}: the ranks of this group are {ranks}; {hint}")]
    WrongBackend {
        /// The call.
        call: &'static str,
        /// What the ranks are.
        ranks: &'static str,
        /// Which call to make.
        hint: &'static str,
    },
    /// A preparation names signal words and device memory of the group that made it.
    #[error("{call}: this was prepared by another group; prepare with the group of the call")]
    ForeignPreparation {
        /// The call.
        call: &'static str,
    },
    /// Ranks of a whole run failed; the first is the one to look at.
    #[error("{}", failures_text(failures))]
    Ranks {
        /// What each failing rank returned; never empty.
        failures: Vec<RankFailure>,
    },
    /// A softmax scale that is not a finite number.
    #[error("{call}: scale = {scale}; give a finite number, or none for 1/sqrt(head_dim)")]
    Scale {
        /// The call.
        call: &'static str,
        /// What was given.
        scale: f32,
    },
}

/// One line when all ranks say the same (bad input), otherwise a line per rank.
fn failures_text(failures: &[RankFailure]) -> String {
    let texts: Vec<String> = failures.iter().map(|failure| failure.error.to_string()).collect();
    if texts.iter().all(|text| *text == texts[0]) {
        return texts.first().cloned().unwrap_or_default();
    }
    let lines = failures.iter().zip(texts).map(|(failure, text)| format!("{}: {text}", failure.rank));
    lines.collect::<Vec<_>>().join("\n")
}
