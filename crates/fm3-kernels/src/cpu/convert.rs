//! Elements to f32 and back, slice by slice.
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::dtype::{DType, Element};
use crate::view::{At, Extents, View4, View4Mut};

/// Exact widening of `src` into `dst` of the same length.
pub(super) fn widen<T: Element>(src: &[T], dst: &mut [f32]) {
    match T::DTYPE {
        DType::F32 => dst.copy_from_slice(bytemuck::cast_slice(src)),
        DType::Bf16 => {
            let src: &[bf16] = bytemuck::cast_slice(src);
            for (to, from) in dst.iter_mut().zip(src) {
                *to = f32::from_bits(u32::from(from.to_bits()) << 16);
            }
        }
        DType::F16 => bytemuck::cast_slice::<T, f16>(src).convert_to_f32_slice(dst),
    }
}

/// Writes every row of `dst`: `source` names the f32 row and a factor; the product is rounded to nearest, ties to even.
pub(super) fn store<'s, T: Element>(dst: &mut View4Mut<'_, T>, source: impl Fn(At) -> (&'s [f32], f32)) {
    let Extents { batch, seq, heads, .. } = dst.as_view().extents();
    for batch in 0..batch {
        for seq in 0..seq {
            for head in 0..heads {
                let at = At { batch, seq, head };
                let (row, factor) = source(at);
                narrow_scaled(row, factor, dst.row_mut(at));
            }
        }
    }
}

/// Rows `first.seq ..` of one head, widened into dense `dst` [rows, d]; `dst` says how many.
pub(super) fn load_rows<T: Element>(view: &View4<'_, T>, first: At, dst: &mut [f32]) {
    for (k, row) in dst.chunks_exact_mut(view.extents().head_dim).enumerate() {
        widen(view.row(At { seq: first.seq + k, ..first }), row);
    }
}

/// [`load_rows`], times `factor`.
pub(super) fn load_rows_scaled<T: Element>(view: &View4<'_, T>, first: At, factor: f32, dst: &mut [f32]) {
    load_rows(view, first, dst);
    for value in dst {
        *value *= factor;
    }
}

fn narrow_scaled<T: Element>(src: &[f32], factor: f32, dst: &mut [T]) {
    for (to, from) in dst.iter_mut().zip(src) {
        *to = T::from_f32(factor * from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_16_bit_pattern_that_is_a_number_survives_the_round_trip() {
        let mut wide = vec![0.0; 1 << 16];
        let brain: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
        let mut narrow = brain.clone();
        widen(&brain, &mut wide);
        narrow_scaled(&wide, 1.0, &mut narrow);
        assert!(brain.iter().zip(&narrow).all(|(a, b)| a.is_nan() || a.to_bits() == b.to_bits()));
        let ieee: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        let mut narrow = ieee.clone();
        widen(&ieee, &mut wide);
        narrow_scaled(&wide, 1.0, &mut narrow);
        assert!(ieee.iter().zip(&narrow).all(|(a, b)| a.is_nan() || a.to_bits() == b.to_bits()));
    }
}
