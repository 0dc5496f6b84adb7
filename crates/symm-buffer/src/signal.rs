//! Signals: monotone 64-bit words with one writer each, and what a wait says when it gives up (rules S1, D1).
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Error, Pe};

/// Index of a signal word in every rank's table. Words lie 128 bytes apart; each has one writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SignalId(pub u32);

impl SignalId {
    /// No word: in the report of a collective, or of work that failed.
    pub const NONE: SignalId = SignalId(u32::MAX);
}

/// The n-th use of a buffer, from 0; its parity chooses the half (rule S4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Use(pub u64);

/// How far a use has come: 0 when it begins, k when k pieces are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Step(pub u32);

/// Life of the group since it was made: one more after every `recover()`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u32);

/// Value of a signal: `incarnation << 40 | use << 12 | step`. It only ever grows, so nothing is ever reset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// Bits of a step: at most 4,095 pieces from one rank to another in one use.
const STEP_BITS: u32 = 12;
/// Bits of use and step together; 24 bits are left for the incarnation.
const COUNT_BITS: u32 = 40;

impl Step {
    /// The largest step that an epoch can hold.
    pub const MAX: Step = Step((1 << STEP_BITS) - 1);
}

impl Use {
    /// The use that comes next.
    pub const fn next(self) -> Use {
        Use(self.0 + 1)
    }

    /// 0 or 1: the half of a double buffer that this use works in.
    pub const fn half(self) -> usize {
        (self.0 % 2) as usize
    }
}

impl Epoch {
    /// Packs the three parts.
    ///
    /// # Errors
    /// [`Error::EpochRange`] when a part does not fit: 2^24 incarnations, 2^28 uses, 4,095 steps.
    pub fn new(incarnation: Incarnation, at: Use, step: Step) -> Result<Self, Error> {
        let fits = incarnation.0 < 1 << (64 - COUNT_BITS)
            && at.0 < 1 << (COUNT_BITS - STEP_BITS)
            && step <= Step::MAX;
        if !fits {
            return Err(Error::EpochRange { call: "Epoch::new", incarnation, at, step });
        }
        Ok(Self(u64::from(incarnation.0) << COUNT_BITS | at.0 << STEP_BITS | u64::from(step.0)))
    }
}

impl std::fmt::Display for Epoch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (incarnation, count) = (self.0 >> COUNT_BITS, self.0 & ((1 << COUNT_BITS) - 1));
        write!(f, "{incarnation}:{}.{}", count >> STEP_BITS, count & u64::from(Step::MAX.0))
    }
}

/// A signal to raise once data is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Post {
    /// Which word of the receiver.
    pub signal: SignalId,
    /// Its new value; must not be below the old one.
    pub value: Epoch,
}

/// What a wait waits for, and the words with which it reports when it gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wait {
    /// Which word of mine.
    pub signal: SignalId,
    /// Enough when the word is at least this.
    pub at_least: Epoch,
    /// Who writes the word.
    pub peer: Pe,
    /// What for.
    pub label: Label,
}

/// Place in the plan, for reports and traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label {
    /// Name of the stage.
    pub stage: &'static str,
    /// Piece of the stage.
    pub piece: u32,
}

/// What a wait had seen when its deadline passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// Who waited.
    pub rank: Pe,
    /// Whose signal did not come.
    pub peer: Pe,
    /// Where in the plan.
    pub label: Label,
    /// The word; [`SignalId::NONE`] when it was not one.
    pub signal: SignalId,
    /// What it should have reached.
    pub wanted: Epoch,
    /// What it was.
    pub seen: Epoch,
    /// How long it waited.
    pub waited: Duration,
}

impl Report {
    /// A report that is not about a signal.
    pub const fn plain(rank: Pe, peer: Pe, label: Label) -> Self {
        let (signal, zero) = (SignalId::NONE, Epoch(0));
        Self { rank, peer, label, signal, wanted: zero, seen: zero, waited: Duration::ZERO }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.signal == SignalId::NONE {
            let Label { stage, piece } = self.label;
            let (rank, waited, peer) = (self.rank, self.waited, self.peer);
            return write!(f, "{rank} gave up on {peer} after {waited:.1?} in stage '{stage}' piece {piece}");
        }
        write!(
            f,
            "{} waited {:.1?} for {} in stage '{}' piece {}: signal {} is {}, wanted {}",
            self.rank,
            self.waited,
            self.peer,
            self.label.stage,
            self.label.piece,
            self.signal.0,
            self.seen,
            self.wanted
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_grow_in_the_order_of_their_parts() {
        let epoch = |i, u, s| Epoch::new(Incarnation(i), Use(u), Step(s)).unwrap();
        assert!(epoch(0, 0, 0) < epoch(0, 0, 1));
        assert!(epoch(0, 0, 4095) < epoch(0, 1, 0));
        assert!(epoch(0, (1 << 28) - 1, 4095) < epoch(1, 0, 0));
        assert_eq!(epoch(2, 7, 3).to_string(), "2:7.3");
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        assert!(Epoch::new(Incarnation(1 << 24), Use(0), Step(0)).is_err());
        assert!(Epoch::new(Incarnation(0), Use(1 << 28), Step(0)).is_err());
        assert!(Epoch::new(Incarnation(0), Use(0), Step(4096)).is_err());
    }
}
