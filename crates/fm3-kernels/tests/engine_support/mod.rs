//! What the engine's tests share: random problems, and three ways to compute them.
#![allow(dead_code, reason = "each test file uses its own part")]
pub(crate) mod masks;
pub(crate) mod plain;

use fm3_kernels::cpu::{self, Grads, Keys, Problem, Saved};
use fm3_kernels::mask::FlashMask;
use fm3_kernels::reference::Attention;
use fm3_kernels::view::Extents;
use fm3_kernels::{Dims, Element, Shape, View4, View4Mut};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Sizes, mask and scale of a problem.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) dims: Dims,
    pub(crate) mask: FlashMask,
    pub(crate) scale: f32,
    pub(crate) seed: u64,
}

/// Dense [b, s, h, d] inputs.
pub(crate) struct Tensors<T> {
    pub(crate) q: Vec<T>,
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
    pub(crate) dout: Vec<T>,
}

/// Everything that attention yields, in f64; O and gradients dense [b, s, h, d], LSE [b, hq, sq].
pub(crate) struct Results {
    pub(crate) o: Vec<f64>,
    pub(crate) lse: Vec<f64>,
    pub(crate) dq: Vec<f64>,
    pub(crate) dk: Vec<f64>,
    pub(crate) dv: Vec<f64>,
}

/// The same in the types in which the engine writes it.
#[derive(Debug, PartialEq)]
pub(crate) struct Written<T> {
    pub(crate) o: Vec<T>,
    pub(crate) lse: Vec<f32>,
    pub(crate) dq: Vec<T>,
    pub(crate) dk: Vec<T>,
    pub(crate) dv: Vec<T>,
}

impl Case {
    pub(crate) fn shape(&self) -> Shape {
        Shape::new(self.dims).unwrap()
    }

    pub(crate) fn queries(&self) -> Extents {
        let Dims { batch, heads_q, seq_q, head_dim, .. } = self.dims;
        Extents { batch, seq: seq_q, heads: heads_q, head_dim }
    }

    pub(crate) fn keys(&self) -> Extents {
        let Dims { batch, heads_kv, seq_k, head_dim, .. } = self.dims;
        Extents { batch, seq: seq_k, heads: heads_kv, head_dim }
    }

    pub(crate) fn tensors<T: Element>(&self) -> Tensors<T> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let (queries, keys) = (count(self.queries()), count(self.keys()));
        let mut make = |len| (0..len).map(|_| T::from_f32(normal(&mut rng))).collect();
        Tensors { q: make(queries), k: make(keys), v: make(keys), dout: make(queries) }
    }

    pub(crate) fn problem<'a, T: Element>(&'a self, q: View4<'a, T>) -> Problem<'a, T> {
        Problem { shape: self.shape(), mask: &self.mask, scale: self.scale, q }
    }

    /// The engine, whole problems on dense tensors.
    pub(crate) fn engine<T: Element>(&self, tensors: &Tensors<T>) -> Written<T> {
        let (queries, keys) = (self.queries(), self.keys());
        let view = |data, extents| View4::bshd(data, extents).unwrap();
        let problem = self.problem(view(&tensors.q, queries));
        let pieces =
            Keys { k: view(&tensors.k, keys), v: view(&tensors.v, keys), first_column: 0, first_head: 0 };
        let mut out = Written::poisoned(self);
        let mut o = View4Mut::bshd(&mut out.o, queries).unwrap();
        cpu::forward(problem, &pieces, &mut o, &mut out.lse).unwrap();
        let saved = Saved { o: view(&out.o, queries), dout: view(&tensors.dout, queries), lse: &out.lse };
        let grads = Grads {
            dq: View4Mut::bshd(&mut out.dq, queries).unwrap(),
            dk: View4Mut::bshd(&mut out.dk, keys).unwrap(),
            dv: View4Mut::bshd(&mut out.dv, keys).unwrap(),
        };
        cpu::backward(problem, &pieces, saved, grads).unwrap();
        out
    }

    pub(crate) fn attention<'a, T: Element>(&'a self, tensors: &'a Tensors<T>) -> Attention<'a, T> {
        Attention {
            shape: self.shape(),
            mask: &self.mask,
            scale: self.scale,
            q: View4::bshd(&tensors.q, self.queries()).unwrap(),
            k: View4::bshd(&tensors.k, self.keys()).unwrap(),
            v: View4::bshd(&tensors.v, self.keys()).unwrap(),
        }
    }

    /// The f64 reference.
    pub(crate) fn exact<T: Element>(&self, tensors: &Tensors<T>) -> Results {
        let attention = self.attention(tensors);
        let output = attention.forward();
        let dout = View4::bshd(&tensors.dout, self.queries()).unwrap();
        let grads = attention.backward(&output, &dout);
        Results { o: output.o, lse: output.lse, dq: grads.dq, dk: grads.dk, dv: grads.dv }
    }
}

impl<T: Element> Written<T> {
    /// Right sizes, full of NaN: whatever is not written shows.
    pub(crate) fn poisoned(case: &Case) -> Self {
        let nan = |extents| vec![T::from_f32(f32::NAN); count(extents)];
        let queries = case.queries();
        let lse = vec![f32::NAN; queries.batch * queries.heads * queries.seq];
        let (keys, queries) = (case.keys(), case.queries());
        Self { o: nan(queries), lse, dq: nan(queries), dk: nan(keys), dv: nan(keys) }
    }

    pub(crate) fn widened(&self) -> Results {
        let wide = |data: &[T]| data.iter().map(|value| f64::from(value.to_f32())).collect();
        Results {
            o: wide(&self.o),
            lse: self.lse.iter().map(|lse| f64::from(*lse)).collect(),
            dq: wide(&self.dq),
            dk: wide(&self.dk),
            dv: wide(&self.dv),
        }
    }

    /// All bits, so that NaN and the sign of zero count.
    pub(crate) fn bits(&self) -> Vec<u32> {
        let tensors = [&self.o, &self.dq, &self.dk, &self.dv];
        let elements = tensors.into_iter().flatten().map(|value| value.to_f32().to_bits());
        elements.chain(self.lse.iter().map(|lse| lse.to_bits())).collect()
    }
}

/// ||got - want|| / ||want||; infinite when only `want` is all zero, NaN when `got` holds one.
pub(crate) fn rel_err(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(want).map(|(got, want)| got - want));
    if difference == 0.0 { 0.0 } else { difference / norm(&mut want.iter().copied()) }
}

/// Largest |got - want|; rows that are -inf must be so in both.
pub(crate) fn lse_err(got: &[f64], want: &[f64]) -> f64 {
    let differences = got
        .iter()
        .zip(want)
        .map(|(got, want)| if *want == f64::NEG_INFINITY && got == want { 0.0 } else { (got - want).abs() });
    // `f64::max` drops NaN; this does not.
    differences.fold(0.0, |max, x| if x <= max { max } else { x })
}

pub(crate) fn count(extents: Extents) -> usize {
    extents.batch * extents.seq * extents.heads * extents.head_dim
}

/// Standard normal by the sum of twelve uniform numbers: enough for test data.
fn normal(rng: &mut impl Rng) -> f32 {
    (0..12).map(|_| rng.random::<f32>()).sum::<f32>() - 6.0
}
