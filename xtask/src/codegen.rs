//! `cargo xtask codegen`: files that are written from Rust and committed: the kernels' parameter header.
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use fm3_kernels::params;

use crate::files::workspace_root;

/// Flags of `cargo xtask codegen`.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct CodegenArgs {
    /// Write nothing; fail when a committed file is not what would be written.
    #[arg(long)]
    pub(crate) check: bool,
}

/// The header that the kernels include, from the workspace's root.
const HEADER: &str = "kernels/include/fm3/generated/params.h";

/// Writes the files, or compares them.
///
/// # Errors
/// When a file cannot be read or written.
pub(crate) fn execute(args: &CodegenArgs) -> anyhow::Result<ExitCode> {
    let path = workspace_root().join(HEADER);
    let fresh = is_fresh(&path, &params::header())?;
    match (fresh, args.check) {
        (true, _) => println!("{HEADER} is fresh (ABI {:#018x})", params::ABI_HASH),
        (false, true) => {
            println!("{HEADER} is stale; run `cargo xtask codegen` and commit it");
            return Ok(ExitCode::FAILURE);
        }
        (false, false) => {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder)?;
            }
            std::fs::write(&path, params::header()).with_context(|| format!("cannot write {HEADER}"))?;
            println!("{HEADER} written (ABI {:#018x})", params::ABI_HASH);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the file holds exactly `text`; a missing file does not.
fn is_fresh(path: &Path, text: &str) -> anyhow::Result<bool> {
    match std::fs::read_to_string(path) {
        Ok(found) => Ok(found == text),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_header_is_fresh() {
        assert_eq!(execute(&CodegenArgs { check: true }).unwrap(), ExitCode::SUCCESS);
    }

    #[test]
    fn a_changed_or_missing_file_is_stale() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.h");
        assert!(!is_fresh(&path, "a").unwrap());
        std::fs::write(&path, "a").unwrap();
        assert!(is_fresh(&path, "a").unwrap() && !is_fresh(&path, "b").unwrap());
        assert!(is_fresh(folder.path(), "a").is_err());
    }
}
