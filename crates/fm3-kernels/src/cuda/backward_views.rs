//! What only a backward pass takes: LSE to read, gradients of keys to write.
#![expect(unsafe_code, reason = "a view of a bare address is a promise of the caller")]
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut};

use super::check::wrong;
use super::keys::{KeyExtents, KeyStrides, KeyTensor};
use super::view::{DeviceViewMut, LseAt, Order};
use crate::{DType, Element, Error};

/// LSE, f32 [b, hq, sq] dense in device memory, to read.
#[derive(Debug)]
pub struct LseView<'a> {
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) order: Order<'a>,
}

/// Where dK and dV go: tensors as the keys are given.
#[derive(Clone, Copy, Debug)]
pub enum KeyGrads<'a> {
    /// All rows in one tensor each, [b, sk, hkv, d].
    Whole {
        /// dK.
        dk: &'a DeviceViewMut<'a>,
        /// dV.
        dv: &'a DeviceViewMut<'a>,
    },
    /// One for each map of the keys, in their order. Slabs that no segment uses are not written.
    Segments(&'a [KeyGradMap<'a>]),
}

/// Gradients of all segments of one length; extents are those of the keys' map.
#[derive(Debug)]
pub struct KeyGradMap<'a> {
    /// dK.
    pub dk: KeyViewMut<'a>,
    /// dV.
    pub dv: KeyViewMut<'a>,
}

/// Segments of one length in device memory, to write: otherwise as [`KeyView`](super::KeyView).
#[derive(Debug)]
pub struct KeyViewMut<'a> {
    pub(super) tensor: KeyTensor,
    pub(super) order: Order<'a>,
}

impl<'a> LseView<'a> {
    /// All of `slice`, for calls on `stream`.
    pub fn new(slice: &'a impl DevicePtr<f32>, stream: &'a CudaStream) -> Self {
        let len = slice.len();
        let (address, record) = slice.device_ptr(stream);
        Self { address, len, order: Order::of(stream, record) }
    }

    /// Memory that somebody else owns and orders.
    ///
    /// # Errors
    /// [`CudaError::Value`](super::CudaError::Value) for an address that is not a multiple of 4.
    ///
    /// # Safety
    /// As [`DeviceView::from_raw`](super::DeviceView::from_raw).
    pub unsafe fn from_raw(LseAt { address, len }: LseAt) -> Result<LseView<'static>, Error> {
        if !address.is_multiple_of(4) {
            return Err(wrong("LseView::from_raw", "address", address, "a multiple of 4".to_owned()));
        }
        Ok(LseView { address, len, order: Order::FOREIGN })
    }
}

impl<'a> KeyViewMut<'a> {
    /// Views `slice` with any strides, for calls on `stream`. Rows that overlap hold what was written last.
    ///
    /// # Errors
    /// As [`DeviceView::strided`](super::DeviceView::strided).
    pub fn strided<T: Element>(
        slice: &'a mut impl DevicePtrMut<T>,
        stream: &'a CudaStream,
        extents: KeyExtents,
        strides: KeyStrides,
    ) -> Result<Self, Error> {
        extents.check_within(slice.len(), strides)?;
        let (address, record) = slice.device_ptr_mut(stream);
        let tensor = KeyTensor::new(address, T::DTYPE, extents, strides)?;
        Ok(Self { tensor, order: Order::of(stream, record) })
    }

    /// A view of memory that somebody else owns and orders.
    ///
    /// # Errors
    /// As [`DeviceView::from_raw`](super::DeviceView::from_raw).
    ///
    /// # Safety
    /// As [`DeviceViewMut::from_raw`].
    pub unsafe fn from_raw(
        address: u64,
        dtype: DType,
        extents: KeyExtents,
        strides: KeyStrides,
    ) -> Result<KeyViewMut<'static>, Error> {
        let tensor = KeyTensor::new(address, dtype, extents, strides)?;
        Ok(KeyViewMut { tensor, order: Order::FOREIGN })
    }
}
