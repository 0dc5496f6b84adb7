//! Cases one after the other: a failing one is printed and the others go on; one that hangs ends the program.
use std::fmt::Display;
use std::io::Write;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// The slowest case takes a few seconds of host time.
const HANG: Duration = Duration::from_secs(120);

/// Cases that run now, by any test of the program.
static RUNNING: Mutex<Vec<(String, Instant)>> = Mutex::new(Vec::new());

/// Counts cases and failures of one test.
pub struct Suite {
    name: &'static str,
    cases: usize,
    failures: usize,
}

impl Suite {
    pub fn new(name: &'static str) -> Self {
        watch();
        Self { name, cases: 0, failures: 0 }
    }

    /// Runs one case; its failure names it.
    pub fn case(&mut self, case: &impl Display, run: impl FnOnce() -> Result<(), String>) {
        let name = format!("{}: {case}", self.name);
        RUNNING.lock().unwrap().push((name.clone(), Instant::now()));
        self.cases += 1;
        if let Err(text) = run() {
            self.failures += 1;
            say(&format!("FAILED {name}\n       {text}"));
        }
        RUNNING.lock().unwrap().retain(|(running, _)| *running != name);
    }
}

/// Here, so that no test can forget to ask.
impl Drop for Suite {
    fn drop(&mut self) {
        let Self { name, cases, failures } = self;
        assert!(std::thread::panicking() || *failures == 0, "{name}: {failures} of {cases} cases failed");
    }
}

/// A kernel that hangs cannot be ended but with the process.
fn watch() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(Duration::from_secs(1));
                let running = RUNNING.lock().unwrap();
                let hung: Vec<&str> = running
                    .iter()
                    .filter(|(_, start)| start.elapsed() > HANG)
                    .map(|(name, _)| name.as_str())
                    .collect();
                if !hung.is_empty() {
                    end(&hung);
                }
            }
        });
    });
}

fn end(hung: &[&str]) {
    say(&format!("HUNG for {HANG:?}: {hung:#?}"));
    std::process::exit(3);
}

/// At once and past the test harness, which holds back what passing tests print.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}
