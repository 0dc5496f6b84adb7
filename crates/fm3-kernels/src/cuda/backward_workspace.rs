//! Device memory of backward passes: sums of dQ in f32, two numbers for each query row, a counter of tiles.
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};

use super::CudaError;
use super::driver::Named;
use super::problem::HEAD_DIM;
use crate::{Dims, Error, Shape};

/// Bytes before the sums: the counter of tiles, and a table of one segment on a cache line of its own.
const HEAD: usize = 256;

/// Where that table is.
const SEGMENT: usize = 128;

/// Memory for backward passes on one stream. It is allocated once and never grows; it serves every shape that fits,
/// and calls that use it may be in flight in any number, since the stream orders them.
#[derive(Debug)]
pub struct BackwardWorkspace {
    memory: CudaSlice<u8>,
    base: u64,
}

/// Where the parts for one shape lie, as offsets. All are multiples of 256 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts {
    dq_sums: usize,
    lse2: usize,
    delta: usize,
    end: usize,
}

/// Addresses for one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) claims: u64,
    /// A table of one segment: no signal, map 0, slab 0.
    pub(super) segment: u64,
    pub(super) dq_sums: u64,
    pub(super) lse2: u64,
    pub(super) delta: u64,
}

impl BackwardWorkspace {
    /// Bytes that calls of `shape` need: 256 + 520 * b * hq * (sq rounded up to 128). Keys do not count.
    pub fn bytes(shape: Shape) -> usize {
        Parts::of(shape.dims()).end
    }

    /// Allocates [`bytes`](Self::bytes) of `shape`, the largest that it shall serve.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when the device has not that much memory.
    pub fn new(stream: &Arc<CudaStream>, shape: Shape) -> Result<Self, Error> {
        let memory = stream.alloc_zeros::<u8>(Self::bytes(shape)).named("cuMemAllocAsync")?;
        Self::from_memory(memory)
    }

    /// Takes memory that is allocated already; what is in it does not matter. Calls are on the stream of `memory`.
    ///
    /// # Errors
    /// [`CudaError::Workspace`] below 256 bytes, [`CudaError::Driver`].
    pub fn from_memory(mut memory: CudaSlice<u8>) -> Result<Self, Error> {
        let (call, stream) = ("BackwardWorkspace::from_memory", memory.stream().clone());
        if memory.len() < HEAD {
            return Err(CudaError::Workspace { call, needed: HEAD, bytes: memory.len() }.into());
        }
        stream.memset_zeros(&mut memory.slice_mut(..HEAD)).named("cuMemsetD8Async")?;
        let base = memory.device_ptr_mut(&stream).0;
        Ok(Self { memory, base })
    }

    /// Gives the memory back.
    pub fn into_memory(self) -> CudaSlice<u8> {
        self.memory
    }

    /// The stream whose calls it serves.
    pub fn stream(&self) -> &Arc<CudaStream> {
        self.memory.stream()
    }

    /// Places of the parts for a call of these sizes.
    pub(super) fn addresses(&self, call: &'static str, dims: Dims) -> Result<Addresses, Error> {
        let parts = Parts::of(dims);
        if parts.end > self.memory.len() {
            return Err(CudaError::Workspace { call, needed: parts.end, bytes: self.memory.len() }.into());
        }
        let address = |offset: usize| self.base + offset as u64;
        Ok(Addresses {
            claims: self.base,
            segment: address(SEGMENT),
            dq_sums: address(parts.dq_sums),
            lse2: address(parts.lse2),
            delta: address(parts.delta),
        })
    }
}

impl Parts {
    fn of(dims: Dims) -> Self {
        // A multiple of 128 rows, thus 512 bytes of f32.
        let rows = dims.seq_q.div_ceil(128).saturating_mul(128);
        let rows = rows.saturating_mul(dims.heads_q).saturating_mul(dims.batch);
        let after = |start: usize, row: usize| start.saturating_add(rows.saturating_mul(row));
        let lse2 = after(HEAD, HEAD_DIM * size_of::<f32>());
        let delta = after(lse2, size_of::<f32>());
        Self { dq_sums: HEAD, lse2, delta, end: after(delta, size_of::<f32>()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(batch: usize, seq_q: usize) -> Shape {
        Shape::new(Dims { batch, heads_q: 6, heads_kv: 2, seq_q, seq_k: 5, head_dim: 128 }).unwrap()
    }

    #[test]
    fn the_bytes_are_those_that_are_stated() {
        assert_eq!(BackwardWorkspace::bytes(shape(2, 129)), 256 + 520 * 2 * 6 * 256);
        assert_eq!(BackwardWorkspace::bytes(shape(1, 1)), 256 + 520 * 6 * 128);
    }

    #[test]
    fn parts_are_aligned_and_follow_each_other() {
        let parts = Parts::of(shape(3, 700).dims());
        let rows = 3 * 6 * 768;
        assert_eq!(parts.lse2 - parts.dq_sums, rows * 128 * 4);
        assert_eq!((parts.delta - parts.lse2, parts.end - parts.delta), (rows * 4, rows * 4));
        assert!([parts.dq_sums, parts.lse2, parts.delta].iter().all(|start| start.is_multiple_of(256)));
    }
}
