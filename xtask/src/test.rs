//! `cargo xtask test`: tests of all crates (cargo-nextest if it is there), then the examples in their documentation.
use std::process::ExitCode;
use std::time::Instant;

use crate::shell::{Counts, code, command, run_counted, works};

/// Flags of `cargo xtask test`.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct TestArgs {
    /// Only this crate; may be given several times.
    #[arg(long, short, value_name = "CRATE")]
    package: Vec<String>,
    /// Passed on to the test runner, such as a part of a test's name.
    #[arg(last = true)]
    args: Vec<String>,
}

/// Runs them and ends with the first exit code that is not 0.
pub(crate) fn execute(args: &TestArgs) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let nextest = works("cargo", &["nextest", "--version"]);
    let mut total = Counts::default();
    let mut worst = 0;
    for line in command_lines(args, nextest) {
        let words: Vec<&str> = line.iter().map(String::as_str).collect();
        let (status, counts) = run_counted(&mut command("cargo", &words))?;
        total += counts;
        worst = if worst == 0 { code(status) } else { worst };
    }
    let Counts { passed, failed, skipped } = total;
    let runner = if nextest { "cargo-nextest" } else { "cargo test" };
    let seconds = start.elapsed().as_secs_f64();
    let verdict = if worst == 0 { "ok" } else { "FAILED" };
    println!(
        "test {verdict}: {passed} passed, {failed} failed, {skipped} skipped in {seconds:.0} s ({runner}, doc tests)"
    );
    Ok(ExitCode::from(worst))
}

fn command_lines(args: &TestArgs, nextest: bool) -> Vec<Vec<String>> {
    let mut lines = if nextest {
        // Without test binaries, or with a filter that matches documentation only, there is nothing to fail.
        vec![vec!["nextest", "run", "--no-tests=pass"], vec!["test", "--doc"]]
    } else {
        vec![
            vec!["test", "--lib", "--bins", "--tests", "--examples", "--no-fail-fast"],
            vec!["test", "--doc"],
        ]
    };
    // A program has no documentation tests, and cargo refuses to look for them when only it is asked for.
    if !args.package.is_empty() && args.package.iter().all(|package| package == env!("CARGO_PKG_NAME")) {
        lines.truncate(1);
    }
    let scope: Vec<&str> = match args.package.as_slice() {
        [] => vec!["--workspace"],
        packages => packages.iter().flat_map(|package| ["--package", package.as_str()]).collect(),
    };
    let words = lines.into_iter().map(|line| line.into_iter().chain(scope.iter().copied()));
    words.map(|line| line.map(str::to_owned).chain(args.args.iter().cloned()).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(packages: &[&str], args: &[&str], nextest: bool) -> Vec<String> {
        let owned = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let args = TestArgs { package: owned(packages), args: owned(args) };
        command_lines(&args, nextest).iter().map(|words| words.join(" ")).collect()
    }

    #[test]
    fn both_runners_cover_tests_and_documentation_of_all_crates() {
        assert_eq!(
            lines(&[], &[], true),
            ["nextest run --no-tests=pass --workspace", "test --doc --workspace"]
        );
        let plain = lines(&[], &["mask"], false);
        assert_eq!(plain[0], "test --lib --bins --tests --examples --no-fail-fast --workspace mask");
        assert_eq!(plain[1], "test --doc --workspace mask");
    }

    #[test]
    fn a_chosen_crate_is_tested_alone_and_a_program_has_no_documentation_tests() {
        assert_eq!(lines(&["fm-cp"], &[], true)[1], "test --doc --package fm-cp");
        assert_eq!(lines(&["xtask"], &[], true).len(), 1);
        assert_eq!(lines(&["xtask", "fm-cp"], &[], true).len(), 2);
    }
}
