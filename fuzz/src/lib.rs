//! The functions that `cargo xtask verify` tries on stable, for libFuzzer.
#![forbid(unsafe_code)]
#![allow(missing_docs, dead_code, reason = "modules of the xtask program, as they are")]

#[path = "../../crates/fm-cp/examples/attention_file/files.rs"]
mod attention_file;
pub mod inputs;
#[path = "../../xtask/src/npy.rs"]
mod npy;
#[path = "../../xtask/src/verify/inputs.rs"]
mod private;
