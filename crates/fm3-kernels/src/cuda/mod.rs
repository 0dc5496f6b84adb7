//! Attention on a Hopper GPU: kernels loaded at run time over the driver API.
//!
//! Neither toolkit nor driver is needed to build this; without them [`context`] answers with an error. The kernels are
//! CUDA C++ of this project (`kernels/`), compiled by `cargo xtask build-kernels`; [`KernelSource`] says where they are
//! looked for. Head dim 128, bf16 and fp16, sums in f32; any sequence lengths, GQA ratio and mask.
//!
//! ```no_run
//! use std::sync::Arc;
//!
//! use fm3_kernels::cuda::{
//!     Attention, DeviceView, DeviceViewMut, ForwardCall, KernelSource, Kernels, Keys, Lengths, LseMut, PreparedMask,
//!     Workspace, context,
//! };
//! use fm3_kernels::mask::KeySegments;
//! use fm3_kernels::view::Extents;
//! use half::bf16;
//!
//! let context = context(0)?;
//! let stream = context.default_stream();
//! let attention = Attention::new(Arc::new(Kernels::load(&context, &KernelSource::Search)?));
//! let mut workspace = Workspace::new(&stream)?;
//!
//! // Causal, 16 query heads share 4 KV heads.
//! let (q, kv) = ([1, 4096, 16, 128], [1, 4096, 4, 128]);
//! let extents = |[batch, seq, heads, head_dim]: [usize; 4]| Extents { batch, seq, heads, head_dim };
//! let count = |sizes: [usize; 4]| sizes.iter().product::<usize>();
//! let q_data = stream.alloc_zeros::<bf16>(count(q)).expect("memory");
//! let (k_data, v_data) = (q_data.slice(..count(kv)), q_data.slice(..count(kv)));
//! let mut o_data = stream.alloc_zeros::<bf16>(count(q)).expect("memory");
//! let mut lse_data = stream.alloc_zeros::<f32>(16 * 4096).expect("memory");
//!
//! let lengths = Lengths { seq_q: 4096, causal: true };
//! let mask = PreparedMask::plain(attention.kernels(), &stream, lengths, &KeySegments::whole(4096)?)?;
//! let k = DeviceView::bshd(&k_data, &stream, extents(kv))?;
//! let v = DeviceView::bshd(&v_data, &stream, extents(kv))?;
//! let call = ForwardCall {
//!     q: &DeviceView::bshd(&q_data, &stream, extents(q))?,
//!     keys: Keys::Whole { k: &k, v: &v },
//!     o: &DeviceViewMut::bshd(&mut o_data, &stream, extents(q))?,
//!     lse: &LseMut::new(&mut lse_data, &stream),
//!     mask: &mask,
//!     scale: 1.0 / 128_f32.sqrt(),
//!     options: Default::default(),
//! };
//! attention.forward(&stream, &call, &mut workspace)?;
//! # Ok::<(), fm3_kernels::Error>(())
//! ```
//!
//! **Streams.** A [`Workspace`] and the views of a call belong to one stream. Views made from cudarc's slices are ordered
//! among streams as cudarc orders them; for graphs, switch its event tracking off before allocating.
//!
//! **Keys in segments** ([`KeyTable`]) may still be on their way when a call is enqueued: the kernel waits for a segment's
//! [`Signal`] before it first loads from it, with a deadline. A wait that expires leaves NaN and a report.
//!
//! **Backward.** [`Attention::backward`] takes O and LSE of a forward call, and a [`BackwardWorkspace`] of a stated size;
//! it recomputes P tile by tile. dK and dV repeat bit by bit; dQ is a sum in f32 whose order is fixed by
//! [`BackwardOptions::deterministic`] only.
//!
//! **Backward in parts.** [`Attention::begin_backward`] takes keys that may still be on their way; each
//! [`BackwardPass::gradients`] launches some of the key tiles and sends their dK and dV where a [`GradTable`] says: to
//! tensors, rounded once, or to f32 [`Slot`]s, which [`BackwardPass::sum_slots`] or a later launch adds up;
//! [`BackwardPass::finish`] writes dQ (`docs/decisions/0007-backward-for-communication.md`).
mod arena;
mod attention;
mod backward;
mod backward_expired;
mod backward_kernels;
mod backward_parts;
mod backward_problem;
mod backward_slots;
mod backward_split;
mod backward_views;
mod backward_workspace;
mod check;
mod clock;
mod driver;
mod error;
mod files;
mod kernels;
mod keys;
mod launch;
#[cfg(feature = "nvtx")]
mod nvtx;
mod prepare;
mod prepared;
mod probe;
mod problem;
mod sections;
mod tensor_map;
mod times;
mod view;
mod workspace;

pub use attention::{Attention, ForwardCall, ForwardOptions, Wait};
pub use backward::{BackwardCall, BackwardInputs, BackwardOptions};
pub use backward_expired::{BackwardExpired, TurnExpired};
pub use backward_parts::{BackwardPass, GradientPart, PartGrads};
pub use backward_slots::{AddedSlot, GradAt, GradTable, Slot, SlotAt, WrittenTiles};
pub use backward_views::{KeyGradMap, KeyGrads, KeyViewMut, LseView};
pub use backward_workspace::BackwardWorkspace;
pub use clock::ClockPair;
pub use cudarc;
pub use driver::{context, is_present};
pub use error::CudaError;
pub use files::KernelSource;
pub use kernels::Kernels;
pub use keys::{KeyExtents, KeyMap, KeyStrides, KeyTable, KeyView, Keys, SegmentAt, Signal};
#[cfg(feature = "nvtx")]
pub use nvtx::NvtxRange;
pub use prepared::{Lengths, MaskForm, PreparedMask};
pub use probe::{Blocks, Probes};
pub use times::{DeviceSpan, ForwardTimes, ForwardTook, PieceCounts, PieceWait};
pub use view::{DeviceView, DeviceViewMut, LseAt, LseMut};
pub use workspace::{AbortWord, WaitExpired, Workspace};
