//! NVSHMEM host library, found and loaded at run time.
//!
//! Nothing is linked: a machine without NVSHMEM builds and tests everything here, and asks [`is_present`].
//! Three layers: [`sys`] (what the headers of NVSHMEM 3.4.5 declare, under C's names), [`result`] (values instead of
//! out-parameters and codes, still unsafe, a prefix of the C name is a module), and [`Nvshmem`] with [`Session`].
//! What functions do is said in NVIDIA's [documentation](https://docs.nvidia.com/nvshmem/api/index.html).
//!
//! NVSHMEM keeps state per process, so one copy is loaded per process and never unloaded. This crate takes nothing from
//! the environment: values are passed to [`Search`]. The library itself reads its own `NVSHMEM_*` variables, and has no
//! other way to be told some things: [`Nvshmem::without_proxy`] sets two of them.
//!
//! ```
//! use nvshmem_sys::{Search, load};
//!
//! match load(&Search::system()) {
//!     Ok(nvshmem) => println!("NVSHMEM {}", nvshmem.version()),
//!     Err(absent) => println!("{absent}"),
//! }
//! ```
mod abandon;
mod error;
mod loader;
mod proxy;
pub mod result;
mod search;
mod session;
pub mod sys;

use std::fmt;

pub use error::{Attempt, Error};
pub use search::{CANDIDATES, Search};
pub use session::{Seat, Session, Status, UniqueId};

/// The README's example runs.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

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
    pub const HEADERS: Version = Version {
        major: sys::types::NVSHMEM_VENDOR_MAJOR_VERSION as i32,
        minor: sys::types::NVSHMEM_VENDOR_MINOR_VERSION as i32,
        patch: sys::types::NVSHMEM_VENDOR_PATCH_VERSION as i32,
    };
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

/// Loads the library once per process, from the first place of `search` that has one.
///
/// After the first success every call returns the same library, wherever it looks: NVSHMEM's state is per process. A
/// failure is not remembered, so other places can be tried.
///
/// # Errors
/// [`Error::NotFound`] with every file that was tried, [`Error::HostVersion`], [`Error::MissingSymbol`].
pub fn load(search: &Search) -> Result<Nvshmem, Error> {
    loader::load(search).map(|api| Nvshmem { api })
}

/// Whether the library can be loaded by the system's search path, or has been loaded already.
pub fn is_present() -> bool {
    load(&Search::system()).is_ok()
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

    /// Whether device code that is linked against this version of `libnvshmem_device` goes with the host library: they
    /// must be of one patch level.
    ///
    /// # Errors
    /// [`Error::DeviceVersion`].
    pub fn check_device(&self, device: Version) -> Result<(), Error> {
        // SAFETY: as in `version`.
        unsafe { result::module::check_device(self.api, "Nvshmem::check_device", device) }
    }

    /// What the library calls itself, for example `NVSHMEM v3.4.5`.
    pub fn name(&self) -> String {
        // SAFETY: as in `version`; the copy of the name is bounded by the buffer that `get_name` passes.
        unsafe { result::info::get_name(self.api) }
    }
}
