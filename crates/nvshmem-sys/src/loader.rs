//! Opens the library: one copy per process, its version before anything else, errors that say what was tried.
use std::ffi::c_int;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::sys::{Api, symbol};
use crate::{Attempt, Error, Search, Version};

/// The one library of this process.
static LOADED: OnceLock<Api> = OnceLock::new();

pub(crate) fn load(search: &Search) -> Result<&'static Api, Error> {
    if let Some(api) = LOADED.get() {
        return Ok(api);
    }
    let api = open(search)?;
    // Two threads may open it at once: the dynamic loader counts references, so dropping the second is harmless.
    Ok(LOADED.get_or_init(|| api))
}

/// Opens a library of its own, not the process-wide one.
fn open(search: &Search) -> Result<Api, Error> {
    let mut attempts = Vec::new();
    for file in search.files() {
        // NVSHMEM opens its plugins (bootstraps, transports) itself, from the folder that it lies in; they look up its
        // symbols, hence global.
        // SAFETY: opening runs the library's initialisers. The file carries NVSHMEM's name and comes from the system's
        // search path or the operator's folder, which are trusted like the program itself; NVSHMEM's initialisers
        // set up its own state only and need no CUDA driver.
        match unsafe { Library::open(Some(&file), RTLD_NOW | RTLD_GLOBAL) } {
            Ok(library) => return resolve(library, file),
            Err(error) => attempts.push(Attempt { file, reason: innermost(&error) }),
        }
    }
    Err(Error::NotFound { attempts })
}

fn resolve(library: Library, file: PathBuf) -> Result<Api, Error> {
    let found = version(&library, &file)?;
    if found.major != Version::HEADERS.major || found < Version::HEADERS {
        return Err(Error::HostVersion { library: file, found });
    }
    Api::resolve(library).map_err(|symbol| Error::MissingSymbol { library: file, symbol })
}

/// Version of a library of which nothing is known yet.
fn version(library: &Library, file: &Path) -> Result<Version, Error> {
    type Get = unsafe extern "C" fn(*mut c_int, *mut c_int, *mut c_int);
    // SAFETY: `Get` is the type that NVSHMEM's header gives this function since its first 3.x release.
    let get = unsafe { symbol::<Get>(library, "nvshmemx_vendor_get_version_info\0") };
    let missing =
        || Error::MissingSymbol { library: file.to_owned(), symbol: "nvshmemx_vendor_get_version_info" };
    let get = get.ok_or_else(missing)?;
    let (mut major, mut minor, mut patch) = (0, 0, 0);
    // SAFETY: the three pointers are to live, writable ints, which is all that the call asks for.
    unsafe { get(&raw mut major, &raw mut minor, &raw mut patch) };
    Ok(Version { major, minor, patch })
}

/// The dynamic loader's message without the wrapper around it.
fn innermost(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::CANDIDATES;

    #[test]
    fn absence_names_every_file_that_was_tried() {
        let folder = tempfile::tempdir().unwrap();
        let error = open(&Search::only(folder.path())).unwrap_err();
        let Error::NotFound { attempts } = &error else { panic!("{error}") };
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
        let Error::NotFound { attempts } = open(&Search::only(folder.path())).unwrap_err() else { panic!() };
        assert_ne!(
            attempts[0].reason, attempts[1].reason,
            "one file is there and broken, the other is not there"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn another_library_under_the_name_is_refused_by_its_missing_version() {
        // Some shared library is mapped into every process; any that is not NVSHMEM will do.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .find(|path| path.contains("libc.so"));
        let Some(libc) = libc else { return };
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(libc, folder.path().join(CANDIDATES[0])).unwrap();
        let error = open(&Search::only(folder.path())).unwrap_err();
        let missing = "nvshmemx_vendor_get_version_info";
        assert!(matches!(error, Error::MissingSymbol { symbol, .. } if symbol == missing), "{error}");
    }

    /// A library that tells a version and can do nothing else.
    fn pretend(version: Version) -> Result<Api, Error> {
        let folder = tempfile::tempdir().unwrap();
        let Version { major, minor, patch } = version;
        let source = folder.path().join("pretend.rs");
        let function = "pub unsafe extern \"C\" fn nvshmemx_vendor_get_version_info(a: *mut i32, b: *mut i32, c: *mut i32)";
        let body = format!("unsafe {{ *a = {major}; *b = {minor}; *c = {patch}; }}");
        std::fs::write(&source, format!("#[unsafe(no_mangle)]\n{function} {{ {body} }}\n")).unwrap();
        let words = ["--crate-type", "cdylib", "--edition", "2024", "-C", "panic=abort", "-o"];
        let made =
            Command::new("rustc").args(words).arg(folder.path().join(CANDIDATES[0])).arg(&source).output();
        let made = made.expect("cargo ran this test, so rustc is there");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        open(&Search::only(folder.path()))
    }

    #[test]
    fn the_version_is_judged_before_anything_else() {
        for (major, minor, patch) in [(2, 11, 0), (3, 4, 4), (3, 0, 6), (4, 0, 0)] {
            let version = Version { major, minor, patch };
            let error = pretend(version).unwrap_err();
            assert!(matches!(error, Error::HostVersion { found, .. } if found == version), "{error}");
            assert!(error.to_string().contains(&version.to_string()), "{error}");
        }
        // A version that we know gets as far as the functions that the pretender lacks.
        let error = pretend(Version { minor: 5, ..Version::HEADERS }).unwrap_err();
        assert!(matches!(error, Error::MissingSymbol { symbol, .. } if symbol == Api::NAMES[0]), "{error}");
    }
}
