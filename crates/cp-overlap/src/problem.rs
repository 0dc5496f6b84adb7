//! A checked problem and what all ranks know of it.
use std::ops::Range;

use fm3_kernels::{DType, FlashMask, Shape};
use symm_buffer::{Pe, Step};
use xxhash_rust::xxh3::Xxh3;

use crate::needs::{Link, Needs, RankPairs, count_pairs};
use crate::plan::{Choice, NEED_ROWS, PLACE_ALIGN};
use crate::tune::{Facts, RankFacts, choose};
use crate::{Digest, Error, Sharding, Tunables, fold};

/// Ranks that the heuristic simulates: those with most work. More would cost time and hardly change the answer.
const SIMULATED: usize = 16;

/// One attention problem of all ranks: global shape and mask, who owns which rows, element type, tuning.
///
/// Making one surveys the mask (who needs which keys, how much work each rank has) in one pass; plans are made from
/// that. Equal arguments give equal problems on every machine.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    shape: Shape,
    mask: FlashMask,
    sharding: Sharding,
    dtype: DType,
    tunables: Tunables,
    needs: Needs,
    pairs: Vec<RankPairs>,
    choice: Choice,
}

impl Problem {
    /// Checks that the parts fit each other.
    ///
    /// # Errors
    /// [`Error::SizeMismatch`] when shape, mask and sharding disagree about batch or lengths, or when there are not as
    /// many queries as keys; [`Error::Kernels`] when the mask heads do not divide the query heads; [`Error::Tunable`];
    /// [`Error::TooLarge`]; [`Error::TooManyPieces`] when the tunables force more than a signal can count.
    pub fn new(
        shape: Shape,
        mask: FlashMask,
        sharding: Sharding,
        dtype: DType,
        tunables: Tunables,
    ) -> Result<Self, Error> {
        check_sizes(shape, &mask, &sharding)?;
        mask.check_heads(shape.dims().heads_q)?;
        tunables.check()?;
        check_bytes(shape, &sharding)?;
        let needs = Needs::new(&mask, &sharding)?;
        let ratio = (shape.dims().heads_q / mask.dims().heads) as u64;
        let scaled = |pairs: RankPairs| RankPairs {
            all: pairs.all.saturating_mul(ratio),
            local: pairs.local.saturating_mul(ratio),
        };
        let pairs = count_pairs(&mask, &sharding)?.into_iter().map(scaled).collect();
        let choice = Choice { heads_per_piece: 1, rows_per_piece: 1, local_tail: 0 };
        let mut problem = Self { shape, mask, sharding, dtype, tunables, needs, pairs, choice };
        problem.choice = choose(&problem.facts(), &tunables);
        problem.check_steps()?;
        Ok(problem)
    }

    /// The global shape.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// The global mask.
    pub const fn mask(&self) -> &FlashMask {
        &self.mask
    }

    /// Who owns which rows.
    pub const fn sharding(&self) -> &Sharding {
        &self.sharding
    }

    /// Element type of Q, K, V, O.
    pub const fn dtype(&self) -> DType {
        self.dtype
    }

    /// What it is tuned to.
    pub const fn tunables(&self) -> &Tunables {
        &self.tunables
    }

    /// Who needs which keys.
    pub const fn needs(&self) -> &Needs {
        &self.needs
    }

    /// Visible pairs times query heads, for every rank.
    pub fn pairs(&self) -> &[RankPairs] {
        &self.pairs
    }

    /// What the heuristic decided.
    pub const fn choice(&self) -> Choice {
        self.choice
    }

    /// The mask heads that the query heads of some KV heads read.
    pub fn mask_heads(&self, kv: &Range<usize>) -> Range<usize> {
        let queries_per_mask_head = self.shape.dims().heads_q / self.mask.dims().heads;
        let group = self.shape.group_size();
        kv.start * group / queries_per_mask_head..(kv.end * group).div_ceil(queries_per_mask_head)
    }

    /// Hashes of the parts; the same on every platform.
    pub fn digest(&self) -> Digest {
        let dims = self.shape.dims();
        let sizes = [dims.batch, dims.heads_q, dims.heads_kv, dims.seq_q, dims.seq_k, dims.head_dim];
        let mut sharding = vec![self.sharding.seq_len(), self.sharding.world().size()];
        for rank in self.sharding.world().ranks() {
            let ranges = self.sharding.rows(rank);
            sharding.push(ranges.len());
            sharding.extend(ranges.iter().flat_map(|range| [range.start, range.end]));
        }
        Digest {
            shape: hash(sizes.into_iter().map(wide)),
            mask: hash_mask(&self.mask),
            sharding: hash(sharding.into_iter().map(wide)),
            dtype: hash([self.dtype.size(), self.dtype as usize, self.tunables.wire as usize].map(wide)),
            tuning: hash(tuning_words(&self.tunables, self.choice)),
        }
    }

    /// What the heuristic is told.
    pub fn facts(&self) -> Facts {
        let dims = self.shape.dims();
        let head_bytes = |elem: usize| (2 * dims.head_dim * elem) as f64;
        let mut ranks: Vec<Pe> = self.sharding.world().ranks().collect();
        ranks.sort_by_key(|rank| (std::cmp::Reverse(self.pairs[rank.index()].all), *rank));
        ranks.truncate(SIMULATED);
        Facts {
            heads_kv: dims.heads_kv,
            max_rows: self.sharding.max_len(),
            kv_bytes: head_bytes(self.dtype.size()),
            partial_bytes: head_bytes(self.tunables.wire.size()),
            ranks: ranks.into_iter().map(|rank| self.rank_facts(rank)).collect(),
        }
    }

    fn rank_facts(&self, reader: Pe) -> RankFacts {
        let dims = self.shape.dims();
        let per_pair = 4.0 * dims.head_dim as f64;
        let pairs = self.pairs[reader.index()];
        // Blocks are counted per mask head: an average KV head needs heads_kv / heads_mask times as many.
        let heads = dims.heads_kv as f64 / self.mask.dims().heads as f64;
        let needed = |owner| {
            let rows = self.needs.blocks(Link { owner, reader }) * NEED_ROWS;
            rows.min(self.sharding.len(owner) * dims.batch * self.mask.dims().heads) as f64 * heads
        };
        RankFacts {
            local_flops: pairs.local as f64 * per_pair,
            remote_flops: (pairs.all - pairs.local) as f64 * per_pair,
            needed: self.sharding.world().before(reader).map(needed).collect(),
        }
    }

    fn check_steps(&self) -> Result<(), Error> {
        let Choice { heads_per_piece, rows_per_piece, .. } = self.choice;
        let groups = self.shape.dims().heads_kv.div_ceil(heads_per_piece);
        let pieces = groups.saturating_mul(self.sharding.max_len().div_ceil(rows_per_piece));
        let max = Step::MAX.0 as usize;
        match pieces <= max {
            true => Ok(()),
            false => Err(Error::TooManyPieces { pieces, max }),
        }
    }
}

fn check_sizes(shape: Shape, mask: &FlashMask, sharding: &Sharding) -> Result<(), Error> {
    let (dims, mask_dims) = (shape.dims(), mask.dims());
    let sizes = [
        ("batch", (mask_dims.batch, "mask"), (dims.batch, "shape")),
        ("seq_q", (mask_dims.seq_q, "mask"), (dims.seq_q, "shape")),
        ("seq_k", (mask_dims.seq_k, "mask"), (dims.seq_k, "shape")),
        ("the number of queries", (dims.seq_q, "shape"), (dims.seq_k, "keys")),
        ("the sequence length", (sharding.seq_len(), "sharding"), (dims.seq_q, "shape")),
    ];
    for (name, (left, left_in), (right, right_in)) in sizes {
        if left != right {
            return Err(Error::SizeMismatch { name, left, left_in, right, right_in });
        }
    }
    fold::check_lengths(mask, sharding)
}

/// Every offset of a plan is below the bytes of N copies of f32 dK and dV plus the padding of their pieces.
fn check_bytes(shape: Shape, sharding: &Sharding) -> Result<(), Error> {
    let (dims, ranks) = (shape.dims(), sharding.world().size());
    let padding = ranks as u128 * ranks as u128 * u128::from(Step::MAX.0) * 2 * PLACE_ALIGN as u128;
    let elem = size_of::<f32>();
    let bytes = [dims.batch, dims.heads_kv, dims.seq_k, dims.head_dim, 2, elem, ranks]
        .into_iter()
        .try_fold(1u128, |product, size| product.checked_mul(size as u128))
        .and_then(|bytes| bytes.checked_add(padding));
    match bytes {
        Some(bytes) if bytes <= isize::MAX as u128 => Ok(()),
        _ => Err(Error::TooLarge { ranks }),
    }
}

fn wide(size: usize) -> u64 {
    size as u64
}

fn hash(words: impl IntoIterator<Item = u64>) -> u64 {
    let mut hasher = Xxh3::new();
    words.into_iter().for_each(|word| hasher.update(&word.to_le_bytes()));
    hasher.digest()
}

fn hash_mask(mask: &FlashMask) -> u64 {
    let dims = mask.dims();
    let mut hasher = Xxh3::new();
    let form = [mask.columns().count(), usize::from(mask.is_causal())];
    for size in [dims.batch, dims.heads, dims.seq_q, dims.seq_k].into_iter().chain(form) {
        hasher.update(&wide(size).to_le_bytes());
    }
    // In runs: one call per bound would cost more than the hash.
    let mut bytes = [0; 4096];
    for bounds in mask.bounds().chunks(bytes.len() / 4) {
        for (place, bound) in bytes.chunks_exact_mut(4).zip(bounds) {
            place.copy_from_slice(&bound.to_le_bytes());
        }
        hasher.update(&bytes[..4 * bounds.len()]);
    }
    hasher.digest()
}

fn tuning_words(tunables: &Tunables, choice: Choice) -> impl Iterator<Item = u64> {
    let rates = [
        tunables.link_bytes_per_s,
        tunables.push_fixed_s,
        tunables.first_push_s,
        tunables.flops_per_s,
        tunables.piece_fixed_s,
    ];
    // Forced sizes are at least 1, so 0 stands for none.
    let sizes = [
        tunables.one_piece.0,
        tunables.piece.0,
        tunables.large_piece.0,
        tunables.max_pieces as usize,
        usize::from(tunables.local_tail),
        tunables.heads_per_piece.unwrap_or(0),
        tunables.rows_per_piece.unwrap_or(0),
        choice.heads_per_piece,
        choice.rows_per_piece,
        usize::from(choice.local_tail),
        usize::from(tunables.row_chunks),
    ];
    rates.into_iter().map(f64::to_bits).chain(sizes.map(wide))
}
