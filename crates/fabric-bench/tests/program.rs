//! The program runs from end to end on the simulated driver: every line is there. Its figures mean nothing there.
use std::process::Command;

/// Ranks that share a GPU measure no link, and all that is written says so.
#[test]
fn figures_of_a_shared_gpu_say_that_they_are_of_no_link() {
    const SAID: &str = "both ranks share one GPU: no link is measured";
    let installed = kernel_sim::install().unwrap();
    for (one_gpu, is_shared) in [("1", true), ("0", false)] {
        let folder = tempfile::tempdir().unwrap();
        let (json, svg) = (folder.path().join("figures.json"), folder.path().join("figures.svg"));
        let mut program = Command::new(env!("CARGO_BIN_EXE_fabric-bench"));
        program.args(["--most", "1", "--repeats", "1", "--only", "put + signal"]);
        program.arg("--kernels").arg(installed.kernels()).env("GPU_SIM_ONE_GPU", one_gpu);
        program.arg("--json").arg(&json).arg("--svg").arg(&svg).envs(installed.variables());
        let output = program.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(said.contains(SAID), is_shared, "{said}");
        assert_eq!(said.contains("GB/s inside one GPU"), is_shared, "{said}");
        let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
        assert_eq!(figures["shares_gpu"], is_shared);
        assert_eq!(std::fs::read_to_string(&svg).unwrap().contains(SAID), is_shared);
    }
}

#[test]
fn every_line_is_measured_and_written() {
    let installed = kernel_sim::install().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (json, svg) = (folder.path().join("figures.json"), folder.path().join("figures.svg"));
    let mut program = Command::new(env!("CARGO_BIN_EXE_fabric-bench"));
    program.args(["--most", "16", "--repeats", "1"]).arg("--kernels").arg(installed.kernels());
    program.arg("--json").arg(&json).arg("--svg").arg(&svg).envs(installed.variables());
    let output = program.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    let figures: serde_json::Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    let lines = figures["lines"].as_array().unwrap();
    for name in [
        "put + signal",
        "puts at once, both ways",
        "put, rows of 256 B",
        "get, both ways",
        "NVSHMEM put_signal_nbi",
        "stores of 64 CTAs, both ways",
        "8 B put + signal, polled by a kernel, answered to a stream",
        "host: put_signal of 1 KiB",
        "host: wait_on",
        "host: follow",
        "attention beside pushes",
    ] {
        let line =
            lines.iter().find(|line| line["name"] == name).unwrap_or_else(|| panic!("no {name}: {said}"));
        assert!(line["micros"][0].as_f64().unwrap() > 0.0, "{line}");
        assert!(said.contains(name));
    }
    assert!(std::fs::read_to_string(&svg).unwrap().contains("<polyline"));
}
