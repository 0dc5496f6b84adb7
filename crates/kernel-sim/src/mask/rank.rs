//! `fm3_mask_rank`: tiles by work, largest first.
use std::cmp::Reverse;

use fm3_kernels::params::MaskRankParams;

use super::mask_of;
use crate::blocks::Shape;
use crate::memory::Array;

/// One block per mask head and sequence, with 8 bytes of shared memory for each tile, up to a power of two.
pub(crate) fn rank(p: &MaskRankParams, shape: Shape) {
    assert!(
        p.padded.is_power_of_two() && p.lists <= p.padded && 8 * p.padded <= shape.shared_memory,
        "{} lists do not fit {} bytes of shared memory",
        p.lists,
        shape.shared_memory
    );
    shape.each(|block| {
        let first = mask_of(block, shape.grid[1]) * p.lists as usize;
        let mut work = vec![0_u32; p.lists as usize];
        Array::at(p.work).read(first, &mut work);
        let mut ranked: Vec<u32> = (0..p.lists).collect();
        ranked.sort_by_key(|tile| Reverse(work[*tile as usize]));
        Array::at(p.ranked).write(first, &ranked);
    });
}
