//! Communication really hides behind attention: wall time against compute alone and communication alone.
//!
//! The emulated link sleeps, so only compute takes the cores. It is set so slow that sending takes as long as attending.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
mod support;

use std::time::Duration;

use fm_cp::host::{HostConfig, Link};
use fm_cp::whole::WholeOutputs;
use fm_cp::{CallReport, Config, Overlap, ShardingKind, Tunables};
use support::{Case, bits, run};

const CASE: Case = Case {
    ranks: 4,
    kind: ShardingKind::Contiguous,
    seq: 2048,
    batch: 1,
    heads_q: 8,
    heads_kv: 8,
    head_dim: 64,
    seed: 1,
};

/// Which pass of a run is timed.
type Pass = fn(&WholeOutputs<f32>) -> Vec<CallReport>;

const PASSES: [(&str, Pass); 2] = [
    ("forward", |outputs| outputs.ranks.iter().map(|rank| rank.forward.clone()).collect()),
    ("backward", |outputs| outputs.ranks.iter().filter_map(|rank| rank.backward.clone()).collect()),
];

/// Pieces small enough that the first one is there early.
fn config(overlap: Overlap) -> Config {
    let tunables = Tunables { heads_per_piece: Some(1), ..Tunables::h200() };
    Config { overlap, tunables, ..Config::default() }
}

/// One run: time of the slowest rank, all bits, reports.
fn timed(overlap: Overlap, link: Option<Link>, pass: Pass) -> (f64, Vec<u32>, Vec<CallReport>) {
    let host = HostConfig { link, poison: false, ..HostConfig::default() };
    let outputs = run::<f32>(&CASE, &CASE.mask("full"), &config(overlap), &host).unwrap();
    let reports = pass(&outputs);
    let slowest = reports.iter().map(|report| report.elapsed).max().unwrap();
    (slowest.as_secs_f64(), bits(&outputs), reports)
}

/// The link on which communication alone takes `seconds`: what the busiest rank sends, at this rate.
fn link(reports: &[CallReport], seconds: f64) -> Link {
    let most = reports.iter().map(|report| report.bytes_sent().0).max().unwrap();
    Link { bytes_per_second: most as f64 / seconds, latency: Duration::from_micros(50) }
}

#[test]
fn overlap_hides_communication_and_off_does_not() {
    for (name, pass) in PASSES {
        let (communication, plain_bits, reports) = timed(Overlap::On, None, pass);
        let link = Some(link(&reports, communication));
        // The best of several, taken in turns: a busy machine only ever adds time.
        let (mut compute, mut on, mut off) = (communication, f64::MAX, f64::MAX);
        for _ in 0..5 {
            compute = compute.min(timed(Overlap::On, None, pass).0);
            for (overlap, best) in [(Overlap::On, &mut on), (Overlap::Off, &mut off)] {
                let (time, bits, _) = timed(overlap, link, pass);
                assert!(bits == plain_bits, "{name}: the link changed bits");
                *best = best.min(time);
            }
        }
        let both = compute + communication;
        println!(
            "{name}: compute {:.0} ms, communication {:.0} ms, overlapped {:.3}, off {:.3} of the sum",
            compute * 1e3,
            communication * 1e3,
            on / both,
            off / both
        );
        assert!(on <= 0.7 * both, "{name}: overlapped takes {:.3} of compute + communication", on / both);
        assert!(
            off >= 0.95 * both,
            "{name}: without overlap it takes {:.3} of compute + communication",
            off / both
        );
    }
}
