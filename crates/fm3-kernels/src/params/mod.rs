//! Structs that Rust hands to the kernels: declared here once, written out as a C++ header by [`header`].
//!
//! Each is `#[repr(C)]` without padding, so its bytes are the same on both sides. `cargo xtask codegen` writes
//! `kernels/include/fm3/generated/params.h`, whose static_asserts compare every size and offset again. Every
//! binary of kernels carries [`ABI_HASH`]; the loader refuses one that was built from other structs.
mod backward;
mod forward;
mod header;
mod layout;
mod mask;
mod probe;

pub use backward::{
    BackwardFinishParams, BackwardOrderParams, BackwardParams, BackwardPrepareParams, BackwardSumParams,
    GradSegment, GradSlot,
};
pub use forward::{ForwardParams, KEY_MAPS, KeySegment, TensorMap, WaitReport, WaitTimes};
pub use header::header;
pub use layout::{CxxType, DeviceStruct, Field, KernelParams, Layout, MAX_PARAM_BYTES};
pub use mask::{MaskListsParams, MaskRankParams, MaskTilesParams};
pub use probe::{
    ProbeCheckParams, ProbeClockParams, ProbeCopyParams, ProbeEchoParams, ProbeHoldParams, Source, pattern,
};

/// All structs, in the order of the header: a struct stands behind those that it holds.
pub const LAYOUTS: [Layout; 20] = [
    TensorMap::LAYOUT,
    KeySegment::LAYOUT,
    WaitReport::LAYOUT,
    WaitTimes::LAYOUT,
    ForwardParams::LAYOUT,
    MaskTilesParams::LAYOUT,
    MaskListsParams::LAYOUT,
    MaskRankParams::LAYOUT,
    BackwardPrepareParams::LAYOUT,
    GradSegment::LAYOUT,
    GradSlot::LAYOUT,
    BackwardOrderParams::LAYOUT,
    BackwardParams::LAYOUT,
    BackwardFinishParams::LAYOUT,
    BackwardSumParams::LAYOUT,
    ProbeCopyParams::LAYOUT,
    ProbeHoldParams::LAYOUT,
    ProbeEchoParams::LAYOUT,
    ProbeCheckParams::LAYOUT,
    ProbeClockParams::LAYOUT,
];

/// Hash of the names, types, sizes and offsets of all [`LAYOUTS`]: equal on both sides, or nothing is launched.
pub const ABI_HASH: u64 = layout::hash(&LAYOUTS);
