//! A test program that starts itself: children find the simulator under the names of the real libraries.
#![allow(dead_code, reason = "each test program uses its own part")]
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;

use gpu_sim::Installed;

/// What children run: the test of this name, with the case and its words on standard input.
pub(crate) const CHILD: &str = "child";

/// A child process.
pub(crate) struct Process(Child);

/// How a child ended, and all that it wrote.
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    pub(crate) text: String,
}

impl Drop for Process {
    fn drop(&mut self) {
        // Its end may have come already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

/// Starts a child with these variables; its case is the first word of `line`.
pub(crate) fn start(line: &str, variables: &[(&str, &str)]) -> Process {
    static INSTALLED: OnceLock<Installed> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| gpu_sim::install().unwrap());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", CHILD, "--ignored", "--nocapture"])
        .env("LD_LIBRARY_PATH", installed.folder())
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    writeln!(child.stdin.take().unwrap(), "{line}").unwrap();
    Process(child)
}

impl Process {
    /// Waits for its end.
    pub(crate) fn end(mut self) -> End {
        let mut text = String::new();
        self.0.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        self.0.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        End { status: self.0.wait().unwrap(), text }
    }

    /// Waits for its end, which must be a good one.
    pub(crate) fn succeed(self) -> String {
        let end = self.end();
        assert!(end.status.success(), "{}", end.text);
        end.text
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }
}

/// Runs one child to its good end.
pub(crate) fn run(line: &str, variables: &[(&str, &str)]) -> String {
    start(line, variables).succeed()
}

/// The words that a child was started with. From then on it has a minute: one that hangs fails.
pub(crate) fn words() -> Vec<String> {
    std::thread::spawn(|| {
        std::thread::sleep(std::time::Duration::from_secs(60));
        std::io::stderr().write_all(b"the child took too long\n").unwrap();
        std::process::exit(1);
    });
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
    line.split_whitespace().map(str::to_owned).collect()
}
