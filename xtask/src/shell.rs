//! Starts other programs in the workspace's root, and counts the test results that they print.
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, ExitStatus, Stdio};

use anyhow::Context;

use crate::files::workspace_root;

/// A command that runs in the workspace's root.
pub(crate) fn command(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(args).current_dir(workspace_root());
    command
}

/// Whether `program args...` runs and succeeds; what it prints is dropped.
pub(crate) fn works(program: &str, args: &[&str]) -> bool {
    let status =
        command(program, args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// Runs a command to its end.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<ExitStatus> {
    command.status().with_context(|| format!("cannot start {}", command.get_program().display()))
}

/// Exit code of a command that ran; 1 when a signal ended it.
pub(crate) fn code(status: ExitStatus) -> u8 {
    status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Tests by result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Right.
    pub passed: u64,
    /// Wrong.
    pub failed: u64,
    /// Not run on purpose.
    pub skipped: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Runs a test program, passing its output on as it comes, and counts the results in it.
///
/// # Errors
/// When it cannot be started or its output cannot be passed on.
pub(crate) fn run_counted(command: &mut Command) -> anyhow::Result<(ExitStatus, Counts)> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let counts = std::thread::scope(|scope| -> anyhow::Result<Counts> {
        let errors = scope
            .spawn(move || stderr.map_or(Ok(Counts::default()), |from| pass_on(from, std::io::stderr())));
        let mut counts = stdout.map_or(Ok(Counts::default()), |from| pass_on(from, std::io::stdout()))?;
        counts += errors.join().map_err(|_| anyhow::anyhow!("reading the tests' output panicked"))??;
        Ok(counts)
    })?;
    Ok((child.wait()?, counts))
}

fn pass_on(from: impl Read, mut to: impl Write) -> std::io::Result<Counts> {
    let mut counts = Counts::default();
    let mut line = Vec::new();
    let mut from = BufReader::new(from);
    while from.read_until(b'\n', &mut line)? > 0 {
        to.write_all(&line)?;
        to.flush()?;
        counts += counts_of(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(counts)
}

/// Numbers in the closing line of a test binary (`test result: ok. 3 passed; ...`) or of cargo-nextest
/// (`Summary [...] 3 tests run: 3 passed, ...`); zeros for every other line.
fn counts_of(line: &str) -> Counts {
    let line = without_colours(line);
    let mut counts = Counts::default();
    let nextest = line.trim_start().starts_with("Summary [") && line.contains(" run: ");
    if !nextest && !line.starts_with("test result: ") {
        return counts;
    }
    let words: Vec<&str> = line.split_whitespace().collect();
    for pair in words.windows(2) {
        let Ok(number) = pair[0].parse::<u64>() else { continue };
        match pair[1].trim_end_matches([';', ',']) {
            "passed" => counts.passed += number,
            "failed" | "timed" => counts.failed += number,
            "ignored" | "skipped" => counts.skipped += number,
            _ => {}
        }
    }
    counts
}

/// Drops terminal colour codes, ESC [ ... m.
fn without_colours(line: &str) -> String {
    let mut parts = line.split("\u{1b}[");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.split_once('m').map_or("", |(_, rest)| rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_both_runners_are_counted() {
        let libtest = "test result: FAILED. 3 passed; 2 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.1s";
        assert_eq!(counts_of(libtest), Counts { passed: 3, failed: 2, skipped: 1 });
        let nextest = "\u{1b}[32;1m     Summary\u{1b}[0m [   0.4s] \u{1b}[1m9\u{1b}[0m tests run: \
                       \u{1b}[1m8\u{1b}[0m \u{1b}[32;1mpassed\u{1b}[0m (2 slow), \u{1b}[1m1\u{1b}[0m failed, 4 skipped";
        assert_eq!(counts_of(nextest), Counts { passed: 8, failed: 1, skipped: 4 });
        assert_eq!(counts_of("running 3 tests, 3 passed"), Counts::default());
    }

    #[test]
    fn output_is_passed_on_unchanged() {
        let mut seen = Vec::new();
        let text = b"a\ntest result: ok. 1 passed; 0 failed;\nlast line without an end";
        assert_eq!(pass_on(&text[..], &mut seen).unwrap(), Counts { passed: 1, ..Counts::default() });
        assert_eq!(seen, text);
    }

    #[test]
    fn exit_codes_pass_through() {
        // No output: it would pass by the capture of test output and look like a result.
        let (status, counts) = run_counted(&mut command("sh", &["-c", "exit 7"])).unwrap();
        assert_eq!((code(status), counts), (7, Counts::default()));
        assert!(
            works("sh", &["-c", "exit 0"])
                && !works("sh", &["-c", "exit 1"])
                && !works("no-such-program", &[])
        );
        assert!(run_counted(&mut command("no-such-program", &[])).is_err());
    }
}
