//! What can go wrong with the library; messages say what to do.
use std::ffi::c_int;
use std::fmt::Write as _;
use std::path::PathBuf;

use crate::Version;

/// One file that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// A bare name (the system's search path applies) or a path in a folder that was asked for.
    pub file: PathBuf,
    /// The dynamic loader's own words.
    pub reason: String,
}

/// Errors of this crate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No candidate could be opened.
    #[error("NVSHMEM is not loadable; tried{}; install NVSHMEM {} or name the folder of its library", listed(.attempts), Version::HEADERS)]
    NotFound {
        /// Each file with its reason, in the order of the attempts.
        attempts: Vec<Attempt>,
    },
    /// A library was opened that is no NVSHMEM, or one whose functions are not all there.
    #[error("{} has no function {symbol}; use NVSHMEM {}", .library.display(), Version::HEADERS)]
    MissingSymbol {
        /// The file that was opened.
        library: PathBuf,
        /// Name of the C function.
        symbol: &'static str,
    },
    /// A library was opened whose interface is not the one that this crate declares.
    #[error("{} is NVSHMEM {found}; it must be {}.x, {} or later", .library.display(), Version::HEADERS.major, Version::HEADERS)]
    HostVersion {
        /// The file that was opened.
        library: PathBuf,
        /// Its version.
        found: Version,
    },
    /// Device code was linked against another NVSHMEM than the host library.
    #[error(
        "{call}: device code is linked against NVSHMEM {device}, the host library is {host}; link it against libnvshmem_device.a {host}"
    )]
    DeviceVersion {
        /// Call that refused it.
        call: &'static str,
        /// Version of the device library.
        device: Version,
        /// Version of the loaded host library.
        host: Version,
    },
    /// A function of the library reported a failure.
    #[error("{call} returned {code}; run with NVSHMEM_DEBUG=WARN to see why")]
    Call {
        /// The C function.
        call: &'static str,
        /// What it returned.
        code: c_int,
    },
    /// A rank that the world does not have.
    #[error("{call}: PE {pe} is outside a world of {world}; ranks count from 0")]
    NoSuchPe {
        /// Call that refused it.
        call: &'static str,
        /// The rank.
        pe: u32,
        /// Size of the world.
        world: u32,
    },
    /// The library runs already; its state is per process.
    #[error("{call}: NVSHMEM is initialised in this process already; finalize that session first")]
    Started {
        /// Call that refused it.
        call: &'static str,
    },
    /// The ranks have met, but there is no GPU to make a heap on.
    #[error(
        "{call}: ranks have met, but no CUDA device is current; set the device before, and look for a driver"
    )]
    NoDevice {
        /// Call that found it.
        call: &'static str,
    },
    /// Bytes that are no unique id.
    #[error(
        "these 128 bytes start with {found:#x}, a unique id with {wanted:#x}; pass on what `unique_id` gave"
    )]
    NotUniqueId {
        /// The version field.
        found: c_int,
        /// What it must be.
        wanted: c_int,
    },
    /// The symmetric heap has no room.
    #[error("{call}: no room for {bytes} bytes on the symmetric heap; raise NVSHMEM_SYMMETRIC_SIZE")]
    NoMemory {
        /// Call that failed.
        call: &'static str,
        /// What was asked for.
        bytes: usize,
    },
}

fn listed(attempts: &[Attempt]) -> String {
    let mut text = String::new();
    for Attempt { file, reason } in attempts {
        let _ = write!(text, " {} ({reason})", file.display());
    }
    text
}
