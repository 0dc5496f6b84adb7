//! Model checks: loom over the primitives, shuttle over whole plans, and the mutants that both must catch.
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::shell::command;

/// How much is explored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Under two minutes with the build.
    Quick,
    /// More preemptions, twelve times as many schedules.
    Full,
}

/// What the checkers explored and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Models {
    /// loom's models, and the executions of the right code of all of them.
    pub models: u64,
    pub executions: u64,
    /// shuttle's cases (ranks, plans, calls), and the schedules of all of them.
    pub cases: u64,
    pub random: u64,
    pub pct: u64,
    /// Ranks that gave up at a short deadline and recovered.
    pub gave_up: u64,
    /// Weakened copies, and those that a checker caught.
    pub mutants: u64,
    pub caught: u64,
    /// What went wrong, one line each; a failing schedule with the command that runs it again.
    pub failures: Vec<String>,
}

impl Models {
    /// Whether everything right passed, every mutant was caught, and there was something of each.
    pub(crate) fn is_right(&self) -> bool {
        self.failures.is_empty()
            && self.caught == self.mutants
            && [self.models, self.cases, self.mutants].iter().all(|&count| count > 0)
    }

    /// Takes the counts out of one line of a check's output: `verify: KIND NAME key=value ...` anywhere in it.
    fn read(&mut self, line: &str) {
        if line.starts_with("again: ") {
            self.failures.push(line.to_owned());
            return;
        }
        let Some((_, said)) = line.split_once("verify: ") else { return };
        let mut words = said.split_whitespace();
        let (kind, name) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let fields: Vec<(&str, u64)> = words
            .filter_map(|word| word.split_once('='))
            .filter_map(|(key, value)| Some((key, value.parse().ok()?)))
            .collect();
        let field =
            |wanted: &str| fields.iter().find(|(key, _)| *key == wanted).map_or(0, |(_, value)| *value);
        match kind {
            "loom" => {
                self.models += 1;
                self.executions += field("executions");
            }
            "shuttle" => {
                self.cases += 1;
                self.random += field("random");
                self.pct += field("pct");
                self.gave_up += field("gave_up");
            }
            "loom-mutant" | "shuttle-mutant" => {
                self.mutants += 1;
                self.caught += field("caught");
                if field("caught") == 0 {
                    self.failures.push(format!("the checker passes the mutant {name}"));
                }
            }
            _ => self.failures.push(said.to_owned()),
        }
    }
}

/// Explores all models and plans.
///
/// # Errors
/// When cargo cannot be started or a check does not build.
pub(crate) fn check(depth: Depth) -> anyhow::Result<Models> {
    let mut models = Models::default();
    for check in [&LOOM, &SHUTTLE] {
        check.build()?;
        let arguments = if depth == Depth::Full { check.full } else { check.quick };
        let (succeeded, text) = check.run(arguments)?;
        text.lines().for_each(|line| models.read(line));
        if !succeeded && models.failures.is_empty() {
            models.failures.push(format!("{}: {}", check.checker, last_words(&text)));
        }
    }
    Ok(models)
}

/// Runs one schedule again, `CASE/SCHEDULER/SEED`: whether it was right, and what was said.
///
/// # Errors
/// When cargo cannot be started or the check does not build.
pub(crate) fn replay(schedule: &str) -> anyhow::Result<(bool, String)> {
    SHUTTLE.build()?;
    let (succeeded, text) = SHUTTLE.run(&["--replay", schedule])?;
    let said = text.lines().rev().find(|line| line.starts_with(schedule) || line.starts_with("error:"));
    Ok((succeeded, said.map_or_else(|| last_words(&text), str::to_owned)))
}

/// One checker: how its tests are built and run.
struct Check {
    /// Name of the checker, of its `cfg` and of its folder under `target/`: flags differ, so nothing can be shared.
    checker: &'static str,
    /// What is tested, as arguments of `cargo test`.
    tests: &'static [&'static str],
    quick: &'static [&'static str],
    full: &'static [&'static str],
}

const LOOM: Check = Check {
    checker: "loom",
    tests: &["--package", "symm-buffer", "--lib"],
    quick: &["model::", "--nocapture"],
    full: &["model::", "--nocapture", "--include-ignored"],
};

const SHUTTLE: Check = Check {
    checker: "shuttle",
    tests: &["--package", "cp-overlap", "--test", "schedules"],
    quick: &[],
    full: &["--full"],
};

impl Check {
    fn cargo(&self) -> Command {
        let mut command = command("cargo", &["test", "--quiet", "--profile", "model"]);
        command.args(["--target-dir", &format!("target/{}", self.checker)]).args(self.tests);
        command.env("RUSTFLAGS", format!("--cfg {}", self.checker)).env_remove("CARGO_ENCODED_RUSTFLAGS");
        command.stdin(Stdio::null());
        command
    }

    fn build(&self) -> anyhow::Result<()> {
        let status = self.cargo().arg("--no-run").status().context("cannot start cargo")?;
        anyhow::ensure!(status.success(), "the {} checks do not build", self.checker);
        Ok(())
    }

    /// Whether it succeeded, and all that it said. Caught mutants panic, so most of that is noise.
    fn run(&self, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
        let output = self.cargo().arg("--").args(arguments).output().context("cannot start cargo")?;
        let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.push('\n');
        text.push_str(&String::from_utf8_lossy(&output.stderr));
        Ok((output.status.success(), text))
    }
}

fn last_words(text: &str) -> String {
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or("failed and said nothing").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(lines: &[&str]) -> Models {
        let mut models = Models::default();
        lines.iter().for_each(|line| models.read(line));
        models
    }

    const RIGHT: [&str; 6] = [
        "test model::a ... verify: loom put executions=32 preemptions=none",
        "verify: loom slots executions=1000 preemptions=2",
        "verify: loom-mutant put/RelaxedPost caught=1 executions=15",
        "verify: shuttle late3 random=40 pct=20 gave_up=7 seconds=1.5",
        "verify: shuttle-mutant forward4+EarlyFree caught=1 schedules=5",
        "test result: ok. 3 passed; 0 failed;",
    ];

    #[test]
    fn counts_are_added_up() {
        let models = read(&RIGHT);
        assert_eq!((models.models, models.executions), (2, 1032));
        assert_eq!((models.cases, models.random, models.pct, models.gave_up), (1, 40, 20, 7));
        assert_eq!((models.mutants, models.caught), (2, 2));
        assert!(models.is_right());
    }

    #[test]
    fn a_mutant_that_passes_is_a_failure() {
        let models = read(&["verify: loom-mutant put/RelaxedPost caught=0 executions=32"]);
        assert_eq!(models.failures, ["the checker passes the mutant put/RelaxedPost"]);
        let mut lines = RIGHT.to_vec();
        lines.push("verify: shuttle-mutant forward4+EarlyFree caught=0 schedules=200");
        assert!(!read(&lines).is_right());
    }

    #[test]
    fn a_failing_schedule_comes_with_its_command() {
        let again = "again: cargo xtask verify --replay late3/random/4";
        let models = read(&["verify: shuttle-failed late3/random/4 deadlock! blocked tasks: []", again]);
        assert_eq!(models.failures.len(), 2);
        assert_eq!(models.failures[1], again);
    }

    #[test]
    fn nothing_checked_is_not_right() {
        assert!(!Models::default().is_right());
        assert!(!read(&RIGHT[..2]).is_right());
    }
}
