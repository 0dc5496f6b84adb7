//! The plugin and the files of its kernels, for child processes of tests.
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

const LIBRARY: &str = "libkernel_sim.so";

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
    #[error("install: cannot write {} ({reason}); look at the folder for temporary files", .file.display())]
    Write {
        /// The folder or file.
        file: PathBuf,
        /// The system's reason.
        reason: io::Error,
    },
}

/// The simulated driver with our kernels; its folders go when this is dropped.
#[derive(Debug)]
pub struct Installed {
    driver: gpu_sim::Installed,
    kernels: TempDir,
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
        self.kernels.path()
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
    let kernels = TempDir::with_prefix("kernel-sim-")
        .map_err(|reason| Error::Write { file: std::env::temp_dir(), reason })?;
    for name in BINARIES {
        let file = kernels.path().join(format!("{name}.sm_90a.cubin"));
        std::fs::write(&file, "simulated").map_err(|reason| Error::Write { file, reason })?;
    }
    Ok(Installed { driver, kernels, plugin })
}

/// Beside the program (tests), then in `deps` of the folders above (examples, programs): cargo refreshes the file in
/// `deps` whenever this crate is a dependency, the one above it only when it is asked for itself.
fn candidates(program: &Path) -> Vec<PathBuf> {
    let beside = program.parent().map(|folder| folder.join(LIBRARY));
    let folders = program.ancestors().skip(1).take(3);
    let above = folders.flat_map(|folder| [folder.join("deps").join(LIBRARY), folder.join(LIBRARY)]);
    beside.into_iter().chain(above).collect()
}
