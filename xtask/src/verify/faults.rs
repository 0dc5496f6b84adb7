//! Faults over whole forward and backward calls: what is injected, and what must hold afterwards.
//!
//! A survivor returns in time with an error that names rank, peer, stage and piece, or with the right bits; never with
//! wrong ones. If all ranks live, the group recovers and gives the right bits. Nothing stays allocated.
use std::sync::mpsc;
use std::time::Duration;

use fm_cp::host::{Faults, Lost, Misstep, Slow, Wrong};
use fm_cp::{Pe, ShardingKind};

use super::Part;
use super::case::Dice;
use super::world::{Outcome, Setup, run_world};

/// Worlds that run at once: they sleep most of the time.
const AT_ONCE: u64 = 6;
/// A world that has not ended by then hangs: all its waits, recoveries included, take a few seconds.
const HANG: Duration = Duration::from_secs(90);
/// Of each wait in a world in which something goes wrong. Small, yet far above a run without faults (about 10 ms).
const DEADLINE: Duration = Duration::from_millis(300);
/// For worlds that must get by: a busy machine may hold a thread up for long.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than a collective waits.
const STALL: Duration = Duration::from_millis(750);

/// What a rank does between calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Between {
    /// Goes away.
    Leaves,
    /// Comes so much later.
    Stalls(Duration),
}

/// One world and its fault.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scenario {
    pub setup: Setup,
    /// In words.
    pub name: &'static str,
    pub faults: Faults,
    /// Who does what before its call of this number (0 forward, 1 backward, 2 after both).
    pub between: Option<(Pe, usize, Between)>,
    /// Who does not live on after a panic.
    pub dies: Option<Pe>,
    /// Whether all must get through with the right bits although something is wrong.
    pub harmless: bool,
    /// Whether the fabric compares what arrived with what was sent.
    pub verify_puts: bool,
    pub deadline: Duration,
}

impl Scenario {
    pub(super) fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0xfa17);
        let ranks = dice.within(2..=5);
        let rank = Pe(u32::try_from(dice.below(ranks)).unwrap_or(0));
        let setup = Setup {
            ranks,
            seq: 64 * ranks + dice.below(400),
            kind: dice.pick(&ShardingKind::ALL),
            mask: dice.pick(&["causal", "full", "document", "sliding-window", "random-eviction"]),
            seed,
        };
        // The exchange of settings when a group is joined comes first, a put to each peer; what goes wrong there ends
        // before there is a group.
        let joined = ranks as u64 - 1;
        let call = joined + dice.below(40) as u64;
        let put = joined + dice.below(4 * ranks) as u64;
        let ms = |ms: usize| Duration::from_millis(ms as u64);
        let plain = Self {
            setup,
            name: "",
            faults: Faults { seed, ..Faults::default() },
            between: None,
            dies: None,
            harmless: false,
            verify_puts: true,
            deadline: DEADLINE,
        };
        let step = |name, nth, wrong| {
            let faults = Faults { misstep: Some(Misstep { rank, nth, wrong }), ..plain.faults };
            Self { name, faults, ..plain }
        };
        let between = |name, what, call| Self { name, between: Some((rank, call, what)), ..plain };
        let harmless = |name, faults| Self { name, faults, harmless: true, deadline: PATIENCE, ..plain };
        match dice.below(12) {
            0 => harmless("delays", Faults { delay: ms(dice.within(1..=4)), ..plain.faults }),
            1 => harmless("late signals", Faults { late: Some(ms(dice.within(1..=8))), ..plain.faults }),
            2 => {
                let slow = Some(Slow { rank, delay: ms(dice.within(1..=4)) });
                harmless("a slow rank", Faults { slow, ..plain.faults })
            }
            3 => {
                let lost = Some(Lost { rank: Some(rank), nth: dice.below(14 * ranks) as u64 });
                Self { name: "a lost signal", faults: Faults { lost, ..plain.faults }, ..plain }
            }
            4 => step("a panic that is caught", call, Wrong::Panics),
            5 => Self { dies: Some(rank), ..step("a rank that dies of a panic", call, Wrong::Panics) },
            6 => step("a call that fails", call, Wrong::Fails),
            7 => step("a stall in a call", call, Wrong::Stalls(STALL)),
            8 => step("a put that comes twice", put, Wrong::Twice),
            9 => step("a corrupted put", put, Wrong::Corrupt),
            10 => between("a rank that leaves early", Between::Leaves, dice.below(3)),
            _ => between("a stall between calls", Between::Stalls(STALL), dice.below(3)),
        }
    }
}

/// Sums over worlds.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    struck: u64,
    survivors: u64,
    recovered: u64,
}

/// Runs the scenarios of consecutive seeds.
pub(super) fn run(seeds: u64) -> Part {
    let (mut outcomes, mut sums) = (Vec::new(), Sums::default());
    // Panics are injected; each would print a message.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let batches = (0..seeds.div_ceil(AT_ONCE)).map(|batch| batch * AT_ONCE..seeds.min((batch + 1) * AT_ONCE));
    for seeds in batches {
        let started: Vec<_> = seeds.map(|seed| (seed, start(seed))).collect();
        for (seed, world) in started {
            let outcome = end(seed, &world);
            if let Ok(outcome) = &outcome {
                sums.struck += u64::from(outcome.struck);
                sums.survivors += outcome.survivors;
                sums.recovered += u64::from(outcome.recovered);
            }
            outcomes.push(outcome.map(drop));
        }
    }
    std::panic::set_hook(hook);
    let Sums { struck, survivors, recovered } = sums;
    let held = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let figures = format!(
        "{seeds} faults, {struck} of them felt; all {survivors} survivors of {held} worlds returned in time, {recovered} groups recovered"
    );
    Part::new("faults injected", figures, outcomes)
}

/// One seed, as `--fault-seed` replays it.
pub(super) fn one(seed: u64) -> Result<String, String> {
    let scenario = Scenario::new(seed);
    end(seed, &start(seed)).map(|outcome| format!("{}: {outcome:?}", scenario.name))
}

fn start(seed: u64) -> mpsc::Receiver<Result<Outcome, String>> {
    let (done, world) = mpsc::channel();
    // If it hangs nobody joins it: the process ends with it.
    std::thread::spawn(move || done.send(run_world(&Scenario::new(seed))));
    world
}

fn end(seed: u64, world: &mpsc::Receiver<Result<Outcome, String>>) -> Result<Outcome, String> {
    let result = world.recv_timeout(HANG).unwrap_or_else(|_| Err(format!("no end after {HANG:?}")));
    result.map_err(|error| {
        let scenario = Scenario::new(seed);
        format!(
            "fault seed {seed} ({}): {error}; replay: cargo xtask verify --fault-seed {seed}\n  {scenario:?}",
            scenario.name
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn survivors_return_and_groups_recover() {
        let part = run(36);
        assert_eq!(part.failures, Vec::<String>::new());
        assert!(part.figures.contains("36 faults"), "{}", part.figures);
    }

    #[test]
    fn what_is_corrupted_unseen_is_found_in_the_numbers() {
        let corrupted = (0..).map(Scenario::new).filter(|scenario| scenario.name == "a corrupted put");
        let errors =
            corrupted.take(6).filter_map(|seen| run_world(&Scenario { verify_puts: false, ..seen }).err());
        let errors: Vec<_> = errors.collect();
        // Some are told to corrupt a put that they never come to; a corrupted hello is another plan.
        let known = |error: &String| error.contains("wrong numbers") || error.contains("different plans");
        assert!(errors.iter().all(known), "{errors:?}");
        assert!(errors.iter().any(|error| error.contains("wrong numbers")), "{errors:?}");
    }

    #[test]
    fn every_kind_of_fault_comes_up() {
        let names: std::collections::BTreeSet<_> = (0..200).map(|seed| Scenario::new(seed).name).collect();
        assert_eq!(names.len(), 12, "{names:?}");
    }
}
