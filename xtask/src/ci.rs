//! `cargo xtask ci`: everything that must pass before a change is taken, as a table of steps.
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::files::workspace_root;
use crate::shell::{code, command, run, works};
use crate::{test, tidy};

/// Flags of `cargo xtask ci`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct CiArgs {
    /// Leave out building each crate alone.
    #[arg(long)]
    quick: bool,
    /// Run the later steps even when one fails.
    #[arg(long)]
    keep_going: bool,
}

/// Runs the steps; 1 if any failed.
pub(crate) fn execute(args: &CiArgs) -> anyhow::Result<ExitCode> {
    let mut done: Vec<Done> = Vec::new();
    for step in steps(args.quick)? {
        println!("\n=== {}", step.name);
        let start = Instant::now();
        let outcome = step.action.run()?;
        done.push(Done { name: step.name, outcome, time: start.elapsed() });
        if outcome == Outcome::Failed && !args.keep_going {
            break;
        }
    }
    print!("\n{}", table(&done));
    let failed = done.iter().any(|step| step.outcome == Outcome::Failed);
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

struct Step {
    name: String,
    action: Action,
}

enum Action {
    /// `cargo words...`; warnings of the documentation count as errors.
    Cargo(Vec<String>),
    /// `cargo xtask tidy`, first because it takes a second.
    Tidy,
    /// `cargo xtask test`.
    Test,
    /// cargo-deny, where it is installed.
    Deny,
    /// A small run of the demo, by this same program.
    Demo,
    /// `cargo xtask verify --quick`, by this same program.
    Verify,
    /// `cargo xtask codegen --check` and `cargo xtask build-kernels --nvshmem`; needs neither a CUDA toolkit nor a GPU.
    Kernels,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Passed,
    Failed,
    Skipped,
}

struct Done {
    name: String,
    outcome: Outcome,
    time: Duration,
}

fn steps(quick: bool) -> anyhow::Result<Vec<Step>> {
    let cargo = |line: &str| Action::Cargo(line.split_whitespace().map(str::to_owned).collect());
    let mut steps = vec![
        ("tidy".to_owned(), Action::Tidy),
        ("format".to_owned(), cargo("fmt --all --check")),
        ("clippy".to_owned(), cargo("clippy --workspace --all-targets -- -D warnings")),
        ("documentation".to_owned(), cargo("doc --workspace --no-deps")),
        ("test".to_owned(), Action::Test),
        ("demo".to_owned(), Action::Demo),
        ("verify".to_owned(), Action::Verify),
        ("kernels".to_owned(), Action::Kernels),
        ("licences, bans, sources".to_owned(), Action::Deny),
    ];
    if !quick {
        // Alone means: it needs no feature that only its neighbours switch on. Types show that; to build the tests
        // again for each set of features would cost minutes.
        for name in tidy::published_crates(&workspace_root())? {
            for (what, line) in
                [("build", "check"), ("tests", "check --all-targets"), ("docs", "doc --no-deps")]
            {
                steps.push((format!("{name} alone: {what}"), cargo(&format!("{line} --package {name}"))));
            }
        }
    }
    Ok(steps.into_iter().map(|(name, action)| Step { name, action }).collect())
}

impl Action {
    fn run(&self) -> anyhow::Result<Outcome> {
        let passed = match self {
            Action::Cargo(words) => {
                let words: Vec<&str> = words.iter().map(String::as_str).collect();
                let flags = if words.first() == Some(&"doc") { "-D warnings" } else { "" };
                run(command("cargo", &words).env("RUSTDOCFLAGS", flags))?.success()
            }
            Action::Tidy => tidy::execute()? == ExitCode::SUCCESS,
            Action::Test => test::execute(&test::TestArgs::default())? == ExitCode::SUCCESS,
            Action::Deny if !works("cargo", &["deny", "--version"]) => {
                println!(
                    "!!! SKIPPED: cargo-deny is not installed; `cargo install --locked cargo-deny` checks deny.toml"
                );
                return Ok(Outcome::Skipped);
            }
            Action::Deny => {
                run(&mut command("cargo", &["deny", "check", "bans", "licenses", "sources"]))?.success()
            }
            Action::Demo => again("demo --check --seq-len 1024 --ranks 3 --heads 4/2 --head-dim 32")?,
            Action::Verify => again("verify --quick")?,
            Action::Kernels => again("codegen --check")? && again("build-kernels --nvshmem")?,
        };
        Ok(if passed { Outcome::Passed } else { Outcome::Failed })
    }
}

/// Whether this same program succeeds with other arguments.
fn again(line: &str) -> anyhow::Result<bool> {
    let (program, words) = (std::env::current_exe()?, line.split_whitespace().collect::<Vec<_>>());
    Ok(code(run(command(&program.to_string_lossy(), &words).stdin(std::process::Stdio::null()))?) == 0)
}

fn table(done: &[Done]) -> String {
    let width = done.iter().map(|step| step.name.len()).max().unwrap_or(0).max("total".len());
    let line = |step: &Done| {
        let outcome = match step.outcome {
            Outcome::Passed => "ok",
            Outcome::Failed => "FAILED",
            Outcome::Skipped => "SKIPPED",
        };
        format!("{:width$}  {outcome:7} {:8.1} s\n", step.name, step.time.as_secs_f64())
    };
    let total: Duration = done.iter().map(|step| step.time).sum();
    let lines: String = done.iter().map(line).collect();
    format!("{lines}{:width$}  {:7} {:8.1} s\n", "total", "", total.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_line_for_each_step_and_the_total() {
        let step =
            |name: &str, outcome| Done { name: name.to_owned(), outcome, time: Duration::from_millis(1500) };
        let text = table(&[step("test", Outcome::Passed), step("demo", Outcome::Failed)]);
        assert_eq!(text, "test   ok           1.5 s\ndemo   FAILED       1.5 s\ntotal               3.0 s\n");
    }

    #[test]
    fn every_published_crate_is_built_tested_and_documented_alone() {
        let names: Vec<String> = steps(false).unwrap().into_iter().map(|step| step.name).collect();
        for wanted in ["nvshmem-sys alone: build", "fm-cp alone: tests", "nvshmem-sys alone: docs"] {
            assert!(names.iter().any(|name| name == wanted), "{wanted}");
        }
        assert!(!names.iter().any(|name| name.starts_with("gpu-sim")), "it is for our tests");
        assert!(steps(true).unwrap().len() < names.len());
        assert!(steps(true).unwrap().iter().any(|step| step.name == "verify"));
    }

    #[test]
    fn a_failing_command_fails_its_step() {
        let cargo = |words: &[&str]| Action::Cargo(words.iter().map(|&word| word.to_owned()).collect());
        assert_eq!(cargo(&["--version"]).run().unwrap(), Outcome::Passed);
        assert_eq!(cargo(&["no-such-command"]).run().unwrap(), Outcome::Failed);
    }
}
