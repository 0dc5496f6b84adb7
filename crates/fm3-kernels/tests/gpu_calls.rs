//! Calls: same bits every time, masks that change, what is refused.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
mod gpu_common;

use std::time::Duration;

use fm3_kernels::cuda::{
    CudaError, DeviceView, DeviceViewMut, ForwardCall, ForwardOptions, KernelSource, Keys, Lengths, LseMut,
    PreparedMask, Probes, Workspace,
};
use fm3_kernels::mask::{KeySegments, MaskDims};
use fm3_kernels::view::{Extents, Strides};
use fm3_kernels::{Dims, Error, FlashMask};
use gpu_common::device::special_folder;
use gpu_common::keys::{Buffers, Waits, run};
use gpu_common::{Case, Gpu, Suite, check, masks};
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn random_case(seed: u64) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let (seq_q, seq_k) = (rng.random_range(1..1500), rng.random_range(1..1500));
    let dims = Dims { batch: 2, heads_q: 8, heads_kv: 2, seq_q, seq_k, head_dim: 128 };
    let mask = masks::raw(MaskDims { batch: 2, heads: 4, seq_q, seq_k }, &mut rng);
    Case::new("random", dims, mask, seed)
}

#[test]
fn equal_calls_give_equal_bits() {
    let Some(gpu) = Gpu::new() else { return };
    let mut suite = Suite::new("repeats");
    let mut workspace = Workspace::new(&gpu.stream).unwrap();
    for seed in 0..6 {
        let mut case = random_case(seed);
        suite.case(&case.clone(), || {
            let tensors = case.tensors::<bf16>();
            let first = run(&gpu, &case, &tensors, &mut workspace)?;
            for repeat in 0..25 {
                // Neither the number of blocks nor the order of tiles may show.
                case.margin = [0, 1, 100, 130][repeat % 4];
                case.section_heads = [None, Some(4), Some(16)][repeat % 3];
                if run(&gpu, &case, &tensors, &mut workspace)?.bits() != first.bits() {
                    return Err(format!("repeat {repeat} differs"));
                }
            }
            Ok(())
        });
    }
}

#[test]
fn plain_masks_give_the_bits_of_their_bounds() {
    let Some(gpu) = Gpu::new() else { return };
    let mut suite = Suite::new("plain");
    let mut workspace = Workspace::new(&gpu.stream).unwrap();
    for (seq_q, seq_k) in [(1000, 1000), (300, 700), (700, 300)] {
        for causal in [false, true] {
            let dims = Dims { batch: 2, heads_q: 2, heads_kv: 1, seq_q, seq_k, head_dim: 128 };
            let mask_dims = MaskDims { batch: 2, heads: 2, seq_q, seq_k };
            let mask = if causal { FlashMask::causal(mask_dims) } else { FlashMask::full(mask_dims) };
            let case = Case::new("plain", dims, mask.unwrap(), 3);
            suite.case(&case, || {
                let tensors = case.tensors::<f16>();
                let by_bounds = run(&gpu, &case, &tensors, &mut workspace)?;
                let lengths = Lengths { seq_q, causal };
                let plain = PreparedMask::plain(gpu.kernels(), &gpu.stream, lengths, &case.segments());
                let mut buffers = Buffers::new(&gpu, &case, &tensors);
                buffers.launch(&gpu, &case, &plain.unwrap(), &mut workspace, Waits::default()).unwrap();
                match buffers.outputs(&gpu, &case)?.bits() == by_bounds.bits() {
                    true => check(&case, &tensors, &by_bounds),
                    false => Err("bits differ".to_owned()),
                }
            });
        }
    }
}

/// Many calls in flight at once, each with another mask and other sizes, on one workspace.
#[test]
fn masks_change_from_call_to_call_without_a_synchronisation() {
    let Some(gpu) = Gpu::new() else { return };
    let mut suite = Suite::new("changing masks");
    let mut workspace = Workspace::new(&gpu.stream).unwrap();
    let cases: Vec<Case> = (20..28).map(random_case).collect();
    let tensors: Vec<_> = cases.iter().map(|case| case.tensors::<bf16>()).collect();
    let mut buffers: Vec<_> =
        cases.iter().zip(&tensors).map(|(case, data)| Buffers::new(&gpu, case, data)).collect();
    for (case, buffers) in cases.iter().zip(&mut buffers) {
        let mask = PreparedMask::new(gpu.kernels(), &gpu.stream, &case.mask, &case.segments()).unwrap();
        buffers.launch(&gpu, case, &mask, &mut workspace, Waits::default()).unwrap();
        // The mask is dropped here, behind the launch in the stream's order.
    }
    for ((case, tensors), buffers) in cases.iter().zip(&tensors).zip(&buffers) {
        suite.case(case, || check(case, tensors, &buffers.outputs(&gpu, case)?));
    }
}

#[test]
fn every_mistake_is_named() {
    let Some(gpu) = Gpu::new() else { return };
    let stream = &gpu.stream;
    let other = gpu.context().new_stream().unwrap();
    let e = Extents { batch: 1, seq: 200, heads: 2, head_dim: 128 };
    let q_data = stream.clone_htod(&vec![bf16::ONE; 200 * 256]).unwrap();
    let half_data = stream.clone_htod(&vec![f16::ONE; 200 * 256]).unwrap();
    let wide_data = stream.clone_htod(&vec![1_f32; 200 * 256]).unwrap();
    let (mut o_data, mut lse_data) = (q_data.clone(), stream.clone_htod(&vec![0_f32; 400]).unwrap());
    let (mut short, mut workspace) =
        (stream.clone_htod(&vec![0_f32; 399]).unwrap(), Workspace::new(stream).unwrap());
    let segments = KeySegments::whole(200).unwrap();
    let plain = |lengths, segments: &KeySegments| {
        PreparedMask::plain(gpu.kernels(), stream, lengths, segments).unwrap()
    };
    let causal = Lengths { seq_q: 200, causal: true };
    let mask = plain(causal, &segments);
    let q = DeviceView::bshd(&q_data, stream, e).unwrap();
    let half = DeviceView::bshd(&half_data, stream, e).unwrap();
    let wide = DeviceView::bshd(&wide_data, stream, e).unwrap();
    let foreign = DeviceView::bshd(&q_data, &other, e).unwrap();
    let fewer = DeviceView::bshd(&q_data, stream, Extents { seq: 199, ..e }).unwrap();
    let o = DeviceViewMut::bshd(&mut o_data, stream, e).unwrap();
    let lse = LseMut::new(&mut lse_data, stream);
    let short = LseMut::new(&mut short, stream);
    let keys = Keys::Whole { k: &q, v: &q };
    let options = ForwardOptions::default();
    let good = ForwardCall { q: &q, keys, o: &o, lse: &lse, mask: &mask, scale: 0.1, options };
    let mut refused =
        |call: &ForwardCall<'_>| gpu.attention.forward(stream, call, &mut workspace).unwrap_err();
    typed(refused(&ForwardCall { q: &half, ..good }));
    typed(refused(&ForwardCall { q: &wide, ..good }));
    typed(refused(&ForwardCall { keys: Keys::Whole { k: &q, v: &half }, ..good }));
    let error = refused(&ForwardCall { q: &foreign, ..good });
    assert_eq!(error, CudaError::Stream { call: "Attention::forward", tensor: "q" }.into());
    mismatch(refused(&ForwardCall { lse: &short, ..good }), "lse");
    mismatch(refused(&ForwardCall { keys: Keys::Whole { k: &fewer, v: &fewer }, ..good }), "k");
    mismatch(refused(&ForwardCall { keys: Keys::Whole { k: &q, v: &fewer }, ..good }), "v");
    mismatch(refused(&ForwardCall { q: &fewer, ..good }), "mask");
    let longer = plain(Lengths { seq_q: 201, ..causal }, &segments);
    mismatch(refused(&ForwardCall { mask: &longer, ..good }), "mask");
    let cut = plain(causal, &KeySegments::new(vec![100, 100]).unwrap());
    mismatch(refused(&ForwardCall { mask: &cut, ..good }), "mask");
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let error = refused(&ForwardCall { scale, ..good });
        assert!(matches!(error, Error::Cuda(CudaError::Scale { .. })), "{error}");
    }
    let margin = ForwardOptions { margin: 100_000, ..options };
    wrong(refused(&ForwardCall { options: margin, ..good }), "margin");
    let section = ForwardOptions { section_heads: Some(0), ..options };
    wrong(refused(&ForwardCall { options: section, ..good }), "section_heads");
    gpu.attention.forward(stream, &good, &mut workspace).unwrap();
    assert!(gpu.attention.forward(&other, &good, &mut workspace).is_err());
    assert_eq!(workspace.wait_report().unwrap(), None);
    drop((q, half, wide, foreign, fewer));
    views(&gpu, e);
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

/// Bounds, alignment and strides of views.
fn views(gpu: &Gpu, e: Extents) {
    let stream = &gpu.stream;
    let data = stream.clone_htod(&vec![bf16::ONE; 200 * 256]).unwrap();
    let value = |error: Error| assert!(matches!(error, Error::Cuda(CudaError::Value { .. })), "{error}");
    let strides = Strides::bshd(e);
    let over = DeviceView::strided(&data, stream, e, Strides { seq: 257, ..strides }).unwrap_err();
    assert!(matches!(over, Error::ViewBounds { .. }), "{over}");
    value(
        DeviceView::strided(&data, stream, Extents { seq: 2, ..e }, Strides { seq: 260, ..strides })
            .unwrap_err(),
    );
    value(DeviceView::bshd(&data.slice(4..), stream, Extents { seq: 100, ..e }).unwrap_err());
    // A stride that is never taken may be anything.
    let one = Extents { seq: 1, heads: 1, ..e };
    let odd = Strides { batch: 3, seq: 1, heads: 5 };
    assert!(DeviceView::strided(&data, stream, one, odd).is_ok());
    let empty = DeviceView::bshd(&data, stream, Extents { seq: 0, ..e }).unwrap_err();
    assert!(matches!(empty, Error::ZeroDim { .. }), "{empty}");
}

#[test]
fn clocks_of_host_and_device_go_at_one_rate() {
    let Some(gpu) = Gpu::new() else { return };
    let stream = gpu.context().new_stream().unwrap();
    let source = special_folder().map_or(KernelSource::Search, KernelSource::Folder);
    let probes = Probes::load(gpu.context(), &source).unwrap();
    let [first, second] = [0, 100].map(|millis| {
        std::thread::sleep(Duration::from_millis(millis));
        probes.read_clock(&stream).unwrap()
    });
    let host = Duration::from_nanos(second.host_ns - first.host_ns);
    let device = Duration::from_nanos(second.device_ns - first.device_ns);
    // Crystals are off by 100 millionths at most.
    let bound = first.error + second.error + Duration::from_micros(50);
    let near = host.abs_diff(device) <= bound;
    assert!(near && host >= Duration::from_millis(90), "{first:?}, {second:?}");
}
