//! Prints what NVSHMEM library is there, and a new unique id: `cargo run -p nvshmem-sys --example version -- [FOLDER]`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example's purpose is to print")]
use std::process::ExitCode;

use nvshmem_sys::{Error, Search, load};

fn main() -> ExitCode {
    match show(&std::env::args_os().nth(1).map_or_else(Search::system, Search::only)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn show(search: &Search) -> Result<(), Error> {
    let nvshmem = load(search)?;
    let spec = nvshmem.spec_version();
    println!("{}: version {}, OpenSHMEM {}.{}", nvshmem.name(), nvshmem.version(), spec.major, spec.minor);
    println!("state: {:?}", nvshmem.status());
    // Rank 0 makes it and gives its bytes to all others; then each calls `init`.
    let id = nvshmem.unique_id()?.bytes();
    println!("a unique id: {}", id.iter().map(|byte| format!("{byte:02x}")).collect::<String>());
    Ok(())
}
