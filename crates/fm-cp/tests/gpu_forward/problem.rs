//! One problem on one rank: its tensors in device memory, its calls, and what they should come to.
use std::sync::Arc;

use fm_cp::cuda::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr};
use fm_cp::cuda::{DeviceView, DeviceViewMut, LseMut};
use fm_cp::tensors::{SeqAxis, scatter};
use fm_cp::view::{Extents, Strides};
use fm_cp::{
    CallHandle, CpAttention, CpGroup, DeviceForward, Element, Error, FlashMask, Options, Prepared, Sharding,
    View4,
};
use fm3_kernels::reference::Attention as Reference;
use fm3_kernels::{Dims, Shape};

use super::support::{Case, Tensors, bounds, distance};

/// What tensors hold on a device.
pub(crate) trait Number: Element + DeviceRepr {}
impl Number for half::bf16 {}
impl Number for half::f16 {}

/// How K and V lie in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layout {
    /// [b, s, h, d]
    Bshd,
    /// [b, h, s, d]
    Bhsd,
    /// K and V are parts of [b, s, 2 h + 1, d].
    Packed,
}

/// A problem, and who owns which rows.
pub(crate) struct Problem {
    pub(crate) case: Case,
    pub(crate) mask: FlashMask,
    pub(crate) sharding: Sharding,
    pub(crate) layout: Layout,
}

impl Problem {
    pub(crate) fn new(case: Case, mask: &str) -> Self {
        Self { case, mask: case.mask(mask), sharding: case.sharding(), layout: Layout::Bshd }
    }

    fn extents(&self, rank: usize, heads: usize) -> Extents {
        let Case { batch, head_dim, .. } = self.case;
        let pe = fm_cp::Pe(u32::try_from(rank).unwrap());
        Extents { batch, seq: self.sharding.len(pe), heads, head_dim }
    }

    /// This rank's rows of a tensor of the whole sequence.
    fn cut<T: Copy>(&self, rank: usize, data: &[T], heads: usize) -> Vec<T> {
        let axis = SeqAxis::bshd(Extents { heads, ..self.extents(rank, heads) });
        scatter(&self.sharding, axis, data).unwrap().swap_remove(rank)
    }

    /// O and LSE of this rank's rows.
    pub(crate) fn expected<T: Element>(&self, rank: usize) -> (Vec<f64>, Vec<f64>) {
        let Case { batch, heads_q, heads_kv, seq, head_dim, .. } = self.case;
        let shape = Shape::new(Dims { batch, heads_q, heads_kv, seq_q: seq, seq_k: seq, head_dim }).unwrap();
        let tensors = self.case.tensors::<T>();
        let extents = |heads| Extents { batch, seq, heads, head_dim };
        let output = Reference {
            shape,
            mask: &self.mask,
            scale: shape.default_scale(),
            q: View4::bshd(&tensors.q, extents(heads_q)).unwrap(),
            k: View4::bshd(&tensors.k, extents(heads_kv)).unwrap(),
            v: View4::bshd(&tensors.v, extents(heads_kv)).unwrap(),
        }
        .forward();
        let lse = SeqAxis::lse(extents(heads_q));
        let lse = scatter(&self.sharding, lse, &output.lse).unwrap().swap_remove(rank);
        (self.cut(rank, &output.o, heads_q), lse)
    }
}

/// A rank's tensors of one problem in device memory.
pub(crate) struct Memory<T> {
    q: CudaSlice<T>,
    /// K and V, or both in the first.
    kv: [CudaSlice<T>; 2],
    o: CudaSlice<T>,
    lse: CudaSlice<f32>,
    query: Extents,
    key: Extents,
    layout: Layout,
}

impl<T: Number> Memory<T> {
    pub(crate) fn new(stream: &Arc<CudaStream>, problem: &Problem, rank: usize) -> Self {
        let Case { heads_q, heads_kv, .. } = problem.case;
        let Tensors { q, k, v, .. } = problem.case.tensors::<T>();
        let (query, key) = (problem.extents(rank, heads_q), problem.extents(rank, heads_kv));
        let local = [k, v].map(|data| problem.cut(rank, &data, heads_kv));
        let upload = |data: &[T]| stream.clone_htod(data).unwrap();
        let layout = problem.layout;
        let kv = [0, 1].map(|tensor| {
            let (offset, strides, len) = place(layout, key, tensor);
            let mut memory = nan::<T>(len);
            write(&mut memory[offset..], key, strides, &local[tensor]);
            if matches!(layout, Layout::Packed) {
                let (other, strides, _) = place(layout, key, 1 - tensor);
                write(&mut memory[other..], key, strides, &local[1 - tensor]);
            }
            upload(&memory)
        });
        let q = upload(&problem.cut(rank, &q, heads_q));
        let o = upload(&nan::<T>(query.batch * query.seq * query.heads * query.head_dim));
        let lse = stream.clone_htod(&vec![f32::NAN; query.batch * query.seq * query.heads]).unwrap();
        Self { q, kv, o, lse, query, key, layout }
    }

    /// Enqueues one call.
    pub(crate) fn call(
        &mut self,
        group: &mut CpGroup,
        prepared: &Prepared,
        stream: &Arc<CudaStream>,
    ) -> Result<CallHandle, Error> {
        let (query, key) = (self.query, self.key);
        let view = |tensor: usize| {
            let (offset, strides, _) = place(self.layout, key, tensor);
            let memory = if matches!(self.layout, Layout::Packed) { &self.kv[0] } else { &self.kv[tensor] };
            (memory.slice(offset..), strides)
        };
        let ((k, k_strides), (v, v_strides)) = (view(0), view(1));
        let call = DeviceForward {
            q: &DeviceView::bshd(&self.q, stream, query)?,
            k: &DeviceView::strided(&k, stream, key, k_strides)?,
            v: &DeviceView::strided(&v, stream, key, v_strides)?,
            o: &DeviceViewMut::bshd(&mut self.o, stream, query)?,
            lse: &LseMut::new(&mut self.lse, stream),
        };
        CpAttention::new(Options::default())?.enqueue_forward(group, prepared, stream, call)
    }

    /// Fills K and V with NaN, in the order of the stream.
    pub(crate) fn scrub(&mut self, stream: &Arc<CudaStream>) {
        for tensor in &mut self.kv {
            stream.memcpy_htod(&nan::<T>(tensor.len()), tensor).unwrap();
        }
    }

    /// Fills O and LSE with NaN, in the order of the stream.
    pub(crate) fn poison(&mut self, stream: &Arc<CudaStream>) {
        stream.memcpy_htod(&nan::<T>(self.o.len()), &mut self.o).unwrap();
        stream.memcpy_htod(&vec![f32::NAN; self.lse.len()], &mut self.lse).unwrap();
    }

    /// O and LSE, as bits.
    pub(crate) fn bits(&self, stream: &Arc<CudaStream>) -> Vec<u32> {
        let (o, lse) = self.outputs(stream);
        o.iter().map(|value| value.to_f32().to_bits()).chain(lse.iter().map(|lse| lse.to_bits())).collect()
    }

    fn outputs(&self, stream: &Arc<CudaStream>) -> (Vec<T>, Vec<f32>) {
        let outputs = (stream.clone_dtoh(&self.o).unwrap(), stream.clone_dtoh(&self.lse).unwrap());
        stream.synchronize().unwrap();
        outputs
    }

    /// Compares O and LSE with the reference.
    pub(crate) fn check(&self, stream: &Arc<CudaStream>, (o, lse): &(Vec<f64>, Vec<f64>), what: &str) {
        let (got_o, got_lse) = self.outputs(stream);
        let (error, bound) = (distance(&got_o, o), bounds(T::DTYPE).0);
        assert!(error <= bound, "{what}: O is off by {error:.2e}, bound {bound:.0e}");
        for (index, (got, want)) in got_lse.iter().zip(lse).enumerate() {
            let near = f64::from(*got) == *want || (f64::from(*got) - want).abs() <= 1e-4;
            assert!(near, "{what}: lse[{index}] = {got}, expected {want}");
        }
    }
}

/// First element, strides and length of the memory of K (0) or V (1).
fn place(layout: Layout, e: Extents, tensor: usize) -> (usize, Strides, usize) {
    let len = e.batch * e.seq * e.heads * e.head_dim;
    match layout {
        Layout::Bshd => (0, Strides::bshd(e), len),
        Layout::Bhsd => (0, Strides::bhsd(e), len),
        Layout::Packed => {
            let seq = (2 * e.heads + 1) * e.head_dim;
            let strides = Strides { batch: e.seq * seq, seq, heads: e.head_dim };
            (tensor * e.heads * e.head_dim, strides, e.batch * e.seq * seq)
        }
    }
}

/// Puts dense [b, s, h, d] elements at their places.
fn write<T: Copy>(memory: &mut [T], e: Extents, strides: Strides, dense: &[T]) {
    let mut rows = dense.chunks_exact(e.head_dim);
    for (batch, seq) in (0..e.batch).flat_map(|batch| (0..e.seq).map(move |seq| (batch, seq))) {
        for head in 0..e.heads {
            let at = batch * strides.batch + seq * strides.seq + head * strides.heads;
            memory[at..at + e.head_dim].copy_from_slice(rows.next().unwrap());
        }
    }
}

fn nan<T: Element>(len: usize) -> Vec<T> {
    vec![T::from_f32(f32::NAN); len]
}
