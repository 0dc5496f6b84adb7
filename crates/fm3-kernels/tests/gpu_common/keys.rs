//! Problems in device memory: tensors between NaN, poisoned outputs, keys in one piece or in segments.
use fm3_kernels::Element;
use fm3_kernels::cuda::cudarc::driver::{CudaSlice, DeviceRepr};
use fm3_kernels::cuda::{
    AbortWord, DeviceView, DeviceViewMut, ForwardCall, ForwardOptions, ForwardTimes, KeyExtents, KeyMap,
    KeyStrides, KeyTable, KeyView, Keys, LseMut, PreparedMask, SegmentAt, Signal, Wait, Workspace,
};
use fm3_kernels::view::{Extents, Strides};

use super::case::{Case, Layout, Outputs, Segmented, Tensors, places};
use super::device::Gpu;

/// Elements before and behind O and LSE that must stay as they are.
pub const GUARD: usize = 4096;

pub trait Half: Element + DeviceRepr {}
impl Half for half::bf16 {}
impl Half for half::f16 {}

/// All memory of one problem.
pub struct Buffers<T> {
    pub q: CudaSlice<T>,
    pub kv: KeyBuffers<T>,
    pub o: CudaSlice<T>,
    pub lse: CudaSlice<f32>,
}

pub enum KeyBuffers<T> {
    /// K and V, or [q, k, v] in the buffer of Q.
    Whole(Option<[CudaSlice<T>; 2]>),
    Segments {
        pools: Vec<Pool<T>>,
        table: Vec<SegmentAt>,
    },
}

/// All segments of one length: [slabs, groups, rows + padding, heads of a group, d].
pub struct Pool<T> {
    pub k: CudaSlice<T>,
    pub v: CudaSlice<T>,
    pub extents: KeyExtents,
    pub strides: KeyStrides,
}

/// What a launch may wait for.
#[derive(Clone, Copy, Default)]
pub struct Waits<'a> {
    pub wait: Option<Wait>,
    pub abort: Option<&'a AbortWord>,
    pub times: Option<&'a ForwardTimes>,
}

pub fn nan<T: Element>(len: usize) -> Vec<T> {
    vec![bytemuck::cast_slice::<u16, T>(&[0xFFFF])[0]; len]
}

impl<T: Half> Buffers<T> {
    pub fn new(gpu: &Gpu, case: &Case, tensors: &Tensors<T>) -> Self {
        let upload = |data: &[T]| gpu.stream.clone_htod(data).unwrap();
        let one = |data: &[T], extents: Extents| {
            let (strides, len) = case.layout.strides(extents);
            let mut buffer = nan(len);
            places(extents, strides).zip(data).for_each(|(place, value)| buffer[place] = *value);
            upload(&buffer)
        };
        let whole = || KeyBuffers::Whole(Some([&tensors.k, &tensors.v].map(|data| one(data, case.keys()))));
        let (q, kv) = match (&case.segmented, case.layout) {
            (None, Layout::Packed) => (upload(&packed(case, tensors)), KeyBuffers::Whole(None)),
            (None, _) => (one(&tensors.q, case.queries()), whole()),
            (Some(all), _) => (one(&tensors.q, case.queries()), segmented(gpu, case, all, tensors)),
        };
        let (_, len) = case.layout.strides(case.queries());
        let o = upload(&nan(len + 2 * GUARD));
        let rows = case.dims.batch * case.dims.heads_q * case.dims.seq_q;
        let lse = gpu.stream.clone_htod(&vec![f32::from_bits(u32::MAX); rows + 2 * GUARD]).unwrap();
        Self { q, kv, o, lse }
    }

    /// Enqueues one call.
    pub fn launch(
        &mut self,
        gpu: &Gpu,
        case: &Case,
        mask: &PreparedMask,
        workspace: &mut Workspace,
        waits: Waits<'_>,
    ) -> Result<(), fm3_kernels::Error> {
        let (stream, queries) = (&gpu.stream, case.queries());
        let o_len = self.o.len();
        let lse_len = self.lse.len();
        let mut o = self.o.slice_mut(GUARD..o_len - GUARD);
        let mut lse = self.lse.slice_mut(GUARD..lse_len - GUARD);
        let options = ForwardOptions {
            section_heads: case.section_heads,
            margin: case.margin.min(gpu.kernels().multiprocessors() - 1),
            wait: waits.wait,
            abort: waits.abort,
            times: waits.times,
        };
        let (o_strides, _) = case.layout.strides(queries);
        let o = DeviceViewMut::strided(&mut o, stream, queries, o_strides)?;
        let lse = LseMut::new(&mut lse, stream);
        with_inputs(gpu, case, (&self.q, &self.kv), |q, keys| {
            let call = ForwardCall { q, keys, o: &o, lse: &lse, mask, scale: case.scale(), options };
            gpu.attention.forward(stream, &call, workspace)
        })
    }

    /// Waits, and takes the outputs; an error when anything beside them was written.
    pub fn outputs(&self, gpu: &Gpu, case: &Case) -> Result<Outputs<T>, String> {
        let mut o = gpu.stream.clone_dtoh(&self.o).map_err(|error| error.to_string())?;
        let lse = gpu.stream.clone_dtoh(&self.lse).map_err(|error| error.to_string())?;
        gpu.stream.synchronize().map_err(|error| error.to_string())?;
        let untouched = f32::from_bits(u32::MAX).to_bits();
        let (ends, inside) = (lse.len() - GUARD, lse[GUARD..lse.len() - GUARD].to_vec());
        let touched =
            lse[..GUARD].iter().chain(&lse[ends..]).filter(|word| word.to_bits() != untouched).count();
        if touched > 0 {
            return Err(format!("{touched} words around LSE were written"));
        }
        let poison = nan::<T>(1)[0];
        let strides = case.layout.strides(case.queries()).0;
        let take = |place| std::mem::replace(&mut o[GUARD + place], poison);
        let dense = places(case.queries(), strides).map(take).collect();
        let touched = bytemuck::cast_slice::<T, u16>(&o).iter().filter(|bits| **bits != 0xFFFF).count();
        if touched > 0 {
            return Err(format!("{touched} elements around O were written"));
        }
        Ok(Outputs { o: dense, lse: inside })
    }

    /// Fills the outputs with NaN again.
    pub fn poison(&mut self, gpu: &Gpu) {
        gpu.stream.memcpy_htod(&nan::<T>(self.o.len()), &mut self.o).unwrap();
        let lse = vec![f32::from_bits(u32::MAX); self.lse.len()];
        gpu.stream.memcpy_htod(&lse, &mut self.lse).unwrap();
    }

    /// New inputs in the same memory; dense layouts only.
    pub fn refill(&mut self, gpu: &Gpu, tensors: &Tensors<T>) {
        gpu.stream.memcpy_htod(&tensors.q, &mut self.q).unwrap();
        if let KeyBuffers::Whole(Some([k, v])) = &mut self.kv {
            gpu.stream.memcpy_htod(&tensors.k, k).unwrap();
            gpu.stream.memcpy_htod(&tensors.v, v).unwrap();
        }
    }
}

/// Views of Q and of the keys, for one call.
pub fn with_inputs<T: Half>(
    gpu: &Gpu,
    case: &Case,
    (q_data, kv): (&CudaSlice<T>, &KeyBuffers<T>),
    call: impl FnOnce(&DeviceView<'_>, Keys<'_>) -> Result<(), fm3_kernels::Error>,
) -> Result<(), fm3_kernels::Error> {
    let stream = &gpu.stream;
    let (q_strides, kv_strides) = match kv {
        KeyBuffers::Whole(None) => (packed_strides(case), packed_strides(case)),
        _ => (case.layout.strides(case.queries()).0, case.layout.strides(case.keys()).0),
    };
    let q = DeviceView::strided(q_data, stream, case.queries(), q_strides)?;
    match kv {
        KeyBuffers::Whole(None) => {
            let [k, v] = packed_offsets(case).map(|offset| q_data.slice(offset..));
            let k = DeviceView::strided(&k, stream, case.keys(), kv_strides)?;
            let v = DeviceView::strided(&v, stream, case.keys(), kv_strides)?;
            call(&q, Keys::Whole { k: &k, v: &v })
        }
        KeyBuffers::Whole(Some([k, v])) => {
            let k = DeviceView::strided(k, stream, case.keys(), kv_strides)?;
            let v = DeviceView::strided(v, stream, case.keys(), kv_strides)?;
            call(&q, Keys::Whole { k: &k, v: &v })
        }
        KeyBuffers::Segments { pools, table } => {
            let view = |data, pool: &Pool<T>| KeyView::strided(data, stream, pool.extents, pool.strides);
            let maps: Vec<KeyMap<'_>> = pools
                .iter()
                .map(|pool| Ok(KeyMap { k: view(&pool.k, pool)?, v: view(&pool.v, pool)? }))
                .collect::<Result<_, fm3_kernels::Error>>()?;
            call(&q, Keys::Segments { maps: &maps, table: &KeyTable::new(stream, table)? })
        }
    }
}

/// One call on memory of its own.
pub fn run<T: Half>(
    gpu: &Gpu,
    case: &Case,
    tensors: &Tensors<T>,
    workspace: &mut Workspace,
) -> Result<Outputs<T>, String> {
    let text = |error: fm3_kernels::Error| error.to_string();
    let mask = PreparedMask::new(gpu.kernels(), &gpu.stream, &case.mask, &case.segments()).map_err(text)?;
    let mut buffers = Buffers::new(gpu, case, tensors);
    buffers.launch(gpu, case, &mask, workspace, Waits::default()).map_err(text)?;
    buffers.outputs(gpu, case)
}

pub fn packed_strides(case: &Case) -> Strides {
    let row = packed_row(case);
    Strides { batch: case.dims.seq_q * row, seq: row, heads: case.dims.head_dim }
}

pub fn packed_row(case: &Case) -> usize {
    (case.dims.heads_q + 2 * case.dims.heads_kv) * case.dims.head_dim
}

pub fn packed_offsets(case: &Case) -> [usize; 2] {
    [case.dims.heads_q, case.dims.heads_q + case.dims.heads_kv].map(|heads| heads * case.dims.head_dim)
}

fn packed<T: Element>(case: &Case, tensors: &Tensors<T>) -> Vec<T> {
    assert_eq!(case.dims.seq_q, case.dims.seq_k, "packed rows hold a query and a key");
    let row = packed_row(case);
    let strides = packed_strides(case);
    let mut buffer = nan(case.dims.batch * case.dims.seq_q * row);
    let [k, v] = packed_offsets(case);
    let parts = [(0, case.queries(), &tensors.q), (k, case.keys(), &tensors.k), (v, case.keys(), &tensors.v)];
    for (offset, extents, data) in parts {
        places(extents, strides).zip(data).for_each(|(place, value)| buffer[offset + place] = *value);
    }
    buffer
}

fn segmented<T: Half>(gpu: &Gpu, case: &Case, all: &Segmented, tensors: &Tensors<T>) -> KeyBuffers<T> {
    let (pools, table) = laid_out(case, all, tensors);
    let pools = pools.into_iter().map(|HostPool { data, extents, strides }| {
        let [k, v] = data.map(|data| gpu.stream.clone_htod(&data).unwrap());
        Pool { k, v, extents, strides }
    });
    KeyBuffers::Segments { pools: pools.collect(), table }
}

/// A pool before it is copied.
pub struct HostPool<T> {
    pub data: [Vec<T>; 2],
    pub extents: KeyExtents,
    pub strides: KeyStrides,
}

/// Segments in pools by length.
pub fn laid_out<T: Element>(
    case: &Case,
    all: &Segmented,
    tensors: &Tensors<T>,
) -> (Vec<HostPool<T>>, Vec<SegmentAt>) {
    let mut lengths = all.rows.clone();
    lengths.sort_unstable();
    lengths.dedup();
    let mut table = Vec::new();
    let mut pools: Vec<[Vec<T>; 2]> = vec![[Vec::new(), Vec::new()]; lengths.len()];
    let mut first = 0;
    for rows in all.rows.iter().copied() {
        let map = lengths.binary_search(&rows).unwrap();
        let slab_len = slab_strides(case, all, rows).slabs;
        // One slab of nothing before each segment: slab numbers are not those of segments.
        let slab = pools[map][0].len() / slab_len + 1;
        for (pool, data) in pools[map].iter_mut().zip([&tensors.k, &tensors.v]) {
            pool.extend(nan::<T>((case.dims.batch + 1) * slab_len));
            fill(case, all, (first, rows), data, &mut pool[slab * slab_len..]);
        }
        table.push(SegmentAt { rows, map, slab, signal: None });
        first += rows;
    }
    let pools = lengths.iter().zip(pools).map(|(rows, data)| {
        let (strides, groups) = (slab_strides(case, all, *rows), case.dims.heads_kv / all.heads_per_group);
        let (rows, heads_per_group, slabs) = (*rows, all.heads_per_group, data[0].len() / strides.slabs);
        let extents = KeyExtents { rows, heads_per_group, groups, slabs, head_dim: case.dims.head_dim };
        HostPool { data, extents, strides }
    });
    (pools.collect(), table)
}

/// Five rows of nothing behind the rows of each group.
fn slab_strides(case: &Case, all: &Segmented, rows: usize) -> KeyStrides {
    let d = case.dims.head_dim;
    let row = all.heads_per_group * d;
    let group = (rows + 5) * row;
    KeyStrides { rows: row, heads: d, groups: group, slabs: case.dims.heads_kv / all.heads_per_group * group }
}

/// Copies the rows of one segment, a slab for each sequence.
fn fill<T: Element>(
    case: &Case,
    all: &Segmented,
    (first, rows): (usize, usize),
    data: &[T],
    slabs: &mut [T],
) {
    let (keys, strides) = (case.keys(), slab_strides(case, all, rows));
    for b in 0..keys.batch {
        for (row, head) in (0..rows).flat_map(|row| (0..keys.heads).map(move |head| (row, head))) {
            let from = ((b * keys.seq + first + row) * keys.heads + head) * keys.head_dim;
            let (group, inner) = (head / all.heads_per_group, head % all.heads_per_group);
            let to = b * strides.slabs + group * strides.groups + row * strides.rows + inner * strides.heads;
            slabs[to..to + keys.head_dim].copy_from_slice(&data[from..from + keys.head_dim]);
        }
    }
}

/// Points every segment to a signal word of its own.
pub fn with_signals<T>(buffers: &mut Buffers<T>, signal: impl Fn(usize) -> Signal) {
    if let KeyBuffers::Segments { table, .. } = &mut buffers.kv {
        table.iter_mut().enumerate().for_each(|(index, at)| at.signal = Some(signal(index)));
    }
}
