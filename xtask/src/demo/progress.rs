//! A progress bar on a terminal, nothing elsewhere.
use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Parts of one in the bar.
const STEPS: u64 = 1000;

/// Shows what is being done, and how far the comparison is.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// A bar if standard error is a terminal.
    pub(crate) fn new() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(STEPS);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} [{bar:30}] {elapsed}") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    /// A new stage begins.
    pub(crate) fn stage(&self, name: &'static str) {
        self.0.set_position(0);
        self.0.set_message(name);
    }

    /// `share` (0 to 1) of the stage is done.
    pub(crate) fn advance(&self, share: f64) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of 1000 steps")]
        self.0.inc((share * STEPS as f64) as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
