//! The symmetric heap, and memory of the caller that is made known to the library
//! ([memory management](https://docs.nvidia.com/nvshmem/api/gen/api/memory.html)).
use std::alloc::Layout;
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;

use super::checked;
use crate::Error;
use crate::sys::Api;

/// Device memory at the same place of every rank's heap; `None` without room. Collective: all ranks ask for the same.
///
/// # Safety
/// The library must be initialised, and every rank must call this with the same layout.
pub unsafe fn align(api: &Api, layout: Layout) -> Option<NonNull<c_void>> {
    // SAFETY: an alignment is a power of two by its type; the caller vouches for the rest.
    NonNull::new(unsafe { (api.nvshmem_align)(layout.align(), layout.size()) })
}

/// As [`align()`], and filled with zeros.
///
/// # Safety
/// As [`align()`].
pub unsafe fn calloc(api: &Api, bytes: usize) -> Option<NonNull<c_void>> {
    // SAFETY: the caller vouches for it.
    NonNull::new(unsafe { (api.nvshmem_calloc)(bytes, 1) })
}

/// Gives memory back. Collective.
///
/// # Safety
/// `memory` must come from the heap and be unused everywhere, by kernels and peers too; every rank must call this.
pub unsafe fn free(api: &Api, memory: NonNull<c_void>) {
    // SAFETY: the caller vouches for it.
    unsafe { (api.nvshmem_free)(memory.as_ptr()) }
}

/// Where this address of my heap is in that of `pe`, if kernels here can reach it by loads and stores.
///
/// # Safety
/// The library must be initialised, and `pe` a rank of the world.
pub unsafe fn ptr(api: &Api, address: *const c_void, pe: c_int) -> Option<NonNull<c_void>> {
    // SAFETY: the address is looked up, not read; the caller vouches for the rank.
    NonNull::new(unsafe { (api.nvshmem_ptr)(address, pe) })
}

/// Makes memory of the caller known, so that it can be the local end of a put or get to another node. Local.
///
/// # Errors
/// [`Error::Call`], for example for memory that the transports cannot pin.
///
/// # Safety
/// The library must be initialised; the memory must live until it is taken back.
pub unsafe fn buffer_register(api: &Api, memory: NonNull<c_void>, bytes: usize) -> Result<(), Error> {
    // SAFETY: the caller vouches for it.
    let code = unsafe { (api.nvshmemx_buffer_register)(memory.as_ptr(), bytes) };
    checked("nvshmemx_buffer_register", code)
}

/// Takes [`buffer_register`] back. Local.
///
/// # Errors
/// [`Error::Call`] for memory that is not registered.
///
/// # Safety
/// The library must be initialised, and nothing that is under way may use the memory.
pub unsafe fn buffer_unregister(api: &Api, memory: NonNull<c_void>) -> Result<(), Error> {
    // SAFETY: the caller vouches for it.
    let code = unsafe { (api.nvshmemx_buffer_unregister)(memory.as_ptr()) };
    checked("nvshmemx_buffer_unregister", code)
}

/// Makes memory of the caller a part of the symmetric heap; the address to use. Collective.
///
/// # Safety
/// As [`align()`]; the memory must be of a kind that the library can map (CUDA's virtual memory management), and live
/// until it is taken back.
pub unsafe fn buffer_register_symmetric(
    api: &Api,
    memory: NonNull<c_void>,
    bytes: usize,
) -> Option<NonNull<c_void>> {
    // SAFETY: the caller vouches for it; no flags are defined yet.
    NonNull::new(unsafe { (api.nvshmemx_buffer_register_symmetric)(memory.as_ptr(), bytes, 0) })
}

/// Takes [`buffer_register_symmetric`] back; `memory` is what it returned. Collective.
///
/// # Errors
/// [`Error::Call`].
///
/// # Safety
/// As [`free`].
pub unsafe fn buffer_unregister_symmetric(
    api: &Api,
    memory: NonNull<c_void>,
    bytes: usize,
) -> Result<(), Error> {
    // SAFETY: the caller vouches for it.
    let code = unsafe { (api.nvshmemx_buffer_unregister_symmetric)(memory.as_ptr(), bytes) };
    checked("nvshmemx_buffer_unregister_symmetric", code)
}
