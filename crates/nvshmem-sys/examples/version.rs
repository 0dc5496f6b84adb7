//! Prints what NVSHMEM library is there: `cargo run -p nvshmem-sys --example version -- [FOLDER]`.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "an example's purpose is to print")]
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let folder = std::env::args_os().nth(1).map(PathBuf::from);
    match nvshmem_sys::load(folder.as_deref()) {
        Ok(nvshmem) => {
            let spec = nvshmem.spec_version();
            println!(
                "{}: version {}, OpenSHMEM {}.{}",
                nvshmem.name(),
                nvshmem.version(),
                spec.major,
                spec.minor
            );
            ExitCode::SUCCESS
        }
        Err(absent) => {
            eprintln!("{absent}");
            ExitCode::FAILURE
        }
    }
}
