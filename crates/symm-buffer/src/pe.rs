//! Processing elements (ranks) and how many there are.
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::Error;

/// A rank: 0 .. world. Called PE as in OpenSHMEM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pe(pub u32);

impl Pe {
    /// The rank as an index into per-rank tables.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl std::fmt::Display for Pe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {}", self.0)
    }
}

/// Number of ranks, at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct World(NonZeroU32);

impl World {
    /// A world of `ranks` ranks.
    ///
    /// # Errors
    /// [`Error::NoRanks`] for 0.
    pub fn new(ranks: u32) -> Result<Self, Error> {
        NonZeroU32::new(ranks).map(Self).ok_or(Error::NoRanks { call: "World::new" })
    }

    /// How many ranks.
    pub const fn size(self) -> usize {
        self.0.get() as usize
    }

    /// All ranks in order.
    pub fn ranks(self) -> impl DoubleEndedIterator<Item = Pe> + ExactSizeIterator {
        (0..self.0.get()).map(Pe)
    }

    /// The other ranks in the order in which `me` sends: me+1, me+2, ... around the ring.
    pub fn after(self, me: Pe) -> impl Iterator<Item = Pe> {
        (1..self.0.get()).map(move |step| self.ring(me, step))
    }

    /// The other ranks in the order in which their data reaches `me`: me-1, me-2, ... around the ring.
    pub fn before(self, me: Pe) -> impl Iterator<Item = Pe> {
        (1..self.0.get()).map(move |step| self.ring(me, self.0.get() - step))
    }

    fn ring(self, me: Pe, step: u32) -> Pe {
        let n = u64::from(self.0.get());
        let at = (u64::from(me.0) + u64::from(step)) % n;
        #[expect(clippy::cast_possible_truncation, reason = "a remainder of a u32 world")]
        let at = at as u32;
        Pe(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sends_and_arrivals_mirror_each_other() {
        for n in 1..9 {
            let world = World::new(n).unwrap();
            for me in world.ranks() {
                for (step, to) in world.after(me).enumerate() {
                    // What I send at step k is what `to` expects at its step k.
                    assert_eq!(world.before(to).nth(step), Some(me));
                }
                assert_eq!(world.after(me).count(), n as usize - 1);
            }
        }
        assert!(World::new(0).is_err());
    }
}
