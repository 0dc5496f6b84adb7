//! Short words for the tests of the host backend.
#![allow(dead_code, reason = "each test file uses some of it")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
use std::time::Duration;

use symm_buffer::{
    Copy2d, Corner, Epoch, Fabric, Label, Pe, Post, RegionId, SignalId, Span, Step, Use, Wait, World,
    host::{self, HostConfig, HostFabric},
};

/// Deadline of waits that must succeed.
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Far less than `LONG`, and enough for a busy machine.
pub(crate) const PROMPT: Duration = Duration::from_secs(10);

pub(crate) const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Runs `body` on each of `ranks` ranks.
pub(crate) fn run<R: Send>(ranks: u32, config: HostConfig, body: impl Fn(HostFabric) -> R + Sync) -> Vec<R> {
    host::run(World::new(ranks).unwrap(), config, body)
}

/// The signal of step `step` in the current incarnation.
pub(crate) fn post(fabric: &HostFabric, signal: SignalId, step: u32) -> Post {
    Post { signal, value: Epoch::new(fabric.incarnation(), Use(0), Step(step)).unwrap() }
}

/// The wait for `post` by `peer`.
pub(crate) fn wait_for(peer: u32, post: Post) -> Wait {
    let label = Label { stage: "test", piece: 3 };
    Wait { signal: post.signal, at_least: post.value, peer: Pe(peer), label }
}

pub(crate) const fn span(region: RegionId, offset: usize, len: usize) -> Span {
    Span { region, offset, len }
}

/// A copy of a run of bytes to the same place in another region.
pub(crate) const fn copy(from: Span, to: RegionId, offset: usize) -> Copy2d {
    let src = Corner { region: from.region, offset: from.offset, pitch: from.len };
    Copy2d { src, dst: Corner { region: to, offset, pitch: from.len }, width: from.len, rows: 1 }
}
