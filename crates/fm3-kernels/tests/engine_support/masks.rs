//! Random masks of every form and name.
use fm3_kernels::FlashMask;
use fm3_kernels::mask::{Columns, Documents, MaskDims, MaskSpec};
use rand::{Rng, RngExt};

/// Every form with bounds drawn anew after each run of `run` columns: short runs give partial tiles, long ones
/// full and skipped tiles.
pub(crate) fn raw(dims: MaskDims, run: usize, rng: &mut impl Rng) -> FlashMask {
    let forms = [(Columns::One, true), (Columns::Two, true), (Columns::Two, false), (Columns::Four, false)];
    let (columns, causal) = forms[rng.random_range(0..forms.len())];
    let total = dims.batch * dims.heads * dims.seq_k;
    let limit = i32::try_from(dims.seq_q).unwrap() + 3;
    let mut bounds = Vec::new();
    let mut last = Vec::new();
    for column in 0..total {
        if column % run == 0 {
            last = (0..columns.count()).map(|_| rng.random_range(0..limit)).collect();
        }
        bounds.extend_from_slice(&last);
    }
    FlashMask::new(dims, columns, causal, bounds).unwrap()
}

/// A mask by name with default parameters and random documents.
pub(crate) fn named(name: &str, dims: MaskDims, rng: &mut impl Rng) -> FlashMask {
    let lengths = (0..dims.batch).map(|_| cut(dims.seq_k, rng)).collect();
    let documents = Documents::new(lengths, dims.seq_k).unwrap();
    name.parse::<MaskSpec>().unwrap().build(dims, &documents, rng.random()).unwrap()
}

fn cut(mut rest: usize, rng: &mut impl Rng) -> Vec<usize> {
    let mut lengths = Vec::new();
    while rest > 0 {
        let length = rng.random_range(1..=rest.min(150));
        lengths.push(length);
        rest -= length;
    }
    lengths
}
