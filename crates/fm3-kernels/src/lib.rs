//! Attention on one device: what a mask means, what a shape is, and the arithmetic.
//!
//! * [`mask`]: FlashMask column masks, block classification, block lists.
//! * [`shape`], [`view`], [`dtype`]: checked problem sizes, strided tensors, element types.
//! * [`params`]: structs that kernels take, and their C++ header.
//! * [`cpu`]: the tiled CPU engine (forward and backward) that skips masked blocks.
//! * `cuda` (feature `cuda`): the same on a Hopper GPU; [`params`] are the structs that its kernels take.
//! * [`reference`](mod@reference): plain f64 attention from the dense definition of the mask, for tests.
//!
//! This crate knows nothing of ranks, communication or the environment.
// Unsafe code lives in `cpu::gemm`, because the matrix product that the engine calls takes pointers, and in `cuda`.
#![deny(unsafe_code)]

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dtype;
mod error;
pub mod mask;
pub mod params;
pub mod reference;
pub mod shape;
pub mod view;

pub use dtype::{DType, Element};
pub use error::Error;
pub use mask::FlashMask;
pub use shape::{Dims, Shape};
pub use view::{View4, View4Mut};

/// The README's program is compiled and run as a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
pub struct Readme;
