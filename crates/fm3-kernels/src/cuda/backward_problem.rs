//! The sizes of a backward call, checked against each other and written into parameters.
use cudarc::driver::CudaStream;

use super::backward::BackwardInputs;
use super::backward_views::KeyGrads;
use super::check::{narrow, same_type, within, wrong};
use super::keys::{KeyTensor, Keys};
use super::problem::{HEAD_DIM, Inputs, KeyTensors, Problem, log2_scale, same_extents};
use super::view::{DeviceViewMut, Order, Tensor};
use crate::params::{BackwardParams, KEY_MAPS};
use crate::{Dims, Error};

/// L2 that the query side of a section of heads may fill, bytes: most of the 50 MB of a Hopper.
const SECTION_BYTES: usize = 40 << 20;

/// Density below which all heads share one section: long key tiles first of all then matter more than L2. Masks of 7 to
/// 14 % gain 9 to 49 % by it (`docs/decisions/0005-backward-kernel.md`); between them and causal nothing was measured.
const SPARSE: f64 = 0.25;

/// A checked call.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackwardProblem {
    call: &'static str,
    pub(super) problem: Problem,
}

impl BackwardProblem {
    /// Compares all inputs with Q, the keys and the mask.
    pub(super) fn check(
        call: &'static str,
        stream: &CudaStream,
        inputs: &BackwardInputs<'_>,
    ) -> Result<Self, Error> {
        let &BackwardInputs { q, keys, mask, o, dout, lse, .. } = inputs;
        let problem = Problem::check(call, stream, Inputs { q, keys, mask })?;
        let like_q = |name, tensor: Tensor, order: &Order<'_>| {
            problem.check_like_q(name, (tensor, order), (q.tensor, stream))
        };
        like_q("o", o.tensor, &o.order)?;
        like_q("dout", dout.tensor, &dout.order)?;
        lse.order.check(call, "lse", stream)?;
        problem.check_lse(lse.len)?;
        // Limits of a grid along y and z.
        within(call, "heads_q", problem.dims.heads_q, 65535)?;
        within(call, "batch", problem.dims.batch, 65535)?;
        Ok(Self { call, problem })
    }

    /// That dQ is like Q.
    pub(super) fn check_dq(
        &self,
        stream: &CudaStream,
        inputs: &BackwardInputs<'_>,
        dq: &DeviceViewMut<'_>,
    ) -> Result<(), Error> {
        self.problem.check_like_q("dq", (dq.tensor, &dq.order), (inputs.q.tensor, stream))
    }

    /// Writes all sizes, for a launch over all keys.
    pub(super) fn describe(
        &self,
        params: &mut BackwardParams,
        inputs: &BackwardInputs<'_>,
    ) -> Result<(), Error> {
        let (call, dims) = (self.call, self.problem.dims);
        let sizes = self.problem.sizes(inputs.mask)?;
        let all_heads = dims.batch.saturating_mul(dims.heads_kv);
        params.tiles = narrow(call, "tiles", all_heads.saturating_mul(inputs.mask.key_tiles()))?;
        params.row_tiles = sizes.row_tiles;
        params.key_tiles = sizes.key_tiles;
        params.seq_q = sizes.seq_q;
        params.heads_q = sizes.heads_q;
        params.heads_kv = sizes.heads_kv;
        params.group = sizes.group;
        params.heads_per_mask = sizes.heads_per_mask;
        params.mask_heads = sizes.mask_heads;
        params.mask_batch_step = sizes.mask_batch_step;
        let section = inputs.options.section_heads.unwrap_or_else(|| match inputs.mask.density() {
            Some(density) if density < SPARSE => all_heads,
            _ => default_section(dims),
        });
        params.section_heads = narrow(call, "section_heads", section.min(all_heads))?;
        params.scale_log2 = log2_scale(call, inputs.scale)?;
        params.scale = inputs.scale;
        Ok(())
    }

    /// Writes the maps of K and V.
    pub(super) fn key_maps(&self, params: &mut BackwardParams) -> Result<(), Error> {
        for (index, keys) in self.problem.maps.iter().enumerate() {
            let Some([k, v]) = keys else { continue };
            (params.k[index], params.v[index]) = (k.map(128)?, v.map(128)?);
            params.heads_per_group[index] = narrow(self.call, "heads_per_group", k.extents.heads_per_group)?;
        }
        Ok(())
    }

    /// Writes the maps of dK and dV.
    pub(super) fn grad_maps(&self, params: &mut BackwardParams, grads: &KeyTensors) -> Result<(), Error> {
        for (index, grads) in grads.iter().enumerate() {
            let Some([dk, dv]) = grads else { continue };
            (params.dk[index], params.dv[index]) = (dk.map(64)?, dv.map(64)?);
            params.grad_heads_per_group[index] =
                narrow(self.call, "heads_per_group", dk.extents.heads_per_group)?;
        }
        Ok(())
    }
}

/// dK and dV of each map, ordered for the stream.
pub(super) fn grad_maps(
    call: &'static str,
    stream: &CudaStream,
    grads: KeyGrads<'_>,
) -> Result<KeyTensors, Error> {
    let mut tensors = [None; KEY_MAPS];
    let mut put = |index: usize, pair: [(KeyTensor, &Order<'_>); 2]| -> Result<(), Error> {
        pair[0].1.check(call, "dk", stream)?;
        pair[1].1.check(call, "dv", stream)?;
        tensors[index] = Some(pair.map(|(tensor, _)| tensor));
        Ok(())
    };
    match grads {
        KeyGrads::Whole { dk, dv } => {
            put(0, [(dk.tensor.into(), &dk.order), (dv.tensor.into(), &dv.order)])?;
        }
        KeyGrads::Segments(maps) if maps.len() > KEY_MAPS => {
            return Err(wrong(call, "grads", maps.len() as u64, format!("1 to {KEY_MAPS} tensors")));
        }
        KeyGrads::Segments(maps) => {
            for (index, map) in maps.iter().enumerate() {
                put(index, [(map.dk.tensor, &map.dk.order), (map.dv.tensor, &map.dv.order)])?;
            }
        }
    }
    Ok(tensors)
}

/// That every map of the keys has gradients of its extents, and that no two segments share them.
pub(super) fn check_like_keys(
    call: &'static str,
    problem: &Problem,
    keys: Keys<'_>,
    grads: &KeyTensors,
) -> Result<(), Error> {
    for (keys, own) in problem.maps.iter().zip(grads) {
        let (k, dk, dv) = match (keys, own) {
            (None, None) => continue,
            (Some([k, _]), Some([dk, dv])) => (k, dk, dv),
            _ => {
                let count = |maps: &KeyTensors| maps.iter().flatten().count() as u64;
                let rule = format!("{}, one for each map of the keys", count(&problem.maps));
                return Err(wrong(call, "grads", count(grads), rule));
            }
        };
        for (name, grad) in [("dk", dk), ("dv", dv)] {
            same_type(call, name, grad.dtype, k.dtype)?;
            same_extents(call, name, grad.extents, k.extents)?;
        }
    }
    let Keys::Segments { table, .. } = keys else { return Ok(()) };
    match table.nearest() {
        Some(step) if step < problem.dims.batch => {
            let rule = format!("at least {}, the batch, between segments of a map", problem.dims.batch);
            Err(wrong(call, "slabs", step as u64, rule))
        }
        _ => Ok(()),
    }
}

/// KV heads of one section: as many as have Q and dO in 16 bits and dQ sums in f32 in the L2, a power of two.
fn default_section(dims: Dims) -> usize {
    let group = dims.heads_q / dims.heads_kv;
    let kv_head = group.saturating_mul(dims.seq_q).saturating_mul(HEAD_DIM * (2 + 2 + 4));
    1 << (SECTION_BYTES / kv_head).max(1).ilog2()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_hold_a_power_of_two_of_kv_heads() {
        let dims = |seq_q, heads_q| Dims { batch: 2, heads_q, heads_kv: 4, seq_q, seq_k: 1, head_dim: 128 };
        // 40 MiB / (8192 rows * 1024 bytes) = 5, 4 are taken; groups of 7 leave none, one is always taken.
        assert_eq!(default_section(dims(8192, 4)), 4);
        assert_eq!(default_section(dims(8192, 28)), 1);
        assert_eq!(default_section(dims(1024, 16)), 8);
    }
}
