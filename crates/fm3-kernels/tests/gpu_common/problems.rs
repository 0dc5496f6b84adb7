//! Problems that forward and backward both solve.
use fm3_kernels::mask::{Columns, MaskDims, MaskSpec};
use fm3_kernels::{Dims, FlashMask};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Case, masks};

/// `heads` are query and KV heads, `lengths` query and key rows.
pub fn dims(batch: usize, heads: [usize; 2], lengths: [usize; 2]) -> Dims {
    let ([heads_q, heads_kv], [seq_q, seq_k]) = (heads, lengths);
    Dims { batch, heads_q, heads_kv, seq_q, seq_k, head_dim: 128 }
}

/// Of a mask that all heads and sequences share.
pub fn shared(dims: Dims) -> MaskDims {
    MaskDims { batch: 1, heads: 1, seq_q: dims.seq_q, seq_k: dims.seq_k }
}

/// Bounds of all columns from one function of the column.
pub fn columns<const N: usize>(dims: Dims, of: impl Fn(i32) -> [i32; N]) -> FlashMask {
    let bounds = (0..i32::try_from(dims.seq_k).unwrap()).flat_map(of).collect();
    FlashMask::new(shared(dims), Columns::from_count(N).unwrap(), N == 1, bounds).unwrap()
}

/// All masks that have names, over lengths and longest documents, with 1, 2 and 4 heads.
pub fn named(sizes: [(usize, usize); 3]) -> Vec<Case> {
    let mut cases = Vec::new();
    for (seed, name) in (0..).zip(MaskSpec::NAMES) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for (seq, longest) in sizes {
            for heads in [1, 2, 4] {
                let dims = dims(2, [4, 2], [seq, seq]);
                let mask_dims = MaskDims { batch: 2, heads, ..shared(dims) };
                cases.push(Case::new(name, dims, masks::named(name, mask_dims, longest, &mut rng), seed));
            }
        }
    }
    cases
}

/// A random mask of any form over random sizes; often on few multiprocessors, which then take many tiles each.
pub fn raw(seed: u64) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut pick = |of: &[usize]| of[rng.random_range(0..of.len())];
    let lengths = [pick(&[1, 65, 128, 200, 383, 640]), pick(&[3, 127, 130, 256, 390, 700])];
    let (batch, kv, group) = (pick(&[1, 1, 2, 3]), pick(&[1, 2]), pick(&[1, 2, 3, 4]));
    let dims = dims(batch, [kv * group, kv], lengths);
    let divisors: Vec<usize> = (1..=kv * group).filter(|h| (kv * group).is_multiple_of(*h)).collect();
    let (mask_batch, heads) = (pick(&[1, batch]), pick(&divisors));
    let margin = pick(&[0, 0, 100, 131]);
    let mask = masks::raw(MaskDims { batch: mask_batch, heads, ..shared(dims) }, &mut rng);
    Case { margin, ..Case::new("raw", dims, mask, seed) }
}
