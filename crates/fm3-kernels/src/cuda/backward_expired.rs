//! Waits of backward passes that outlasted their deadlines.
use std::time::Duration;

use super::workspace::WaitExpired;
use crate::params::WaitReport;

/// In a report instead of a segment: the wait was for a turn.
const TURN_REPORT: u32 = u32::MAX;

/// A wait of a backward pass that outlasted its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackwardExpired {
    /// For keys.
    Keys(WaitExpired),
    /// For the turn to add to dQ: a mistake in the kernels, or a device that stood still.
    Turn(TurnExpired),
}

/// A wait for a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TurnExpired {
    /// Which 64 rows of dQ, counted through [b, hq, blocks of 64 rows].
    pub rows: usize,
    /// Block of the launch that waited.
    pub block: usize,
    /// Key tiles that should have added before.
    pub wanted: u64,
    /// Key tiles that had.
    pub seen: u64,
    /// How long.
    pub waited: Duration,
}

impl std::fmt::Display for BackwardExpired {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Keys(expired) => expired.fmt(f),
            Self::Turn(TurnExpired { rows, block, wanted, seen, waited }) => write!(
                f,
                "block {block} waited {waited:?} for its turn at rows {rows} of dQ: {seen} key tiles had added, wanted {wanted}"
            ),
        }
    }
}

/// What a report says.
pub(super) fn expired(report: WaitReport) -> BackwardExpired {
    let (block, wanted, seen) = (report.cta as usize, report.wanted, report.seen);
    let waited = Duration::from_nanos(report.waited_ns);
    if report.segment == TURN_REPORT {
        return BackwardExpired::Turn(TurnExpired {
            rows: report.kv_head as usize,
            block,
            wanted,
            seen,
            waited,
        });
    }
    let (segment, kv_head) = (report.segment as usize, report.kv_head as usize);
    BackwardExpired::Keys(WaitExpired { segment, kv_head, block, wanted, seen, waited })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_a_turn_is_told_from_one_of_keys() {
        let report =
            WaitReport { state: 2, segment: 3, kv_head: 4, cta: 5, wanted: 7, seen: 6, waited_ns: 1000 };
        let keys = expired(report);
        assert!(matches!(keys, BackwardExpired::Keys(WaitExpired { segment: 3, kv_head: 4, .. })), "{keys}");
        let turn = expired(WaitReport { segment: TURN_REPORT, ..report });
        assert!(matches!(turn, BackwardExpired::Turn(TurnExpired { rows: 4, block: 5, .. })), "{turn}");
        assert!(turn.to_string().contains("6 key tiles had added, wanted 7"));
    }
}
