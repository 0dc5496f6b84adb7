//! The GPU backend passes the suite, with a process per rank.
#![cfg(not(any(loom, shuttle)))]
#![expect(unsafe_code, reason = "sources are device addresses")]
#[path = "processes/mod.rs"]
mod processes;

use processes::Processes;

symm_buffer::conformance!(nvshmem, Processes::default());
