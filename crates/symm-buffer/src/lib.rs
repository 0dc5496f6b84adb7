//! Symmetric memory over ranks, and nothing about attention.
//!
//! A *PE* (rank) owns a *heap* in which every region has the same id and size on every rank. A *put* copies from my
//! memory into a peer's heap on one of my *streams*, in order, and then raises a *signal* there. A *wait* ends when my
//! own word is high enough, or at its deadline with a report. [`Fabric`] is the whole seam; [`host`] implements it with
//! threads, real asynchronous streams and an emulated link.
//!
//! Two ranks, a put and its signal:
//!
//! ```
//! use std::time::Duration;
//! use symm_buffer::{Bytes, Copy2d, Corner, Epoch, Error, Fabric, Label, Pe, Post, Put, Span, Step, Use, Wait, World, host};
//!
//! let soon = Duration::from_secs(5);
//! let received = host::run(World::new(2)?, host::HostConfig::default(), |rank| -> Result<Vec<u8>, Error> {
//!     let region = rank.alloc(Bytes(128), soon)?;
//!     let signal = rank.alloc_signals(1, soon)?;
//!     let post = Post { signal, value: Epoch::new(rank.incarnation(), Use(0), Step(1))? };
//!     let message = Span { region, offset: 0, len: 5 };
//!     if rank.me() == Pe(0) {
//!         rank.store(message, b"hello")?;
//!         let push = rank.stream("push")?;
//!         let here = Corner { region, offset: 0, pitch: 5 };
//!         let copies = &[Copy2d { src: here, dst: here, width: 5, rows: 1 }];
//!         rank.put_signal(&push, Put { to: Pe(1), copies, post: Some(post) })?;
//!         rank.synchronize(&push, soon)?;
//!     } else {
//!         let label = Label { stage: "greeting", piece: 0 };
//!         rank.wait(Wait { signal, at_least: post.value, peer: Pe(0), label }, soon)?;
//!     }
//!     rank.load(message)
//! });
//! assert_eq!(received, [Ok(b"hello".to_vec()), Ok(b"hello".to_vec())]);
//! # Ok::<(), Error>(())
//! ```
mod ask;
pub mod buffer;
mod deadline;
mod error;
pub mod fabric;
pub mod host;
pub mod layout;
#[cfg(test)]
#[cfg(loom)]
mod model;
mod notice;
#[cfg(feature = "nvshmem")]
#[cfg(not(any(loom, shuttle)))]
pub mod nvshmem;
mod pe;
#[cfg(not(any(loom, shuttle)))]
pub mod rendezvous;
pub mod signal;
#[cfg(feature = "suite")]
#[cfg(not(loom))]
pub mod suite;
mod sync;
mod word;

pub use buffer::{SepSrBuffer, SrBuffer};
pub use error::Error;
pub use fabric::{Bytes, Copy2d, Corner, Fabric, Note, PeerAddress, Put, RegionId, Span};
pub use layout::Layout;
pub use notice::Notice;
pub use pe::{Pe, World};
pub use signal::{Epoch, Incarnation, Label, Post, Report, SignalId, Step, Use, Wait};

/// The README's example runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
