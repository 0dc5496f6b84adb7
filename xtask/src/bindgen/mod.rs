//! `cargo xtask bindgen`: the C declarations of `nvshmem-sys`, from NVSHMEM's headers, written and committed.
//!
//! Headers and libclang come as Python wheels of fixed versions and hashes. Each file carries a seal: hashes of the
//! recipe, of the headers and of its own text. So a check needs no headers to find a changed recipe or a hand's edit.
mod raw;
mod recipe;
mod text;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use xxhash_rust::xxh3::Xxh3Default;

use crate::build_kernels::wheels::install;
use crate::files::{walk, workspace_root};
use crate::shell::command;

/// Flags of `cargo xtask bindgen`.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct BindgenArgs {
    /// Write nothing; fail when a committed file is not what would be written.
    #[arg(long)]
    check: bool,
    /// Print bindgen's output for the headers in this folder; for this command itself.
    #[arg(long, hide = true)]
    raw: Option<PathBuf>,
}

/// Folder of the generated files, from the workspace's root.
const FOLDER: &str = "crates/nvshmem-sys/src/sys";

/// Writes the files, or checks them.
///
/// # Errors
/// No wheels for this machine, or headers that bindgen does not understand.
pub(crate) fn execute(args: &BindgenArgs) -> anyhow::Result<ExitCode> {
    if let Some(include) = &args.raw {
        let replaced = tempfile::tempdir()?;
        for name in recipe::REPLACED {
            std::fs::write(replaced.path().join(name), recipe::HOST_HEADER)?;
        }
        print!("{}", raw::bindings(include, replaced.path())?);
        return Ok(ExitCode::SUCCESS);
    }
    if args.check {
        return check();
    }
    let wheels = set_up()?;
    let texts = text::files(&bindings(&wheels)?, headers_hash(&include(&wheels))?)?;
    for (name, text) in text::FILES.iter().zip(&texts) {
        let path = workspace_root().join(FOLDER).join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{FOLDER}/{name} written ({} lines)", text.lines().count());
    }
    Ok(ExitCode::SUCCESS)
}

/// Compares the committed files with their seals, and with the headers where there are any.
fn check() -> anyhow::Result<ExitCode> {
    let include = include(&wheels_folder());
    let headers = if include.is_dir() {
        Some(headers_hash(&include)?)
    } else {
        println!("!!! SKIPPED: comparison with NVSHMEM's headers; `cargo xtask bindgen` fetches them");
        None
    };
    let stale = stale_files(headers)?;
    for text in &stale {
        println!("{text}; run `cargo xtask bindgen` and commit it");
    }
    if stale.is_empty() {
        println!("{FOLDER}: the generated files are fresh");
    }
    Ok(if stale.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn stale_files(headers: Option<u64>) -> anyhow::Result<Vec<String>> {
    let mut stale = Vec::new();
    for name in text::FILES {
        let path = workspace_root().join(FOLDER).join(name);
        let file =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        stale.extend(text::stale(&file, headers).map(|why| format!("{FOLDER}/{name} {why}")));
    }
    Ok(stale)
}

fn wheels_folder() -> PathBuf {
    let [(_, nvshmem, _), (_, libclang, _)] = recipe::WHEELS;
    workspace_root().join(format!("target/bindgen-wheels-{nvshmem}-{libclang}"))
}

/// NVSHMEM's headers in the folder of the wheels.
fn include(wheels: &Path) -> PathBuf {
    wheels.join("nvidia/nvshmem/include")
}

/// Fetches the wheels on first use.
fn set_up() -> anyhow::Result<PathBuf> {
    let folder = wheels_folder();
    if include(&folder).is_dir() {
        return Ok(folder);
    }
    let line =
        |(name, version, hash): &(&str, &str, &str)| format!("{name}=={version} --hash=sha256:{hash}\n");
    let list: String = recipe::WHEELS.iter().map(line).collect();
    let target = workspace_root().join("target");
    std::fs::create_dir_all(&target)?;
    let partial = tempfile::tempdir_in(&target)?;
    install(&list, partial.path()).context("cannot fetch the wheels of NVSHMEM and libclang")?;
    ensure!(include(partial.path()).is_dir(), "the NVSHMEM wheel has no headers where we know them");
    let done = partial.keep();
    std::fs::rename(&done, &folder).with_context(|| format!("cannot rename {}", done.display()))?;
    Ok(folder)
}

/// Runs this program again with bindgen built in.
fn bindings(wheels: &Path) -> anyhow::Result<String> {
    let words =
        ["run", "--quiet", "--release", "--package", "xtask", "--features", "bindgen", "--", "bindgen"];
    let output = command("cargo", &words)
        .arg("--raw")
        .arg(include(wheels))
        .env("LIBCLANG_PATH", wheels.join("clang/native"))
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "bindgen ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?)
}

/// Hash over all headers, with their names.
fn headers_hash(include: &Path) -> anyhow::Result<u64> {
    let mut hash = Xxh3Default::new();
    for path in walk(include)? {
        if path.extension().is_some_and(|ending| ending == "h" || ending == "cuh") {
            hash.update(path.to_string_lossy().as_bytes());
            hash.update(&std::fs::read(include.join(&path))?);
        }
    }
    Ok(hash.digest())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_files_are_fresh() {
        assert_eq!(execute(&BindgenArgs { check: true, raw: None }).unwrap(), ExitCode::SUCCESS);
        assert_eq!(stale_files(Some(0)).unwrap().len(), text::FILES.len(), "other headers are noticed");
    }

    #[test]
    fn the_hash_of_headers_sees_names_and_texts_of_headers_only() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("a.h", "1");
        let before = headers_hash(folder.path()).unwrap();
        write("b.txt", "1");
        assert_eq!(headers_hash(folder.path()).unwrap(), before);
        write("b.cuh", "1");
        let two = headers_hash(folder.path()).unwrap();
        write("b.cuh", "2");
        assert!(two != before && headers_hash(folder.path()).unwrap() != two);
    }

    #[test]
    fn bindgens_version_is_the_one_in_the_manifest() {
        let manifest = std::fs::read_to_string(workspace_root().join("Cargo.toml")).unwrap();
        let line = manifest.lines().find(|line| line.starts_with("bindgen = ")).unwrap();
        assert!(line.contains(&format!("version = \"{}", recipe::BINDGEN)), "{line}");
    }
}
