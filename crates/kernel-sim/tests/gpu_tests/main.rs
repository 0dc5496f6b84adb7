//! The GPU tests of fm3-kernels, unchanged, on the simulator: this program has them all, and starts itself as a child
//! that finds the simulated driver and kernels. Where there is no GPU they are skipped outside that child.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::duplicate_mod, reason = "each of these files is a program of its own, too")]

#[path = "../../../fm3-kernels/tests/gpu_backward.rs"]
mod gpu_backward;
#[path = "../../../fm3-kernels/tests/gpu_backward_calls.rs"]
mod gpu_backward_calls;
#[path = "../../../fm3-kernels/tests/gpu_backward_ordered.rs"]
mod gpu_backward_ordered;
#[path = "../../../fm3-kernels/tests/gpu_backward_parts.rs"]
mod gpu_backward_parts;
#[path = "../../../fm3-kernels/tests/gpu_backward_parts_calls.rs"]
mod gpu_backward_parts_calls;
#[path = "../../../fm3-kernels/tests/gpu_backward_split.rs"]
mod gpu_backward_split;
#[path = "../../../fm3-kernels/tests/gpu_calls.rs"]
mod gpu_calls;
#[path = "../../../fm3-kernels/tests/gpu_forward.rs"]
mod gpu_forward;
#[path = "../../../fm3-kernels/tests/gpu_mask.rs"]
mod gpu_mask;
#[path = "../../../fm3-kernels/tests/gpu_segments.rs"]
mod gpu_segments;
mod small;
mod tables;

use std::process::Command;

/// Names that begin like these, of tests that take two seconds of a core or less; together about 15.
const QUICK: &[&str] = &[
    "gpu_backward_calls::every_mistake",
    "gpu_backward_calls::segments_that",
    "gpu_backward_calls::without_backward",
    "gpu_backward_ordered::a_deterministic_call",
    "gpu_backward_parts::f16_in_parts",
    "gpu_backward_split::what_cannot",
    "gpu_backward_split::parts_of",
    "gpu_calls::clocks_of",
    "gpu_calls::every_mistake",
    "gpu_mask::",
    "gpu_segments::a_wait_that_expires",
    "gpu_segments::keys_that_come_late",
    "gpu_segments::signals_that_are_there",
    "gpu_segments::the_abort_word",
    "small::",
    "tables::",
];

/// Too many products, or too many runs of them, for a CPU.
const LARGE: &[&str] = &["::large_problems", "::equal_calls", "ordered::bits_of_all"];

/// Runs the tests whose names begin like these in a child.
fn run(filters: &[&str], skipped: &[&str]) {
    let simulator = kernel_sim::install().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(filters)
        .args(skipped.iter().flat_map(|name| ["--skip", name]))
        .envs(simulator.variables())
        .env("FM_REQUIRE_GPU", "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    let count =
        |line: &str| text.lines().filter(|got| got.starts_with("test ") && got.ends_with(line)).count();
    assert!(output.status.success() && count("... ok") >= filters.len(), "{text}");
}

#[test]
fn quick_ones_pass_on_the_simulator() {
    run(QUICK, &[]);
}

#[test]
#[ignore = "takes minutes"]
fn all_but_the_large_ones_pass_on_the_simulator() {
    run(&["gpu_", "small::", "tables::"], LARGE);
}
