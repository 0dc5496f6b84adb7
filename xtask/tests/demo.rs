//! `cargo xtask demo` as users run it: every mask, sharding and number of ranks, and what is wrong with the input.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
use std::path::Path;
use std::process::{Command, Output};

use fm_cp::mask::MaskSpec;

fn demo(flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).arg("demo").args(flags).output().unwrap()
}

/// The report of a run that must be right.
fn report(folder: &Path, flags: &[&str]) -> serde_json::Value {
    let path = folder.join("report.json");
    let output = demo(&[flags, &["--json", path.to_str().unwrap()]].concat());
    assert!(output.status.success(), "{flags:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

#[test]
fn every_mask_sharding_and_number_of_ranks_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let small = ["--seq-len", "300", "--heads", "2/1", "--head-dim", "16"];
    for name in MaskSpec::NAMES {
        for sharding in ["contiguous", "dual-chunk"] {
            for ranks in ["1", "2", "3", "4", "5", "8"] {
                let flags =
                    [&small[..], &["--mask", name, "--sharding", sharding, "--ranks", ranks]].concat();
                let report = report(folder.path(), &flags);
                assert_eq!(
                    (&report["ok"], &report["checked"]),
                    (&true.into(), &"complete".into()),
                    "{flags:?}"
                );
                assert_eq!(report["ranks"].to_string(), ranks);
            }
        }
    }
}

#[test]
fn large_runs_are_sampled_and_a_mask_from_a_file_is_the_named_one() {
    let folder = tempfile::tempdir().unwrap();
    // 4096^2 / 2 pairs x 8 heads are more than 6e7.
    let flags = ["--seq-len", "4096", "--head-dim", "8", "--mask", "causal", "--dtype", "f32"];
    assert_eq!(report(folder.path(), &flags)["checked"], "sampled");
    // LTS = 200 for every key: causal, and rows from 200 on see nothing.
    let path = folder.path().join("mask.npy");
    let header = "{'descr': '<i4', 'fortran_order': False, 'shape': (1, 1, 300, 1), }";
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(118_u16.to_le_bytes());
    bytes.extend(format!("{header:<117}\n").bytes());
    bytes.extend([200_i32; 300].iter().flat_map(|bound| bound.to_le_bytes()));
    std::fs::write(&path, bytes).unwrap();
    let mask = format!("file:{}", path.display());
    let read = report(folder.path(), &["--seq-len", "300", "--mask", &mask, "--causal", "true"]);
    let density = 200.0 * 201.0 / 2.0 / (300.0 * 300.0);
    assert!((read["density"].as_f64().unwrap() - density).abs() < 1e-9, "{read}");
}

#[test]
fn wrong_input_is_one_line_and_exit_code_2() {
    let cases: [(&[&str], &str); 8] = [
        (&["--mask", "nope"], "causal-document"),
        (&["--seq-len", "0"], "--seq-len"),
        (&["--ranks", "0"], "--ranks"),
        (&["--ranks", "9", "--seq-len", "8"], "--ranks 9 is more than --seq-len 8"),
        (&["--heads", "8/3"], "not a multiple"),
        (&["--head-dim", "12"], "head_dim = 12"),
        (&["--corpus", "no-such-folder"], "no-such-folder"),
        (&["--mask", "file:no-such-file.npy"], "no-such-file.npy"),
    ];
    for (flags, part) in cases {
        let output = demo(flags);
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{flags:?}: {text}");
        assert!(text.contains(part) && text.trim_end().lines().count() == 1, "{flags:?}: {text}");
    }
}

#[test]
fn a_lost_signal_is_named_by_every_rank_and_exit_code_1() {
    let output = demo(&["--seq-len", "600", "--ranks", "3", "--mask", "causal", "--inject", "lost"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert_eq!(text.matches("in stage 'gather'").count(), 3, "{text}");
}
