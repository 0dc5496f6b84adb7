//! The GPU: random tensors, prepared masks, calls between events.
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use fm3_kernels::cuda::cudarc::driver::sys::CUevent_flags;
use fm3_kernels::cuda::cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use fm3_kernels::cuda::{
    Attention, BackwardOptions, DeviceView, DeviceViewMut, ForwardCall, ForwardOptions, KernelSource,
    Kernels, KeyExtents, KeyMap, KeyStrides, KeyTable, KeyView, Keys, LseMut, PreparedMask, SegmentAt,
    Workspace, context,
};
use fm3_kernels::mask::KeySegments;
use fm3_kernels::shape::Dims;
use fm3_kernels::view::Extents;
use fm3_kernels::{Element, FlashMask};

use super::gradients::Gradients;
use super::peers::Launches;
use super::random::normal;

/// Element types of the kernels.
pub(crate) trait Half: Element + DeviceRepr + ValidAsZeroBits {}
impl<T: Element + DeviceRepr + ValidAsZeroBits> Half for T {}

/// Random numbers that are made once; tensors are filled from different places in it.
const POOL: usize = (1 << 24) + 1000;

/// An opened device.
pub(crate) struct Device {
    pub stream: Arc<CudaStream>,
    pub(super) attention: Attention,
    workspace: Workspace,
}

/// A mask, and where its keys are when they lie in several segments.
pub(crate) struct Prepared {
    pub(super) mask: PreparedMask,
    pub(super) table: Option<KeyTable>,
}

/// The tensors of one problem, [b, s, h, d] dense.
pub(crate) struct Tensors<T> {
    pub(super) dims: Dims,
    pub(super) q: CudaSlice<T>,
    pub(super) k: CudaSlice<T>,
    pub(super) v: CudaSlice<T>,
    pub(super) o: CudaSlice<T>,
    pub(super) lse: CudaSlice<f32>,
    /// Of the backward alone.
    gradients: Option<Gradients<T>>,
}

impl Device {
    /// Loads the kernels.
    ///
    /// # Errors
    /// When there is no Hopper, no driver or no kernels.
    pub(crate) fn open(ordinal: usize, source: &KernelSource) -> anyhow::Result<Self> {
        let context = context(ordinal)?;
        let attention = Attention::new(Arc::new(Kernels::load(&context, source)?));
        let stream = context.default_stream();
        let workspace = Workspace::new(&stream)?;
        Ok(Self { stream, attention, workspace })
    }

    /// Its name and multiprocessors.
    pub(crate) fn describe(&self) -> anyhow::Result<String> {
        let kernels = self.kernels();
        Ok(format!("{}, {} multiprocessors", kernels.context().name()?, kernels.multiprocessors()))
    }

    /// The kernels.
    pub(super) fn kernels(&self) -> &Kernels {
        self.attention.kernels()
    }

    /// The kernels, to share them.
    pub(crate) const fn attention(&self) -> &Attention {
        &self.attention
    }

    /// Random Q, K, V; room for O and LSE; for the backward of a mask also dO and gradients.
    pub(crate) fn tensors<T: Half>(
        &self,
        pool: &CudaSlice<T>,
        dims: Dims,
        backward: Option<&Prepared>,
    ) -> anyhow::Result<Tensors<T>> {
        let of_q = dims.batch * dims.seq_q * dims.heads_q * dims.head_dim;
        let of_k = dims.batch * dims.seq_k * dims.heads_kv * dims.head_dim;
        Ok(Tensors {
            dims,
            q: self.filled(pool, of_q, 0)?,
            k: self.filled(pool, of_k, POOL / 3)?,
            v: self.filled(pool, of_k, POOL / 3 * 2)?,
            o: self.stream.alloc_zeros(of_q)?,
            lse: self.stream.alloc_zeros(dims.batch * dims.heads_q * dims.seq_q)?,
            gradients: backward.map(|mask| Gradients::new(self, pool, (dims, &mask.mask))).transpose()?,
        })
    }

    /// Random numbers in device memory, for [`tensors`](Self::tensors).
    pub(crate) fn pool<T: Half>(&self) -> anyhow::Result<CudaSlice<T>> {
        Ok(self.stream.clone_htod(&normal::<T>(POOL))?)
    }

    pub(crate) fn filled<T: Half>(
        &self,
        pool: &CudaSlice<T>,
        len: usize,
        from: usize,
    ) -> anyhow::Result<CudaSlice<T>> {
        let mut tensor = self.stream.alloc_zeros(len)?;
        let (mut done, mut from) = (0, from);
        while done < len {
            let count = (len - done).min(POOL - from);
            let mut to = tensor.slice_mut(done..done + count);
            self.stream.memcpy_dtod(&pool.slice(from..from + count), &mut to)?;
            (done, from) = (done + count, 0);
        }
        Ok(tensor)
    }

    /// A mask for keys in these segments, which are slabs of one tensor.
    pub(crate) fn prepare(&self, mask: &FlashMask, rows: Vec<usize>) -> anyhow::Result<Prepared> {
        ensure!(rows.iter().all(|other| *other == rows[0]), "segments of different lengths");
        let table = (rows.len() > 1).then(|| key_table(&self.stream, &rows)).transpose()?;
        let mask = PreparedMask::new(self.kernels(), &self.stream, mask, &KeySegments::new(rows)?)?;
        Ok(Prepared { mask, table })
    }

    /// Milliseconds of each of `launches` calls, behind `warmups` without a pause; `host` gets the microseconds that
    /// each call took to enqueue. The pass is the one that the tensors were made for.
    pub(crate) fn calls<T: Half>(
        &mut self,
        tensors: &mut Tensors<T>,
        prepared: &Prepared,
        counts: Launches,
        host: &mut Vec<f64>,
    ) -> anyhow::Result<Vec<f64>> {
        let stream = Arc::clone(&self.stream);
        let mut gradients = tensors.gradients.take();
        let mut call = |device: &mut Self| match &mut gradients {
            Some(gradients) => gradients.enqueue(device, tensors, prepared),
            None => device.enqueue(tensors, prepared),
        };
        for _ in 0..counts.warmups {
            call(self)?;
        }
        let times = timed(&stream, counts.launches, || {
            let start = Instant::now();
            call(self)?;
            host.push(start.elapsed().as_secs_f64() * 1e6);
            Ok(())
        });
        tensors.gradients = gradients;
        times
    }

    /// One forward call as a user makes it, views included.
    pub(super) fn enqueue<T: Half>(
        &mut self,
        tensors: &mut Tensors<T>,
        prepared: &Prepared,
    ) -> anyhow::Result<()> {
        let Tensors { dims, q, k, v, o, lse, .. } = tensors;
        let Dims { batch, heads_q, heads_kv, seq_q, seq_k, head_dim } = *dims;
        let stream = &*self.stream;
        let of_q = Extents { batch, seq: seq_q, heads: heads_q, head_dim };
        let of_k = Extents { batch, seq: seq_k, heads: heads_kv, head_dim };
        let (whole, maps);
        let keys = match &prepared.table {
            None => {
                whole = [DeviceView::bshd(k, stream, of_k)?, DeviceView::bshd(v, stream, of_k)?];
                Keys::Whole { k: &whole[0], v: &whole[1] }
            }
            Some(table) => {
                maps = [key_map(stream, [k, v], of_k, table.segments().rows()[0])?];
                Keys::Segments { maps: &maps, table }
            }
        };
        let call = ForwardCall {
            q: &DeviceView::bshd(q, stream, of_q)?,
            keys,
            o: &DeviceViewMut::bshd(o, stream, of_q)?,
            lse: &LseMut::new(lse, stream),
            mask: &prepared.mask,
            scale: 1.0 / 128_f32.sqrt(),
            options: ForwardOptions::default(),
        };
        Ok(self.attention.forward(stream, &call, &mut self.workspace)?)
    }

    /// That the last call wrote numbers: a rate of something broken is no rate.
    pub(crate) fn check<T: Half>(&self, tensors: &Tensors<T>) -> anyhow::Result<()> {
        let lse = self.stream.clone_dtoh(&tensors.lse)?;
        let row = lse.iter().position(|value| value.is_nan() || *value == f32::INFINITY);
        ensure!(row.is_none(), "LSE {:?} is no number", row);
        tensors.gradients.as_ref().map_or(Ok(()), |gradients| gradients.check(&self.stream))
    }
}

impl<T: Half> Tensors<T> {
    /// Of backward calls.
    pub(super) fn set_options(&mut self, options: BackwardOptions) {
        if let Some(gradients) = &mut self.gradients {
            gradients.options = options;
        }
    }
}

/// Milliseconds of each launch, by an event before and one behind it.
pub(crate) fn timed(
    stream: &CudaStream,
    launches: usize,
    mut launch: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Vec<f64>> {
    let mut pairs = Vec::with_capacity(launches);
    for _ in 0..launches {
        let start = stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?;
        launch()?;
        pairs.push((start, stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT))?));
    }
    stream.synchronize().context("a launch failed")?;
    pairs.iter().map(|(start, end)| Ok(f64::from(start.elapsed_ms(end)?))).collect()
}

/// Where segments of `rows` rows each lie, as slabs of one tensor [b, s, h, d].
pub(super) const fn slabs(of: Extents, rows: usize) -> (KeyExtents, KeyStrides) {
    let Extents { seq, heads, head_dim, .. } = of;
    let row = heads * head_dim;
    let extents = KeyExtents { rows, heads_per_group: heads, groups: 1, slabs: seq / rows, head_dim };
    (extents, KeyStrides { rows: row, heads: head_dim, groups: row, slabs: rows * row })
}

/// K and V in such segments.
pub(super) fn key_map<'a, T: Half>(
    stream: &'a CudaStream,
    tensors: [&'a CudaSlice<T>; 2],
    of: Extents,
    rows: usize,
) -> anyhow::Result<KeyMap<'a>> {
    let (extents, strides) = slabs(of, rows);
    let [k, v] = tensors;
    Ok(KeyMap {
        k: KeyView::strided(k, stream, extents, strides)?,
        v: KeyView::strided(v, stream, extents, strides)?,
    })
}

fn key_table(stream: &Arc<CudaStream>, rows: &[usize]) -> anyhow::Result<KeyTable> {
    let at = |(slab, rows): (usize, &usize)| SegmentAt { rows: *rows, map: 0, slab, signal: None };
    Ok(KeyTable::new(stream, &rows.iter().enumerate().map(at).collect::<Vec<_>>())?)
}
