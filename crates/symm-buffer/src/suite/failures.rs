//! Nothing waits for ever, everybody learns why, and the group works again after `recover` (rules D1-D3).
use std::time::{Duration, Instant};

use super::{Backend, LONG, Rank, SHORT, moves::pass_on, run, wait_for};
use crate::{
    Bytes, Copy2d, Corner, Error, Fabric, Incarnation, Label, Pe, Post, Put, RegionId, Report, SignalId,
    Span, Wait,
};

/// Ample for an abort to reach everybody, and far less than the deadline of those who do not time out themselves.
const PROMPT: Duration = Duration::from_secs(10);

/// Rank 0 never posts to rank 1. Rank 1 reports that at its deadline; all others stop with it, wherever they wait.
pub fn a_lost_signal_is_named<B: Backend>(backend: &B) {
    for ranks in [2, 3, 5, 8] {
        backend.run(ranks, &|fabric| {
            let rank = Rank::new(&fabric);
            let signal = fabric.alloc_signals(2, LONG).unwrap();
            for incarnation in 0..3 {
                assert_eq!(fabric.incarnation(), Incarnation(incarnation));
                let began = Instant::now();
                let report = lose(&rank, signal);
                assert!(began.elapsed() < PROMPT, "{} ended late", rank.me());
                assert_eq!((report.rank, report.peer, report.signal), (Pe(1), Pe(0), signal));
                assert_eq!((report.label.stage, report.wanted), ("lost", rank.epoch(0, 1)));
                assert!(report.seen < report.wanted && report.waited >= SHORT);
                stays_aborted(&rank, signal);
                assert_eq!(fabric.recover(LONG).unwrap(), Incarnation(incarnation + 1));
                fabric.status().unwrap();
                pass_on(&rank);
            }
        });
    }
}

/// The ring in which rank 0 forgets its post; what each rank is told.
fn lose<F: Fabric>(rank: &Rank<'_, F>, signal: SignalId) -> Report {
    let fabric = rank.fabric;
    let post = Post { signal, value: rank.epoch(0, 1) };
    let label = Label { stage: "lost", piece: 7 };
    let wait = Wait { label, ..wait_for(rank.previous(), post) };
    // A stream that waits too, with work behind it.
    let second = SignalId(signal.0 + 1);
    fabric.wait_on(&rank.push, Wait { signal: second, ..wait }, LONG).unwrap();
    fabric.put_signal(&rank.push, Put { to: rank.next(), copies: &[], post: Some(post) }).unwrap();
    fabric.barrier(LONG).unwrap();
    let deadline = if rank.me() == Pe(1) { SHORT } else { LONG };
    let told = match fabric.wait(wait, deadline) {
        Err(Error::Timeout(report)) if rank.me() == Pe(1) => report,
        Err(Error::Aborted { me, by: Pe(1), report }) if rank.me() == me => report,
        other => panic!("{}: {other:?}", rank.me()),
    };
    match fabric.synchronize(&rank.push, LONG) {
        Err(Error::Aborted { report, .. }) => assert_eq!(report, told),
        other => panic!("{}: {other:?}", rank.me()),
    }
    told
}

/// Until `recover`, every call that needs others ends at once.
fn stays_aborted<F: Fabric>(rank: &Rank<'_, F>, signal: SignalId) {
    let fabric = rank.fabric;
    assert!(fabric.status().is_err());
    let post = Post { signal, value: rank.epoch(0, 2) };
    let put = Put { to: rank.next(), copies: &[], post: Some(post) };
    let results = [
        fabric.wait(wait_for(rank.previous(), post), LONG).map(drop),
        fabric.barrier(LONG),
        fabric.alloc(Bytes(64), LONG).map(drop),
        fabric.put_signal(&rank.push, put).and_then(|()| fabric.synchronize(&rank.push, LONG).map(drop)),
    ];
    for result in results {
        assert!(matches!(result, Err(Error::Aborted { .. })), "{}: {result:?}", rank.me());
    }
}

/// A rank returns without the barrier: the others name it, within their deadline; also when they try to recover.
pub fn a_missing_rank_is_named<B: Backend>(backend: &B) {
    for ranks in [2, 3, 8] {
        let gone = Pe(ranks / 2);
        backend.run(ranks, &|fabric| {
            if fabric.me() == gone {
                return;
            }
            let began = Instant::now();
            for result in [fabric.barrier(SHORT), fabric.recover(SHORT).map(drop)] {
                match result {
                    Err(Error::Missing { me, missing, .. }) => {
                        assert_eq!((me, missing), (fabric.me(), gone));
                    }
                    Err(Error::Aborted { report, .. }) => assert_eq!(report.peer, gone),
                    other => panic!("{}: {other:?}", fabric.me()),
                }
            }
            assert!(began.elapsed() < PROMPT);
            assert!(fabric.status().is_err());
        });
    }
}

/// Wrong arguments are refused at once and leave no trace.
pub fn bad_arguments_are_refused<B: Backend>(backend: &B) {
    backend.run(2, &|fabric| {
        let rank = Rank::new(&fabric);
        let region = fabric.alloc(Bytes(1000), LONG).unwrap();
        let signal = fabric.alloc_signals(1, LONG).unwrap();
        let good = run(Span { region, offset: 0, len: 100 }, region, 500);
        let corner = good.src;
        let put = |to, copy: Copy2d, signal| {
            let post = Some(Post { signal, value: rank.epoch(0, 1) });
            fabric.put_signal(&rank.push, Put { to, copies: &[copy], post }).unwrap_err()
        };
        let copy = |copy| put(Pe(1), copy, signal);
        let outside = [
            Copy2d { dst: Corner { offset: 901, ..corner }, ..good },
            Copy2d { src: Corner { offset: usize::MAX, ..corner }, ..good },
            Copy2d { rows: 11, ..good },
        ];
        for wrong in outside {
            assert!(matches!(copy(wrong), Error::OutOfRange { .. }), "{wrong:?}");
        }
        for (rows, pitch) in [(2, 99), (usize::MAX, usize::MAX / 2)] {
            let wrong = copy(Copy2d { src: Corner { pitch, ..corner }, rows, ..good });
            assert!(matches!(wrong, Error::Pitch { .. }), "{wrong:?}");
        }
        let nowhere = Corner { region: RegionId::NONE, ..corner };
        for wrong in [Copy2d { src: nowhere, ..good }, Copy2d { dst: nowhere, ..good }] {
            assert!(matches!(copy(wrong), Error::UnknownRegion { .. }));
        }
        assert!(matches!(put(Pe(2), good, signal), Error::NoSuchPe { world: 2, .. }));
        assert!(matches!(put(Pe(1), good, SignalId(signal.0 + 1)), Error::NoSuchSignal { .. }));
        let wait =
            Wait { signal: SignalId::NONE, ..wait_for(Pe(0), Post { signal, value: rank.epoch(0, 1) }) };
        assert!(matches!(fabric.wait(wait, LONG), Err(Error::NoSuchSignal { .. })));
        assert!(matches!(fabric.wait_on(&rank.push, wait, LONG), Err(Error::NoSuchSignal { .. })));
        assert!(fabric.load(Span { region, offset: 1, len: 1000 }).is_err());
        assert!(fabric.store(Span { region, offset: 0, len: 3 }, &[0; 2]).is_err());
        rank.synchronize();
        fabric.status().unwrap();
        fabric.barrier(LONG).unwrap();
        assert_eq!(fabric.seen(signal).unwrap(), crate::Epoch(0), "a refused put posts nothing");
    });
}
