//! Keys and values: one tensor each, or segments that lie apart.
#![expect(
    unsafe_code,
    reason = "a view of a bare address, or a signal's address, is a promise of the caller"
)]
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};

use super::check::{equal, within, wrong};
use super::driver::Named;
use super::tensor_map::Tiled;
use super::view::{DeviceView, Order, Tensor, check_address, check_stride};
use crate::mask::KeySegments;
use crate::params::{KEY_MAPS, KeySegment, TensorMap};
use crate::{DType, Element, Error};

/// Keys and values of a call.
#[derive(Clone, Copy, Debug)]
pub enum Keys<'a> {
    /// All rows in one tensor each, [b, sk, hkv, d].
    Whole {
        /// K.
        k: &'a DeviceView<'a>,
        /// V, the same extents.
        v: &'a DeviceView<'a>,
    },
    /// Rows in segments, which lie in up to [`KEY_MAPS`] tensors.
    Segments {
        /// The tensors: one for each distinct length of a segment.
        maps: &'a [KeyMap<'a>],
        /// Where each segment is.
        table: &'a KeyTable,
    },
}

/// Keys and values of all segments of one length.
#[derive(Debug)]
pub struct KeyMap<'a> {
    /// K.
    pub k: KeyView<'a>,
    /// V, the same extents.
    pub v: KeyView<'a>,
}

/// Extents of segments: KV head h is head h % heads_per_group of group h / heads_per_group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyExtents {
    /// Key rows of a segment.
    pub rows: usize,
    /// KV heads of a group.
    pub heads_per_group: usize,
    /// Groups of KV heads.
    pub groups: usize,
    /// Slabs: each holds the rows of one segment for one sequence.
    pub slabs: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

/// Steps in elements between neighbours; along the head dim the step is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyStrides {
    /// From one row to the next.
    pub rows: usize,
    /// From one head of a group to the next.
    pub heads: usize,
    /// From one group to the next.
    pub groups: usize,
    /// From one slab to the next.
    pub slabs: usize,
}

/// Segments of one length in device memory, to read. Alignment and order are as those of [`DeviceView`].
#[derive(Debug)]
pub struct KeyView<'a> {
    pub(super) tensor: KeyTensor,
    pub(super) order: Order<'a>,
}

/// The segments of a problem, in device memory: which tensor and slab each lies in, and its signal.
#[derive(Debug)]
pub struct KeyTable {
    device: CudaSlice<u8>,
    segments: KeySegments,
    /// For each map: rows of its segments and its largest slab; none for a map that no segment uses.
    uses: [Option<(usize, usize)>; KEY_MAPS],
    /// Smallest step between the slabs of two segments of one map; none when no two share a map.
    nearest: Option<usize>,
    waits: bool,
}

/// One segment of a [`KeyTable`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentAt {
    /// Key rows.
    pub rows: usize,
    /// Which of the call's maps.
    pub map: usize,
    /// Slab of the first sequence; sequence b is in slab `slab + b`.
    pub slab: usize,
    /// What to wait for; none: the rows are there.
    pub signal: Option<Signal>,
}

/// A u64 that grows as the rows of a segment arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal {
    address: u64,
}

impl Signal {
    /// The u64 at `address`.
    ///
    /// # Errors
    /// [`CudaError::Value`](super::CudaError::Value) for an address that is 0 or not a multiple of 8.
    ///
    /// # Safety
    /// The address is memory that the device can read, for as long as calls with it run; its writer posts a value only
    /// after the data that it stands for.
    pub unsafe fn new(address: u64) -> Result<Self, Error> {
        if address == 0 || !address.is_multiple_of(8) {
            return Err(wrong("Signal::new", "address", address, "a multiple of 8".to_owned()));
        }
        Ok(Self { address })
    }
}

impl KeyTable {
    /// Copies the table to the device, in the order of the mask's columns.
    ///
    /// # Errors
    /// Those of [`KeySegments::new`]; [`CudaError::Value`](super::CudaError::Value) for a map beyond [`KEY_MAPS`];
    /// [`Error::Mismatch`] when segments of one map have different lengths.
    pub fn new(stream: &Arc<CudaStream>, table: &[SegmentAt]) -> Result<Self, Error> {
        let call = "KeyTable::new";
        let segments = KeySegments::new(table.iter().map(|at| at.rows).collect())?;
        let mut uses: [Option<(usize, usize)>; KEY_MAPS] = [None; KEY_MAPS];
        let mut words = Vec::with_capacity(table.len());
        for at in table {
            let Some(used) = uses.get_mut(at.map) else {
                return Err(wrong(call, "map", at.map as u64, format!("below {KEY_MAPS}")));
            };
            let (rows, largest) = used.unwrap_or((at.rows, at.slab));
            equal(call, ["segment", "rows of its map"], at.rows, rows)?;
            *used = Some((rows, largest.max(at.slab)));
            let slab = within(call, "slab + 1", at.slab.saturating_add(1), i32::MAX.unsigned_abs())? - 1;
            let signal = at.signal.map_or(0, |signal| signal.address);
            words.push(KeySegment { signal, map: within(call, "map + 1", at.map + 1, 4)? - 1, slab });
        }
        let device = stream.clone_htod(bytemuck::cast_slice::<_, u8>(&words)).named("cuMemcpyHtoDAsync")?;
        let waits = table.iter().any(|at| at.signal.is_some());
        Ok(Self { device, segments, uses, nearest: nearest(table), waits })
    }

    /// The segments, as a mask is prepared for them.
    pub const fn segments(&self) -> &KeySegments {
        &self.segments
    }

    /// Whether some segment has a signal.
    pub const fn waits(&self) -> bool {
        self.waits
    }

    pub(super) const fn device(&self) -> &CudaSlice<u8> {
        &self.device
    }

    /// Gradients of segments nearer than the batch would lie on each other.
    pub(super) const fn nearest(&self) -> Option<usize> {
        self.nearest
    }

    pub(super) const fn uses(&self) -> &[Option<(usize, usize)>; KEY_MAPS] {
        &self.uses
    }
}

impl<'a> KeyView<'a> {
    /// Views `slice` with any strides, for calls on `stream`.
    ///
    /// # Errors
    /// As [`DeviceView::strided`].
    pub fn strided<T: Element>(
        slice: &'a impl DevicePtr<T>,
        stream: &'a CudaStream,
        extents: KeyExtents,
        strides: KeyStrides,
    ) -> Result<Self, Error> {
        extents.check_within(slice.len(), strides)?;
        let (address, record) = slice.device_ptr(stream);
        let tensor = KeyTensor::new(address, T::DTYPE, extents, strides)?;
        Ok(Self { tensor, order: Order::of(stream, record) })
    }

    /// A whole tensor as one segment: a slab for each sequence, all heads in one group.
    pub fn whole(view: &'a DeviceView<'_>) -> Self {
        Self { tensor: view.tensor.into(), order: view.order.again() }
    }

    /// A view of memory that somebody else owns and orders.
    ///
    /// # Errors
    /// As [`DeviceView::from_raw`].
    ///
    /// # Safety
    /// As [`DeviceView::from_raw`]; the rows of segments with a signal need to be there only when it says so.
    pub unsafe fn from_raw(
        address: u64,
        dtype: DType,
        extents: KeyExtents,
        strides: KeyStrides,
    ) -> Result<KeyView<'static>, Error> {
        let tensor = KeyTensor::new(address, dtype, extents, strides)?;
        Ok(KeyView { tensor, order: Order::FOREIGN })
    }
}

/// Segments without their lifetime.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyTensor {
    address: u64,
    pub(super) dtype: DType,
    pub(super) extents: KeyExtents,
    strides: KeyStrides,
}

impl KeyTensor {
    pub(super) fn new(
        address: u64,
        dtype: DType,
        extents: KeyExtents,
        strides: KeyStrides,
    ) -> Result<Self, Error> {
        let call = "KeyView";
        let steps = [
            ("row stride", extents.rows, strides.rows),
            ("head stride", extents.heads_per_group, strides.heads),
            ("group stride", extents.groups, strides.groups),
            ("slab stride", extents.slabs, strides.slabs),
        ];
        extents.reach(strides)?;
        check_address(call, address)?;
        for (name, extent, stride) in steps {
            check_stride(call, name, extent, stride.saturating_mul(dtype.size()))?;
        }
        Ok(Self { address, dtype, extents, strides })
    }

    /// Its map: {d, rows, heads of a group, groups, slabs}.
    pub(super) fn map(&self, box_rows: u32) -> Result<TensorMap, Error> {
        let (e, s) = (self.extents, self.strides);
        Tiled {
            address: self.address,
            dtype: self.dtype,
            dims: [e.head_dim, e.rows, e.heads_per_group, e.groups, e.slabs],
            strides: [1, s.rows, s.heads, s.groups, s.slabs],
            box_rows,
        }
        .encode()
    }
}

fn nearest(table: &[SegmentAt]) -> Option<usize> {
    let mut places: Vec<_> = table.iter().map(|at| (at.map, at.slab)).collect();
    places.sort_unstable();
    let pairs = places.windows(2).filter(|pair| pair[0].0 == pair[1].0);
    pairs.map(|pair| pair[1].1 - pair[0].1).min()
}

impl From<Tensor> for KeyTensor {
    /// One group of all heads, a slab for each sequence.
    fn from(tensor: Tensor) -> Self {
        let (e, s) = (tensor.extents, tensor.strides);
        let (rows, heads_per_group, slabs, head_dim) = (e.seq, e.heads, e.batch, e.head_dim);
        Self {
            address: tensor.address,
            dtype: tensor.dtype,
            extents: KeyExtents { rows, heads_per_group, groups: 1, slabs, head_dim },
            strides: KeyStrides { rows: s.seq, heads: s.heads, groups: 0, slabs: s.batch },
        }
    }
}

impl KeyExtents {
    /// Refuses what reaches past `len` elements.
    pub(super) fn check_within(self, len: usize, strides: KeyStrides) -> Result<(), Error> {
        let needed = self.reach(strides)?;
        if needed > len {
            return Err(Error::ViewBounds { needed, len });
        }
        Ok(())
    }

    /// Elements from the first to one past the last.
    fn reach(self, strides: KeyStrides) -> Result<usize, Error> {
        let axes = [
            ("rows", self.rows, strides.rows),
            ("heads_per_group", self.heads_per_group, strides.heads),
            ("groups", self.groups, strides.groups),
            ("slabs", self.slabs, strides.slabs),
            ("head_dim", self.head_dim, 1),
        ];
        if let Some((name, ..)) = axes.into_iter().find(|(_, extent, _)| *extent == 0) {
            return Err(Error::ZeroDim { call: "KeyView", name });
        }
        let last = axes.into_iter().try_fold(0_usize, |sum, (_, extent, stride)| {
            stride.checked_mul(extent - 1).and_then(|step| sum.checked_add(step))
        });
        // One past the last element; a tensor beyond the address space has none.
        last.and_then(|last| last.checked_add(1))
            .ok_or(Error::ViewBounds { needed: usize::MAX, len: usize::MAX })
    }
}
