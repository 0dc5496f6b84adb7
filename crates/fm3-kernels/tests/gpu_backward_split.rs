//! Backward passes whose KV heads are split into parts of their query heads, and dK, dV in f32.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "packed gradients overlap, as no safe view may")]
mod gpu_common;

use fm3_kernels::cuda::{BackwardWorkspace, CudaError, PreparedMask};
use fm3_kernels::mask::MaskDims;
use fm3_kernels::{Error, FlashMask, Shape};
use gpu_common::backward::{GradBuffers, Workspaces, run_both};
use gpu_common::case::Segmented;
use gpu_common::gradients::{Grads, check_gradients};
use gpu_common::keys::{Buffers, Half, Waits};
use gpu_common::problems::{dims, shared};
use gpu_common::{Case, Gpu, Layout, Suite, masks};
use half::{bf16, f16};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// Query and KV heads, and parts of a KV head.
const SPLITS: [([usize; 2], usize); 6] =
    [([8, 2], 2), ([8, 2], 4), ([7, 1], 7), ([14, 2], 7), ([8, 1], 8), ([6, 1], 3)];

/// Masks of one head for all, and of heads that differ inside a KV head.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (seed, (heads, parts)) in (0..).zip(SPLITS) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let index = usize::try_from(seed).unwrap();
        let batch = [1, 3][index % 2];
        let sizes = dims(batch, heads, [[130, 70], [257, 300], [64, 385]][index % 3]);
        let layout = [Layout::Bshd, Layout::Bhsd, Layout::Gaps][index % 3];
        let raw = masks::raw(MaskDims { heads: heads[0], ..shared(sizes) }, &mut rng);
        for (name, mask) in [("causal", FlashMask::causal(shared(sizes)).unwrap()), ("raw", raw)] {
            let margin = [0, 131][index / 2 % 2];
            cases.push(Case {
                layout,
                margin,
                head_parts: Some(parts),
                ..Case::new(name, sizes, mask, seed)
            });
        }
    }
    let sizes = dims(2, [4, 1], [129, 129]);
    let packed = Case::new("packed", sizes, FlashMask::full(shared(sizes)).unwrap(), 77);
    cases.push(Case { layout: Layout::Packed, head_parts: Some(4), section_heads: Some(1), ..packed });
    cases
}

#[test]
fn parts_of_heads_add_up() {
    fn typed<T: Half>(gpu: &Gpu, workspaces: &mut Workspaces, case: &Case) -> Result<(), String> {
        let tensors = case.tensors::<T>();
        let got = run_both(gpu, case, &tensors, workspaces)?;
        check_gradients(case, &tensors, &got)?;
        // On one multiprocessor the same sums are made in the same order.
        let alone = Case { margin: usize::MAX, ..case.clone() };
        let again = run_both(gpu, &alone, &tensors, workspaces)?;
        same_bits([&got.dk, &got.dv], [&again.dk, &again.dv])
    }
    let Some(gpu) = Gpu::new() else { return };
    let mut workspaces = Workspaces::new(&gpu);
    let mut suite = Suite::new("split");
    for (index, case) in cases().iter().enumerate() {
        suite.case(case, || match index % 2 {
            0 => typed::<bf16>(&gpu, &mut workspaces, case),
            _ => typed::<f16>(&gpu, &mut workspaces, case),
        });
    }
}

/// dK and dV in f32 are what is rounded elsewhere: with one part in the plain call, too.
#[test]
fn gradients_in_f32_round_to_those_in_16_bits() {
    fn typed<T: Half>(gpu: &Gpu, workspaces: &mut Workspaces, case: &Case) -> Result<(), String> {
        let text = |error: Error| error.to_string();
        let tensors = case.tensors::<T>();
        let mask =
            PreparedMask::new(gpu.kernels(), &gpu.stream, &case.mask, &case.segments()).map_err(text)?;
        let mut buffers = Buffers::new(gpu, case, &tensors);
        let forward = Case { section_heads: None, ..case.clone() };
        buffers.launch(gpu, &forward, &mask, &mut workspaces.forward, Waits::default()).map_err(text)?;
        let mut grads = GradBuffers::new(gpu, case, &buffers);
        let workspace = &mut workspaces.backward;
        let wide = grads.launch_wide(gpu, case, (&buffers, &mask), workspace).map_err(text)?;
        let [dk, dv] = wide.map(|all| all.into_iter().map(T::from_f32).collect::<Vec<_>>());
        grads.launch(gpu, case, (&buffers, &mask), workspace).map_err(text)?;
        let got = grads.outputs(gpu, case, &buffers)?;
        same_bits([&got.dk, &got.dv], [&dk, &dv])?;
        check_gradients(case, &tensors, &Grads { dk, dv, dq: got.dq })
    }
    let Some(gpu) = Gpu::new() else { return };
    let mut workspaces = Workspaces::new(&gpu);
    let mut suite = Suite::new("f32");
    for case in cases().iter().filter(|case| case.layout != Layout::Packed) {
        for head_parts in [case.head_parts, None] {
            let case = Case { head_parts, ..case.clone() };
            suite.case(&case, || match case.seed % 2 {
                0 => typed::<bf16>(&gpu, &mut workspaces, &case),
                _ => typed::<f16>(&gpu, &mut workspaces, &case),
            });
        }
    }
}

#[test]
fn what_cannot_be_split_is_named() {
    let Some(gpu) = Gpu::new() else { return };
    let sizes = dims(1, [6, 1], [130, 140]);
    let good =
        Case { head_parts: Some(3), ..Case::new("split", sizes, FlashMask::full(shared(sizes)).unwrap(), 1) };
    let shape = Shape::new(sizes).unwrap();
    let needed = BackwardWorkspace::bytes_split(shape, 3);
    assert_eq!(needed, BackwardWorkspace::bytes(shape) + 1024 * 3 * 256);
    let run = |case: &Case, bytes: usize| {
        let mask = PreparedMask::new(gpu.kernels(), &gpu.stream, &case.mask, &case.segments()).unwrap();
        let buffers = Buffers::new(&gpu, case, &case.tensors::<bf16>());
        let mut workspace = BackwardWorkspace::from_memory(gpu.stream.alloc_zeros(bytes).unwrap()).unwrap();
        let mut grads = GradBuffers::new(&gpu, case, &buffers);
        let plain = grads.launch(&gpu, case, (&buffers, &mask), &mut workspace);
        let passes = grads.launch_parts(&gpu, case, (&buffers, &mask), &mut workspace, &[]);
        let wide = Case { head_parts: None, ..case.clone() };
        let wide = grads.launch_wide(&gpu, &wide, (&buffers, &mask), &mut workspace).map(|_| ());
        (plain, passes, wide)
    };
    let named = |result: Result<(), Error>, want: &str| {
        let error = result.unwrap_err();
        assert!(
            matches!(&error, Error::Cuda(CudaError::Value { name, .. }) if *name == want),
            "{want}: {error}"
        );
    };
    let (plain, passes, wide) = run(&good, needed);
    plain.unwrap();
    wide.unwrap();
    named(passes, "head_parts");
    let (plain, _, _) = run(&good, needed - 1);
    let small = CudaError::Workspace { call: "Attention::backward", needed, bytes: needed - 1 };
    assert_eq!(plain.unwrap_err(), small.into());
    for parts in [0, 4, 12] {
        named(run(&Case { head_parts: Some(parts), ..good.clone() }, needed).0, "head_parts");
    }
    let (plain, _, wide) = run(&Case { deterministic: true, ..good.clone() }, needed);
    named(plain, "deterministic");
    named(wide, "deterministic");
    let segmented = Some(Segmented { rows: vec![100, 40], heads_per_group: 1 });
    named(run(&Case { segmented, ..good }, needed).0, "segments");
}

fn same_bits<T: Half>(got: [&[T]; 2], want: [&[T]; 2]) -> Result<(), String> {
    for (name, (got, want)) in ["dK", "dV"].into_iter().zip(got.into_iter().zip(want)) {
        let differ =
            got.iter().zip(want).filter(|(got, want)| got.to_f32().to_bits() != want.to_f32().to_bits());
        let differ = differ.count();
        if differ != 0 || got.len() != want.len() {
            return Err(format!("{differ} of {} elements of {name} differ", want.len()));
        }
    }
    Ok(())
}
