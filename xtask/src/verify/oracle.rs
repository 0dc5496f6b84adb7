//! Whole problems on host ranks against the f64 reference; what fails is shrunk and printed as a command.
use std::cmp::Ordering;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};

use fm_cp::host::HostConfig;
use fm_cp::view::Extents;
use fm_cp::whole::{self, WholeInputs, WholeOutputs, WholeProblem};
use fm_cp::{Config, CpShape, Element, Options, Overlap, View4};
use fm3_kernels::reference::Attention;
use fm3_kernels::{DType, Dims, Shape};
use half::{bf16, f16};
use npyz::WriterBuilder;

use super::Part;
use super::case::{Case, Dice, Limits, Rows};
use crate::demo::json::Bounds;
use crate::files::workspace_root;

const LIMITS: Limits = Limits { ranks: 6, rows: 420, kv_heads: 3 };

/// LSE is f32 whatever the elements are: 1e-5 is 80 roundings (2^-23), relative to 1 + |LSE|.
const LSE_BOUND: f64 = 1e-5;

/// Runs cases of consecutive seeds. They use all cores themselves.
pub(super) fn run(cases: u64) -> Part {
    let outcomes: Vec<_> = (0..cases).map(one).collect();
    Part::new("oracle", format!("{cases} cases against the f64 reference"), outcomes)
}

/// One seed; a failure comes with its least case and how to run it.
pub(super) fn one(seed: u64) -> Result<(), String> {
    let case = Case::random(seed, LIMITS);
    let Err(first) = attempt(&case) else { return Ok(()) };
    let least = case.shrunk(|case| attempt(case).is_err());
    let last = attempt(&least).err().unwrap_or(first);
    Err(format!("oracle seed {seed}: {last}\n{}", instructions(seed, &least)))
}

fn attempt(case: &Case) -> Result<(), String> {
    let typed = || match case.dtype {
        DType::F32 => compared::<f32>(case),
        DType::Bf16 => compared::<bf16>(case),
        DType::F16 => compared::<f16>(case),
    };
    catch_unwind(AssertUnwindSafe(typed)).unwrap_or_else(|panic| Err(super::panic_text(&*panic)))
}

fn compared<T: Element>(case: &Case) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| error.to_string();
    let dims = case.dims();
    let mut dice = Dice::new(case.seed ^ 0x7e45_0125);
    let mut fill = |heads: usize| -> Vec<T> {
        // A sum of uniforms is near enough to normal.
        let mut value = || (0..3).map(|_| dice.value()).sum();
        (0..dims.batch * dims.seq_q * heads * dims.head_dim).map(|_| T::from_f32(value())).collect()
    };
    let (q, k, v, dout) = (fill(dims.heads_q), fill(dims.heads_kv), fill(dims.heads_kv), fill(dims.heads_q));
    let inputs = WholeInputs { q: &q, k: &k, v: &v, dout: Some(&dout) };
    let overlap = if case.overlap { Overlap::On } else { Overlap::Off };
    let config = Config { tunables: case.tunables(), overlap, ..Config::default() };
    let (batch, heads_q, heads_kv, head_dim) = (dims.batch, dims.heads_q, dims.heads_kv, dims.head_dim);
    let problem = WholeProblem {
        mask: &case.mask,
        shape: CpShape { batch, heads_q, heads_kv, head_dim, dtype: T::DTYPE },
        sharding: &case.sharding().map_err(|e| text(&e))?,
        options: Options::default(),
        config: &config,
        host: &HostConfig { poison: true, ..HostConfig::default() },
    };
    let outputs = whole::run(problem, inputs).map_err(|e| text(&e))?;
    judged(case, dims, inputs, &outputs)
}

/// Against the reference.
fn judged<T: Element>(
    case: &Case,
    dims: Dims,
    inputs: WholeInputs<'_, T>,
    outputs: &WholeOutputs<T>,
) -> Result<(), String> {
    let text = |error: fm3_kernels::Error| error.to_string();
    let shape = Shape::new(dims).map_err(text)?;
    let extents = |heads| Extents { batch: dims.batch, seq: dims.seq_q, heads, head_dim: dims.head_dim };
    let (queries, keys) = (extents(dims.heads_q), extents(dims.heads_kv));
    let reference = Attention {
        shape,
        mask: &case.mask,
        scale: shape.default_scale(),
        q: View4::bshd(inputs.q, queries).map_err(text)?,
        k: View4::bshd(inputs.k, keys).map_err(text)?,
        v: View4::bshd(inputs.v, keys).map_err(text)?,
    };
    let want = reference.forward();
    let dout = View4::bshd(inputs.dout.unwrap_or_default(), queries).map_err(text)?;
    let wanted = reference.backward(&want, &dout);
    let got = outputs.gradients.as_ref().ok_or("no gradients")?;
    let (bounds, noise) = (Bounds::of(T::DTYPE), noise(T::DTYPE));
    for (name, got, want, bound, noise) in [
        ("O", &outputs.o, &want.o, bounds.output, 0.0),
        ("dQ", &got.dq, &wanted.dq, bounds.gradient, noise),
        ("dK", &got.dk, &wanted.dk, bounds.gradient, noise),
        ("dV", &got.dv, &wanted.dv, bounds.gradient, 0.0),
    ] {
        let (error, size) = distance(got, want);
        let most = bound * size + noise;
        // NaN is not within.
        if !matches!(error.partial_cmp(&most), Some(Ordering::Less | Ordering::Equal)) {
            return Err(format!("{name} is off by {error:.2e} (root mean square), allowed {most:.2e}"));
        }
    }
    let off = outputs.lse.iter().zip(&want.lse).find(|(got, want)| {
        let got = f64::from(**got);
        let near = (got - **want).abs() <= LSE_BOUND * (1.0 + want.abs());
        !(near || got == **want)
    });
    off.map_or(Ok(()), |(got, want)| Err(format!("LSE is {got}, expected {want}")))
}

/// What dQ and dK may be off by besides a share of their size, for elements around 1. The backward reads O as it is
/// stored, rounded by u, so dP - rowsum(dO O) of a row is off by u |dO| |O|, about u sqrt(d), and with the scale
/// 1 / sqrt(d) about u in dQ and dK. Where a row sees one key, or one that outweighs the others, the rest cancels and
/// only that is left. In f32 the sums before it round as well: four of them.
fn noise(dtype: DType) -> f64 {
    let unit = |bits: i32| (-f64::from(bits)).exp2();
    let sums = 4.0 * unit(24);
    match dtype {
        DType::F32 => sums,
        DType::F16 => unit(11) + sums,
        DType::Bf16 => unit(8) + sums,
    }
}

/// Root mean squares of the difference and of what is expected.
fn distance<T: Element>(got: &[T], want: &[f64]) -> (f64, f64) {
    let squares = got.iter().zip(want).fold((0.0, 0.0), |(difference, size): (f64, f64), (got, want)| {
        (difference + (f64::from(got.to_f32()) - want).powi(2), size + want * want)
    });
    let count = want.len().max(1) as f64;
    ((squares.0 / count).sqrt(), (squares.1 / count).sqrt())
}

/// How to run the least case: with the demo where it can say it, which then embeds text instead of random tensors.
fn instructions(seed: u64, case: &Case) -> String {
    let mut text = format!("  replay: cargo xtask verify --oracle-seed {seed}\n");
    let mask = case.mask.dims();
    _ = writeln!(
        text,
        "  least case: {} ranks, {:?}, mask [{}, {}, {}, {}] causal {}, heads {}/{}, head dim {}, {:?}, forced {:?}, tail {}",
        case.ranks,
        case.rows,
        mask.batch,
        mask.heads,
        mask.seq_k,
        case.mask.columns().count(),
        case.mask.is_causal(),
        case.group * case.heads_kv,
        case.heads_kv,
        case.head_dim,
        case.dtype,
        case.forced,
        case.local_tail
    );
    match demo_command(seed, case) {
        Ok(Some(command)) => _ = writeln!(text, "  {command}"),
        Ok(None) => text += "  the demo cannot say this sharding\n",
        Err(error) => _ = writeln!(text, "  the mask could not be written: {error}"),
    }
    text
}

fn demo_command(seed: u64, case: &Case) -> std::io::Result<Option<String>> {
    let Rows::Kind(kind) = &case.rows else { return Ok(None) };
    let folder = workspace_root().join("target/verify");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("oracle-{seed}.npy"));
    let dims = case.mask.dims();
    let shape = [dims.batch, dims.heads, dims.seq_k, case.mask.columns().count()].map(|size| size as u64);
    let file = std::fs::File::create(&path)?;
    let mut writer = npyz::WriteOptions::new().default_dtype().shape(&shape).writer(file).begin_nd()?;
    writer.extend(case.mask.bounds())?;
    writer.finish()?;
    let (causal, heads_kv) = (case.mask.is_causal(), case.heads_kv);
    Ok(Some(format!(
        "cargo xtask demo --ranks {} --seq-len {} --batch {} --heads {}/{heads_kv} --head-dim {} --sharding {kind} \
         --dtype {} --mask file:target/verify/oracle-{seed}.npy --causal {causal} --check",
        case.ranks,
        dims.seq_k,
        dims.batch,
        case.group * heads_kv,
        case.head_dim,
        case.dtype,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_cases_agree_with_the_reference() {
        for seed in 0..12 {
            one(seed).unwrap();
        }
    }

    #[test]
    fn a_failing_case_is_printed_as_a_command_that_the_demo_takes() {
        let mut case = Case::random(3, LIMITS);
        case.rows = Rows::Kind(fm_cp::ShardingKind::Contiguous);
        let command = demo_command(u64::MAX, &case).unwrap().unwrap();
        let words = command.split_whitespace().skip(2);
        let parsed = <crate::Line as clap::Parser>::try_parse_from(std::iter::once("xtask").chain(words));
        assert!(parsed.is_ok(), "{command}");
        assert!(workspace_root().join(format!("target/verify/oracle-{}.npy", u64::MAX)).is_file());
    }
}
