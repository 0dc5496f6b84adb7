//! A call that was enqueued and has not been waited for.
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use symm_buffer::{Epoch, Fabric, Incarnation, Pe, SignalId, Use};

use super::notes::Notes;
use super::report::CallReport;
use super::{failure, pause};
use crate::Error;

/// One call of one rank. Dropping it changes nothing: the call goes on, and its failure comes from the next call.
pub struct Handle<F: Fabric> {
    fabric: Weak<F>,
    notes: Arc<Mutex<Notes>>,
    end: End,
    report: CallReport,
}

/// How the end of a call is known: words that this rank raises for itself, in the order of its streams.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) me: Pe,
    pub(crate) at: Use,
    pub(crate) incarnation: Incarnation,
    /// Outputs are written and the gather half is free.
    pub(crate) attended: (SignalId, Epoch),
    /// Own pushes have left; none when there are none.
    pub(crate) pushed: Option<(SignalId, Epoch)>,
}

impl End {
    /// Whether the device has come past the call.
    pub(crate) fn is_reached<F: Fabric>(&self, fabric: &F) -> Result<bool, Error> {
        let reached = |(signal, value)| Ok::<_, Error>(fabric.seen(signal)? >= value);
        Ok(reached(self.attended)? && self.pushed.map_or(Ok(true), reached)?)
    }
}

impl<F: Fabric> Handle<F> {
    pub(crate) const fn new(fabric: Weak<F>, notes: Arc<Mutex<Notes>>, end: End, report: CallReport) -> Self {
        Self { fabric, notes, end, report }
    }

    /// Number of the call among those of its session since it was made or recovered.
    pub const fn number(&self) -> Use {
        self.end.at
    }

    /// Whether [`Handle::wait`] would return at once, with a report or with an error.
    pub fn is_done(&self) -> bool {
        self.poll().unwrap_or(true)
    }

    /// Whether the outputs are written and nothing reads the sources any more (rule S5).
    ///
    /// # Errors
    /// As [`Handle::wait`]. After a failure it cannot be said of a call whether it was done before.
    pub fn poll(&self) -> Result<bool, Error> {
        let fabric = self.fabric.upgrade().filter(|fabric| fabric.incarnation() == self.end.incarnation);
        let fabric = fabric.ok_or(Error::Abandoned { rank: self.end.me })?;
        // Before the status: a call that a failure cut short comes to its end after that failure is known.
        let reached = self.end.is_reached(&*fabric)?;
        let sound = fabric.status().map_err(Error::from);
        match sound.and_then(|()| lock(&self.notes).compare(&*fabric, self.end.at)) {
            Ok(()) => Ok(reached),
            Err(error) => Err(failure::explain_queued(&*fabric, &self.notes, self.end.at, error)),
        }
    }

    /// Blocks until the call is done. It has no deadline of its own: work that was queued before may take any time, and
    /// every wait for a peer ends by its deadline.
    ///
    /// # Errors
    /// [`Error::Fabric`] with the report of a wait that expired, here or elsewhere; [`Error::PlanMismatch`];
    /// [`Error::Abandoned`].
    pub fn wait(&self) -> Result<CallReport, Error> {
        self.wait_with(|| Ok(()))
    }

    /// As [`Handle::wait`], with a look of the caller after each look of its own, also after the last one.
    ///
    /// # Errors
    /// Those of [`Handle::wait`] and of `check`.
    pub fn wait_with(&self, mut check: impl FnMut() -> Result<(), Error>) -> Result<CallReport, Error> {
        let start = Instant::now();
        for look in 0.. {
            let done = self.poll()?;
            check()?;
            if done {
                break;
            }
            pause(look, start.elapsed());
        }
        Ok(self.report())
    }

    /// The word and the value by which this rank tells itself that the outputs are written: for those who watch many
    /// calls at once.
    pub const fn attended(&self) -> (SignalId, Epoch) {
        self.end.attended
    }

    /// What is known of the call without waiting: what it cost the calling thread, and what it sends.
    pub fn report(&self) -> CallReport {
        self.report.clone()
    }
}

/// Notes are whole between any two of their methods' steps, so a panic elsewhere does not spoil them.
pub(crate) fn lock(notes: &Mutex<Notes>) -> MutexGuard<'_, Notes> {
    notes.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<F: Fabric> std::fmt::Debug for Handle<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("end", &self.end).finish_non_exhaustive()
    }
}
