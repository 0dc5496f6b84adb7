//! Slow, late, lost and dead: delays change no bit, losses end in named timeouts on every rank, the group recovers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod support;

use std::time::{Duration, Instant};

use fm_cp::host::{Faults, HostConfig, Lost, Slow};
use fm_cp::{Config, Error, Pe, ShardingKind};
use support::{Case, bits, run};

const CASE: Case = Case {
    ranks: 4,
    kind: ShardingKind::DualChunk,
    seq: 900,
    batch: 1,
    heads_q: 4,
    heads_kv: 2,
    head_dim: 16,
    seed: 8,
};

fn faulty(faults: Faults) -> HostConfig {
    HostConfig { faults, ..HostConfig::default() }
}

#[test]
fn delays_and_late_signals_change_no_bit() {
    let mask = CASE.mask("causal-document");
    let plain = bits(&run::<half::bf16>(&CASE, &mask, &Config::default(), &HostConfig::default()).unwrap());
    let delay = |seed| Faults { seed, delay: Duration::from_millis(3), ..Faults::default() };
    let late = |seed| Faults { seed, late: Some(Duration::from_millis(5)), ..Faults::default() };
    let slow =
        Faults { slow: Some(Slow { rank: Pe(2), delay: Duration::from_millis(4) }), ..Faults::default() };
    for faults in (1..4).flat_map(|seed| [delay(seed), late(seed)]).chain([slow]) {
        let outputs = run::<half::bf16>(&CASE, &mask, &Config::default(), &faulty(faults)).unwrap();
        assert!(bits(&outputs) == plain, "{faults:?} changed bits");
    }
}

#[test]
fn a_lost_signal_is_a_named_timeout_on_every_rank_within_the_deadline() {
    let mask = CASE.mask("causal");
    let deadline = Duration::from_millis(400);
    let config = Config { deadline, ..Config::default() };
    let mut stages = std::collections::BTreeSet::new();
    // A rank posts hellos (0-2), pushed pieces (3-5) and frees (6-8) in the forward, then hellos (9-11), pushed pieces
    // (12-14), partials (15-17) in the backward. A free is first waited for two calls later: see the next test.
    for seed in (0..6).chain(9..18) {
        let start = Instant::now();
        let lost = Some(Lost { rank: None, nth: seed });
        let faults = Faults { seed, lost, ..Faults::default() };
        let Err(error) = run::<f32>(&CASE, &mask, &config, &faulty(faults)) else {
            panic!("seed {seed}: a lost signal went unnoticed");
        };
        // Join, forward, backward and close may each begin a wait; one of them ends it.
        assert!(start.elapsed() < Duration::from_secs(5), "seed {seed} took {:?}", start.elapsed());
        let Error::Ranks { failures } = error else { panic!("seed {seed}: {error}") };
        assert_eq!(failures.len(), 4, "seed {seed}: every rank ends");
        for failure in &failures {
            let text = failure.error.to_string();
            assert!(text.contains("waited") && text.contains("rank"), "seed {seed}: {text}");
            stages.extend(
                text.split("stage '").nth(1).and_then(|rest| rest.split('\'').next()).map(str::to_owned),
            );
        }
        let timeouts = failures.iter().filter(|failure| failure.error.to_string().starts_with("timeout"));
        assert!(timeouts.count() >= 1, "seed {seed}: nobody says what it waited for");
    }
    println!("stages in which a signal was lost: {stages:?}");
    assert!(["agree", "gather", "reduce"].iter().all(|stage| stages.contains(*stage)), "{stages:?}");
}
