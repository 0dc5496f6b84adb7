//! `cargo xtask bench-multinode`: the context-parallel forward, overlapped, beside the same attention without
//! communication and beside gather-then-attend. On the GPUs of this machine, as part of a job that torchrun, srun or
//! mpirun has started, or on the host backend where there is no GPU.
mod gpu;
mod host;
mod peer;
mod plot;
mod report;
mod rows;
mod trace;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use fm_cp::launch;
use serde_json::{Value, json};

use crate::input::BadInput;
use peer::Peer;
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
    /// Writes a drawing there: bars for each line.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Writes one measured call of each line there, all ranks on one time line, for Perfetto; on GPUs.
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Also time others' context parallelism on the same GPUs, by docs/peers; wants at least two.
    #[arg(long, value_enum)]
    peer: Option<Peer>,
    /// The Python that has PyTorch, for --peer.
    #[arg(long, default_value = "python3")]
    python: String,
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
        return Ok(ExitCode::SUCCESS);
    }
    if args.peer.is_some() {
        peer::check(gpu::count())?;
    }
    if let Some(job) = launch()? {
        if args.peer.is_some() {
            let text = "--peer starts processes of its own; leave it out of a launcher's job";
            return Err(BadInput(text.to_owned()).into());
        }
        gpu::job(args, job)?;
    } else if args.backend == Backend::Auto && gpu::count() > 0 {
        let code = gpu::start(args)?;
        if code != ExitCode::SUCCESS || args.list {
            return Ok(code);
        }
        beside_peer(args)?;
    } else {
        on_host(args)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// After our ranks, so that nobody else is on the GPUs.
fn beside_peer(args: &BenchMultinodeArgs) -> anyhow::Result<()> {
    let Some(Peer::Torch) = args.peer else { return Ok(()) };
    let rows = chosen(args, rows::of_gpus())?;
    let lines = peer::time(&args.python, &rows, args.repeats)?;
    peer::print(&lines);
    let Some(file) = &args.json else { return Ok(()) };
    // Rank 0 has written it.
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut report: Value = serde_json::from_slice(&text)?;
    report["peers"] = json!(lines);
    write(file, &serde_json::to_string_pretty(&report)?)
}

fn on_host(args: &BenchMultinodeArgs) -> anyhow::Result<()> {
    if args.peer.is_some() {
        return Err(BadInput("--peer runs on GPUs; leave it out with the host backend".to_owned()).into());
    }
    if args.trace.is_some() {
        let text = "--trace shows a device's clock, and the host backend has none; leave it out or use GPUs";
        return Err(BadInput(text.to_owned()).into());
    }
    let ranks = args.ranks.unwrap_or(2);
    let mut lines = Vec::new();
    for row in chosen(args, rows::of_hosts())? {
        let measured = host::measure(&row, ranks, args.repeats as usize)?;
        lines.extend(Line::of(&row, &measured));
        eprintln!("{}", row.name());
    }
    let (backend, device) = ("host backend".to_owned(), host::DEVICE.to_owned());
    finish(args, &Report { backend, device, ranks: ranks as usize, lines })
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

fn finish(args: &BenchMultinodeArgs, report: &Report) -> anyhow::Result<()> {
    if args.list {
        return Ok(());
    }
    report.print();
    if let Some(file) = &args.json {
        write(file, &serde_json::to_string_pretty(report)?)?;
    }
    args.svg.as_ref().map_or(Ok(()), |file| write(file, &plot::svg(report)))
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}
