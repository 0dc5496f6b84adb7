//! Threads that wait for other ranks inside the library.
//!
//! At exit the real one unloads the plugin by which its ranks meet: a thread that is still in there takes the process with it,
//! by SIGSEGV. Here an exit handler aborts.
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

static THREADS: AtomicU32 = AtomicU32::new(0);

/// A thread is inside as long as it has this.
pub(super) struct Inside(());

impl Inside {
    pub(super) fn enter() -> Self {
        static REGISTERED: Once = Once::new();
        REGISTERED.call_once(|| _ = atexit(at_exit));
        THREADS.fetch_add(1, Ordering::AcqRel);
        Self(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        THREADS.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The library itself ends the process, with its threads where they are.
pub(super) fn forget() {
    THREADS.store(0, Ordering::Release);
}

unsafe extern "C" {
    /// Of the C library; it calls the function when the process exits, on whatever way but a signal.
    safe fn atexit(function: extern "C" fn()) -> i32;
}

#[expect(clippy::print_stderr, reason = "what is simulated here would leave a core dump")]
extern "C" fn at_exit() {
    if THREADS.load(Ordering::Acquire) > 0 {
        eprintln!(
            "gpu-sim NVSHMEM, process {}: exit while a thread is in a collective; the real one dies of SIGSEGV here",
            std::process::id()
        );
        std::process::abort();
    }
}
