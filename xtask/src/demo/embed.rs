//! Bytes become Q, K, V and dO: seeded embeddings, seeded projections, rotary positions.
//!
//! A row sees its own byte and the one before it in its document, so equal bytes still have many keys and values.
//! Entries of Q, K, V have variance about 1, hence scores q k / sqrt(d) too. Rotary positions count from the start of
//! the sequence, which is what a sharding's positions give; scores depend on differences of positions only, so
//! inside a document it makes no difference. Same seed, same bits on every platform and for any thread count: the
//! generator is ChaCha8, the elementary functions are libm's, every sum has one order.
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;

use super::corpus::Sequence;

/// Elements of an embedding, before it is projected to heads.
const MODEL_DIM: usize = 64;
/// Values of a byte.
const BYTES: usize = 256;
/// Base of the rotary frequencies, base^(-2 i / d) (RoFormer, arXiv 2104.09864, section 3.2.2).
const ROTARY_BASE: f64 = 10_000.0;

/// What to make of the text.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EmbedSpec {
    /// Query heads.
    pub heads_q: usize,
    /// KV heads.
    pub heads_kv: usize,
    /// Elements per head; even.
    pub head_dim: usize,
    /// Changes every number.
    pub seed: u64,
}

/// Inputs of one forward and backward pass, dense.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensors {
    /// [b, s, hq, d], rotated.
    pub q: Vec<f32>,
    /// [b, s, hkv, d], rotated.
    pub k: Vec<f32>,
    /// [b, s, hkv, d].
    pub v: Vec<f32>,
    /// Gradient of O, standard normal, [b, s, hq, d].
    pub dout: Vec<f32>,
}

/// Makes the inputs of all sequences, which have one length.
pub(crate) fn embed(sequences: &[Sequence], spec: EmbedSpec) -> Tensors {
    let rows: Vec<Row> = sequences.iter().flat_map(rows_of).collect();
    let seq_len = sequences.iter().map(|sequence| sequence.bytes.len()).max().unwrap_or(0);
    let rotary = Rotary::new(seq_len, spec.head_dim);
    let (width_q, width_kv) = (spec.heads_q * spec.head_dim, spec.heads_kv * spec.head_dim);
    let [query, key, value] = [(Stream::Wq, width_q), (Stream::Wk, width_kv), (Stream::Wv, width_kv)]
        .map(|(stream, width)| Projected::new(stream, width, spec.seed));

    let mut tensors = Tensors {
        q: vec![0.0; rows.len() * width_q],
        k: vec![0.0; rows.len() * width_kv],
        v: vec![0.0; rows.len() * width_kv],
        dout: vec![0.0; rows.len() * width_q],
    };
    let outputs = tensors.q.par_chunks_mut(width_q).zip(tensors.k.par_chunks_mut(width_kv));
    let outputs = outputs.zip(tensors.v.par_chunks_mut(width_kv)).zip(tensors.dout.par_chunks_mut(width_q));
    outputs.zip(&rows).enumerate().for_each(|(index, ((((q, k), v), dout), row))| {
        query.write(*row, q);
        rotary.turn(row.position, q);
        key.write(*row, k);
        rotary.turn(row.position, k);
        value.write(*row, v);
        Normal::new(spec.seed, Stream::Dout, index as u64).fill(dout);
    });
    tensors
}

/// All that a row's embedding depends on.
#[derive(Clone, Copy, Debug)]
struct Row {
    byte: u8,
    /// The byte before it in its document.
    before: Option<u8>,
    position: usize,
}

fn rows_of(sequence: &Sequence) -> impl Iterator<Item = Row> + '_ {
    let starts = sequence.document_lengths.iter().scan(0, |at, length| {
        let start = *at;
        *at += length;
        Some(start..*at)
    });
    starts.flat_map(move |document| {
        let first = document.start;
        document.map(move |position| Row {
            byte: sequence.bytes[position],
            before: (position > first).then(|| sequence.bytes[position - 1]),
            position,
        })
    })
}

/// Embeddings times a projection: since there are only 256 bytes, one row per byte is all of it.
struct Projected {
    width: usize,
    /// [256, width] for the row's own byte.
    own: Vec<f32>,
    /// [256, width] for the byte before it.
    before: Vec<f32>,
}

impl Projected {
    fn new(weights: Stream, width: usize, seed: u64) -> Self {
        // Half of the variance comes from each of the two bytes; a sum over MODEL_DIM terms has MODEL_DIM times theirs.
        let scale = 1.0 / libm::sqrtf(2.0 * MODEL_DIM as f32);
        let mut weight = vec![0.0; MODEL_DIM * width];
        Normal::new(seed, weights, 0).fill(&mut weight);
        let project = |stream| {
            let mut embedding = vec![0.0; BYTES * MODEL_DIM];
            Normal::new(seed, stream, 0).fill(&mut embedding);
            multiply(&embedding, &weight, width, scale)
        };
        Self { width, own: project(Stream::Own), before: project(Stream::Before) }
    }

    fn write(&self, row: Row, out: &mut [f32]) {
        let of = |table: &[f32], byte: u8| -> std::ops::Range<usize> {
            let start = usize::from(byte) * self.width;
            debug_assert!(start + self.width <= table.len());
            start..start + self.width
        };
        out.copy_from_slice(&self.own[of(&self.own, row.byte)]);
        if let Some(before) = row.before {
            for (sum, term) in out.iter_mut().zip(&self.before[of(&self.before, before)]) {
                *sum += term;
            }
        }
    }
}

/// `scale * embedding * weight` for embedding [256, MODEL_DIM], weight [MODEL_DIM, width].
fn multiply(embedding: &[f32], weight: &[f32], width: usize, scale: f32) -> Vec<f32> {
    let mut product = vec![0.0; BYTES * width];
    product.par_chunks_mut(width).zip(embedding.par_chunks(MODEL_DIM)).for_each(|(out, embedding)| {
        for (factor, weights) in embedding.iter().zip(weight.chunks(width)) {
            let factor = factor * scale;
            for (sum, weight) in out.iter_mut().zip(weights) {
                *sum += factor * weight;
            }
        }
    });
    product
}

/// Cosines and sines of all positions.
struct Rotary {
    half: usize,
    /// [s, d / 2] of (cos, sin).
    turns: Vec<(f32, f32)>,
}

impl Rotary {
    fn new(seq_len: usize, head_dim: usize) -> Self {
        let half = head_dim / 2;
        let exponent = |i: usize| -2.0 * i as f64 / head_dim as f64;
        let frequencies: Vec<f64> = (0..half).map(|i| libm::pow(ROTARY_BASE, exponent(i))).collect();
        let mut turns = vec![(1.0, 0.0); seq_len * half];
        turns.par_chunks_mut(half.max(1)).enumerate().for_each(|(position, turns)| {
            for (turn, frequency) in turns.iter_mut().zip(&frequencies) {
                let (sin, cos) = libm::sincos(position as f64 * frequency);
                *turn = (round(cos), round(sin));
            }
        });
        Self { half, turns }
    }

    /// Turns the pairs (i, i + d / 2) of every head in `row` [h, d].
    fn turn(&self, position: usize, row: &mut [f32]) {
        let turns = &self.turns[position * self.half..(position + 1) * self.half];
        for head in row.chunks_mut(2 * self.half) {
            let (low, high) = head.split_at_mut(self.half);
            for ((x, y), (cos, sin)) in low.iter_mut().zip(high).zip(turns) {
                (*x, *y) = (*x * cos - *y * sin, *x * sin + *y * cos);
            }
        }
    }
}

/// Sources of randomness that must not share numbers.
#[derive(Clone, Copy, Debug)]
enum Stream {
    Own,
    Before,
    Wq,
    Wk,
    Wv,
    Dout,
}

/// Standard normal numbers by Box and Muller's method (Ann. Math. Stat. 29, 1958, p. 610).
struct Normal(ChaCha8Rng);

impl Normal {
    /// `index` picks one of 2^32 sequences of a stream.
    fn new(seed: u64, stream: Stream, index: u64) -> Self {
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(((stream as u64) << 32) | index);
        Self(generator)
    }

    fn fill(&mut self, out: &mut [f32]) {
        for pair in out.chunks_mut(2) {
            // 1 - u lies in (0, 1], so the logarithm is finite.
            let radius = libm::sqrt(-2.0 * libm::log(1.0 - self.uniform()));
            let (sin, cos) = libm::sincos(std::f64::consts::TAU * self.uniform());
            for (value, turn) in pair.iter_mut().zip([cos, sin]) {
                *value = round(radius * turn);
            }
        }
    }

    /// Uniform in [0, 1), a multiple of 2^-53.
    fn uniform(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

fn round(value: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the purpose")]
    let rounded = value as f32;
    rounded
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPEC: EmbedSpec = EmbedSpec { heads_q: 4, heads_kv: 2, head_dim: 64, seed: 7 };

    fn text(lengths: &[usize]) -> Sequence {
        let rows = lengths.iter().sum();
        let bytes = (0..rows).map(|at| b"the quick brown fox"[at % 19]).collect();
        Sequence { bytes, document_lengths: lengths.to_vec() }
    }

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
        (mean, values.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n)
    }

    #[test]
    fn same_bits_for_any_thread_count_and_other_bits_for_another_seed() {
        let sequences = [text(&[100, 157]), text(&[257])];
        let wide = embed(&sequences, SPEC);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(pool.install(|| embed(&sequences, SPEC)), wide);
        let other = embed(&sequences, EmbedSpec { seed: 8, ..SPEC });
        assert!(other.q != wide.q && other.k != wide.k && other.v != wide.v && other.dout != wide.dout);
    }

    #[test]
    fn the_bits_are_these_on_every_platform() {
        let tensors = embed(&[text(&[40])], SPEC);
        let bits = |values: &[f32]| {
            values.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, x| {
                (hash ^ u64::from(x.to_bits())).wrapping_mul(0x0100_0000_01b3)
            })
        };
        let found = [&tensors.q, &tensors.k, &tensors.v, &tensors.dout].map(|values| bits(values));
        let pinned =
            [0xa1c3_dd81_ce60_4962, 0x6ca7_6458_47c8_5924, 0xa04e_06b5_ebb2_06c8, 0xc86d_5c86_6a38_bc54];
        assert_eq!(found, pinned, "{found:#x?}");
    }

    #[test]
    fn numbers_have_the_promised_spread() {
        let mut generator = ChaCha8Rng::seed_from_u64(3);
        let bytes: Vec<u8> = (0..2048).map(|_| generator.next_u32().to_le_bytes()[0]).collect();
        let tensors = embed(&[Sequence { bytes, document_lengths: vec![2048] }], SPEC);
        for values in [&tensors.q, &tensors.k, &tensors.v] {
            let (mean, variance) = moments(values);
            assert!(mean.abs() < 0.1 && (0.8..1.2).contains(&variance), "{mean} {variance}");
        }
        // 2048 x 256 independent numbers: standard errors are 0.0014 and 0.002.
        let (mean, variance) = moments(&tensors.dout);
        assert!(mean.abs() < 0.007 && (variance - 1.0).abs() < 0.01, "{mean} {variance}");
        let scores: Vec<f32> =
            (0..2048).map(|row| dot(&tensors.q[row * 256..][..64], &tensors.k[..64]) / 8.0).collect();
        assert!((0.3..3.0).contains(&moments(&scores).1), "scores are of order 1");
    }

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(x, y)| x * y).sum()
    }

    #[test]
    fn scores_depend_on_differences_of_positions_only() {
        // The same document twice: rows 10, 3 and rows 50 + 10, 50 + 3 have the same score, up to rounding.
        let document: Vec<u8> = b"the quick brown fox jumps over the lazy dog again."[..50].to_vec();
        let sequence = Sequence { bytes: document.repeat(2), document_lengths: vec![50, 50] };
        let tensors = embed(&[sequence], SPEC);
        let score =
            |row: usize, key: usize| dot(&tensors.q[row * 256..][..64], &tensors.k[key * 128..][..64]);
        assert!((score(10, 3) - score(60, 53)).abs() < 1e-3);
        assert!((score(10, 3) - score(60, 3)).abs() > 1e-3, "and they do depend on them");
        assert_eq!(tensors.v[..128], tensors.v[50 * 128..51 * 128], "a document starts afresh");
        assert_ne!(tensors.v[..128], tensors.v[31 * 128..32 * 128], "'t' after a blank is another row");
    }
}
