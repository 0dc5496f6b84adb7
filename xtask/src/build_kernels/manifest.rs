//! `kernels.toml`: which binaries there are, which kernels in them, and what each may spill.
use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;

use crate::input::BadInput;

/// One source file that becomes one cubin.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Binary {
    /// Stem of the results.
    pub name: String,
    /// From the folder of the manifest.
    pub source: String,
    /// Macros, as NAME or NAME=VALUE.
    #[serde(default)]
    pub defines: Vec<String>,
    /// Linked with NVSHMEM's device library; made only where it is asked for.
    #[serde(default)]
    pub nvshmem: bool,
    /// Its entry points.
    pub kernels: BTreeMap<String, Budget>,
}

/// What a kernel may cost; nothing unless it says why.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Budget {
    /// Bytes of spill stores and loads together.
    #[serde(default)]
    pub spill_bytes: u64,
    /// Bytes of the stack frame.
    #[serde(default)]
    pub stack_bytes: u64,
    /// Where in the SASS the spills or the stack are.
    pub place: Option<String>,
    /// Measured gain over the same kernel without them.
    pub gain: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    binary: Vec<Binary>,
}

/// Reads and checks the manifest.
///
/// # Errors
/// [`BadInput`] for a mistake in it.
pub(super) fn read(path: &Path) -> anyhow::Result<Vec<Binary>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text).map_err(|wrong| BadInput(format!("{}: {wrong}", path.display())).into())
}

fn parse(text: &str) -> Result<Vec<Binary>, String> {
    let Manifest { binary: binaries } = toml::from_str(text).map_err(|error| error.to_string())?;
    for (index, binary) in binaries.iter().enumerate() {
        let name = &binary.name;
        if binaries[..index].iter().any(|other| other.name == *name) {
            return Err(format!("two binaries are named {name}; rename one"));
        }
        if binary.kernels.is_empty() {
            return Err(format!("binary {name} has no kernels; name its entry points"));
        }
        for (kernel, budget) in &binary.kernels {
            let reasons = [&budget.place, &budget.gain];
            let silent = reasons.iter().any(|reason| reason.as_ref().is_none_or(String::is_empty));
            if budget.spill_bytes + budget.stack_bytes > 0 && silent {
                return Err(format!(
                    "kernel {kernel} has a budget; say with `place` where in the SASS, with `gain` what was measured"
                ));
            }
        }
    }
    Ok(binaries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::workspace_root;

    const ONE: &str = "[[binary]]\nname = \"a\"\nsource = \"a.cu\"\n[binary.kernels.k]\n";

    #[test]
    fn a_kernel_may_cost_nothing_unless_it_says_why() {
        let binaries = parse(ONE).unwrap();
        assert_eq!(binaries[0].kernels["k"], Budget::default());
        assert!(parse(&format!("{ONE}spill_bytes = 8\nplace = \"end\"\n")).unwrap_err().contains("`gain`"));
        let said = parse(&format!("{ONE}stack_bytes = 8\nplace = \"end\"\ngain = \"2 %\"\n")).unwrap();
        assert_eq!(said[0].kernels["k"].stack_bytes, 8);
    }

    #[test]
    fn mistakes_are_found() {
        assert!(parse(&format!("{ONE}{ONE}")).unwrap_err().contains("two binaries"));
        assert!(parse(&format!("{ONE}registers = 8\n")).is_err());
        let empty = "[[binary]]\nname = \"a\"\nsource = \"a.cu\"\nkernels = {}\n";
        assert!(parse(empty).unwrap_err().contains("no kernels"));
    }

    #[test]
    fn the_projects_own_sources_are_there() {
        let root = workspace_root().join("kernels");
        for binary in read(&root.join("kernels.toml")).unwrap() {
            assert!(root.join(&binary.source).is_file(), "{}", binary.source);
        }
    }
}
