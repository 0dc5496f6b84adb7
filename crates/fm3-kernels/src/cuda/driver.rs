//! The driver itself: whether it is there, and its answers as errors.
#![expect(unsafe_code, reason = "asking for the driver library runs its initialisers")]
use std::sync::{Arc, OnceLock};

use cudarc::driver::{CudaContext, DriverError, sys};

use super::CudaError;
use crate::Error;

/// The primary context of device `ordinal`.
///
/// # Errors
/// [`CudaError::NoDriver`] on a machine without CUDA; [`CudaError::Driver`], for example when there is no such device.
pub fn context(ordinal: usize) -> Result<Arc<CudaContext>, Error> {
    if !is_present() {
        return Err(CudaError::NoDriver.into());
    }
    CudaContext::new(ordinal).named("cuDevicePrimaryCtxRetain")
}

/// Whether a driver library can be loaded. It says nothing of devices.
pub fn is_present() -> bool {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: it opens libcuda by its usual names, whose initialisers are safe to run; any user of CUDA does it.
    *PRESENT.get_or_init(|| unsafe { sys::is_culib_present() })
}

/// Gives a driver's answer the name of the call.
pub(super) trait Named<T> {
    fn named(self, call: &'static str) -> Result<T, Error>;
}

impl<T> Named<T> for Result<T, DriverError> {
    fn named(self, call: &'static str) -> Result<T, Error> {
        self.map_err(|error| {
            let text = |text: Result<&std::ffi::CStr, DriverError>| {
                text.map_or_else(|_| "unknown".to_owned(), |text| text.to_string_lossy().into_owned())
            };
            let text = format!("{}, {}", text(error.error_name()), text(error.error_string()));
            CudaError::Driver { call, code: error.0 as u32, text }.into()
        })
    }
}
