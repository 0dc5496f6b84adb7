//! Communication really hides behind attention: wall time against compute alone and communication alone.
//!
//! The emulated link sleeps, so only compute takes the cores. It is set so slow that sending takes as long as attending.
mod support;

use std::time::Duration;

use fm_cp::host::{HostConfig, Link};
use fm_cp::whole::WholeOutputs;
use fm_cp::{CallReport, Config, Overlap, ShardingKind, Tunables};
use support::{Case, bits, run};

const CASE: Case = Case {
    ranks: 4,
    kind: ShardingKind::Contiguous,
    seq: 4096,
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

fn timed(overlap: Overlap, link: Option<Link>, pass: Pass) -> (Duration, Vec<u32>, Vec<CallReport>) {
    let host = HostConfig { link, poison: false, ..HostConfig::default() };
    let mask = CASE.mask("full");
    // The best of three: a busy machine only ever adds time.
    let runs = (0..3).map(|_| {
        let outputs = run::<f32>(&CASE, &mask, &config(overlap), &host).unwrap();
        let reports = pass(&outputs);
        let slowest = reports.iter().map(|report| report.elapsed).max().unwrap();
        (slowest, bits(&outputs), reports)
    });
    runs.min_by_key(|(time, ..)| *time).unwrap()
}

#[test]
fn overlap_hides_communication_and_off_does_not() {
    for (name, pass) in PASSES {
        let (compute, plain_bits, reports) = timed(Overlap::On, None, pass);
        let most = reports.iter().map(|report| report.bytes_sent().0).max().unwrap();
        let bytes_per_second = most as f64 / compute.as_secs_f64();
        let link = Some(Link { bytes_per_second, latency: Duration::from_micros(50) });
        // Communication alone takes as long as compute, by the choice of the link.
        let both = 2.0 * compute.as_secs_f64();
        let (on, on_bits, on_reports) = timed(Overlap::On, link, pass);
        let (off, off_bits, _) = timed(Overlap::Off, link, pass);
        let (on, off) = (on.as_secs_f64() / both, off.as_secs_f64() / both);
        let exposed = on_reports.iter().map(|report| report.exposed).max().unwrap();
        println!("{name}: compute {compute:?}, overlapped {on:.3}, off {off:.3}, exposed {exposed:?}");
        assert!(on <= 0.7, "{name}: overlapped takes {on:.3} of compute + communication");
        assert!(off >= 0.95, "{name}: without overlap it takes {off:.3} of compute + communication");
        assert!(on_bits == plain_bits && off_bits == plain_bits, "{name}: the link changed bits");
    }
}
