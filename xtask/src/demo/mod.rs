//! `cargo xtask demo`: real text through context-parallel attention, checked against the reference.
pub(crate) mod args;
mod check;
mod corpus;
mod embed;
pub(crate) mod json;
mod npy;
mod progress;
mod run;

use std::process::ExitCode;

use crate::files::workspace_root;
use crate::input::BadInput;
use args::DemoArgs;
use corpus::{Packing, Sequence};
use embed::{EmbedSpec, Tensors};
use progress::Progress;

/// What the attention runs on.
pub(crate) struct Inputs {
    /// Text and document lengths, one entry per sequence of the batch.
    pub sequences: Vec<Sequence>,
    /// Q, K, V and dO in f32, dense.
    pub tensors: Tensors,
}

/// Runs the demo; exit code 1 when a result is wrong.
///
/// # Errors
/// [`BadInput`] for a mistake of the user's, else what went wrong.
pub(crate) fn execute(args: &DemoArgs) -> anyhow::Result<ExitCode> {
    args.check()?;
    let progress = Progress::new();
    progress.stage("text");
    let inputs = prepare(args)?;
    let report = run::run(args, &inputs, &progress)?;
    drop(progress);
    if let Some(path) = &args.json {
        report.write(path)?;
    }
    println!("{}", run::table(&report));
    println!("{}", report.verdict());
    Ok(if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Reads the corpus and embeds it.
fn prepare(args: &DemoArgs) -> Result<Inputs, BadInput> {
    let folder = args.corpus.clone().unwrap_or_else(workspace_root);
    let packing = Packing { batch: args.batch, seq_len: args.seq_len, max_document: args.max_document() };
    let sequences = corpus::load(&folder, packing).map_err(|error| BadInput::from_error(&error))?;
    let spec = EmbedSpec {
        heads_q: args.heads.q,
        heads_kv: args.heads.kv,
        head_dim: args.head_dim.get(),
        seed: args.seed,
    };
    let tensors = embed::embed(&sequences, spec);
    Ok(Inputs { sequences, tensors })
}
