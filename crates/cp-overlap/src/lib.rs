//! Context-parallel attention as data: who owns which rows, who needs which keys, what is sent when.
//!
//! [`Problem`] (shape, global mask, sharding, dtype) becomes a [`CpPlan`]; a [`Session`] walks one rank's part of it over
//! any [`Fabric`](symm_buffer::Fabric) with any [`Compute`]. This crate knows no device, no kernel, no environment.
#![forbid(unsafe_code)]

pub mod compute;
mod digest;
mod error;
pub mod exec;
pub mod fold;
pub mod needs;
pub mod plan;
mod problem;
pub mod sharding;
pub mod tensors;
pub mod tune;

pub use compute::{Compute, Enqueue, PairSpans, Readiness, ReadyWords};
pub use digest::Digest;
pub use error::Error;
pub use exec::{CallReport, Handle, Session};
pub use fold::fold_mask;
pub use plan::{CpPlan, RankPlan};
pub use problem::Problem;
pub use sharding::Sharding;
pub use tune::Tunables;

/// Compiles and runs the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct ReadmeExample;
