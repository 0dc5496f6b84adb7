//! Tensor maps as the simulator keeps them, for kernels of plugins to read.

/// Data types by the driver's numbers, with the bytes of an element; the packed types of newer devices are left out.
const ELEMENT_BYTES: [u64; 13] = [1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4];

/// A tiled tensor map: what `cuTensorMapEncodeTiled` was told.
///
/// Its 128 bytes, all numbers little-endian:
///
/// | bytes | what |
/// |---|---|
/// | 0..4 | `GSTM` |
/// | 4, 5, 6, 7 | data type, rank, interleave, swizzle |
/// | 8..16 | address |
/// | 16..56 | 5 x u64 dims, innermost first |
/// | 56..88 | 4 x u64 strides in bytes, of dims 1 to 4 |
/// | 88..108 | 5 x u32 box |
/// | 108..113 | 5 x u8 element strides |
/// | 113, 114 | L2 promotion, fill outside |
///
/// What lies past the rank is 0, and so are the other bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// `CUtensorMapDataType`: 6 is f16, 7 f32, 9 bf16.
    pub data_type: u8,
    /// Dims in use, 1..=5.
    pub rank: u8,
    /// `CUtensorMapInterleave`: 0 is none.
    pub interleave: u8,
    /// `CUtensorMapSwizzle`: 0 is none; 1, 2, 3 are spans of 32, 64, 128 bytes.
    pub swizzle: u8,
    /// Of the element at the origin; device addresses are host addresses.
    pub address: u64,
    /// Elements along each dim, innermost first.
    pub dims: [u64; 5],
    /// Bytes from one to the next along dims 1 to 4; the innermost is dense.
    pub strides: [u64; 4],
    /// Elements of a box along each dim.
    pub box_dims: [u32; 5],
    /// Which elements of the box are taken; 1 is all.
    pub element_strides: [u8; 5],
    /// `CUtensorMapL2promotion`.
    pub l2_promotion: u8,
    /// `CUtensorMapFloatOOBfill`: 0 fills with zeros what lies outside, 1 with NaN.
    pub fill: u8,
}

/// The first bytes.
const MAGIC: [u8; 4] = *b"GSTM";

impl TensorMap {
    /// Reads a map; `None` when the bytes are not the simulator's.
    pub fn decode(bytes: &[u8; 128]) -> Option<Self> {
        let mut reader = Reader(bytes);
        if reader.take::<4>()? != MAGIC {
            return None;
        }
        let [data_type, rank, interleave, swizzle] = reader.take()?;
        let address = u64::from_le_bytes(reader.take()?);
        let (mut dims, mut strides, mut box_dims) = ([0; 5], [0; 4], [0; 5]);
        for dim in &mut dims {
            *dim = u64::from_le_bytes(reader.take()?);
        }
        for stride in &mut strides {
            *stride = u64::from_le_bytes(reader.take()?);
        }
        for extent in &mut box_dims {
            *extent = u32::from_le_bytes(reader.take()?);
        }
        let element_strides = reader.take()?;
        let [l2_promotion, fill] = reader.take()?;
        let map = Self {
            data_type,
            rank,
            interleave,
            swizzle,
            address,
            dims,
            strides,
            box_dims,
            element_strides,
            l2_promotion,
            fill,
        };
        map.is_legal().then_some(map)
    }

    /// The bytes.
    pub fn encode(&self) -> [u8; 128] {
        let mut all = MAGIC.to_vec();
        all.extend([self.data_type, self.rank, self.interleave, self.swizzle]);
        all.extend(self.address.to_le_bytes());
        all.extend(self.dims.iter().chain(&self.strides).flat_map(|number| number.to_le_bytes()));
        all.extend(self.box_dims.iter().flat_map(|number| number.to_le_bytes()));
        all.extend(self.element_strides);
        all.extend([self.l2_promotion, self.fill]);
        std::array::from_fn(|at| all.get(at).copied().unwrap_or(0))
    }

    /// Bytes of an element; 0 for a data type that is not simulated.
    pub fn element_bytes(&self) -> u64 {
        ELEMENT_BYTES.get(usize::from(self.data_type)).copied().unwrap_or(0)
    }

    /// Whether the driver would take it (CUDA driver API, `cuTensorMapEncodeTiled`).
    pub fn is_legal(&self) -> bool {
        let rank = usize::from(self.rank);
        let ranks = if self.interleave == 0 { 1..=5 } else { 3..=5 };
        // Interleaved by 32 bytes, addresses and strides are multiples of 32.
        let unit = if self.interleave == 2 { 32 } else { 16 };
        ranks.contains(&rank)
            && self.element_bytes() > 0
            && self.interleave <= 2
            && self.swizzle <= 3
            && self.l2_promotion <= 3
            && self.has_legal_fill()
            && self.address != 0
            && self.address.is_multiple_of(unit)
            && self.dims[..rank].iter().all(|dim| (1..=1 << 32).contains(dim))
            && self.strides[..rank - 1].iter().all(|stride| stride.is_multiple_of(unit) && *stride < 1 << 40)
            && self.box_dims[..rank].iter().all(|extent| (1..=256).contains(extent))
            && self.element_strides[..rank].iter().all(|stride| (1..=8).contains(stride))
            && self.has_legal_inner_box()
    }

    /// Only floats can be NaN.
    fn has_legal_fill(&self) -> bool {
        self.fill == 0 || (self.fill == 1 && self.data_type >= 6)
    }

    /// Bytes of a box's rows fit the swizzle.
    fn has_legal_inner_box(&self) -> bool {
        let inner = u64::from(self.box_dims[0]) * self.element_bytes();
        match (self.interleave, self.swizzle) {
            (0, 0) => inner.is_multiple_of(16),
            (0, swizzle) => inner.is_multiple_of(16) && inner <= 16 << swizzle,
            (2, swizzle) => swizzle == 1,
            _ => true,
        }
    }
}

/// What was not read yet.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes by hand, as a kernel in another language would read them.
    #[test]
    fn the_layout_is_the_documented_one() {
        let map = TensorMap {
            data_type: 9,
            rank: 2,
            interleave: 0,
            swizzle: 3,
            address: 0x1234_5670,
            dims: [64, 1 << 32, 0, 0, 0],
            strides: [(1 << 40) - 16, 0, 0, 0],
            box_dims: [64, 256, 0, 0, 0],
            element_strides: [1, 2, 0, 0, 0],
            l2_promotion: 3,
            fill: 1,
        };
        let bytes = map.encode();
        assert_eq!(&bytes[..12], b"GSTM\x09\x02\x00\x03\x70\x56\x34\x12");
        assert_eq!(
            (bytes[16], bytes[24 + 4], &bytes[56..62]),
            (64, 1, &[0xF0, 0xFF, 0xFF, 0xFF, 0xFF, 0][..])
        );
        assert_eq!((bytes[88], bytes[92], bytes[93]), (64, 0, 1));
        assert_eq!((bytes[108], bytes[109], bytes[113], bytes[114]), (1, 2, 3, 1));
        assert!(bytes[115..].iter().all(|byte| *byte == 0));
        assert_eq!(TensorMap::decode(&bytes), Some(map));
        assert_eq!(TensorMap::decode(&[0; 128]), None);
    }
}
