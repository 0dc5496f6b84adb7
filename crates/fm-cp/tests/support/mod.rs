//! Problems, random tensors and the comparison with the f64 reference, shared by the tests.
#![allow(dead_code, clippy::unwrap_used, reason = "each test file uses a part; a test may panic")]
use fm_cp::host::HostConfig;
use fm_cp::mask::{Documents, MaskDims, MaskSpec};
use fm_cp::view::Extents;
use fm_cp::whole::{self, WholeInputs, WholeOutputs, WholeProblem};
use fm_cp::{
    Config, CpShape, DType, Element, Error, FlashMask, Options, Sharding, ShardingKind, View4, World,
};
use fm3_kernels::reference::Attention;
use fm3_kernels::{Dims, Shape};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Sizes of a problem.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    pub(crate) ranks: u32,
    pub(crate) kind: ShardingKind,
    pub(crate) seq: usize,
    pub(crate) batch: usize,
    pub(crate) heads_q: usize,
    pub(crate) heads_kv: usize,
    pub(crate) head_dim: usize,
    pub(crate) seed: u64,
}

impl Case {
    pub(crate) fn shape<T: Element>(&self) -> CpShape {
        let Case { batch, heads_q, heads_kv, head_dim, .. } = *self;
        CpShape { batch, heads_q, heads_kv, head_dim, dtype: T::DTYPE }
    }

    pub(crate) fn sharding(&self) -> Sharding {
        Sharding::new(self.kind, self.seq, World::new(self.ranks).unwrap()).unwrap()
    }

    pub(crate) fn mask_dims(&self) -> MaskDims {
        MaskDims { batch: self.batch, heads: 1, seq_q: self.seq, seq_k: self.seq }
    }

    /// The mask of this name with its default parameters over three documents (their lengths differ by batch).
    pub(crate) fn mask(&self, spec: &str) -> FlashMask {
        let spec: MaskSpec = spec.parse().unwrap();
        let lengths = (0..self.batch).map(|batch| {
            let first = self.seq / (3 + batch) + 1;
            let second = self.seq / 4 + 1;
            vec![first, second, self.seq - first - second]
        });
        let documents = Documents::new(lengths.collect(), self.seq).unwrap();
        spec.build(self.mask_dims(), &documents, self.seed).unwrap()
    }

    pub(crate) fn tensors<T: Element>(&self) -> Tensors<T> {
        let rows = self.batch * self.seq * self.head_dim;
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        let mut fill = |heads: usize| -> Vec<T> {
            // A sum of uniforms is near enough to normal.
            let mut value = || (0..4).map(|_| random.random_range(-1.0_f32..1.0)).sum::<f32>() * 0.87;
            (0..rows * heads).map(|_| T::from_f32(value())).collect()
        };
        Tensors {
            q: fill(self.heads_q),
            k: fill(self.heads_kv),
            v: fill(self.heads_kv),
            dout: fill(self.heads_q),
        }
    }
}

/// Dense [b, s, h, d].
#[derive(Clone)]
pub(crate) struct Tensors<T> {
    pub(crate) q: Vec<T>,
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
    pub(crate) dout: Vec<T>,
}

/// Runs forward and backward on host ranks.
pub(crate) fn run<T: Element>(
    case: &Case,
    mask: &FlashMask,
    config: &Config,
    host: &HostConfig,
) -> Result<WholeOutputs<T>, Error> {
    let (tensors, sharding) = (case.tensors::<T>(), case.sharding());
    let problem = WholeProblem {
        mask,
        shape: case.shape::<T>(),
        sharding: &sharding,
        options: Options::default(),
        config,
        host,
    };
    let inputs = WholeInputs { q: &tensors.q, k: &tensors.k, v: &tensors.v, dout: Some(&tensors.dout) };
    whole::run(problem, inputs)
}

/// ||x - ref|| / ||ref||; zeros must be met by zeros.
pub(crate) fn distance<T: Element>(got: &[T], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let difference: f64 =
        got.iter().zip(want).map(|(got, want)| (f64::from(got.to_f32()) - want).powi(2)).sum();
    let norm: f64 = want.iter().map(|want| want * want).sum();
    if norm == 0.0 { difference } else { (difference / norm).sqrt() }
}

/// Largest allowed errors of O and of gradients.
pub(crate) fn bounds(dtype: DType) -> (f64, f64) {
    match dtype {
        DType::F32 => (2e-6, 2e-6),
        DType::F16 => (2e-3, 3e-3),
        DType::Bf16 => (5e-3, 8e-3),
    }
}

/// Compares all outputs with the f64 reference.
#[track_caller]
pub(crate) fn check<T: Element>(case: &Case, mask: &FlashMask, outputs: &WholeOutputs<T>, what: &str) {
    let Case { batch, heads_q, heads_kv, seq, head_dim, .. } = *case;
    let shape = Shape::new(Dims { batch, heads_q, heads_kv, seq_q: seq, seq_k: seq, head_dim }).unwrap();
    let tensors = case.tensors::<T>();
    let extents = |heads| Extents { batch, seq, heads, head_dim };
    let reference = Attention {
        shape,
        mask,
        scale: shape.default_scale(),
        q: View4::bshd(&tensors.q, extents(heads_q)).unwrap(),
        k: View4::bshd(&tensors.k, extents(heads_kv)).unwrap(),
        v: View4::bshd(&tensors.v, extents(heads_kv)).unwrap(),
    };
    let dout = View4::bshd(&tensors.dout, extents(heads_q)).unwrap();
    let output = reference.forward();
    let gradients = reference.backward(&output, &dout);
    let got = outputs.gradients.as_ref().unwrap();
    let (for_o, for_gradients) = bounds(T::DTYPE);
    for (name, error, bound) in [
        ("o", distance(&outputs.o, &output.o), for_o),
        ("dq", distance(&got.dq, &gradients.dq), for_gradients),
        ("dk", distance(&got.dk, &gradients.dk), for_gradients),
        ("dv", distance(&got.dv, &gradients.dv), for_gradients),
    ] {
        assert!(error <= bound, "{what}: {name} is off by {error:.2e}, bound {bound:.0e}; {case:?}");
    }
    for (index, (got, want)) in outputs.lse.iter().zip(&output.lse).enumerate() {
        let near = f64::from(*got) == *want || (f64::from(*got) - want).abs() <= 1e-5 * (1.0 + want.abs());
        assert!(near, "{what}: lse[{index}] = {got}, expected {want}; {case:?}");
    }
}

/// All bits of a run's outputs.
pub(crate) fn bits<T: Element>(outputs: &WholeOutputs<T>) -> Vec<u32> {
    let grads = outputs.gradients.as_ref().unwrap();
    let tensors = [&outputs.o, &grads.dq, &grads.dk, &grads.dv];
    let elements = tensors.into_iter().flatten().map(|value| value.to_f32().to_bits());
    elements.chain(outputs.lse.iter().map(|lse| lse.to_bits())).collect()
}
