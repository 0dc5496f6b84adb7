//! Backward passes in parts: a problem whose forward pass has run, and memory for f32 slots.
use std::ops::Range;

use fm3_kernels::cuda::cudarc::driver::{CudaSlice, DevicePtr};
use fm3_kernels::cuda::{GradAt, GradTable, PreparedMask, SegmentAt, Slot, SlotAt};
use fm3_kernels::{Element, Error};

use super::backward::{GradBuffers, Out, Part, Workspaces};
use super::case::{Case, Tensors};
use super::device::Gpu;
use super::gradients::Grads;
use super::keys::{Buffers, Half, KeyBuffers, Waits};

pub struct Parted<T> {
    pub gpu: Gpu,
    pub case: Case,
    pub tensors: Tensors<T>,
    pub mask: PreparedMask,
    pub buffers: Buffers<T>,
    pub workspaces: Workspaces,
}

impl<T: Half> Parted<T> {
    /// Runs the forward pass.
    pub fn new(gpu: Gpu, case: Case) -> Self {
        let tensors = case.tensors::<T>();
        let mask = PreparedMask::new(gpu.kernels(), &gpu.stream, &case.mask, &case.segments()).unwrap();
        let mut buffers = Buffers::new(&gpu, &case, &tensors);
        let mut workspaces = Workspaces::new(&gpu);
        let forward = Case { section_heads: None, ..case.clone() };
        buffers.launch(&gpu, &forward, &mask, &mut workspaces.forward, Waits::default()).unwrap();
        gpu.stream.synchronize().unwrap();
        Self { gpu, case, tensors, mask, buffers, workspaces }
    }

    /// One call, into new memory.
    pub fn plain(&mut self) -> Result<Grads<T>, String> {
        let Self { gpu, case, mask, buffers, workspaces, .. } = self;
        let mut grads = GradBuffers::new(gpu, case, buffers);
        let launched = grads.launch(gpu, case, (buffers, mask), &mut workspaces.backward);
        launched.map_err(|error| error.to_string())?;
        grads.outputs(gpu, case, buffers)
    }

    /// A pass in parts, into new memory.
    pub fn run(&mut self, parts: &[Part<'_>]) -> Result<Grads<T>, String> {
        let grads = self.enqueue(parts).map_err(|error| error.to_string())?;
        grads.outputs(&self.gpu, &self.case, &self.buffers)
    }

    /// The same without waiting for it.
    pub fn enqueue(&mut self, parts: &[Part<'_>]) -> Result<GradBuffers<T>, Error> {
        let Self { gpu, case, mask, buffers, workspaces, .. } = self;
        let mut grads = GradBuffers::new(gpu, case, buffers);
        grads.launch_parts(gpu, case, (buffers, mask), &mut workspaces.backward, parts)?;
        Ok(grads)
    }

    /// Segments as the test's keys have them.
    pub fn segments(&self) -> &[SegmentAt] {
        match &self.buffers.kv {
            KeyBuffers::Segments { table, .. } => table,
            KeyBuffers::Whole(_) => &[],
        }
    }

    /// Key tiles of some segments.
    pub fn tiles(&self, segments: Range<usize>) -> Range<usize> {
        let tiles = |end: usize| self.segments()[..end].iter().map(|at| at.rows.div_ceil(128)).sum();
        tiles(segments.start)..tiles(segments.end)
    }

    pub fn all_tiles(&self) -> usize {
        self.tiles(0..self.segments().len()).end
    }

    /// Gradients where the keys' are, and what else a table has.
    pub fn table<'a>(&self, of: impl Fn(usize) -> GradAt<'a>) -> GradTable {
        let rows: Vec<GradAt<'a>> = self
            .segments()
            .iter()
            .enumerate()
            .map(|(index, at)| GradAt { map: at.map, slab: at.slab, ..of(index) })
            .collect();
        GradTable::new(&self.gpu.stream, &self.case.segments(), &rows).unwrap()
    }
}

/// One launch without waits.
pub fn part(tiles: Range<usize>, out: Out<'_>) -> Part<'_> {
    Part { tiles, out, wait: None, abort: None }
}

/// A slot for each segment, all NaN.
pub struct Slots {
    memory: [CudaSlice<f32>; 2],
    /// First number of each segment, and one past the last.
    starts: Vec<usize>,
}

impl Slots {
    pub fn new<T: Half>(problem: &Parted<T>) -> Self {
        let mut starts = vec![0];
        for at in problem.segments() {
            starts.push(starts[starts.len() - 1] + Slot::bytes(problem.case.dims, at.rows) / 4);
        }
        let poison = vec![f32::from_bits(u32::MAX); starts[starts.len() - 1]];
        let memory = [(); 2].map(|()| problem.gpu.stream.clone_htod(&poison).unwrap());
        Self { memory, starts }
    }

    pub fn slot(&self, segment: usize) -> Slot {
        let [dk, dv] = self.memory.each_ref().map(|memory| {
            let (address, record) = memory.device_ptr(memory.stream());
            std::mem::forget(record);
            address + 4 * self.starts[segment] as u64
        });
        // SAFETY: the memory has room for all tiles of the segment and outlives the launches of its test.
        unsafe { Slot::new(SlotAt { dk, dv }) }.unwrap()
    }

    /// dK and dV of a segment as they lie.
    pub fn read(&self, segment: usize) -> [Vec<f32>; 2] {
        self.memory.each_ref().map(|memory| {
            let all = memory.stream().clone_dtoh(memory).unwrap();
            memory.stream().synchronize().unwrap();
            all[self.starts[segment]..self.starts[segment + 1]].to_vec()
        })
    }
}

/// Where row and column of a tile are, from the layout of a matrix product's accumulators: register i of thread t holds
/// row 16 (t / 32) + t % 32 / 4 + 8 (i / 2 % 2), column 8 (i / 4) + 2 (t % 4) + i % 2; four registers lie together.
pub fn place_in_tile([row, column]: [usize; 2]) -> usize {
    let found = (0..128).flat_map(|t| (0..64).map(move |i| (t, i))).find(|(t, i)| {
        (16 * (t / 32) + t % 32 / 4 + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (t % 4) + i % 2)
            == (row % 64, column)
    });
    let (t, i) = found.unwrap();
    row / 64 * 8192 + (i / 4 * 128 + t) * 4 + i % 4
}

/// Bits of all gradients.
pub fn bits<T: Element>(grads: &Grads<T>) -> [Vec<u32>; 3] {
    [&grads.dq, &grads.dk, &grads.dv].map(|data| data.iter().map(|value| value.to_f32().to_bits()).collect())
}
