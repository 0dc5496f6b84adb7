//! What a device says of a call: when attention ran, what it waited for, when the pushes left.
use std::time::Duration;

use serde::{Deserialize, Serialize};
use symm_buffer::{Bytes, Pe};

use crate::plan::RankPlan;

/// Times of an enqueued call that was measured, on one device's clock.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceTimes {
    /// Attention, from its first block's begin until its last block's last tile was on its way to memory.
    pub attention: ClockSpan,
    /// Pieces that attention waited for; what was there when it was looked for is not in the list.
    pub waits: Vec<WaitSpan>,
    /// Mean time that a block waited in all: the multiprocessors' time that communication cost.
    pub idle: Duration,
    /// Batches of pushes, in order.
    pub pushes: Vec<PushSpan>,
}

/// From one reading of a device's clock to another, nanoseconds. Clocks of two devices have nothing to do with each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockSpan {
    /// First.
    pub begin: u64,
    /// Last.
    pub end: u64,
}

impl ClockSpan {
    /// How long.
    pub const fn duration(&self) -> Duration {
        Duration::from_nanos(self.end.saturating_sub(self.begin))
    }
}

/// Waits of attention's blocks for one piece. They end together, when it comes: so the first to wait waits longest.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WaitSpan {
    /// Whose keys.
    pub peer: Pe,
    /// Which head group.
    pub piece: u32,
    /// In this time at least one block waited.
    pub span: ClockSpan,
    /// The longest wait of a block.
    pub longest: Duration,
    /// Blocks that waited.
    pub blocks: u64,
}

/// The copies of one batch to all peers, with their signals. What the stream waited for the calling thread in between is
/// in it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PushSpan {
    /// Which head group.
    pub piece: u32,
    /// K and V of it, to all peers.
    pub bytes: Bytes,
    /// From the end of the batch before, or of what the first one waited for.
    pub span: ClockSpan,
}

impl DeviceTimes {
    /// Time in which at least one block of attention waited: no block waited longer, and without the waits attention would
    /// have been shorter by at most this. Between it and [`idle`](Self::idle), which is what was lost if the other
    /// blocks took over the work of those that waited, lies what communication cost inside attention.
    pub fn exposed(&self) -> Duration {
        let mut spans: Vec<ClockSpan> = self.waits.iter().map(|wait| wait.span).collect();
        spans.sort_unstable_by_key(|span| span.begin);
        let (mut covered, mut until) = (0, 0);
        for span in spans {
            covered += span.end.saturating_sub(span.begin.max(until));
            until = until.max(span.end);
        }
        Duration::from_nanos(covered)
    }

    /// Time that the pushes took.
    pub fn copy_time(&self) -> Duration {
        self.pushes.iter().map(|push| push.span.duration()).sum()
    }

    /// Rate of the pushes, 10^9 bytes per second; 0 when there were none.
    pub fn gigabytes_per_s(&self) -> f64 {
        let bytes: usize = self.pushes.iter().map(|push| push.bytes.0).sum();
        let seconds = self.copy_time().as_secs_f64();
        if seconds > 0.0 { bytes as f64 / seconds / 1e9 } else { 0.0 }
    }
}

impl RankPlan {
    /// Head group and bytes of each batch of pushes of a forward call, in order: what all peers get of a head group goes
    /// in one (rule P4).
    pub fn push_batches(&self) -> Vec<(u32, Bytes)> {
        let groups = self.forward.pushes.chunk_by(|one, next| one.block.heads == next.block.heads);
        let batch = |group: &[crate::plan::Push]| {
            let piece = group.first().map_or(0, |push| push.block.heads.start / self.choice.heads_per_piece);
            let bytes = group.iter().map(|push| push.bytes.0).sum();
            (u32::try_from(piece).unwrap_or(u32::MAX), Bytes(bytes))
        };
        groups.map(batch).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wait((begin, len): (u64, u64)) -> WaitSpan {
        let (span, longest) = (ClockSpan { begin, end: begin + len }, Duration::from_nanos(len));
        WaitSpan { peer: Pe(1), piece: 0, span, longest, blocks: 1 }
    }

    proptest! {
        #[test]
        fn exposed_is_each_nanosecond_with_a_wait_once(
            spans in proptest::collection::vec((0_u64..60, 0_u64..30), 0..8),
        ) {
            let times = DeviceTimes { waits: spans.iter().copied().map(wait).collect(), ..Default::default() };
            let waits_at = |at: &u64| spans.iter().any(|(begin, len)| (*begin..begin + len).contains(at));
            let covered = (0..100).filter(waits_at).count() as u64;
            prop_assert_eq!(times.exposed(), Duration::from_nanos(covered));
        }
    }

    #[test]
    fn a_rate_is_of_the_time_in_which_copies_ran() {
        let push = |begin, end| PushSpan { piece: 0, bytes: Bytes(3000), span: ClockSpan { begin, end } };
        let times = DeviceTimes { pushes: vec![push(0, 10), push(40, 60)], ..Default::default() };
        assert_eq!(times.copy_time(), Duration::from_nanos(30));
        assert!((times.gigabytes_per_s() - 200.0).abs() < 1e-9);
        assert_eq!(DeviceTimes::default().gigabytes_per_s().to_bits(), 0);
    }
}
