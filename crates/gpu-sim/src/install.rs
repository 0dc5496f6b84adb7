//! Gives tests a folder in which the simulator lies under the names of the real libraries.
//!
//! # Hardware connections
//! A process has `CUDA_DEVICE_MAX_CONNECTIONS` of them (default 8, 1 to 32); streams take them in turn, in the order in
//! which they are made. What blocks at the head of one blocks all streams that share it.
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The file that cargo makes of this crate.
const LIBRARY: &str = "libgpu_sim.so";

/// The folder, beside that file: it stays, and the next test finds it as it must be.
const FOLDER: &str = "simulated-driver";

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
    /// The folder could not be made.
    #[error("install: cannot make {} ({reason}); look at cargo's target folder", .file.display())]
    Link {
        /// The folder or link.
        file: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
}

/// The folder.
#[derive(Debug)]
pub struct Installed {
    folder: PathBuf,
}

impl Installed {
    /// To be the `LD_LIBRARY_PATH` of child processes.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Finds the simulator beside the running program, or in a folder above it, and links it under the real names, in a
/// folder beside it that all tests share.
///
/// # Errors
/// [`Error::NotFound`] when cargo did not build it, [`Error::Program`], [`Error::Link`].
pub fn install() -> Result<Installed, Error> {
    let program = std::env::current_exe().map_err(Error::Program)?;
    let files = candidates(&program);
    let Some(library) = files.iter().find(|file| file.is_file()) else {
        return Err(Error::NotFound { searched: files });
    };
    let folder = library.with_file_name(FOLDER);
    std::fs::create_dir_all(&folder).map_err(|reason| Error::Link { file: folder.clone(), reason })?;
    for name in NAMES {
        let file = folder.join(name);
        link(&file).map_err(|reason| Error::Link { file, reason })?;
    }
    Ok(Installed { folder })
}

/// Makes `file` a link to the library, unless it is one.
fn link(file: &Path) -> io::Result<()> {
    let library = Path::new("..").join(LIBRARY);
    match symlink(&library, file) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if std::fs::read_link(file)? == library { Ok(()) } else { Err(error) }
        }
        made => made,
    }
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
    fn the_folder_is_made_once_and_nothing_else_in_it_is_touched() {
        let [first, second] = [install().unwrap(), install().unwrap()];
        assert_eq!(first.folder(), second.folder());
        let library = first.folder().with_file_name(LIBRARY).canonicalize().unwrap();
        for name in NAMES {
            assert_eq!(first.folder().join(name).canonicalize().unwrap(), library);
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(NAMES[0]);
        std::fs::write(&file, "something else").unwrap();
        assert_eq!(link(&file).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        std::fs::remove_file(&file).unwrap();
        symlink("elsewhere", &file).unwrap();
        assert_eq!(link(&file).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = Error::NotFound { searched: candidates(Path::new("/t/a")) };
        assert!(
            error.to_string().contains("/t/libgpu_sim.so") && error.to_string().contains("dev-dependency")
        );
    }
}
