//! Walks a folder in the same order on every machine.
use std::io;
use std::path::{Path, PathBuf};

/// Folders that hold no source: build output and what failed property tests left behind.
const SKIPPED: [&str; 2] = ["target", "proptest-regressions"];

/// Files under `root` as paths relative to it, sorted by path. Hidden names, build output and links are left out.
///
/// # Errors
/// When a folder cannot be read.
pub(crate) fn walk(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root.join(&folder))? {
            let entry = entry?;
            let name = entry.file_name();
            let hidden = name.to_string_lossy().starts_with('.');
            let kind = entry.file_type()?;
            if hidden || (kind.is_dir() && SKIPPED.iter().any(|skipped| name == *skipped)) {
                continue;
            }
            let path = folder.join(name);
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The folder of the workspace that this program was built from.
pub(crate) fn workspace_root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walk_is_sorted_and_skips_hidden_and_built_files() {
        let root = tempfile::tempdir().unwrap();
        for path in ["b/x.md", "a.txt", ".git/c", "target/d", "b/.e", "b/target/f", "b/a/g"] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let found = walk(root.path()).unwrap();
        assert_eq!(found, ["a.txt", "b/a/g", "b/x.md"].map(PathBuf::from));
        assert!(walk(&root.path().join("absent")).is_err());
    }
}
