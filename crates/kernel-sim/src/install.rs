//! The plugin and the files of its kernels, for child processes of tests.
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

const LIBRARY: &str = "libkernel_sim.so";

/// The folder of the binaries, beside that file: it stays, and the next test finds it as it must be.
const FOLDER: &str = "simulated-kernels";

/// What is in each of them.
const CONTENT: &[u8] = b"simulated";

/// Binaries that `Kernels::load` reads; the simulated driver takes any bytes.
const BINARIES: [&str; 6] =
    ["fwd_d128_bf16", "fwd_d128_f16", "mask", "bwd_d128_bf16", "bwd_d128_f16", "probe"];

/// Why there are no simulated kernels.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The driver is not there.
    #[error(transparent)]
    Driver(#[from] gpu_sim::Error),
    /// The program does not know where it lies itself.
    #[error("install: the path of this program is unknown ({0}); run it from a file")]
    Program(io::Error),
    /// It was not built, or the program lies elsewhere.
    #[error("install: no {LIBRARY} beside {} or above; make kernel-sim a dev-dependency and run the test with cargo",
        .program.display())]
    NotFound {
        /// The running program.
        program: PathBuf,
    },
    /// The folder of kernels could not be made.
    #[error("install: cannot write {} ({reason}); look at cargo's target folder", .file.display())]
    Write {
        /// The folder or file.
        file: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
}

/// The simulated driver with our kernels, in folders that all tests share.
#[derive(Debug)]
pub struct Installed {
    driver: gpu_sim::Installed,
    kernels: PathBuf,
    plugin: PathBuf,
}

impl Installed {
    /// What child processes need in their environment. `FM_KERNELS` is read by the GPU tests of fm3-kernels only: other
    /// programs are told of [`kernels`](Self::kernels) in their own way.
    pub fn variables(&self) -> [(&'static str, OsString); 3] {
        [
            ("LD_LIBRARY_PATH", self.driver.folder().into()),
            ("GPU_SIM_KERNELS", self.plugin.clone().into()),
            ("FM_KERNELS", self.kernels().into()),
        ]
    }

    /// The folder for `KernelSource::Folder`.
    pub fn kernels(&self) -> &Path {
        &self.kernels
    }

    /// The simulated driver.
    pub const fn driver(&self) -> &gpu_sim::Installed {
        &self.driver
    }
}

/// Finds the simulated driver and the plugin beside the running program, or in a folder above it.
///
/// # Errors
/// [`Error::Driver`], [`Error::NotFound`] when cargo did not build them; [`Error::Program`]; [`Error::Write`].
pub fn install() -> Result<Installed, Error> {
    let driver = gpu_sim::install()?;
    let program = std::env::current_exe().map_err(Error::Program)?;
    let plugin = candidates(&program).into_iter().find(|file| file.is_file());
    let plugin = plugin.ok_or(Error::NotFound { program })?;
    let kernels = plugin.with_file_name(FOLDER);
    let failed = |file: &Path| {
        let file = file.to_path_buf();
        |reason| Error::Write { file, reason }
    };
    std::fs::create_dir_all(&kernels).map_err(failed(&kernels))?;
    for name in BINARIES {
        let file = kernels.join(format!("{name}.sm_90a.cubin"));
        write(&file).map_err(failed(&file))?;
    }
    Ok(Installed { driver, kernels, plugin })
}

/// Leaves a file that is as it must be alone: others may be reading it. A new one is there whole or not at all.
fn write(file: &Path) -> io::Result<()> {
    if std::fs::read(file).is_ok_and(|bytes| bytes == CONTENT) {
        return Ok(());
    }
    let folder = file.parent().unwrap_or_else(|| Path::new("."));
    let mut new = NamedTempFile::new_in(folder)?;
    io::Write::write_all(&mut new, CONTENT)?;
    new.persist(file).map(drop).map_err(|error| error.error)
}

/// Beside the program (tests), then in `deps` of the folders above (examples, programs): cargo refreshes the file in
/// `deps` whenever this crate is a dependency, the one above it only when it is asked for itself.
fn candidates(program: &Path) -> Vec<PathBuf> {
    let beside = program.parent().map(|folder| folder.join(LIBRARY));
    let folders = program.ancestors().skip(1).take(3);
    let above = folders.flat_map(|folder| [folder.join("deps").join(LIBRARY), folder.join(LIBRARY)]);
    beside.into_iter().chain(above).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binaries_are_written_once_and_mended() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.cubin");
        write(&file).unwrap();
        let written = std::fs::metadata(&file).unwrap().modified().unwrap();
        write(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().modified().unwrap(), written);
        std::fs::write(&file, "half").unwrap();
        write(&file).unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), CONTENT);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(write(&folder.path().join("no/such")).is_err());
    }
}
