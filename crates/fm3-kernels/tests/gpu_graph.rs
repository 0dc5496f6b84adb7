//! Calls captured into a graph. In a program of its own: event tracking is off for the whole context.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "event tracking is switched off, as captures need it")]
mod gpu_common;

use fm3_kernels::cuda::cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use fm3_kernels::cuda::{CudaError, PreparedMask, Wait, Workspace};
use fm3_kernels::mask::MaskDims;
use fm3_kernels::{Dims, Error};
use gpu_common::keys::{Buffers, Waits, run};
use gpu_common::{Case, Gpu, Suite, check, masks};
use half::bf16;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

const CAPTURE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;

fn case(seed: u64) -> Case {
    let dims = Dims { batch: 1, heads_q: 4, heads_kv: 2, seq_q: 700, seq_k: 900, head_dim: 128 };
    let mask_dims = MaskDims { batch: 1, heads: 2, seq_q: 700, seq_k: 900 };
    Case::new("graph", dims, masks::raw(mask_dims, &mut ChaCha8Rng::seed_from_u64(1)), seed)
}

#[test]
fn twenty_replays_with_new_inputs_and_no_capture_of_waits() {
    let Some(gpu) = Gpu::new() else { return };
    // SAFETY: every slice of this program is used on one stream, in whose order it is freed.
    unsafe { gpu.context().disable_event_tracking() };
    let mut suite = Suite::new("graph");
    let mut workspace = Workspace::new(&gpu.stream).unwrap();
    let first = case(0);
    let mask = PreparedMask::new(gpu.kernels(), &gpu.stream, &first.mask, &first.segments()).unwrap();
    let mut buffers = Buffers::new(&gpu, &first, &first.tensors::<bf16>());
    gpu.stream.begin_capture(CAPTURE).unwrap();
    let captured = buffers.launch(&gpu, &first, &mask, &mut workspace, Waits::default());
    let wait = Some(Wait { base: 0, heads_per_piece: 1, deadline: None });
    let refused = buffers.launch(&gpu, &first, &mask, &mut workspace, Waits { wait, ..Waits::default() });
    let graph = gpu.stream.end_capture(CUgraphInstantiate_flags(0)).unwrap().unwrap();
    captured.unwrap();
    assert_eq!(refused, Err(Error::from(CudaError::Capture { call: "Attention::forward" })));
    for seed in 1..21 {
        let case = case(seed);
        suite.case(&case, || {
            let tensors = case.tensors::<bf16>();
            buffers.refill(&gpu, &tensors);
            buffers.poison(&gpu);
            graph.launch().unwrap();
            let replayed = buffers.outputs(&gpu, &case)?;
            if replayed.bits() != run(&gpu, &case, &tensors, &mut workspace)?.bits() {
                return Err("replay and call differ".to_owned());
            }
            check(&case, &tensors, &replayed)
        });
    }
}
