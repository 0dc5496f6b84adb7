//! Waits of kernels: signals, deadlines, the abort word, and the report of a wait that was too long.
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fm3_kernels::params::WaitReport;

use crate::memory::{Array, word32, word64};

/// Between two looks: many threads and processes share few cores.
const SLEEP: Duration = Duration::from_micros(20);

/// What ends waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Address of a WaitReport, 0 for none.
    pub(crate) report: u64,
    /// Address of a u32, 0 for none.
    pub(crate) abort: u64,
    /// Nanoseconds, 0 for none.
    pub(crate) deadline_ns: u64,
}

/// Who waits for what: a segment, or a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Awaited {
    pub(crate) segment: u32,
    pub(crate) head: u32,
    pub(crate) wanted: u64,
    /// Block (CTA) that waits.
    pub(crate) block: u32,
}

/// How a wait ended without what was waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unmet {
    Expired { seen: u64, waited_ns: u64 },
    Stopped,
}

impl Limits {
    /// Whether somebody aborted, or a wait has expired; calls without a deadline do not look for the latter.
    pub(crate) fn stopped(self) -> bool {
        let set = |address: u64| address != 0 && word32(address).load(Ordering::Relaxed) != 0;
        (self.deadline_ns != 0 && set(self.report)) || set(self.abort)
    }

    /// Waits until the word at `signal` is at least `awaited.wanted`; returns for how long, in nanoseconds. None: it was
    /// not, and the report says so unless somebody else's does.
    pub(crate) fn await_signal(self, signal: u64, awaited: Awaited) -> Option<u64> {
        let word = word64(signal);
        let load = || word.load(Ordering::Acquire);
        match spin(self.deadline_ns, load, |seen| seen >= awaited.wanted, || self.stopped()) {
            Ok(waited_ns) => Some(waited_ns),
            Err(Unmet::Stopped) => None,
            Err(Unmet::Expired { seen, waited_ns }) => {
                self.write_report(awaited, seen, waited_ns);
                None
            }
        }
    }

    /// The first to come here fills the report.
    pub(crate) fn write_report(self, awaited: Awaited, seen: u64, waited_ns: u64) {
        if self.report == 0 {
            return;
        }
        let state: &AtomicU32 = word32(self.report);
        if state.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return;
        }
        let Awaited { segment, head: kv_head, wanted, block: cta } = awaited;
        Array::at(self.report)
            .set(0, WaitReport { state: 1, segment, kv_head, cta, wanted, seen, waited_ns });
        fence(Ordering::SeqCst);
        state.store(2, Ordering::Release);
    }
}

/// The device's clock: that of the system, the same for all devices.
pub(crate) fn global_nanoseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// Looks until it is good, time is over (0: never), or somebody stops it; returns for how long, in nanoseconds, 0 if
/// one look was enough.
pub(crate) fn spin<W: Copy + Into<u64>>(
    deadline_ns: u64,
    load: impl Fn() -> W,
    is_good: impl Fn(W) -> bool,
    is_stopped: impl Fn() -> bool,
) -> Result<u64, Unmet> {
    let mut start: Option<Instant> = None;
    loop {
        let seen = load();
        let waited = start.map_or(Duration::ZERO, |start| start.elapsed());
        let waited_ns = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        if is_good(seen) {
            return Ok(waited_ns);
        }
        start.get_or_insert_with(Instant::now);
        if is_stopped() {
            return Err(Unmet::Stopped);
        }
        if deadline_ns != 0 && waited_ns > deadline_ns {
            return Err(Unmet::Expired { seen: seen.into(), waited_ns });
        }
        thread::sleep(SLEEP);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use bytemuck::Zeroable as _;

    use super::*;

    const AWAITED: Awaited = Awaited { segment: 3, head: 1, wanted: 7, block: 9 };

    fn address<T>(of: &T) -> u64 {
        std::ptr::from_ref(of).expose_provenance() as u64
    }

    #[test]
    fn a_wait_ends_by_its_word_its_deadline_or_the_abort_word() {
        let (signal, abort) = (AtomicU64::new(6), AtomicU32::new(0));
        let mut report = WaitReport::zeroed();
        let to_report = (&raw mut report).expose_provenance() as u64;
        let limits = Limits { report: to_report, abort: address(&abort), deadline_ns: 2_000_000 };
        assert!(limits.await_signal(address(&signal), AWAITED).is_none() && limits.stopped());
        let got: WaitReport = Array::at(to_report).get(0);
        assert_eq!((got.state, got.segment, got.kv_head, got.cta, got.wanted, got.seen), (2, 3, 1, 9, 7, 6));
        assert!(got.waited_ns >= 2_000_000);
        // A second one leaves the report as it is; without a deadline nobody looks at it.
        limits.write_report(Awaited { segment: 5, ..AWAITED }, 0, 0);
        assert_eq!(Array::<WaitReport>::at(to_report).get(0), got);
        let patient = Limits { deadline_ns: 0, ..limits };
        assert!(!patient.stopped());
        thread::scope(|scope| {
            let waits = scope.spawn(|| patient.await_signal(address(&signal), AWAITED));
            thread::sleep(Duration::from_millis(5));
            assert!(!waits.is_finished());
            signal.store(7, Ordering::Release);
            assert!(waits.join().unwrap() > Some(0));
            assert_eq!(patient.await_signal(address(&signal), AWAITED), Some(0));
        });
        abort.store(1, Ordering::Relaxed);
        let stopped = patient.await_signal(address(&signal), Awaited { wanted: 8, ..AWAITED });
        assert!(stopped.is_none() && patient.stopped());
    }
}
