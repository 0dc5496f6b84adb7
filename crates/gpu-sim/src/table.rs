//! Handles: numbers that are never used twice, so that a stale one is known as such.
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::code::{Code, Outcome};

/// Things of one kind by their handles.
pub(crate) struct Table<T>(Mutex<BTreeMap<usize, Arc<T>>>);

impl<T> Table<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Makes a thing that knows its handle.
    pub(crate) fn insert(&self, thing: T) -> usize {
        // Above the small numbers that stand for the default streams.
        static NEXT: AtomicUsize = AtomicUsize::new(0x1_0000);
        let handle = NEXT.fetch_add(16, Ordering::Relaxed);
        lock(&self.0).insert(handle, Arc::new(thing));
        handle
    }

    pub(crate) fn get(&self, handle: usize) -> Outcome<Arc<T>> {
        lock(&self.0).get(&handle).cloned().ok_or(Code::ERROR_INVALID_HANDLE)
    }

    pub(crate) fn remove(&self, handle: usize) -> Outcome<Arc<T>> {
        lock(&self.0).remove(&handle).ok_or(Code::ERROR_INVALID_HANDLE)
    }
}

/// Locks; a thread that panicked with the lock held does not matter to the simulator.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
