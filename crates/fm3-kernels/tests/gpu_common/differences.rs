//! Gradients by their definition: how the loss sum(dO * O) of f64 attention changes with one number of Q, K or V.
use fm3_kernels::reference::Attention;
use fm3_kernels::view::Extents;
use fm3_kernels::{Dims, Element, FlashMask, Shape, View4};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::case::{Case, Tensors};
use super::gradients::{Errors, Grads, Part, dout};

/// Numbers of each tensor that are changed.
const COORDINATES: usize = 60;

/// Added and taken away. 16-bit numbers between 2^-34 and 64 stay exact in f32 with it. About the cube root of f64's
/// 2^-53, so that both errors of a central difference are small (Press et al., "Numerical Recipes", section 5.7).
const STEP: f32 = 1.0 / 131_072.0;

/// Errors of a difference. O is a sum of at most 200 products, below 4: sqrt(200) * 2^-53 = 2e-15 or less in each of
/// 150 * 2 * 128 terms of the loss, of random sign 4e-13 in all, over 2 * STEP 3e-8; three times that. The third
/// derivative, (0.09 * |k|)^3 dP < 1, leaves STEP^2 / 6 = 1e-11. The kernels' smallest bound is 1e-5.
const NOISE: f64 = 1e-7;

/// Compares gradients of one problem, each of `all`, with differences: by the rule of `check_gradients`, with the plain
/// implementation's errors at the same places.
pub fn check_differences<T: Element>(
    case: &Case,
    tensors: &Tensors<T>,
    all: &[Grads<T>],
) -> Result<(), String> {
    let Dims { batch, heads_kv, .. } = case.dims;
    assert_eq!((batch, heads_kv), (1, 1), "one KV head is the whole problem");
    let part = Part::new(case, (tensors, &dout::<T>(case)), (0, 0));
    let (exact, plain) = (part.exact(), part.plain());
    let mut loss = Loss::new(&part);
    let mut rng = ChaCha8Rng::seed_from_u64(case.seed ^ 0xFD);
    let wanted = [("dQ", &exact.dq, &plain.dq), ("dK", &exact.dk, &plain.dk), ("dV", &exact.dv, &plain.dv)];
    for (which, (name, exact, plain)) in wanted.into_iter().enumerate() {
        let mut errors: Vec<Errors> = all.iter().map(|_| Errors::new(name)).collect();
        for _ in 0..COORDINATES {
            let index = rng.random_range(0..exact.len());
            let slope = loss.slope(which, index);
            if (slope - exact[index]).abs() > NOISE {
                return Err(format!("{name} {index}: difference {slope}, reference {}", exact[index]));
            }
            for (errors, grads) in errors.iter_mut().zip(all) {
                let got = f64::from([&grads.dq, &grads.dk, &grads.dv][which][index].to_f32());
                errors.add_one([got, slope, plain[index]], ((0, 0), index));
            }
        }
        errors.into_iter().try_for_each(|errors| errors.verdict(T::DTYPE, case.data))?;
    }
    Ok(())
}

/// sum(dO * O) as a function of Q, K and V, which are f32 so that a step fits between 16-bit numbers.
struct Loss<'a> {
    shape: Shape,
    mask: &'a FlashMask,
    scale: f32,
    /// Q, K, V.
    inputs: [Vec<f32>; 3],
    dout: Vec<f32>,
}

impl<'a> Loss<'a> {
    fn new<T: Element>(part: &'a Part<T>) -> Self {
        let wide = |data: &[T]| -> Vec<f32> { data.iter().map(|value| value.to_f32()).collect() };
        let Part { shape, scale, .. } = *part;
        let inputs = [&part.q, &part.k, &part.v].map(|data| wide(data));
        Self { shape, mask: &part.mask, scale, inputs, dout: wide(&part.dout) }
    }

    /// Central difference.
    fn slope(&mut self, which: usize, index: usize) -> f64 {
        let old = self.inputs[which][index];
        let mut at = |step: f32| {
            let moved = old + step;
            assert_eq!(f64::from(moved) - f64::from(old), f64::from(step), "the step is not exact");
            self.inputs[which][index] = moved;
            self.outputs()
        };
        let (above, below) = (at(STEP), at(-STEP));
        self.inputs[which][index] = old;
        // Term by term: what the step does not change leaves nothing, not even roundings.
        let terms = above.iter().zip(&below).zip(&self.dout);
        let loss: f64 = terms.map(|((above, below), dout)| (above - below) * f64::from(*dout)).sum();
        loss / (2.0 * f64::from(STEP))
    }

    /// O.
    fn outputs(&self) -> Vec<f64> {
        let Dims { batch, heads_q, heads_kv, seq_q, seq_k, head_dim } = self.shape.dims();
        let keys = Extents { batch, seq: seq_k, heads: heads_kv, head_dim };
        let queries = Extents { seq: seq_q, heads: heads_q, ..keys };
        let [q, k, v] = &self.inputs;
        let attention = Attention {
            shape: self.shape,
            mask: self.mask,
            scale: self.scale,
            q: View4::bshd(q, queries).unwrap(),
            k: View4::bshd(k, keys).unwrap(),
            v: View4::bshd(v, keys).unwrap(),
        };
        attention.forward().o
    }
}
