//! `cargo xtask build-kernels`: compiles `kernels/kernels.toml` to PTX and cubins, and holds kernels to their budgets.
//!
//! Needs neither CUDA nor a GPU: without an nvcc 13.x it sets up pinned wheels under `target/`.
mod compile;
mod manifest;
mod ptxas;
mod report;
mod sass;
mod toolkit;
pub(crate) mod wheels;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use rayon::prelude::*;

use crate::files::workspace_root;
use crate::input::BadInput;
use compile::{Built, Compiler, Target, Tools};
use manifest::Binary;
use toolkit::Toolkit;

/// Flags of `cargo xtask build-kernels`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BuildKernelsArgs {
    /// Architecture of the binaries.
    #[arg(long, default_value = "sm_90a")]
    arch: String,
    /// Compilers that run at a time; all cores unless given.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Folder of the results; target/kernels, where the loader looks, unless given.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Macro for all binaries, as NAME or NAME=VALUE; such builds want a folder of their own.
    #[arg(long, value_name = "MACRO", requires = "out")]
    define: Vec<String>,
    /// Also makes what is linked with NVSHMEM's device library; fetches its wheel, some 60 MB, on first use.
    #[arg(long)]
    nvshmem: bool,
    /// Leaves out the line tables, which profilers read and which are most of a binary.
    #[arg(long)]
    no_line_tables: bool,
    /// Writes what the table shows, and the paths, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl Default for BuildKernelsArgs {
    fn default() -> Self {
        Self {
            arch: "sm_90a".to_owned(),
            jobs: None,
            out: None,
            define: Vec::new(),
            nvshmem: false,
            no_line_tables: false,
            json: None,
        }
    }
}

impl BuildKernelsArgs {
    /// All kernels.
    pub(crate) fn with_nvshmem() -> Self {
        Self { nvshmem: true, ..Self::default() }
    }

    /// The kernels as this macro makes them, in a folder of their own, for tests only.
    pub(crate) fn variant(define: String, out: PathBuf) -> Self {
        Self { define: vec![define], out: Some(out), no_line_tables: true, ..Self::with_nvshmem() }
    }
}

/// The folder in which the loader looks.
pub(crate) fn kernels_folder() -> PathBuf {
    workspace_root().join("target/kernels")
}

/// Compiles what changed, prints the table; 1 when a kernel does not compile or breaks its budget.
///
/// # Errors
/// A wrong flag or manifest, no compiler, files that cannot be written.
pub(crate) fn execute(args: &BuildKernelsArgs) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let Outcome { toolkit, binaries, built, out } = compile(args)?;
    println!("nvcc {} ({})", toolkit.release, toolkit.origin);
    let (rows, mut wrong) = report::rows(&binaries, &built, &args.arch);
    println!("{}", report::table(&rows));
    if toolkit.cuobjdump.is_none() {
        println!("no cuobjdump with nvdisasm beside this nvcc: HGMMA are not counted");
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let fresh = built.iter().filter(|built| matches!(built, Ok(built) if built.reused)).count();
    let seconds = start.elapsed().as_secs_f64();
    println!("{} binaries, {fresh} of them unchanged, in {seconds:.1} s: {}", built.len(), out.display());
    wrong.extend(built.iter().filter_map(|built| built.as_ref().err().map(|error| format!("{error:#}"))));
    for line in &wrong {
        println!("FAILED: {line}");
    }
    Ok(if wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Compiles what changed and asks nothing of the result: for builds that only tests run.
///
/// # Errors
/// As [`execute`], and when a kernel does not compile.
pub(crate) fn compile_without_budget(args: &BuildKernelsArgs) -> anyhow::Result<()> {
    compile(args)?.built.into_iter().try_for_each(|built| built.map(drop))
}

/// What was compiled, by which compiler, to where.
struct Outcome {
    toolkit: Toolkit,
    binaries: Vec<Binary>,
    built: Vec<anyhow::Result<Built>>,
    out: PathBuf,
}

fn compile(args: &BuildKernelsArgs) -> anyhow::Result<Outcome> {
    let root = workspace_root().join("kernels");
    let mut binaries = manifest::read(&root.join("kernels.toml"))?;
    binaries.retain(|binary| args.nvshmem || !binary.nvshmem);
    binaries.iter_mut().for_each(|binary| binary.defines.extend_from_slice(&args.define));
    let pool = pool(args.jobs)?;
    let toolkit = toolkit::find()?;
    let out = args.out.clone().unwrap_or_else(kernels_folder);
    std::fs::create_dir_all(&out).with_context(|| format!("cannot create {}", out.display()))?;
    let out = out.canonicalize()?;
    let nvshmem = args.nvshmem.then(|| wheels::nvshmem(&workspace_root().join("target"))).transpose()?;
    let tools = Tools { toolkit: &toolkit, nvshmem: nvshmem.as_deref() };
    let target = Target { arch: &args.arch, line_tables: !args.no_line_tables };
    let compiler = Compiler::new(tools, &root, &out, target)?;
    let build = |binary| compiler.build(binary);
    let built = pool.install(|| binaries.par_iter().map(build).collect());
    Ok(Outcome { toolkit, binaries, built, out })
}

fn pool(jobs: Option<usize>) -> anyhow::Result<rayon::ThreadPool> {
    if jobs == Some(0) {
        return Err(BadInput("--jobs 0 would compile nothing; give at least 1".to_owned()).into());
    }
    Ok(rayon::ThreadPoolBuilder::new().num_threads(jobs.unwrap_or(0)).build()?)
}
