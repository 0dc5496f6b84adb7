//! The main job: mask, ranks, forward, backward, comparison, table.
use std::time::Duration;

use anyhow::Result;
use comfy_table::Table;
use cp_overlap::{CpPlan, Problem};
use fm_cp::host::{Faults, HostConfig, Link, Lost};
use fm_cp::mask::{Columns, Documents, MaskDims, MaskSpec};
use fm_cp::whole::{RankOutcome, WholeInputs, WholeOutputs, WholeProblem};
use fm_cp::{
    CallReport, Config, CpShape, Element, FlashMask, Options, Overlap, Sharding, ShardingKind, World, whole,
};
use fm3_kernels::{DType, Dims, Shape};
use half::{bf16, f16};

use super::Inputs;
use super::args::{DemoArgs, InjectArg, MaskArg, OverlapArg};
use super::check::{self, Errors};
use super::json::{Backward, Bounds, Checked, Cost, Forward, Report};
use super::progress::Progress;
use crate::input::BadInput;

/// A fault that stops the run is found after this long instead of the usual 30 s.
const FAULT_DEADLINE: Duration = Duration::from_secs(3);

/// How late a late signal is.
const LATE: Duration = Duration::from_millis(50);

/// Everything that is decided before ranks start.
struct Setup {
    mask: FlashMask,
    sharding: Sharding,
    shape: CpShape,
    global: Shape,
    config: Config,
    host: HostConfig,
    documents: usize,
}

/// Runs and checks in the element type that was asked for.
///
/// # Errors
/// [`BadInput`] for a mistake of the user's; else what the ranks returned.
pub(crate) fn run(args: &DemoArgs, inputs: &Inputs, progress: &Progress) -> Result<Report> {
    let setup = Setup::new(args, inputs)?;
    if args.check {
        progress.stage("plans");
        prove(&setup)?;
    }
    match args.dtype {
        DType::F32 => typed::<f32>(args, &setup, inputs, progress),
        DType::Bf16 => typed::<bf16>(args, &setup, inputs, progress),
        DType::F16 => typed::<f16>(args, &setup, inputs, progress),
    }
}

impl Setup {
    fn new(args: &DemoArgs, inputs: &Inputs) -> Result<Self, BadInput> {
        let bad = |error: &dyn std::error::Error| BadInput::from_error(error);
        let (batch, seq) = (args.batch.get(), args.seq_len.get());
        let (heads_q, heads_kv, head_dim) = (args.heads.q, args.heads.kv, args.head_dim.get());
        let dims = Dims { batch, heads_q, heads_kv, seq_q: seq, seq_k: seq, head_dim };
        let global = Shape::new(dims).map_err(|e| bad(&e))?;
        let ranks = u32::try_from(args.ranks.get()).map_err(|e| bad(&e))?;
        let world = World::new(ranks).map_err(|e| bad(&e))?;
        let kind: ShardingKind = args.sharding.parse().map_err(|e| bad(&e))?;
        let link = args
            .link
            .map(|link| Link { bytes_per_second: link.gigabytes_per_second * 1e9, latency: link.latency });
        let host = HostConfig { link, faults: faults(args), ..HostConfig::default() };
        let mut config = Config::from_env().map_err(|e| bad(&e))?.tuned_to(&host, world);
        config.overlap = match args.overlap {
            OverlapArg::On => Overlap::On,
            OverlapArg::Off => Overlap::Off,
        };
        if host.faults.lost.is_some() {
            config.deadline = FAULT_DEADLINE;
        }
        Ok(Self {
            mask: mask(args, inputs)?,
            sharding: Sharding::new(kind, seq, world).map_err(|e| bad(&e))?,
            shape: CpShape { batch, heads_q, heads_kv, head_dim, dtype: args.dtype },
            global,
            config,
            host,
            documents: inputs.sequences.iter().map(|sequence| sequence.document_lengths.len()).sum(),
        })
    }
}

/// Checks the plans of all ranks together.
fn prove(setup: &Setup) -> Result<()> {
    let Setup { mask, sharding, shape, global, config, .. } = setup;
    let problem = Problem::new(*global, mask.clone(), sharding.clone(), shape.dtype, config.tunables)
        .map_err(|e| BadInput::from_error(&e))?;
    cp_overlap::plan::check(&CpPlan::build(&problem)?, &problem)?;
    Ok(())
}

fn faults(args: &DemoArgs) -> Faults {
    let none = Faults { seed: args.seed, ..Faults::default() };
    match args.inject {
        None => none,
        Some(InjectArg::Delay(delay)) => Faults { delay, ..none },
        Some(InjectArg::Late) => Faults { late: Some(LATE), ..none },
        // The first posts of a rank say hello to each peer; the next one is for a piece of K, V.
        Some(InjectArg::Lost) => {
            Faults { lost: Some(Lost { rank: None, nth: args.ranks.get() as u64 - 1 }), ..none }
        }
    }
}

fn mask(args: &DemoArgs, inputs: &Inputs) -> Result<FlashMask, BadInput> {
    let (batch, seq) = (args.batch.get(), args.seq_len.get());
    let dims = MaskDims { batch, heads: 1, seq_q: seq, seq_k: seq };
    match &args.mask {
        MaskArg::Named { .. } => {
            let spec: MaskSpec = args.mask.to_string().parse().map_err(|e| BadInput::from_error(&e))?;
            let lengths = inputs.sequences.iter().map(|sequence| sequence.document_lengths.clone()).collect();
            let documents = Documents::new(lengths, seq).map_err(|e| BadInput::from_error(&e))?;
            spec.build(dims, &documents, args.seed).map_err(|e| BadInput::from_error(&e))
        }
        MaskArg::File(path) => {
            let (shape, bounds) = super::npy::read_i32(path)?;
            let [b, h, s, c] = shape;
            if (b, s) != (batch, seq) {
                return Err(BadInput(format!(
                    "{} is [{b}, {h}, {s}, {c}]; expected [--batch {batch}, mask heads, --seq-len {seq}, 1, 2 or 4]",
                    path.display()
                )));
            }
            let columns = Columns::from_count(c).map_err(|e| BadInput::from_error(&e))?;
            FlashMask::new(MaskDims { heads: h, ..dims }, columns, args.causal.unwrap_or(false), bounds)
                .map_err(|e| BadInput::from_error(&e))
        }
    }
}

fn typed<T: Element>(args: &DemoArgs, setup: &Setup, inputs: &Inputs, progress: &Progress) -> Result<Report> {
    let round = |tensor: &[f32]| tensor.iter().map(|value| T::from_f32(*value)).collect::<Vec<T>>();
    let tensors = &inputs.tensors;
    let (q, k, v, dout) = (round(&tensors.q), round(&tensors.k), round(&tensors.v), round(&tensors.dout));
    let whole_inputs = WholeInputs { q: &q, k: &k, v: &v, dout: Some(&dout) };
    let problem = WholeProblem {
        mask: &setup.mask,
        shape: setup.shape,
        sharding: &setup.sharding,
        options: Options::default(),
        config: &setup.config,
        host: &setup.host,
    };
    progress.stage("forward and backward");
    let outputs = whole::run(problem, whole_inputs).map_err(refused)?;
    let pairs = setup.mask.visible_pairs() * (setup.shape.heads_q / setup.mask.dims().heads) as u64;
    let checked = Checked::for_pairs(pairs);
    progress.stage("comparison with the f64 reference");
    let gradients =
        outputs.gradients.as_ref().ok_or_else(|| anyhow::anyhow!("the backward gave no gradients"))?;
    let (shape, mask, outputs) = (setup.global, &setup.mask, &outputs);
    let run = check::Run { shape, mask, inputs: whole_inputs, outputs, gradients, seed: args.seed };
    let errors = check::compare(&run, checked, |share| progress.advance(share))?;
    Ok(report(args, setup, outputs, (errors, checked)))
}

/// What is wrong with the input before anything ran is the user's mistake; the rest is a failure of the run.
fn refused(error: fm_cp::Error) -> anyhow::Error {
    let fm_cp::Error::Ranks { failures } = &error else { return BadInput::from_error(&error).into() };
    let ran = failures.iter().any(|failure| matches!(*failure.error, fm_cp::Error::Overlap(_)));
    if ran { error.into() } else { BadInput::from_error(&error).into() }
}

fn report<T>(
    args: &DemoArgs,
    setup: &Setup,
    outputs: &WholeOutputs<T>,
    (errors, checked): (Errors, Checked),
) -> Report {
    let ranks = &outputs.ranks;
    let forward = Forward {
        o_rel_err: errors.o,
        lse_max_err: errors.lse,
        cost: cost(ranks, |rank| Some(&rank.forward)),
    };
    let backward = Backward {
        dq_rel_err: errors.dq,
        dk_rel_err: errors.dk,
        dv_rel_err: errors.dv,
        cost: cost(ranks, |rank| rank.backward.as_ref()),
    };
    Report {
        ok: Bounds::of(args.dtype).hold(&forward, &backward),
        checked,
        ranks: args.ranks.get(),
        seq_len: args.seq_len.get(),
        batch: args.batch.get(),
        heads_q: args.heads.q,
        heads_kv: args.heads.kv,
        head_dim: args.head_dim.get(),
        mask: args.mask.to_string(),
        density: setup.mask.density(),
        sharding: args.sharding.clone(),
        dtype: args.dtype,
        documents: setup.documents,
        forward,
        backward,
        imbalance: imbalance(ranks),
    }
}

fn cost(ranks: &[RankOutcome], pass: impl Fn(&RankOutcome) -> Option<&CallReport>) -> Cost {
    let reports = || ranks.iter().filter_map(&pass);
    let slowest =
        |time: fn(&CallReport) -> Duration| reports().map(time).max().unwrap_or_default().as_secs_f64();
    Cost {
        seconds: slowest(|report| report.elapsed),
        exposed_seconds: slowest(|report| report.exposed),
        bytes_sent: reports().map(|report| report.bytes_sent().0 as u64).sum(),
        bytes_mask_blind: reports().map(|report| report.bytes_mask_blind.0 as u64).sum(),
    }
}

/// Most visible pairs of a rank over the mean; 1 when nothing is visible.
fn imbalance(ranks: &[RankOutcome]) -> f64 {
    let pairs = || ranks.iter().map(|rank| rank.plan.forward.totals.pairs as f64);
    let mean = pairs().sum::<f64>() / ranks.len() as f64;
    if mean == 0.0 { 1.0 } else { pairs().fold(0.0, f64::max) / mean }
}

/// The short table that a user sees.
pub(crate) fn table(report: &Report) -> Table {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY);
    table.set_header(["", "forward", "backward"]);
    let ms = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
    let mb = |bytes: u64| format!("{:.2} MB", bytes as f64 / 1e6);
    let (f, b) = (&report.forward, &report.backward);
    let gradients = format!("dQ {:.1e}  dK {:.1e}  dV {:.1e}", b.dq_rel_err, b.dk_rel_err, b.dv_rel_err);
    table.add_row(["error".into(), format!("O {:.1e}  LSE {:.1e}", f.o_rel_err, f.lse_max_err), gradients]);
    table.add_row(["time".into(), ms(f.cost.seconds), ms(b.cost.seconds)]);
    table.add_row(["exposed wait".into(), ms(f.cost.exposed_seconds), ms(b.cost.exposed_seconds)]);
    table.add_row(["sent".into(), mb(f.cost.bytes_sent), mb(b.cost.bytes_sent)]);
    table.add_row([
        "sent blind to the mask".into(),
        mb(f.cost.bytes_mask_blind),
        mb(b.cost.bytes_mask_blind),
    ]);
    table
}
