//! NVSHMEM host library, found and loaded at run time.
//!
//! Nothing is linked: a machine without NVSHMEM builds and tests everything here, and asks [`is_present`].
//! Three layers with the same names: [`sys`] (C signatures), [`result`] (values instead of out-parameters, still
//! unsafe), and [`Nvshmem`] (safe). Signatures follow the headers of NVSHMEM 3.4.5.
//!
//! NVSHMEM keeps state per process, so one copy is loaded per process and never unloaded. The environment is not
//! read; a folder is an argument. (The library itself reads its own `NVSHMEM_*` variables.)
//!
//! ```
//! match nvshmem_sys::load(None) {
//!     Ok(nvshmem) => println!("NVSHMEM {}", nvshmem.version()),
//!     Err(absent) => println!("{absent}"),
//! }
//! ```
mod loader;
pub mod result;
pub mod sys;

use std::fmt;
use std::path::Path;

pub use loader::{Attempt, CANDIDATES, LoadError};

/// The loaded library. Cheap to copy; lives as long as the process.
#[derive(Clone, Copy, Debug)]
pub struct Nvshmem {
    api: &'static sys::Api,
}

/// Version of the library itself (3.4.5), not of the OpenSHMEM standard that it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// Changes when the interface breaks.
    pub major: i32,
    /// Changes when the interface grows.
    pub minor: i32,
    /// Device code must be linked against the very same patch level as the host library.
    pub patch: i32,
}

impl Version {
    /// Version of the headers that [`sys`] follows.
    pub const HEADERS: Version = Version { major: 3, minor: 4, patch: 5 };
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Version of the OpenSHMEM standard that the library follows (1.3 for NVSHMEM 3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SpecVersion {
    /// Major version of the standard.
    pub major: i32,
    /// Minor version of the standard.
    pub minor: i32,
}

/// Loads the library once per process: from `folder` alone if given, else by the system's search path.
///
/// After the first success every call returns the same library, whatever `folder` says: NVSHMEM's state is per
/// process. A failure is not remembered, so another folder can be tried.
///
/// # Errors
/// [`LoadError`]: which files were tried and why each failed, or which function the library lacks.
pub fn load(folder: Option<&Path>) -> Result<Nvshmem, LoadError> {
    loader::load(folder).map(|api| Nvshmem { api })
}

/// Whether the library can be loaded by the system's search path, or has been loaded already.
pub fn is_present() -> bool {
    load(None).is_ok()
}

impl Nvshmem {
    /// Version of the loaded library. May be asked before it is initialised.
    pub fn version(&self) -> Version {
        // SAFETY: `api` came from the loader, so its functions are NVSHMEM's; this one only reads constants.
        unsafe { result::vendor::get_version_info(self.api) }
    }

    /// Version of the OpenSHMEM standard that it follows. May be asked before it is initialised.
    pub fn spec_version(&self) -> SpecVersion {
        // SAFETY: as in `version`.
        unsafe { result::info::get_version(self.api) }
    }

    /// What the library calls itself, for example `NVSHMEM v3.4.5`.
    pub fn name(&self) -> String {
        // SAFETY: as in `version`; the copy of the name is bounded by the buffer that `get_name` passes.
        unsafe { result::info::get_name(self.api) }
    }
}
