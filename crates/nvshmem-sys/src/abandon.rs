//! The end of a process in which a call of NVSHMEM never returned.
#![expect(unsafe_code, reason = "an exit handler of the C library")]
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::Once;

use crate::Nvshmem;

unsafe extern "C" {
    /// The handler gets the exit status; handlers run in the reverse order of their registration
    /// ([manual](https://man7.org/linux/man-pages/man3/on_exit.3.html)).
    safe fn on_exit(handler: extern "C" fn(c_int, *mut c_void), argument: *mut c_void) -> c_int;
    unsafe fn fflush(stream: *mut c_void) -> c_int;
    safe fn _exit(status: c_int) -> !;
}

impl Nvshmem {
    /// Gives up a call that does not return, with the thread that is in it: this process may then exit.
    ///
    /// NVSHMEM's collectives wait for other ranks without a deadline. A caller that has put one on a thread of its own can
    /// go on without it, but not exit: NVSHMEM's exit handler unloads the code that the thread still runs, and the process
    /// dies of SIGSEGV (3.4.5, a rank killed while the others start; also without a GPU). After this call the process
    /// ends, with the status that it wants, by `_exit` behind the buffers of C's streams: handlers of `atexit` that were
    /// registered before do not run. Call nothing of NVSHMEM any more.
    pub fn abandon(&self) {
        static ONCE: Once = Once::new();
        // Where there is no room for a handler, the process dies as it would have.
        ONCE.call_once(|| _ = on_exit(end, null_mut()));
    }
}

extern "C" fn end(status: c_int, _argument: *mut c_void) {
    // SAFETY: null means all streams.
    unsafe { fflush(null_mut()) };
    _exit(status)
}
