//! The host backend in bad weather: broken rules are found, faults are repeatable, nobody hangs, groups recover.
#![cfg(not(loom))]
mod common;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    thread,
    time::Instant,
};

use common::{LONG, PROMPT, copy, ms, post, run, span, wait_for};
use symm_buffer::{
    Bytes, Error, Fabric, Incarnation, Pe, Put, Report, SignalId, World,
    host::{Faults, HostConfig, HostFabric, HostWorld, Link, Lost, Slow},
};

fn with_faults(faults: Faults) -> HostConfig {
    HostConfig { faults, ..HostConfig::default() }
}

#[test]
fn a_slot_that_is_still_read_is_not_overwritten() {
    run(3, HostConfig::default(), |fabric| {
        let region = fabric.alloc(Bytes(256), LONG).unwrap();
        fabric.store(span(region, 0, 256), &[byte(fabric.me()); 256]).unwrap();
        let push = fabric.stream("push").unwrap();
        // Rank 1 reads; rank 0 writes there without having been told that it may.
        let reader = (fabric.me() == Pe(1)).then(|| fabric.read(span(region, 0, 64)).unwrap());
        fabric.barrier(LONG).unwrap();
        let told = if fabric.me() == Pe(0) {
            let copies = &[copy(span(region, 63, 10), region, 63)];
            fabric.put_signal(&push, Put { to: Pe(1), copies, post: None }).unwrap();
            let error = fabric.synchronize(&push, LONG).unwrap_err();
            assert!(matches!(error, Error::Conflict { holder: "a local reader", .. }), "{error}");
            assert_eq!(fabric.status(), Err(error.clone()));
            error
        } else {
            fabric.barrier(LONG).unwrap_err()
        };
        if fabric.me() != Pe(0) {
            assert!(matches!(told, Error::Aborted { by: Pe(0), .. }), "{told}");
        }
        assert!(reader.iter().all(|bytes| bytes.iter().all(|byte| *byte == 1)));
        // A region in use is not given back either.
        fabric.recover(LONG).unwrap();
        let busy = fabric.free(region, LONG).unwrap_err();
        assert!(matches!(busy, Error::Conflict { .. }), "{busy}");
        drop(reader);
        fabric.barrier(LONG).unwrap();
        fabric.free(region, LONG).unwrap();
    });
}

#[test]
fn a_put_onto_itself_is_a_conflict() {
    run(1, HostConfig::default(), |fabric| {
        let region = fabric.alloc(Bytes(256), LONG).unwrap();
        let push = fabric.stream("push").unwrap();
        let copies = &[copy(span(region, 0, 64), region, 32)];
        fabric.put_signal(&push, Put { to: Pe(0), copies, post: None }).unwrap();
        let error = fabric.synchronize(&push, LONG).unwrap_err();
        assert!(matches!(error, Error::Conflict { holder: "a put that reads", .. }), "{error}");
        assert_eq!(fabric.recover(LONG), Ok(Incarnation(1)));
        fabric.synchronize(&push, LONG).unwrap();
    });
}

#[test]
fn signals_only_grow_and_have_one_writer() {
    run(3, HostConfig::default(), |fabric| {
        let signal = fabric.alloc_signals(1, LONG).unwrap();
        let push = fabric.stream("push").unwrap();
        let try_post = |step| {
            let post = Some(post(&fabric, signal, step));
            fabric.put_signal(&push, Put { to: Pe(2), copies: &[], post }).unwrap();
            fabric.synchronize(&push, LONG).map(drop)
        };
        if fabric.me() == Pe(0) {
            assert_eq!([5, 5, 7].map(try_post), [Ok(()), Ok(()), Ok(())]);
            let error = try_post(6).unwrap_err();
            assert!(matches!(error, Error::SignalWentBack { to: Pe(2), .. }), "{error}");
        }
        fabric.recover(LONG).unwrap();
        if fabric.me() == Pe(1) {
            let error = try_post(9).unwrap_err();
            assert!(matches!(error, Error::SignalWriters { writer: Pe(0), second: Pe(1), .. }), "{error}");
        }
    });
}

fn byte(pe: Pe) -> u8 {
    pe.0.to_le_bytes()[0]
}

/// All-to-all with data, checked, on new words.
fn exchange(fabric: &HostFabric) -> Result<(), Error> {
    exchange_on(fabric, fabric.alloc_signals(8, LONG)?)
}

fn exchange_on(fabric: &HostFabric, first: SignalId) -> Result<(), Error> {
    let (me, world) = (fabric.me(), fabric.world());
    let region = fabric.alloc(Bytes(8 * world.size()), LONG)?;
    let push = fabric.stream("push")?;
    let word = |pe: Pe| SignalId(first.0 + pe.0);
    fabric.store(span(region, 8 * me.index(), 8), &[byte(me); 8])?;
    for to in world.after(me) {
        let copies = &[copy(span(region, 8 * me.index(), 8), region, 8 * me.index())];
        fabric.put_signal(&push, Put { to, copies, post: Some(post(fabric, word(me), 1)) })?;
    }
    for from in world.before(me) {
        let waited = fabric.wait(wait_for(from.0, post(fabric, word(from), 1)), ms(700));
        if let Err(Error::Timeout(report)) = &waited {
            assert_eq!(report.peer, from);
        }
        waited?;
        assert_eq!(fabric.load(span(region, 8 * from.index(), 8))?, [byte(from); 8]);
    }
    fabric.synchronize(&push, LONG)?;
    // A rank that was not concerned learns it here.
    fabric.barrier(LONG)
}

fn report_of(result: Result<(), Error>) -> Report {
    match result {
        Err(Error::Timeout(report) | Error::Aborted { report, .. }) => report,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lost_signal_comes_again_from_its_seed_and_is_over_after_recovery() {
    let faults = |seed| Faults { lost: Some(Lost::default()), ..Faults::default() }.seeded(seed);
    let once = |seed| {
        let began = Instant::now();
        let reports = run(4, with_faults(faults(seed)), |fabric| {
            let words = fabric.alloc_signals(8, LONG).unwrap();
            let report = report_of(exchange_on(&fabric, words));
            fabric.recover(LONG).unwrap();
            // The same words come again.
            exchange_on(&fabric, words).unwrap();
            report
        });
        assert!(began.elapsed() < PROMPT);
        assert!(reports.iter().all(|report| *report == reports[0]), "all ranks name the same");
        (reports[0].rank, reports[0].peer)
    };
    let first: Vec<_> = (0..3).map(once).collect();
    assert_eq!(first, (0..3).map(once).collect::<Vec<_>>());
    assert!(first.iter().any(|loss| *loss != first[0]), "the seed chooses: {first:?}");
}

#[test]
fn late_signals_and_a_slow_rank_change_nothing_but_time() {
    let late = Faults { late: Some(ms(60)), seed: 3, ..Faults::default() };
    let slow = Faults { slow: Some(Slow { rank: Pe(2), delay: ms(60) }), ..Faults::default() };
    for faults in [late, slow] {
        let began = Instant::now();
        run(4, with_faults(faults), |fabric| exchange(&fabric).unwrap());
        assert!(began.elapsed() > ms(60));
    }
}

#[test]
fn the_rank_that_panics_first_is_the_one_that_is_heard() {
    let began = Instant::now();
    let caught = catch_unwind(AssertUnwindSafe(|| {
        run(4, HostConfig::default(), |fabric| {
            let signal = fabric.alloc_signals(1, LONG).unwrap();
            assert!(fabric.me() != Pe(2), "rank 2 has a bug");
            // Unwrapping the abort panics too, on purpose.
            fabric.wait(wait_for(2, post(&fabric, signal, 1)), LONG).unwrap();
        })
    }));
    let message = *caught.unwrap_err().downcast::<&str>().unwrap();
    assert_eq!(message, "rank 2 has a bug");
    assert!(began.elapsed() < PROMPT, "the others waited on: {:?}", began.elapsed());
}

#[test]
fn a_panic_ends_the_waits_of_ranks_on_threads_of_the_caller() {
    let mut ranks = HostWorld::new(World::new(2).unwrap(), HostConfig::default()).unwrap();
    let (second, first) = (ranks.pop().unwrap(), ranks.pop().unwrap());
    thread::scope(|scope| {
        let dying = scope.spawn(move || {
            first.alloc_signals(1, LONG).unwrap();
            panic!("rank 0 dies");
        });
        let signal = second.alloc_signals(1, LONG).unwrap();
        let error = second.wait(wait_for(0, post(&second, signal, 1)), LONG).unwrap_err();
        assert!(matches!(error, Error::Aborted { by: Pe(0), .. }), "{error}");
        assert!(dying.join().is_err());
    });
}

#[test]
fn a_panic_in_a_source_scope_waits_for_its_puts() {
    run(2, HostConfig::default(), |fabric| {
        let region = fabric.alloc(Bytes(64), LONG).unwrap();
        let signal = fabric.alloc_signals(1, LONG).unwrap();
        let push = fabric.stream("push").unwrap();
        fabric.barrier(LONG).unwrap();
        if fabric.me() == Pe(1) {
            let error = fabric.wait(wait_for(0, post(&fabric, signal, 1)), LONG).unwrap_err();
            assert!(matches!(error, Error::Aborted { by: Pe(0), .. }), "{error}");
        } else {
            let data = [1_u8; 64];
            let caught = catch_unwind(AssertUnwindSafe(|| {
                fabric.with_sources(&[&data], |ids| {
                    // The put stands behind a wait that nobody ends.
                    let never = wait_for(1, post(&fabric, signal, 1));
                    fabric.wait_on(&push, never, LONG).unwrap();
                    let copies = &[copy(span(ids[0], 0, 64), region, 0)];
                    fabric.put_signal(&push, Put { to: Pe(1), copies, post: None }).unwrap();
                    panic!("in the scope");
                })
            }));
            assert!(caught.is_err());
            assert!(matches!(fabric.synchronize(&push, LONG), Err(Error::Aborted { .. })));
        }
        fabric.recover(LONG).unwrap();
        exchange(&fabric).unwrap();
    });
}

#[test]
fn recovery_leaves_nothing_in_flight() {
    // 1 MB at 1 MB/s is on its way when rank 1 gives up; it must never land.
    let link = Some(Link { bytes_per_second: 1e6, latency: ms(0) });
    run(2, HostConfig { link, ..HostConfig::default() }, |fabric| {
        let region = fabric.alloc(Bytes(1_000_000), LONG).unwrap();
        let signal = fabric.alloc_signals(1, LONG).unwrap();
        let push = fabric.stream("push").unwrap();
        fabric.barrier(LONG).unwrap();
        let old = post(&fabric, signal, 1);
        if fabric.me() == Pe(0) {
            let copies = &[copy(span(region, 0, 1_000_000), region, 0)];
            fabric.put_signal(&push, Put { to: Pe(1), copies, post: Some(old) }).unwrap();
            assert!(matches!(fabric.synchronize(&push, LONG), Err(Error::Aborted { .. })));
        } else {
            let error = fabric.wait(wait_for(0, old), ms(100)).unwrap_err();
            assert!(matches!(error, Error::Timeout(_)), "{error}");
        }
        assert_eq!(fabric.recover(LONG), Ok(Incarnation(1)));
        fabric.store(span(region, 0, 1_000_000), &vec![3; 1_000_000]).unwrap();
        thread::sleep(ms(1100));
        assert!(fabric.load(span(region, 0, 1_000_000)).unwrap().iter().all(|byte| *byte == 3));
        assert!(
            fabric.seen(signal).unwrap() < post(&fabric, signal, 0).value,
            "old words are below new ones"
        );
        fabric.status().unwrap();
    });
}

#[test]
fn a_slow_rank_is_recovered_with_when_it_comes() {
    run(3, HostConfig::default(), |fabric| {
        let slow = fabric.me() == Pe(1);
        if slow {
            thread::sleep(ms(500));
            assert!(matches!(fabric.barrier(LONG), Err(Error::Aborted { .. })));
        } else {
            let error = fabric.barrier(ms(50)).unwrap_err();
            let named = matches!(error, Error::Missing { missing: Pe(1), .. } | Error::Aborted { .. });
            assert!(named, "{error}");
            // Too early: it is named once more, by all.
            let error = fabric.recover(ms(50)).unwrap_err();
            assert!(matches!(error, Error::Missing { missing: Pe(1), .. }), "{error}");
            assert!(fabric.status().is_err());
        }
        assert_eq!(fabric.recover(LONG), Ok(Incarnation(1)));
        exchange(&fabric).unwrap();
    });
}

#[test]
fn a_stream_that_does_not_drain_is_named() {
    run(2, HostConfig::default(), |fabric| {
        let signal = fabric.alloc_signals(1, LONG).unwrap();
        let push = fabric.stream("stuck").unwrap();
        fabric.wait_on(&push, wait_for(0, post(&fabric, signal, 1)), LONG).unwrap();
        fabric.barrier(LONG).unwrap();
        let budget = if fabric.me() == Pe(0) { ms(50) } else { LONG };
        match fabric.synchronize(&push, budget) {
            Err(Error::Drain { me: Pe(0), stream: "stuck", waited, .. }) => assert!(waited >= ms(50)),
            Err(Error::Aborted { me: Pe(1), by: Pe(0), report }) => assert_eq!(report.label.stage, "stuck"),
            other => panic!("{other:?}"),
        }
    });
}

#[test]
fn different_collectives_at_once_are_named() {
    run(2, HostConfig::default(), |fabric| {
        let result = match fabric.me() {
            Pe(0) => fabric.barrier(LONG),
            _ => fabric.alloc_signals(4, LONG).map(drop),
        };
        let message = result.unwrap_err().to_string();
        assert!(message.contains("Barrier") && message.contains("Signals(4)"), "{message}");
        let huge = fabric.alloc(Bytes(usize::MAX / 2), LONG).unwrap_err();
        assert!(matches!(huge, Error::NoMemory { .. }), "{huge}");
        fabric.barrier(LONG).unwrap();
    });
}
