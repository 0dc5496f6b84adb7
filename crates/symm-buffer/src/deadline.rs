//! Deadlines, and the one helper behind every wait of a host thread (rule D1).
use std::time::{Duration, Instant};

use crate::sync::{CHECKED, Condvar, Mutex, hint, thread};

/// A point in time at which a wait gives up, and when it began.
///
/// A checked program has no clock. There a budget of up to [`MOST_LOOKS`] nanoseconds is that many looks in vain, and a
/// longer one means never, so that a checker can explore what is late and still finds what hangs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    begin: Instant,
    end: Option<Instant>,
    looks: Option<u64>,
}

/// See [`Deadline`].
const MOST_LOOKS: u64 = 1000;

impl Deadline {
    /// `budget` from now; a budget too large for the clock means never.
    pub(crate) fn after(budget: Duration) -> Self {
        let begin = Instant::now();
        let looks = u64::try_from(budget.as_nanos()).ok().filter(|&looks| looks <= MOST_LOOKS);
        Self { begin, end: begin.checked_add(budget), looks }
    }

    /// At `end`.
    pub(crate) fn at(end: Instant) -> Self {
        Self { begin: Instant::now(), end: Some(end), looks: Some(1) }
    }

    /// Only for threads that wait for work: whoever waits for a peer has a budget.
    pub(crate) fn never() -> Self {
        Self { begin: Instant::now(), end: None, looks: None }
    }

    /// Time since the wait began.
    pub(crate) fn waited(&self) -> Duration {
        // The same in every run of a schedule.
        if CHECKED { Duration::ZERO } else { self.begin.elapsed() }
    }

    /// Time left after some looks: zero when it is over, `None` when it never is.
    fn left(&self, looks: u64) -> Option<Duration> {
        match CHECKED {
            true => self.looks.map(|most| Duration::from_nanos(most.saturating_sub(looks))),
            false => self.end.map(|end| end.saturating_duration_since(Instant::now())),
        }
    }
}

/// The wait gave up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expired {
    /// After how long.
    pub(crate) waited: Duration,
}

/// What the thread waited for, and how long.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waited<T> {
    pub(crate) value: T,
    pub(crate) time: Duration,
}

/// Counts changes and wakes those who wait for one. Whoever changes what a poll reads notifies afterwards.
#[derive(Debug, Default)]
pub(crate) struct Event {
    changes: Mutex<u64>,
    changed: Condvar,
}

impl Event {
    /// Something changed: everyone who waits looks again.
    pub(crate) fn notify(&self) {
        *self.changes.lock() += 1;
        self.changed.notify_all();
    }

    fn changes(&self) -> u64 {
        *self.changes.lock()
    }

    /// Sleeps while the count is still `seen`.
    fn park(&self, seen: u64, limit: Option<Duration>) {
        if CHECKED && limit.is_some() {
            // The next look, when others have run.
            return thread::yield_now();
        }
        let guard = self.changes.lock();
        if *guard == seen {
            drop(self.changed.wait(guard, limit));
        }
    }
}

/// Looks this often before it sleeps: about a microsecond, much less than a sleep and a wake cost. More would take
/// the core from a rank that computes.
const SPINS: usize = if CHECKED { 0 } else { 32 };

/// Polls until there is a value or the deadline has passed; sleeps on `event` in between.
///
/// The count is read before the poll, so a change between poll and sleep is never slept through. There is always one
/// more poll after the time is up.
pub(crate) fn wait_until<T>(
    event: &Event,
    deadline: Deadline,
    mut poll: impl FnMut() -> Option<T>,
) -> Result<Waited<T>, Expired> {
    if let Some(value) = poll() {
        return Ok(Waited { value, time: Duration::ZERO });
    }
    for _ in std::iter::repeat_n((), SPINS) {
        hint::spin_loop();
        if let Some(value) = poll() {
            return Ok(Waited { value, time: deadline.waited() });
        }
    }
    let mut looks = 0;
    loop {
        let seen = event.changes();
        let left = deadline.left(looks);
        if let Some(value) = poll() {
            return Ok(Waited { value, time: deadline.waited() });
        }
        if left == Some(Duration::ZERO) {
            return Err(Expired { waited: deadline.waited() });
        }
        event.park(seen, left);
        looks += 1;
    }
}

/// As [`wait_until`] for what nobody here is told of: memory that other processes or a device write.
///
/// Looks without a pause for about a microsecond, gives the core away for the next 50, and then sleeps for an eighth of
/// the time that it has waited, at most a millisecond: so it is late by an eighth, and a long wait costs no core.
#[cfg(feature = "nvshmem")]
#[cfg(not(any(loom, shuttle)))]
pub(crate) fn poll_until<T>(
    deadline: Deadline,
    mut poll: impl FnMut() -> Option<T>,
) -> Result<Waited<T>, Expired> {
    const EAGER: Duration = Duration::from_micros(50);
    const LONGEST: Duration = Duration::from_millis(1);
    if let Some(value) = poll() {
        return Ok(Waited { value, time: Duration::ZERO });
    }
    let start = Instant::now();
    for look in 0_usize.. {
        let left = deadline.left(0);
        if let Some(value) = poll() {
            return Ok(Waited { value, time: deadline.waited() });
        }
        if left == Some(Duration::ZERO) {
            break;
        }
        let waited = start.elapsed();
        match look {
            0..SPINS => hint::spin_loop(),
            _ if waited < EAGER => thread::yield_now(),
            _ => thread::sleep((waited / 8).min(LONGEST).min(left.unwrap_or(LONGEST))),
        }
    }
    Err(Expired { waited: deadline.waited() })
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use crate::sync::{AtomicU64, Ordering, thread};

    #[test]
    fn a_change_wakes_a_sleeper_soon() {
        let (event, word) = (Event::default(), AtomicU64::new(0));
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                wait_until(&event, Deadline::after(Duration::from_secs(20)), || {
                    (word.load(Ordering::Acquire) == 1).then(Instant::now)
                })
            });
            thread::sleep(Duration::from_millis(20));
            word.store(1, Ordering::Release);
            let posted = Instant::now();
            event.notify();
            let woke = waiter.join().unwrap().unwrap();
            assert!(woke.time >= Duration::from_millis(10));
            // Tens of microseconds when a core is free; the bound allows for a busy machine.
            assert!(woke.value.saturating_duration_since(posted) < Duration::from_millis(500));
        });
    }

    #[test]
    fn it_gives_up_at_the_deadline_and_not_before() {
        let event = Event::default();
        let budget = Duration::from_millis(30);
        let expired = wait_until(&event, Deadline::after(budget), || None::<()>).unwrap_err();
        assert!(expired.waited >= budget && expired.waited < Duration::from_secs(5));
    }

    #[test]
    fn the_last_look_comes_after_the_time_is_up() {
        let event = Event::default();
        let end = Instant::now() + Duration::from_millis(10);
        let waited = wait_until(&event, Deadline::at(end), || (Instant::now() >= end).then_some(()));
        assert!(waited.is_ok());
    }

    #[test]
    fn a_change_right_after_a_look_is_not_slept_through() {
        let event = Event::default();
        let (mut looks, mut ready) = (0, false);
        let waited = wait_until(&event, Deadline::after(Duration::from_secs(20)), || {
            let seen = ready;
            looks += 1;
            if looks == SPINS + 2 {
                // The first look after the spins: the change comes between it and the sleep.
                ready = true;
                event.notify();
            }
            seen.then_some(())
        });
        assert!(waited.unwrap().time < Duration::from_secs(10));
    }

    #[test]
    fn two_threads_hand_a_counter_to_and_fro() {
        let (event, word) = (Event::default(), AtomicU64::new(0));
        let hand = |parity: u64| {
            for turn in 0..2000 {
                wait_until(&event, Deadline::after(Duration::from_secs(20)), || {
                    (word.load(Ordering::Acquire) == 2 * turn + parity).then_some(())
                })
                .unwrap();
                word.store(2 * turn + parity + 1, Ordering::Release);
                event.notify();
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| hand(0));
            scope.spawn(|| hand(1));
        });
    }
}
