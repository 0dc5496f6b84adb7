//! Device code that is linked against `libnvshmem_device`: it must learn the host library's state before it runs
//! ([setup, exit and query](https://docs.nvidia.com/nvshmem/api/gen/api/setup.html)).
use super::checked;
use crate::sys::Api;
use crate::sys::types::{CUlibrary, CUmodule};
use crate::{Error, Version};

/// Whether device code linked against `device` goes with this host library: they must be of one patch level. The
/// library's own check comes later, by a message and a code.
///
/// # Errors
/// [`Error::DeviceVersion`].
///
/// # Safety
/// The functions of `api` must be NVSHMEM's.
pub unsafe fn check_device(api: &Api, call: &'static str, device: Version) -> Result<(), Error> {
    // SAFETY: the same promise.
    let host = unsafe { super::vendor::get_version_info(api) };
    if device == host { Ok(()) } else { Err(Error::DeviceVersion { call, device, host }) }
}

/// Makes a loaded module know the heap; `device` is the version of the device library in it.
///
/// # Errors
/// [`Error::DeviceVersion`], or [`Error::Call`].
///
/// # Safety
/// The library must be initialised, and the module live in the current context.
pub unsafe fn cumodule_init(api: &Api, module: CUmodule, device: Version) -> Result<(), Error> {
    // SAFETY: an initialised library is NVSHMEM's.
    unsafe { check_device(api, "nvshmemx_cumodule_init", device) }?;
    // SAFETY: the caller vouches for the module.
    checked("nvshmemx_cumodule_init", unsafe { (api.nvshmemx_cumodule_init)(module) })
}

/// Takes [`cumodule_init`] back, before the module is unloaded.
///
/// # Errors
/// [`Error::Call`].
///
/// # Safety
/// The module must be one that was initialised, and none of its kernels may run.
pub unsafe fn cumodule_finalize(api: &Api, module: CUmodule) -> Result<(), Error> {
    // SAFETY: the caller vouches for it.
    checked("nvshmemx_cumodule_finalize", unsafe { (api.nvshmemx_cumodule_finalize)(module) })
}

/// As [`cumodule_init`], for a library of kernels that is not bound to a context.
///
/// # Errors
/// As [`cumodule_init`].
///
/// # Safety
/// As [`cumodule_init`].
pub unsafe fn culibrary_init(api: &Api, library: CUlibrary, device: Version) -> Result<(), Error> {
    // SAFETY: an initialised library is NVSHMEM's.
    unsafe { check_device(api, "nvshmemx_culibrary_init", device) }?;
    // SAFETY: the caller vouches for the library.
    checked("nvshmemx_culibrary_init", unsafe { (api.nvshmemx_culibrary_init)(library) })
}

/// Takes [`culibrary_init`] back, before the library is unloaded.
///
/// # Errors
/// [`Error::Call`].
///
/// # Safety
/// As [`cumodule_finalize`].
pub unsafe fn culibrary_finalize(api: &Api, library: CUlibrary) -> Result<(), Error> {
    // SAFETY: the caller vouches for it.
    checked("nvshmemx_culibrary_finalize", unsafe { (api.nvshmemx_culibrary_finalize)(library) })
}
