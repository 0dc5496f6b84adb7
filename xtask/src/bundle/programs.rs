//! The programs of a bundle: all GPU tests, the fabric's benchmark, and this program for its `bench`.
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, ensure};
use cargo_metadata::Message;

use crate::shell::{command, run, works};

/// A program that cargo built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// Name in the bundle.
    pub name: String,
    /// Where cargo left it.
    pub path: PathBuf,
}

/// Packages with GPU tests, and their features.
const TESTS: [&str; 4] = [
    "fm3-kernels --features cuda",
    "symm-buffer --features nvshmem",
    "fm-cp --features nvshmem",
    "fabric-bench",
];

/// Builds all of them, optimised.
///
/// # Errors
/// When cargo fails.
pub(super) fn build() -> anyhow::Result<Vec<Program>> {
    let mut programs = Vec::new();
    for tests in TESTS {
        let line = format!("test --no-run --release --package {tests} --test gpu_*");
        let built = cargo(&line)?;
        ensure!(!built.is_empty(), "cargo built no GPU tests; it ran `cargo {line}`");
        programs.extend(built);
    }
    programs.extend(cargo("build --release --package xtask --bin xtask")?);
    programs.extend(cargo("build --release --package fabric-bench --bin fabric-bench")?);
    Ok(programs)
}

/// Copies a program without its symbols.
///
/// # Errors
/// When it cannot be written.
pub(super) fn strip(from: &Path, to: &Path) -> anyhow::Result<()> {
    if works("strip", &["--version"]) {
        let words = ["-o", &to.to_string_lossy(), &from.to_string_lossy()];
        ensure!(run(&mut command("strip", &words))?.success(), "cannot strip {}", from.display());
    } else {
        println!("strip (binutils) is not installed: {} keeps its symbols", to.display());
        std::fs::copy(from, to)?;
    }
    Ok(())
}

fn cargo(line: &str) -> anyhow::Result<Vec<Program>> {
    let words: Vec<&str> = line.split(' ').chain(["--message-format=json-render-diagnostics"]).collect();
    let output = command("cargo", &words)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "`cargo {line}` failed");
    executables(&output.stdout)
}

/// Programs in cargo's messages; a library has none.
fn executables(messages: &[u8]) -> anyhow::Result<Vec<Program>> {
    let mut programs = Vec::new();
    for message in Message::parse_stream(messages) {
        if let Message::CompilerArtifact(artifact) = message?
            && let Some(path) = artifact.executable
        {
            programs.push(Program { name: artifact.target.name, path: path.into_std_path_buf() });
        }
    }
    Ok(programs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(name: &str, executable: &str) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","package_id":"p","manifest_path":"m","target":{{"kind":["test"],"crate_types":["bin"],"name":"{name}","src_path":"s","edition":"2024","doc":false,"doctest":false,"test":true}},"profile":{{"opt_level":"3","debuginfo":0,"debug_assertions":false,"overflow_checks":false,"test":true}},"features":[],"filenames":[],"executable":{executable},"fresh":true}}"#
        )
    }

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let lines = [
            artifact("lib", "null"),
            artifact("gpu_mask", "\"target/gpu_mask-1\""),
            r#"{"reason":"build-finished","success":true}"#.to_owned(),
        ];
        let wanted = Program { name: "gpu_mask".to_owned(), path: "target/gpu_mask-1".into() };
        assert_eq!(executables(lines.join("\n").as_bytes()).unwrap(), [wanted]);
    }
}
