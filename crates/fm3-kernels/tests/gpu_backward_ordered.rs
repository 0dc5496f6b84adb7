//! Deterministic dQ: equal bits on any number of multiprocessors, however late keys come.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "signals are addresses, and stream writes are driver calls")]
mod gpu_common;

use std::time::Duration;

use fm3_kernels::cuda::{BackwardWorkspace, Wait};
use fm3_kernels::mask::MaskDims;
use fm3_kernels::{Dims, FlashMask, Shape};
use gpu_common::backward::{Out, Part};
use gpu_common::case::Segmented;
use gpu_common::gradients::check_gradients;
use gpu_common::keys::with_signals;
use gpu_common::parts::{Parted, bits, part};
use gpu_common::problems::{dims, shared};
use gpu_common::{Case, Gpu, Suite, Words, masks, problems};
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Grids that each problem runs on; the last is larger than any device.
const BLOCKS: [usize; 5] = [1, 2, 3, 132, 1000];

fn ordered(case: Case) -> Case {
    Case { deterministic: true, ..case }
}

fn margin(gpu: &Gpu, blocks: usize) -> usize {
    gpu.kernels().multiprocessors().saturating_sub(blocks)
}

/// 200 runs of each problem in one process, compared bit by bit; one on each grid on the simulated driver.
#[test]
fn bits_of_all_gradients_repeat_on_any_grid() {
    let mut suite = Suite::new("ordered repeats");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let sizes = dims(1, [8, 2], [1000, 1300]);
    let raw = masks::raw(MaskDims { heads: 4, ..shared(sizes) }, &mut rng);
    let square = dims(1, [4, 4], [2048, 2048]);
    let all = [
        Case::new("raw", sizes, raw, 1),
        Case::new("full", square, FlashMask::full(shared(square)).unwrap(), 2),
        Case::new("causal", square, FlashMask::causal(shared(square)).unwrap(), 3),
        Case::new("document", square, masks::named("document", shared(square), 700, &mut rng), 4),
    ];
    for case in all.map(ordered) {
        let Some(gpu) = Gpu::new() else { return };
        let mut problem = Parted::<bf16>::new(gpu, case.clone());
        suite.case(&case, || {
            let first = problem.plain()?;
            check_gradients(&case, &problem.tensors, &first)?;
            let runs = if problem.gpu.is_simulated() { BLOCKS.len() } else { 200 };
            for run in 0..runs {
                let blocks = BLOCKS[run % BLOCKS.len()];
                problem.case.margin = margin(&problem.gpu, blocks);
                problem.case.section_heads = None;
                if bits(&problem.plain()?) != bits(&first) {
                    return Err(format!("run {run} on {blocks} blocks gives other bits"));
                }
            }
            Ok(())
        });
    }
}

/// dK and dV add rows from the last to the first, dQ tiles by work: right, if not the plain bits.
#[test]
fn random_masks_are_right() {
    let Some(_) = Gpu::new() else { return };
    let mut suite = Suite::new("ordered raw");
    for seed in 0..40 {
        let case = ordered(problems::raw(seed));
        suite.case(&case, || {
            let mut problem = Parted::<f16>::new(Gpu::new().unwrap(), case.clone());
            let got = problem.plain()?;
            check_gradients(&case, &problem.tensors, &got)
        });
    }
}

/// Launches over ranges count on, and each order of launches is one order of dQ.
#[test]
fn launches_in_turn_repeat_too() {
    let Some(_) = Gpu::new() else { return };
    let mut suite = Suite::new("ordered parts");
    for seed in 0..6 {
        let case = segmented(seed);
        suite.case(&case, || {
            let mut problem = Parted::<bf16>::new(Gpu::new().unwrap(), case.clone());
            let all = problem.all_tiles();
            let (a, b) = (all / 3, all / 2);
            let out = Out::Rounded(None);
            let parts = [part(a..b, out), part(b..all, out), part(0..a, out)];
            let first = problem.run(&parts)?;
            check_gradients(&case, &problem.tensors, &first)?;
            for blocks in BLOCKS {
                problem.case.margin = margin(&problem.gpu, blocks);
                if bits(&problem.run(&parts)?) != bits(&first) {
                    return Err(format!("{blocks} blocks give other bits"));
                }
            }
            Ok(())
        });
    }
}

/// The last segment 50 ms after the others, in one launch over all keys (rule T1).
#[test]
fn a_late_segment_changes_no_bit_and_hangs_nobody() {
    const BASE: u64 = 5 << 40;
    let Some(_) = Gpu::new() else { return };
    let mut suite = Suite::new("ordered late");
    for blocks in BLOCKS {
        let gpu = Gpu::new().unwrap();
        let case = Case { margin: margin(&gpu, blocks), ..segmented(2) };
        suite.case(&case, || {
            let mut problem = Parted::<bf16>::new(gpu, case.clone());
            let all = 0..problem.all_tiles();
            let on_time = problem.run(&[part(all.clone(), Out::Rounded(None))])?;
            check_gradients(&case, &problem.tensors, &on_time)?;
            let count = problem.segments().len();
            let words = Words::new(&vec![BASE + 1; count]);
            with_signals(&mut problem.buffers, |index| words.signal(index));
            let late = problem.gpu.context().new_stream().unwrap();
            words.post(late.cu_stream(), (count as u64 - 1, 0));
            late.synchronize().unwrap();
            let deadline = Some(Duration::from_secs(20));
            let wait = Some(Wait { base: BASE, heads_per_piece: 100, deadline });
            let part = Part { tiles: all, out: Out::Rounded(None), wait, abort: None };
            let grads = problem.enqueue(&[part]).map_err(|error| error.to_string())?;
            std::thread::sleep(Duration::from_millis(50));
            words.post(late.cu_stream(), (count as u64 - 1, BASE + 1));
            let got = grads.outputs(&problem.gpu, &problem.case, &problem.buffers)?;
            if let Some(report) = problem.workspaces.backward.wait_report().unwrap() {
                return Err(report.to_string());
            }
            if bits(&got) == bits(&on_time) { Ok(()) } else { Err("other bits".to_owned()) }
        });
    }
}

/// A workspace of the stated size is enough, full of NaN, and nothing behind it is written.
#[test]
fn a_deterministic_call_needs_the_bytes_that_are_stated() {
    let Some(_) = Gpu::new() else { return };
    let mut suite = Suite::new("ordered workspace");
    for case in (60..66).map(problems::raw).map(ordered) {
        suite.case(&case, || {
            let mut problem = Parted::<bf16>::new(Gpu::new().unwrap(), case.clone());
            let shape = Shape::new(case.dims).unwrap();
            let bytes = BackwardWorkspace::bytes_in_parts(shape, case.mask.dims(), &case.segments());
            let stream = problem.gpu.stream.clone();
            let memory = stream.clone_htod(&vec![0xFF_u8; bytes + 65536]).unwrap();
            problem.workspaces.backward = BackwardWorkspace::from_memory(memory).unwrap();
            let got = problem.plain()?;
            check_gradients(&case, &problem.tensors, &got)?;
            let empty = BackwardWorkspace::from_memory(stream.alloc_zeros(256).unwrap()).unwrap();
            let used = std::mem::replace(&mut problem.workspaces.backward, empty).into_memory();
            let used = stream.clone_dtoh(&used).unwrap();
            match used[bytes..].iter().filter(|byte| **byte != 0xFF).count() {
                0 => Ok(()),
                written => Err(format!("{written} bytes behind the workspace were written")),
            }
        });
    }
}

fn segmented(seed: u64) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let rows: Vec<usize> = (0..4).map(|_| [128, 300, 301][rng.random_range(0..3)]).collect();
    let seq_q = rng.random_range(400..1200);
    let dims = Dims { batch: 1, heads_q: 4, heads_kv: 2, seq_q, seq_k: rows.iter().sum(), head_dim: 128 };
    let mask = masks::raw(MaskDims { heads: 2, ..shared(dims) }, &mut rng);
    let segmented = Some(Segmented { rows, heads_per_group: 1 });
    ordered(Case { segmented, ..Case::new("segments", dims, mask, seed) })
}
