//! Many schedules of each case; a failing one has a name, by which it runs again.
use std::fmt::{self, Display, Formatter};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, MaxSteps, Runner};

use crate::cases::{CASES, Case, GAVE_UP, Plans, run};
use crate::mutated::Mutant;

/// A scheduler and its seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Schedule {
    Random(u64),
    /// Probabilistic concurrency testing; the first of a batch only measures its length.
    Pct(u64),
}

/// Preemptions of a PCT schedule, and schedules of one seed.
const PCT_DEPTH: usize = 3;
const PCT_BATCH: usize = 4;

impl Display for Schedule {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Random(seed) => write!(f, "random/{seed}"),
            Self::Pct(seed) => write!(f, "pct/{seed}"),
        }
    }
}

/// Runs the schedules of one seed: how many, and what went wrong in the first that failed.
fn try_one(
    case: &Case,
    plans: &Arc<Plans>,
    schedule: Schedule,
    mutant: Option<Mutant>,
) -> (usize, Option<String>) {
    let mut config = Config::new();
    config.stack_size = 0x40000;
    config.failure_persistence = FailurePersistence::None;
    config.max_steps = MaxSteps::FailAfter(5_000_000);
    config.silence_warnings = true;
    let failure = Arc::new(Mutex::new(None));
    let body = {
        let (case, plans, failure) = (*case, plans.clone(), failure.clone());
        move || {
            let wrong = run(&case, &plans, mutant);
            if !wrong.is_empty() {
                failure.lock().unwrap().get_or_insert(wrong.join("; "));
            }
        }
    };
    let ran = catch_unwind(AssertUnwindSafe(|| match schedule {
        Schedule::Random(seed) => Runner::new(RandomScheduler::new_from_seed(seed, 1), config).run(body),
        Schedule::Pct(seed) => {
            Runner::new(PctScheduler::new_from_seed(seed, PCT_DEPTH, PCT_BATCH), config).run(body)
        }
    }));
    let failure = failure.lock().unwrap().take();
    match ran {
        Ok(count) => (count, failure),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()));
            (1, failure.or(text).or(Some("a panic".to_owned())))
        }
    }
}

/// All cases, then all mutants.
pub(crate) fn all(full: bool) -> ExitCode {
    let (random, pct) = if full { (500, 125) } else { (40, 10) };
    let mut right = true;
    for case in CASES {
        let (start, plans) = (Instant::now(), Arc::new(Plans::of(case)));
        let seeds = (0..random).map(Schedule::Random).chain((0..pct).map(Schedule::Pct));
        let mut counts = [0, 0];
        for schedule in seeds {
            let (count, failure) = try_one(case, &plans, schedule, None);
            counts[usize::from(matches!(schedule, Schedule::Pct(_)))] += count;
            if let Some(failure) = failure {
                right = false;
                println!("verify: shuttle-failed {}/{schedule} {failure}", case.name);
                println!("again: cargo xtask verify --replay {}/{schedule}", case.name);
                break;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let [random, pct] = counts;
        let gave_up = GAVE_UP.swap(0, Ordering::Relaxed);
        println!(
            "verify: shuttle {} random={random} pct={pct} gave_up={gave_up} seconds={seconds:.1}",
            case.name
        );
    }
    for (mutant, name) in Mutant::ALL {
        let caught = CASES.iter().find(|case| case.name == name).and_then(|case| hunt(case, mutant));
        right &= caught.is_some();
        let (is_caught, tried) = caught.map_or((0, HUNT), |tried| (1, tried));
        println!("verify: shuttle-mutant {name}+{mutant:?} caught={is_caught} schedules={tried}");
    }
    if right { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Seeds tried on a mutant.
const HUNT: usize = 200;

/// How many schedules it took to catch a mutant.
fn hunt(case: &Case, mutant: Mutant) -> Option<usize> {
    let plans = Arc::new(Plans::of(case));
    let mut tried = 0;
    for seed in 0..HUNT as u64 / 2 {
        for schedule in [Schedule::Random(seed), Schedule::Pct(seed)] {
            let (count, failure) = try_one(case, &plans, schedule, Some(mutant));
            tried += count;
            if failure.is_some() {
                return Some(tried);
            }
        }
    }
    None
}

/// Runs one schedule again: `CASE/SCHEDULER/SEED`, the case with `+MUTANT` if one failed.
pub(crate) fn replay(text: &str) -> ExitCode {
    let Some((case, mutant, schedule)) = parse(text) else {
        eprintln!(
            "error: '{text}' is no schedule; write CASE/random/SEED or CASE/pct/SEED, as it was printed"
        );
        return ExitCode::from(2);
    };
    let (_, failure) = try_one(case, &Arc::new(Plans::of(case)), schedule, mutant);
    match failure {
        None => {
            println!("{text}: right");
            ExitCode::SUCCESS
        }
        Some(failure) => {
            println!("{text}: {failure}");
            ExitCode::FAILURE
        }
    }
}

fn parse(text: &str) -> Option<(&'static Case, Option<Mutant>, Schedule)> {
    let mut parts = text.split('/');
    let (name, scheduler, seed) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
    let (name, mutant) = name.split_once('+').map_or((name, None), |(name, mutant)| (name, Some(mutant)));
    let find = |wanted: &str| Mutant::ALL.iter().find(|(mutant, _)| format!("{mutant:?}") == wanted);
    let mutant = match mutant {
        Some(wanted) => Some(find(wanted)?.0),
        None => None,
    };
    let schedule = match scheduler {
        "random" => Schedule::Random(seed),
        "pct" => Schedule::Pct(seed),
        _ => return None,
    };
    Some((CASES.iter().find(|case| case.name == name)?, mutant, schedule))
}
