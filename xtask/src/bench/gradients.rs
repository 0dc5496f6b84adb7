//! The backward on the GPU: dO, where gradients go, one call.
use std::sync::Arc;

use anyhow::ensure;
use fm3_kernels::Shape;
use fm3_kernels::cuda::cudarc::driver::{CudaSlice, CudaStream};
use fm3_kernels::cuda::{
    BackwardCall, BackwardOptions, BackwardWorkspace, DeviceView, DeviceViewMut, KeyGradMap, KeyGrads,
    KeyViewMut, Keys, LseView, PreparedMask,
};
use fm3_kernels::shape::Dims;
use fm3_kernels::view::Extents;

use super::device::{Device, Half, Prepared, Tensors, key_map, slabs};

/// [b, s, h, d] dense, and the memory of the pass.
pub(super) struct Gradients<T> {
    dout: CudaSlice<T>,
    dq: CudaSlice<T>,
    dk: CudaSlice<T>,
    dv: CudaSlice<T>,
    workspace: BackwardWorkspace,
    /// Of the calls.
    pub(super) options: BackwardOptions,
}

impl<T: Half> Gradients<T> {
    /// Random dO; room for the rest, with dQ in any order or in one, and each query head a part of its own.
    pub(super) fn new(
        device: &Device,
        pool: &CudaSlice<T>,
        (dims, mask): (Dims, &PreparedMask),
    ) -> anyhow::Result<Self> {
        let (stream, shape) = (&device.stream, Shape::new(dims)?);
        let of_q = dims.batch * dims.seq_q * dims.heads_q * dims.head_dim;
        let of_k = dims.batch * dims.seq_k * dims.heads_kv * dims.head_dim;
        let in_order = BackwardWorkspace::bytes_in_parts(shape, mask.dims(), mask.segments());
        let bytes = BackwardWorkspace::bytes_split(shape, dims.heads_q / dims.heads_kv).max(in_order);
        Ok(Self {
            dout: device.filled(pool, of_q, 1)?,
            dq: stream.alloc_zeros(of_q)?,
            dk: stream.alloc_zeros(of_k)?,
            dv: stream.alloc_zeros(of_k)?,
            workspace: BackwardWorkspace::from_memory(stream.alloc_zeros(bytes)?)?,
            options: BackwardOptions::default(),
        })
    }

    /// One backward call as a user makes it, views included; a forward call was made before.
    pub(super) fn enqueue(
        &mut self,
        device: &Device,
        tensors: &Tensors<T>,
        prepared: &Prepared,
    ) -> anyhow::Result<()> {
        let Dims { batch, heads_q, heads_kv, seq_q, seq_k, head_dim } = tensors.dims;
        let stream = &*device.stream;
        let of_q = Extents { batch, seq: seq_q, heads: heads_q, head_dim };
        let of_k = Extents { batch, seq: seq_k, heads: heads_kv, head_dim };
        let Self { dout, dq, dk, dv, workspace, options } = self;
        let (whole, maps, grads, grad_maps);
        let (keys, grads) = match &prepared.table {
            None => {
                whole = [
                    DeviceView::bshd(&tensors.k, stream, of_k)?,
                    DeviceView::bshd(&tensors.v, stream, of_k)?,
                ];
                grads = [DeviceViewMut::bshd(dk, stream, of_k)?, DeviceViewMut::bshd(dv, stream, of_k)?];
                (Keys::Whole { k: &whole[0], v: &whole[1] }, KeyGrads::Whole { dk: &grads[0], dv: &grads[1] })
            }
            Some(table) => {
                let rows = table.segments().rows()[0];
                maps = [key_map(stream, [&tensors.k, &tensors.v], of_k, rows)?];
                let (extents, strides) = slabs(of_k, rows);
                grad_maps = [KeyGradMap {
                    dk: KeyViewMut::strided(dk, stream, extents, strides)?,
                    dv: KeyViewMut::strided(dv, stream, extents, strides)?,
                }];
                (Keys::Segments { maps: &maps, table }, KeyGrads::Segments(&grad_maps))
            }
        };
        let call = BackwardCall {
            q: &DeviceView::bshd(&tensors.q, stream, of_q)?,
            keys,
            o: &DeviceView::bshd(&tensors.o, stream, of_q)?,
            dout: &DeviceView::bshd(dout, stream, of_q)?,
            lse: &LseView::new(&tensors.lse, stream),
            dq: &DeviceViewMut::bshd(dq, stream, of_q)?,
            grads,
            mask: &prepared.mask,
            scale: 1.0 / 128_f32.sqrt(),
            options: *options,
        };
        Ok(device.attention.backward(stream, &call, workspace)?)
    }

    /// That the last call wrote numbers. The end of each tensor is looked at; the tests compare them.
    pub(super) fn check(&self, stream: &Arc<CudaStream>) -> anyhow::Result<()> {
        let mut written = false;
        for (name, data) in [("dQ", &self.dq), ("dK", &self.dk), ("dV", &self.dv)] {
            let end = stream.clone_dtoh(&data.slice(data.len() - data.len().min(1 << 20)..))?;
            ensure!(end.iter().all(|value| value.to_f32().is_finite()), "{name} is not finite");
            written |= end.iter().any(|value| value.to_f32() != 0.0);
        }
        ensure!(written, "dQ, dK and dV are 0");
        Ok(())
    }
}
