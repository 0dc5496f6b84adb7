//! The tiled CPU engine: FlashAttention forward and backward that skips masked tiles.
//!
//! * f32, bf16 or f16 in and out, f32 inside; GQA and MQA; head dims that are multiples of 8 up to 256.
//! * Keys may arrive in pieces: [`Forward`] and [`Backward`] take them one at a time, in any order that the caller
//!   likes. [`forward`] and [`backward`] are whole problems in one call.
//! * K and V rows of a tile that the [`BlockLists`] skip are never read: they may be garbage, or not be there yet.
//! * A fully masked row gives O = 0, LSE = -inf and zero gradients.
//! * Work is cut by sizes alone, never by the number of threads, and sums have a fixed order: equal calls give
//!   equal bits for any number of rayon threads. Tasks never wait for one another.
//!
//! Sources: Dao et al., "FlashAttention", 2022, algorithms 1 and 4; Wang et al., "FlashMask", 2024.
mod backward;
mod check;
mod convert;
mod forward;
mod gemm;
mod softmax;
mod tile;
mod wave;

pub use backward::Backward;
pub use forward::Forward;

use crate::Error;
use crate::dtype::Element;
use crate::mask::{BlockLists, BlockSize, FlashMask};
use crate::shape::Shape;
use crate::view::{View4, View4Mut};

/// The tile that the engine works in; block lists for it are built with this size.
///
/// Its f32 working set (Q, K or V, O, S at d = 128) is 256 KiB: it stays in a private L2 cache.
pub const TILE: BlockSize = BlockSize { rows: 128, cols: 128 };

/// Query side of a problem: what stays while keys arrive.
#[derive(Clone, Copy, Debug)]
pub struct Problem<'a, T> {
    /// Sizes.
    pub shape: Shape,
    /// Who sees whom: [b, any divisor of hq, sq, sk].
    pub mask: &'a FlashMask,
    /// Factor of Q K^T before softmax; finite. [`Shape::default_scale`] is the usual one.
    pub scale: f32,
    /// Q, [b, sq, hq, d].
    pub q: View4<'a, T>,
}

impl<T> Problem<'_, T> {
    /// Factor of Q that gives scores in units of log2: softmax is then a power of 2.
    fn log2_scale(&self) -> f32 {
        #[expect(clippy::cast_possible_truncation, reason = "the rounding to f32 is wanted")]
        let factor = (f64::from(self.scale) * std::f64::consts::LOG2_E) as f32;
        factor
    }
}

/// A piece of the keys: mask columns `first_column ..` of KV heads `first_head ..`.
#[derive(Clone, Copy, Debug)]
pub struct Keys<'a, T> {
    /// K, [b, rows, heads, d] with as many rows and heads as the piece has.
    pub k: View4<'a, T>,
    /// V, the same extents.
    pub v: View4<'a, T>,
    /// Mask column of row 0.
    pub first_column: usize,
    /// KV head of head 0.
    pub first_head: usize,
}

/// Where gradients of a piece of keys go, unrounded: extents as in [`Keys`].
#[derive(Debug)]
pub struct KeyGrads<'a> {
    /// dK, overwritten.
    pub dk: View4Mut<'a, f32>,
    /// dV, overwritten.
    pub dv: View4Mut<'a, f32>,
}

/// What the forward pass left, and the gradient that comes in.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a, T> {
    /// O, [b, sq, hq, d].
    pub o: View4<'a, T>,
    /// dO, [b, sq, hq, d].
    pub dout: View4<'a, T>,
    /// LSE, [b, hq, sq], natural logarithm; -inf for fully masked rows.
    pub lse: &'a [f32],
}

/// Gradients of a whole problem, all overwritten.
#[derive(Debug)]
pub struct Grads<'a, T> {
    /// dQ, [b, sq, hq, d].
    pub dq: View4Mut<'a, T>,
    /// dK, [b, sk, hkv, d].
    pub dk: View4Mut<'a, T>,
    /// dV, [b, sk, hkv, d].
    pub dv: View4Mut<'a, T>,
}

/// Whole forward pass: writes O [b, sq, hq, d], rounded once, and LSE [b, hq, sq].
///
/// `keys` hold all mask columns and KV heads.
///
/// # Errors
/// [`Error::Mismatch`], [`Error::MaskHeads`], [`Error::Scale`] when the parts do not fit each other.
pub fn forward<T: Element>(
    problem: Problem<'_, T>,
    keys: &Keys<'_, T>,
    o: &mut View4Mut<'_, T>,
    lse: &mut [f32],
) -> Result<(), Error> {
    check::whole("cpu::forward", problem.shape, keys)?;
    let mut pass = Forward::new(problem)?;
    check::outputs("cpu::forward", problem.shape, o, lse)?;
    pass.attend(keys, &BlockLists::build(problem.mask, 0..problem.shape.dims().seq_k, TILE)?)?;
    pass.finish(o, lse)
}

/// Whole backward pass: writes dQ, dK, dV, each rounded once from f32.
///
/// `keys` hold all mask columns and KV heads.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Element>(
    problem: Problem<'_, T>,
    keys: &Keys<'_, T>,
    saved: Saved<'_, T>,
    mut grads: Grads<'_, T>,
) -> Result<(), Error> {
    let call = "cpu::backward";
    check::whole(call, problem.shape, keys)?;
    let extents = keys.k.extents();
    check::extents(call, "dq", grads.dq.as_view().extents(), problem.q.extents())?;
    check::extents(call, "dk", grads.dk.as_view().extents(), extents)?;
    check::extents(call, "dv", grads.dv.as_view().extents(), extents)?;
    let mut pass = Backward::new(problem, saved)?;
    let size = extents.batch * extents.seq * extents.heads * extents.head_dim;
    let (mut dk, mut dv) = (vec![0.0; size], vec![0.0; size]);
    let wide = KeyGrads { dk: View4Mut::bshd(&mut dk, extents)?, dv: View4Mut::bshd(&mut dv, extents)? };
    pass.attend(keys, &BlockLists::build(problem.mask, 0..problem.shape.dims().seq_k, TILE)?, wide)?;
    let (dk, dv) = (View4::bshd(&dk, extents)?, View4::bshd(&dv, extents)?);
    convert::store(&mut grads.dk, |at| (dk.row(at), 1.0));
    convert::store(&mut grads.dv, |at| (dv.row(at), 1.0));
    pass.finish(&mut grads.dq)
}
