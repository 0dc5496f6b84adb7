//! Finds and opens the library: candidate names, one copy per process, errors that say what was tried.
use std::ffi::CStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::sys::Api;

/// File names that are tried, in this order. The first is the soname of NVSHMEM 3, the second the developer's link.
pub const CANDIDATES: [&str; 2] = ["libnvshmem_host.so.3", "libnvshmem_host.so"];

/// One file that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// A bare name (the system's search path applies) or a path in the folder that was asked for.
    pub file: PathBuf,
    /// The dynamic loader's own words.
    pub reason: String,
}

/// Why NVSHMEM cannot be used: the machine lacks it, or has one that we do not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// No candidate could be opened.
    #[error("NVSHMEM is not loadable; tried{}; install NVSHMEM 3.4 or name the folder of its library", listed(.attempts))]
    NotFound {
        /// Each file with its reason, in the order of the attempts.
        attempts: Vec<Attempt>,
    },
    /// A library was opened but it is not the one that we know.
    #[error("{} has no function {symbol}; use NVSHMEM 3.4", .library.display())]
    MissingSymbol {
        /// The file that was opened.
        library: PathBuf,
        /// Name of the C function.
        symbol: &'static str,
    },
}

/// The one library of this process.
static LOADED: OnceLock<Api> = OnceLock::new();

pub(crate) fn load(folder: Option<&Path>) -> Result<&'static Api, LoadError> {
    if let Some(api) = LOADED.get() {
        return Ok(api);
    }
    let api = open(folder)?;
    // Two threads may open it at once: the dynamic loader counts references, so dropping the second is harmless.
    Ok(LOADED.get_or_init(|| api))
}

/// Opens a library of its own, not the process-wide one.
fn open(folder: Option<&Path>) -> Result<Api, LoadError> {
    let mut attempts = Vec::new();
    for name in CANDIDATES {
        let file = folder.map_or_else(|| PathBuf::from(name), |folder| folder.join(name));
        // NVSHMEM's transport plugins look up its symbols, hence global.
        // SAFETY: opening runs the library's initialisers. The file carries NVSHMEM's name and comes from the system's
        // search path or the operator's folder, which are trusted like the program itself; NVSHMEM's initialisers
        // set up its own state only and need no CUDA driver.
        match unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => return resolve(library, file),
            Err(error) => attempts.push(Attempt { file, reason: innermost(&error) }),
        }
    }
    Err(LoadError::NotFound { attempts })
}

fn resolve(library: Library, file: PathBuf) -> Result<Api, LoadError> {
    // SAFETY: `sys::InfoGetVersion` is the type that NVSHMEM's header gives this function.
    let nvshmem_info_get_version = unsafe { function(&library, &file, c"nvshmem_info_get_version") }?;
    // SAFETY: `sys::InfoGetName` is the type that NVSHMEM's header gives this function.
    let nvshmem_info_get_name = unsafe { function(&library, &file, c"nvshmem_info_get_name") }?;
    // SAFETY: `sys::VendorGetVersionInfo` is the type that NVSHMEM's header gives this function.
    let nvshmemx_vendor_get_version_info =
        unsafe { function(&library, &file, c"nvshmemx_vendor_get_version_info") }?;
    Ok(Api {
        nvshmem_info_get_version,
        nvshmem_info_get_name,
        nvshmemx_vendor_get_version_info,
        _library: library,
    })
}

/// Looks one function up.
///
/// # Safety
/// `F` must be the type of that function, and may be called only while `library` lives.
unsafe fn function<F: Copy>(library: &Library, file: &Path, symbol: &'static CStr) -> Result<F, LoadError> {
    // SAFETY: the caller vouches for the type; the pointer is stored beside the library, so it never outlives it.
    match unsafe { library.get::<F>(symbol) } {
        Ok(found) => Ok(*found),
        Err(_) => {
            let symbol = symbol.to_str().unwrap_or("(a name that is not UTF-8)");
            Err(LoadError::MissingSymbol { library: file.to_owned(), symbol })
        }
    }
}

/// The dynamic loader's message without the wrapper around it.
fn innermost(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn listed(attempts: &[Attempt]) -> String {
    let mut text = String::new();
    for Attempt { file, reason } in attempts {
        let _ = write!(text, " {} ({reason})", file.display());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absence_names_every_file_that_was_tried() {
        let folder = tempfile::tempdir().unwrap();
        let error = open(Some(folder.path())).unwrap_err();
        let LoadError::NotFound { attempts } = &error else { panic!("{error}") };
        let tried: Vec<_> = attempts.iter().map(|attempt| attempt.file.clone()).collect();
        assert_eq!(tried, CANDIDATES.map(|name| folder.path().join(name)));
        assert!(attempts.iter().all(|attempt| !attempt.reason.is_empty()));
        for name in CANDIDATES {
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_library_is_reported_in_the_loaders_words() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(CANDIDATES[0]), "not an ELF file").unwrap();
        let LoadError::NotFound { attempts } = open(Some(folder.path())).unwrap_err() else { panic!() };
        assert_ne!(
            attempts[0].reason, attempts[1].reason,
            "one file is there and broken, the other is not there"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn another_library_under_the_name_is_refused_by_the_first_missing_function() {
        // Some shared library is mapped into every process; any that is not NVSHMEM will do.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .find(|path| path.contains("libc.so"));
        let Some(libc) = libc else { return };
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(libc, folder.path().join(CANDIDATES[0])).unwrap();
        let error = open(Some(folder.path())).unwrap_err();
        assert!(
            matches!(error, LoadError::MissingSymbol { symbol: "nvshmem_info_get_version", .. }),
            "{error}"
        );
    }
}
