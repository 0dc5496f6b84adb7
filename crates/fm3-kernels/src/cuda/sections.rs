//! The order of work of a backward launch: which key tiles are side by side.
use crate::Dims;
use crate::mask::RowsSeen;

/// Rows of Q, dO and dQ that a section may have in use, bytes: somewhat more than the 50 MB of L2 was best on H200s, two
/// heads of 32 K rows (`docs/decisions/0005-backward-kernel.md`, "The order of work").
const SECTION_BYTES: f64 = (72 << 20) as f64;

/// Of a query row: 128 elements, Q and dO in 16 bits, dQ in f32. The query heads of a KV head come one after another.
const ROW_BYTES: f64 = 128.0 * (2 + 2 + 4) as f64;

/// Heads of a section, where they fit; more are slower even where L2 has room.
const HEADS: [usize; 2] = [4, 2];

/// Of an H100 SXM and an H200.
const MULTIPROCESSORS: usize = 132;

/// KV heads in sections: a section's key tiles come before those of the next, except the shortest of all heads, which
/// come last. With few heads side by side their rows stay in L2; with the shortest tiles at the end no long one is left
/// alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sections {
    /// KV heads of a section.
    pub(super) heads: usize,
    /// Key tiles of each head that are in a section.
    pub(super) ranks: usize,
}

impl Sections {
    /// `heads` side by side, with all their `tiles`.
    pub(super) fn of(dims: Dims, tiles: usize, heads: usize) -> Self {
        Self { heads: heads.min(all_heads(dims)), ranks: tiles }
    }

    /// The best guess for a mask; none: every row sees every key.
    pub(super) fn choose(dims: Dims, tiles: usize, seen: Option<&RowsSeen>) -> Self {
        let rows = seen.map_or(dims.seq_q as f64, RowsSeen::mean).max(1.0);
        let fit = |heads: &usize| *heads as f64 * rows * ROW_BYTES <= SECTION_BYTES;
        let heads = HEADS.into_iter().find(fit).unwrap_or(1);
        let all = all_heads(dims);
        let Some(seen) = seen.filter(|_| heads < all) else { return Self::of(dims, tiles, heads) };
        // In units of the whole launch. The last section's first tile starts when all sections before it are done, and is
        // to end with the launch: in_sections * (all - heads) / all + longest = 1.
        let longest = seen.most() as f64 / rows * MULTIPROCESSORS as f64 / (tiles * all) as f64;
        let in_sections = (1.0 - longest).max(0.0) * all as f64 / (all - heads) as f64;
        Self { heads, ranks: seen.first_with(in_sections, tiles) }
    }
}

const fn all_heads(dims: Dims) -> usize {
    dims.batch.saturating_mul(dims.heads_kv)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mask::{Documents, FlashMask, KeySegments, MaskDims, MaskTables};

    const TILES: usize = 256;

    fn dims(heads_kv: usize, seq: usize) -> Dims {
        Dims { batch: 1, heads_q: heads_kv, heads_kv, seq_q: seq, seq_k: seq, head_dim: 128 }
    }

    const fn mask_dims(seq: usize) -> MaskDims {
        MaskDims { batch: 1, heads: 1, seq_q: seq, seq_k: seq }
    }

    #[test]
    fn sections_hold_as_many_heads_as_there_is_room_for() {
        let heads = |seq, causal| {
            let seen = RowsSeen::of_plain(mask_dims(seq), causal);
            Sections::choose(dims(16, seq), TILES, Some(&seen)).heads
        };
        // 72 MiB / (32768 rows * 1 KiB) = 2.25; causal masks have half of the rows.
        assert_eq!([heads(8192, false), heads(32768, false), heads(65536, false)], [4, 2, 1]);
        assert_eq!([heads(32768, true), heads(65536, true), heads(1 << 20, true)], [4, 2, 1]);
        assert_eq!(Sections::choose(dims(16, 65536), 512, None), Sections { heads: 1, ranks: 512 });
        assert_eq!(Sections::choose(dims(3, 1024), 8, None), Sections { heads: 3, ranks: 8 });
    }

    #[test]
    fn no_tile_of_the_last_section_is_left_alone() {
        // One question that all rows see, and many short answers.
        let lengths: Vec<usize> = [2048].into_iter().chain((0..60).map(|_| 512)).collect();
        let documents = Documents::new(vec![lengths], 32768).unwrap();
        let mask = FlashMask::share_question(mask_dims(32768), &documents).unwrap();
        let seen = RowsSeen::of(&mask);
        let Sections { heads, ranks } = Sections::choose(dims(8, 32768), TILES, Some(&seen));
        assert!(heads == 4 && (1..TILES).contains(&ranks), "{ranks} ranks of {TILES} in sections of {heads}");
        let lists = MaskTables::build(&mask, &KeySegments::whole(32768).unwrap()).unwrap().by_keys;
        let work: Vec<u32> = lists.ranked.iter().map(|tile| lists.counts[*tile as usize]).collect();
        let [end, alone] = [ranks, TILES].map(|ranks| list_schedule(&work, 8, (heads, ranks)));
        assert!(end < 1.01 && alone > 1.04, "ends at {end}, with all tiles in sections at {alone}");
    }

    #[test]
    fn equal_tiles_are_all_in_sections() {
        let seen = RowsSeen::of_plain(mask_dims(32768), false);
        assert_eq!(Sections::choose(dims(8, 32768), TILES, Some(&seen)).ranks, TILES);
        assert_eq!(Sections::of(dims(8, 32768), TILES, 100), Sections { heads: 8, ranks: TILES });
    }

    /// When the last of 132 multiprocessors ends, which take tiles in order; 1 is when all have the same work.
    fn list_schedule(work: &[u32], all: usize, (heads, ranks): (usize, usize)) -> f64 {
        let sections = (0..all)
            .step_by(heads)
            .flat_map(|_| (0..ranks).flat_map(move |rank| std::iter::repeat_n(rank, heads)));
        let rest = (ranks..TILES).flat_map(|rank| std::iter::repeat_n(rank, all));
        let mut ends = [0_u32; MULTIPROCESSORS];
        for rank in sections.chain(rest) {
            *ends.iter_mut().min().unwrap() += work[rank];
        }
        let mean = f64::from(ends.iter().sum::<u32>()) / MULTIPROCESSORS as f64;
        f64::from(ends.into_iter().max().unwrap()) / mean
    }
}
