//! NVSHMEM without its proxy thread.
use std::env;

use crate::Nvshmem;

/// What the library reads from the environment when it starts, and what it must find there to have no such thread
/// ([environment variables](https://docs.nvidia.com/nvshmem/api/gen/env.html)).
const SETTINGS: [(&str, &str); 2] = [
    // With a transport to other machines the thread is always there; by default one is opened wherever there is a NIC.
    ("NVSHMEM_REMOTE_TRANSPORT", "none"),
    ("NVSHMEM_DISABLE_LOCAL_ONLY_PROXY", "1"),
];

impl Nvshmem {
    /// Tells the library to start no proxy thread, for ranks of one machine that reach each other's memory.
    ///
    /// That thread looks at pinned memory, for ever, until [`Session::finalize`](crate::Session::finalize). A process
    /// that ends without it, and whoever has lost a peer must, dies of SIGSEGV at its exit when the driver unmaps that
    /// memory under the thread (seen with 3.4.5 and driver 580). The thread serves transports to other machines,
    /// device-side `nvshmem_global_exit` and device-side timeouts of waits: none of them works without it, and
    /// [`Nvshmem::init`] fails where a peer's memory is out of reach.
    ///
    /// Sets `NVSHMEM_REMOTE_TRANSPORT` to `none` and `NVSHMEM_DISABLE_LOCAL_ONLY_PROXY` to `1` in the environment of
    /// this process, each unless it is there already, whatever its value: a user's choice stays. Call it before
    /// [`Nvshmem::unique_id`] and [`Nvshmem::init`], which read them.
    ///
    /// # Safety
    /// If one of them is not there: no other thread reads or changes the environment at the same time, but through
    /// `std::env`.
    pub unsafe fn without_proxy(&self) {
        for (name, value) in missing(is_set) {
            // SAFETY: the caller vouches for the other threads.
            unsafe { set(name, value) };
        }
    }
}

/// The settings that are still to be made.
fn missing(is_set: impl Fn(&str) -> bool) -> impl Iterator<Item = (&'static str, &'static str)> {
    SETTINGS.into_iter().filter(move |(name, _)| !is_set(name))
}

#[expect(
    clippy::disallowed_methods,
    reason = "NVSHMEM's own variables, which only the environment carries to it"
)]
fn is_set(name: &str) -> bool {
    env::var_os(name).is_some()
}

/// # Safety
/// As `std::env::set_var`.
#[expect(clippy::disallowed_methods, reason = "NVSHMEM takes these settings from the environment only")]
unsafe fn set(name: &str, value: &str) {
    // SAFETY: the caller vouches for the other threads; the name has neither '=' nor NUL.
    unsafe { env::set_var(name, value) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_user_has_set_stays() {
        let left = |set: &str| missing(|name| name == set).map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(left("another"), ["NVSHMEM_REMOTE_TRANSPORT", "NVSHMEM_DISABLE_LOCAL_ONLY_PROXY"]);
        assert_eq!(left("NVSHMEM_REMOTE_TRANSPORT"), ["NVSHMEM_DISABLE_LOCAL_ONLY_PROXY"]);
        assert_eq!(left("NVSHMEM_DISABLE_LOCAL_ONLY_PROXY"), ["NVSHMEM_REMOTE_TRANSPORT"]);
        assert_eq!(missing(|_| true).count(), 0);
    }
}
