//! The only place that names threads, locks and atomics: std's, or a model checker's.
//!
//! `--cfg loom` and `--cfg shuttle` in `RUSTFLAGS` choose; nothing else in this crate knows the difference, but that a
//! checked program has no clock ([`CHECKED`]).
#[cfg(loom)]
use loom as engine;
#[cfg(shuttle)]
use shuttle as engine;
#[cfg(not(any(loom, shuttle)))]
use std as engine;
use std::{sync::PoisonError, time::Duration};

pub(crate) use engine::{
    hint,
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
};
/// Always std's: how it counts is not ours to check, and loom's cannot hold slices.
pub(crate) use std::sync::Arc;
#[cfg(not(any(loom, shuttle)))]
pub(crate) use std::thread;

/// Whether a model checker runs the program. Then there is no wall time: a short deadline is a number of looks.
pub(crate) const CHECKED: bool = cfg!(any(loom, shuttle));

pub(crate) type MutexGuard<'a, T> = engine::sync::MutexGuard<'a, T>;

/// A mutex that ignores poison: no critical section here leaves its data half changed when it panics.
#[derive(Debug)]
pub(crate) struct Mutex<T>(engine::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(engine::sync::Mutex::new(value))
    }

    #[cfg(feature = "nvshmem")]
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn into_inner(self) -> T {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(feature = "nvshmem")]
    #[cfg(not(any(loom, shuttle)))]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(std::sync::TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(std::sync::TryLockError::WouldBlock) => None,
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// A condition variable to go with [`Mutex`].
#[derive(Debug, Default)]
pub(crate) struct Condvar(engine::sync::Condvar);

impl Condvar {
    /// Sleeps until notified or, if given, `limit` has passed; may also wake for no reason. A checker knows no limit.
    pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>, limit: Option<Duration>) -> MutexGuard<'a, T> {
        match limit {
            Some(limit) => self.0.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0,
            None => self.0.wait(guard).unwrap_or_else(PoisonError::into_inner),
        }
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[cfg(feature = "nvshmem")]
#[cfg(not(any(loom, shuttle)))]
pub(crate) use engine::sync::{OnceLock, atomic::fence, mpsc};

/// A count that a checker does not see: it is about the executions, not in them.
#[cfg(all(loom, test))]
pub(crate) type Tally = std::sync::atomic::AtomicU64;
#[cfg(all(loom, test))]
pub(crate) use engine::sync::atomic::fence;

/// What std's threads can do and the checkers' cannot.
#[cfg(any(loom, shuttle))]
pub(crate) mod thread {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    #[cfg(shuttle)]
    pub(crate) use super::engine::thread::{Scope, ScopedJoinHandle, scope};
    pub(crate) use super::engine::thread::{panicking, yield_now};

    /// As std's; names are dropped.
    pub(crate) struct Builder;

    impl Builder {
        pub(crate) const fn new() -> Self {
            Self
        }

        pub(crate) fn name(self, _name: String) -> Self {
            self
        }

        pub(crate) fn spawn<T: Send + 'static>(
            self,
            body: impl FnOnce() -> T + Send + 'static,
        ) -> std::io::Result<JoinHandle<T>> {
            // Not a checker's atomic: that somebody looks whether a thread has ended must not add schedules.
            let ended = Arc::new(AtomicBool::new(false));
            let its_end = Ended(ended.clone());
            let body = move || {
                let _its_end = its_end;
                body()
            };
            let thread = super::engine::thread::Builder::new().spawn(body)?;
            Ok(JoinHandle { thread, ended })
        }

        #[cfg(shuttle)]
        pub(crate) fn spawn_scoped<'scope, T: Send + 'scope>(
            self,
            scope: &'scope Scope<'scope, '_>,
            body: impl FnOnce() -> T + Send + 'scope,
        ) -> std::io::Result<ScopedJoinHandle<'scope, T>> {
            Ok(scope.spawn(body))
        }
    }

    /// As std's.
    pub(crate) struct JoinHandle<T> {
        thread: super::engine::thread::JoinHandle<T>,
        ended: Arc<AtomicBool>,
    }

    impl<T> JoinHandle<T> {
        pub(crate) fn join(self) -> std::thread::Result<T> {
            self.thread.join()
        }

        pub(crate) fn is_finished(&self) -> bool {
            self.ended.load(Ordering::Acquire)
        }
    }

    struct Ended(Arc<AtomicBool>);

    impl Drop for Ended {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
}
