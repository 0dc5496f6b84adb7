//! What the ranks of a test do, each in its process.
use std::time::{Duration, Instant};

use fm_cp::host::{HostConfig, HostWorld};
use fm_cp::{
    Bytes, Config, CpAttention, CpGroup, Error, FlashMask, ForwardInputs, ForwardOutputs, Options, Overlap,
    PassKind, Sharding, ShardingKind, Tunables, View4, View4Mut, World,
};
use half::{bf16, f16};

use super::problem::{Layout, Memory, Number, Problem};
use super::processes::{LONG, Machine, Part};
use super::support::Case;
use super::{random, times};

/// A scenario by its name.
type Scenario = (&'static str, fn(&Part));

pub(crate) const ALL: &[Scenario] = &[
    ("masks", masks),
    ("lengths", lengths),
    ("in-flight", in_flight),
    ("slow", slow),
    ("one-sided", one_sided),
    ("settings", settings),
    ("absent", absent),
    ("differ", differ),
    ("refused", refused),
    ("measured", times::measured),
    ("random", random::random),
];

pub(crate) fn case(part: &Part) -> Case {
    let kind = ShardingKind::DualChunk;
    Case { ranks: part.ranks, kind, seq: 640, batch: 1, heads_q: 4, heads_kv: 2, head_dim: 128, seed: 3 }
}

/// Head groups of one, so that pieces are several.
pub(crate) fn config() -> Config {
    let tunables = Tunables { heads_per_piece: Some(1), ..Tunables::h200() };
    Config { deadline: LONG, tunables, ..Config::default() }
}

/// Prepares, calls once, compares.
fn once<T: Number>(machine: &Machine, group: &mut CpGroup, problem: &Problem, what: &str) {
    let stream = machine.context().new_stream().unwrap();
    let rank = group.rank().index();
    let prepared = group.prepare(&problem.mask, problem.case.shape::<T>(), &problem.sharding).unwrap();
    let mut memory = Memory::<T>::new(&stream, problem, rank);
    let report = memory.call(group, &prepared, &stream).unwrap().wait().unwrap();
    assert_eq!(report.bytes_to, prepared.plan().forward.totals.bytes_to);
    memory.check(&stream, &problem.expected::<T>(rank), what);
}

/// Ends a scenario: nothing is left behind.
pub(crate) fn end(machine: Machine, group: CpGroup) {
    group.close().unwrap();
    machine.end();
}

fn masks(part: &Part) {
    let machine = Machine::meet(part);
    let mut group = machine.group(&config());
    let names =
        ["causal", "full", "document", "sliding-window", "share-question", "random-eviction", "qk-sparse"];
    let layouts = [Layout::Bshd, Layout::Bhsd, Layout::Packed];
    for (turn, name) in names.into_iter().enumerate() {
        let kind = [ShardingKind::DualChunk, ShardingKind::Contiguous][turn % 2];
        let (heads_q, heads_kv) = [(4, 2), (2, 2), (3, 1)][turn % 3];
        let (batch, seq) = (1 + turn % 2, [640, 333, 515][turn % 3]);
        let case = Case { kind, heads_q, heads_kv, batch, seq, seed: turn as u64, ..case(part) };
        let problem = Problem { layout: layouts[turn % 3], ..Problem::new(case, name) };
        match turn % 3 {
            1 => once::<f16>(&machine, &mut group, &problem, name),
            _ => once::<bf16>(&machine, &mut group, &problem, name),
        }
    }
    end(machine, group);
}

/// Rows of ranks 0 to 3; each sees up to three other lengths.
fn lengths(part: &Part) {
    let machine = Machine::meet(part);
    let mut group = machine.group(&config());
    for rows in [[100, 300, 200, 300], [200, 100, 300, 7], [129, 129, 257, 129]] {
        let (mut begin, seq) = (0, rows.iter().sum());
        let ranges = rows.iter().map(|rows| {
            begin += rows;
            Vec::from_iter(Some(begin - rows..begin))
        });
        let sharding = Sharding::explicit(seq, ranges.collect()).unwrap();
        let case = Case { seq, batch: 2, ..case(part) };
        let problem = Problem { sharding, ..Problem::new(case, "causal-document") };
        once::<bf16>(&machine, &mut group, &problem, &format!("{rows:?}"));
    }
    end(machine, group);
}

/// Calls of several plans back to back, with K and V scrubbed behind each; memory grows in between.
fn in_flight(part: &Part) {
    let machine = Machine::meet(part);
    let mut group = machine.group(&config());
    let rank = part.rank as usize;
    let cases = [("causal", 384), ("full", 640), ("sliding-window", 640), ("document", 256), ("causal", 515)];
    let problems: Vec<Problem> =
        cases.into_iter().map(|(mask, seq)| Problem::new(Case { seq, ..case(part) }, mask)).collect();
    let mut stream = machine.context().new_stream().unwrap();
    for round in 0..3 {
        let mut calls = Vec::new();
        for problem in &problems {
            let shape = problem.case.shape::<bf16>();
            let prepared = group.prepare(&problem.mask, shape, &problem.sharding).unwrap();
            let mut memory = Memory::<bf16>::new(&stream, problem, rank);
            let handle = memory.call(&mut group, &prepared, &stream).unwrap();
            memory.scrub(&stream);
            calls.push((memory, prepared, handle));
        }
        for ((memory, prepared, handle), problem) in calls.iter().zip(&problems) {
            let report = handle.wait().unwrap();
            let groups = prepared.plan().shape.dims().heads_kv;
            let pushes = !prepared.plan().forward.pushes.is_empty();
            let puts = 1 + if pushes { groups } else { 0 };
            assert_eq!(report.queued.puts as usize, puts);
            assert!(handle.is_done() && report.queued.waits < part.ranks);
            memory.check(&stream, &problem.expected::<bf16>(rank), &format!("round {round}"));
        }
        if round == 1 {
            stream = machine.context().new_stream().unwrap();
        }
    }
    end(machine, group);
}

fn slow(part: &Part) {
    let machine = Machine::meet(part);
    let mut group = machine.group(&config());
    for (turn, name) in ["causal", "full", "document"].into_iter().enumerate() {
        if part.rank as usize == turn {
            std::thread::sleep(Duration::from_millis(400));
        }
        once::<bf16>(&machine, &mut group, &Problem::new(case(part), name), name);
    }
    end(machine, group);
}

/// Rank 0 needs nobody's keys and is far ahead of rank 1, who is late: its pushes wait for free halves, and its stream,
/// which scrubs K and V behind each call, for its pushes (rule S5).
fn one_sided(part: &Part) {
    let machine = Machine::meet(part);
    let mut group = machine.group(&config());
    let rank = part.rank as usize;
    let problem = Problem::new(Case { kind: ShardingKind::Contiguous, ..case(part) }, "causal");
    let stream = machine.context().new_stream().unwrap();
    let prepared = group.prepare(&problem.mask, problem.case.shape::<bf16>(), &problem.sharding).unwrap();
    // The first call makes room, which all ranks come to.
    once::<bf16>(&machine, &mut group, &problem, "first");
    if rank == 1 {
        std::thread::sleep(Duration::from_millis(500));
    }
    let mut calls = Vec::new();
    for _ in 0..5 {
        let mut memory = Memory::<bf16>::new(&stream, &problem, rank);
        let handle = memory.call(&mut group, &prepared, &stream).unwrap();
        memory.scrub(&stream);
        calls.push((memory, handle));
    }
    let waits: u32 = calls.iter().map(|(_, handle)| handle.report().queued.waits).sum();
    assert_eq!(waits > 0, rank == 0, "{waits} waits");
    for (memory, handle) in &calls {
        handle.wait().unwrap();
        memory.check(&stream, &problem.expected::<bf16>(rank), "ahead");
    }
    end(machine, group);
}

fn settings(part: &Part) {
    let machine = Machine::meet(part);
    let problem = Problem::new(case(part), "causal");
    let bits = |config: &Config| {
        let mut group = machine.group(config);
        let stream = machine.context().new_stream().unwrap();
        let shape = problem.case.shape::<bf16>();
        let prepared = group.prepare(&problem.mask, shape, &problem.sharding).unwrap();
        let mut memory = Memory::<bf16>::new(&stream, &problem, part.rank as usize);
        memory.call(&mut group, &prepared, &stream).unwrap().wait().unwrap();
        group.close().unwrap();
        memory.bits(&stream)
    };
    let plain = bits(&config());
    assert!(plain == bits(&Config { overlap: Overlap::Off, ..config() }));
    assert!(plain == bits(&Config { sync_each_stage: true, ..config() }));
    machine.end();
}

/// Rank 1 makes no call: all that need its keys name it by the deadline.
fn absent(part: &Part) {
    let deadline = Duration::from_millis(700);
    let machine = Machine::meet(part);
    let mut group = machine.group(&Config { deadline, ..config() });
    let problem = Problem::new(case(part), "full");
    once::<bf16>(&machine, &mut group, &problem, "before");
    group.barrier().unwrap();
    let stream = machine.context().new_stream().unwrap();
    let prepared = group.prepare(&problem.mask, problem.case.shape::<bf16>(), &problem.sharding).unwrap();
    let mut memory = Memory::<bf16>::new(&stream, &problem, part.rank as usize);
    let begin = Instant::now();
    let handle = (part.rank != 1).then(|| memory.call(&mut group, &prepared, &stream).unwrap());
    let error = match &handle {
        Some(handle) if part.rank == 0 => handle.wait().unwrap_err(),
        // Who waits for no call hears of it from the group.
        _ => loop {
            if let Err(error) = group.status() {
                break error;
            }
            assert!(begin.elapsed() < LONG / 2, "nobody gave up");
            std::thread::sleep(Duration::from_millis(5));
        },
    };
    // Another rank's time may have been up a little earlier.
    assert!(begin.elapsed() >= deadline / 2 && begin.elapsed() < LONG / 2, "{:?}", begin.elapsed());
    // Blocks of either group of heads may be first to give up.
    let text = error.to_string();
    assert!(text.contains("for rank 1 in stage 'gather' piece ") && text.contains(": signal"), "{text}");
    assert!(handle.is_none_or(|handle| handle.is_done() && handle.wait().is_err()));
    assert!(memory.call(&mut group, &prepared, &stream).is_err(), "a failure stays");
    group.recover().unwrap();
    once::<bf16>(&machine, &mut group, &problem, "after");
    end(machine, group);
}

fn differ(part: &Part) {
    let machine = Machine::meet(part);
    let mut group = machine.group(&config());
    let problem = Problem::new(case(part), "causal");
    once::<bf16>(&machine, &mut group, &problem, "before");
    group.barrier().unwrap();
    let other = Problem::new(case(part), if part.rank == 2 { "full" } else { "causal" });
    let stream = machine.context().new_stream().unwrap();
    let prepared = group.prepare(&other.mask, other.case.shape::<bf16>(), &other.sharding).unwrap();
    let mut memory = Memory::<bf16>::new(&stream, &other, part.rank as usize);
    let result = memory.call(&mut group, &prepared, &stream).and_then(|handle| handle.wait());
    let error = result.unwrap_err().to_string();
    assert!(error.contains("rank 2") && error.contains("'mask' differs"), "{error}");
    group.recover().unwrap();
    once::<bf16>(&machine, &mut group, &problem, "after");
    end(machine, group);
}

fn refused(part: &Part) {
    let machine = Machine::meet(part);
    let bound = Config { symmetric_bytes: Some(Bytes(300_000)), ..config() };
    let (mut group, mut other) = (machine.group(&bound), machine.group(&config()));
    let problem = Problem::new(Case { seq: 256, ..case(part) }, "full");
    let (stream, rank) = (machine.context().new_stream().unwrap(), part.rank as usize);
    let shape = problem.case.shape::<bf16>();
    let prepared = group.prepare(&problem.mask, shape, &problem.sharding).unwrap();
    // 128 rows of 2 heads of 256 bytes, K and V, two halves.
    assert_eq!(prepared.symmetric_bytes(PassKind::Forward), Bytes(2 * 2 * 128 * 2 * 256));
    let mut memory = Memory::<bf16>::new(&stream, &problem, rank);
    let foreign = memory.call(&mut other, &prepared, &stream);
    assert!(matches!(foreign, Err(Error::ForeignPreparation { .. })));
    let large = Problem::new(case(part), "full");
    let prepared_large = group.prepare(&large.mask, large.case.shape::<bf16>(), &large.sharding).unwrap();
    let wrong_shape = memory.call(&mut group, &prepared_large, &stream).unwrap_err().to_string();
    assert!(wrong_shape.contains("[1, 320, 4, 128]"), "{wrong_shape}");
    let too_large = Memory::<bf16>::new(&stream, &large, rank).call(&mut group, &prepared_large, &stream);
    assert!(too_large.unwrap_err().to_string().contains("300000 are allowed"));
    host_views(&mut group, &prepared, &problem);
    threads(&problem, &mut memory, &stream);
    // Nothing of this has failed the group.
    once::<bf16>(&machine, &mut group, &problem, "after");
    other.close().unwrap();
    end(machine, group);
}

/// A group on GPUs takes no host views.
fn host_views(group: &mut CpGroup, prepared: &fm_cp::Prepared, problem: &Problem) {
    let Case { batch, heads_q, heads_kv, head_dim, .. } = problem.case;
    let extents = |heads| fm_cp::view::Extents { batch, seq: 128, heads, head_dim };
    let zeros = |heads: usize| vec![bf16::ZERO; batch * 128 * heads * head_dim];
    let (q, kv, mut o) = (zeros(heads_q), zeros(heads_kv), zeros(heads_q));
    let key = View4::bshd(&kv, extents(heads_kv)).unwrap();
    let inputs = ForwardInputs { q: View4::bshd(&q, extents(heads_q)).unwrap(), k: key, v: key };
    let mut lse = vec![0.0; batch * 128 * heads_q];
    let outputs = ForwardOutputs { o: View4Mut::bshd(&mut o, extents(heads_q)).unwrap(), lse: &mut lse };
    let refused = CpAttention::new(Options::default()).unwrap().forward(group, prepared, inputs, outputs);
    assert!(matches!(refused, Err(Error::WrongBackend { .. })));
}

/// A group of threads takes no device views.
fn threads(
    problem: &Problem,
    memory: &mut Memory<bf16>,
    stream: &std::sync::Arc<fm_cp::cuda::cudarc::driver::CudaStream>,
) {
    let world = World::new(1).unwrap();
    let fabric = HostWorld::new(world, HostConfig::default()).unwrap().remove(0);
    let mut group = CpGroup::join(fabric, Config::default()).unwrap();
    let sharding = Sharding::contiguous(problem.case.seq, world).unwrap();
    let mask = FlashMask::full(problem.case.mask_dims()).unwrap();
    let prepared = group.prepare(&mask, problem.case.shape::<bf16>(), &sharding).unwrap();
    assert!(matches!(memory.call(&mut group, &prepared, stream), Err(Error::WrongBackend { .. })));
    group.close().unwrap();
}
