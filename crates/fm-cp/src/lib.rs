//! Context-parallel attention: a sequence is split over N ranks, each attends with its own queries to all keys.
//!
//! A rank joins a [`CpGroup`], prepares a global mask once with [`CpGroup::prepare`], and calls
//! [`CpAttention::forward`] and [`CpAttention::backward`] on its local rows. K, V travel while attention runs; what the
//! mask makes needless is neither computed nor sent.
//!
//! With the feature `nvshmem` the ranks of a group may be processes with a GPU each: then
//! `CpAttention::enqueue_forward` takes device views, queues the call on the caller's stream and returns at once.
#![deny(unsafe_code)]

mod attention;
mod config;
mod cpu;
#[cfg(feature = "nvshmem")]
mod device;
mod error;
mod group;
mod prepared;
pub mod whole;

pub use attention::{BackwardInputs, CpAttention, ForwardInputs, ForwardOutputs, Gradients, Options};
pub use config::{Config, launch};
pub use cp_overlap::exec::{
    Blocked, CallReport, ClockSpan, DeviceTimes, Overlap, PassKind, PushSpan, Queued, WaitSpan,
};
pub use cp_overlap::sharding::{Sharding, ShardingKind};
pub use cp_overlap::{Tunables, tensors};
#[cfg(feature = "nvshmem")]
pub use device::{CallHandle, DeviceForward};
pub use error::Error;
#[cfg(feature = "cuda")]
pub use fm3_kernels::cuda;
pub use fm3_kernels::mask::{self, FlashMask};
pub use fm3_kernels::view::{self, View4, View4Mut};
pub use fm3_kernels::{DType, Element};
pub use group::{CpGroup, Member};
pub use prepared::{CpShape, Prepared};
#[cfg(feature = "nvshmem")]
pub use symm_buffer::nvshmem;
pub use symm_buffer::rendezvous::{self, Launch};
pub use symm_buffer::{Bytes, Pe, World, host};

/// The README's program is compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
