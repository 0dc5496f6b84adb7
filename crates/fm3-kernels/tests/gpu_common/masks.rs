//! Random masks that give every class of block.
use fm3_kernels::FlashMask;
use fm3_kernels::mask::{Columns, Documents, MaskDims, MaskSpec};
use rand::{Rng, RngExt};

/// Bounds drawn anew every so many columns, often at tile edges, past the end, or empty the wrong way round.
pub fn raw(dims: MaskDims, rng: &mut impl Rng) -> FlashMask {
    let forms = [(Columns::One, true), (Columns::Two, true), (Columns::Two, false), (Columns::Four, false)];
    let (columns, causal) = forms[rng.random_range(0..forms.len())];
    let run = [1, 7, 64, 128, 300, 5000][rng.random_range(0..6)];
    let rows = i32::try_from(dims.seq_q).unwrap();
    let edges = [0, 1, 63, 64, 127, 128, 129, 256, rows, rows + 3, i32::MAX];
    let mut bounds: Vec<i32> = Vec::new();
    let mut last = Vec::new();
    for column in 0..dims.batch * dims.heads * dims.seq_k {
        if column % run == 0 {
            let mut bound = || match rng.random_range(0..3) {
                0 => edges[rng.random_range(0..edges.len())],
                _ => rng.random_range(0..=rows + rows / 8),
            };
            last = (0..columns.count()).map(|_| bound()).collect();
        }
        bounds.extend(&last);
    }
    FlashMask::new(dims, columns, causal, bounds).unwrap()
}

/// A mask by name, with random documents where it takes any.
pub fn named(name: &str, dims: MaskDims, longest: usize, rng: &mut impl Rng) -> FlashMask {
    let lengths = (0..dims.batch).map(|_| cut(dims.seq_k, longest, rng)).collect();
    let documents = Documents::new(lengths, dims.seq_k).unwrap();
    name.parse::<MaskSpec>().unwrap().build(dims, &documents, rng.random()).unwrap()
}

/// Lengths from 1 to `longest` that sum to `rest`.
fn cut(mut rest: usize, longest: usize, rng: &mut impl Rng) -> Vec<usize> {
    let mut lengths = Vec::new();
    while rest > 0 {
        let length = rng.random_range(1..=rest.min(longest));
        lengths.push(length);
        rest -= length;
    }
    lengths
}
