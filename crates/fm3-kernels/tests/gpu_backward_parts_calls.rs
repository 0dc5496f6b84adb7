//! Backward passes in parts: keys that come late or never, and what is refused.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "signals are addresses, and stream writes are driver calls")]
mod gpu_common;

use std::time::Duration;

use fm3_kernels::cuda::{AbortWord, BackwardExpired, BackwardWorkspace, CudaError, GradAt, GradTable, Wait};
use fm3_kernels::mask::MaskDims;
use fm3_kernels::{Dims, Error, FlashMask, Shape};
use gpu_common::backward::{Out, Part};
use gpu_common::case::Segmented;
use gpu_common::gradients::check_gradients;
use gpu_common::keys::{KeyBuffers, with_signals};
use gpu_common::parts::{Parted, bits, part};
use gpu_common::{Case, Gpu, Suite, Words};
use half::bf16;

const BASE: u64 = 5 << 40;
/// 4 KV heads in pieces of 2: piece 0 is there at base + 1, piece 1 at base + 2.
const PIECES: u64 = 2;

/// 3 segments, whose signals are `start` when the backward pass begins.
fn signalled(start: u64, deterministic: bool) -> Option<(Parted<bf16>, Words)> {
    let gpu = Gpu::new()?;
    let rows = vec![256, 300, 256];
    let dims =
        Dims { batch: 1, heads_q: 8, heads_kv: 4, seq_q: 700, seq_k: rows.iter().sum(), head_dim: 128 };
    let mask = FlashMask::full(MaskDims { batch: 1, heads: 1, seq_q: 700, seq_k: dims.seq_k }).unwrap();
    let segmented = Some(Segmented { rows, heads_per_group: 2 });
    let case = Case { segmented, deterministic, ..Case::new("signals", dims, mask, 9) };
    let mut problem = Parted::new(gpu, case);
    let words = Words::new(&[start; 3]);
    with_signals(&mut problem.buffers, |index| words.signal(index));
    Some((problem, words))
}

fn waiting<'a>(problem: &Parted<bf16>, deadline: Option<Duration>, abort: Option<&'a AbortWord>) -> Part<'a> {
    let wait = Some(Wait { base: BASE, heads_per_piece: 2, deadline });
    Part { tiles: 0..problem.all_tiles(), out: Out::Rounded(None), wait, abort }
}

/// Keys are NaN when the kernel starts; another stream brings them piece by piece.
#[test]
fn keys_that_come_late_are_waited_for() {
    let mut suite = Suite::new("backward late keys");
    for deterministic in [false, true] {
        let Some((mut problem, words)) = signalled(0, deterministic) else { return };
        let KeyBuffers::Segments { pools, .. } = &mut problem.buffers.kv else { unreachable!() };
        let (stream, late) = (problem.gpu.stream.clone(), problem.gpu.context().new_stream().unwrap());
        let mut truth = Vec::new();
        for data in pools.iter_mut().flat_map(|pool| [&mut pool.k, &mut pool.v]) {
            truth.push(stream.clone_dtoh(data).unwrap());
            stream.memcpy_htod(&vec![bf16::NAN; data.len()], data).unwrap();
        }
        stream.synchronize().unwrap();
        suite.case(&problem.case.clone(), || {
            let parts = [waiting(&problem, Some(Duration::from_secs(20)), None)];
            let grads = problem.enqueue(&parts).map_err(|error| error.to_string())?;
            std::thread::sleep(Duration::from_millis(20));
            let KeyBuffers::Segments { pools, .. } = &problem.buffers.kv else { unreachable!() };
            let all = pools.iter().flat_map(|pool| [&pool.k, &pool.v]);
            all.zip(&truth).for_each(|(to, from)| words.copy_beside(late.cu_stream(), to, from));
            for piece in 1..=PIECES {
                for segment in [2, 0, 1] {
                    words.post(late.cu_stream(), (segment, BASE + piece));
                    std::thread::sleep(Duration::from_millis(3));
                }
            }
            let got = grads.outputs(&problem.gpu, &problem.case, &problem.buffers)?;
            check_gradients(&problem.case, &problem.tensors, &got)
        });
    }
}

/// The second piece of segment 1 never comes: its heads' dK and dV are NaN, dQ is, and the next pass is right.
#[test]
fn a_wait_that_expires_leaves_nan_and_a_report_and_the_next_pass_works() {
    let mut suite = Suite::new("backward deadline");
    for deterministic in [false, true] {
        let Some((mut problem, words)) = signalled(BASE + PIECES, deterministic) else { return };
        let stream = problem.gpu.stream.clone();
        suite.case(&problem.case.clone(), || {
            words.post(stream.cu_stream(), (1, BASE + 1));
            let parts = [waiting(&problem, Some(Duration::from_millis(5)), None)];
            let got = problem.run(&parts)?;
            if !got.dq.iter().all(|value| value.is_nan()) {
                return Err("dQ is not complete, and has numbers".to_owned());
            }
            let Dims { heads_kv, seq_k, .. } = problem.case.dims;
            for row in (256..556).filter(|row| *row < seq_k) {
                for head in heads_kv / 2..heads_kv {
                    if !got.dk[(row * heads_kv + head) * 128].is_nan() {
                        return Err(format!(
                            "dK of row {row} head {head}, whose keys are not there, is a number"
                        ));
                    }
                }
            }
            let report = problem.workspaces.backward.wait_report().unwrap().ok_or("no report")?;
            let BackwardExpired::Keys(keys) = report else { return Err(report.to_string()) };
            let right = keys.segment == 1
                && [2, 3].contains(&keys.kv_head)
                && (keys.seen, keys.wanted) == (BASE + 1, BASE + 2)
                && (Duration::from_millis(5)..Duration::from_secs(5)).contains(&keys.waited);
            if !right {
                return Err(format!("{keys:?}"));
            }
            words.post(stream.cu_stream(), (1, BASE + 2));
            let parts = [waiting(&problem, Some(Duration::from_secs(5)), None)];
            let got = problem.run(&parts)?;
            check_gradients(&problem.case, &problem.tensors, &got)?;
            let report = problem.workspaces.backward.wait_report().unwrap();
            report.map_or(Ok(()), |report| Err(report.to_string()))
        });
    }
}

#[test]
fn the_abort_word_ends_a_wait_without_a_deadline() {
    let mut suite = Suite::new("backward abort");
    for deterministic in [false, true] {
        let Some((mut problem, words)) = signalled(0, deterministic) else { return };
        let abort = AbortWord::new(problem.gpu.context()).unwrap();
        suite.case(&problem.case.clone(), || {
            let parts = [waiting(&problem, None, Some(&abort))];
            let grads = problem.enqueue(&parts).map_err(|error| error.to_string())?;
            std::thread::sleep(Duration::from_millis(20));
            abort.set();
            let got = grads.outputs(&problem.gpu, &problem.case, &problem.buffers)?;
            let all = got.dq.iter().chain(&got.dk).chain(&got.dv);
            let numbers = all.filter(|value| !value.is_nan()).count();
            if numbers > 0 {
                return Err(format!("{numbers} gradients are numbers"));
            }
            if let Some(report) = problem.workspaces.backward.wait_report().unwrap() {
                return Err(format!("an abort is no expiry: {report}"));
            }
            abort.clear();
            (0..3).for_each(|segment| words.post(problem.gpu.stream.cu_stream(), (segment, BASE + PIECES)));
            let parts = [waiting(&problem, None, Some(&abort))];
            let got = problem.run(&parts)?;
            check_gradients(&problem.case, &problem.tensors, &got)
        });
    }
}

/// Segments in the order in which they come, a launch each: the same dK and dV as in one launch.
#[test]
fn a_launch_for_each_segment_waits_for_it_alone() {
    let mut suite = Suite::new("backward launch per segment");
    let Some((mut problem, words)) = signalled(0, false) else { return };
    let late = problem.gpu.context().new_stream().unwrap();
    suite.case(&problem.case.clone(), || {
        let deadline = Some(Duration::from_secs(20));
        let parts: Vec<Part<'_>> = [1, 2, 0]
            .map(|segment| Part {
                tiles: problem.tiles(segment..segment + 1),
                ..waiting(&problem, deadline, None)
            })
            .into();
        let grads = problem.enqueue(&parts).map_err(|error| error.to_string())?;
        for segment in [1, 2, 0] {
            std::thread::sleep(Duration::from_millis(5));
            words.post(late.cu_stream(), (segment, BASE + PIECES));
        }
        let got = grads.outputs(&problem.gpu, &problem.case, &problem.buffers)?;
        let last = [waiting(&problem, deadline, None)];
        let one = problem.run(&last)?;
        if bits(&got)[1..] != bits(&one)[1..] {
            return Err("dK or dV has other bits than one launch gives".to_owned());
        }
        check_gradients(&problem.case, &problem.tensors, &got)
    });
}

#[test]
fn every_mistake_is_named() {
    let Some((mut problem, _words)) = signalled(BASE + PIECES, false) else { return };
    let (all, out) = (problem.all_tiles(), Out::Rounded(None));
    let ready = |tiles| Part { tiles, ..waiting(&problem, None, None) };
    let (whole, half, inside) = (ready(0..all), ready(0..all / 2), ready(1..2));
    let (empty, past) = (ready(1..1), ready(0..all + 1));
    let none = problem.table(|_| GradAt::default());
    let rows = [GradAt { map: 3, ..GradAt::default() }; 3];
    let elsewhere = GradTable::new(&problem.gpu.stream, &problem.case.segments(), &rows).unwrap();
    let mut refused = |parts: &[Part<'_>]| problem.enqueue(parts).err().unwrap();
    wrong(&refused(std::slice::from_ref(&half)), "tiles");
    wrong(&refused(&[whole.clone(), inside]), "first tile");
    wrong(&refused(&[empty]), "end of tiles");
    wrong(&refused(&[past]), "end of tiles");
    wrong(&refused(&[part(0..all, out)]), "wait");
    wrong(&refused(&[Part { out: Out::Slots(&none), ..whole.clone() }]), "segment");
    let to_elsewhere = Out::Rounded(Some(&elsewhere));
    wrong(&refused(&[Part { out: to_elsewhere, ..whole.clone() }]), "map");
    let small = BackwardWorkspace::bytes(Shape::new(problem.case.dims).unwrap());
    let memory = problem.gpu.stream.alloc_zeros(small).unwrap();
    problem.workspaces.backward = BackwardWorkspace::from_memory(memory).unwrap();
    let error = problem.enqueue(&[whole]).err().unwrap();
    assert!(matches!(error, Error::Cuda(CudaError::Workspace { bytes, .. }) if bytes == small), "{error}");
    problem.gpu.stream.synchronize().unwrap();
}

fn wrong(error: &Error, name: &str) {
    assert!(matches!(error, Error::Cuda(CudaError::Value { name: n, .. }) if *n == name), "{error}");
}
