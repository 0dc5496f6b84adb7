//! A rank's remote keys in a gather half as few strided tensors, which is how kernels of a device read them (rule P3).
use symm_buffer::Bytes;

use super::{PLACE_ALIGN, RankPlan};
use crate::Error;

/// Lengths that the remote segments of a rank may have: a kernel has four tensor maps, and one is for local keys.
pub const MOST_LENGTHS: usize = 3;

/// All remote segments of one length, as K and V tensors of the same extents and strides.
///
/// A *slab* is the rows of one segment for one sequence and one head group: [rows, heads of the group, d], dense. Row r of
/// head h begins `r * heads_per_group * d + h % heads_per_group * d` elements behind its slab's beginning, and head group
/// g of a slab is `g * group_stride` behind head group 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteKeys {
    /// Rows of each segment.
    pub rows: usize,
    /// Offset of slab 0 of K in a half.
    pub k: Bytes,
    /// Offset of slab 0 of V in a half.
    pub v: Bytes,
    /// KV heads of a group.
    pub heads_per_group: usize,
    /// Head groups.
    pub groups: usize,
    /// From one group to the next, elements.
    pub group_stride: usize,
    /// From one slab to the next, elements.
    pub slab_stride: usize,
    /// Slabs that the tensor spans; most of them are other groups or the other tensor.
    pub slabs: usize,
}

/// Where a segment lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabAt {
    /// Index into [`KeyPlaces::lengths`].
    pub length: usize,
    /// Slab of the first sequence; sequence b is in slab `slab + b`.
    pub slab: usize,
}

/// Where all remote keys of a rank lie in a half of its gather buffer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyPlaces {
    /// One for each length, the shortest first; at most [`MOST_LENGTHS`].
    pub lengths: Vec<RemoteKeys>,
    /// For each segment of the plan its place; none for the local one.
    pub segments: Vec<Option<SlabAt>>,
}

impl RankPlan {
    /// Where the remote keys lie, needed or not. It depends on sizes alone.
    ///
    /// # Errors
    /// [`Error::KeyPlaces`] when head groups are not equal, a segment is cut into row chunks, a head is so small that
    /// places are padded, or remote segments have more than [`MOST_LENGTHS`] lengths.
    pub fn key_places(&self) -> Result<KeyPlaces, Error> {
        let remote = self.segments.get(1..).unwrap_or_default();
        let mut lengths: Vec<usize> = remote.iter().map(|segment| segment.rows).collect();
        lengths.sort_unstable();
        lengths.dedup();
        self.check_key_places(&lengths)?;
        let mut places = KeyPlaces { lengths: Vec::new(), segments: vec![None; self.segments.len()] };
        let mut begin = 0;
        for rows in lengths {
            let mut keys = self.remote_keys(rows, begin);
            let of_segment = 2 * keys.groups * self.shape.dims().batch;
            let mut slab = 0;
            // Those of one length lie in gather order, which is that of the plan.
            for (segment, place) in self.segments.iter().zip(&mut places.segments).skip(1) {
                if segment.rows == rows {
                    *place = Some(SlabAt { length: places.lengths.len(), slab });
                    slab += of_segment;
                }
            }
            keys.slabs = slab - of_segment + self.shape.dims().batch;
            begin += slab * keys.slab_stride * self.dtype.size();
            places.lengths.push(keys);
        }
        Ok(places)
    }

    /// Segments of `rows` rows, of which the first begins at `begin` in the half: for each head group K and then V, each
    /// a slab per sequence.
    fn remote_keys(&self, rows: usize, begin: usize) -> RemoteKeys {
        let dims = self.shape.dims();
        let heads_per_group = self.choice.heads_per_piece;
        let slab_stride = rows * heads_per_group * dims.head_dim;
        RemoteKeys {
            rows,
            k: Bytes(begin),
            v: Bytes(begin + dims.batch * slab_stride * self.dtype.size()),
            heads_per_group,
            groups: dims.heads_kv / heads_per_group,
            group_stride: 2 * dims.batch * slab_stride,
            slab_stride,
            slabs: 0,
        }
    }

    fn check_key_places(&self, lengths: &[usize]) -> Result<(), Error> {
        let (dims, choice) = (self.shape.dims(), self.choice);
        let refuse = |name, value, rule| Err(Error::KeyPlaces { rank: self.rank, name, value, rule });
        if !dims.heads_kv.is_multiple_of(choice.heads_per_piece) {
            let rule = format!("a divisor of the {} KV heads", dims.heads_kv);
            return refuse("heads_per_piece", choice.heads_per_piece, rule);
        }
        if let Some(longest) = lengths.last().filter(|longest| **longest > choice.rows_per_piece) {
            let rule = format!("at least the {longest} rows of the longest segment");
            return refuse("rows_per_piece", choice.rows_per_piece, rule);
        }
        let head = dims.head_dim * self.dtype.size();
        if !lengths.is_empty() && !head.is_multiple_of(PLACE_ALIGN) {
            return refuse("bytes of a row of a head", head, format!("a multiple of {PLACE_ALIGN}"));
        }
        if lengths.len() > MOST_LENGTHS {
            let rule =
                format!("at most {MOST_LENGTHS}: give the other ranks fewer different numbers of rows");
            return refuse("number of lengths of remote segments", lengths.len(), rule);
        }
        Ok(())
    }
}
