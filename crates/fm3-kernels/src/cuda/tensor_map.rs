//! Tensor maps: how the hardware's tensor copies (TMA) see a strided tensor.
#![expect(unsafe_code, reason = "the driver's encoder takes pointers")]
use cudarc::driver::sys;

use super::driver::Named;
use crate::params::TensorMap;
use crate::{DType, Error};

/// Strides of a map are below this, bytes (CUDA driver API, cuTensorMapEncodeTiled).
pub(super) const MAX_STRIDE: u64 = 1 << 40;

/// Elements of a row in a box: 128 bytes, the span of the swizzle.
const BOX_COLUMNS: u32 = 64;

/// A tensor of `N` dims, innermost first; the innermost is dense.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tiled<const N: usize> {
    pub(super) address: u64,
    pub(super) dtype: DType,
    pub(super) dims: [usize; N],
    /// Elements from one to the next along each dim; that of an extent of 1 is ignored.
    pub(super) strides: [usize; N],
    /// Rows of a box, along dim 1; along the further dims a box holds 1.
    pub(super) box_rows: u32,
}

impl<const N: usize> Tiled<N> {
    #[expect(clippy::cast_possible_truncation, reason = "at most 5")]
    const RANK: u32 = {
        assert!(N >= 3 && N <= 5, "what a tiled map can have, and a box has two dims");
        N as u32
    };

    /// Encodes the map, on the host alone.
    pub(super) fn encode(&self) -> Result<TensorMap, Error> {
        let dtype = match self.dtype {
            DType::Bf16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            DType::F16 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            DType::F32 => sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
        };
        let dims = self.dims.map(|dim| dim as u64);
        let (mut bytes, mut boxes) = ([0; N], [1; N]);
        (boxes[0], boxes[1]) = (BOX_COLUMNS, self.box_rows);
        for (axis, bytes) in bytes.iter_mut().enumerate() {
            // The encoder checks a stride that is never taken, too: give it one that is fine.
            let stride = if self.dims[axis] == 1 { self.dims[0] } else { self.strides[axis] };
            *bytes = (stride * self.dtype.size()) as u64;
        }
        let mut map = sys::CUtensorMap { opaque: [0; 16] };
        // SAFETY: `map` is aligned as the encoder wants. It reads N dims, N - 1 strides, those of dim 1 and up, N box
        // extents and N element strides. The address is not followed.
        let answer = unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map,
                dtype,
                Self::RANK,
                self.address as *mut _,
                dims.as_ptr(),
                bytes[1..].as_ptr(),
                boxes.as_ptr(),
                [1; N].as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        answer.result().named("cuTensorMapEncodeTiled")?;
        Ok(TensorMap { opaque: bytemuck::cast(map.opaque) })
    }
}
