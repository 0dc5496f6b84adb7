//! The conformance suite: what every backend must do, as tests. One line per backend:
//!
//! ```ignore
//! symm_buffer::conformance!(host_plain, symm_buffer::host::HostConfig::default());
//! ```
//!
//! The cases know only [`Fabric`]; a [`Backend`] gives each rank one. Every case runs with several world sizes.
#![expect(clippy::unwrap_used, reason = "a case fails by panicking, like any test")]
mod collectives;
mod failures;
mod moves;
mod orders;
mod random;
mod rounds;

use std::time::Duration;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub use collectives::{alloc_and_free, barrier_orders, sizes_that_differ_are_named};
pub use failures::{a_lost_signal_is_named, a_missing_rank_is_named, bad_arguments_are_refused};
pub use moves::{many_pieces, pitched_copies, ring, self_put, stream_order};
pub use orders::{a_followed_stream_is_waited_for, notes_are_told, put_all_at_once, streams_follow};
pub use random::random_programs;
pub use rounds::{double_buffered_gather, double_buffered_reduce, signals_from_all, stream_waits_relay};

use crate::{
    Copy2d, Corner, Epoch, Fabric, Label, Pe, Post, Put, RegionId, SignalId, Span, Step, Use, Wait, World,
    host,
};

/// A backend under test.
pub trait Backend {
    /// A rank of it.
    type Fabric: Fabric;

    /// A test of this name, with its module, begins. For backends that run ranks in other processes.
    fn begin(&self, _test: &'static str) {}

    /// Runs `body` once per rank, all at the same time, and passes panics on.
    fn run(&self, ranks: u32, body: &(dyn Fn(Self::Fabric) + Sync));

    /// Registers bytes of the host as sources, copied to where the backend reads them if need be.
    fn with_sources<R>(fabric: &Self::Fabric, bytes: &[&[u8]], body: impl FnOnce(&[RegionId]) -> R) -> R;
}

impl Backend for host::HostConfig {
    type Fabric = host::HostFabric;

    fn run(&self, ranks: u32, body: &(dyn Fn(host::HostFabric) + Sync)) {
        host::run(World::new(ranks).unwrap(), *self, body);
    }

    fn with_sources<R>(fabric: &host::HostFabric, bytes: &[&[u8]], body: impl FnOnce(&[RegionId]) -> R) -> R {
        fabric.with_sources(bytes, body)
    }
}

/// One module of tests named `$name` for the backend `$backend`, an expression of a type that implements
/// [`suite::Backend`](crate::suite::Backend).
#[macro_export]
macro_rules! conformance {
    ($name:ident, $backend:expr) => {
        mod $name {
            use super::*;
            $crate::conformance! { @cases $name $backend;
                ring put_all_at_once streams_follow a_followed_stream_is_waited_for
                notes_are_told self_put pitched_copies many_pieces stream_order stream_waits_relay signals_from_all
                barrier_orders alloc_and_free sizes_that_differ_are_named a_lost_signal_is_named
                a_missing_rank_is_named bad_arguments_are_refused double_buffered_gather double_buffered_reduce
                random_programs
            }
        }
    };
    (@cases $name:ident $backend:expr; $($case:ident)*) => {
        $(#[test] fn $case() {
            let backend = $backend;
            $crate::suite::Backend::begin(&backend, concat!(stringify!($name), "::", stringify!($case)));
            $crate::suite::$case(&backend);
        })*
    };
}

/// World sizes: alone, a pair, odd ones, a node.
const WORLDS: [u32; 5] = [1, 2, 3, 5, 8];

/// Deadline of waits that must succeed.
const LONG: Duration = Duration::from_secs(30);

/// Deadline of waits that must fail.
const SHORT: Duration = Duration::from_millis(150);

/// A rank in a case, with a stream to push on.
struct Rank<'a, F: Fabric> {
    fabric: &'a F,
    push: F::Stream,
}

impl<'a, F: Fabric> Rank<'a, F> {
    fn new(fabric: &'a F) -> Self {
        Self { fabric, push: fabric.stream("push").unwrap() }
    }

    fn me(&self) -> Pe {
        self.fabric.me()
    }

    fn next(&self) -> Pe {
        self.fabric.world().after(self.me()).next().unwrap_or(self.me())
    }

    fn previous(&self) -> Pe {
        self.fabric.world().before(self.me()).next().unwrap_or(self.me())
    }

    fn epoch(&self, at: u64, step: u32) -> Epoch {
        Epoch::new(self.fabric.incarnation(), Use(at), Step(step)).unwrap()
    }

    fn put(&self, to: Pe, copies: &[Copy2d], post: Post) {
        self.fabric.put_signal(&self.push, Put { to, copies, post: Some(post) }).unwrap();
    }

    fn wait(&self, from: Pe, post: Post) {
        self.fabric.wait(wait_for(from, post), LONG).unwrap();
    }

    fn synchronize(&self) {
        self.fabric.synchronize(&self.push, LONG).unwrap();
    }
}

/// The wait for `post` by `peer`.
fn wait_for(peer: Pe, post: Post) -> Wait {
    let label = Label { stage: "suite", piece: 0 };
    Wait { signal: post.signal, at_least: post.value, peer, label }
}

/// The `index`-th word after `first`.
fn word(first: SignalId, index: usize) -> SignalId {
    SignalId(first.0 + u32::try_from(index).unwrap())
}

/// A copy of a run of bytes.
fn run(from: Span, to: RegionId, offset: usize) -> Copy2d {
    let corner = |region, offset| Corner { region, offset, pitch: from.len };
    Copy2d { src: corner(from.region, from.offset), dst: corner(to, offset), width: from.len, rows: 1 }
}

/// Bytes that follow from a seed.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    ChaCha8Rng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

/// A number below `bound` (at least 1).
fn below(random: &mut ChaCha8Rng, bound: usize) -> usize {
    usize::try_from(random.next_u64() % bound as u64).unwrap()
}
