//! The GPU backend: ranks are processes with a GPU each (several may share one), over NVSHMEM's heap.
//!
//! Between the GPUs of a machine nothing but the copy engines moves data: a put is `cuMemcpyBatchAsync` into the peer's
//! heap and then stream memory operations, so no SM is used and no kernel of ours or of NVSHMEM runs. (Ranks that share a
//! GPU copy inside it, which the driver does with SMs.) A signal has two words: one in the receiver's heap, which kernels
//! look at, and one in memory of the host that all processes of the group share, which the host and waiting streams look
//! at. So a wait of the host is a plain load, and whoever gives up can always let go of a stream by a plain store,
//! whatever the device does.
//!
//! The shared memory also holds the collectives, the report of who gave up first, and a word that kernels look at to end
//! with it. A process that dies loses a file lock, which the others see within some 20 ms. Rules: `docs/protocol.md`.
//!
//! ```no_run
//! use std::time::Duration;
//! use symm_buffer::nvshmem::{NvshmemConfig, NvshmemWorld, Ordinal};
//! use symm_buffer::rendezvous::{Terms, launch::Launch};
//! use symm_buffer::{Error, Fabric};
//!
//! # fn lookup(_: &str) -> Option<String> { None }
//! let soon = Duration::from_secs(60);
//! // `lookup` reads the variables of torchrun, srun or mpirun.
//! let Some(launch) = Launch::from_variables(lookup)? else { return Ok(()) };
//! let terms = Terms::new(launch.token, Vec::new())?;
//! let device = (Ordinal(launch.local as usize), NvshmemConfig::default());
//! let world = NvshmemWorld::meet(launch.seat, &launch.place, &terms, device, soon)?;
//! let fabric = world.fabric(soon)?;
//! fabric.barrier(soon)?;
//! fabric.close(soon)?;
//! world.finalize(soon)?;
//! # Ok::<(), Error>(())
//! ```
mod addresses;
mod apart;
mod arena;
mod block;
mod collectives;
mod driver;
mod fabric;
mod heap;
mod meeting;
mod node;
mod place;
mod record;
mod sharing;
mod source;
mod staging;
mod stream;
mod world;

pub use addresses::PostAddress;
pub use cudarc;
pub use fabric::NvshmemFabric;
pub use nvshmem_sys::Search;
pub use source::DeviceSource;
pub use stream::NvshmemStream;
pub use world::{NvshmemConfig, NvshmemWorld, Ordinal};
