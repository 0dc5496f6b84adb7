//! `cargo xtask bundle`: tests, benchmark and kernels for a machine with a GPU and without cargo, in one folder.
//!
//! Nothing in it names a path of this workspace: programs find their kernels beside themselves.
mod programs;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};

use crate::build_kernels::{self, BuildKernelsArgs, kernels_folder};
use crate::files::{walk, workspace_root};

/// Seeds of the kernels that pause at random.
const JITTER_SEEDS: [u32; 5] = [1, 2, 3, 4, 5];

/// Bytes that a bundle may have, 64 MiB: what carries it to the other machine takes no more.
const MAX_BYTES: u64 = 64 << 20;

const SCRIPT: &str = include_str!("run.sh");

/// Flags of `cargo xtask bundle`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BundleArgs {
    /// Folder of the bundle; an old one there is replaced [default: target/bundle].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Builds everything and packs it.
///
/// # Errors
/// When something does not build, or the bundle is too large.
pub(crate) fn execute(args: &BundleArgs) -> anyhow::Result<ExitCode> {
    let target = workspace_root().join("target");
    let out = args.out.clone().unwrap_or_else(|| target.join("bundle"));
    std::fs::create_dir_all(&target)?;
    // Beside the last one until it is complete.
    let folder = tempfile::tempdir_in(&target)?;
    if !pack_kernels(folder.path())? {
        return Ok(ExitCode::FAILURE);
    }
    for program in programs::build()? {
        programs::strip(&program.path, &folder.path().join(&program.name))?;
    }
    write_script(&folder.path().join("run.sh"))?;

    let files = walk(folder.path())?;
    let mut total = 0;
    for file in &files {
        let bytes = std::fs::metadata(folder.path().join(file))?.len();
        total += bytes;
        println!("{:8.2} MiB  {}", mebibytes(bytes), file.display());
    }
    ensure!(total < MAX_BYTES, "the bundle has {:.1} MiB, more than 64; pack fewer tests", mebibytes(total));
    replace(folder, &out)?;
    println!("{:8.2} MiB  in {}: run.sh there says what it can do", mebibytes(total), out.display());
    Ok(ExitCode::SUCCESS)
}

/// The kernels, and those of each jitter seed; false when they break a budget.
fn pack_kernels(bundle: &Path) -> anyhow::Result<bool> {
    if build_kernels::execute(&BuildKernelsArgs::with_nvshmem())? != ExitCode::SUCCESS {
        return Ok(false);
    }
    copy_cubins(&kernels_folder(), &bundle.join("kernels"))?;
    for seed in JITTER_SEEDS {
        let out = kernels_folder().with_file_name("kernels-jitter").join(format!("seed-{seed}"));
        let args = BuildKernelsArgs::variant(format!("FM3_JITTER={seed}"), out.clone());
        // The pauses need registers: these kernels may spill, they are not for speed.
        build_kernels::compile_without_budget(&args)?;
        copy_cubins(&out, &bundle.join(format!("jitter/seed-{seed}")))?;
    }
    Ok(true)
}

fn copy_cubins(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to)?;
    for file in walk(from)?.iter().filter(|file| file.extension().is_some_and(|ending| ending == "cubin")) {
        std::fs::copy(from.join(file), to.join(file))?;
    }
    Ok(())
}

fn write_script(path: &Path) -> anyhow::Result<()> {
    std::fs::write(path, SCRIPT)?;
    #[cfg(unix)]
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(())
}

/// Puts a complete folder in the place of an old bundle, and of nothing else.
fn replace(folder: tempfile::TempDir, out: &Path) -> anyhow::Result<()> {
    if out.exists() {
        ensure!(out.join("run.sh").is_file(), "{} is there and no bundle; remove it", out.display());
        std::fs::remove_dir_all(out)?;
    }
    let folder = folder.keep();
    std::fs::rename(&folder, out)
        .with_context(|| format!("cannot rename {} to {}", folder.display(), out.display()))
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const PASSED: &str = "echo 'test result: ok. 12 passed; 0 failed'";

    fn write_program(path: &Path, text: &str) {
        std::fs::write(path, format!("#!/bin/bash\n{text}\n")).unwrap();
        #[cfg(unix)]
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// What a program says that it has: a test, and one that only others start.
    fn lists(test: &str) -> String {
        format!(
            "echo 'one_rank: test'; [[ $2 == --ignored || ($# -gt 1 && $2 != {test}) ]] || echo '{test}: test'"
        )
    }

    /// A bundle of one test program that prints its arguments, and what `run.sh` makes of it.
    fn run(program: &str, args: &[&str]) -> (i32, String) {
        run_all(&[("gpu_a", &lists("edges"), program)], args)
    }

    /// The same of several: name, how it lists its tests, how it runs them. The sanitizer only starts the program.
    fn run_all(programs: &[(&str, &str, &str)], args: &[&str]) -> (i32, String) {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("run.sh");
        write_script(&script).unwrap();
        for (name, list, program) in programs {
            let text = format!(
                "if [[ $1 == --list ]]; then {list}; exit; fi\necho \"$@ gpu=$FM_REQUIRE_GPU\"\n{program}"
            );
            write_program(&folder.path().join(name), &text);
        }
        let tools = folder.path().join("tools");
        std::fs::create_dir(&tools).unwrap();
        write_program(&tools.join("compute-sanitizer"), "shift 4\n\"$@\"");
        let path = std::env::join_paths([&tools, Path::new("/usr/bin"), Path::new("/bin")]).unwrap();
        let out = folder.path().join("out");
        let output = Command::new("bash")
            .arg(&script)
            .args(["--out", out.to_str().unwrap()])
            .args(args)
            .env("PATH", path)
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        if args.first() == Some(&"tests") {
            assert_eq!(std::fs::read_to_string(out.join("tests.log")).unwrap(), text);
        }
        (output.status.code().unwrap(), text)
    }

    #[test]
    fn the_script_fails_when_a_test_does_or_none_runs() {
        let (code, text) = run(PASSED, &["tests", "edges"]);
        assert_eq!(code, 0, "{text}");
        assert!(text.contains("--test-threads=1 edges gpu=1"), "{text}");
        assert_eq!(run(&format!("{PASSED}; exit 101"), &["tests"]).0, 1);
        let (code, text) = run("echo 'test result: ok. 0 passed; 0 failed'", &["tests"]);
        assert!(code == 1 && text.contains("no test passed"), "{text}");
    }

    #[test]
    fn programs_without_a_test_of_the_words_are_passed_over() {
        let [edges, masks] = ["edges", "masks"].map(lists);
        let programs = [("gpu_a", edges.as_str(), PASSED), ("gpu_b", &masks, "exit 9")];
        for action in ["tests", "sanitize"] {
            let (code, text) = run_all(&programs, &[action, "edges"]);
            assert!(code == 0 && text.contains("=== gpu_a") && !text.contains("=== gpu_b"), "{text}");
            assert_eq!(run_all(&programs, &[action, "masks"]).0, 1);
            let (code, text) = run_all(&programs, &[action, "nothing_of_this_name"]);
            assert!(code == 1 && text.contains("no test passed") && !text.contains("=== gpu_a"), "{text}");
        }
        // One that cannot even say what it has is run.
        let (code, text) = run_all(&[programs[0], ("gpu_c", "exit 1", "exit 1")], &["tests"]);
        assert!(code == 1 && text.contains("=== gpu_c"), "{text}");
    }

    #[test]
    fn the_script_without_a_command_says_what_it_can_do() {
        let (code, text) = run("", &[]);
        assert!(
            code == 2 && text.contains("run.sh [--out DIR] sanitize") && !text.contains("set -"),
            "{text}"
        );
    }

    #[test]
    fn only_a_bundle_is_replaced() {
        let target = tempfile::tempdir().unwrap();
        let fresh = || {
            let folder = tempfile::tempdir_in(target.path()).unwrap();
            write_script(&folder.path().join("run.sh")).unwrap();
            folder
        };
        let out = target.path().join("out");
        replace(fresh(), &out).unwrap();
        replace(fresh(), &out).unwrap();
        std::fs::remove_file(out.join("run.sh")).unwrap();
        assert!(replace(fresh(), &out).unwrap_err().to_string().contains("no bundle"));
    }
}
