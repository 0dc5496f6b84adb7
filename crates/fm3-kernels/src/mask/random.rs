//! A tiny generator whose numbers are the same on every platform and in every version of this crate.

/// SplitMix64 (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, figure 17).
pub(super) struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// Streams of different `names` start at unrelated states.
    pub(super) fn stream(seed: u64, names: [u64; 2]) -> Self {
        // Feeding each name through the mixer keeps neighbouring names from sharing a shifted sequence.
        let state =
            names.into_iter().fold(seed, |state, name| Self { state: Self { state }.next() ^ name }.next());
        Self { state }
    }

    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`, which is at least 1. The bias is at most `limit` / 2^64.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        #[expect(clippy::cast_possible_truncation, reason = "the product's upper half is below `limit`")]
        let number = ((u128::from(self.next()) * limit as u128) >> 64) as usize;
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_numbers_are_those_published_for_seed_0() {
        // Reference values of the public-domain C version by Vigna (prng.di.unimi.it/splitmix64.c).
        let mut random = SplitMix64 { state: 0 };
        let got = [random.next(), random.next(), random.next()];
        assert_eq!(got, [0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4, 0x06C4_5D18_8009_454F]);
    }

    #[test]
    fn below_reaches_every_number_and_streams_differ() {
        let draw = |names| {
            let mut random = SplitMix64::stream(7, names);
            (0..64).map(|_| random.below(5)).collect::<Vec<_>>()
        };
        assert!((0..5).all(|number| draw([0, 0]).contains(&number)));
        assert!(draw([0, 0]).iter().all(|number| *number < 5));
        assert_ne!(draw([0, 1]), draw([1, 0]));
    }
}
