//! Gives tests a folder in which the simulator lies under the names of the real libraries.
//!
//! # Hardware connections
//! A process has `CUDA_DEVICE_MAX_CONNECTIONS` of them (default 8, 1 to 32); streams take them in turn, in the order in
//! which they are made. What blocks at the head of one blocks all streams that share it.
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The file that cargo makes of this crate.
const LIBRARY: &str = "libgpu_sim.so";

/// Names under which cudarc and nvshmem-sys look for the real libraries.
const NAMES: [&str; 3] = ["libcuda.so", "libcuda.so.1", "libnvshmem_host.so.3"];

/// Why there is no simulator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The program does not know where it lies itself.
    #[error("install: the path of this program is unknown ({0}); run it from a file")]
    Program(io::Error),
    /// It was not built, or the program lies elsewhere.
    #[error("install: no {LIBRARY} in {}; make gpu-sim a dev-dependency and run the test with cargo", list(.searched))]
    NotFound {
        /// Files that were looked for.
        searched: Vec<PathBuf>,
    },
    /// The temporary folder could not be made.
    #[error("install: cannot make {} ({reason}); look at the folder for temporary files", .file.display())]
    Link {
        /// The folder or link.
        file: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
}

/// The folder; it goes when this is dropped.
#[derive(Debug)]
pub struct Installed {
    folder: TempDir,
}

impl Installed {
    /// To be the `LD_LIBRARY_PATH` of child processes.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Finds the simulator beside the running program, or in a folder above it, and links it under the real names.
///
/// # Errors
/// [`Error::NotFound`] when cargo did not build it, [`Error::Program`], [`Error::Link`].
pub fn install() -> Result<Installed, Error> {
    let program = std::env::current_exe().map_err(Error::Program)?;
    let files = candidates(&program);
    let Some(library) = files.iter().find(|file| file.is_file()) else {
        return Err(Error::NotFound { searched: files });
    };
    let folder = TempDir::with_prefix("gpu-sim-")
        .map_err(|reason| Error::Link { file: std::env::temp_dir(), reason })?;
    for name in NAMES {
        let file = folder.path().join(name);
        std::os::unix::fs::symlink(library, &file).map_err(|reason| Error::Link { file, reason })?;
    }
    Ok(Installed { folder })
}

/// Beside the program (tests), then in `deps` of the folders above (examples, programs): cargo refreshes the file in
/// `deps` whenever this crate is a dependency, the one above it only when it is asked for itself.
fn candidates(program: &Path) -> Vec<PathBuf> {
    let folders = program.ancestors().skip(1).take(3);
    let beside = program.parent().map(|folder| folder.join(LIBRARY));
    let above = folders.flat_map(|folder| [folder.join("deps").join(LIBRARY), folder.join(LIBRARY)]);
    beside.into_iter().chain(above).collect()
}

fn list(files: &[PathBuf]) -> String {
    files.iter().map(|file| file.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_of_the_dependencies_comes_before_one_that_may_be_stale() {
        let files = candidates(Path::new("/t/debug/examples/a"));
        let place = |wanted: &str| files.iter().position(|file| file == Path::new(wanted));
        let (deps, above) = (place("/t/debug/deps/libgpu_sim.so"), place("/t/debug/libgpu_sim.so"));
        assert!(deps.is_some() && deps < above);
        assert_eq!(candidates(Path::new("/t/debug/deps/a"))[0], Path::new("/t/debug/deps/libgpu_sim.so"));
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = Error::NotFound { searched: candidates(Path::new("/t/a")) };
        assert!(
            error.to_string().contains("/t/libgpu_sim.so") && error.to_string().contains("dev-dependency")
        );
    }
}
