//! C signatures as NVSHMEM 3.4.5 declares them, and the table of loaded functions.
use std::ffi::{c_char, c_int};

use libloading::os::unix::Library;

/// Bytes of the buffer that [`InfoGetName`] writes to, its closing NUL included (`NVSHMEM_MAX_NAME_LEN`).
pub const NVSHMEM_MAX_NAME_LEN: usize = 256;

/// `void nvshmem_info_get_version(int *major, int *minor)`: version of the OpenSHMEM standard.
pub type InfoGetVersion = unsafe extern "C" fn(major: *mut c_int, minor: *mut c_int);

/// `void nvshmem_info_get_name(char *name)`: writes at most [`NVSHMEM_MAX_NAME_LEN`] bytes.
pub type InfoGetName = unsafe extern "C" fn(name: *mut c_char);

/// `void nvshmemx_vendor_get_version_info(int *major, int *minor, int *patch)`: version of the library.
pub type VendorGetVersionInfo = unsafe extern "C" fn(major: *mut c_int, minor: *mut c_int, patch: *mut c_int);

/// Functions of one loaded library; they stay callable for as long as this value lives.
#[derive(Debug)]
pub struct Api {
    /// See [`InfoGetVersion`].
    pub nvshmem_info_get_version: InfoGetVersion,
    /// See [`InfoGetName`].
    pub nvshmem_info_get_name: InfoGetName,
    /// See [`VendorGetVersionInfo`].
    pub nvshmemx_vendor_get_version_info: VendorGetVersionInfo,
    /// Keeps the code mapped.
    pub(crate) _library: Library,
}
