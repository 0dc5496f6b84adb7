//! `fm3_mask_rank`: tiles by work or by its grade, largest first.
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
        let rate = |work: u32| if p.graded == 0 { work } else { grade(work) };
        ranked.sort_by_key(|tile| Reverse(rate(work[*tile as usize])));
        Array::at(p.ranked).write(first, &ranked);
    });
}

/// Half octaves: 0 for no work, then 1 + floor(2 log2(work)).
fn grade(work: u32) -> u32 {
    let is_upper_half = |octave| u64::from(work).pow(2) >= 1_u64 << (2 * octave + 1);
    work.checked_ilog2().map_or(0, |octave| 1 + 2 * octave + u32::from(is_upper_half(octave)))
}
