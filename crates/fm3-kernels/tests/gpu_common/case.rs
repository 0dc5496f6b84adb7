//! A problem: sizes, mask, data, and how its tensors lie in memory.
use std::fmt;

use fm3_kernels::mask::{FlashMask, KeySegments, MaskDims};
use fm3_kernels::view::{Extents, Strides};
use fm3_kernels::{Dims, Element};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Distribution of Q, K, V.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Data {
    /// Standard normal.
    Normal,
    /// One in a thousand has a deviation of 10 more (Shah et al., "FlashAttention-3", section 4.3).
    Outliers,
    /// Q is 8 times as large: softmax is nearly a maximum.
    Peaky,
    /// V is 1 everywhere: so is O.
    Ones,
}

/// How Q, K, V and O lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layout {
    Bshd,
    Bhsd,
    /// Rows of [q heads, k heads, v heads] in one buffer; needs sq = sk.
    Packed,
    /// [b, s, h, d] with 3 heads of nothing behind each row.
    Gaps,
}

/// Keys as segments in several tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct Segmented {
    /// Rows of each; at most four distinct numbers.
    pub rows: Vec<usize>,
    pub heads_per_group: usize,
}

#[derive(Clone, Debug)]
pub struct Case {
    pub name: String,
    pub dims: Dims,
    /// Of batch 1, for all sequences, or of the problem's batch.
    pub mask: FlashMask,
    pub data: Data,
    pub layout: Layout,
    pub segmented: Option<Segmented>,
    pub margin: usize,
    pub section_heads: Option<usize>,
    /// Of the backward pass.
    pub deterministic: bool,
    /// Of the backward pass.
    pub head_parts: Option<usize>,
    pub seed: u64,
}

impl Case {
    /// Dense tensors, normal data, keys in one piece.
    pub fn new(name: impl Into<String>, dims: Dims, mask: FlashMask, seed: u64) -> Self {
        Self {
            name: name.into(),
            dims,
            mask,
            data: Data::Normal,
            layout: Layout::Bshd,
            segmented: None,
            margin: 0,
            section_heads: None,
            deterministic: false,
            head_parts: None,
            seed,
        }
    }

    pub fn scale(&self) -> f32 {
        1.0 / 128_f32.sqrt()
    }

    pub fn queries(&self) -> Extents {
        let Dims { batch, heads_q, seq_q, head_dim, .. } = self.dims;
        Extents { batch, seq: seq_q, heads: heads_q, head_dim }
    }

    pub fn keys(&self) -> Extents {
        let Dims { batch, heads_kv, seq_k, head_dim, .. } = self.dims;
        Extents { batch, seq: seq_k, heads: heads_kv, head_dim }
    }

    pub fn segments(&self) -> KeySegments {
        let rows = self.segmented.as_ref().map_or_else(|| vec![self.dims.seq_k], |all| all.rows.clone());
        KeySegments::new(rows).unwrap()
    }

    /// The mask with a batch of its own, as the reference reads it.
    pub fn full_mask(&self) -> FlashMask {
        let dims = MaskDims { batch: self.dims.batch, ..self.mask.dims() };
        let bounds = self.mask.bounds().repeat(dims.batch / self.mask.dims().batch);
        FlashMask::new(dims, self.mask.columns(), self.mask.is_causal(), bounds).unwrap()
    }

    /// Dense [b, s, h, d].
    pub fn tensors<T: Element>(&self) -> Tensors<T> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let mut make = |extents, factor| -> Vec<T> {
            let value = || T::from_f32(factor * draw(&mut rng, self.data));
            std::iter::repeat_with(value).take(count(extents)).collect()
        };
        let q = make(self.queries(), if self.data == Data::Peaky { 8.0 } else { 1.0 });
        let k = make(self.keys(), 1.0);
        let mut v = make(self.keys(), 1.0);
        if self.data == Data::Ones {
            v.fill(T::from_f32(1.0));
        }
        Tensors { q, k, v }
    }
}

/// Inputs, dense [b, s, h, d].
#[derive(Clone, Debug)]
pub struct Tensors<T> {
    pub q: Vec<T>,
    pub k: Vec<T>,
    pub v: Vec<T>,
}

/// Outputs: O dense [b, s, h, d], LSE [b, hq, sq].
#[derive(Clone, Debug)]
pub struct Outputs<T> {
    pub o: Vec<T>,
    pub lse: Vec<f32>,
}

impl<T: Element> Outputs<T> {
    pub fn bits(&self) -> Vec<u32> {
        let o = self.o.iter().map(|value| value.to_f32().to_bits());
        o.chain(self.lse.iter().map(|lse| lse.to_bits())).collect()
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Dims { batch, heads_q, heads_kv, seq_q, seq_k, .. } = self.dims;
        let (mask, columns, causal) = (self.mask.dims(), self.mask.columns(), self.mask.is_causal());
        write!(
            f,
            "{} b {batch} h {heads_q}/{heads_kv} s {seq_q}x{seq_k} mask {}x{} C {columns:?} causal {causal} {:?} {:?}",
            self.name, mask.batch, mask.heads, self.layout, self.data
        )?;
        if let Some(segmented) = &self.segmented {
            write!(f, " {segmented:?}")?;
        }
        if let Some(parts) = self.head_parts {
            write!(f, " head parts {parts}")?;
        }
        write!(f, " margin {} section {:?} seed {}", self.margin, self.section_heads, self.seed)
    }
}

impl Layout {
    /// Strides, and the buffer's length, for a tensor of its own.
    pub fn strides(self, extents: Extents) -> (Strides, usize) {
        let Extents { batch, seq, heads, head_dim } = extents;
        match self {
            Layout::Bshd | Layout::Packed => (Strides::bshd(extents), count(extents)),
            Layout::Bhsd => (Strides::bhsd(extents), count(extents)),
            Layout::Gaps => {
                let row = (heads + 3) * head_dim;
                (Strides { batch: seq * row, seq: row, heads: head_dim }, batch * seq * row)
            }
        }
    }
}

/// Places of all elements in a buffer, in the order of dense [b, s, h, d].
pub fn places(extents: Extents, strides: Strides) -> impl Iterator<Item = usize> {
    let Extents { batch, seq, heads, head_dim } = extents;
    let rows = (0..batch * seq * heads).map(move |row| (row / heads / seq, row / heads % seq, row % heads));
    rows.flat_map(move |(b, s, h)| {
        let start = b * strides.batch + s * strides.seq + h * strides.heads;
        start..start + head_dim
    })
}

pub fn count(extents: Extents) -> usize {
    extents.batch * extents.seq * extents.heads * extents.head_dim
}

fn draw(rng: &mut impl Rng, data: Data) -> f32 {
    let value = normal(rng);
    if data == Data::Outliers && rng.random_range(0..1000) == 0 { value + 10.0 * normal(rng) } else { value }
}

/// The sum of four uniform numbers, scaled to deviation 1: bounded, which the outliers are for.
pub fn normal(rng: &mut impl Rng) -> f32 {
    ((0..4).map(|_| rng.random::<f32>()).sum::<f32>() - 2.0) * 3_f32.sqrt()
}
