//! From the global mask to one rank's mask (rules P2, P3).
use fm3_kernels::FlashMask;
use fm3_kernels::mask::{Bands, Columns, MaskDims, MaskHead};
use symm_buffer::Pe;

use crate::{Error, Sharding};

/// The mask of `me`'s queries: rows are its local rows, columns are all keys in gather order: first its own, then those
/// of me-1, me-2, ..., each rank's keys in that rank's local order.
///
/// The result is [b, h_mask, S, 4], not causal: each bound x becomes the number of local rows before global row x, and
/// causality becomes the second band. It is exact for every mask form because local rows increase with global rows.
/// Costs one pass over the bounds.
///
/// # Errors
/// [`Error::SizeMismatch`] unless the mask has as many rows and columns as the sharding; [`Error::NoSuchRank`].
pub fn fold_mask(mask: &FlashMask, sharding: &Sharding, me: Pe) -> Result<FlashMask, Error> {
    check_lengths(mask, sharding)?;
    sharding.check_rank(me)?;
    let MaskDims { batch, heads, seq_k, .. } = mask.dims();
    let fold = |row: usize| bound(sharding.rows_before(me, row));
    let mut bounds = Vec::with_capacity(batch * heads * seq_k * 4);
    for at in (0..batch).flat_map(|batch| (0..heads).map(move |head| MaskHead { batch, head })) {
        for columns in sharding.gather_order(me).flat_map(|owner| sharding.rows(owner)) {
            for Bands { a, b } in mask.bands_in(at, columns.clone()) {
                bounds.extend([fold(a.start), fold(a.end), fold(b.start), fold(b.end)]);
            }
        }
    }
    let dims = MaskDims { batch, heads, seq_q: sharding.len(me), seq_k };
    Ok(FlashMask::new(dims, Columns::Four, false, bounds)?)
}

/// The mask must be square and as long as the sharding.
pub(crate) fn check_lengths(mask: &FlashMask, sharding: &Sharding) -> Result<(), Error> {
    let dims = mask.dims();
    for (name, left) in [("seq_q", dims.seq_q), ("seq_k", dims.seq_k)] {
        let right = sharding.seq_len();
        if left != right {
            return Err(Error::SizeMismatch { name, left, left_in: "mask", right, right_in: "sharding" });
        }
    }
    Ok(())
}

/// Local rows number at most those of the mask, which fit i32.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "mask lengths are checked to fit i32"
)]
const fn bound(rows: usize) -> i32 {
    rows as i32
}

#[cfg(test)]
mod tests {
    use symm_buffer::World;

    use super::*;

    #[test]
    fn causal_bounds_of_a_contiguous_rank() {
        let dims = MaskDims { batch: 1, heads: 1, seq_q: 6, seq_k: 6 };
        let mask = FlashMask::causal(dims).unwrap();
        let sharding = Sharding::contiguous(6, World::new(2).unwrap()).unwrap();
        let folded = fold_mask(&mask, &sharding, Pe(1)).unwrap();
        assert_eq!((folded.dims().seq_q, folded.dims().seq_k, folded.is_causal()), (3, 6, false));
        // Columns 3, 4, 5 (mine), then 0, 1, 2. LTS lies past the end, so the first band is empty.
        let uts_ute: Vec<&[i32]> = folded.bounds().chunks(4).map(|bounds| &bounds[2..]).collect();
        assert_eq!(uts_ute, [[0, 0], [0, 1], [0, 2], [0, 0], [0, 0], [0, 0]]);
        assert!(folded.bounds().chunks(4).all(|bounds| bounds[0] >= bounds[1]));
    }

    #[test]
    fn other_lengths_and_ranks_are_refused() {
        let dims = MaskDims { batch: 1, heads: 1, seq_q: 6, seq_k: 7 };
        let mask = FlashMask::causal(dims).unwrap();
        let sharding = Sharding::contiguous(6, World::new(2).unwrap()).unwrap();
        let refused = fold_mask(&mask, &sharding, Pe(1));
        assert!(matches!(refused, Err(Error::SizeMismatch { name: "seq_k", left: 7, right: 6, .. })));
        let mask = FlashMask::causal(MaskDims { seq_k: 6, ..dims }).unwrap();
        assert!(matches!(
            fold_mask(&mask, &sharding, Pe(2)),
            Err(Error::NoSuchRank { rank: Pe(2), world: 2 })
        ));
    }
}
