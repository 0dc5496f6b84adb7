//! The kernels by name.
use fm3_kernels::params::{self, ABI_HASH};
use half::{bf16, f16};

use crate::backward::{Form, finish, finish_part, gradients, order, prepare, sum_parts};
use crate::blocks::Shape;
use crate::forward::{forward, timed_forward};
use crate::mask;
use crate::probe;

/// Dynamic shared memory that the persistent kernels want, bytes: more than a launch has unless it asks for it.
pub(crate) static SHARED_MEMORY: u32 = SHARED;

const SHARED: u32 = 200 << 10;

/// What binaries carry to be compared at load.
pub(crate) static HASH: u64 = ABI_HASH;

/// A kernel.
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    pub(crate) parameter_bytes: usize,
    /// Threads of a block that the kernel is made for.
    pub(crate) threads: u32,
    /// Dynamic shared memory that it uses whatever its parameters are, bytes.
    pub(crate) shared_memory: u32,
    pub(crate) run: fn(address: u64, shape: Shape),
}

macro_rules! kernels {
    ($($name:literal: $params:ident, $threads:literal x $shared:expr => $run:expr;)*) => {
        &[$(Kernel {
            name: $name,
            parameter_bytes: size_of::<params::$params>(),
            threads: $threads,
            shared_memory: $shared,
            run: |address, shape| {
                let run: fn(&params::$params, Shape) = $run;
                run(&crate::memory::Array::<params::$params>::at(address).get(0), shape);
            },
        },)*]
    };
}

/// All of them; the number of a kernel is one more than its place here.
pub(crate) static KERNELS: &[Kernel] = kernels! {
    "fm3_mask_tiles": MaskTilesParams, 128 x 0 => mask::tiles;
    "fm3_mask_lists": MaskListsParams, 128 x 0 => mask::lists;
    "fm3_mask_rank": MaskRankParams, 1024 x 0 => mask::rank;
    "fm3_fwd_d128_bf16": ForwardParams, 384 x SHARED => forward::<bf16>;
    "fm3_fwd_d128_timed_bf16": ForwardParams, 384 x SHARED => timed_forward::<bf16>;
    "fm3_fwd_d128_f16": ForwardParams, 384 x SHARED => forward::<f16>;
    "fm3_fwd_d128_timed_f16": ForwardParams, 384 x SHARED => timed_forward::<f16>;
    "fm3_bwd_prepare_bf16": BackwardPrepareParams, 256 x 0 => prepare::<bf16>;
    "fm3_bwd_d128_bf16": BackwardParams, 384 x SHARED => |p, shape| gradients::<bf16>(p, shape, Form::PLAIN);
    "fm3_bwd_finish_bf16": BackwardFinishParams, 256 x 0 => finish::<bf16>;
    "fm3_bwd_d128_part_bf16": BackwardParams, 384 x SHARED => |p, shape| gradients::<bf16>(p, shape, Form::PART);
    "fm3_bwd_d128_slots_bf16": BackwardParams, 384 x SHARED => |p, shape| gradients::<bf16>(p, shape, Form::SLOTS);
    "fm3_bwd_d128_ordered_bf16": BackwardParams, 384 x SHARED => |p, shape| gradients::<bf16>(p, shape, Form::ORDERED);
    "fm3_bwd_d128_ordered_slots_bf16": BackwardParams, 384 x SHARED
        => |p, shape| gradients::<bf16>(p, shape, Form::ORDERED_SLOTS);
    "fm3_bwd_order_bf16": BackwardOrderParams, 1024 x 0 => order;
    "fm3_bwd_finish_part_bf16": BackwardFinishParams, 256 x 0 => finish_part::<bf16>;
    "fm3_bwd_d128_split_bf16": BackwardParams, 384 x SHARED => |p, shape| gradients::<bf16>(p, shape, Form::SPLIT);
    "fm3_bwd_sum_bf16": BackwardSumParams, 256 x 0 => sum_parts::<bf16>;
    "fm3_bwd_sum_f32_bf16": BackwardSumParams, 256 x 0 => sum_parts::<f32>;
    "fm3_bwd_prepare_f16": BackwardPrepareParams, 256 x 0 => prepare::<f16>;
    "fm3_bwd_d128_f16": BackwardParams, 384 x SHARED => |p, shape| gradients::<f16>(p, shape, Form::PLAIN);
    "fm3_bwd_finish_f16": BackwardFinishParams, 256 x 0 => finish::<f16>;
    "fm3_bwd_d128_part_f16": BackwardParams, 384 x SHARED => |p, shape| gradients::<f16>(p, shape, Form::PART);
    "fm3_bwd_d128_slots_f16": BackwardParams, 384 x SHARED => |p, shape| gradients::<f16>(p, shape, Form::SLOTS);
    "fm3_bwd_d128_ordered_f16": BackwardParams, 384 x SHARED => |p, shape| gradients::<f16>(p, shape, Form::ORDERED);
    "fm3_bwd_d128_ordered_slots_f16": BackwardParams, 384 x SHARED
        => |p, shape| gradients::<f16>(p, shape, Form::ORDERED_SLOTS);
    "fm3_bwd_order_f16": BackwardOrderParams, 1024 x 0 => order;
    "fm3_bwd_finish_part_f16": BackwardFinishParams, 256 x 0 => finish_part::<f16>;
    "fm3_bwd_d128_split_f16": BackwardParams, 384 x SHARED => |p, shape| gradients::<f16>(p, shape, Form::SPLIT);
    "fm3_bwd_sum_f16": BackwardSumParams, 256 x 0 => sum_parts::<f16>;
    "fm3_bwd_sum_f32_f16": BackwardSumParams, 256 x 0 => sum_parts::<f32>;
    "fm3_probe_copy": ProbeCopyParams, 512 x 0 => probe::copy;
    "fm3_probe_hold": ProbeHoldParams, 32 x 0 => probe::hold;
    "fm3_probe_echo": ProbeEchoParams, 1 x 0 => probe::echo;
    "fm3_probe_check": ProbeCheckParams, 512 x 0 => probe::check;
    "fm3_probe_clock": ProbeClockParams, 1 x 0 => probe::clock;
};

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_entry_point_of_the_binaries_is_here_and_nothing_else() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../kernels/kernels.toml");
        let manifest: toml::Table = std::fs::read_to_string(file).unwrap().parse().unwrap();
        // NVSHMEM's own device code is not simulated.
        let is_ours = |binary: &&toml::Value| binary.get("nvshmem").is_none();
        let binaries = manifest["binary"].as_array().unwrap().iter().filter(is_ours);
        let entries = binaries.flat_map(|binary| binary["kernels"].as_table().unwrap().keys());
        let want: BTreeSet<&str> = entries.map(String::as_str).collect();
        let got: BTreeSet<&str> = KERNELS.iter().map(|kernel| kernel.name).collect();
        assert_eq!(got, want);
        assert_eq!(got.len(), KERNELS.len());
    }
}
