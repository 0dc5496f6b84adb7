//! Masks prepared for the kernels: tables in device memory, built there or on the host.
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};

use super::arena::{Arena, ListsAt};
use super::driver::Named;
use super::kernels::Kernels;
use super::prepare::{self, Bounds};
use crate::Error;
use crate::mask::{Columns, FlashMask, KeySegments, MaskDims, MaskTables, RowsSeen, TileLists};

/// A mask over keys in segments, in device memory. It serves any number of calls, heads and layers.
///
/// A mask of batch 1 serves every sequence of a batch. The tables depend on the mask and on the lengths of the
/// segments alone.
#[derive(Debug)]
pub struct PreparedMask {
    dims: MaskDims,
    segments: KeySegments,
    arena: Arena,
    words: CudaSlice<u32>,
    /// None when only the device knows.
    rows_seen: Option<RowsSeen>,
}

/// What the numbers of a mask in device memory mean; see [`mask`](crate::mask) for the forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskForm {
    /// Sizes of the mask.
    pub dims: MaskDims,
    /// Bounds per key column.
    pub columns: Columns,
    /// Whether rows above the diagonal are masked too.
    pub causal: bool,
}

impl PreparedMask {
    /// Prepares `mask` on the device; above 2^20 rows or keys, on the host.
    ///
    /// Enqueues and returns; the bounds are copied before that.
    ///
    /// # Errors
    /// [`Error::Mismatch`] when the segments do not have the mask's columns; [`Error::MaskMemory`];
    /// [`CudaError`](super::CudaError) when the device has no memory.
    pub fn new(
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        mask: &FlashMask,
        segments: &KeySegments,
    ) -> Result<Self, Error> {
        if !prepare::fits(mask.dims(), segments) {
            return Self::on_host(stream, mask, segments);
        }
        let form = MaskForm { dims: mask.dims(), columns: mask.columns(), causal: mask.is_causal() };
        let bounds = stream.clone_htod(mask.bounds()).named("cuMemcpyHtoDAsync")?;
        let prepared = Self::from_device(kernels, stream, form, &bounds, segments)?;
        Ok(Self { rows_seen: Some(RowsSeen::of(mask)), ..prepared })
    }

    /// Prepares a mask whose bounds [b, h_mask, s_k, C] are in device memory already, without a synchronisation.
    ///
    /// Negative bounds act as 0.
    ///
    /// # Errors
    /// [`Error::MaskForm`], [`Error::WrongLength`], and as [`new`](Self::new);
    /// [`CudaError::Value`](super::CudaError::Value) above 2^20 rows or keys.
    pub fn from_device(
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        form: MaskForm,
        bounds: &impl DevicePtr<i32>,
        segments: &KeySegments,
    ) -> Result<Self, Error> {
        let expected = prepare::check_form(&form)?;
        if bounds.len() != expected {
            let call = "PreparedMask::from_device";
            return Err(Error::WrongLength { call, expected, got: bounds.len() });
        }
        let (address, _record) = bounds.device_ptr(stream);
        let bounds = Bounds { address, columns: form.columns.number(), causal: form.causal };
        Self::build(kernels, stream, form.dims, bounds, segments)
    }

    /// No mask, or plain causality (bottom-right): nothing is read.
    ///
    /// # Errors
    /// As [`from_device`](Self::from_device).
    pub fn plain(
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        lengths: Lengths,
        segments: &KeySegments,
    ) -> Result<Self, Error> {
        let dims = MaskDims { batch: 1, heads: 1, seq_q: lengths.seq_q, seq_k: segments.seq_k() };
        let bounds = Bounds { address: 0, columns: 0, causal: lengths.causal };
        let prepared = Self::build(kernels, stream, dims, bounds, segments)?;
        Ok(Self { rows_seen: Some(RowsSeen::of_plain(dims, lengths.causal)), ..prepared })
    }

    /// Prepares `mask` on the host, and copies the tables.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn on_host(
        stream: &Arc<CudaStream>,
        mask: &FlashMask,
        segments: &KeySegments,
    ) -> Result<Self, Error> {
        let prepared = Self::upload(stream, &MaskTables::build(mask, segments)?)?;
        Ok(Self { rows_seen: Some(RowsSeen::of(mask)), ..prepared })
    }

    /// Copies tables that the host has built.
    ///
    /// # Errors
    /// [`CudaError`](super::CudaError) when the device has no memory.
    pub fn upload(stream: &Arc<CudaStream>, tables: &MaskTables) -> Result<Self, Error> {
        let mut prepared = Self::allocate(stream, tables.dims, &tables.segments)?;
        let arena = prepared.arena.clone();
        prepared.copy(stream, &arena.bands, bytemuck::cast_slice(&tables.bands))?;
        for (at, lists) in [(&arena.by_rows, &tables.by_rows), (&arena.by_keys, &tables.by_keys)] {
            prepared.copy(stream, &at.counts, &lists.counts)?;
            prepared.copy(stream, &at.entries, &lists.entries)?;
            prepared.copy(stream, &at.work, &lists.work)?;
            prepared.copy(stream, &at.ranked, &lists.ranked)?;
        }
        Ok(prepared)
    }

    /// The tables, copied back: synchronises.
    ///
    /// # Errors
    /// [`CudaError::Driver`](super::CudaError::Driver), also for what went wrong on the device before.
    pub fn download(&self, stream: &Arc<CudaStream>) -> Result<MaskTables, Error> {
        let words = stream.clone_dtoh(&self.words).named("cuMemcpyDtoHAsync")?;
        stream.synchronize().named("cuStreamSynchronize")?;
        let (row_tiles, key_tiles) = (self.row_tiles(), self.key_tiles());
        let table = |range: &Range<usize>| words[range.clone()].to_vec();
        let side = |at: &ListsAt, lists, others| TileLists {
            lists,
            others,
            counts: table(&at.counts),
            entries: table(&at.entries),
            work: table(&at.work),
            ranked: table(&at.ranked),
        };
        Ok(MaskTables {
            dims: self.dims,
            segments: self.segments.clone(),
            bands: bytemuck::cast_slice(&words[self.arena.bands.clone()]).to_vec(),
            by_rows: side(&self.arena.by_rows, row_tiles, key_tiles),
            by_keys: side(&self.arena.by_keys, key_tiles, row_tiles),
        })
    }

    /// Sizes of the mask.
    pub const fn dims(&self) -> MaskDims {
        self.dims
    }

    /// The keys that it was prepared for.
    pub const fn segments(&self) -> &KeySegments {
        &self.segments
    }

    /// Bytes of device memory.
    pub fn bytes(&self) -> usize {
        self.words.num_bytes()
    }

    pub(super) const fn row_tiles(&self) -> usize {
        self.dims.seq_q.div_ceil(128)
    }

    pub(super) const fn key_tiles(&self) -> usize {
        self.segments.key_tiles()
    }

    /// Rows that see the columns of a sample; none for a mask whose numbers only the device has seen.
    pub(super) const fn rows_seen(&self) -> Option<&RowsSeen> {
        self.rows_seen.as_ref()
    }

    pub(super) const fn arena(&self) -> &Arena {
        &self.arena
    }

    /// Its address, for a use on `stream` that is enqueued before the record is dropped.
    pub(super) fn address<'a>(&'a self, stream: &'a CudaStream) -> (u64, SyncOnDrop<'a>) {
        self.words.device_ptr(stream)
    }

    fn build(
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        dims: MaskDims,
        bounds: Bounds,
        segments: &KeySegments,
    ) -> Result<Self, Error> {
        prepare::check(dims, segments)?;
        let mut prepared = Self::allocate(stream, dims, segments)?;
        let (base, record) = prepared.words.device_ptr_mut(stream);
        prepare::Target { dims, arena: &prepared.arena, base }.enqueue(kernels, stream, bounds)?;
        drop(record);
        Ok(prepared)
    }

    /// Memory with the tables that depend on segments alone.
    fn allocate(stream: &Arc<CudaStream>, dims: MaskDims, segments: &KeySegments) -> Result<Self, Error> {
        let call = "PreparedMask";
        if segments.seq_k() != dims.seq_k {
            let (got, expected) = (segments.seq_k(), dims.seq_k);
            return Err(Error::Mismatch { call, tensor: "segments", axis: "rows", got, expected });
        }
        let arena = Arena::new(call, dims, segments)?;
        let words = stream.alloc_zeros(arena.words).named("cuMemAllocAsync")?;
        let mut prepared = Self { dims, segments: segments.clone(), arena, words, rows_seen: None };
        let (places, columns) = (prepared.arena.places.clone(), prepared.arena.tile_columns.clone());
        prepared.copy(stream, &places, segments.places())?;
        prepared.copy(stream, &columns, segments.tile_columns().as_flattened())?;
        Ok(prepared)
    }

    fn copy(&mut self, stream: &Arc<CudaStream>, to: &Range<usize>, from: &[u32]) -> Result<(), Error> {
        stream.memcpy_htod(from, &mut self.words.slice_mut(to.clone())).named("cuMemcpyHtoDAsync")
    }
}

/// A problem without a mask of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Query rows.
    pub seq_q: usize,
    /// Whether row i sees column j only if j <= i + sk - sq.
    pub causal: bool,
}
