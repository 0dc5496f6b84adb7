//! The numbers from which a plan is made, and the one heuristic that uses them (rules P4, P7).
//!
//! Defaults are measurements of pushes and attention on two H200s over NVLink. Anything that runs on other machines
//! (or on an emulated link) overrides the rates; all ranks must use the same numbers, their hash is compared.
use serde::{Deserialize, Serialize};
use symm_buffer::{Bytes, Step, World};

use crate::Error;
use crate::plan::NEED_ROWS;

mod choose;
mod simulate;

pub use choose::choose;
pub use simulate::{Facts, PieceCount, RankFacts, simulate};

/// Element type of dK, dV partials on their way to the owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// f32: partials are summed without rounding in between.
    #[default]
    F32,
}

impl Wire {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Wire::F32 => size_of::<f32>(),
        }
    }

    /// The name in lower case.
    pub const fn name(self) -> &'static str {
        match self {
            Wire::F32 => "f32",
        }
    }
}

/// What a link can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkRate {
    /// Bytes per second.
    pub bytes_per_s: f64,
    /// Seconds in flight.
    pub latency_s: f64,
}

/// What a plan is tuned to. Override single fields: `Tunables { local_tail: 0, ..Tunables::h200() }`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tunables {
    /// Rate of one rank's link, bytes/s. 385e9: copy engine pushes with both directions of NVLink busy.
    pub link_bytes_per_s: f64,
    /// Fixed cost of one push (K and V and their signal), s. 5.6e-6: one batched copy and a flag write.
    pub push_fixed_s: f64,
    /// From the start of a call to the start of the first push, s. 5e-6: the launch of the first copy.
    pub first_push_s: f64,
    /// Rate of attention, flop/s. 7.1e14: 132 SMs, each one 128 x 128 block of head dim 128 (8.4e6 flop) in 1.56 us.
    pub flops_per_s: f64,
    /// Cost of one more piece to the compute stream, s. 2.6e-6: fixed cost of a tile, paid where a piece ends.
    pub piece_fixed_s: f64,
    /// Up to this many bytes from one owner the whole segment is one piece, unless cutting it clearly wins. 8 MiB: below,
    /// the fixed costs of more pushes eat what they hide.
    pub one_piece: Bytes,
    /// Bytes of a piece when a segment is at most twice as large. 8 MiB: 80 % of the link rate.
    pub piece: Bytes,
    /// Bytes of a piece of larger segments. 16 MiB: 88 % of the link rate.
    pub large_piece: Bytes,
    /// Most pieces from one rank to another, at most 4,095 (what a signal counts). 64: more never helped.
    pub max_pieces: u32,
    /// Share of the local work that the backward does last, in 1/256. 64: a quarter, during which the last partials
    /// travel; the other three quarters hide the arrival of the first pieces.
    pub local_tail: u8,
    /// Element type of dK, dV partials between ranks.
    pub wire: Wire,
    /// Whether the heuristic may cut a head's rows into several pieces. `false`: kernels wait for head groups alone, so
    /// a segment is cut by heads only; `true` for the CPU engine, which waits for each piece.
    pub row_chunks: bool,
    /// KV heads per piece instead of the heuristic's answer; more than there are means all.
    pub heads_per_piece: Option<usize>,
    /// Rows per piece instead of the heuristic's answer: a multiple of 128.
    pub rows_per_piece: Option<usize>,
}

impl Default for Tunables {
    fn default() -> Self {
        Self::h200()
    }
}

impl Tunables {
    /// Measured on two H200s joined by 18 NVLinks.
    pub const fn h200() -> Self {
        Self {
            link_bytes_per_s: 385e9,
            push_fixed_s: 5.6e-6,
            first_push_s: 5.0e-6,
            flops_per_s: 7.1e14,
            piece_fixed_s: 2.6e-6,
            one_piece: Bytes(8 << 20),
            piece: Bytes(8 << 20),
            large_piece: Bytes(16 << 20),
            max_pieces: 64,
            local_tail: 64,
            wire: Wire::F32,
            row_chunks: false,
            heads_per_piece: None,
            rows_per_piece: None,
        }
    }

    /// For ranks that are threads of one machine and share its cores, over emulated links.
    ///
    /// 5e10 flop/s: the CPU engine on two cores at d = 64 to 128, shared by the ranks. 1e-4 s per piece: one more round
    /// of tasks. Without a link, 5e9 bytes/s: a copy between two threads' memory, and 2e-5 s until the other one wakes.
    pub fn host(world: World, link: Option<LinkRate>) -> Self {
        let link = link.unwrap_or(LinkRate { bytes_per_s: 5e9, latency_s: 2e-5 });
        Self {
            link_bytes_per_s: link.bytes_per_s,
            push_fixed_s: 2e-5,
            first_push_s: link.latency_s,
            flops_per_s: 5e10 / world.size() as f64,
            piece_fixed_s: 1e-4,
            row_chunks: true,
            ..Self::h200()
        }
    }

    /// All rates positive, all costs finite, counts in range.
    ///
    /// # Errors
    /// [`Error::Tunable`] naming the first field that is not.
    pub fn check(&self) -> Result<(), Error> {
        let refuse = |name, value: String, rule| Err(Error::Tunable { name, value, rule });
        for (name, rate) in [("link_bytes_per_s", self.link_bytes_per_s), ("flops_per_s", self.flops_per_s)] {
            if !(rate.is_finite() && rate > 0.0) {
                return refuse(name, rate.to_string(), "a positive number");
            }
        }
        let costs = [
            ("push_fixed_s", self.push_fixed_s),
            ("first_push_s", self.first_push_s),
            ("piece_fixed_s", self.piece_fixed_s),
        ];
        for (name, cost) in costs {
            if !(cost.is_finite() && cost >= 0.0) {
                return refuse(name, cost.to_string(), "a number of seconds, not negative");
            }
        }
        for (name, bytes) in [("piece", self.piece), ("large_piece", self.large_piece)] {
            if bytes.0 == 0 {
                return refuse(name, "0".to_owned(), "at least 1 byte");
            }
        }
        if self.max_pieces == 0 || self.max_pieces > Step::MAX.0 {
            return refuse("max_pieces", self.max_pieces.to_string(), "between 1 and 4095");
        }
        if self.heads_per_piece == Some(0) {
            return refuse("heads_per_piece", "0".to_owned(), "at least 1");
        }
        match self.rows_per_piece {
            Some(rows) if rows == 0 || !rows.is_multiple_of(NEED_ROWS) => {
                refuse("rows_per_piece", rows.to_string(), "a positive multiple of 128")
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_out_of_range_is_named() {
        let good = Tunables::h200();
        good.check().unwrap();
        let bad = [
            Tunables { link_bytes_per_s: f64::NAN, ..good },
            Tunables { flops_per_s: 0.0, ..good },
            Tunables { push_fixed_s: -1.0, ..good },
            Tunables { first_push_s: f64::INFINITY, ..good },
            Tunables { piece: Bytes(0), ..good },
            Tunables { max_pieces: 4096, ..good },
            Tunables { heads_per_piece: Some(0), ..good },
            Tunables { rows_per_piece: Some(100), ..good },
        ];
        let names: Vec<&str> = bad
            .iter()
            .map(|tunables| match tunables.check() {
                Err(Error::Tunable { name, .. }) => name,
                other => panic!("{other:?}"),
            })
            .collect();
        let expected = [
            "link_bytes_per_s",
            "flops_per_s",
            "push_fixed_s",
            "first_push_s",
            "piece",
            "max_pieces",
            "heads_per_piece",
            "rows_per_piece",
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn stored_tunables_may_name_only_what_differs() {
        let read: Tunables = serde_json::from_str(r#"{"local_tail": 0}"#).unwrap();
        assert_eq!(read, Tunables { local_tail: 0, ..Tunables::h200() });
        assert!(serde_json::from_str::<Tunables>(r#"{"local_tial": 0}"#).is_err());
    }
}
