//! Invariants of ARCHITECTURE.md that name what must not be there. Code counts, comments and documentation do not.
use super::Violation;
use super::source::{Source, Token};

/// Something that code may not say outside a few places.
struct Absence {
    /// What is looked for.
    pattern: Pattern,
    /// Whether a file, by its path, is under the rule.
    applies: fn(&str) -> bool,
    /// What is wrong, and what to do.
    text: &'static str,
}

enum Pattern {
    /// These identifiers and marks in a row; the last may be any of several.
    Sequence(&'static [&'static str], &'static [&'static str]),
    /// An identifier, or with `true` a literal too, that contains this word in any case.
    Word(&'static str, bool),
}

/// Where unsafe code may stand, by start of the path.
const UNSAFE_PLACES: [&str; 13] = [
    "crates/fm-cp/src/device/raw.rs",
    "crates/fabric-bench/",
    "crates/gpu-sim/",
    "crates/kernel-sim/",
    "crates/nvshmem-sys/",
    "crates/symm-buffer/src/host/heap.rs",
    "crates/symm-buffer/src/model/cell.rs",
    "crates/symm-buffer/src/nvshmem/",
    "crates/symm-buffer/tests/processes/",
    "crates/fm3-kernels/src/cpu/gemm.rs",
    "crates/fm3-kernels/benches/engine.rs",
    "crates/fm3-kernels/src/cuda/",
    "crates/fm3-kernels/tests/gpu_",
];

const ABSENCES: [Absence; 6] = [
    Absence {
        pattern: Pattern::Sequence(
            &["env", ":", ":"],
            &["var", "vars", "var_os", "vars_os", "set_var", "remove_var"],
        ),
        applies: |path| {
            !path.starts_with("xtask/")
                && path != "crates/fm-cp/src/config.rs"
                // FM_REQUIRE_GPU turns the skip of a GPU test into a failure.
                && path != "crates/fm3-kernels/tests/gpu_common/device.rs"
                // And a rank's process is told its part.
                && path != "crates/symm-buffer/tests/processes/mod.rs"
                && path != "crates/fm-cp/tests/gpu_forward/processes.rs"
                // As a driver does.
                && !path.starts_with("crates/gpu-sim/")
                // NVSHMEM takes some settings from the environment only: they are set there for it.
                && path != "crates/nvshmem-sys/src/proxy.rs"
        },
        text: "reads or writes the environment; take an argument, only crates/fm-cp/src/config.rs reads it",
    },
    Absence {
        pattern: Pattern::Sequence(&[], &["spin_loop", "yield_now"]),
        applies: |path| {
            !["deadline.rs", "sync.rs"].iter().any(|name| path == format!("crates/symm-buffer/src/{name}"))
                && !path.starts_with("crates/gpu-sim/")
                // A clock is read as exactly as its answer is seen at once; it ends after 10 s.
                && path != "crates/fm3-kernels/src/cuda/clock.rs"
        },
        text: "spins by hand; wait through symm-buffer's deadline, which ends and reports",
    },
    Absence {
        pattern: Pattern::Sequence(&[], &["unsafe"]),
        applies: |path| !UNSAFE_PLACES.iter().any(|place| path.starts_with(place)),
        text: "has unsafe code; use a safe interface, or argue for the file in ARCHITECTURE.md and list it in tidy",
    },
    Absence {
        pattern: Pattern::Sequence(&["std", ":", ":"], &["sync", "thread"]),
        applies: |path| {
            path.starts_with("crates/symm-buffer/src/") && path != "crates/symm-buffer/src/sync.rs"
        },
        text: "names std's threads or locks; take them from crate::sync, so that a model checker can replace them",
    },
    Absence {
        pattern: Pattern::Word("cuda", true),
        applies: |path| path.starts_with("crates/cp-overlap/"),
        text: "cp-overlap knows no CUDA; leave devices to trait Compute and trait Fabric",
    },
    Absence {
        pattern: Pattern::Word("nvshmem", true),
        applies: |path| {
            ["cp-overlap", "fm3-kernels"].iter().any(|name| path.starts_with(&format!("crates/{name}/")))
        },
        text: "only symm-buffer and nvshmem-sys know NVSHMEM; go through trait Fabric",
    },
];

/// Checks one file.
pub(super) fn check(source: &Source<'_>) -> Vec<Violation> {
    let rules = ABSENCES.iter().filter(|absence| (absence.applies)(source.path));
    rules
        .flat_map(|absence| {
            let lines = absence.pattern.lines(&source.tokens);
            lines.into_iter().map(|line| source.violation(line, absence.text.to_owned()))
        })
        .collect()
}

impl Pattern {
    /// Lines where it occurs.
    fn lines(&self, tokens: &[Token]) -> Vec<usize> {
        match *self {
            Pattern::Sequence(start, last) => tokens
                .windows(start.len() + 1)
                .filter(|window| {
                    let mut words = window.iter().map(|token| token.text.as_str());
                    words.next_back().is_some_and(|end| last.contains(&end))
                        && words.eq(start.iter().copied())
                })
                .map(|window| window[0].line)
                .collect(),
            Pattern::Word(word, literals) => tokens
                .iter()
                .filter(|token| (literals || !token.literal) && token.text.to_lowercase().contains(word))
                .map(|token| token.line)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    fn lines(path: &str, code: &str) -> Vec<usize> {
        let text =
            format!("//! CUDA, NVSHMEM, env::var, spin_loop in words are fine.\n// env::var\n{code}\n");
        check(&Source::parse(path, &text).unwrap()).iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn the_environment_is_read_in_one_file() {
        for code in
            ["fn f() { std::env::var(\"A\"); }", "use std::env::var_os;", "fn f() { m!(env::vars()); }"]
        {
            assert_eq!(lines("crates/fm-cp/src/lib.rs", code), [3], "{code}");
            assert_eq!(lines("crates/cp-overlap/tests/x.rs", code), [3], "{code}");
            assert_eq!(lines("crates/fm-cp/src/config.rs", code), NONE, "{code}");
        }
        assert_eq!(
            lines("crates/fm-cp/src/lib.rs", "fn f() { std::env::args(); env!(\"X\"); var(); }"),
            NONE
        );
    }

    #[test]
    fn nobody_spins_by_hand() {
        for code in ["fn f() { loop { std::hint::spin_loop(); } }", "fn f() { while a() { yield_now() } }"] {
            assert_eq!(lines("crates/symm-buffer/src/host.rs", code), [3]);
            assert_eq!(lines("crates/symm-buffer/src/deadline.rs", code), NONE);
            assert_eq!(lines("crates/symm-buffer/src/sync.rs", code), NONE);
        }
        assert_eq!(lines("crates/symm-buffer/src/host.rs", "fn f() { loop { g(); } }"), NONE);
    }

    #[test]
    fn unsafe_code_stands_in_few_files() {
        for code in ["fn f() { unsafe { g() } }", "unsafe impl Send for A {}", "unsafe fn f() {}"] {
            assert_eq!(lines("crates/fm-cp/src/lib.rs", code), [3], "{code}");
            assert_eq!(lines("crates/symm-buffer/src/host/heap.rs", code), NONE, "{code}");
        }
        assert_eq!(
            lines("crates/fm-cp/src/lib.rs", "#![forbid(unsafe_code)]\nconst A: &str = \"unsafe\";"),
            NONE
        );
    }

    #[test]
    fn threads_and_locks_come_through_one_file() {
        for code in ["use std::sync::Mutex;", "fn f() { std::thread::spawn(g); }"] {
            assert_eq!(lines("crates/symm-buffer/src/host/stream.rs", code), [3], "{code}");
            assert_eq!(lines("crates/symm-buffer/src/sync.rs", code), NONE, "{code}");
            assert_eq!(lines("crates/symm-buffer/tests/host.rs", code), NONE, "{code}");
        }
        assert_eq!(lines("crates/symm-buffer/src/host/stream.rs", "use crate::sync::Mutex;"), NONE);
    }

    #[test]
    fn planning_knows_no_cuda_and_no_nvshmem() {
        for code in ["fn cuda_stream() {}", "use nvshmem_sys::load;", "const A: &str = \"libcuda\";"] {
            assert_eq!(lines("crates/cp-overlap/src/plan.rs", code), [3], "{code}");
        }
        assert_eq!(lines("crates/fm3-kernels/src/lib.rs", "mod cuda;"), NONE, "it is the kernels' home");
        assert_eq!(lines("crates/fm3-kernels/src/lib.rs", "use nvshmem_sys::load;"), [3]);
        assert_eq!(lines("crates/symm-buffer/src/lib.rs", "mod nvshmem;"), NONE);
    }
}
