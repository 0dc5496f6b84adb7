//! Attention, to run beside the fabric: full, 8,192 rows and keys, 16 heads, bf16, as large as a layer's.
use std::cell::RefCell;
use std::sync::Arc;

use fm3_kernels::cuda::{
    Attention, DeviceView, DeviceViewMut, ForwardCall, Kernels, Keys, Lengths, LseMut, PreparedMask,
    Workspace,
};
use fm3_kernels::mask::KeySegments;
use fm3_kernels::view::Extents;
use half::bf16;
use symm_buffer::Fabric;
use symm_buffer::nvshmem::NvshmemStream;
use symm_buffer::nvshmem::cudarc::driver::{CudaEvent, CudaSlice};

use crate::rank::Rank;

/// One problem and its memory.
pub(crate) struct Work {
    pub(crate) stream: NvshmemStream,
    attention: Attention,
    mask: PreparedMask,
    extents: Extents,
    inputs: CudaSlice<bf16>,
    outputs: RefCell<(CudaSlice<bf16>, CudaSlice<f32>, Workspace)>,
    events: RefCell<Option<(CudaEvent, CudaEvent)>>,
}

impl Work {
    pub(crate) fn new(rank: &Rank) -> anyhow::Result<Self> {
        // The simulated driver computes on a CPU: there a small problem does.
        let seq = if rank.fabric.context().name()?.contains("sim") { 256 } else { 8192 };
        let extents = Extents { batch: 1, seq, heads: 16, head_dim: 128 };
        let count = seq * 16 * 128;
        let stream = rank.fabric.stream("attention")?;
        let cuda = stream.cuda();
        // Values between -1 and 1 without a pattern that compresses: power depends on them.
        let value = |at: u32| {
            let mixed = at.wrapping_mul(0x9E37_79B9);
            bf16::from_f32(((mixed ^ mixed >> 13) >> 8) as f32 / (1 << 23) as f32 - 1.0)
        };
        let inputs: Vec<bf16> = (0..).take(count).map(value).collect();
        let kernels = Arc::new(Kernels::load(rank.fabric.context(), &rank.source)?);
        let lengths = Lengths { seq_q: seq, causal: false };
        let mask = PreparedMask::plain(&kernels, cuda, lengths, &KeySegments::whole(seq)?)?;
        let outputs = (cuda.alloc_zeros(count)?, cuda.alloc_zeros(16 * seq)?, Workspace::new(cuda)?);
        let inputs = cuda.clone_htod(&inputs)?;
        cuda.synchronize()?;
        let (attention, events) = (Attention::new(kernels), RefCell::new(None));
        Ok(Self { attention, mask, extents, inputs, outputs: RefCell::new(outputs), events, stream })
    }

    /// Queues one forward pass.
    pub(crate) fn attend(&self) -> anyhow::Result<()> {
        let stream = self.stream.cuda();
        let (o, lse, workspace) = &mut *self.outputs.borrow_mut();
        let input = DeviceView::bshd(&self.inputs, stream, self.extents)?;
        let call = ForwardCall {
            q: &input,
            keys: Keys::Whole { k: &input, v: &input },
            o: &DeviceViewMut::bshd(o, stream, self.extents)?,
            lse: &LseMut::new(lse, stream),
            mask: &self.mask,
            scale: 1.0 / 128_f32.sqrt(),
            options: Default::default(),
        };
        Ok(self.attention.forward(stream, &call, workspace)?)
    }

    /// Keeps two events for later.
    pub(crate) fn keep(&self, begin: CudaEvent, end: CudaEvent) {
        *self.events.borrow_mut() = Some((begin, end));
    }

    /// Milliseconds between them, once their streams are done.
    pub(crate) fn elapsed(&self) -> anyhow::Result<Option<f32>> {
        let events = self.events.borrow_mut().take();
        Ok(events.map(|(begin, end)| begin.elapsed_ms(&end)).transpose()?)
    }
}
