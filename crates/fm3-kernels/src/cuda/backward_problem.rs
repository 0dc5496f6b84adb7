//! The sizes of a backward call, checked against each other and written into parameters.
use cudarc::driver::CudaStream;

use super::backward::BackwardInputs;
use super::backward_views::KeyGrads;
use super::check::{narrow, same_type, within, wrong};
use super::keys::{KeyTensor, Keys};
use super::problem::{Inputs, KeyTensors, Problem, log2_scale, same_extents};
use super::sections::Sections;
use super::view::{DeviceViewMut, Order, Tensor};
use crate::Error;
use crate::params::{BackwardParams, KEY_MAPS};

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
        let tiles = inputs.mask.key_tiles();
        let sections = match inputs.options.section_heads {
            Some(heads) => Sections::of(dims, tiles, heads),
            None => Sections::choose(dims, tiles, inputs.mask.rows_seen()),
        };
        params.section_heads = narrow(call, "section_heads", sections.heads)?;
        params.section_ranks = narrow(call, "section_ranks", sections.ranks + 1)? - 1;
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
