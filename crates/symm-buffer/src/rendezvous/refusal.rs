//! Why ranks did not meet.
use std::fmt;

use crate::Pe;

/// Why ranks did not meet. What concerns them all is the same on every rank that could still be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not everybody came in time.
    #[error(
        "{missing} of {world} did not come; {strangers} connections without the job's token were refused; look at those ranks first, then raise the deadline"
    )]
    Missing {
        /// Who.
        missing: Ranks,
        /// Size of the world.
        world: u32,
        /// Connections that did not belong to the job.
        strangers: u32,
    },
    /// Rank 0 cannot be reached.
    #[error(
        "rank 0 did not come to {address} ({reason}); check that it runs and that the address is its own"
    )]
    Unreachable {
        /// Where it was looked for.
        address: String,
        /// The last attempt's failure.
        reason: String,
    },
    /// A rank came and went, or fell silent.
    #[error("{rank} came and was lost before everybody was ready; look at its own error")]
    Lost {
        /// Who.
        rank: Pe,
    },
    /// Two processes have one number.
    #[error("two processes say that they are {rank}; start each with its own number")]
    Duplicate {
        /// The number.
        rank: Pe,
    },
    /// Ranks are of different worlds.
    #[error("{rank} expects {theirs} ranks, rank 0 expects {roots}; start all with one world size")]
    World {
        /// Who differs.
        rank: Pe,
        /// Size that it expects.
        theirs: u32,
        /// Size that rank 0 expects.
        roots: u32,
    },
    /// A number that the world does not have.
    #[error("{rank} is outside a world of {world} ranks; ranks count from 0")]
    Outside {
        /// The number.
        rank: Pe,
        /// Size of the world.
        world: u32,
    },
    /// Ranks have loaded different libraries.
    #[error("{rank} has loaded library version {theirs}, rank 0 {roots}; install the same one everywhere")]
    Library {
        /// Who differs.
        rank: Pe,
        /// Its version.
        theirs: Library,
        /// Rank 0's version.
        roots: Library,
    },
    /// Ranks are configured differently.
    #[error(
        "{rank} is configured differently from rank 0, from byte {at} on; start all with the same settings"
    )]
    Config {
        /// Who differs.
        rank: Pe,
        /// First byte of the configuration that differs, or where the shorter one ends.
        at: u32,
    },
    /// Rank 0 belongs to another job.
    #[error("rank 0 refused this rank's token; the address is that of another job, or the tokens differ")]
    Token,
    /// Ranks are of different versions of this crate.
    #[error("this rank speaks protocol {ours}, the other side {theirs}; build all ranks from one version")]
    Protocol {
        /// The other side's.
        theirs: u16,
        /// This rank's.
        ours: u16,
    },
    /// Rank 0 could not make the id.
    #[error("rank 0 has no id to offer: {reason}")]
    Offer {
        /// Why.
        reason: String,
    },
    /// The address cannot be used.
    #[error("{address} cannot be used: {reason}; name an address and a free port of rank 0's machine")]
    Address {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
    /// Who answered is not rank 0.
    #[error(
        "what came from {from} is no rendezvous ({what}); check the address, another service may be there"
    )]
    Garbled {
        /// Where it came from.
        from: String,
        /// What is wrong.
        what: String,
    },
    /// The caller's own broadcast failed.
    #[error("the caller's broadcast failed: {reason}")]
    Broadcast {
        /// Why.
        reason: String,
    },
}

/// Some ranks, of which the first few are named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranks {
    /// In order.
    pub(super) named: Vec<Pe>,
    /// All, the named ones included.
    pub(super) count: u32,
}

impl Ranks {
    /// Ranks that are named.
    pub(super) const NAMED: usize = 16;

    /// All of them.
    pub(super) fn of(ranks: impl IntoIterator<Item = Pe>) -> Self {
        let (mut named, mut count) = (Vec::new(), 0);
        for rank in ranks {
            count += 1;
            if named.len() < Self::NAMED {
                named.push(rank);
            }
        }
        Self { named, count }
    }

    /// The first 16, in order.
    pub fn named(&self) -> &[Pe] {
        &self.named
    }

    /// How many, the named ones included.
    pub fn count(&self) -> u32 {
        self.count
    }
}

impl fmt::Display for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.named.iter().map(|rank| rank.0.to_string()).collect();
        let word = if self.count == 1 { "rank" } else { "ranks" };
        write!(f, "{word} {}", names.join(", "))?;
        match self.count as usize - self.named.len() {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// Version of a library that all ranks must have alike; 0.0.0 where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Library {
    /// Major version.
    pub major: u32,
    /// Minor version.
    pub minor: u32,
    /// Patch level.
    pub patch: u32,
}

impl fmt::Display for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_named_up_to_a_limit() {
        assert_eq!(Ranks::of([Pe(3)]).to_string(), "rank 3");
        assert_eq!(Ranks::of([1, 5].map(Pe)).to_string(), "ranks 1, 5");
        let many = Ranks::of((0..20).map(Pe));
        assert!(many.to_string().ends_with("14, 15 and 4 more"), "{many}");
        assert_eq!((many.named().len(), many.count()), (16, 20));
    }
}
