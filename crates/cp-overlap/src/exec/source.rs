//! The caller's local K and V as sources of puts: read in place, never copied.
use fm3_kernels::view::Strides;
use symm_buffer::{Bytes, Copy2d, Corner, RegionId};

use crate::plan::{KvBlock, Push};

/// One local tensor [b, rows, heads, d] with any strides.
#[derive(Clone, Copy, Debug)]
pub struct SourceTensor<S> {
    /// The memory, beginning with the tensor's first element.
    pub memory: S,
    /// Strides in elements.
    pub strides: Strides,
}

/// Shape of a row of one head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadRow {
    pub(crate) elems: usize,
    pub(crate) elem_size: Bytes,
}

/// The 2-D copies that move the needed rows of one tensor of a push to `to_offset` in the receiver's `to` region.
pub(crate) fn push_copies(
    push: &Push,
    from: (RegionId, Strides),
    to: (RegionId, usize),
    head_row: HeadRow,
) -> Vec<Copy2d> {
    let block = &push.block;
    let size = head_row.elem_size.0;
    let head_bytes = head_row.elems * size;
    let row_bytes = head_bytes * block.heads.len();
    let (region, strides) = from;
    // Adjacent heads travel as one wide row; otherwise each head is a pitched copy of its own.
    let adjacent = strides.heads == head_row.elems || block.heads.len() == 1;
    let (lanes, width) = if adjacent { (1, row_bytes) } else { (block.heads.len(), head_bytes) };
    let mut copies = Vec::new();
    for (batch, run) in runs(block) {
        for lane in 0..lanes {
            let head = block.heads.start + lane;
            let src = batch * strides.batch + run.start * strides.seq + head * strides.heads;
            let row = batch * block.rows.len() + run.start - block.rows.start;
            copies.push(Copy2d {
                src: Corner { region, offset: src * size, pitch: strides.seq * size },
                dst: Corner { region: to.0, offset: to.1 + row * row_bytes + lane * width, pitch: row_bytes },
                width,
                rows: run.len(),
            });
        }
    }
    copies
}

/// The copies that move the written rows of one dense f32 tensor [b, rows, heads, d].
pub(crate) fn partial_copies(
    block: &KvBlock,
    from: (RegionId, usize),
    to: (RegionId, usize),
    head_dim: usize,
) -> Vec<Copy2d> {
    let row_bytes = head_dim * block.heads.len() * size_of::<f32>();
    let copy = |(batch, run): (usize, std::ops::Range<usize>)| {
        let skip = (batch * block.rows.len() + run.start - block.rows.start) * row_bytes;
        let corner =
            |(region, offset): (RegionId, usize)| Corner { region, offset: offset + skip, pitch: row_bytes };
        Copy2d { src: corner(from), dst: corner(to), width: row_bytes, rows: run.len() }
    };
    runs(block).map(copy).collect()
}

fn runs(block: &KvBlock) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    let batches = block.needed.iter().enumerate();
    batches.flat_map(|(batch, runs)| runs.iter().map(move |run| (batch, run.clone())))
}
