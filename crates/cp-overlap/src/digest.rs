//! Hashes by which ranks notice that they run different plans (rule P1).
use serde::{Deserialize, Serialize};

/// One 64-bit hash per part of the problem, so that a difference can be named.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// Batch, heads, lengths, head dim.
    pub shape: u64,
    /// The global mask.
    pub mask: u64,
    /// Who owns which rows, and how many ranks.
    pub sharding: u64,
    /// Element type and wire type.
    pub dtype: u64,
    /// Tunables and the choice made from them.
    pub tuning: u64,
}

impl Digest {
    /// The parts in wire order, with their names.
    pub const fn parts(&self) -> [(&'static str, u64); 5] {
        [
            ("shape", self.shape),
            ("mask", self.mask),
            ("sharding", self.sharding),
            ("dtype", self.dtype),
            ("tuning", self.tuning),
        ]
    }
}
