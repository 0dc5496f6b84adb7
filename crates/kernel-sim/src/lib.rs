//! The kernels of this project on the CPU, as a plugin of the simulated CUDA driver.
//!
//! The crate builds a shared library, `libkernel_sim.so`, that the driver of `gpu-sim` loads. Each kernel is a plain
//! function of the struct that the real one takes: it reads the same tables, waits for the same words and writes the
//! same memory. A test calls [`install()`] and starts its child processes with [`Installed::variables`]: there all of
//! `fm3_kernels::cuda`, and what stands on it, runs through the host code that runs on GPUs. See the README for what
//! that proves.

mod backward;
mod blocks;
mod forward;
mod install;
mod kernels;
mod mask;
mod memory;
mod plugin;
mod probe;
mod signal;
mod tensor;
mod tile;

pub use install::{Error, Installed, install};
