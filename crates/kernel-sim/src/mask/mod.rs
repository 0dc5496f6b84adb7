//! The kernels that prepare a mask: `kernels/src/mask.cu`.
mod bands;
mod lists;
mod rank;
mod tiles;

pub(crate) use bands::ColumnBands;
pub(crate) use lists::lists;
pub(crate) use rank::rank;
pub(crate) use tiles::tiles;

/// Index of a block's mask among all: heads are along y, sequences along z.
fn mask_of([_, head, batch]: [u32; 3], heads: u32) -> usize {
    batch as usize * heads as usize + head as usize
}
