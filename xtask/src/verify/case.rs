//! Random problems of all ranks that can shrink: sizes, mask, sharding, types, cuts.
use std::ops::Range;

use cp_overlap::{Problem, Tunables};
use fm_cp::mask::{Columns, Documents, MaskDims, MaskSpec};
use fm_cp::{FlashMask, Sharding, ShardingKind, World};
use fm3_kernels::{DType, Dims, Shape};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Seeded numbers that are the same on every machine.
pub(super) struct Dice(ChaCha8Rng);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Below `limit`, which is at least 1.
    pub(super) fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.0.next_u64() % limit as u64).unwrap_or(0)
    }

    pub(super) fn within(&mut self, range: std::ops::RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Uniform in -1 .. 1.
    pub(super) fn value(&mut self) -> f32 {
        (self.0.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(super) fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.fill_bytes(&mut bytes);
        bytes
    }
}

/// How large a random problem may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub ranks: usize,
    pub rows: usize,
    pub kv_heads: usize,
}

/// Who owns which rows.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Rows {
    Kind(ShardingKind),
    Explicit(Vec<Vec<Range<usize>>>),
}

/// A problem in parts that shrink.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub ranks: usize,
    pub rows: Rows,
    pub mask: FlashMask,
    /// Query heads per KV head.
    pub group: usize,
    pub heads_kv: usize,
    pub head_dim: usize,
    pub dtype: DType,
    /// Forced pieces: KV heads, and blocks of 128 rows.
    pub forced: [Option<usize>; 2],
    pub local_tail: u8,
    pub overlap: bool,
    /// Of the tensors.
    pub seed: u64,
}

impl Case {
    pub(super) fn random(seed: u64, limits: Limits) -> Self {
        let mut dice = Dice::new(seed);
        let ranks = dice.within(1..=limits.ranks);
        let seq = ranks + dice.below(limits.rows);
        let (batch, group, heads_kv) =
            (dice.within(1..=3), dice.within(1..=3), dice.within(1..=limits.kv_heads));
        let rows = match dice.below(3) {
            0 => Rows::Explicit(random_ranges(&mut dice, ranks, seq)),
            1 if seq >= 2 * ranks => Rows::Kind(ShardingKind::DualChunk),
            _ => Rows::Kind(ShardingKind::Contiguous),
        };
        let heads_q = group * heads_kv;
        let divisors: Vec<usize> = (1..=heads_q).filter(|heads| heads_q % heads == 0).collect();
        let dims = MaskDims { batch, heads: dice.pick(&divisors), seq_q: seq, seq_k: seq };
        let forced = [4, 2].map(|most| Some(dice.within(1..=most)).filter(|_| dice.below(2) == 0));
        Self {
            ranks,
            rows,
            mask: random_mask(&mut dice, dims, seed),
            group,
            heads_kv,
            head_dim: 8 * dice.within(1..=4),
            dtype: dice.pick(&[DType::F32, DType::Bf16, DType::F16]),
            forced,
            local_tail: u8::try_from(dice.below(256)).unwrap_or(0),
            overlap: dice.below(4) > 0,
            seed,
        }
    }

    pub(super) fn seq(&self) -> usize {
        self.mask.dims().seq_q
    }

    pub(super) fn dims(&self) -> Dims {
        let MaskDims { batch, seq_q, seq_k, .. } = self.mask.dims();
        let (heads_kv, head_dim) = (self.heads_kv, self.head_dim);
        Dims { batch, heads_q: self.group * heads_kv, heads_kv, seq_q, seq_k, head_dim }
    }

    pub(super) fn sharding(&self) -> Result<Sharding, cp_overlap::Error> {
        let world = World::new(u32::try_from(self.ranks).unwrap_or(u32::MAX))?;
        match &self.rows {
            Rows::Kind(kind) => Sharding::new(*kind, self.seq(), world),
            Rows::Explicit(ranges) => Sharding::explicit(self.seq(), ranges.clone()),
        }
    }

    pub(super) fn tunables(&self) -> Tunables {
        let [heads_per_piece, blocks] = self.forced;
        let rows_per_piece = blocks.map(|blocks| blocks * cp_overlap::plan::NEED_ROWS);
        Tunables { local_tail: self.local_tail, heads_per_piece, rows_per_piece, ..Tunables::h200() }
    }

    pub(super) fn problem(&self) -> Result<Problem, cp_overlap::Error> {
        let shape = Shape::new(self.dims())?;
        Problem::new(shape, self.mask.clone(), self.sharding()?, self.dtype, self.tunables())
    }

    /// The first smaller case that still fails, again and again. `fails` must be deterministic.
    pub(super) fn shrunk(self, fails: impl Fn(&Case) -> bool) -> Self {
        let mut least = self;
        // A few hundred runs of small problems: seconds.
        for _ in 0..100 {
            let Some(smaller) =
                least.smaller().into_iter().find(|case| case.sharding().is_ok() && fails(case))
            else {
                break;
            };
            least = smaller;
        }
        least
    }

    /// Simpler cases, the greatest steps first.
    fn smaller(&self) -> Vec<Self> {
        let MaskDims { batch, heads, .. } = self.mask.dims();
        let (seq, mut all) = (self.seq(), Vec::new());
        let mut add = |change: &dyn Fn(&mut Self)| {
            let mut case = self.clone();
            change(&mut case);
            all.push(case);
        };
        if self.ranks > 1 {
            for fewer in [1, self.ranks / 2, self.ranks - 1] {
                add(&|case| (case.ranks, case.rows) = (fewer, Rows::Kind(ShardingKind::Contiguous)));
            }
        }
        for kind in ShardingKind::ALL {
            if matches!(self.rows, Rows::Explicit(_)) {
                add(&|case| case.rows = Rows::Kind(kind));
            }
        }
        for kept in [seq / 2, seq - seq / 4, seq - seq / 16, seq - 1] {
            if (self.ranks..seq).contains(&kept) && kept > 0 {
                add(&|case| case.keep_rows(kept));
            }
        }
        if batch > 1 {
            add(&|case| case.mask = part_of_mask(&self.mask, (batch - 1, heads)));
            add(&|case| case.mask = part_of_mask(&self.mask, (1, heads)));
        }
        if heads > 1 {
            add(&|case| case.mask = part_of_mask(&self.mask, (batch, 1)));
        } else if self.group * self.heads_kv > 1 {
            add(&|case| (case.group, case.heads_kv) = (1, 1));
            add(&|case| case.group = 1);
            add(&|case| case.heads_kv = 1);
        }
        for (is_simple, simplify) in [
            (self.head_dim == 8, (&|case: &mut Self| case.head_dim = 8) as &dyn Fn(&mut Self)),
            (self.dtype == DType::F32, &|case| case.dtype = DType::F32),
            (self.forced == [None; 2], &|case| case.forced = [None; 2]),
            (self.local_tail == 0, &|case| case.local_tail = 0),
            (self.overlap, &|case| case.overlap = true),
        ] {
            if !is_simple {
                add(simplify);
            }
        }
        all
    }

    fn keep_rows(&mut self, kept: usize) {
        if let Rows::Explicit(ranges) = &mut self.rows {
            for range in ranges.iter_mut().flatten() {
                *range = range.start.min(kept)..range.end.min(kept);
            }
            ranges.iter_mut().for_each(|ranges| ranges.retain(|range| !range.is_empty()));
        }
        let dims = self.mask.dims();
        let (count, limit) = (self.mask.columns().count(), i32::try_from(kept).unwrap_or(i32::MAX));
        let of_heads = self.mask.bounds().chunks_exact(dims.seq_k * count);
        let bounds = of_heads.flat_map(|head| head[..kept * count].iter().map(|bound| (*bound).min(limit)));
        let dims = MaskDims { seq_q: kept, seq_k: kept, ..dims };
        if let Ok(mask) = FlashMask::new(dims, self.mask.columns(), self.mask.is_causal(), bounds.collect()) {
            self.mask = mask;
        }
    }
}

/// The first sequences and heads of a mask.
fn part_of_mask(mask: &FlashMask, (batch, heads): (usize, usize)) -> FlashMask {
    let dims = mask.dims();
    let head = dims.seq_k * mask.columns().count();
    let sequences = mask.bounds().chunks_exact(dims.heads * head).take(batch);
    let bounds = sequences.flat_map(|sequence| sequence[..heads * head].iter().copied()).collect();
    let part = FlashMask::new(MaskDims { batch, heads, ..dims }, mask.columns(), mask.is_causal(), bounds);
    part.unwrap_or_else(|_| mask.clone())
}

/// Random cuts; the runs go to ranks at random, but every rank gets one.
fn random_ranges(dice: &mut Dice, ranks: usize, seq: usize) -> Vec<Vec<Range<usize>>> {
    let mut cuts: Vec<usize> = (0..3 * ranks).map(|_| dice.below(seq + 1)).collect();
    cuts.extend(0..=ranks);
    cuts.push(seq);
    cuts.sort_unstable();
    cuts.dedup();
    let mut rows = vec![Vec::new(); ranks];
    for (index, cut) in cuts.windows(2).enumerate() {
        let owner = if index < ranks { index } else { dice.below(ranks) };
        rows[owner].push(cut[0]..cut[1]);
    }
    rows
}

fn random_mask(dice: &mut Dice, dims: MaskDims, seed: u64) -> FlashMask {
    let named = MaskSpec::NAMES.get(dice.below(MaskSpec::NAMES.len() * 3 / 2)).and_then(|name| {
        let documents =
            Documents::new((0..dims.batch).map(|_| lengths(dice, dims.seq_k)).collect(), dims.seq_k);
        name.parse::<MaskSpec>().ok()?.build(dims, &documents.ok()?, seed).ok()
    });
    named.unwrap_or_else(|| raw_mask(dice, dims))
}

fn lengths(dice: &mut Dice, seq: usize) -> Vec<usize> {
    let (mut left, mut lengths) = (seq, Vec::new());
    while left > 0 {
        let length = dice.within(1..=left.min(1 + seq / 3));
        lengths.push(length);
        left -= length;
    }
    lengths
}

/// Bounds at random, some past the end, most equal to their neighbour's so that whole blocks are masked.
fn raw_mask(dice: &mut Dice, dims: MaskDims) -> FlashMask {
    let forms = [(Columns::One, true), (Columns::Two, true), (Columns::Two, false), (Columns::Four, false)];
    let (columns, causal) = dice.pick(&forms);
    let (every, top) = (dice.pick(&[1, 8, 64, 256]), dims.seq_q + 2);
    let mut bounds: Vec<i32> = Vec::new();
    for index in 0..dims.batch * dims.heads * dims.seq_k {
        if index % dims.seq_k == 0 || dice.below(every) == 0 {
            bounds.extend((0..columns.count()).map(|_| i32::try_from(dice.below(top + 1)).unwrap_or(0)));
        } else {
            bounds.extend_from_within(bounds.len() - columns.count()..);
        }
    }
    FlashMask::new(dims, columns, causal, bounds).expect("bounds of any value are a mask")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { ranks: 6, rows: 600, kv_heads: 3 };

    #[test]
    fn every_random_case_is_a_problem_and_comes_again() {
        for seed in 0..50 {
            let case = Case::random(seed, LIMITS);
            let problem = case.problem().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            assert_eq!(problem.digest(), Case::random(seed, LIMITS).problem().unwrap().digest());
        }
    }

    #[test]
    fn a_failing_case_shrinks_to_the_least_that_fails() {
        // Fails when rank 2 exists and a row past 130 does.
        let fails = |case: &Case| case.ranks > 2 && case.seq() > 130;
        let found = (0..).map(|seed| Case::random(seed, LIMITS)).find(fails).unwrap();
        let least = found.shrunk(fails);
        assert_eq!((least.ranks, least.seq(), least.head_dim), (3, 131, 8));
        assert_eq!((least.group, least.heads_kv, least.mask.dims().batch), (1, 1, 1));
        assert_eq!((least.rows, least.dtype), (Rows::Kind(ShardingKind::Contiguous), DType::F32));
    }
}
