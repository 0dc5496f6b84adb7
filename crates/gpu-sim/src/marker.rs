//! One recording of an event: done at some instant, and waited for until then.
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::table::lock;

/// Set once.
#[derive(Default)]
pub(crate) struct Marker {
    done: Mutex<Option<Instant>>,
    changed: Condvar,
}

impl Marker {
    /// All earlier work of the stream is complete.
    pub(crate) fn set(&self) {
        *lock(&self.done) = Some(Instant::now());
        self.changed.notify_all();
    }

    /// When it was set.
    pub(crate) fn time(&self) -> Option<Instant> {
        *lock(&self.done)
    }

    /// Blocks until it is set.
    pub(crate) fn wait(&self) {
        let done = self.changed.wait_while(lock(&self.done), |done| done.is_none());
        drop(done.unwrap_or_else(PoisonError::into_inner));
    }
}
