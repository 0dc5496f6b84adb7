//! The proxy thread, as far as its end goes.
//!
//! The real one reads pinned memory until `finalize`. A process that exits before is killed: the driver's exit handlers
//! unmap that memory under the thread. Here there is no thread, and an exit handler of the simulator aborts.
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::config;

static RUNS: AtomicBool = AtomicBool::new(false);

/// Starts it, if the environment does not say that there is none.
pub(super) fn start() {
    static REGISTERED: Once = Once::new();
    if config::has_proxy() {
        RUNS.store(true, Ordering::Release);
        REGISTERED.call_once(|| _ = atexit(at_exit));
    }
}

/// Ends it: after this the process may exit.
pub(super) fn stop() {
    RUNS.store(false, Ordering::Release);
}

unsafe extern "C" {
    /// Of the C library; it calls the function when the process exits, on whatever way but a signal.
    safe fn atexit(function: extern "C" fn()) -> i32;
}

#[expect(clippy::print_stderr, reason = "what is simulated here would leave a core dump")]
extern "C" fn at_exit() {
    if RUNS.load(Ordering::Acquire) {
        eprintln!(
            "gpu-sim NVSHMEM, process {}: exit without finalize while the proxy thread runs; the real one dies of \
             SIGSEGV here",
            std::process::id()
        );
        std::process::abort();
    }
}
