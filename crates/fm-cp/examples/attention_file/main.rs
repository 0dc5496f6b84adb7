//! Attention from a file to a file, so that anyone can check the results with numpy (see `check.py` beside this).
//!
//! `cargo run --release -p fm-cp --example attention_file -- IN.safetensors OUT.safetensors [--ranks N]
//! [--sharding contiguous|dual-chunk] [--causal true|false] [--scale X] [--backend host|cuda]`
//!
//! IN: q [b, s, hq, d], k and v [b, s, hkv, d] (F32, BF16 or F16), optionally startend_row_indices (I32 [b, hm, s, C])
//! and dout [b, s, hq, d]. OUT: o, lse (F32 [b, hq, s]), and dq, dk, dv when dout was given. Bad input is one line and
//! exit code 2; OUT is written whole or not at all. `--backend cuda` (build with `--features cuda`) runs one rank forward
//! on a Hopper GPU: BF16 or F16, head dim 128.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program speaks to its user")]
#[cfg(feature = "cuda")]
mod cuda;
mod files;
mod run;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use fm_cp::ShardingKind;

#[cfg(feature = "cuda")]
const BACKENDS: [&str; 2] = ["host", "cuda"];
#[cfg(not(feature = "cuda"))]
const BACKENDS: [&str; 1] = ["host"];

/// Context-parallel attention over whole tensors in safetensors files.
#[derive(Debug, Parser)]
pub(crate) struct Args {
    /// Tensors q, k, v and perhaps startend_row_indices, dout.
    input: PathBuf,
    /// Where o, lse and perhaps dq, dk, dv go.
    output: PathBuf,
    /// Ranks that share the sequence.
    #[arg(long, default_value_t = 1)]
    ranks: u32,
    /// How rows are dealt to ranks: contiguous or dual-chunk.
    #[arg(long, default_value = "dual-chunk")]
    sharding: ShardingKind,
    /// Whether queries see later keys; C = 1 needs true, C = 4 needs false.
    #[arg(long, default_value_t = false, action = clap::ArgAction::Set, value_name = "true|false")]
    causal: bool,
    /// Softmax scale [default: 1/sqrt(d)].
    #[arg(long)]
    scale: Option<f32>,
    /// What runs it: the CPU engine, or with the feature `cuda` a GPU.
    #[arg(long, default_value = "host", value_parser = BACKENDS)]
    backend: String,
}

fn main() -> ExitCode {
    let args = match Args::try_parse() {
        Ok(args) => args,
        Err(error) if error.use_stderr() => {
            let text = error.to_string();
            eprintln!("{}", text.lines().next().unwrap_or_default());
            return ExitCode::from(2);
        }
        Err(help) => {
            print!("{help}");
            return ExitCode::SUCCESS;
        }
    };
    match run::execute(&args) {
        Ok(line) => {
            println!("{line}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}
