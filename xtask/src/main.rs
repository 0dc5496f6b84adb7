//! Every command of the project: `cargo xtask <command>`.
//!
//! A command is one line in [`Command`], one line in [`run`] and one module. Exit codes: 0 right, 1 wrong result,
//! 2 wrong input (one line says what), or that of a program that was run.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command-line program speaks to its user")]
#[path = "../../crates/fm-cp/examples/attention_file/files.rs"]
#[allow(dead_code, reason = "the example also writes files")]
mod attention_file;
mod bench;
mod bench_fabric;
mod bench_multinode;
mod bindgen;
mod build_kernels;
mod bundle;
mod ci;
mod codegen;
mod demo;
mod files;
mod input;
mod npy;
mod shell;
mod test;
mod tidy;
mod verify;

use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::input::{BadInput, one_line};

/// Commands of the fm-cp workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Line {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Runs context-parallel attention over real text, forward and backward, and checks it
    Demo(demo::args::DemoArgs),
    /// Times the forward on a GPU, beside cuDNN and FlexAttention
    Bench(bench::BenchArgs),
    /// Times puts, signals and their latencies between two processes on GPUs, alone and beside attention
    #[command(disable_help_flag = true)]
    BenchFabric(bench_fabric::BenchFabricArgs),
    /// Times the context-parallel forward: overlapped, without communication, and gathered first
    BenchMultinode(bench_multinode::BenchMultinodeArgs),
    /// Compiles the CUDA kernels and checks their budgets; sets up a compiler where there is none
    BuildKernels(build_kernels::BuildKernelsArgs),
    /// Packs GPU tests, benchmark and kernels for a machine without cargo
    Bundle(bundle::BundleArgs),
    /// Writes what is generated from Rust and committed: the kernels' parameter header
    Codegen(codegen::CodegenArgs),
    /// Writes the C declarations of nvshmem-sys from NVSHMEM's headers
    Bindgen(bindgen::BindgenArgs),
    /// Runs the tests of all crates and of their documentation
    Test(test::TestArgs),
    /// Checks the rules of docs/style.md and ARCHITECTURE.md that compilers do not
    Tidy,
    /// Proves plans, injects faults, compares with the reference, fuzzes
    Verify(verify::VerifyArgs),
    /// Runs everything that must pass before a change is taken
    Ci(ci::CiArgs),
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo(args) => demo::execute(&args),
        Command::Bench(args) => bench::execute(&args),
        Command::BenchFabric(args) => bench_fabric::execute(&args),
        Command::BenchMultinode(args) => bench_multinode::execute(&args),
        Command::BuildKernels(args) => build_kernels::execute(&args),
        Command::Bundle(args) => bundle::execute(&args),
        Command::Codegen(args) => codegen::execute(&args),
        Command::Bindgen(args) => bindgen::execute(&args),
        Command::Test(args) => test::execute(&args),
        Command::Tidy => tidy::execute(),
        Command::Verify(args) => verify::execute(&args),
        Command::Ci(args) => ci::execute(&args),
    }
}

fn main() -> ExitCode {
    let line = match Line::try_parse() {
        Ok(line) => line,
        Err(error) => return refuse(&error),
    };
    match run(line.command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(if error.is::<BadInput>() { 2 } else { 1 })
        }
    }
}

/// Help as it is, a complaint as one line.
fn refuse(error: &clap::Error) -> ExitCode {
    let code = ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
    let help = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand || !error.use_stderr();
    if !help {
        eprintln!("{}", one_line(&error.render().to_string()));
    } else if let Err(closed) = error.print() {
        eprintln!("error: cannot print the help: {closed}");
    }
    code
}
