//! Tensors as kernels see them: boxes of rows, copied as the tensor memory accelerator copies them.
use fm3_kernels::params::TensorMap as Opaque;
use fm3_kernels::{DType, Element};
use gpu_sim::TensorMap;

use crate::memory::{Array, index};
use crate::tile::HEAD_DIM;

/// Columns of a box: 128 bytes, the span of the swizzle.
const BOX_COLUMNS: u32 = 64;

/// `CUtensorMapSwizzle`: the kernels expect 128 bytes.
const SWIZZLE_128: u8 = 3;

/// A tensor of rows of at most 128 elements: `{d, rows, ...}`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows<T> {
    map: TensorMap,
    memory: Array<T>,
}

/// Coordinates of a box, without the column: row, then one of each further dim; the last are 0 where there are fewer.
pub(crate) type At = [u64; 4];

impl<T: Element> Rows<T> {
    /// Reads a map, whose boxes must be what the kernel's buffers are made for.
    pub(crate) fn of(map: &Opaque, box_rows: u32) -> Self {
        let map = TensorMap::decode(&map.opaque).expect("a tensor map of this simulator");
        let data_type = if T::DTYPE == DType::Bf16 { 9 } else { 6 };
        let rank = usize::from(map.rank);
        let outer_boxes = &map.box_dims[2..rank];
        assert!(
            map.data_type == data_type
                && map.box_dims[..2] == [BOX_COLUMNS, box_rows]
                && outer_boxes.iter().all(|extent| *extent == 1)
                && map.element_strides[..rank].iter().all(|step| *step == 1)
                && (map.swizzle, map.interleave, map.fill) == (SWIZZLE_128, 0, 0),
            "the kernel does not take this tensor map: {map:?}"
        );
        Self { map, memory: Array::at(map.address) }
    }

    /// Rows of 128 from `at` on, as many as `to` has; what lies outside the tensor is 0.
    pub(crate) fn load(&self, at: At, to: &mut [f32]) {
        let mut row = [T::from_f32(0.0); HEAD_DIM];
        let columns = self.columns();
        for (at, to) in self.places(at).zip(to.chunks_mut(HEAD_DIM)) {
            to.fill(0.0);
            if let Some(place) = at {
                self.memory.read(place, &mut row[..columns]);
                to.iter_mut().zip(&row[..columns]).for_each(|(to, value)| *to = value.to_f32());
            }
        }
    }

    /// Rounds rows of 128 to `at`; what lies outside the tensor is left out.
    pub(crate) fn store(&self, at: At, from: &[f32]) {
        let mut row = [T::from_f32(0.0); HEAD_DIM];
        for (at, from) in self.places(at).zip(from.chunks(HEAD_DIM)) {
            if let Some(place) = at {
                row.iter_mut().zip(from).for_each(|(to, value)| *to = T::from_f32(*value));
                self.memory.write(place, &row[..self.columns()]);
            }
        }
    }

    fn columns(&self) -> usize {
        index(self.map.dims[0]).min(HEAD_DIM)
    }

    /// The element at which each row starts, or none outside.
    fn places(&self, [row, outer @ ..]: At) -> impl Iterator<Item = Option<usize>> {
        let map = self.map;
        let dims = map.dims[2..].iter().map(|dim| (*dim).max(1));
        let inside = outer.iter().zip(dims).all(|(at, dim)| *at < dim);
        let base: u64 = outer.iter().zip(&map.strides[1..]).map(|(at, stride)| at * stride).sum();
        (row..).map(move |row| {
            let bytes = base + row * map.strides[0];
            (inside && row < map.dims[1]).then(|| index(bytes / map.element_bytes()))
        })
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// [slabs 2][rows 3, pitch 136][64 and more] of a tensor of 5 dims.
    fn map(address: u64) -> TensorMap {
        TensorMap {
            data_type: 9,
            rank: 5,
            interleave: 0,
            swizzle: 3,
            address,
            dims: [128, 3, 1, 1, 2],
            strides: [272, 4096, 4096, 1024],
            box_dims: [64, 128, 1, 1, 1],
            element_strides: [1; 5],
            l2_promotion: 3,
            fill: 0,
        }
    }

    #[test]
    fn rows_outside_are_zero_and_never_written() {
        #[repr(align(16))]
        struct Memory([bf16; 1024]);
        let mut memory = Memory([bf16::NAN; 1024]);
        let opaque = Opaque { opaque: map((&raw mut memory).expose_provenance() as u64).encode() };
        let rows = Rows::<bf16>::of(&opaque, 128);
        let values: Vec<f32> = (0..128_u8).map(f32::from).cycle().take(4 * 128).collect();
        // Rows 2 to 5 of slab 1: one of them is there. Of slab 2 none is.
        rows.store([2, 0, 0, 1], &values);
        rows.store([0, 0, 0, 2], &values);
        let place = (1024 + 2 * 272) / 2;
        let written: Vec<usize> = (0..1024).filter(|at| !memory.0[*at].is_nan()).collect();
        assert_eq!(written, (place..place + 128).collect::<Vec<_>>());
        memory.0[..place].fill(bf16::ONE);
        let mut loaded = vec![9.0; 4 * 128];
        rows.load([1, 0, 0, 1], &mut loaded);
        assert!(
            loaded[..128].iter().all(|value| *value == 1.0)
                && loaded[256..].iter().all(|value| *value == 0.0)
        );
        assert_eq!(loaded[128..256], values[..128]);
        rows.load([0, 0, 1, 0], &mut loaded);
        assert!(loaded.iter().all(|value| *value == 0.0));
    }

    #[test]
    #[should_panic(expected = "does not take this tensor map")]
    fn a_map_of_another_type_is_refused() {
        Rows::<f16>::of(&Opaque { opaque: map(16).encode() }, 128);
    }

    #[test]
    #[should_panic(expected = "does not take this tensor map")]
    fn a_map_of_other_boxes_is_refused() {
        Rows::<bf16>::of(&Opaque { opaque: map(16).encode() }, 64);
    }
}
