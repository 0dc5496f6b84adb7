//! The probes. One block stands for all: what the others do is hold a multiprocessor, of which there is none here.
use std::sync::atomic::Ordering;

use fm3_kernels::params::{
    ProbeCheckParams, ProbeClockParams, ProbeCopyParams, ProbeEchoParams, ProbeHoldParams, Source, pattern,
};

use crate::blocks::Shape;
use crate::memory::{Array, index, word64};
use crate::signal::{global_nanoseconds, spin};

pub(crate) fn copy(p: &ProbeCopyParams, _shape: Shape) {
    let (src, dst) = (Array::<u8>::at(p.src), Array::<u8>::at(p.dst));
    let mut bytes = vec![0; index(p.bytes / 16 * 16)];
    src.read(0, &mut bytes);
    dst.write(0, &bytes);
}

pub(crate) fn hold(p: &ProbeHoldParams, _shape: Shape) {
    reached(p.word, p.at_least, p.deadline_ns);
}

pub(crate) fn echo(p: &ProbeEchoParams, _shape: Shape) {
    for round in 1..=p.rounds {
        if !reached(p.word, p.base + round, p.deadline_ns) {
            return;
        }
        word64(p.reply).store(p.base + round, Ordering::Release);
    }
}

pub(crate) fn clock(p: &ProbeClockParams, _shape: Shape) {
    for round in 1..=p.rounds {
        if !reached(p.word, round, p.deadline_ns) {
            return;
        }
        word64(p.replies + 8 * (round - 1)).store(global_nanoseconds(), Ordering::Release);
    }
}

pub(crate) fn check(p: &ProbeCheckParams, _shape: Shape) {
    let found = |at: u64| word64(p.found + 8 * at);
    let mut slot = vec![0_u32; index(p.slot_bytes / 4)];
    for round in 0..p.rounds {
        if !reached(p.ready, p.base + round + 1, p.deadline_ns) {
            break;
        }
        Array::<u32>::at(p.slots + round % 2 * p.slot_bytes).read(0, &mut slot);
        let source = Source(u32::try_from(round % u64::from(p.sources)).expect("below a u32"));
        let wrong = (0..).zip(&slot).filter(|(at, word)| **word != pattern(source, *at)).count() as u64;
        if wrong > 0 {
            found(2).fetch_add(wrong, Ordering::Relaxed);
            _ = found(3).compare_exchange(0, round + 1, Ordering::Relaxed, Ordering::Relaxed);
        }
        word64(p.free).store(p.base + round + 1, Ordering::Release);
        found(1).store(round + 1, Ordering::Relaxed);
    }
    found(0).store(1, Ordering::Release);
}

fn reached(word: u64, at_least: u64, deadline_ns: u64) -> bool {
    let load = || word64(word).load(Ordering::Acquire);
    spin(deadline_ns, load, |seen| seen >= at_least, || false).is_ok()
}
