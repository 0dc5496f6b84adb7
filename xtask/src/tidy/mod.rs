//! `cargo xtask tidy`: rules of docs/style.md and ARCHITECTURE.md that neither rustc nor clippy can see.
//!
//! Each violation is one line, `path:line: what, and what to do`. The same check is a test, so it cannot be forgotten.
mod absences;
mod attributes;
mod crates;
mod dag;
mod lines;
mod size;
mod source;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;

use crate::files::{walk, workspace_root};
pub(crate) use crates::published_crates;
use source::Source;

/// One broken rule at one place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    /// Relative to the workspace's root, with forward slashes.
    path: String,
    /// Counted from 1.
    line: usize,
    /// What is wrong, and what to do.
    text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.text)
    }
}

/// Checks the workspace that this program was built from and prints what is wrong.
///
/// # Errors
/// When files cannot be read.
pub(crate) fn execute() -> anyhow::Result<ExitCode> {
    let violations = check(&workspace_root())?;
    for violation in &violations {
        println!("{violation}");
    }
    match violations.len() {
        0 => println!("tidy ok"),
        count => println!("tidy FAILED: {count} violations"),
    }
    Ok(if violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All violations in the workspace at `root`, sorted by place.
fn check(root: &Path) -> anyhow::Result<Vec<Violation>> {
    let mut violations = Vec::new();
    for path in text_files(root)? {
        let name = path.to_string_lossy().replace('\\', "/");
        let text = std::fs::read_to_string(root.join(&path))
            .with_context(|| format!("cannot read {name} as text"))?;
        if !name.ends_with(".rs") {
            violations.extend(lines::check(&name, &text, &[]));
            continue;
        }
        match Source::parse(&name, &text) {
            Ok(source) => {
                violations.extend(lines::check(&name, &text, &source.tests));
                violations.extend(size::check(&source));
                violations.extend(attributes::check(&source));
                violations.extend(absences::check(&source));
            }
            Err(violation) => violations.push(violation),
        }
    }
    violations.extend(crates::check(root)?);
    violations.sort();
    Ok(violations)
}

/// Files that people write here: by ending, and the scripts without one.
fn text_files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    const ENDINGS: [&str; 10] = ["rs", "md", "toml", "sh", "yml", "json", "cu", "cuh", "h", "py"];
    let mut files = walk(root).with_context(|| format!("cannot list {}", root.display()))?;
    files.retain(|path| path.extension().is_some_and(|ending| ENDINGS.iter().any(|known| ending == *known)));
    files.extend(
        [".ci/run", ".cargo/config.toml"]
            .map(PathBuf::from)
            .into_iter()
            .filter(|path| root.join(path).is_file()),
    );
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_repository_is_tidy() {
        let violations: Vec<String> =
            check(&workspace_root()).unwrap().iter().map(ToString::to_string).collect();
        assert!(violations.is_empty(), "\n{}", violations.join("\n"));
    }

    #[test]
    fn a_violation_is_one_line_that_editors_can_jump_to() {
        let violation =
            Violation { path: "a/b.rs".to_owned(), line: 7, text: "too long; split it".to_owned() };
        assert_eq!(violation.to_string(), "a/b.rs:7: too long; split it");
    }
}
