//! `cargo xtask bench-fabric`: what the GPU fabric reaches between two processes, and what it costs attention beside it.
//!
//! It starts itself once per rank. Rank 0 prints one table of all ranks' times; a figure is of the slowest rank. Gated
//! streams keep the host's launch cost out of all figures but those that are about it.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program speaks to its user")]
#![deny(unsafe_code)]
mod cases;
mod figures;
mod plot;
mod rank;
mod raw;
mod work;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{bail, ensure};
use clap::Parser;
use fabric_bench::start_ranks;

/// Flags.
#[derive(Clone, Debug, Parser)]
#[command(name = "fabric-bench")]
pub(crate) struct Args {
    /// Processes; with more than there are GPUs several share one. Two measure, others look on.
    #[arg(long, default_value = "2", value_parser = clap::value_parser!(u32).range(2..=8))]
    ranks: u32,
    /// Largest message.
    #[arg(long, default_value = "512", value_name = "MiB")]
    most: usize,
    /// Launches of each line; the median counts.
    #[arg(long, default_value = "5")]
    repeats: usize,
    /// Only lines whose names contain this.
    #[arg(long, value_name = "WORD")]
    only: Option<String>,
    /// Folder of the kernels [default: beside this program, then target/kernels].
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// Writes the figures there as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draws rate against size there.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Of a rank's process: its number and the port of rank 0.
    #[arg(long, hide = true, num_args = 2)]
    part: Option<Vec<u16>>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.part.as_deref() {
        Some([rank, port]) => rank::run(&args, u32::from(*rank), *port),
        _ => start(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts all ranks and waits for them.
fn start(args: &Args) -> anyhow::Result<()> {
    ensure!(fm3_kernels::cuda::is_present(), "there is no CUDA driver (libcuda) on this machine");
    ensure!(args.repeats > 0 && args.most > 0, "--repeats and --most must be at least 1");
    let failed = start_ranks(args.ranks, |process, rank, port| {
        process.args(["--part", &rank.to_string(), &port.0.to_string()]);
        // The ranks are on one machine.
        process.env("NVSHMEM_BOOTSTRAP_UID_SOCK_IFNAME", "lo");
    })?;
    match failed {
        None => Ok(()),
        Some(status) => bail!("a rank ended with {status}"),
    }
}
