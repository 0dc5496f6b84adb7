//! What the probes take: small kernels that measure memory and signals, and prove that what a signal promises is there.
use super::layout::{device_struct, kernel_params};

device_struct! {
    /// fm3_probe_copy: copies with as many blocks as the grid has, 512 threads each.
    #[repr(C)]
    pub struct ProbeCopyParams {
        /// Where to, a multiple of 16.
        pub dst: u64,
        /// Where from, a multiple of 16.
        pub src: u64,
        /// Bytes, a multiple of 16.
        pub bytes: u64,
    }
}

device_struct! {
    /// fm3_probe_hold: every block keeps its multiprocessor until a word is high enough.
    #[repr(C)]
    pub struct ProbeHoldParams {
        /// The u64 to wait for.
        pub word: u64,
        /// Enough.
        pub at_least: u64,
        /// Longest wait, nanoseconds.
        pub deadline_ns: u64,
    }
}

device_struct! {
    /// fm3_probe_echo: one thread answers a word with another, round after round.
    #[repr(C)]
    pub struct ProbeEchoParams {
        /// The u64 to wait for: base + round, from round 1.
        pub word: u64,
        /// The u64 that then becomes the same value.
        pub reply: u64,
        /// Value of round 0.
        pub base: u64,
        /// How many.
        pub rounds: u64,
        /// Longest wait in a round, nanoseconds; then the kernel ends.
        pub deadline_ns: u64,
    }
}

device_struct! {
    /// fm3_probe_check: block 0 waits for each round's signal, compares its slot with the pattern of its source and says
    /// that the slot is free; all other blocks keep their multiprocessors until it is done.
    #[repr(C)]
    pub struct ProbeCheckParams {
        /// Two slots, one behind the other; round r is in slot r % 2.
        pub slots: u64,
        /// Bytes of a slot, a multiple of 4.
        pub slot_bytes: u64,
        /// The u64 to wait for: base + round + 1.
        pub ready: u64,
        /// The u64 that becomes base + round + 1 when a round is read; it may lie in the host's memory.
        pub free: u64,
        /// Value of both words before round 0.
        pub base: u64,
        /// How many.
        pub rounds: u64,
        /// Written: u64 `[4]`: 1 at the end, rounds that were read, words that were wrong, last of the threads' first wrong
        /// rounds + 1. Zero before.
        pub found: u64,
        /// Longest wait in a round, nanoseconds; then the kernel ends.
        pub deadline_ns: u64,
        /// Number of sources; round r was sent from source r % sources, whose u32 i is `pattern(source, i)`.
        pub sources: u32,
        /// Fills the struct to a multiple of its alignment.
        pub reserved: u32,
    }
}

device_struct! {
    /// fm3_probe_clock: one thread answers a word with the device's clock, round after round.
    #[repr(C)]
    pub struct ProbeClockParams {
        /// The u64 to wait for: round, from round 1.
        pub word: u64,
        /// Written: u64 `[rounds]`, nanoseconds of `%globaltimer`. Zero before.
        pub replies: u64,
        /// How many.
        pub rounds: u64,
        /// Longest wait in a round, nanoseconds; then the kernel ends.
        pub deadline_ns: u64,
    }
}

/// Number of a source of `fm3_probe_check`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(pub u32);

/// Word `index` of a source, as `fm3_probe_check` expects it: any two sources differ almost everywhere.
pub const fn pattern(source: Source, index: u32) -> u32 {
    let mixed =
        index.wrapping_mul(0x9E37_79B9) ^ source.0.wrapping_mul(0x85EB_CA6B).wrapping_add(0x27D4_EB2F);
    mixed ^ mixed >> 15
}

kernel_params!(ProbeCopyParams, ProbeHoldParams, ProbeEchoParams, ProbeCheckParams, ProbeClockParams);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_differ() {
        for (one, other) in [(0, 1), (0, 2), (3, 67), (5, 1 << 20)] {
            let same = (0..10_000)
                .filter(|index| pattern(Source(one), *index) == pattern(Source(other), *index))
                .count();
            assert!(same < 3, "{one} and {other} agree in {same} of 10,000 words");
        }
    }
}
