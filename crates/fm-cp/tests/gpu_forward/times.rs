//! What calls that are measured tell of themselves.
use std::time::Duration;

use fm_cp::{CallReport, Config, ShardingKind};
use half::bf16;

use super::problem::{Memory, Problem};
use super::processes::{Machine, Part};
use super::scenarios::{case, config, end};
use super::support::Case;

/// Rank 1 is late, and says so only by its keys: those that need them wait in their kernels and can tell for whom.
pub(crate) fn measured(part: &Part) {
    const LATE: Duration = Duration::from_millis(150);
    let machine = Machine::meet(part);
    let mut group = machine.group(&Config { measure: true, ..config() });
    let case = Case { kind: ShardingKind::Contiguous, heads_kv: 2, ..case(part) };
    let problem = Problem::new(case, "causal");
    let stream = machine.context().new_stream().unwrap();
    let prepared = group.prepare(&problem.mask, case.shape::<bf16>(), &problem.sharding).unwrap();
    let mut memory = Memory::<bf16>::new(&stream, &problem, part.rank as usize);
    // The first call makes room, which all ranks come to.
    let first = memory.call(&mut group, &prepared, &stream).unwrap().wait().unwrap();
    let bits = memory.bits(&stream);
    assert!(first.device.is_some());
    group.barrier().unwrap();
    if part.rank == 1 {
        std::thread::sleep(LATE);
    }
    let handle = memory.call(&mut group, &prepared, &stream).unwrap();
    assert!(handle.report().device.is_none(), "nobody has waited yet");
    let report = handle.wait().unwrap();
    check(&report, part, LATE / 2);
    group.measure(false);
    let plain = memory.call(&mut group, &prepared, &stream).unwrap().wait().unwrap();
    assert!(plain.device.is_none() && plain.busy.is_zero());
    assert!(memory.bits(&stream) == bits);
    end(machine, group);
}

/// Causal and contiguous: a rank needs the keys of all before it.
fn check(report: &CallReport, part: &Part, late: Duration) {
    let times = report.device.as_ref().unwrap();
    assert_eq!(times.pushes.iter().map(|push| push.bytes.0).sum::<usize>(), report.bytes_sent().0);
    let groups = if part.rank + 1 < part.ranks { vec![0, 1] } else { Vec::new() };
    assert_eq!(times.pushes.iter().map(|push| push.piece).collect::<Vec<_>>(), groups);
    assert!(times.pushes.windows(2).all(|pair| pair[0].span.end <= pair[1].span.begin));
    assert_eq!(times.gigabytes_per_s() > 0.0, !groups.is_empty());
    let waited = times.waits.iter().filter(|wait| wait.peer.0 == 1);
    assert!(times.waits.iter().all(|wait| wait.peer.0 < part.rank && wait.piece < 2));
    let longest = waited.map(|wait| wait.longest).max().unwrap_or_default();
    let must_wait = part.rank > 1;
    assert_eq!(longest >= late, must_wait, "{times:?}");
    let attention = times.attention;
    for wait in &times.waits {
        assert!(attention.begin <= wait.span.begin && wait.span.end <= attention.end, "{times:?}");
        assert!(wait.longest <= wait.span.duration() && wait.blocks > 0);
    }
    assert!(times.idle <= report.exposed && longest <= report.exposed, "{times:?}");
    assert_eq!(report.exposed, times.exposed());
    assert_eq!(report.busy + report.exposed, attention.duration());
    let told = report.waits.iter().filter(|wait| wait.stage == "gather");
    assert_eq!(told.map(|wait| wait.time).max().unwrap_or_default() >= late, must_wait);
}
