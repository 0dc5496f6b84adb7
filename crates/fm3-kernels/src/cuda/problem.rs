//! The sizes of a call, checked against each other.
use cudarc::driver::CudaStream;

use super::CudaError;
use super::attention::ForwardCall;
use super::check::{equal, narrow, same_type, wrong};
use super::keys::{KeyExtents, KeyTensor, Keys};
use super::prepared::PreparedMask;
use super::view::{DeviceView, Order, Tensor};
use crate::mask::KeySegments;
use crate::params::{ForwardParams, KEY_MAPS};
use crate::view::Extents;
use crate::{Dims, Error, Shape};

/// Elements of a head that the kernels take.
pub(super) const HEAD_DIM: usize = 128;

/// L2 that the K and V of a section of heads may fill, bytes: most of the 50 MB of a Hopper.
const SECTION_BYTES: usize = 32 << 20;

/// What both passes read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    pub(super) q: &'a DeviceView<'a>,
    pub(super) keys: Keys<'a>,
    pub(super) mask: &'a PreparedMask,
}

/// Two tensors of each map: K and V, or their gradients.
pub(super) type KeyTensors = [Option<[KeyTensor; 2]>; KEY_MAPS];

/// A checked call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Problem {
    call: &'static str,
    pub(super) dims: Dims,
    /// K and V.
    pub(super) maps: KeyTensors,
}

/// Sizes that the parameters of both passes have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) row_tiles: u32,
    pub(super) key_tiles: u32,
    pub(super) seq_q: u32,
    pub(super) heads_q: u32,
    pub(super) heads_kv: u32,
    pub(super) group: u32,
    pub(super) heads_per_mask: u32,
    pub(super) mask_heads: u32,
    pub(super) mask_batch_step: u32,
}

impl Problem {
    /// Compares Q, the keys and the mask.
    pub(super) fn check(call: &'static str, stream: &CudaStream, inputs: Inputs<'_>) -> Result<Self, Error> {
        let Extents { batch, seq, heads, head_dim } = inputs.q.tensor.extents;
        inputs.q.order.check(call, "q", stream)?;
        let maps = key_maps(call, stream, inputs.keys)?;
        let KeyExtents { heads_per_group, groups, .. } = maps[0].map_or_else(
            || Err(wrong(call, "maps", 0, format!("1 to {KEY_MAPS} tensors"))),
            |[k, _]| Ok(k.extents),
        )?;
        let heads_kv = heads_per_group.saturating_mul(groups);
        let dims =
            Dims { batch, heads_q: heads, heads_kv, seq_q: seq, seq_k: inputs.mask.dims().seq_k, head_dim };
        Shape::new(dims)?;
        equal(call, ["q", "head_dim"], head_dim, HEAD_DIM)?;
        let problem = Self { call, dims, maps };
        problem.check_keys(inputs)?;
        problem.check_mask(inputs.mask)?;
        Ok(problem)
    }

    /// That a tensor has the type and the extents of Q.
    pub(super) fn check_like_q(
        &self,
        name: &'static str,
        (tensor, order): (Tensor, &Order<'_>),
        (q, stream): (Tensor, &CudaStream),
    ) -> Result<(), Error> {
        let call = self.call;
        order.check(call, name, stream)?;
        same_type(call, name, tensor.dtype, q.dtype)?;
        let (got, q) = (tensor.extents, q.extents);
        equal(call, [name, "batch"], got.batch, q.batch)?;
        equal(call, [name, "seq"], got.seq, q.seq)?;
        equal(call, [name, "heads"], got.heads, q.heads)?;
        equal(call, [name, "head_dim"], got.head_dim, q.head_dim)
    }

    /// That LSE has a number for each row of each head.
    pub(super) fn check_lse(&self, len: usize) -> Result<(), Error> {
        let Dims { batch, heads_q, seq_q, .. } = self.dims;
        equal(self.call, ["lse", "elements"], len, batch.saturating_mul(heads_q).saturating_mul(seq_q))
    }

    /// The sizes as the kernels take them.
    pub(super) fn sizes(&self, mask: &PreparedMask) -> Result<Sizes, Error> {
        let (call, dims, of_mask) = (self.call, self.dims, mask.dims());
        let mask_heads = narrow(call, "mask heads", of_mask.heads)?;
        Ok(Sizes {
            row_tiles: narrow(call, "row tiles", mask.row_tiles())?,
            key_tiles: narrow(call, "key tiles", mask.key_tiles())?,
            seq_q: narrow(call, "seq_q", dims.seq_q)?,
            heads_q: narrow(call, "heads_q", dims.heads_q)?,
            heads_kv: narrow(call, "heads_kv", dims.heads_kv)?,
            group: narrow(call, "heads_q / heads_kv", self.group())?,
            heads_per_mask: narrow(call, "heads_q / mask heads", dims.heads_q / of_mask.heads)?,
            mask_heads,
            mask_batch_step: if of_mask.batch == 1 { 0 } else { mask_heads },
        })
    }

    /// Query heads of a KV head.
    pub(super) const fn group(&self) -> usize {
        self.dims.heads_q / self.dims.heads_kv
    }

    /// Writes all sizes.
    pub(super) fn describe(
        &self,
        params: &mut ForwardParams,
        forward: &ForwardCall<'_>,
    ) -> Result<(), Error> {
        let (call, dims, group) = (self.call, self.dims, self.group());
        let all_heads = dims.batch.saturating_mul(dims.heads_q);
        let sizes = self.sizes(forward.mask)?;
        params.tiles = narrow(call, "tiles", all_heads.saturating_mul(forward.mask.row_tiles()))?;
        params.row_tiles = sizes.row_tiles;
        params.key_tiles = sizes.key_tiles;
        params.seq_q = sizes.seq_q;
        params.heads_q = sizes.heads_q;
        params.group = sizes.group;
        params.heads_per_mask = sizes.heads_per_mask;
        params.mask_heads = sizes.mask_heads;
        params.mask_batch_step = sizes.mask_batch_step;
        let section = match forward.options.section_heads {
            Some(heads) if heads == 0 || !heads.is_multiple_of(group) => {
                let rule = format!("a multiple of heads_q / heads_kv = {group}");
                return Err(wrong(call, "section_heads", heads as u64, rule));
            }
            Some(heads) => heads,
            None => default_section(dims),
        };
        params.section_heads = narrow(call, "section_heads", section.min(all_heads))?;
        params.scale_log2 = log2_scale(call, forward.scale)?;
        Ok(())
    }

    /// Writes the maps of K and V.
    pub(super) fn key_maps(&self, params: &mut ForwardParams) -> Result<(), Error> {
        for (index, map) in self.maps.iter().enumerate() {
            let Some([k, v]) = map else { continue };
            params.k[index] = k.map(128)?;
            params.v[index] = v.map(128)?;
            params.heads_per_group[index] = narrow(self.call, "heads_per_group", k.extents.heads_per_group)?;
        }
        Ok(())
    }

    fn check_keys(&self, inputs: Inputs<'_>) -> Result<(), Error> {
        let (call, dims) = (self.call, self.dims);
        for [k, v] in self.maps.iter().flatten() {
            same_type(call, "k", k.dtype, inputs.q.tensor.dtype)?;
            same_type(call, "v", v.dtype, inputs.q.tensor.dtype)?;
            let (of_k, of_v) = (k.extents, v.extents);
            equal(call, ["k", "head_dim"], of_k.head_dim, HEAD_DIM)?;
            equal(call, ["k", "heads"], of_k.heads_per_group.saturating_mul(of_k.groups), dims.heads_kv)?;
            same_extents(call, "v", of_v, of_k)?;
        }
        match inputs.keys {
            Keys::Whole { k, .. } => {
                equal(call, ["k", "batch"], k.tensor.extents.batch, dims.batch)?;
                equal(call, ["k", "seq"], k.tensor.extents.seq, dims.seq_k)?;
                equal(call, ["mask", "segments"], inputs.mask.segments().rows().len(), 1)
            }
            Keys::Segments { table, .. } => {
                self.check_table(table.uses())?;
                same_segments(call, table.segments(), inputs.mask.segments())
            }
        }
    }

    /// That every map has the rows and the slabs that the table wants of it.
    fn check_table(&self, uses: &[Option<(usize, usize)>; KEY_MAPS]) -> Result<(), Error> {
        for (map, (rows, largest)) in
            self.maps.iter().zip(uses).filter_map(|(map, used)| Some((map, (*used)?)))
        {
            let Some([k, _]) = map else {
                return Err(wrong(self.call, "maps", 0, "as many as the key table names".to_owned()));
            };
            equal(self.call, ["k", "rows"], k.extents.rows, rows)?;
            let needed = largest.saturating_add(self.dims.batch);
            if k.extents.slabs < needed {
                let rule = format!("at least {needed}, the largest slab of the table and the batch");
                return Err(wrong(self.call, "slabs", k.extents.slabs as u64, rule));
            }
        }
        Ok(())
    }

    fn check_mask(&self, mask: &PreparedMask) -> Result<(), Error> {
        let (call, dims, mask) = (self.call, self.dims, mask.dims());
        equal(call, ["mask", "seq_q"], mask.seq_q, dims.seq_q)?;
        if mask.batch != 1 {
            equal(call, ["mask", "batch"], mask.batch, dims.batch)?;
        }
        if !dims.heads_q.is_multiple_of(mask.heads) {
            return Err(Error::MaskHeads { heads_mask: mask.heads, heads_q: dims.heads_q });
        }
        Ok(())
    }
}

/// Softmax scale * log2(e).
pub(super) fn log2_scale(call: &'static str, scale: f32) -> Result<f32, Error> {
    #[expect(clippy::cast_possible_truncation, reason = "the rounding to f32 is wanted")]
    let scale_log2 = (f64::from(scale) * std::f64::consts::LOG2_E) as f32;
    if scale_log2.is_finite() && scale_log2 > 0.0 {
        return Ok(scale_log2);
    }
    Err(CudaError::Scale { call, scale }.into())
}

/// That a tensor of segments has the extents of its keys.
pub(super) fn same_extents(
    call: &'static str,
    name: &'static str,
    got: KeyExtents,
    keys: KeyExtents,
) -> Result<(), Error> {
    equal(call, [name, "head_dim"], got.head_dim, keys.head_dim)?;
    equal(call, [name, "heads of a group"], got.heads_per_group, keys.heads_per_group)?;
    equal(call, [name, "groups"], got.groups, keys.groups)?;
    equal(call, [name, "rows"], got.rows, keys.rows)?;
    equal(call, [name, "slabs"], got.slabs, keys.slabs)
}

/// K and V of each map, ordered for the stream.
fn key_maps(call: &'static str, stream: &CudaStream, keys: Keys<'_>) -> Result<KeyTensors, Error> {
    let mut tensors = [None; KEY_MAPS];
    match keys {
        Keys::Whole { k, v } => {
            k.order.check(call, "k", stream)?;
            v.order.check(call, "v", stream)?;
            tensors[0] = Some([k.tensor.into(), v.tensor.into()]);
        }
        Keys::Segments { maps, .. } => {
            if maps.len() > KEY_MAPS {
                return Err(wrong(call, "maps", maps.len() as u64, format!("1 to {KEY_MAPS} tensors")));
            }
            for (tensors, map) in tensors.iter_mut().zip(maps) {
                map.k.order.check(call, "k", stream)?;
                map.v.order.check(call, "v", stream)?;
                *tensors = Some([map.k.tensor, map.v.tensor]);
            }
        }
    }
    Ok(tensors)
}

/// The mask's tables name tiles of the segments that it was prepared for.
fn same_segments(call: &'static str, table: &KeySegments, mask: &KeySegments) -> Result<(), Error> {
    equal(call, ["mask", "segments"], mask.rows().len(), table.rows().len())?;
    let mut pairs = mask.rows().iter().zip(table.rows());
    pairs.try_for_each(|(mask, table)| equal(call, ["mask", "rows of a segment"], *mask, *table))
}

/// Heads of one section: K and V of as many KV heads as the L2 holds, a power of two of them.
fn default_section(dims: Dims) -> usize {
    let kv_head = dims.seq_k.saturating_mul(HEAD_DIM * 2 * 2);
    let fitting = (SECTION_BYTES / kv_head).max(1);
    dims.heads_q / dims.heads_kv * (1 << fitting.ilog2())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_hold_whole_groups_and_a_power_of_two_of_them() {
        let dims = |seq_k, heads_q| Dims { batch: 2, heads_q, heads_kv: 4, seq_q: 1, seq_k, head_dim: 128 };
        // 32 MiB / (8192 * 512 bytes) = 8 KV heads; 6 of 10000 rows fit, 4 are taken; one is always taken.
        assert_eq!(default_section(dims(8192, 4)), 8);
        assert_eq!(default_section(dims(10000, 12)), 3 * 4);
        assert_eq!(default_section(dims(1 << 20, 28)), 7);
    }
}
