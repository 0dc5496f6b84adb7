//! Every signal of a group: who writes it, who reads it, what it promises.
use symm_buffer::{Pe, SignalId, World};

/// Kinds of signals. Each rank has one word per kind and peer; the peer is its only writer (rule S1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SignalKind {
    /// The peer has begun use `u` (step 1); its plan's digest is in its hello slot.
    Hello,
    /// The peer's K, V pieces up to `step` of use `u` are in my gather buffer.
    Ready,
    /// The peer no longer reads use `u` of its gather buffer (step 1): I may push use `u + 2`.
    GatherFree,
    /// The peer's dK, dV partials up to `step` of use `u` are in my receive slots.
    Partial,
    /// The peer no longer reads use `u` of its receive slots (step 1): I may send use `u + 2`.
    SlotFree,
}

impl SignalKind {
    /// All kinds, in table order.
    pub const ALL: [SignalKind; 5] =
        [Self::Hello, Self::Ready, Self::GatherFree, Self::Partial, Self::SlotFree];

    /// Name of the stage in which a rank waits for it.
    pub const fn stage(self) -> &'static str {
        match self {
            Self::Hello => "agree",
            Self::Ready => "gather",
            Self::GatherFree => "gather-free",
            Self::Partial => "reduce",
            Self::SlotFree => "slot-free",
        }
    }
}

/// Where the words of a group lie in the signal table, the same on every rank.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SignalTable {
    base: SignalId,
    world: World,
}

impl SignalTable {
    /// Words that a group of `world` ranks needs.
    pub(crate) fn words(world: World) -> u32 {
        let words = SignalKind::ALL.len() * world.size();
        u32::try_from(words).expect("a world is at most 2^29 ranks: five words each fit u32")
    }

    pub(crate) const fn new(base: SignalId, world: World) -> Self {
        Self { base, world }
    }

    /// The word that `writer` raises at every other rank.
    pub(crate) fn word(&self, kind: SignalKind, writer: Pe) -> SignalId {
        debug_assert!(writer.index() < self.world.size(), "{writer} is outside the group");
        #[expect(clippy::cast_possible_truncation, reason = "bounded by words(), which fits u32")]
        let row = (kind as usize * self.world.size()) as u32;
        SignalId(self.base.0 + row + writer.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_and_writer_has_a_word_of_its_own() {
        let world = World::new(5).unwrap();
        let table = SignalTable::new(SignalId(7), world);
        let mut seen: Vec<u32> = SignalKind::ALL
            .into_iter()
            .flat_map(|kind| world.ranks().map(move |pe| table.word(kind, pe).0))
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, (7..7 + SignalTable::words(world)).collect::<Vec<_>>());
    }
}
