//! The kernels that prepare a mask, enqueued in their order.
#![expect(unsafe_code, reason = "kernels are launched")]
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaStream, DevicePtrMut};

use super::arena::{Arena, ListsAt};
use super::check::{narrow, within};
use super::driver::Named;
use super::kernels::{Kernels, MAX_RANKED};
use super::launch::{Grid, launch};
use super::prepared::MaskForm;
use crate::Error;
use crate::mask::{KeySegments, MaskDims};
use crate::params::{MaskListsParams, MaskRankParams, MaskTilesParams};

const CALL: &str = "PreparedMask";

/// The numbers of a mask in device memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// 0 when there are none.
    pub(super) address: u64,
    /// Bounds per key column, or 0.
    pub(super) columns: u32,
    pub(super) causal: bool,
}

/// Whether the kernels can rank the tiles of both sides.
pub(super) fn fits(dims: MaskDims, segments: &KeySegments) -> bool {
    dims.seq_q.div_ceil(128).max(segments.key_tiles()) <= MAX_RANKED as usize
}

/// Sizes that the kernels take.
pub(super) fn check(dims: MaskDims, segments: &KeySegments) -> Result<(), Error> {
    let call = CALL;
    dims.check(call)?;
    // Limits of a grid along y and z.
    within(call, "mask heads", dims.heads, 65535)?;
    within(call, "mask batch", dims.batch, 65535)?;
    within(call, "row tiles", dims.seq_q.div_ceil(128), MAX_RANKED)?;
    within(call, "key tiles", segments.key_tiles(), MAX_RANKED).map(|_| ())
}

/// Numbers that a mask of this form has.
pub(super) fn check_form(form: &MaskForm) -> Result<usize, Error> {
    form.dims.check("PreparedMask::from_device")?;
    crate::mask::check_form(form.columns, form.causal)?;
    let MaskDims { batch, heads, seq_k, .. } = form.dims;
    let factors = [heads, seq_k, form.columns.count()];
    Ok(factors.into_iter().fold(batch, usize::saturating_mul))
}

/// Where the tables go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) dims: MaskDims,
    pub(super) arena: &'a Arena,
    /// Address of the arena.
    pub(super) base: u64,
}

/// Numbers that all launches share.
struct Sizes {
    seq_q: u32,
    row_tiles: u32,
    key_tiles: u32,
    /// mh and mb.
    heads: [u32; 2],
}

impl Target<'_> {
    /// Enqueues all kernels; tables of the segments are there already.
    pub(super) fn enqueue(
        &self,
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        bounds: Bounds,
    ) -> Result<(), Error> {
        let sizes = self.sizes()?;
        let count = self.arena.places.len() * self.dims.heads * self.dims.batch;
        let mut summaries = stream.alloc_zeros::<i32>(8 * count).named("cuMemAllocAsync")?;
        let (scratch, _record) = summaries.device_ptr_mut(stream);
        let params = MaskTilesParams {
            bounds: bounds.address,
            tile_columns: self.address(&self.arena.tile_columns),
            bands: self.address(&self.arena.bands),
            summaries: scratch,
            seq_q: sizes.seq_q,
            seq_k: narrow(CALL, "seq_k", self.dims.seq_k)?,
            columns: bounds.columns,
            causal: u32::from(bounds.causal),
            key_tiles: sizes.key_tiles,
            reserved: 0,
        };
        let grid = Grid { blocks: [sizes.key_tiles, sizes.heads[0], sizes.heads[1]], threads: 128, smem: 0 };
        // SAFETY: the bounds are as many as `check_form` says, or none; tables and scratch have the arena's sizes, are
        // written on this stream alone, and freed in its order.
        unsafe { launch("fm3_mask_tiles", &kernels.mask.tiles, stream, grid, &params)? };
        for (at, transposed) in [(&self.arena.by_rows, 0), (&self.arena.by_keys, 1)] {
            self.enqueue_lists(kernels, stream, &sizes, (at, transposed, scratch))?;
        }
        Ok(())
    }

    /// The lists of one side, and their order.
    fn enqueue_lists(
        &self,
        kernels: &Kernels,
        stream: &Arc<CudaStream>,
        sizes: &Sizes,
        (at, transposed, summaries): (&ListsAt, u32, u64),
    ) -> Result<(), Error> {
        let lists = if transposed == 1 { sizes.key_tiles } else { sizes.row_tiles };
        let params = MaskListsParams {
            bands: self.address(&self.arena.bands),
            summaries,
            counts: self.address(&at.counts),
            entries: self.address(&at.entries),
            work: self.address(&at.work),
            seq_q: sizes.seq_q,
            row_tiles: sizes.row_tiles,
            key_tiles: sizes.key_tiles,
            transposed,
        };
        let blocks = [lists.div_ceil(4), sizes.heads[0], sizes.heads[1]];
        let grid = Grid { blocks, threads: 128, smem: 0 };
        // SAFETY: bands and summaries come from the kernel before it on the stream; the tables have the arena's sizes
        // and nobody else uses them yet.
        unsafe { launch("fm3_mask_lists", &kernels.mask.lists, stream, grid, &params)? };
        let padded = lists.next_power_of_two();
        let rank = MaskRankParams {
            work: params.work,
            ranked: self.address(&at.ranked),
            lists,
            padded,
            graded: transposed,
            reserved: 0,
        };
        let grid = Grid { blocks: [1, sizes.heads[0], sizes.heads[1]], threads: 1024, smem: 8 * padded };
        // SAFETY: the work comes from the kernel before it; `check` saw that the padded numbers fit the shared memory
        // that was allowed at load.
        unsafe { launch("fm3_mask_rank", &kernels.mask.rank, stream, grid, &rank) }
    }

    fn sizes(&self) -> Result<Sizes, Error> {
        Ok(Sizes {
            seq_q: narrow(CALL, "seq_q", self.dims.seq_q)?,
            row_tiles: narrow(CALL, "row tiles", self.dims.seq_q.div_ceil(128))?,
            key_tiles: narrow(CALL, "key tiles", self.arena.places.len())?,
            heads: [
                narrow(CALL, "mask heads", self.dims.heads)?,
                narrow(CALL, "mask batch", self.dims.batch)?,
            ],
        })
    }

    fn address(&self, table: &Range<usize>) -> u64 {
        self.base + 4 * table.start as u64
    }
}
