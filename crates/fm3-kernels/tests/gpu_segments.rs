//! Keys in segments: any number of them, waits for their signals, deadlines, the abort word.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "signals are addresses, and stream writes are driver calls")]
mod gpu_common;

use std::time::Duration;

use fm3_kernels::cuda::cudarc::driver::{CudaSlice, DevicePtr, result, sys};
use fm3_kernels::cuda::{AbortWord, ForwardTimes, ForwardTook, PieceCounts, PreparedMask, Wait, Workspace};
use fm3_kernels::mask::MaskDims;
use fm3_kernels::{Dims, FlashMask};
use gpu_common::case::{Outputs, Segmented, Tensors};
use gpu_common::keys::{Buffers, KeyBuffers, Waits, run, with_signals};
use gpu_common::{Case, Gpu, Layout, Suite, Words, check, masks};
use half::bf16;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn case(seed: u64, rows: Vec<usize>, heads: [usize; 3]) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let [heads_q, heads_kv, heads_per_group] = heads;
    let (seq_k, batch) = (rows.iter().sum(), 1 + usize::from(seed % 3 == 1));
    let dims = Dims { batch, heads_q, heads_kv, seq_q: rng.random_range(1..500), seq_k, head_dim: 128 };
    let mask_dims = MaskDims { batch, heads: heads_kv, seq_q: dims.seq_q, seq_k };
    let mask = masks::raw(mask_dims, &mut rng);
    let layout = [Layout::Bshd, Layout::Bhsd, Layout::Gaps][rng.random_range(0..3)];
    let segmented = Some(Segmented { rows, heads_per_group });
    Case { layout, segmented, ..Case::new("segments", dims, mask, seed) }
}

#[test]
fn one_to_64_segments_in_up_to_four_maps() {
    let Some(gpu) = Gpu::new() else { return };
    let mut suite = Suite::new("segments");
    let mut workspace = Workspace::new(&gpu.stream).unwrap();
    for (seed, count) in (0..).zip([1, 2, 3, 4, 5, 7, 8, 12, 16, 24, 32, 48, 63, 64, 64, 33, 2, 2]) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let lengths = [1, 60, 127, 128, 129, 200, 256].map(|base| base + rng.random_range(0..3));
        let distinct = rng.random_range(1..5);
        let rows = (0..count).map(|_| lengths[(rng.random_range(0..distinct) * 3 + count) % 7]).collect();
        let heads = [[2, 2, 1], [2, 2, 2], [4, 4, 2], [6, 3, 3], [4, 1, 1]][rng.random_range(0..5)];
        let case = case(seed, rows, heads);
        suite.case(&case, || {
            let tensors = case.tensors::<bf16>();
            check(&case, &tensors, &run(&gpu, &case, &tensors, &mut workspace)?)
        });
    }
}

/// A segmented problem whose segments each wait for a word.
struct Signalled {
    gpu: Gpu,
    case: Case,
    tensors: Tensors<bf16>,
    mask: PreparedMask,
    buffers: Buffers<bf16>,
    words: Words,
    workspace: Workspace,
    times: Option<ForwardTimes>,
}

/// 3 segments; 4 KV heads in pieces of 2: piece 0 is there at base + 1, piece 1 at base + 2.
const BASE: u64 = 5 << 40;
const PIECES: u64 = 2;

impl Signalled {
    fn new(start: u64) -> Option<Self> {
        let gpu = Gpu::new()?;
        let mut case = case(9, vec![256, 300, 256], [8, 4, 2]);
        let dims = Dims { batch: 1, seq_q: 700, ..case.dims };
        let mask_dims = MaskDims { batch: 1, heads: 1, seq_q: 700, seq_k: dims.seq_k };
        case = Case { dims, mask: FlashMask::full(mask_dims).unwrap(), ..case };
        let tensors = case.tensors::<bf16>();
        let mask = PreparedMask::new(gpu.kernels(), &gpu.stream, &case.mask, &case.segments()).unwrap();
        let mut buffers = Buffers::new(&gpu, &case, &tensors);
        let words = Words::new(&[start; 3]);
        with_signals(&mut buffers, |index| words.signal(index));
        let workspace = Workspace::new(&gpu.stream).unwrap();
        gpu.stream.synchronize().unwrap();
        Some(Self { gpu, case, tensors, mask, buffers, words, workspace, times: None })
    }

    fn launch(&mut self, deadline: Option<Duration>, abort: Option<&AbortWord>) {
        let wait = Some(Wait { base: BASE, heads_per_piece: 2, deadline });
        let Self { gpu, case, mask, buffers, workspace, times, .. } = self;
        let waits = Waits { wait, abort, times: times.as_ref() };
        buffers.launch(gpu, case, mask, workspace, waits).unwrap();
    }

    /// The next launch is timed.
    fn time(&mut self) {
        let of = PieceCounts { segments: 3, pieces: 2 };
        self.times = Some(ForwardTimes::new(&self.gpu.stream, of).unwrap());
    }

    fn took(&self) -> Option<ForwardTook> {
        let beside = self.gpu.context().new_stream().unwrap();
        self.times.as_ref().and_then(|times| times.read(&beside).unwrap())
    }

    fn outputs(&self) -> Result<Outputs<bf16>, String> {
        self.buffers.outputs(&self.gpu, &self.case)
    }

    fn check(&self) -> Result<(), String> {
        check(&self.case, &self.tensors, &self.outputs()?)
    }

    /// Writes a signal in the order of another stream.
    fn post(&self, stream: sys::CUstream, segment: u64, value: u64) {
        self.words.post(stream, (segment, value));
    }
}

#[test]
fn signals_that_are_there_are_not_waited_for() {
    let Some(mut problem) = Signalled::new(BASE + PIECES) else { return };
    let mut suite = Suite::new("signals set before");
    suite.case(&problem.case.clone(), || {
        problem.time();
        problem.launch(Some(Duration::from_secs(5)), None);
        problem.check()?;
        let took = problem.took().ok_or("no times")?;
        if !took.waits.is_empty() || took.launch.duration().is_zero() {
            return Err(format!("{took:?}"));
        }
        match problem.workspace.wait_report().unwrap() {
            None => Ok(()),
            Some(report) => Err(report.to_string()),
        }
    });
}

/// Keys are NaN when the kernel starts; another stream brings them piece by piece.
#[test]
fn keys_that_come_late_are_waited_for() {
    let Some(mut problem) = Signalled::new(0) else { return };
    let mut suite = Suite::new("late keys");
    let KeyBuffers::Segments { pools, .. } = &mut problem.buffers.kv else { unreachable!() };
    let stream = problem.gpu.stream.clone();
    let late = problem.gpu.context().new_stream().unwrap();
    let mut truth = Vec::new();
    for data in pools.iter_mut().flat_map(|pool| [&mut pool.k, &mut pool.v]) {
        truth.push(stream.clone_dtoh(data).unwrap());
        stream.memcpy_htod(&vec![bf16::NAN; data.len()], data).unwrap();
    }
    stream.synchronize().unwrap();
    suite.case(&problem.case.clone(), || {
        problem.time();
        problem.launch(Some(Duration::from_secs(20)), None);
        std::thread::sleep(Duration::from_millis(20));
        let KeyBuffers::Segments { pools, .. } = &problem.buffers.kv else { unreachable!() };
        let all = pools.iter().flat_map(|pool| [&pool.k, &pool.v]);
        for (to, from) in all.zip(&truth) {
            // A bare address: cudarc would order this copy behind the kernel that waits for it. From the host, by a copy
            // engine, so that no multiprocessor is needed.
            // SAFETY: the target has as many elements, and only the waiting kernel reads it.
            unsafe { result::memcpy_htod_async(address(to), from, late.cu_stream()) }.unwrap();
        }
        for piece in 1..=PIECES {
            for segment in [2, 0, 1] {
                problem.post(late.cu_stream(), segment, BASE + piece);
                std::thread::sleep(Duration::from_millis(3));
            }
        }
        problem.check()?;
        check_late(&problem.took().ok_or("no times")?)
    });
}

/// All blocks come to segment 0 first, whose first piece comes after 20 ms.
fn check_late(took: &ForwardTook) -> Result<(), String> {
    let launch = took.launch;
    let first = took.waits.iter().find(|wait| (wait.segment, wait.piece) == (0, 0));
    let long = first.is_some_and(|wait| wait.longest >= Duration::from_millis(10));
    let sound = took.waits.iter().all(|wait| {
        let inside = launch.begin <= wait.span.begin && wait.span.end <= launch.end;
        let most = wait.longest * u32::try_from(wait.blocks).unwrap();
        inside && wait.longest <= wait.span.duration() && wait.longest <= wait.sum && wait.sum <= most
    });
    if long && sound { Ok(()) } else { Err(format!("{took:?}")) }
}

/// The address alone: nothing is ordered or recorded.
fn address(slice: &CudaSlice<bf16>) -> u64 {
    let (address, record) = slice.device_ptr(slice.stream());
    std::mem::forget(record);
    address
}

#[test]
fn a_wait_that_expires_leaves_nan_and_a_report_and_the_next_call_works() {
    let Some(mut problem) = Signalled::new(BASE + PIECES) else { return };
    let mut suite = Suite::new("deadline");
    suite.case(&problem.case.clone(), || {
        // The second piece of segment 1 never comes.
        problem.post(problem.gpu.stream.cu_stream(), 1, BASE + 1);
        problem.launch(Some(Duration::from_millis(5)), None);
        let got = problem.outputs()?;
        let dims = problem.case.dims;
        for (index, lse) in got.lse.iter().enumerate() {
            let late = index / dims.seq_q >= dims.heads_q / 2;
            if late && !lse.is_nan() {
                return Err(format!("LSE {lse} of a head whose keys are not there"));
            }
        }
        let report = problem.workspace.wait_report().unwrap().ok_or("no report")?;
        let right = report.segment == 1
            && [2, 3].contains(&report.kv_head)
            && (report.seen, report.wanted) == (BASE + 1, BASE + 2)
            && report.waited >= Duration::from_millis(5)
            && report.waited < Duration::from_secs(5);
        if !right {
            return Err(format!("{report:?}"));
        }
        problem.post(problem.gpu.stream.cu_stream(), 1, BASE + 2);
        let Signalled { gpu, buffers, .. } = &mut problem;
        buffers.poison(gpu);
        problem.launch(Some(Duration::from_secs(5)), None);
        problem.check()?;
        problem.workspace.wait_report().unwrap().map_or(Ok(()), |report| Err(report.to_string()))
    });
}

#[test]
fn the_abort_word_ends_a_wait_without_a_deadline() {
    let Some(mut problem) = Signalled::new(0) else { return };
    let mut suite = Suite::new("abort");
    let abort = AbortWord::new(problem.gpu.context()).unwrap();
    suite.case(&problem.case.clone(), || {
        problem.launch(None, Some(&abort));
        std::thread::sleep(Duration::from_millis(20));
        abort.set();
        let got = problem.outputs()?;
        let finite = got.o.iter().filter(|value| !value.is_nan()).count();
        if finite > 0 || !got.lse.iter().all(|lse| lse.is_nan()) {
            return Err(format!("{finite} elements of O are numbers"));
        }
        if let Some(report) = problem.workspace.wait_report().unwrap() {
            return Err(format!("an abort is no expiry: {report}"));
        }
        abort.clear();
        (0..3).for_each(|segment| problem.post(problem.gpu.stream.cu_stream(), segment, BASE + PIECES));
        problem.launch(None, Some(&abort));
        problem.check()
    });
}
