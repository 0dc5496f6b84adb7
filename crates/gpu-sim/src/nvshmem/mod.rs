//! NVSHMEM's C interface of version 3.4.5: every function that nvshmem-sys looks up.
//!
//! Ranks are processes of one machine. They share a control block and each other's heaps, files that live in memory
//! only and that others open through `/proc`: nothing stays behind, however a process ends. What is not simulated
//! prints its name and ends the process, as NVSHMEM itself does on mistakes.
mod allocator;
mod control;
mod heap;
mod host;
mod init;
mod inside;
mod on_stream;
mod proxy;
mod team;
mod world;

/// Version of the headers that this follows.
const VERSION: (i32, i32, i32) = (3, 4, 5);

/// Prints a line and ends the process with status 255, as NVSHMEM does on mistakes.
#[expect(clippy::print_stderr, reason = "so does the library that is simulated")]
fn give_up(why: &str) -> ! {
    eprintln!("gpu-sim NVSHMEM, process {}: {why}", std::process::id());
    proxy::stop();
    inside::forget();
    std::process::exit(255)
}

/// Prints the name of what is not simulated and aborts.
#[expect(clippy::print_stderr, reason = "so does the library that is simulated")]
fn not_simulated(name: &str) -> ! {
    eprintln!("gpu-sim NVSHMEM: {name} is not simulated");
    std::process::abort()
}
