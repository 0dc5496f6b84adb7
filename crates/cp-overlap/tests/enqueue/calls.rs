//! Calls that come to a good end.
use std::sync::Arc;
use std::time::Duration;

use cp_overlap::exec::{Overlap, Queued, Settings};
use cp_overlap::plan::CpPlan;
use fm3_kernels::mask::MaskSpec;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use symm_buffer::Pe;
use symm_buffer::host::{Faults, HostConfig, Slow};

use super::marks::Form;
use super::problems::Recipe;
use super::world::{PLAIN, Spec, on_ranks, settings};

fn host() -> HostConfig {
    HostConfig::default()
}

/// Anything that fits so many ranks.
fn random(ranks: usize, mask: usize, random: &mut ChaCha8Rng) -> Recipe {
    Recipe {
        ranks,
        rows: random.random_range(0..700),
        batch: random.random_range(1..3),
        heads: (random.random_range(1..3), random.random_range(1..5)),
        mask,
        mask_heads: random.random_range(0..6),
        sharding: random.random_range(0..3),
        forced: [(None, None), (Some(1), None), (Some(2), Some(1)), (None, Some(2))]
            [random.random_range(0..4_usize)],
        local_tail: 0,
        seed: random.random(),
    }
}

#[test]
fn every_mask_and_number_of_ranks_three_calls_in_flight() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    for mask in 0..MaskSpec::NAMES.len() + 4 {
        for ranks in [1, 2, 3, 4, 5, 8] {
            let recipe = random(ranks, mask, &mut rng);
            let mut spec = Spec::new(&recipe);
            spec.form = if rng.random() { Form::Bshd } else { Form::Bhsd };
            on_ranks(ranks, (host(), settings()), |rank| {
                let plan = &spec.plan.ranks[rank.me() as usize];
                for report in rank.good(&[spec.clone(), spec.clone(), spec.clone()]) {
                    assert_eq!(report.bytes_to, plan.forward.totals.bytes_to, "{recipe:?}");
                }
            });
        }
    }
}

/// Back to back, with growth in between; nobody waits for a call before the next.
#[test]
fn masks_and_shapes_change_between_calls() {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for ranks in [2, 3, 5] {
        let kinds = MaskSpec::NAMES.len() + 4;
        let recipes: Vec<Recipe> = (0..12)
            .map(|_| {
                let mask = rng.random_range(0..kinds);
                random(ranks, mask, &mut rng)
            })
            .collect();
        let specs: Vec<Spec> = recipes.iter().map(Spec::new).collect();
        on_ranks(ranks, (host(), settings()), |rank| {
            rank.good(&specs);
            rank.good(&specs[3..]);
        });
    }
}

#[test]
fn slow_and_late_ranks_change_nothing() {
    let spec = Spec::new(&PLAIN);
    let late = Spec { late: Some((1, Duration::from_millis(30))), ..spec.clone() };
    let slow =
        Faults { slow: Some(Slow { rank: Pe(2), delay: Duration::from_millis(3) }), ..Faults::default() };
    let delay = Faults { seed: 3, delay: Duration::from_millis(3), ..Faults::default() };
    for faults in [slow, delay, Faults::default()] {
        on_ranks(3, (HostConfig { faults, ..host() }, settings()), |rank| {
            rank.good(&[late.clone(), spec.clone(), spec.clone(), late.clone(), spec.clone()]);
        });
    }
}

#[test]
fn a_rank_may_be_many_calls_ahead_and_notes_are_compared_all_the_same() {
    // Every rank sees its own rows only: nothing holds the first one back but the ring of notes.
    let recipe = Recipe { rows: 381, mask: mask("document"), ..PLAIN };
    let spec = Spec::new(&Recipe { ranks: 3, ..recipe });
    let late = Spec { late: Some((2, Duration::from_millis(200))), ..spec.clone() };
    let reports = on_ranks(3, (host(), settings()), |rank| {
        let mut specs = vec![spec.clone(); 400];
        (specs[0], specs[300]) = (late.clone(), late.clone());
        rank.good(&specs)
    });
    let held = reports[0].iter().filter(|report| !report.waits.is_empty()).count();
    assert!(held >= 1, "nobody was ever ahead");
}

fn mask(name: &str) -> usize {
    MaskSpec::NAMES.iter().position(|known| *known == name).unwrap()
}

#[test]
fn off_and_sync_each_stage_read_the_same_rows() {
    let specs = vec![Spec::new(&PLAIN); 3];
    for settings in [
        Settings { overlap: Overlap::Off, ..settings() },
        Settings { sync_each_stage: true, ..settings() },
        Settings { sync_each_stage: true, overlap: Overlap::Off, ..settings() },
    ] {
        on_ranks(3, (host(), settings), |rank| rank.good(&specs));
    }
}

#[test]
fn a_call_on_another_stream_comes_behind_the_one_before() {
    let spec = Spec::new(&PLAIN);
    let elsewhere = Spec { elsewhere: true, ..spec.clone() };
    on_ranks(3, (host(), settings()), |rank| {
        let reports = rank.good(&[spec.clone(), elsewhere.clone(), elsewhere.clone(), spec.clone()]);
        // To the push stream and back; behind another stream's call once more.
        assert_eq!(reports.iter().map(|report| report.queued.follows).collect::<Vec<_>>(), [2, 3, 3, 2]);
    });
}

/// What the driver is called for: a batch per head group, one of frees, and two streams that follow each other.
#[test]
fn a_call_queues_a_batch_per_head_group() {
    let spec = Spec::new(&PLAIN);
    let causal = Spec::new(&Recipe { mask: mask("causal"), ..PLAIN });
    on_ranks(3, (host(), settings()), |rank| {
        for (call, report) in rank.good(&vec![spec.clone(); 4]).into_iter().enumerate() {
            let Queued { puts, waits, follows } = report.queued;
            assert_eq!((puts, follows), (3 + 1, 2));
            assert!(waits <= if call < 2 { 0 } else { 2 }, "call {call}: {waits} waits");
        }
        // The last rank's keys are of no use to others: it pushes nothing.
        let report = rank.good(std::slice::from_ref(&causal)).remove(0);
        let pushes = if rank.me() == 2 { (1, 0) } else { (3 + 1, 2) };
        assert_eq!((report.queued.puts, report.queued.follows), pushes);
    });
}

#[test]
fn plans_of_one_rank_need_no_memory() {
    let recipe = Recipe { ranks: 1, ..PLAIN };
    let plan = CpPlan::build(&recipe.problem()).unwrap();
    assert_eq!(plan.ranks[0].memory.both().0, 0);
    let spec = Spec { plan: Arc::new(plan), ..Spec::new(&recipe) };
    on_ranks(1, (host(), settings()), |rank| rank.good(&[spec.clone(), spec.clone()]));
}
