//! The report of who gave up first, in the block: claimed by one, then written, then seen by all.
use std::collections::BTreeSet;
use std::time::Duration;

use super::block::{At, Block};
use crate::sync::{Mutex, OnceLock, Ordering};
use crate::{Epoch, Label, Pe, Report, SignalId};

/// State of the record: nothing, being written, complete. A kernel ends when it is not nothing.
const CLAIMED: u64 = 1;
const COMPLETE: u64 = 2;
/// Longest name of a stage, in bytes; a longer one is cut.
const MOST_NAME: usize = 40;

/// Who gave up first, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Abort {
    pub(super) by: Pe,
    pub(super) report: Report,
}

/// The record, once it is complete.
pub(super) fn read(block: &Block) -> Option<Abort> {
    if block.word(At::Abort(0)).load(Ordering::Acquire) != COMPLETE {
        return None;
    }
    let word = |at: usize| block.word(At::Abort(at)).load(Ordering::Relaxed);
    let [by, rank, peer, piece] = halves(word(1), word(2));
    let [signal, len, _, _] = halves(word(3), 0);
    let bytes: Vec<u8> = (0..MOST_NAME / 8).flat_map(|at| word(8 + at).to_le_bytes()).collect();
    let name = String::from_utf8_lossy(&bytes[..(len as usize).min(MOST_NAME)]).into_owned();
    let report = Report {
        rank: Pe(rank),
        peer: Pe(peer),
        label: Label { stage: interned(name), piece },
        signal: SignalId(signal),
        wanted: Epoch(word(4)),
        seen: Epoch(word(5)),
        waited: Duration::from_nanos(word(6)),
    };
    Some(Abort { by: Pe(by), report })
}

/// Writes the record if nobody has; whether I did.
pub(super) fn claim(block: &Block, by: Pe, report: Report) -> bool {
    let state = block.word(At::Abort(0));
    if state.compare_exchange(0, CLAIMED, Ordering::AcqRel, Ordering::Relaxed).is_err() {
        return false;
    }
    let put = |at: usize, value: u64| block.word(At::Abort(at)).store(value, Ordering::Relaxed);
    let pair = |low: u32, high: u32| u64::from(high) << 32 | u64::from(low);
    let Label { stage, piece } = report.label;
    let name = &stage.as_bytes()[..stage.floor_char_boundary(MOST_NAME)];
    put(1, pair(by.0, report.rank.0));
    put(2, pair(report.peer.0, piece));
    put(3, pair(report.signal.0, u32::try_from(name.len()).unwrap_or(0)));
    put(4, report.wanted.0);
    put(5, report.seen.0);
    put(6, u64::try_from(report.waited.as_nanos()).unwrap_or(u64::MAX));
    for (at, part) in name.chunks(8).enumerate() {
        let mut bytes = [0; 8];
        bytes[..part.len()].copy_from_slice(part);
        put(8 + at, u64::from_le_bytes(bytes));
    }
    state.store(COMPLETE, Ordering::Release);
    true
}

/// The next incarnation has no report yet. Only by who ends the recovery, when nobody waits.
pub(super) fn clear(block: &Block) {
    block.word(At::Abort(0)).store(0, Ordering::Release);
}

#[expect(clippy::cast_possible_truncation, reason = "halves of words")]
const fn halves(first: u64, second: u64) -> [u32; 4] {
    [first as u32, (first >> 32) as u32, second as u32, (second >> 32) as u32]
}

/// A name that lives as long as the process. There is one report a failure, and few names.
fn interned(name: String) -> &'static str {
    static NAMES: OnceLock<Mutex<BTreeSet<&'static str>>> = OnceLock::new();
    let mut names = NAMES.get_or_init(Mutex::default).lock();
    if let Some(known) = names.get(name.as_str()) {
        return known;
    }
    let name: &'static str = Box::leak(name.into_boxed_str());
    names.insert(name);
    name
}

#[cfg(test)]
mod tests {
    use super::super::block::Sizes;
    use super::*;
    use crate::World;

    #[test]
    fn one_report_is_kept_whole_until_it_is_cleared() {
        let file = tempfile::tempfile().unwrap();
        let block = Block::create(&file, Sizes { world: World::new(3).unwrap(), signals: 1 }).unwrap();
        assert_eq!(read(&block), None);
        let label =
            Label { stage: "a stage whose name is longer than the place for it", piece: 4_000_000_000 };
        let report = Report {
            rank: Pe(2),
            peer: Pe(1),
            label,
            signal: SignalId(9),
            wanted: Epoch(u64::MAX),
            seen: Epoch(12 << 40),
            waited: Duration::from_micros(1234),
        };
        assert!(claim(&block, Pe(2), report));
        assert!(!claim(&block, Pe(0), Report::plain(Pe(0), Pe(0), label)));
        let abort = read(&block).unwrap();
        assert_eq!(abort.report.label.stage, &label.stage[..MOST_NAME]);
        assert_eq!(abort, Abort { by: Pe(2), report: Report { label: abort.report.label, ..report } });
        assert!(std::ptr::eq(abort.report.label.stage, read(&block).unwrap().report.label.stage));
        clear(&block);
        assert_eq!(read(&block), None);
        assert!(claim(&block, Pe(0), Report::plain(Pe(0), Pe(1), Label { stage: "short", piece: 0 })));
        assert_eq!(read(&block).unwrap().report.label.stage, "short");
    }
}
