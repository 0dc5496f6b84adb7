//! Backward calls: bits that repeat, masks and shapes that change, what is refused; and the comparison itself.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "packed gradients overlap, as no safe view may")]
mod gpu_common;

use std::path::{Path, PathBuf};

use fm3_kernels::cuda::{
    Attention, BackwardCall, BackwardOptions, BackwardWorkspace, CudaError, DeviceView, DeviceViewMut,
    KernelSource, Kernels, KeyExtents, KeyGradMap, KeyGrads, KeyMap, KeyStrides, KeyTable, KeyView,
    KeyViewMut, Keys, Lengths, LseView, PreparedMask, SegmentAt, Signal,
};
use fm3_kernels::mask::{KeySegments, MaskDims};
use fm3_kernels::view::Extents;
use fm3_kernels::{Dims, Element, Error, FlashMask, Shape, View4, View4Mut, cpu};
use gpu_common::backward::{GradBuffers, Workspaces, run_both};
use gpu_common::case::{Tensors, count};
use gpu_common::device::special_folder;
use gpu_common::gradients::{Grads, check_gradients, dout};
use gpu_common::keys::{Buffers, Waits};
use gpu_common::{Case, Gpu, Suite, masks};
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random_case(seed: u64, longest: usize) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (seq_q, seq_k) = (rng.random_range(1..longest), rng.random_range(1..longest));
    let dims = Dims { batch: 2, heads_q: 8, heads_kv: 2, seq_q, seq_k, head_dim: 128 };
    let mask = masks::raw(MaskDims { batch: 2, heads: 4, seq_q, seq_k }, &mut rng);
    Case::new("random", dims, mask, seed)
}

/// The comparison holds the CPU engine's gradients for good, and three small mistakes for bad. Needs no device.
#[test]
fn the_comparison_tells_right_from_wrong() {
    for seed in 0..3 {
        let case = random_case(seed, 200);
        compare_engine::<bf16>(&case);
        compare_engine::<f16>(&case);
    }
    for (seed, (seq_q, seq_k)) in (0..).zip([(1, 1), (1000, 1), (1, 1000), (65, 64)]) {
        let dims = Dims { batch: 1, heads_q: 2, heads_kv: 1, seq_q, seq_k, head_dim: 128 };
        let mask = FlashMask::causal(MaskDims { batch: 1, heads: 1, seq_q, seq_k }).unwrap();
        let case = Case::new("small", dims, mask, seed);
        check_gradients(&case, &case.tensors(), &engine::<bf16>(&case, &case.tensors())).unwrap();
        check_gradients(&case, &case.tensors(), &engine::<f16>(&case, &case.tensors())).unwrap();
    }
}

fn compare_engine<T: Element>(case: &Case) {
    let tensors = case.tensors::<T>();
    let grads = engine(case, &tensors);
    check_gradients(case, &tensors, &grads).unwrap();
    let changed = |change: &dyn Fn(&mut Grads<T>)| {
        let mut wrong = grads.clone();
        change(&mut wrong);
        check_gradients(case, &tensors, &wrong).unwrap_err()
    };
    changed(&|wrong| wrong.dq[0] = T::from_f32(f32::NAN));
    changed(&|wrong| wrong.dv[0] = T::from_f32(wrong.dv[0].to_f32() + 0.3));
    let percent = |value: &mut T| *value = T::from_f32(value.to_f32() * 1.01);
    changed(&|wrong| wrong.dk.iter_mut().for_each(percent));
}

fn engine<T: Element>(case: &Case, tensors: &Tensors<T>) -> Grads<T> {
    let (queries, keys, mask) = (case.queries(), case.keys(), case.full_mask());
    let view = |data, extents| View4::bshd(data, extents).unwrap();
    let (shape, q) = (Shape::new(case.dims).unwrap(), view(&tensors.q, queries));
    let problem = cpu::Problem { shape, mask: &mask, scale: case.scale(), q };
    let (k, v) = (view(&tensors.k, keys), view(&tensors.v, keys));
    let pieces = cpu::Keys { k, v, first_column: 0, first_head: 0 };
    let zeros = |extents| vec![T::from_f32(0.0); count(extents)];
    let (mut o, mut lse) = (zeros(queries), vec![0.0; queries.batch * queries.heads * queries.seq]);
    cpu::forward(problem, &pieces, &mut View4Mut::bshd(&mut o, queries).unwrap(), &mut lse).unwrap();
    let mut grads = Grads { dq: zeros(queries), dk: zeros(keys), dv: zeros(keys) };
    let dout = dout::<T>(case);
    let saved = cpu::Saved { o: view(&o, queries), dout: view(&dout, queries), lse: &lse };
    let out = cpu::Grads {
        dq: View4Mut::bshd(&mut grads.dq, queries).unwrap(),
        dk: View4Mut::bshd(&mut grads.dk, keys).unwrap(),
        dv: View4Mut::bshd(&mut grads.dv, keys).unwrap(),
    };
    cpu::backward(problem, &pieces, saved, out).unwrap();
    grads
}

#[test]
fn equal_calls_give_equal_bits_of_dk_and_dv() {
    let Some(gpu) = Gpu::new() else { return };
    let mut suite = Suite::new("backward repeats");
    let mut workspaces = Workspaces::new(&gpu);
    for seed in 0..4 {
        let mut case = random_case(seed, 1500);
        suite.case(&case.clone(), || {
            let tensors = case.tensors::<bf16>();
            let first = run_both(&gpu, &case, &tensors, &mut workspaces)?;
            let bits = |grads: &Grads<bf16>| [&grads.dk, &grads.dv].map(|data| to_bits(data));
            for repeat in 0..20 {
                // Neither the number of blocks nor the order of tiles may show.
                case.margin = [0, 1, 100, 130][repeat % 4];
                case.section_heads = [None, Some(1), Some(3)][repeat % 3];
                let again = run_both(&gpu, &case, &tensors, &mut workspaces)?;
                if bits(&again) != bits(&first) {
                    return Err(format!("dK or dV of repeat {repeat} differ"));
                }
                close(&again.dq, &first.dq).map_err(|text| format!("dQ of repeat {repeat}: {text}"))?;
            }
            check_gradients(&case, &tensors, &first)
        });
    }
}

fn to_bits(data: &[bf16]) -> Vec<u16> {
    data.iter().map(|value| value.to_bits()).collect()
}

/// Sums of f32 in another order, rounded: at most the next number, 2^-7 of it, but for sums that cancel.
fn close(got: &[bf16], want: &[bf16]) -> Result<(), String> {
    let pairs = got.iter().zip(want).map(|(got, want)| (got.to_f32(), want.to_f32()));
    let far = |(got, want): &(f32, f32)| (got - want).abs() > want.abs() / 128.0 + 2e-6;
    pairs.into_iter().find(far).map_or(Ok(()), |(got, want)| Err(format!("{got} was {want}")))
}

/// Many calls in flight at once, each with another mask and other sizes, on one workspace.
#[test]
fn masks_and_shapes_change_from_call_to_call_without_a_synchronisation() {
    let Some(gpu) = Gpu::new() else { return };
    let mut suite = Suite::new("backward in flight");
    let mut workspaces = Workspaces::new(&gpu);
    let cases: Vec<Case> = (20..28).map(|seed| random_case(seed, 900)).collect();
    let tensors: Vec<_> = cases.iter().map(|case| case.tensors::<bf16>()).collect();
    let mut all: Vec<_> = cases
        .iter()
        .zip(&tensors)
        .map(|(case, tensors)| {
            let buffers = Buffers::new(&gpu, case, tensors);
            let grads = GradBuffers::new(&gpu, case, &buffers);
            (buffers, grads)
        })
        .collect();
    for (case, (buffers, grads)) in cases.iter().zip(&mut all) {
        let mask = PreparedMask::new(gpu.kernels(), &gpu.stream, &case.mask, &case.segments()).unwrap();
        buffers.launch(&gpu, case, &mask, &mut workspaces.forward, Waits::default()).unwrap();
        grads.launch(&gpu, case, (buffers, &mask), &mut workspaces.backward).unwrap();
        // The mask is dropped here, behind the launches in the stream's order.
    }
    for ((case, tensors), (buffers, grads)) in cases.iter().zip(&tensors).zip(&all) {
        suite.case(case, || check_gradients(case, tensors, &grads.outputs(&gpu, case, buffers)?));
    }
}

/// A workspace of the stated size is enough, full of NaN, and nothing behind it is written.
#[test]
fn a_workspace_needs_the_bytes_that_it_states() {
    let Some(gpu) = Gpu::new() else { return };
    let mut suite = Suite::new("workspace");
    let mut workspaces = Workspaces::new(&gpu);
    for seed in 40..46 {
        let case = random_case(seed, 700);
        suite.case(&case, || {
            let bytes = BackwardWorkspace::bytes(Shape::new(case.dims).unwrap());
            let memory = gpu.stream.clone_htod(&vec![0xFF_u8; bytes + 65536]).unwrap();
            workspaces.backward = BackwardWorkspace::from_memory(memory).unwrap();
            let tensors = case.tensors::<f16>();
            check_gradients(&case, &tensors, &run_both(&gpu, &case, &tensors, &mut workspaces)?)?;
            let empty = BackwardWorkspace::from_memory(gpu.stream.alloc_zeros(256).unwrap()).unwrap();
            let used = std::mem::replace(&mut workspaces.backward, empty).into_memory();
            let used = gpu.stream.clone_dtoh(&used).unwrap();
            let written = used[bytes..].iter().filter(|byte| **byte != 0xFF).count();
            if written == 0 {
                Ok(())
            } else {
                Err(format!("{written} bytes behind the workspace were written"))
            }
        });
    }
}

/// Where this run's kernels are: in the special folder, beside this program, or in the workspace.
fn built_kernels() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let beside = program.parent().unwrap();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/kernels");
    let places = special_folder().into_iter().chain([beside.to_owned(), beside.join("kernels"), workspace]);
    places.into_iter().find(|folder| folder.join("mask.sm_90a.cubin").exists()).unwrap()
}

/// A folder without them, as an older build leaves it.
#[test]
fn without_backward_kernels_the_forward_ones_load() {
    let Some(gpu) = Gpu::new() else { return };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("forward_kernels");
    let built = built_kernels();
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["fwd_d128_bf16.sm_90a.cubin", "fwd_d128_f16.sm_90a.cubin", "mask.sm_90a.cubin"] {
        std::fs::copy(built.join(file), folder.join(file)).unwrap();
    }
    let kernels = Kernels::load(gpu.context(), &KernelSource::Folder(folder)).unwrap();
    let without = Gpu { attention: Attention::new(kernels.into()), stream: gpu.stream.clone() };
    let text = run_both(
        &without,
        &random_case(1, 100),
        &random_case(1, 100).tensors::<bf16>(),
        &mut Workspaces::new(&without),
    )
    .unwrap_err();
    assert!(text.contains("bwd_d128_bf16") && text.contains("cargo xtask build-kernels"), "{text}");
}

#[test]
fn every_mistake_is_named() {
    let Some(gpu) = Gpu::new() else { return };
    let stream = &gpu.stream;
    let e = Extents { batch: 1, seq: 200, heads: 2, head_dim: 128 };
    let dims = Dims { batch: 1, heads_q: 2, heads_kv: 2, seq_q: 200, seq_k: 200, head_dim: 128 };
    let data = stream.clone_htod(&vec![bf16::ONE; 200 * 256]).unwrap();
    let half_data = stream.clone_htod(&vec![f16::ONE; 200 * 256]).unwrap();
    let (mut out, mut out_short, mut out_half) = (data.clone(), data.clone(), half_data.clone());
    let (mut out_k, mut out_v) = (data.clone(), data.clone());
    let lse_data = stream.clone_htod(&vec![0_f32; 400]).unwrap();
    let lse_short = lse_data.slice(..399);
    let other = gpu.context().new_stream().unwrap();
    let lengths = Lengths { seq_q: 200, causal: true };
    let mask =
        PreparedMask::plain(gpu.kernels(), stream, lengths, &KeySegments::whole(200).unwrap()).unwrap();
    let q = DeviceView::bshd(&data, stream, e).unwrap();
    let fewer = DeviceView::bshd(&data, stream, Extents { seq: 199, ..e }).unwrap();
    let half = DeviceView::bshd(&half_data, stream, e).unwrap();
    let foreign = DeviceView::bshd(&data, &other, e).unwrap();
    let (lse, short) = (LseView::new(&lse_data, stream), LseView::new(&lse_short, stream));
    let dq = DeviceViewMut::bshd(&mut out, stream, e).unwrap();
    let dq_fewer = DeviceViewMut::bshd(&mut out_short, stream, Extents { seq: 199, ..e }).unwrap();
    let dq_half = DeviceViewMut::bshd(&mut out_half, stream, e).unwrap();
    let dk = DeviceViewMut::bshd(&mut out_k, stream, e).unwrap();
    let dv = DeviceViewMut::bshd(&mut out_v, stream, e).unwrap();
    let (keys, grads) = (Keys::Whole { k: &q, v: &q }, KeyGrads::Whole { dk: &dk, dv: &dv });
    let (o, dout, lse, options) = (&q, &q, &lse, BackwardOptions::default());
    let good = BackwardCall { q: &q, keys, o, dout, lse, dq: &dq, grads, mask: &mask, scale: 0.1, options };
    let mut workspace = BackwardWorkspace::new(stream, Shape::new(dims).unwrap()).unwrap();
    let mut refused =
        |call: &BackwardCall<'_>| gpu.attention.backward(stream, call, &mut workspace).unwrap_err();
    mismatch(refused(&BackwardCall { o: &fewer, ..good }), "o");
    mismatch(refused(&BackwardCall { dout: &fewer, ..good }), "dout");
    mismatch(refused(&BackwardCall { dq: &dq_fewer, ..good }), "dq");
    mismatch(refused(&BackwardCall { lse: &short, ..good }), "lse");
    mismatch(refused(&BackwardCall { grads: KeyGrads::Whole { dk: &dq_fewer, dv: &dv }, ..good }), "dk");
    typed(refused(&BackwardCall { dout: &half, ..good }));
    typed(refused(&BackwardCall { dq: &dq_half, ..good }));
    typed(refused(&BackwardCall { grads: KeyGrads::Whole { dk: &dk, dv: &dq_half }, ..good }));
    let error = refused(&BackwardCall { dout: &foreign, ..good });
    assert_eq!(error, CudaError::Stream { call: "Attention::backward", tensor: "dout" }.into());
    wrong(refused(&BackwardCall { grads: KeyGrads::Segments(&[]), ..good }), "grads");
    let margin = BackwardOptions { margin: 100_000, ..options };
    wrong(refused(&BackwardCall { options: margin, ..good }), "margin");
    let section = BackwardOptions { section_heads: Some(0), ..options };
    wrong(refused(&BackwardCall { options: section, ..good }), "section_heads");
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = refused(&BackwardCall { scale, ..good });
        assert!(matches!(error, Error::Cuda(CudaError::Scale { .. })), "{error}");
    }
    gpu.attention.backward(stream, &good, &mut workspace).unwrap();
    assert!(gpu.attention.backward(&other, &good, &mut workspace).is_err());
    let needed = BackwardWorkspace::bytes(Shape::new(dims).unwrap());
    let mut small = BackwardWorkspace::from_memory(stream.alloc_zeros(needed - 1).unwrap()).unwrap();
    let error = gpu.attention.backward(stream, &good, &mut small).unwrap_err();
    let named = CudaError::Workspace { call: "Attention::backward", needed, bytes: needed - 1 };
    assert_eq!(error, named.into());
    stream.synchronize().unwrap();
}

/// Tables with signals, and segments whose gradients would lie on each other.
#[test]
fn segments_that_wait_or_overlap_are_refused() {
    let Some(gpu) = Gpu::new() else { return };
    let stream = &gpu.stream;
    // Batch 2, segments of 64 rows in 4 slabs of one head.
    let e = Extents { batch: 2, seq: 128, heads: 1, head_dim: 128 };
    let extents = KeyExtents { rows: 64, heads_per_group: 1, groups: 1, slabs: 4, head_dim: 128 };
    let strides = KeyStrides { rows: 128, heads: 128, groups: 128, slabs: 64 * 128 };
    let data = stream.clone_htod(&vec![bf16::ONE; 256 * 128]).unwrap();
    let (mut out, mut out_k, mut out_v) = (data.clone(), data.clone(), data.clone());
    let lse_data = stream.clone_htod(&vec![0_f32; 256]).unwrap();
    let segments = KeySegments::new(vec![64, 64]).unwrap();
    let lengths = Lengths { seq_q: 128, causal: false };
    let mask = PreparedMask::plain(gpu.kernels(), stream, lengths, &segments).unwrap();
    let q = DeviceView::bshd(&data, stream, e).unwrap();
    let lse = LseView::new(&lse_data, stream);
    let dq = DeviceViewMut::bshd(&mut out, stream, e).unwrap();
    let view = || KeyView::strided(&data, stream, extents, strides).unwrap();
    let maps = [KeyMap { k: view(), v: view() }];
    let grads = [KeyGradMap {
        dk: KeyViewMut::strided(&mut out_k, stream, extents, strides).unwrap(),
        dv: KeyViewMut::strided(&mut out_v, stream, extents, strides).unwrap(),
    }];
    let shape = Shape::new(Dims { batch: 2, heads_q: 1, heads_kv: 1, seq_q: 128, seq_k: 128, head_dim: 128 });
    let mut workspace = BackwardWorkspace::new(stream, shape.unwrap()).unwrap();
    let mut call = |slab, signal| {
        let at = |slab| SegmentAt { rows: 64, map: 0, slab, signal };
        let table = KeyTable::new(stream, &[at(slab), at(0)]).unwrap();
        let keys = Keys::Segments { maps: &maps, table: &table };
        let (o, dout, lse, grads) = (&q, &q, &lse, KeyGrads::Segments(&grads));
        let options = BackwardOptions::default();
        let call =
            BackwardCall { q: &q, keys, o, dout, lse, dq: &dq, grads, mask: &mask, scale: 0.1, options };
        gpu.attention.backward(stream, &call, &mut workspace)
    };
    call(2, None).unwrap();
    wrong(call(1, None).unwrap_err(), "slabs");
    // SAFETY: the call is refused, nobody reads the address.
    let signal = unsafe { Signal::new(8) }.unwrap();
    wrong(call(2, Some(signal)).unwrap_err(), "signals");
    stream.synchronize().unwrap();
}

fn mismatch(error: Error, name: &str) {
    assert!(matches!(&error, Error::Mismatch { tensor, .. } if *tensor == name), "{error}");
}

fn wrong(error: Error, name: &str) {
    assert!(matches!(&error, Error::Cuda(CudaError::Value { name: n, .. }) if *n == name), "{error}");
}

fn typed(error: Error) {
    assert!(matches!(error, Error::Cuda(CudaError::Type { .. })), "{error}");
}
