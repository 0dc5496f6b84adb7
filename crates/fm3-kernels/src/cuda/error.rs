//! What can go wrong between us and the device.
use std::path::PathBuf;

use crate::DType;

/// Errors of the CUDA backend, part of [`crate::Error`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// This machine has no CUDA driver.
    #[error("libcuda cannot be loaded; install NVIDIA's driver, or use the CPU engine")]
    NoDriver,
    /// The driver refused a call.
    #[error("{call}: the CUDA driver answers {code}: {text}")]
    Driver {
        /// What was asked.
        call: &'static str,
        /// `CUresult`.
        code: u32,
        /// The driver's name and description of it.
        text: String,
    },
    /// The kernels are for another architecture.
    #[error(
        "device {ordinal} has compute capability {}.{}; the kernels are for 9.0 (Hopper), use the CPU engine", capability.0, capability.1
    )]
    Capability {
        /// Number of the device.
        ordinal: usize,
        /// Major and minor.
        capability: (i32, i32),
    },
    /// No binary of the kernels.
    #[error("no {file} in {tried:?}; run `cargo xtask build-kernels`")]
    NoKernels {
        /// Name of the missing file.
        file: String,
        /// Folders in which it was looked for.
        tried: Vec<PathBuf>,
    },
    /// A binary that is there and cannot be read.
    #[error("{path:?} cannot be read: {text}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Answer of the operating system.
        text: String,
    },
    /// A binary built from other parameter structs than this library.
    #[error(
        "{file} was built for parameters with hash {binary:#018x}, this library has {library:#018x}; run `cargo xtask build-kernels`"
    )]
    AbiHash {
        /// The file.
        file: String,
        /// Hash in the binary; 0 when it has none.
        binary: u64,
        /// Hash of this library's structs.
        library: u64,
    },
    /// A value that must be another one.
    #[error("{call}: {name} = {value}; it must be {rule}")]
    Value {
        /// Call that refused it.
        call: &'static str,
        /// Which value.
        name: &'static str,
        /// What was given.
        value: u64,
        /// What is allowed, with its numbers.
        rule: String,
    },
    /// Tensors of types that do not go together, or that no kernel takes.
    #[error("{call}: {tensor} is {got}; {rule}")]
    Type {
        /// Call that refused it.
        call: &'static str,
        /// Which tensor.
        tensor: &'static str,
        /// Its type.
        got: DType,
        /// What is allowed.
        rule: &'static str,
    },
    /// The memory is ordered for one stream, the call is for another.
    #[error("{call}: {tensor} was made for another stream; make it with the stream of the call")]
    Stream {
        /// Call that refused it.
        call: &'static str,
        /// Which tensor.
        tensor: &'static str,
    },
    /// A workspace that a problem does not fit into.
    #[error(
        "{call}: the problem needs a workspace of {needed} bytes, this one has {bytes}; make a larger one"
    )]
    Workspace {
        /// Call that refused it.
        call: &'static str,
        /// Bytes that the problem needs.
        needed: usize,
        /// Bytes that there are.
        bytes: usize,
    },
    /// Softmax scale that is not positive.
    #[error(
        "{call}: scale = {scale}; the kernels need a finite one above 0, the usual one is 1 / sqrt(head_dim)"
    )]
    Scale {
        /// Call that refused it.
        call: &'static str,
        /// What was given.
        scale: f32,
    },
    /// Signals have epochs, which a replayed graph would repeat.
    #[error("{call}: a call that waits for signals cannot be captured into a graph; end the capture first")]
    Capture {
        /// Call that refused it.
        call: &'static str,
    },
}
