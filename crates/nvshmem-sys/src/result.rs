//! The same functions with values instead of out-parameters and codes. Still unsafe; a prefix of the C name is a module
//! here. Every function needs that those of `api` are NVSHMEM's, as the loader has them; most need more, as said there.
//!
//! NVSHMEM is initialised for one thread at a time (`NVSHMEM_THREAD_SERIALIZED`): callers keep their calls apart. It
//! ends the process on many mistakes (a rank that is not there, a heap before a device is set), so look before.
use std::ffi::c_int;

use crate::Error;

pub mod heap;
pub mod init;
pub mod module;
pub mod stream;
pub mod team;

/// `nvshmem_info_*`: what the library follows and how it is called.
pub mod info {
    use std::ffi::{CStr, c_char};

    use crate::SpecVersion;
    use crate::sys::{Api, types::NVSHMEM_MAX_NAME_LEN};

    /// Version of the OpenSHMEM standard.
    ///
    /// # Safety
    /// The functions of `api` must be NVSHMEM's.
    pub unsafe fn get_version(api: &Api) -> SpecVersion {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: both pointers are to live, writable ints, which is all that the call asks for.
        unsafe { (api.nvshmem_info_get_version)(&raw mut major, &raw mut minor) };
        SpecVersion { major, minor }
    }

    /// Name of the library, at most `NVSHMEM_MAX_NAME_LEN - 1` bytes.
    ///
    /// # Safety
    /// The functions of `api` must be NVSHMEM's.
    pub unsafe fn get_name(api: &Api) -> String {
        // One byte more than is ever written stays 0, so the text ends even if the library forgets its NUL.
        let mut buffer = [0u8; NVSHMEM_MAX_NAME_LEN as usize + 1];
        // SAFETY: the buffer is at least as long as the header says that the call writes.
        unsafe { (api.nvshmem_info_get_name)(buffer.as_mut_ptr().cast::<c_char>()) };
        CStr::from_bytes_until_nul(&buffer)
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}

/// `nvshmemx_vendor_*`: extensions that name the vendor's own release.
pub mod vendor {
    use crate::Version;
    use crate::sys::Api;

    /// Version of the library.
    ///
    /// # Safety
    /// The functions of `api` must be NVSHMEM's.
    pub unsafe fn get_version_info(api: &Api) -> Version {
        let (mut major, mut minor, mut patch) = (0, 0, 0);
        // SAFETY: the three pointers are to live, writable ints, which is all that the call asks for.
        unsafe { (api.nvshmemx_vendor_get_version_info)(&raw mut major, &raw mut minor, &raw mut patch) };
        Version { major, minor, patch }
    }
}

/// A code as a result: 0 is success everywhere.
fn checked(call: &'static str, code: c_int) -> Result<(), Error> {
    if code == 0 { Ok(()) } else { Err(Error::Call { call, code }) }
}
