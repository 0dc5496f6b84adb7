//! Enqueued calls on the host backend: a thread per rank stands for its device, and every row that it reads says whose
//! it is and of which call.
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test, also in helpers")]

mod calls;
mod device;
mod failures;
mod marks;
#[path = "../plan/problems.rs"]
#[allow(dead_code, reason = "shared with the tests of plans, which use more of it")]
mod problems;
mod world;
