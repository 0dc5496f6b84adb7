//! `cargo xtask bench-multinode`: the context-parallel forward, overlapped, beside the same attention without
//! communication and beside gather-then-attend. On the GPUs of this machine, as part of a job that torchrun, srun or
//! mpirun has started, or on the host backend where there is no GPU.
mod gpu;
mod host;
mod report;
mod rows;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use fm_cp::launch;

use crate::input::BadInput;
use report::{Line, Report};
use rows::Row;

/// Flags of `cargo xtask bench-multinode`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BenchMultinodeArgs {
    /// Where to run: on GPUs if there are any, unless this says host.
    #[arg(long, value_enum, default_value = "auto")]
    backend: Backend,
    /// Ranks; with more than there are GPUs several share one [default: the GPUs, at least 2]. A launcher's job has its own.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    ranks: Option<u32>,
    /// Only lines whose names contain this; may be given several times.
    #[arg(long, value_name = "WORD")]
    only: Vec<String>,
    /// A line of your own instead, as ROWS,Q/KV,MASK (8192,16/4,causal); may be given several times.
    #[arg(long, value_name = "LINE")]
    row: Vec<Row>,
    /// Print the lines and do not measure.
    #[arg(long)]
    list: bool,
    /// Measured calls of each kind, behind one that warms up.
    #[arg(long, default_value = "10", value_parser = clap::value_parser!(u32).range(1..))]
    repeats: u32,
    /// Sequences of at most so many rows.
    #[arg(long, value_name = "ROWS")]
    most: Option<usize>,
    /// Folder of the kernels [default: beside this program, then target/kernels].
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// Writes the table there as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Of a rank's process that this program has started: its number, how many, and the port of rank 0.
    #[arg(long, hide = true, num_args = 3)]
    part: Option<Vec<u16>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Backend {
    Auto,
    Host,
}

/// Measures and prints.
///
/// # Errors
/// [`BadInput`] for flags; else what a rank returned.
pub(crate) fn execute(args: &BenchMultinodeArgs) -> anyhow::Result<ExitCode> {
    if let Some(part) = &args.part {
        gpu::part(args, part)?;
    } else if let Some(job) = launch()? {
        gpu::job(args, job)?;
    } else if args.backend == Backend::Auto && gpu::count() > 0 {
        return gpu::start(args);
    } else {
        on_host(args)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn on_host(args: &BenchMultinodeArgs) -> anyhow::Result<()> {
    let ranks = args.ranks.unwrap_or(2);
    let mut lines = Vec::new();
    for row in chosen(args, rows::of_hosts())? {
        let measured = host::measure(&row, ranks, args.repeats as usize)?;
        lines.extend(Line::of(&row, &measured));
        eprintln!("{}", row.name());
    }
    let (backend, device) = ("host backend".to_owned(), host::DEVICE.to_owned());
    finish(args, Report { backend, device, ranks: ranks as usize, lines })
}

/// The lines that are asked for; with `--list` they are printed and none is left.
fn chosen(args: &BenchMultinodeArgs, rows: Vec<Row>) -> anyhow::Result<Vec<Row>> {
    let wanted = |row: &Row| {
        let name = row.name();
        let named = args.only.is_empty() || args.only.iter().any(|word| name.contains(word));
        named && args.most.is_none_or(|most| row.seq <= most)
    };
    let rows = if args.row.is_empty() { rows } else { args.row.clone() };
    let rows: Vec<Row> = rows.into_iter().filter(wanted).collect();
    if rows.is_empty() {
        return Err(BadInput("no line has such a name and length; --list prints them all".to_owned()).into());
    }
    if args.list {
        rows.iter().for_each(|row| println!("{}", row.name()));
        return Ok(Vec::new());
    }
    Ok(rows)
}

fn finish(args: &BenchMultinodeArgs, report: Report) -> anyhow::Result<()> {
    if args.list {
        return Ok(());
    }
    report.print();
    if let Some(file) = &args.json {
        let text = serde_json::to_string_pretty(&report)?;
        std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}
