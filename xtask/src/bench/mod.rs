//! `cargo xtask bench`: a pass on a GPU over shapes and masks, beside others' in the same run.
//!
//! A rate counts 4 * d operations per visible pair, 10 * d for the backward. Also in the bundle, for machines without cargo.
mod cases;
mod costs;
mod device;
mod gradients;
mod masks;
mod measure;
mod monitor;
mod peers;
mod random;
mod report;
mod stats;

pub(crate) use device::{Device, timed};
pub(crate) use masks::documents;
pub(crate) use peers::Launches;
pub(crate) use stats::Summary;

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use fm3_kernels::cuda::KernelSource;
use fm3_kernels::{DType, Shape};
use half::{bf16, f16};

use crate::demo::args::{Heads, MaskArg};
use crate::input::BadInput;
use cases::{Case, Pass};
use device::Half;
use masks::Mask;
use measure::Bench;
use monitor::Monitor;
use peers::Peers;
use report::Report;

/// Flags of `cargo xtask bench`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// What to time; the backward's times include all its steps.
    #[arg(long, value_enum, default_value = "forward")]
    pass: Pass,
    /// Of the backward: dQ of all lines is added in one order, which may take 15 % longer (targets allow for it).
    #[arg(long)]
    deterministic: bool,
    /// Only lines whose names contain this; may be given several times.
    #[arg(long, value_name = "WORD")]
    only: Vec<String>,
    /// Print the lines and do not measure.
    #[arg(long)]
    list: bool,
    /// One line of your own: a mask by name, `name:key=value,...`, or `file:PATH` (.npy, i32 [b, h, s, C]).
    #[arg(long)]
    mask: Option<MaskArg>,
    /// Whether the mask of `file:PATH` is causal as well.
    #[arg(long, value_name = "true|false", requires = "mask")]
    causal: Option<bool>,
    /// Sequences, of your own line.
    #[arg(long, default_value = "1", requires = "mask")]
    batch: NonZeroUsize,
    /// Rows and keys of each sequence, of your own line.
    #[arg(long, default_value = "32768", requires = "mask")]
    seq_len: NonZeroUsize,
    /// Query heads / KV heads, of your own line.
    #[arg(long, default_value = "32/8", value_name = "Q/KV", requires = "mask")]
    heads: Heads,
    /// Element type: bf16 or f16.
    #[arg(long, default_value = "bf16")]
    dtype: DType,
    /// Also time cuDNN, FlexAttention and a matrix product, by docs/peers.
    #[arg(long)]
    peers: bool,
    /// The Python that has PyTorch, for --peers.
    #[arg(long, default_value = "python3")]
    python: String,
    /// Seconds of rest before each measurement, ours and the peers': long runs are held back by the card's power limit.
    #[arg(long, default_value = "0.5", value_name = "SECONDS", value_parser = seconds)]
    pause: Duration,
    /// Number of the device.
    #[arg(long, default_value = "0")]
    device: usize,
    /// Folder of the kernels [default: beside this program, then target/kernels].
    #[arg(long, value_name = "DIR")]
    kernels: Option<PathBuf>,
    /// Also write the figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Measures; 1 when a line fails.
///
/// # Errors
/// Wrong flags; no Hopper, driver or kernels; files that cannot be written.
pub(crate) fn execute(args: &BenchArgs) -> anyhow::Result<ExitCode> {
    let cases = chosen(args)?;
    if args.list {
        return list(&cases);
    }
    let source = args.kernels.clone().map_or(KernelSource::Search, KernelSource::Folder);
    let mut device = Device::open(args.device, &source)?;
    let (report, failed) = match args.dtype {
        DType::Bf16 => measure_all::<bf16>(args, &cases, &mut device)?,
        DType::F16 => measure_all::<f16>(args, &cases, &mut device)?,
        DType::F32 => return Err(BadInput("--dtype f32: the kernels take bf16 and f16".to_owned()).into()),
    };
    println!("\n{}", report.tables());
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What was measured until a line failed, and whether one did: after a failed launch the device is of no use.
fn measure_all<T: Half>(
    args: &BenchArgs,
    cases: &[Case],
    device: &mut Device,
) -> anyhow::Result<(Report, bool)> {
    let mut report = Report {
        device: device.describe()?,
        dtype: args.dtype.name(),
        pass: args.pass,
        deterministic: args.deterministic,
        rows: Vec::new(),
        costs: Vec::new(),
    };
    let mut peers = args.peers.then(|| Peers::new(args.python.clone(), args.dtype.name()));
    let monitor = Monitor::start(args.device);
    let pool = device.pool::<T>()?;
    let mut bench = Bench { device, pool, peers: peers.as_mut(), monitor: &monitor, pause: args.pause };
    for case in cases {
        println!("{} ...", case.name);
        match bench.run(case) {
            Ok(row) => report.rows.push(row),
            Err(error) if error.is::<BadInput>() => return Err(error),
            Err(error) => {
                println!("FAILED: {}: {error:#}", case.name);
                return Ok((report, true));
            }
        }
    }
    if args.pass == Pass::Forward && args.mask.is_none() && args.only.is_empty() {
        println!("fixed costs ...");
        report.costs = costs::all(&mut bench)?;
    }
    Ok((report, false))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| format!("'{text}' is no number of seconds"))?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

/// The user's own line, or those of the table that were asked for.
fn chosen(args: &BenchArgs) -> anyhow::Result<Vec<Case>> {
    if args.deterministic && args.pass != Pass::Backward {
        return Err(BadInput("--deterministic goes with --pass backward".to_owned()).into());
    }
    let mut cases = match &args.mask {
        Some(mask) => vec![own(args, mask)?],
        None => cases::all(args.pass),
    };
    if args.mask.is_none() {
        cases.retain(|case| args.only.is_empty() || args.only.iter().any(|word| case.name.contains(word)));
    }
    if args.deterministic {
        // Heads in parts come with dQ in any order.
        cases.retain(|case| case.head_parts.is_none());
        cases = cases.into_iter().map(Case::in_one_order).collect();
    }
    if cases.is_empty() {
        return Err(
            BadInput(format!("--only {}: no line has such a name; see --list", args.only.join(" "))).into()
        );
    }
    Ok(cases)
}

fn own(args: &BenchArgs, mask: &MaskArg) -> anyhow::Result<Case> {
    let of = match mask {
        MaskArg::File(path) => Mask::File { path: path.clone(), causal: args.causal.unwrap_or(false) },
        MaskArg::Named { .. } if args.causal.is_some() => {
            return Err(BadInput(
                "--causal goes with --mask file:PATH; a name says itself if it is causal".to_owned(),
            )
            .into());
        }
        MaskArg::Named { .. } => Mask::Named(mask.to_string()),
    };
    let seq = args.seq_len.get();
    let case = cases::case(
        args.pass,
        &mask.to_string(),
        [args.batch.get(), seq, seq],
        [args.heads.q, args.heads.kv],
        of,
    );
    Shape::new(case.dims).map_err(|error| BadInput::from_error(&error))?;
    let dims = case.mask.build(case.dims)?.dims();
    if dims.seq_k != seq
        || !(dims.batch == 1 || dims.batch == args.batch.get())
        || !args.heads.q.is_multiple_of(dims.heads)
    {
        return Err(BadInput(format!(
            "{mask} has {} sequences, {} heads, {} keys; it does not fit --batch {}, --heads {}/{}, --seq-len {seq}",
            dims.batch, dims.heads, dims.seq_k, args.batch, args.heads.q, args.heads.kv
        ))
        .into());
    }
    Ok(case)
}

fn list(cases: &[Case]) -> anyhow::Result<ExitCode> {
    for case in cases {
        let density = case.mask.build(case.dims)?.density();
        println!(
            "{:44} density {density:.5}  floor {:10} goal {}",
            case.name,
            case.floor.to_string(),
            case.goal
        );
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: BenchArgs,
    }

    fn parse(line: &str) -> BenchArgs {
        Line::try_parse_from(["bench"].into_iter().chain(line.split_whitespace())).unwrap().args
    }

    fn refused(line: &str) -> String {
        let error = execute(&parse(line)).unwrap_err();
        assert!(error.is::<BadInput>(), "{error}");
        error.to_string()
    }

    #[test]
    fn lines_are_chosen_by_a_part_of_their_names() {
        let names = |line: &str| -> Vec<String> {
            chosen(&parse(line)).unwrap().into_iter().map(|case| case.name).collect()
        };
        assert_eq!(names("").len(), cases::all(Pass::Forward).len());
        assert_eq!(names("--pass backward").len(), cases::all(Pass::Backward).len());
        assert_eq!(names("--only rank --only sliding").len(), 5);
        assert_eq!(
            names("--mask document:docs=64+64 --seq-len 128 --heads 4/2"),
            ["document:docs=64+64 1x128 4/2"]
        );
        assert!(refused("--only nothing").contains("--list"));
        assert_eq!(names("--pass backward --only deterministic"), ["causal deterministic 2x8192 16/16"]);
        let whole: Vec<String> =
            names("--pass backward").into_iter().filter(|name| !name.contains("parts")).collect();
        assert_eq!(names("--pass backward --deterministic"), whole);
        for line in ["--pass backward --deterministic", "--pass backward --deterministic --mask causal"] {
            assert!(chosen(&parse(line)).unwrap().iter().all(|case| case.deterministic), "{line}");
        }
    }

    #[test]
    fn wrong_flags_are_refused_before_a_device_is_looked_for() {
        assert!(refused("--mask nothing").contains("unknown mask"));
        assert!(refused("--mask file:no/such.npy --causal true").contains("no/such.npy"));
        assert!(refused("--mask causal --causal true").contains("--causal goes with"));
        assert!(refused("--deterministic").contains("--pass backward"));
        assert!(Line::try_parse_from(["bench", "--heads", "4/3"]).is_err());
    }
}
