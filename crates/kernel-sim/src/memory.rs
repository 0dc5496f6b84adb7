//! Device memory, which is this process's: all raw reads and writes of kernels are here.
//!
//! These functions are safe to call inside the crate by one rule: an address comes from a kernel's parameters (or from
//! a table in device memory that they point to), and whoever launches vouches for it, as on a GPU. A null or misaligned
//! address panics, and the launch fails as one with an illegal address does.
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU32, AtomicU64};

use bytemuck::Pod;

/// An array of unknown length.
#[derive(Debug)]
pub(crate) struct Array<T> {
    address: u64,
    element: PhantomData<T>,
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Array<T> {}

impl<T: Pod> Array<T> {
    pub(crate) const fn at(address: u64) -> Self {
        Self { address, element: PhantomData }
    }

    /// Element `index`.
    pub(crate) fn get(self, index: usize) -> T {
        // SAFETY: the launching program vouches that the parameter points to more than `index` elements; aligned and
        // not null, or `pointer` has panicked.
        unsafe { self.pointer(index).read() }
    }

    pub(crate) fn set(self, index: usize, value: T) {
        // SAFETY: as for `get`, and that the kernel may write there.
        unsafe { self.pointer(index).write(value) };
    }

    /// `to.len()` elements from `index` on.
    pub(crate) fn read(self, index: usize, to: &mut [T]) {
        // SAFETY: as for `get`, for all of them; `to` is memory of the simulated kernel's own.
        unsafe { self.pointer(index).copy_to_nonoverlapping(to.as_mut_ptr(), to.len()) };
    }

    /// As many elements as `from` has.
    pub(crate) fn write(self, index: usize, from: &[T]) {
        // SAFETY: as for `read`, and that the kernel may write there.
        unsafe { self.pointer(index).copy_from_nonoverlapping(from.as_ptr(), from.len()) };
    }

    fn pointer(self, index: usize) -> *mut T {
        let first = pointer::<T>(self.address);
        first.wrapping_add(index)
    }
}

/// A word that others write meanwhile.
pub(crate) fn word32(address: u64) -> &'static AtomicU32 {
    // SAFETY: aligned and not null; the launching program vouches that it lives while the kernel runs, and everybody
    // who shares it uses it as an atomic.
    unsafe { AtomicU32::from_ptr(pointer(address)) }
}

/// A word of 8 bytes that others write meanwhile.
pub(crate) fn word64(address: u64) -> &'static AtomicU64 {
    // SAFETY: as for `word32`.
    unsafe { AtomicU64::from_ptr(pointer(address)) }
}

fn pointer<T>(address: u64) -> *mut T {
    let pointer = std::ptr::with_exposed_provenance_mut::<T>(index(address));
    assert!(
        !pointer.is_null() && pointer.is_aligned(),
        "illegal address {address:#x} of a {}",
        align_of::<T>()
    );
    pointer
}

/// An index or address as the host counts.
pub(crate) fn index(number: u64) -> usize {
    usize::try_from(number).expect("device memory is this process's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_and_written_where_they_are() {
        let mut data = [1_u32, 2, 3, 4];
        let array = Array::<u32>::at((&raw mut data).expose_provenance() as u64);
        array.set(3, array.get(0) + 10);
        array.write(1, &[7, 8]);
        let mut two = [0; 2];
        array.read(2, &mut two);
        assert_eq!((two, data), ([8, 11], [1, 7, 8, 11]));
    }

    #[test]
    #[should_panic(expected = "illegal address 0x0")]
    fn null_is_no_address() {
        Array::<u32>::at(0).get(0);
    }

    #[test]
    #[should_panic(expected = "illegal address 0x1002")]
    fn words_are_aligned() {
        word32(0x1002);
    }
}
