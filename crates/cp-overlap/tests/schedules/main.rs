//! Whole plans under random schedules: every rank, stream and wait of a host world runs under shuttle's scheduler.
//!
//! Only with `--cfg shuttle` in RUSTFLAGS; otherwise this is an empty program. Arguments: `--full` for more schedules,
//! `--replay CASE/SCHEDULER/SEED` for one that failed. `cargo xtask verify` runs it.
#![cfg_attr(
    shuttle,
    expect(
        clippy::unwrap_used,
        clippy::print_stdout,
        clippy::print_stderr,
        clippy::cast_possible_truncation,
        reason = "a test program without a harness prints its counts and fails by panicking; a mark fits bf16"
    )
)]
#[cfg(shuttle)]
mod cases;
#[cfg(shuttle)]
mod explore;
#[cfg(shuttle)]
mod marks;
#[cfg(shuttle)]
mod mutated;

#[cfg(shuttle)]
fn main() -> std::process::ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().position(|word| word == "--replay") {
        Some(at) => explore::replay(words.get(at + 1).map_or("", String::as_str)),
        None => explore::all(words.iter().any(|word| word == "--full")),
    }
}

#[cfg(not(shuttle))]
fn main() {}
