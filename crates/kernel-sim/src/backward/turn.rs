//! dQ sums, and whose turn it is to add to them.
use std::sync::atomic::Ordering;

use fm3_kernels::params::BackwardParams;

use super::{STEP_ELEMENTS, registers};
use crate::blocks::Block;
use crate::memory::word32;
use crate::signal::{Awaited, Limits, Unmet, spin};

/// In a report, instead of a segment.
const TURN_REPORT: u32 = u32::MAX;

/// What ends the waits of a launch.
pub(super) const fn limits(p: &BackwardParams) -> Limits {
    Limits { report: p.report, abort: p.abort, deadline_ns: p.deadline_ns }
}

/// From here on dQ is not complete: others end their waits for turns, and the last pass writes NaN.
pub(super) fn poison_query_grads(p: &BackwardParams) {
    word32(p.poisoned).store(1, Ordering::Relaxed);
}

/// Adds 64 rows of dQ to sums that others add to at the same time.
pub(super) fn add(p: &BackwardParams, target: usize, dq: &[f32]) {
    let sums = p.dq_sums + 4 * (target * STEP_ELEMENTS) as u64;
    for (at, place) in registers() {
        let sum = word32(sums + 4 * place as u64);
        let added = |bits| Some((f32::from_bits(bits) + dq[at]).to_bits());
        // It cannot fail: there always is a next value.
        _ = sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, added);
    }
}

/// As `add`, when `turn` key tiles have added to these rows. There is a word for each half of their columns; here both
/// halves are added at once, and the first word is enough. A block whose turn does not come adds no more.
pub(super) fn add_in_turn(p: &BackwardParams, block: &mut Block, (target, turn): (usize, u32), dq: &[f32]) {
    if !block.adds {
        return;
    }
    let word = word32(p.turns + 8 * target as u64);
    let is_over = || word32(p.poisoned).load(Ordering::Relaxed) != 0 || limits(p).stopped();
    let load = || word.load(Ordering::Acquire);
    match spin(p.turn_deadline_ns, load, |seen| seen == turn, is_over) {
        Ok(_) => {
            add(p, target, dq);
            word.store(turn + 1, Ordering::Release);
        }
        Err(unmet) => {
            if let Unmet::Expired { seen, waited_ns } = unmet {
                let head = u32::try_from(target).unwrap_or(u32::MAX);
                let awaited = Awaited { segment: TURN_REPORT, head, wanted: turn.into(), block: block.index };
                limits(p).write_report(awaited, seen, waited_ns);
            }
            poison_query_grads(p);
            block.adds = false;
        }
    }
}
