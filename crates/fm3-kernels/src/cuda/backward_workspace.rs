//! Device memory of backward passes: sums of dQ in f32, two numbers for each query row, a counter of tiles.
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut};

use super::CudaError;
use super::backward_expired::{BackwardExpired, expired};
use super::driver::Named;
use super::problem::HEAD_DIM;
use crate::mask::{KeySegments, MaskDims};
use crate::params::WaitReport;
use crate::{Dims, Error, Shape};

/// Bytes before the sums: the counter of tiles, a report of waits, and a table of one segment on a cache line of its own.
const HEAD: usize = 256;

/// Where the report is.
const REPORT: usize = 64;

/// Where the table is.
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

/// What passes in parts need beside the rest, as offsets; all but `order` are zeroed when a pass begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PassParts {
    /// One word: whether dQ is incomplete.
    poisoned: usize,
    /// Two words for each 64 rows of each query head.
    turns: usize,
    /// A word for each key tile of each mask head.
    positions: usize,
    /// Likewise.
    order: usize,
    end: usize,
}

/// Sizes that a pass in parts depends on beside those of the queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lists {
    /// Mask heads through the mask's batch.
    pub(super) masks: usize,
    pub(super) key_tiles: usize,
}

/// What a call with split KV heads needs beside the rest, as offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SplitParts {
    dk_sums: usize,
    dv_sums: usize,
    end: usize,
}

/// Addresses for one pass in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PassAddresses {
    pub(super) poisoned: u64,
    pub(super) turns: u64,
    pub(super) positions: u64,
    pub(super) order: u64,
    pub(super) report: u64,
}

impl BackwardWorkspace {
    /// Bytes that calls of `shape` need: 256 + 520 * b * hq * (sq rounded up to 128). Keys do not count.
    pub fn bytes(shape: Shape) -> usize {
        Parts::of(shape.dims()).end
    }

    /// Bytes that a pass in parts, or a deterministic call, needs: beside those of [`bytes`](Self::bytes) 256, 8 for each
    /// 64 rows of each query head, and 8 for each key tile of each mask head.
    pub fn bytes_in_parts(shape: Shape, mask: MaskDims, segments: &KeySegments) -> usize {
        let lists = Lists { masks: mask.batch.saturating_mul(mask.heads), key_tiles: segments.key_tiles() };
        PassParts::of(shape.dims(), lists).end
    }

    /// Bytes that calls of `shape` need which split KV heads into so many parts
    /// ([`BackwardOptions::head_parts`](super::BackwardOptions::head_parts)), or want f32 dK and dV (1 part): beside those
    /// of [`bytes`](Self::bytes) 1024 * parts * b * hkv * (sk rounded up to 128).
    pub fn bytes_split(shape: Shape, head_parts: usize) -> usize {
        SplitParts::of(shape.dims(), head_parts).end
    }

    /// Allocates [`bytes_split`](Self::bytes_split) of the largest that it shall serve.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn split(stream: &Arc<CudaStream>, shape: Shape, head_parts: usize) -> Result<Self, Error> {
        let bytes = Self::bytes_split(shape, head_parts);
        Self::from_memory(stream.alloc_zeros::<u8>(bytes).named("cuMemAllocAsync")?)
    }

    /// Allocates [`bytes`](Self::bytes) of `shape`, the largest that it shall serve.
    ///
    /// # Errors
    /// [`CudaError::Driver`] when the device has not that much memory.
    pub fn new(stream: &Arc<CudaStream>, shape: Shape) -> Result<Self, Error> {
        let memory = stream.alloc_zeros::<u8>(Self::bytes(shape)).named("cuMemAllocAsync")?;
        Self::from_memory(memory)
    }

    /// Allocates [`bytes_in_parts`](Self::bytes_in_parts) of the largest that it shall serve.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn in_parts(
        stream: &Arc<CudaStream>,
        shape: Shape,
        mask: MaskDims,
        segments: &KeySegments,
    ) -> Result<Self, Error> {
        let bytes = Self::bytes_in_parts(shape, mask, segments);
        Self::from_memory(stream.alloc_zeros::<u8>(bytes).named("cuMemAllocAsync")?)
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

    /// Waits for the stream, then takes the report of the first wait that expired since the last report was taken.
    ///
    /// From the moment a wait for keys expires, dK and dV of the tiles that their launch has not begun are NaN, dQ of
    /// the whole pass is, and so is all of later launches that have a deadline, until the report is taken.
    ///
    /// # Errors
    /// [`CudaError::Driver`], also for what went wrong on the device before.
    pub fn wait_report(&mut self) -> Result<Option<BackwardExpired>, Error> {
        let mut bytes = [0_u8; size_of::<WaitReport>()];
        let stream = self.memory.stream().clone();
        let mut place = self.memory.slice_mut(REPORT..REPORT + bytes.len());
        stream.memcpy_dtoh(&place, &mut bytes).named("cuMemcpyDtoHAsync")?;
        stream.synchronize().named("cuStreamSynchronize")?;
        let report: WaitReport = bytemuck::pod_read_unaligned(&bytes);
        if report.state == 0 {
            return Ok(None);
        }
        stream.memset_zeros(&mut place).named("cuMemsetD8Async")?;
        Ok(Some(expired(report)))
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

impl BackwardWorkspace {
    /// Places of dK and dV of all parts.
    pub(super) fn split_addresses(
        &self,
        call: &'static str,
        dims: Dims,
        head_parts: usize,
    ) -> Result<[u64; 2], Error> {
        let parts = SplitParts::of(dims, head_parts);
        if parts.end > self.memory.len() {
            return Err(CudaError::Workspace { call, needed: parts.end, bytes: self.memory.len() }.into());
        }
        Ok([parts.dk_sums, parts.dv_sums].map(|offset| self.base + offset as u64))
    }

    /// Places for a pass in parts.
    pub(super) fn pass_addresses(
        &self,
        call: &'static str,
        dims: Dims,
        lists: Lists,
    ) -> Result<PassAddresses, Error> {
        let parts = PassParts::of(dims, lists);
        if parts.end > self.memory.len() {
            return Err(CudaError::Workspace { call, needed: parts.end, bytes: self.memory.len() }.into());
        }
        let address = |offset: usize| self.base + offset as u64;
        Ok(PassAddresses {
            poisoned: address(parts.poisoned),
            turns: address(parts.turns),
            positions: address(parts.positions),
            order: address(parts.order),
            report: address(REPORT),
        })
    }

    /// Zeroes what a pass counts in, in stream order; it must fit.
    pub(super) fn clear_pass(&mut self, dims: Dims, lists: Lists) -> Result<(), Error> {
        let PassParts { poisoned, order, .. } = PassParts::of(dims, lists);
        let stream = self.memory.stream().clone();
        stream.memset_zeros(&mut self.memory.slice_mut(poisoned..order)).named("cuMemsetD8Async")
    }
}

impl PassParts {
    fn of(dims: Dims, lists: Lists) -> Self {
        let blocks = dims.seq_q.div_ceil(128).saturating_mul(2);
        let blocks = blocks.saturating_mul(dims.heads_q).saturating_mul(dims.batch);
        let tiles = lists.masks.saturating_mul(lists.key_tiles);
        let after = |start: usize, words: usize| {
            start.saturating_add(words.saturating_mul(4)).div_ceil(256).saturating_mul(256)
        };
        let poisoned = after(Parts::of(dims).end, 0);
        let turns = after(poisoned, 1);
        let positions = after(turns, blocks.saturating_mul(2));
        let order = after(positions, tiles);
        Self { poisoned, turns, positions, order, end: after(order, tiles) }
    }
}

impl SplitParts {
    fn of(dims: Dims, head_parts: usize) -> Self {
        // A multiple of 128 rows, thus 512 bytes of f32.
        let rows = dims.seq_k.div_ceil(128).saturating_mul(128);
        let rows = rows.saturating_mul(dims.heads_kv).saturating_mul(dims.batch).saturating_mul(head_parts);
        let bytes = rows.saturating_mul(HEAD_DIM * size_of::<f32>());
        let dk_sums = Parts::of(dims).end;
        let dv_sums = dk_sums.saturating_add(bytes);
        Self { dk_sums, dv_sums, end: dv_sums.saturating_add(bytes) }
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
    fn sums_of_parts_of_heads_are_those_that_are_stated() {
        let (shape, dims) = (shape(2, 129), shape(2, 129).dims());
        assert_eq!(
            BackwardWorkspace::bytes_split(shape, 3),
            BackwardWorkspace::bytes(shape) + 1024 * 3 * 2 * 2 * 128
        );
        let parts = SplitParts::of(dims, 3);
        assert_eq!(parts.dk_sums, BackwardWorkspace::bytes(shape));
        assert_eq!(parts.dv_sums - parts.dk_sums, parts.end - parts.dv_sums);
    }

    #[test]
    fn a_pass_in_parts_counts_in_linear_memory() {
        let (shape, lists) = (shape(2, 1000), Lists { masks: 3, key_tiles: 70 });
        let parts = PassParts::of(shape.dims(), lists);
        assert_eq!(parts.poisoned, BackwardWorkspace::bytes(shape));
        assert_eq!(parts.turns - parts.poisoned, 256);
        assert!(
            parts.positions - parts.turns >= 2 * 2 * 6 * 16 * 4
                && parts.order - parts.positions >= 3 * 70 * 4
        );
        assert!(parts.end - parts.order >= 3 * 70 * 4 && parts.end < parts.poisoned + 8192);
        let (mask, segments) =
            (MaskDims { batch: 1, heads: 3, seq_q: 1000, seq_k: 8960 }, KeySegments::whole(8960).unwrap());
        assert_eq!(BackwardWorkspace::bytes_in_parts(shape, mask, &segments), parts.end);
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
