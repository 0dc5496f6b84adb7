//! A CUDA driver and an NVSHMEM made of threads and shared memory, for tests on machines without a GPU.
//!
//! The crate builds one shared library, `libgpu_sim.so`, that exports both C interfaces. A test calls [`install()`],
//! which finds that library and makes a folder where it lies under the names of the real ones, and starts its child
//! processes with that folder as `LD_LIBRARY_PATH`: they then run the very code that runs on GPUs.
//!
//! Device pointers are host addresses, and a process is a rank with GPUs of its own. Streams are asynchronous and in
//! order; they share hardware connections and hold each other up there as real
//! ones do. Nothing is said about time: see the README for what this proves and what it does not.

mod bytes;
mod c;
mod code;
mod config;
mod context;
#[allow(non_snake_case, reason = "exported under the names that CUDA's header gives")]
mod driver;
mod install;
mod kernels;
mod map;
mod marker;
mod memory;
#[allow(non_snake_case, reason = "parameters are called as in NVSHMEM's header")]
mod nvshmem;
mod stream;
mod table;
mod tensor_map;
mod word;

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub use install::{Error, Installed, install};
pub use tensor_map::TensorMap;
