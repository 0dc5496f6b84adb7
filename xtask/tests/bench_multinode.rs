//! `cargo xtask bench-multinode` on the simulated driver: ranks as processes, the table, the trace, the drawing.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

fn bench(simulator: &kernel_sim::Installed, flags: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("bench-multinode").args(flags).arg("--kernels").arg(simulator.kernels());
    command.envs(simulator.variables()).output().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn ranks_write_one_report_one_trace_and_one_drawing() {
    let (simulator, folder) = (kernel_sim::install().unwrap(), tempfile::tempdir().unwrap());
    let [report, trace, drawing] =
        ["report.json", "trace.json", "plot.svg"].map(|name| folder.path().join(name));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let output = bench(
        &simulator,
        &[
            &["--row", "512,4/2,causal", "--ranks", "2", "--repeats", "2"][..],
            &["--json", &text(&report), "--trace", &text(&trace), "--svg", &text(&drawing)],
        ]
        .concat(),
    );
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let line = &json(&report)["lines"][0];
    assert_eq!(line["name"], "512 4/2 causal");
    assert!(line["copies_gigabytes_per_s"].as_f64().unwrap() > 0.0, "{line:#}");
    assert!(line["waited_us"]["median"].as_f64() >= line["idle_us"]["median"].as_f64(), "{line:#}");
    let trace = json(&trace);
    let spans = trace["traceEvents"].as_array().unwrap().iter().filter(|event| event["ph"] == "X");
    let seen: BTreeSet<(u64, &str)> =
        spans.map(|span| (span["pid"].as_u64().unwrap(), span["cat"].as_str().unwrap())).collect();
    for rank in 0..2 {
        assert!(seen.contains(&(rank, "attention")) && seen.contains(&(rank, "push")), "{trace:#}");
    }
    assert!(std::fs::read_to_string(drawing).unwrap().contains("512 4/2 causal"));
}

#[test]
fn a_peer_wants_two_gpus() {
    let simulator = kernel_sim::install().unwrap();
    let output = bench(&simulator, &["--peer", "torch", "--ranks", "2"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains("at least 2 GPUs of this machine, here are 1"),
        "{text}"
    );
}
