//! What a file must say at its top: what it is for, and in some crates that it has no unsafe code.
use super::Violation;
use super::source::Source;

/// Crates that must forbid unsafe code, by the root of their library or program.
const SAFE_ROOTS: [&str; 3] =
    ["crates/cp-overlap/src/lib.rs", "crates/fm3-kernels/src/lib.rs", "xtask/src/main.rs"];

/// Checks one file.
pub(super) fn check(source: &Source<'_>) -> Vec<Violation> {
    let inner = |name: &'static str| {
        source.syntax.attrs.iter().filter(move |attribute| attribute.path().is_ident(name))
    };
    let mut violations = Vec::new();
    if inner("doc").next().is_none() {
        let text = "has no module documentation; say in a line `//! ...` what the file is for".to_owned();
        violations.push(source.violation(1, text));
    }
    let forbids = inner("forbid")
        .chain(inner("deny"))
        .any(|attribute| attribute.parse_args::<syn::Path>().is_ok_and(|lint| lint.is_ident("unsafe_code")));
    if SAFE_ROOTS.contains(&source.path) && !forbids {
        let text = "this crate has no unsafe code; keep `#![forbid(unsafe_code)]` here".to_owned();
        violations.push(source.violation(1, text));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&Source::parse(path, text).unwrap()).len()
    }

    #[test]
    fn every_file_says_what_it_is_for() {
        assert_eq!(count("src/a.rs", "//! It adds.\nfn f() {}\n"), 0);
        assert_eq!(count("src/a.rs", "// It adds.\nfn f() {}\n"), 1);
        assert_eq!(count("src/a.rs", "/// It adds.\nfn f() {}\n"), 1);
    }

    #[test]
    fn pure_crates_forbid_unsafe_code() {
        assert_eq!(count(SAFE_ROOTS[0], "//! a\n#![forbid(unsafe_code)]\n"), 0);
        assert_eq!(count(SAFE_ROOTS[1], "//! a\n#![deny(unsafe_code)]\n"), 0);
        assert_eq!(count(SAFE_ROOTS[0], "//! a\n#![forbid(missing_docs)]\n"), 1);
        assert_eq!(count(SAFE_ROOTS[2], "//! a\n"), 1);
        assert_eq!(count("crates/symm-buffer/src/lib.rs", "//! a\n"), 0);
    }
}
