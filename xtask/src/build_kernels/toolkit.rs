//! Finds the compiler: CUDA_HOME, then PATH, then the pinned wheels. Only release 13.x will do.
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::build_kernels::wheels;
use crate::files::workspace_root;

/// A compiler and what belongs to it.
#[derive(Clone, Debug)]
pub(super) struct Toolkit {
    /// The compiler driver.
    pub nvcc: PathBuf,
    /// Links device code.
    pub nvlink: PathBuf,
    /// Prints machine code; not there in every installation.
    pub cuobjdump: Option<PathBuf>,
    /// Such as `13.0, V13.0.88`.
    pub release: String,
    /// Where it was found, for the reader.
    pub origin: &'static str,
}

/// The first that fits.
///
/// # Errors
/// When the wheels are needed and cannot be set up.
pub(super) fn find() -> anyhow::Result<Toolkit> {
    for (origin, nvcc) in installed() {
        match release(&nvcc) {
            Some(release) if fits(&release) => return Ok(toolkit(nvcc, release, origin)),
            Some(release) => println!("nvcc of {origin} is release {release}; 13.x is needed, looking on"),
            None => {}
        }
    }
    let nvcc = wheels::set_up(&workspace_root().join("target"))?.join("bin/nvcc");
    let release = release(&nvcc).ok_or_else(|| anyhow::anyhow!("{} does not run", nvcc.display()))?;
    Ok(toolkit(nvcc, release, "pinned wheels"))
}

/// Compilers that this machine names, whether they are there or not.
#[expect(clippy::disallowed_methods, reason = "a program, and the variables are CUDA's, not ours")]
fn installed() -> Vec<(&'static str, PathBuf)> {
    let home = std::env::var_os("CUDA_HOME").map(|home| ("CUDA_HOME", Path::new(&home).join("bin/nvcc")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("nvcc")).find(|nvcc| nvcc.is_file());
    home.into_iter().chain(on_path.map(|nvcc| ("PATH", nvcc))).collect()
}

fn toolkit(nvcc: PathBuf, release: String, origin: &'static str) -> Toolkit {
    // A link on PATH points to the folder where the other tools are.
    let nvcc = nvcc.canonicalize().unwrap_or(nvcc);
    let beside = |name: &str| Some(nvcc.with_file_name(name)).filter(|path| path.is_file());
    // cuobjdump calls nvdisasm for the machine code.
    let cuobjdump = beside("nvdisasm").and_then(|_| beside("cuobjdump"));
    let nvlink = nvcc.with_file_name("nvlink");
    Toolkit { nvcc, nvlink, cuobjdump, release, origin }
}

fn release(nvcc: &Path) -> Option<String> {
    let output =
        Command::new(nvcc).arg("--version").output().ok().filter(|output| output.status.success())?;
    parse_release(&String::from_utf8_lossy(&output.stdout)).map(str::to_owned)
}

/// From the line `Cuda compilation tools, release 13.0, V13.0.88`.
fn parse_release(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.split_once(", release ")).map(|(_, release)| release.trim())
}

fn fits(release: &str) -> bool {
    release.starts_with("13.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_release_13_will_do() {
        let text =
            |release: &str| format!("nvcc: NVIDIA\nCuda compilation tools, release {release}\nBuild x\n");
        assert_eq!(parse_release(&text("13.0, V13.0.88")), Some("13.0, V13.0.88"));
        assert!(fits("13.0, V13.0.88") && fits("13.2, V13.2.1"));
        assert!(!fits("12.9, V12.9.86") && !fits("130.1, V130.1"));
        assert_eq!(parse_release("no such line"), None);
    }

    #[test]
    fn a_program_that_is_no_compiler_has_no_release() {
        assert_eq!(release(Path::new("true")), None);
        assert_eq!(release(Path::new("no-such-program")), None);
    }
}
