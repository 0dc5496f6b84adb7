//! Clock and power while kernels run, through nvidia-smi: a card at its power limit runs below its clock.
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::Serialize;

/// Asks nvidia-smi every 20 ms until dropped. Without nvidia-smi there are no readings.
#[derive(Debug)]
pub(super) struct Monitor {
    child: Option<Child>,
    samples: Arc<Mutex<Vec<(Instant, Reading)>>>,
}

/// Mean of what was read.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Reading {
    /// Clock of the multiprocessors, MHz.
    pub clock_mhz: f64,
    /// Power, W.
    pub power_w: f64,
}

impl Monitor {
    /// Of one device.
    pub(super) fn start(device: usize) -> Self {
        let words =
            ["--query-gpu=clocks.sm,power.draw.instant", "--format=csv,noheader,nounits", "-lms", "20"];
        let spawn = |program: &[&str]| {
            let mut command = Command::new(program[0]);
            command.args(&program[1..]).args(words).args(["-i", &device.to_string()]);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
        };
        // Line by line where that can be had: a reading that comes late belongs to no launch.
        let spawned = spawn(&["stdbuf", "-oL", "nvidia-smi"]).or_else(|_| spawn(&["nvidia-smi"]));
        let samples = Arc::new(Mutex::new(Vec::new()));
        let mut child = spawned.ok();
        if let Some(output) = child.as_mut().and_then(|child| child.stdout.take()) {
            let samples = Arc::clone(&samples);
            // Ends with the child.
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if let Some(reading) = parse(&line) {
                        let mut samples = samples.lock().unwrap_or_else(PoisonError::into_inner);
                        samples.push((Instant::now(), reading));
                    }
                }
            });
        }
        Self { child, samples }
    }

    /// Mean over the samples since `start`; none when there were none.
    pub(super) fn since(&self, start: Instant) -> Option<Reading> {
        let samples = self.samples.lock().unwrap_or_else(PoisonError::into_inner);
        mean(samples.iter().filter(|(at, _)| *at >= start).map(|(_, reading)| *reading))
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Mean of several; none of none.
pub(super) fn mean(readings: impl Iterator<Item = Reading>) -> Option<Reading> {
    let (mut count, mut clock, mut power) = (0.0, 0.0, 0.0);
    for reading in readings {
        count += 1.0;
        clock += reading.clock_mhz;
        power += reading.power_w;
    }
    (count > 0.0).then(|| Reading { clock_mhz: clock / count, power_w: power / count })
}

/// `1755, 612.34`
fn parse(line: &str) -> Option<Reading> {
    let (clock, power) = line.split_once(',')?;
    Some(Reading { clock_mhz: clock.trim().parse().ok()?, power_w: power.trim().parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_averaged_and_other_lines_are_not() {
        let readings = ["1755, 600.00", "[N/A], [N/A]", "1765, 620.00"].map(parse);
        let wanted = Reading { clock_mhz: 1760.0, power_w: 610.0 };
        assert_eq!(mean(readings.into_iter().flatten()), Some(wanted));
        assert_eq!(mean(std::iter::empty()), None);
    }
}
