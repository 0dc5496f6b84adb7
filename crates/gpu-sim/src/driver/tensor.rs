//! Tensor maps.
use crate::c;
use crate::c::export;
use crate::code::{Code, Outcome};
use crate::context::{Needs, answer};
use crate::tensor_map::TensorMap;

export! {
    fn cuTensorMapEncodeTiled(
        map: *mut [u8; 128],
        data_type: u32,
        rank: u32,
        address: u64,
        dims: *const u64,
        strides: *const u64,
        box_dims: *const u32,
        element_strides: *const u32,
        interleave: u32,
        swizzle: u32,
        l2_promotion: u32,
        fill: u32,
    ) -> u32 {
        answer(Needs::Nothing, || {
            if !(1..=5).contains(&rank) || !map.addr().is_multiple_of(64) {
                return Err(Code::ERROR_INVALID_VALUE);
            }
            let count = rank as usize;
            let described = TensorMap {
                data_type: small(data_type)?,
                rank: small(rank)?,
                interleave: small(interleave)?,
                swizzle: small(swizzle)?,
                address,
                dims: padded(&c::array(dims, count)?),
                strides: padded(&c::array(strides, count - 1)?),
                box_dims: padded(&c::array(box_dims, count)?),
                element_strides: padded(&small_all(&c::array(element_strides, count)?)?),
                l2_promotion: small(l2_promotion)?,
                fill: small(fill)?,
            };
            if !described.is_legal() {
                return Err(Code::ERROR_INVALID_VALUE);
            }
            c::out(map, described.encode())
        })
    }
}

fn small(number: u32) -> Outcome<u8> {
    u8::try_from(number).map_err(|_| Code::ERROR_INVALID_VALUE)
}

fn small_all(numbers: &[u32]) -> Outcome<Vec<u8>> {
    numbers.iter().copied().map(small).collect()
}

fn padded<T: Copy + Default, const N: usize>(numbers: &[T]) -> [T; N] {
    std::array::from_fn(|at| numbers.get(at).copied().unwrap_or_default())
}
