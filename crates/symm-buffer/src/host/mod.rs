//! The host backend: ranks are threads of one process, streams are threads with queues, links are emulated.
//!
//! Puts, signals and waits are as asynchronous as on a GPU, so overlap, races, slow and lost ranks are real. Two things
//! go beyond the trait: memory is read and written in place through guards ([`HostFabric::read`], [`HostFabric::write`]),
//! and every access is checked against every other: a slot that is written before its reader is done is
//! [`crate::Error::Conflict`], not garbage.
mod claims;
mod fabric;
mod faults;
mod heap;
mod ledger;
mod link;
mod meeting;
#[cfg(test)]
#[cfg(loom)]
mod model;
mod rank;
mod shared;
mod stream;

pub use fabric::HostFabric;
pub use faults::{Faults, Lost, Misstep, Slow, Wrong};
pub use heap::{HeapRead, HeapWrite};
pub use ledger::Ledger;
pub use link::Link;
pub use stream::HostStream;

#[cfg(not(loom))]
use crate::sync::thread;
use crate::{Error, Pe, World, sync::Arc};
use shared::Shared;

/// How a host world behaves.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HostConfig {
    /// Speed of each rank's link; `None`: as fast as memory.
    pub link: Option<Link>,
    /// What goes wrong.
    pub faults: Faults,
    /// Whether new heap holds 0xFF, which is NaN in every float type, so that a use before arrival shows. Otherwise
    /// it holds zeros. On by default where debug assertions are.
    pub poison: bool,
    /// Whether each copy of a put is compared with its source before the put's signal is posted. A difference is
    /// [`crate::Error::Corrupt`] and stops the group. Off by default: it reads everything twice.
    pub verify_puts: bool,
}

impl Default for HostConfig {
    fn default() -> Self {
        Self { link: None, faults: Faults::default(), poison: cfg!(debug_assertions), verify_puts: false }
    }
}

/// Makes host worlds.
#[derive(Debug)]
pub struct HostWorld;

/// A rank is a thread, and so is each of its streams: more than this no process should have.
const MOST_RANKS: usize = 1024;

impl HostWorld {
    /// One fabric per rank, in order of rank; each goes to a thread of its own. Several worlds may live at once.
    ///
    /// # Errors
    /// [`Error::NoSuchPe`] for more than 1,024 ranks.
    #[expect(clippy::new_ret_no_self, reason = "a world is its ranks' fabrics")]
    pub fn new(world: World, config: HostConfig) -> Result<Vec<HostFabric>, Error> {
        if world.size() > MOST_RANKS {
            let last = world.ranks().next_back().unwrap_or(Pe(0));
            return Err(Error::NoSuchPe { call: "HostWorld::new", pe: last, world: MOST_RANKS });
        }
        let shared = Arc::new(Shared::new(world, config));
        Ok(world.ranks().map(|me| HostFabric { me, shared: shared.clone() }).collect())
    }
}

/// Runs `body` on one thread per rank and returns the results in order of rank. For tests and examples;
/// [`try_run`] is for programs.
///
/// # Panics
/// With the panic of the rank that panicked first, after all have ended (its panic ends their waits); when [`try_run`]
/// has no room for so many ranks.
#[cfg(not(loom))]
pub fn run<R: Send>(world: World, config: HostConfig, body: impl Fn(HostFabric) -> R + Sync) -> Vec<R> {
    match try_run(world, config, body) {
        Ok(results) => results,
        Err(error) => panic!("host::run: {error}"),
    }
}

/// As [`run`], but too many ranks are an error.
///
/// # Errors
/// [`Error::NoSuchPe`] for more than 1,024 ranks, [`Error::Stream`] when the system has no more threads.
///
/// # Panics
/// As [`run`] when a rank panics.
#[cfg(not(loom))]
pub fn try_run<R: Send>(
    world: World,
    config: HostConfig,
    body: impl Fn(HostFabric) -> R + Sync,
) -> Result<Vec<R>, Error> {
    let fabrics = HostWorld::new(world, config)?;
    let Some(shared) = fabrics.first().map(|fabric| fabric.shared.clone()) else { return Ok(Vec::new()) };
    let rank = |fabric: HostFabric| {
        let me = fabric.me;
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| body(fabric)));
        // The fabric says so itself, unless the body had put it where its panic does not drop it.
        caught.inspect_err(|_| _ = shared.raise(me, fabric::panicked(me)))
    };
    let results = thread::scope(|scope| {
        let spawn = |fabric: HostFabric| {
            let name = format!("rank-{}", fabric.me.0);
            let started = thread::Builder::new().name(name).spawn_scoped(scope, || rank(fabric));
            started.map_err(|error| Error::Stream {
                call: "host::run",
                stream: "rank",
                reason: error.to_string(),
            })
        };
        // When one does not start, the fabrics that are left are dropped and the ranks that run find them missing.
        let threads = fabrics.into_iter().map(spawn).collect::<Result<Vec<_>, _>>()?;
        Ok(threads.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>())
    })?;
    let mut done = Vec::new();
    let mut panics = Vec::new();
    for (result, me) in results.into_iter().zip(world.ranks()) {
        match result.flatten() {
            Ok(value) => done.push(value),
            Err(panic) => panics.push((me, panic)),
        }
    }
    // Others may have panicked over the abort that the first one's panic raised.
    let root = panics.iter().position(|(me, _)| shared.aborted_by() == Some(*me)).unwrap_or(0);
    if root < panics.len() {
        std::panic::resume_unwind(panics.swap_remove(root).1);
    }
    Ok(done)
}
