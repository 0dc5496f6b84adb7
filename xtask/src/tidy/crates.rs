//! Rules about whole crates: the arrows between them, dependencies that belong to one of them, a README each.
use std::path::Path;

use anyhow::Context;
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

use super::{Violation, dag};

/// Dependencies outside the workspace that only some crates may have, and why.
const OWNED: [(&str, &[&str], &str); 6] = [
    ("libloading", &["gpu-sim", "nvshmem-sys"], "foreign code is loaded in nvshmem-sys and for tests only"),
    (
        "rayon",
        &["cp-overlap", "fm-cp", "fm3-kernels", "kernel-sim", "xtask"],
        "who waits for ranks must not do so in a rayon task",
    ),
    ("anyhow", &["fabric-bench", "xtask"], "a library has its own error type"),
    ("clap", &["fabric-bench", "xtask"], "a library has no command line"),
    ("indicatif", &["xtask"], "a library does not print"),
    ("comfy-table", &["fabric-bench", "xtask"], "a library does not print"),
];

/// Checks the workspace at `root`.
///
/// # Errors
/// When cargo cannot describe it or ARCHITECTURE.md cannot be read.
pub(super) fn check(root: &Path) -> anyhow::Result<Vec<Violation>> {
    let metadata = metadata(root)?;
    let mut violations = Vec::new();
    for package in metadata.workspace_packages() {
        violations.extend(owned_dependencies(&package.name, &outside(package)));
        violations.extend(readme(root, package));
    }
    let document = std::fs::read_to_string(root.join(dag::DOCUMENT)).unwrap_or_default();
    match dag::parse(&document) {
        Ok(stated) => violations.extend(dag::compare(&stated, &arrows(&metadata))),
        Err(violation) => violations.push(violation),
    }
    Ok(violations)
}

/// Names of the crates that others may depend on, sorted: not those of tests, benches and commands.
///
/// # Errors
/// When cargo cannot describe the workspace.
pub(crate) fn published_crates(root: &Path) -> anyhow::Result<Vec<String>> {
    let metadata = metadata(root)?;
    let packages = metadata.workspace_packages().into_iter();
    let mut names: Vec<String> = packages
        .filter(|package| package.publish.as_ref().is_none_or(|registries| !registries.is_empty()))
        .map(|package| package.name.to_string())
        .collect();
    names.sort();
    Ok(names)
}

fn metadata(root: &Path) -> anyhow::Result<Metadata> {
    let mut command = MetadataCommand::new();
    command.manifest_path(root.join("Cargo.toml")).no_deps();
    command.exec().context("cargo metadata failed")
}

/// Dependencies of any kind, optional ones too.
fn arrows(metadata: &Metadata) -> dag::Arrows {
    let packages = metadata.workspace_packages();
    let ours = |name: &str| packages.iter().any(|package| package.name == name);
    let to = |package: &Package| {
        let names = package.dependencies.iter().map(|dependency| dependency.name.clone());
        // A crate may name itself, to switch on a feature for its own tests.
        names.filter(|name| ours(name) && package.name != *name).collect()
    };
    packages.iter().map(|package| (package.name.to_string(), to(package))).collect()
}

/// Dependencies of the shipped code, not of its tests.
fn outside(package: &Package) -> Vec<String> {
    let normal = package.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
    normal.map(|dependency| dependency.name.clone()).collect()
}

fn owned_dependencies(package: &str, dependencies: &[String]) -> Vec<Violation> {
    let broken = OWNED.iter().filter(|(name, owners, _)| {
        dependencies.iter().any(|dependency| dependency == name) && !owners.contains(&package)
    });
    broken
        .map(|(name, _, reason)| Violation {
            path: format!("{package}/Cargo.toml"),
            line: 1,
            text: format!("depends on {name}, but {reason}; remove it"),
        })
        .collect()
}

fn readme(root: &Path, package: &Package) -> Option<Violation> {
    let folder = package.manifest_path.parent()?;
    let text = std::fs::read_to_string(folder.join("README.md")).unwrap_or_default();
    let heading = format!("# {}", package.name);
    let missing = text.lines().next() != Some(heading.as_str());
    missing.then(|| Violation {
        path: folder.strip_prefix(root).unwrap_or(folder).join("README.md").into_string(),
        line: 1,
        text: format!("is missing or does not start with `{heading}`; say there what the crate is for"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::workspace_root;

    #[test]
    fn a_dependency_stays_with_its_owner() {
        let names = |list: &[&str]| list.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
        assert!(owned_dependencies("nvshmem-sys", &names(&["libloading", "thiserror"])).is_empty());
        let broken = owned_dependencies("cp-overlap", &names(&["libloading", "anyhow"]));
        assert_eq!(broken.len(), 2, "{broken:?}");
    }

    #[test]
    fn arrows_come_from_the_manifests() {
        let arrows = arrows(&metadata(&workspace_root()).unwrap());
        assert!(arrows["xtask"].contains("fm3-kernels"));
        assert!(arrows["nvshmem-sys"].is_empty());
    }

    #[test]
    fn a_crate_without_its_own_readme_is_found() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            std::fs::create_dir_all(root.path().join(path).parent().unwrap()).unwrap();
            std::fs::write(root.path().join(path), text).unwrap();
        };
        write("Cargo.toml", "[workspace]\nresolver = \"3\"\nmembers = [\"a\", \"b\"]\n");
        for (name, heading) in [("a", "# a\n"), ("b", "# other\n")] {
            write(
                &format!("{name}/Cargo.toml"),
                &format!("[package]\nname = \"{name}\"\nversion = \"0.1.0\"\n"),
            );
            write(&format!("{name}/src/lib.rs"), "//! x\n");
            write(&format!("{name}/README.md"), heading);
        }
        write(dag::DOCUMENT, "```dag\na ->\nb ->\n```\n");
        let paths: Vec<String> =
            check(root.path()).unwrap().into_iter().map(|violation| violation.path).collect();
        assert_eq!(paths, ["b/README.md"]);
    }
}
