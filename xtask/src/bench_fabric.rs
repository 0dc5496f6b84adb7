//! `cargo xtask bench-fabric`: builds and runs the program `fabric-bench`, which is in the bundle as it is.
use std::process::ExitCode;

use crate::shell::{code, command, run};

/// Flags of `cargo xtask bench-fabric`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BenchFabricArgs {
    /// Flags of the program; --help lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    flags: Vec<String>,
}

/// Runs it.
///
/// # Errors
/// When it cannot be started.
pub(crate) fn execute(args: &BenchFabricArgs) -> anyhow::Result<ExitCode> {
    let mut cargo = command("cargo", &["run", "--release", "--quiet", "--package", "fabric-bench", "--"]);
    Ok(ExitCode::from(code(run(cargo.args(&args.flags))?)))
}
