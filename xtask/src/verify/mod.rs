//! `cargo xtask verify`: models explored, plans proved, faults injected, numbers compared, inputs fuzzed; a table and one last line.
mod case;
mod faults;
mod inputs;
mod models;
mod oracle;
mod plans;
mod twins;
mod world;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use models::{Depth, Models};

/// Flags of `cargo xtask verify`.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Fewer of everything: under five minutes on two cores.
    #[arg(long)]
    quick: bool,
    /// Only the parts whose name contains this.
    #[arg(long, value_name = "PART")]
    only: Option<String>,
    /// Plan the random problem of this seed and check the plan.
    #[arg(long, value_name = "SEED", conflicts_with_all = ["fault_seed", "oracle_seed"])]
    plan_seed: Option<u64>,
    /// Inject the fault of this seed again.
    #[arg(long, value_name = "SEED", conflicts_with = "oracle_seed")]
    fault_seed: Option<u64>,
    /// Run the case of this seed against the reference again, and shrink it if it fails.
    #[arg(long, value_name = "SEED")]
    oracle_seed: Option<u64>,
    /// Run one schedule of the model checker again.
    #[arg(long, value_name = "CASE/SCHEDULER/SEED")]
    replay: Option<String>,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    /// What was verified.
    pub name: &'static str,
    /// How much of it, in words.
    pub figures: String,
    /// Checks that held.
    pub passed: u64,
    /// What did not, each with its replay.
    pub failures: Vec<String>,
    time: Duration,
}

impl Part {
    /// Counts outcomes.
    pub(crate) fn new(
        name: &'static str,
        figures: String,
        outcomes: impl IntoIterator<Item = Result<(), String>>,
    ) -> Self {
        let (mut passed, mut failures) = (0, Vec::new());
        for outcome in outcomes {
            match outcome {
                Ok(()) => passed += 1,
                Err(text) => failures.push(text),
            }
        }
        Self { name, figures, passed, failures, time: Duration::ZERO }
    }
}

/// How much of each part.
struct Amounts {
    plans: u64,
    faults: u64,
    oracle: u64,
    twins: u64,
}

const QUICK: Amounts = Amounts { plans: 3_000, faults: 200, oracle: 300, twins: 10_000 };
const FULL: Amounts = Amounts { plans: 10_000, faults: 2_000, oracle: 1_500, twins: 100_000 };

/// Failures that are told in full; the rest is counted.
const TOLD: usize = 5;

/// Runs the parts; exit code 1 when any check failed.
pub(crate) fn execute(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    if let Some(replayed) = replay(args)? {
        return Ok(told(replayed));
    }
    let (amounts, depth) = if args.quick { (QUICK, Depth::Quick) } else { (FULL, Depth::Full) };
    // The models come last: they build with flags of their own, and the rest tells more in less time.
    let parts: [(&str, &dyn Fn() -> Vec<Part>); 5] = [
        ("plans", &|| vec![plans::run(amounts.plans)]),
        ("faults", &|| vec![faults::run(amounts.faults)]),
        ("oracle", &|| vec![oracle::run(amounts.oracle)]),
        ("fuzz", &|| vec![twins::run(amounts.twins)]),
        ("models", &|| explored(depth)),
    ];
    let chosen = |name: &str| args.only.as_deref().is_none_or(|only| name.contains(only));
    let mut done = Vec::new();
    for (name, part) in parts.into_iter().filter(|(name, _)| chosen(name)) {
        eprintln!("=== {name}");
        let start = Instant::now();
        let mut parts = part();
        parts.iter().flat_map(|part| part.failures.iter().take(TOLD)).for_each(|text| eprintln!("{text}"));
        if let Some(first) = parts.first_mut() {
            first.time = start.elapsed();
        }
        done.extend(parts);
    }
    print!("{}", table(&done));
    let failed = done.iter().any(|part| !part.failures.is_empty()) || done.is_empty();
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// One seed alone, if one was given.
fn replay(args: &VerifyArgs) -> anyhow::Result<Option<Result<String, String>>> {
    if let Some(schedule) = &args.replay {
        let (right, said) = models::replay(schedule)?;
        return Ok(Some(if right { Ok(said) } else { Err(said) }));
    }
    let VerifyArgs { plan_seed, fault_seed, oracle_seed, .. } = args;
    let plan = |seed: &u64| plans::one(*seed).map(|steps| format!("plan of seed {seed}: {steps} steps hold"));
    let oracle = |seed: &u64| oracle::one(*seed).map(|()| format!("oracle seed {seed} agrees"));
    let faults = |seed: &u64| faults::one(*seed).map(|outcome| format!("fault seed {seed}: {outcome}"));
    let replayed = plan_seed.as_ref().map(plan).or(fault_seed.as_ref().map(faults));
    Ok(replayed.or(oracle_seed.as_ref().map(oracle)))
}

/// What the model checkers saw, a line each for primitives, plans and mutants.
fn explored(depth: Depth) -> Vec<Part> {
    let models = match models::check(depth) {
        Ok(models) => models,
        Err(error) => return vec![Part::new("models", "not run".to_owned(), [Err(format!("{error:#}"))])],
    };
    let Models { executions, random, pct, gave_up, mutants, caught, .. } = models;
    let part = |name, figures, passed| Part { passed, ..Part::new(name, figures, []) };
    let cases = models.cases;
    let mut parts = vec![
        part("loom models", format!("{executions} executions of {} models", models.models), models.models),
        part(
            "shuttle plans",
            format!(
                "{} schedules ({random} random, {pct} PCT) of {cases} cases; {gave_up} ranks gave up and recovered",
                random + pct
            ),
            cases,
        ),
        part("mutants caught", format!("{caught} of {mutants}"), caught),
    ];
    let told = !models.failures.is_empty();
    if !told && !models.is_right() {
        parts[2].failures.push("too little was explored".to_owned());
    }
    parts[2].failures.extend(models.failures);
    parts
}

fn told(outcome: Result<String, String>) -> ExitCode {
    match outcome {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(text) => {
            println!("{text}");
            ExitCode::FAILURE
        }
    }
}

fn table(done: &[Part]) -> String {
    let width = done.iter().map(|part| part.name.len()).max().unwrap_or(0);
    let line = |part: &Part| {
        let Part { name, figures, passed, failures, time } = part;
        let counts = format!("{passed} passed, {} failed", failures.len());
        format!("{name:width$}  {counts:28} {:7.1} s  {figures}\n", time.as_secs_f64())
    };
    let lines: String = done.iter().map(line).collect();
    let passed: u64 = done.iter().map(|part| part.passed).sum();
    let failed: usize = done.iter().map(|part| part.failures.len()).sum();
    format!("{lines}{passed} passed, {failed} failed\n")
}

/// What a panic said.
fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    format!("panic: {}", text.unwrap_or_else(|| "without a message".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_ends_with_the_sums() {
        let part =
            |name, outcomes: Vec<Result<(), String>>| Part::new(name, "3 of them".to_owned(), outcomes);
        let text =
            table(&[part("plans", vec![Ok(()), Ok(())]), part("x", vec![Ok(()), Err("no".to_owned())])]);
        assert!(text.ends_with("\n3 passed, 1 failed\n"), "{text}");
        assert!(text.starts_with("plans  2 passed, 0 failed"), "{text}");
    }

    #[test]
    fn random_plans_hold() {
        assert_eq!(plans::run(40).failures, Vec::<String>::new());
    }
}
