//! The compiler as Python wheels of fixed versions and hashes, unpacked under `target/`.
//!
//! pip fetches them from wherever it is told to on this machine, and refuses a file with another hash.
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use xxhash_rust::xxh3::xxh3_64;

use crate::shell::{command, run, works};

/// Name, version, SHA-256 of the wheel for x86-64 Linux. No cuobjdump or nvdisasm 13.0 is published;
/// newer ones read the same binaries.
const WHEELS: [(&str, &str, &str); 7] = [
    ("cuda-nvcc", "13.0.88", "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03"),
    ("cuda-crt", "13.0.88", "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4"),
    ("nvvm", "13.0.88", "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0"),
    ("cuda-runtime", "13.0.96", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
    ("cuda-cccl", "13.0.85", "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649"),
    ("cuda-cuobjdump", "13.2.78", "394087411405b846bf43aa52ca2ff603bbe18b3b8a1257cda0903e23c17bdbf3"),
    ("cuda-nvdisasm", "13.5.37", "d3fdbdd49fa53e2e4aacd3db8259d052bd2b049ececdcb69e92e083c6728e7ca"),
];

/// Wheel, version and SHA-256 of NVSHMEM: headers for `nvshmem-sys`, headers and the device library for kernels. Host and
/// device library must be of one version.
pub(crate) const NVSHMEM: (&str, &str, &str) =
    ("nvidia-nvshmem-cu13", "3.4.5", "290f0a2ee94c9f3687a02502f3b9299a9f9fe826e6d0287ee18482e78d495b80");

/// The toolkit's folder, set up on first use.
///
/// # Errors
/// No wheels for this machine, no pip, or a failed download.
pub(super) fn set_up(target: &Path) -> anyhow::Result<PathBuf> {
    let advice = "install CUDA 13.x and set CUDA_HOME to its folder";
    let nvcc = ("nvcc", WHEELS[0].1, advice);
    Ok(unpacked(target, ("cuda-wheels", &requirements()), nvcc)?.join("nvidia/cu13"))
}

/// NVSHMEM's folder with `include` and `lib`, set up on first use.
///
/// # Errors
/// As [`set_up`].
pub(super) fn nvshmem(target: &Path) -> anyhow::Result<PathBuf> {
    let (name, version, hash) = NVSHMEM;
    let list = format!("{name}=={version} --hash=sha256:{hash}\n");
    let what = ("NVSHMEM", version, "leave --nvshmem out");
    Ok(unpacked(target, ("nvshmem-wheel", &list), what)?.join("nvidia/nvshmem"))
}

/// The folder of some wheels.
fn unpacked(
    target: &Path,
    (stem, list): (&str, &str),
    (what, version, advice): (&str, &str, &str),
) -> anyhow::Result<PathBuf> {
    // A changed list is another folder: nothing old is ever taken for new.
    let folder = target.join(format!("{stem}-{:016x}", xxh3_64(list.as_bytes())));
    if folder.is_dir() {
        return Ok(folder);
    }
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64")),
        "{what} is pinned for x86-64 Linux only; {advice}"
    );
    ensure!(
        works("python3", &["-m", "pip", "--version"]),
        "no {what} and no python3 with pip to fetch it; install pip, or {advice}"
    );
    println!("setting up {what} {version} under {}", target.display());
    std::fs::create_dir_all(target)?;
    let partial = tempfile::tempdir_in(target)?;
    install(list, partial.path()).with_context(|| format!("cannot set up {what}; mend it, or {advice}"))?;
    let done = partial.keep();
    if let Err(error) = std::fs::rename(&done, &folder) {
        // Somebody else was faster: theirs is the same.
        std::fs::remove_dir_all(&done)?;
        ensure!(folder.is_dir(), "cannot rename {} to {}: {error}", done.display(), folder.display());
    }
    Ok(folder)
}

/// Installs the wheels of a list of requirements with hashes into a folder.
///
/// # Errors
/// When pip cannot be run or refuses a wheel.
pub(crate) fn install(list: &str, folder: &Path) -> anyhow::Result<()> {
    let file = folder.join("requirements.txt");
    std::fs::write(&file, list)?;
    let (file, target) = (file.to_string_lossy(), folder.to_string_lossy());
    let words = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"];
    let more = ["--only-binary=:all:", "--require-hashes", "--no-compile", "--target", &target, "-r", &file];
    let status = run(command("python3", &words).args(more))?;
    if !status.success() {
        bail!("pip ended with {status}");
    }
    Ok(())
}

fn requirements() -> String {
    WHEELS.map(|(name, version, hash)| format!("nvidia-{name}=={version} --hash=sha256:{hash}\n")).concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wheel_is_pinned_by_version_and_hash() {
        let list = requirements();
        assert_eq!(list.lines().count(), WHEELS.len());
        for line in list.lines() {
            let (name, hash) = line.split_once(" --hash=sha256:").unwrap();
            assert!(name.starts_with("nvidia-") && name.contains("==13."), "{line}");
            assert!(hash.len() == 64 && hash.bytes().all(|digit| digit.is_ascii_hexdigit()), "{line}");
        }
    }
}
