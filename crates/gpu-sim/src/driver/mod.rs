//! The driver's C interface, as far as the safe parts of cudarc and this project call it.
//!
//! Handles and device pointers are numbers here: they are passed as pointers of that size are.
mod batch;
mod context;
mod copy;
mod device;
mod error;
mod event;
mod fill;
mod launch;
mod memory;
mod module;
mod stream;
mod tensor;
mod words;
