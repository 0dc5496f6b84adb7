//! Strided tensors in device memory, checked once when they are made.
#![expect(unsafe_code, reason = "a view of a bare address is a promise of the caller")]
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use super::CudaError;
use super::check::wrong;
use super::tensor_map::MAX_STRIDE;
use crate::view::{Extents, Strides, check_bounds};
use crate::{DType, Element, Error};

/// A tensor [b, s, h, d] of bf16 or f16 in device memory, to read. The head dim is innermost and dense.
///
/// The base address and the strides of extents above 1 must be multiples of 16 bytes (8 elements), as the hardware's
/// tensor copies need. While the view lives the memory is ordered for its stream: make views for a call, and drop
/// them after it.
#[derive(Debug)]
pub struct DeviceView<'a> {
    pub(super) tensor: Tensor,
    pub(super) order: Order<'a>,
}

/// A tensor [b, s, h, d] in device memory, to write: otherwise as [`DeviceView`].
#[derive(Debug)]
pub struct DeviceViewMut<'a> {
    pub(super) tensor: Tensor,
    pub(super) order: Order<'a>,
}

/// LSE, f32 [b, hq, sq] dense in device memory, to write.
#[derive(Debug)]
pub struct LseMut<'a> {
    pub(super) address: u64,
    pub(super) len: usize,
    pub(super) order: Order<'a>,
}

/// LSE at a bare address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LseAt {
    /// Device address, a multiple of 4.
    pub address: u64,
    /// Numbers there.
    pub len: usize,
}

/// A tensor without its lifetime.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tensor {
    pub(super) address: u64,
    pub(super) dtype: DType,
    pub(super) extents: Extents,
    pub(super) strides: Strides,
}

/// The stream that memory is ordered for; none when its owner sees to that.
#[derive(Debug)]
pub(super) struct Order<'a> {
    stream: Option<&'a CudaStream>,
    /// When dropped it records that the stream uses the memory, in contexts that track this.
    _record: Option<SyncOnDrop<'a>>,
}

impl<'a> DeviceView<'a> {
    /// Views `slice` as dense [b, s, h, d], for calls on `stream`.
    ///
    /// # Errors
    /// As [`strided`](Self::strided).
    pub fn bshd<T: Element>(
        slice: &'a impl DevicePtr<T>,
        stream: &'a CudaStream,
        extents: Extents,
    ) -> Result<Self, Error> {
        Self::strided(slice, stream, extents, Strides::bshd(extents))
    }

    /// Views `slice` as dense [b, h, s, d], for calls on `stream`.
    ///
    /// # Errors
    /// As [`strided`](Self::strided).
    pub fn bhsd<T: Element>(
        slice: &'a impl DevicePtr<T>,
        stream: &'a CudaStream,
        extents: Extents,
    ) -> Result<Self, Error> {
        Self::strided(slice, stream, extents, Strides::bhsd(extents))
    }

    /// Views `slice` with any strides, in elements: packed QKV, parts of larger tensors.
    ///
    /// # Errors
    /// [`Error::ViewBounds`] when the last element lies outside, [`Error::ZeroDim`] for an empty extent,
    /// [`CudaError::Value`] for a base or a stride that is not a multiple of 16 bytes.
    pub fn strided<T: Element>(
        slice: &'a impl DevicePtr<T>,
        stream: &'a CudaStream,
        extents: Extents,
        strides: Strides,
    ) -> Result<Self, Error> {
        check_bounds(slice.len(), extents, strides)?;
        let (address, record) = slice.device_ptr(stream);
        let tensor = Tensor::new(address, T::DTYPE, extents, strides)?;
        Ok(Self { tensor, order: Order::of(stream, record) })
    }

    /// A view of memory that somebody else owns and orders.
    ///
    /// # Errors
    /// As [`strided`](Self::strided), without a check of bounds.
    ///
    /// # Safety
    /// Until the calls that take this view have run on the device, all its elements are device memory that these calls'
    /// context can read, and nobody writes them.
    pub unsafe fn from_raw(
        address: u64,
        dtype: DType,
        extents: Extents,
        strides: Strides,
    ) -> Result<DeviceView<'static>, Error> {
        let tensor = Tensor::new(address, dtype, extents, strides)?;
        Ok(DeviceView { tensor, order: Order::FOREIGN })
    }

    /// The extents.
    pub const fn extents(&self) -> Extents {
        self.tensor.extents
    }

    /// The strides, in elements.
    pub const fn strides(&self) -> Strides {
        self.tensor.strides
    }

    /// The element type.
    pub const fn dtype(&self) -> DType {
        self.tensor.dtype
    }

    /// Where its first element is.
    pub const fn address(&self) -> u64 {
        self.tensor.address
    }

    /// Elements from the first to one past the last.
    pub fn reach(&self) -> usize {
        let (e, s) = (self.tensor.extents, self.tensor.strides);
        // It was checked when the view was made.
        (e.batch - 1) * s.batch + (e.seq - 1) * s.seq + (e.heads - 1) * s.heads + e.head_dim
    }

    /// The stream that the memory is ordered for; none when its owner sees to that.
    pub const fn stream(&self) -> Option<&'a CudaStream> {
        self.order.stream
    }
}

impl<'a> DeviceViewMut<'a> {
    /// Views `slice` as dense [b, s, h, d], for calls on `stream`.
    ///
    /// # Errors
    /// As [`DeviceView::strided`].
    pub fn bshd<T: Element>(
        slice: &'a mut impl DevicePtrMut<T>,
        stream: &'a CudaStream,
        extents: Extents,
    ) -> Result<Self, Error> {
        Self::strided(slice, stream, extents, Strides::bshd(extents))
    }

    /// Views `slice` as dense [b, h, s, d], for calls on `stream`.
    ///
    /// # Errors
    /// As [`DeviceView::strided`].
    pub fn bhsd<T: Element>(
        slice: &'a mut impl DevicePtrMut<T>,
        stream: &'a CudaStream,
        extents: Extents,
    ) -> Result<Self, Error> {
        Self::strided(slice, stream, extents, Strides::bhsd(extents))
    }

    /// Views `slice` with any strides, in elements. Rows that overlap hold what was written last.
    ///
    /// # Errors
    /// As [`DeviceView::strided`].
    pub fn strided<T: Element>(
        slice: &'a mut impl DevicePtrMut<T>,
        stream: &'a CudaStream,
        extents: Extents,
        strides: Strides,
    ) -> Result<Self, Error> {
        check_bounds(slice.len(), extents, strides)?;
        let (address, record) = slice.device_ptr_mut(stream);
        let tensor = Tensor::new(address, T::DTYPE, extents, strides)?;
        Ok(Self { tensor, order: Order::of(stream, record) })
    }

    /// A view of memory that somebody else owns and orders.
    ///
    /// # Errors
    /// As [`DeviceView::from_raw`].
    ///
    /// # Safety
    /// Until the calls that take this view have run on the device, all its elements are device memory that these calls'
    /// context can write, and nobody else uses them.
    pub unsafe fn from_raw(
        address: u64,
        dtype: DType,
        extents: Extents,
        strides: Strides,
    ) -> Result<DeviceViewMut<'static>, Error> {
        let tensor = Tensor::new(address, dtype, extents, strides)?;
        Ok(DeviceViewMut { tensor, order: Order::FOREIGN })
    }

    /// The extents.
    pub const fn extents(&self) -> Extents {
        self.tensor.extents
    }

    /// The element type.
    pub const fn dtype(&self) -> DType {
        self.tensor.dtype
    }

    /// As [`DeviceView::stream`].
    pub const fn stream(&self) -> Option<&'a CudaStream> {
        self.order.stream
    }
}

impl<'a> LseMut<'a> {
    /// All of `slice`, for calls on `stream`.
    pub fn new(slice: &'a mut impl DevicePtrMut<f32>, stream: &'a CudaStream) -> Self {
        let len = slice.len();
        let (address, record) = slice.device_ptr_mut(stream);
        Self { address, len, order: Order::of(stream, record) }
    }

    /// Memory that somebody else owns and orders.
    ///
    /// # Errors
    /// [`CudaError::Value`] for an address that is not a multiple of 4.
    ///
    /// # Safety
    /// As [`DeviceViewMut::from_raw`].
    pub unsafe fn from_raw(LseAt { address, len }: LseAt) -> Result<LseMut<'static>, Error> {
        if !address.is_multiple_of(4) {
            return Err(wrong("LseMut::from_raw", "address", address, "a multiple of 4".to_owned()));
        }
        Ok(LseMut { address, len, order: Order::FOREIGN })
    }

    /// How many numbers.
    pub const fn numbers(&self) -> usize {
        self.len
    }

    /// As [`DeviceView::stream`].
    pub const fn stream(&self) -> Option<&'a CudaStream> {
        self.order.stream
    }
}

impl Tensor {
    fn new(address: u64, dtype: DType, extents: Extents, strides: Strides) -> Result<Self, Error> {
        let call = "DeviceView";
        let steps = [
            ("batch stride", extents.batch, strides.batch),
            ("seq stride", extents.seq, strides.seq),
            ("heads stride", extents.heads, strides.heads),
        ];
        check_bounds(usize::MAX, extents, strides)?;
        check_address(call, address)?;
        for (name, extent, stride) in steps {
            check_stride(call, name, extent, stride.saturating_mul(dtype.size()))?;
        }
        Ok(Self { address, dtype, extents, strides })
    }
}

impl<'a> Order<'a> {
    /// Memory whose owner sees to the order.
    pub(super) const FOREIGN: Order<'static> = Order { stream: None, _record: None };

    pub(super) const fn of(stream: &'a CudaStream, record: SyncOnDrop<'a>) -> Self {
        Self { stream: Some(stream), _record: Some(record) }
    }

    /// The same stream, for a view that a longer-lived one keeps the record for.
    pub(super) const fn again(&self) -> Order<'_> {
        Order { stream: self.stream, _record: None }
    }

    /// That the memory may be used on `stream`.
    pub(super) fn check(
        &self,
        call: &'static str,
        tensor: &'static str,
        stream: &CudaStream,
    ) -> Result<(), Error> {
        match self.stream {
            Some(own) if own != stream => Err(CudaError::Stream { call, tensor }.into()),
            _ => Ok(()),
        }
    }
}

/// Base addresses of tensor maps.
pub(super) fn check_address(call: &'static str, address: u64) -> Result<(), Error> {
    if address.is_multiple_of(16) && address != 0 {
        return Ok(());
    }
    Err(wrong(call, "address", address, "a multiple of 16".to_owned()))
}

/// Strides of tensor maps; that of an extent of 1 is never taken.
pub(super) fn check_stride(
    call: &'static str,
    name: &'static str,
    extent: usize,
    bytes: usize,
) -> Result<(), Error> {
    if extent == 1 || (bytes.is_multiple_of(16) && (bytes as u64) < MAX_STRIDE) {
        return Ok(());
    }
    Err(wrong(call, name, bytes as u64, format!("a multiple of 16 bytes below {MAX_STRIDE}")))
}
