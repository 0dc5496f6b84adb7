//! Random problems, and the dense meaning of a mask written from its definition alone.
use std::ops::Range;

use cp_overlap::sharding::ShardingKind;
use cp_overlap::{Problem, Sharding, Tunables};
use fm3_kernels::mask::{Columns, Documents, MaskDims, MaskSpec};
use fm3_kernels::{DType, Dims, FlashMask, Shape};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use symm_buffer::World;

/// A problem in numbers that shrink; [`Recipe::problem`] makes it.
#[derive(Clone, Debug)]
pub(crate) struct Recipe {
    pub(crate) ranks: usize,
    /// Rows above one per rank.
    pub(crate) rows: usize,
    pub(crate) batch: usize,
    /// Query heads per KV head, and KV heads.
    pub(crate) heads: (usize, usize),
    /// Index into the mask names, then the four raw forms.
    pub(crate) mask: usize,
    /// Index into the divisors of the query heads.
    pub(crate) mask_heads: usize,
    /// Contiguous, dual-chunk or explicit.
    pub(crate) sharding: usize,
    /// Forced pieces: heads, and blocks of rows.
    pub(crate) forced: (Option<usize>, Option<usize>),
    pub(crate) local_tail: u8,
    pub(crate) seed: u64,
}

pub(crate) fn recipes() -> impl Strategy<Value = Recipe> {
    let sizes = (1usize..9, 0usize..900, 1usize..4, (1usize..4, 1usize..5));
    let mask = (0..MaskSpec::NAMES.len() + 4, 0usize..6);
    let cut = (0usize..3, (prop::option::of(1usize..5), prop::option::of(1usize..3)), any::<u8>());
    (sizes, mask, cut, any::<u64>()).prop_map(
        |((ranks, rows, batch, heads), (mask, mask_heads), (sharding, forced, local_tail), seed)| Recipe {
            ranks,
            rows,
            batch,
            heads,
            mask,
            mask_heads,
            sharding,
            forced,
            local_tail,
            seed,
        },
    )
}

impl Recipe {
    pub(crate) fn seq(&self) -> usize {
        self.ranks + self.rows
    }

    pub(crate) fn problem(&self) -> Problem {
        let tunables = Tunables {
            local_tail: self.local_tail,
            heads_per_piece: self.forced.0,
            rows_per_piece: self.forced.1.map(|blocks| blocks * 128),
            ..Tunables::h200()
        };
        self.tuned(tunables, 16)
    }

    pub(crate) fn tuned(&self, tunables: Tunables, head_dim: usize) -> Problem {
        let (group, heads_kv) = self.heads;
        let seq = self.seq();
        let dims =
            Dims { batch: self.batch, heads_q: group * heads_kv, heads_kv, seq_q: seq, seq_k: seq, head_dim };
        let (shape, mask) = (Shape::new(dims).unwrap(), self.mask());
        Problem::new(shape, mask, self.sharding(), DType::Bf16, tunables).unwrap()
    }

    pub(crate) fn sharding(&self) -> Sharding {
        let seq = self.seq();
        let world = World::new(u32::try_from(self.ranks).unwrap()).unwrap();
        match self.sharding {
            0 => Sharding::contiguous(seq, world).unwrap(),
            // Too few rows may leave a rank without any.
            1 => Sharding::new(ShardingKind::DualChunk, seq, world)
                .unwrap_or_else(|_| Sharding::contiguous(seq, world).unwrap()),
            _ => Sharding::explicit(seq, self.random_ranges()).unwrap(),
        }
    }

    /// Random cuts; the runs go to ranks at random, but every rank gets one.
    fn random_ranges(&self) -> Vec<Vec<Range<usize>>> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed ^ 1);
        let mut cuts: Vec<usize> = (0..3 * self.ranks).map(|_| random.random_range(0..=self.seq())).collect();
        cuts.extend(0..=self.ranks);
        cuts.push(self.seq());
        cuts.sort_unstable();
        cuts.dedup();
        let mut ranks = vec![Vec::new(); self.ranks];
        for (index, cut) in cuts.windows(2).enumerate() {
            let owner = if index < self.ranks { index } else { random.random_range(0..self.ranks) };
            ranks[owner].push(cut[0]..cut[1]);
        }
        ranks
    }

    pub(crate) fn mask(&self) -> FlashMask {
        let (group, heads_kv) = self.heads;
        let heads_q = group * heads_kv;
        let divisors: Vec<usize> = (1..=heads_q).filter(|heads| heads_q % heads == 0).collect();
        let heads = divisors[self.mask_heads % divisors.len()];
        let seq = self.seq();
        let dims = MaskDims { batch: self.batch, heads, seq_q: seq, seq_k: seq };
        match MaskSpec::NAMES.get(self.mask) {
            Some(name) => {
                let spec: MaskSpec = name.parse().unwrap();
                spec.build(dims, &self.documents(), self.seed).unwrap()
            }
            None => self.raw(dims),
        }
    }

    fn documents(&self) -> Documents {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed ^ 2);
        let mut of_sequence = || {
            let (mut left, mut lengths) = (self.seq(), Vec::new());
            while left > 0 {
                let length = random.random_range(1..=left.min(1 + self.seq() / 3));
                lengths.push(length);
                left -= length;
            }
            lengths
        };
        Documents::new((0..self.batch).map(|_| of_sequence()).collect(), self.seq()).unwrap()
    }

    /// Bounds at random, some past the end, many equal to their neighbour so that whole blocks are masked.
    fn raw(&self, dims: MaskDims) -> FlashMask {
        let forms =
            [(Columns::One, true), (Columns::Two, true), (Columns::Two, false), (Columns::Four, false)];
        let (columns, causal) = forms[self.mask - MaskSpec::NAMES.len()];
        let mut random = ChaCha8Rng::seed_from_u64(self.seed ^ 3);
        let top = i32::try_from(dims.seq_q).unwrap() + 2;
        let mut bounds: Vec<i32> = Vec::new();
        for index in 0..dims.batch * dims.heads * dims.seq_k {
            if index % dims.seq_k == 0 || random.random_range(0..64) == 0 {
                bounds.extend((0..columns.count()).map(|_| random.random_range(0..=top)));
            } else {
                bounds.extend_from_within(bounds.len() - columns.count()..);
            }
        }
        FlashMask::new(dims, columns, causal, bounds).unwrap()
    }
}

/// Whether a query row sees a key, from the definition of the mask format alone.
pub(crate) fn sees(mask: &FlashMask, (batch, head): (usize, usize), (row, key): (usize, usize)) -> bool {
    let MaskDims { heads, seq_q, seq_k, .. } = mask.dims();
    let count = mask.columns().count();
    let first = ((batch * heads + head) * seq_k + key) * count;
    let within = |start: i32, end: i32| (i64::from(start)..i64::from(end)).contains(&(row as i64));
    let masked = match (&mask.bounds()[first..first + count], mask.is_causal()) {
        (&[lts], true) => within(lts, i32::MAX),
        (&[lts, lte], true) => within(lts, lte),
        (&[lts, ute], false) => within(lts, i32::MAX) || within(0, ute),
        (&[lts, lte, uts, ute], false) => within(lts, lte) || within(uts, ute),
        form => panic!("{form:?} is no mask form"),
    };
    !(masked || mask.is_causal() && key + seq_q > row + seq_k)
}
