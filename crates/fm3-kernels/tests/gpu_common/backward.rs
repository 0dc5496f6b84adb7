//! Backward problems in device memory: gradients between NaN, in layouts of their own.
use std::ops::Range;

use fm3_kernels::cuda::cudarc::driver::{CudaSlice, CudaViewMut, DevicePtrMut};
use fm3_kernels::cuda::{
    AbortWord, BackwardCall, BackwardOptions, BackwardWorkspace, DeviceView, DeviceViewMut, GradTable,
    GradientPart, KeyGradMap, KeyGrads, KeyViewMut, LseView, PartGrads, PreparedMask, SegmentAt, Wait,
    Workspace,
};
use fm3_kernels::view::{Extents, Strides};
use fm3_kernels::{Dims, Element, Error, Shape};

use super::case::{Case, Layout, Tensors, count, places};
use super::device::Gpu;
use super::gradients::{Grads, dout};
use super::keys::{
    Buffers, GUARD, Half, KeyBuffers, Pool, Waits, nan, packed_offsets, packed_row, packed_strides,
    with_inputs,
};

/// Memory of both passes.
pub struct Workspaces {
    pub forward: Workspace,
    pub backward: BackwardWorkspace,
}

impl Workspaces {
    /// Room for 8192 rows of 16 heads, all NaN.
    pub fn new(gpu: &Gpu) -> Self {
        let dims = Dims { batch: 1, heads_q: 16, heads_kv: 1, seq_q: 8192, seq_k: 1, head_dim: 128 };
        // For turns and the order of tiles, whatever the mask.
        let bytes = BackwardWorkspace::bytes(Shape::new(dims).unwrap()) + (1 << 20);
        let memory = gpu.stream.clone_htod(&vec![0xFF_u8; bytes]).unwrap();
        let backward = BackwardWorkspace::from_memory(memory).unwrap();
        Self { forward: Workspace::new(&gpu.stream).unwrap(), backward }
    }
}

/// dO, and where gradients go; [`GUARD`] elements before and behind each.
pub struct GradBuffers<T> {
    dout: CudaSlice<T>,
    dq: CudaSlice<T>,
    kv: KeyGradBuffers<T>,
}

/// One launch of a pass in parts.
#[derive(Clone)]
pub struct Part<'a> {
    pub tiles: Range<usize>,
    pub out: Out<'a>,
    pub wait: Option<Wait>,
    pub abort: Option<&'a AbortWord>,
}

#[derive(Clone, Copy)]
pub enum Out<'a> {
    Rounded(Option<&'a GradTable>),
    Slots(&'a GradTable),
    Sum(&'a GradTable),
}

enum KeyGradBuffers<T> {
    /// dK and dV, or [dq, dk, dv] in the buffer of dQ.
    Whole(Option<[CudaSlice<T>; 2]>),
    /// Like the pools of the keys.
    Segments(Vec<[CudaSlice<T>; 2]>),
}

/// Gradients do not lie as their inputs do.
const fn other(layout: Layout) -> Layout {
    match layout {
        Layout::Bshd | Layout::Packed => Layout::Bhsd,
        Layout::Bhsd => Layout::Gaps,
        Layout::Gaps => Layout::Bshd,
    }
}

impl<T: Half> GradBuffers<T> {
    pub fn new(gpu: &Gpu, case: &Case, buffers: &Buffers<T>) -> Self {
        let poison = |len: usize| gpu.stream.clone_htod(&nan::<T>(len + 2 * GUARD)).unwrap();
        let layout = other(case.layout);
        let (strides, len) = layout.strides(case.queries());
        let mut data = nan(len);
        places(case.queries(), strides).zip(dout::<T>(case)).for_each(|(place, value)| data[place] = value);
        let (_, key_len) = layout.strides(case.keys());
        let (dq_len, kv) = match &buffers.kv {
            KeyBuffers::Whole(None) => {
                (case.dims.batch * case.dims.seq_q * packed_row(case), KeyGradBuffers::Whole(None))
            }
            KeyBuffers::Whole(_) => (len, KeyGradBuffers::Whole(Some([poison(key_len), poison(key_len)]))),
            KeyBuffers::Segments { pools, .. } => {
                let one = |pool: &Pool<T>| [poison(pool.k.len()), poison(pool.v.len())];
                (len, KeyGradBuffers::Segments(pools.iter().map(one).collect()))
            }
        };
        Self { dout: gpu.stream.clone_htod(&data).unwrap(), dq: poison(dq_len), kv }
    }

    /// Enqueues the backward pass of `buffers`, whose forward pass was enqueued before.
    pub fn launch(
        &mut self,
        gpu: &Gpu,
        case: &Case,
        inputs: (&Buffers<T>, &PreparedMask),
        workspace: &mut BackwardWorkspace,
    ) -> Result<(), Error> {
        self.with_call(gpu, case, inputs, |call| gpu.attention.backward(&gpu.stream, call, workspace))
    }

    /// The same with dK and dV in f32, dense [b, s, h, d]; this object's own are left as they are.
    pub fn launch_wide(
        &mut self,
        gpu: &Gpu,
        case: &Case,
        inputs: (&Buffers<T>, &PreparedMask),
        workspace: &mut BackwardWorkspace,
    ) -> Result<[Vec<f32>; 2], Error> {
        let (stream, extents) = (&gpu.stream, case.keys());
        let poisoned = || stream.clone_htod(&vec![f32::NAN; count(extents)]).unwrap();
        let [mut dk, mut dv] = [poisoned(), poisoned()];
        self.with_call(gpu, case, inputs, |call| {
            let dk = DeviceViewMut::bshd(&mut dk, stream, extents)?;
            let dv = DeviceViewMut::bshd(&mut dv, stream, extents)?;
            let call = BackwardCall { grads: KeyGrads::Whole { dk: &dk, dv: &dv }, ..*call };
            gpu.attention.backward(stream, &call, workspace)
        })?;
        let both = [&dk, &dv].map(|data| stream.clone_dtoh(data).unwrap());
        stream.synchronize().unwrap();
        Ok(both)
    }

    /// The same in parts.
    pub fn launch_parts(
        &mut self,
        gpu: &Gpu,
        case: &Case,
        inputs: (&Buffers<T>, &PreparedMask),
        workspace: &mut BackwardWorkspace,
        parts: &[Part<'_>],
    ) -> Result<(), Error> {
        self.with_call(gpu, case, inputs, |call| {
            let mut pass = gpu.attention.begin_backward(&gpu.stream, call.inputs(), workspace)?;
            for Part { tiles, out, wait, abort } in parts.iter().cloned() {
                let grads = match out {
                    Out::Sum(table) => {
                        pass.sum_slots(tiles, call.grads, table)?;
                        continue;
                    }
                    Out::Slots(table) => PartGrads::Slots(table),
                    Out::Rounded(table) => PartGrads::Rounded { grads: call.grads, table },
                };
                pass.gradients(&GradientPart { tiles, grads, wait, abort })?;
            }
            pass.finish(call.dq)
        })
    }

    /// All views of a call, for one use.
    fn with_call(
        &mut self,
        gpu: &Gpu,
        case: &Case,
        (buffers, mask): (&Buffers<T>, &PreparedMask),
        run: impl FnOnce(&BackwardCall<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let (stream, queries, layout) = (&gpu.stream, case.queries(), other(case.layout));
        let o = buffers.o.slice(GUARD..buffers.o.len() - GUARD);
        let o = DeviceView::strided(&o, stream, queries, case.layout.strides(queries).0)?;
        let dout = DeviceView::strided(&self.dout, stream, queries, layout.strides(queries).0)?;
        let lse = buffers.lse.slice(GUARD..buffers.lse.len() - GUARD);
        let lse = LseView::new(&lse, stream);
        let (maps, extents) = (pools(buffers), case.keys());
        let Self { dq, kv, .. } = self;
        let options = BackwardOptions {
            section_heads: case.section_heads,
            margin: case.margin.min(gpu.kernels().multiprocessors() - 1),
            deterministic: case.deterministic,
            head_parts: case.head_parts,
        };
        with_inputs(gpu, case, (&buffers.q, &buffers.kv), |q, keys| {
            let scale = case.scale();
            let call = |dq: &DeviceViewMut<'_>, grads: KeyGrads<'_>| {
                let (o, dout, lse) = (&o, &dout, &lse);
                run(&BackwardCall { q, keys, o, dout, lse, dq, grads, mask, scale, options })
            };
            let mut dq_place = guarded(dq);
            match kv {
                KeyGradBuffers::Whole(None) => {
                    let base = dq_place.device_ptr_mut(stream).0;
                    let view = |offset: usize, extents| packed_view::<T>(case, base, (offset, extents));
                    let [k, v] = packed_offsets(case);
                    let (dk, dv) = (view(k, extents)?, view(v, extents)?);
                    call(&view(0, queries)?, KeyGrads::Whole { dk: &dk, dv: &dv })
                }
                KeyGradBuffers::Whole(Some([dk, dv])) => {
                    let dq =
                        DeviceViewMut::strided(&mut dq_place, stream, queries, layout.strides(queries).0)?;
                    let (mut dk, mut dv) = (guarded(dk), guarded(dv));
                    let strides = layout.strides(extents).0;
                    let dk = DeviceViewMut::strided(&mut dk, stream, extents, strides)?;
                    let dv = DeviceViewMut::strided(&mut dv, stream, extents, strides)?;
                    call(&dq, KeyGrads::Whole { dk: &dk, dv: &dv })
                }
                KeyGradBuffers::Segments(all) => {
                    let dq =
                        DeviceViewMut::strided(&mut dq_place, stream, queries, layout.strides(queries).0)?;
                    let mut all: Vec<_> = all.iter_mut().map(|both| both.each_mut().map(guarded)).collect();
                    let maps = grad_maps(gpu, &mut all, maps)?;
                    call(&dq, KeyGrads::Segments(&maps))
                }
            }
        })
    }

    /// Waits, and takes the gradients; an error when anything beside them was written.
    pub fn outputs(&self, gpu: &Gpu, case: &Case, buffers: &Buffers<T>) -> Result<Grads<T>, String> {
        let (queries, keys, layout) = (case.queries(), case.keys(), other(case.layout));
        let take = |name, data: &CudaSlice<T>| Taken::new(gpu, name, data);
        let mut dq = take("dQ", &self.dq)?;
        let (dq_strides, key_strides) = (layout.strides(queries).0, layout.strides(keys).0);
        let grads = match &self.kv {
            KeyGradBuffers::Whole(None) => {
                let strides = packed_strides(case);
                let [k, v] = packed_offsets(case);
                let [dk, dv] = [k, v].map(|first| dq.take(places(keys, strides).map(|place| first + place)));
                Grads { dq: dq.take(places(queries, strides)), dk, dv }
            }
            KeyGradBuffers::Whole(Some(both)) => {
                let one = |name, data| -> Result<Vec<T>, String> {
                    let mut taken = take(name, data)?;
                    let dense = taken.take(places(keys, key_strides));
                    taken.untouched().map(|()| dense)
                };
                let (dk, dv) = (one("dK", &both[0])?, one("dV", &both[1])?);
                Grads { dq: dq.take(places(queries, dq_strides)), dk, dv }
            }
            KeyGradBuffers::Segments(all) => {
                let KeyBuffers::Segments { pools, table } = &buffers.kv else { unreachable!() };
                let one = |name, which: usize| -> Result<Vec<T>, String> {
                    let mut taken: Vec<Taken<T>> =
                        all.iter().map(|both| take(name, &both[which])).collect::<Result<_, _>>()?;
                    let dense = gather(case, (pools, table), &mut taken);
                    taken.iter().try_for_each(Taken::untouched).map(|()| dense)
                };
                let (dk, dv) = (one("dK", 0)?, one("dV", 1)?);
                Grads { dq: dq.take(places(queries, dq_strides)), dk, dv }
            }
        };
        dq.untouched().map(|()| grads)
    }
}

/// Both passes on memory of their own.
pub fn run_both<T: Half>(
    gpu: &Gpu,
    case: &Case,
    tensors: &Tensors<T>,
    workspaces: &mut Workspaces,
) -> Result<Grads<T>, String> {
    let text = |error: Error| error.to_string();
    let mask = PreparedMask::new(gpu.kernels(), &gpu.stream, &case.mask, &case.segments()).map_err(text)?;
    let mut buffers = Buffers::new(gpu, case, tensors);
    // Sections of the forward pass are query heads.
    let forward = Case { section_heads: None, ..case.clone() };
    buffers.launch(gpu, &forward, &mask, &mut workspaces.forward, Waits::default()).map_err(text)?;
    let mut grads = GradBuffers::new(gpu, case, &buffers);
    grads.launch(gpu, case, (&buffers, &mask), &mut workspaces.backward).map_err(text)?;
    grads.outputs(gpu, case, &buffers)
}

fn pools<T>(buffers: &Buffers<T>) -> &[Pool<T>] {
    match &buffers.kv {
        KeyBuffers::Whole(_) => &[],
        KeyBuffers::Segments { pools, .. } => pools,
    }
}

fn grad_maps<'a, T: Half>(
    gpu: &'a Gpu,
    all: &'a mut [[CudaViewMut<'_, T>; 2]],
    pools: &[Pool<T>],
) -> Result<Vec<KeyGradMap<'a>>, Error> {
    let one = |([dk, dv], pool): (&'a mut [CudaViewMut<'_, T>; 2], &Pool<T>)| {
        let dk = KeyViewMut::strided(dk, &gpu.stream, pool.extents, pool.strides)?;
        let dv = KeyViewMut::strided(dv, &gpu.stream, pool.extents, pool.strides)?;
        Ok(KeyGradMap { dk, dv })
    };
    all.iter_mut().zip(pools).map(one).collect()
}

fn guarded<T>(data: &mut CudaSlice<T>) -> CudaViewMut<'_, T> {
    let len = data.len();
    data.slice_mut(GUARD..len - GUARD)
}

/// Part of a buffer that holds dQ, dK and dV of each row.
fn packed_view<T: Half>(
    case: &Case,
    base: u64,
    (offset, extents): (usize, Extents),
) -> Result<DeviceViewMut<'static>, Error> {
    let strides: Strides = packed_strides(case);
    let address = base + (offset * size_of::<T>()) as u64;
    // SAFETY: the buffer holds all three tensors, lives until its stream is synchronised, and is used there alone.
    unsafe { DeviceViewMut::from_raw(address, T::DTYPE, extents, strides) }
}

/// A buffer on the host; what is taken out of it becomes poison.
struct Taken<T> {
    name: &'static str,
    data: Vec<T>,
}

impl<T: Half> Taken<T> {
    fn new(gpu: &Gpu, name: &'static str, data: &CudaSlice<T>) -> Result<Self, String> {
        let data = gpu.stream.clone_dtoh(data).map_err(|error| error.to_string())?;
        gpu.stream.synchronize().map_err(|error| error.to_string())?;
        Ok(Self { name, data })
    }

    fn take(&mut self, places: impl Iterator<Item = usize>) -> Vec<T> {
        let poison = nan::<T>(1)[0];
        places.map(|place| std::mem::replace(&mut self.data[GUARD + place], poison)).collect()
    }

    fn untouched(&self) -> Result<(), String> {
        let touched = bytemuck::cast_slice::<T, u16>(&self.data).iter().filter(|bits| **bits != 0xFFFF);
        match touched.count() {
            0 => Ok(()),
            count => Err(format!("{count} elements around {} were written", self.name)),
        }
    }
}

/// Rows of all segments, dense [b, s, h, d].
fn gather<T: Half>(
    case: &Case,
    (pools, table): (&[Pool<T>], &[SegmentAt]),
    taken: &mut [Taken<T>],
) -> Vec<T> {
    let keys = case.keys();
    let d = keys.head_dim;
    let mut dense = nan::<T>(count(keys));
    let mut first = 0;
    for at in table {
        let (strides, inner) = (pools[at.map].strides, pools[at.map].extents.heads_per_group);
        let all = (0..keys.batch).flat_map(|b| (0..at.rows).map(move |row| (b, row)));
        for (b, row) in all {
            for head in 0..keys.heads {
                let place = (at.slab + b) * strides.slabs
                    + head / inner * strides.groups
                    + row * strides.rows
                    + head % inner * strides.heads;
                let to = ((b * keys.seq + first + row) * keys.heads + head) * d;
                dense[to..to + d].copy_from_slice(&taken[at.map].take(place..place + d));
            }
        }
        first += at.rows;
    }
    dense
}
