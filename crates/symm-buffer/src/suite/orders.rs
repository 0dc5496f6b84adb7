//! What orders streams and hosts beside signals: puts at once, streams that follow others, notes.
use super::{Backend, LONG, Rank, WORLDS, pattern, run, word};
use crate::{Bytes, Copy2d, Fabric, Pe, Post, Put, Span};

/// Notes that are kept.
const NOTES: u64 = crate::fabric::NOTES as u64;

/// Everybody sends to everybody in one call, round after round.
pub fn put_all_at_once<B: Backend>(backend: &B) {
    const LEN: usize = 700;
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| {
            let rank = Rank::new(&fabric);
            let (me, world) = (rank.me(), fabric.world());
            let region = fabric.alloc(Bytes(LEN * (1 + 2 * world.size())), LONG).unwrap();
            let words = fabric.alloc_signals(ranks, LONG).unwrap();
            for round in 1..10_u64 {
                let data = |from: Pe| pattern(round << 8 | u64::from(from.0), LEN);
                let mine = Span { region, offset: 0, len: LEN };
                fabric.store(mine, &data(me)).unwrap();
                // Each half of the data is a copy of its own.
                let slot = |from: Pe| LEN * (1 + 2 * from.index() + usize::from(round % 2 == 1));
                let half = |at| run(Span { offset: at, len: LEN / 2, ..mine }, region, slot(me) + at);
                let copies: [Copy2d; 2] = [half(0), half(LEN / 2)];
                let post = |from: Pe| Post { signal: word(words, from.index()), value: rank.epoch(round, 0) };
                let put = |to| Put { to, copies: &copies, post: Some(post(me)) };
                let puts: Vec<Put<'_>> = world.ranks().map(put).collect();
                fabric.put_all(&rank.push, &puts).unwrap();
                for from in world.ranks() {
                    rank.wait(from, post(from));
                    let got = fabric.load(Span { offset: slot(from), ..mine }).unwrap();
                    assert!(got == data(from), "{me} has other bytes of {from} in round {round}");
                }
                rank.synchronize();
            }
            fabric.put_all(&rank.push, &[]).unwrap();
            fabric.free(region, LONG).unwrap();
        });
    }
}

/// A stream that follows another is done when that one is. Rank 0 lets go of the next rank's stream, and each rank of the one
/// after it.
pub fn a_followed_stream_is_waited_for<B: Backend>(backend: &B) {
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| {
            let rank = Rank::new(&fabric);
            let [held, passes] = ["held", "passes"].map(|name| fabric.stream(name).unwrap());
            let signal = fabric.alloc_signals(1, LONG).unwrap();
            let go = Post { signal, value: rank.epoch(1, 0) };
            let pass_on = || {
                fabric.put_signal(&passes, Put { to: rank.next(), copies: &[], post: Some(go) }).unwrap();
            };
            fabric.wait_on(&held, super::wait_for(rank.previous(), go), LONG).unwrap();
            fabric.follow(&rank.push, &held).unwrap();
            if rank.me() == Pe(0) {
                pass_on();
            }
            rank.synchronize();
            assert!(fabric.seen(signal).unwrap() >= go.value, "{} did not wait", rank.me());
            if rank.me() != Pe(0) {
                pass_on();
            }
            fabric.synchronize(&passes, LONG).unwrap();
            fabric.barrier(LONG).unwrap();
        });
    }
}

/// What is queued on a stream that follows another begins when the other has done what it had then. A token goes round the
/// ring; on each rank one stream waits for it and copies it within the heap, another one passes the copy on.
pub fn streams_follow<B: Backend>(backend: &B) {
    const LEN: usize = 300;
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| {
            let rank = Rank::new(&fabric);
            let other = fabric.stream("other").unwrap();
            let region = fabric.alloc(Bytes(2 * LEN), LONG).unwrap();
            let signal = fabric.alloc_signals(1, LONG).unwrap();
            let half = |index: usize| Span { region, offset: LEN * index, len: LEN };
            for round in 1..10 {
                let (token, came) = (pattern(round, LEN), Post { signal, value: rank.epoch(round, 0) });
                let first = rank.me() == Pe(0);
                fabric.store(half(0), if first { &token } else { &[0; LEN] }).unwrap();
                fabric.store(half(1), &[0; LEN]).unwrap();
                fabric.barrier(LONG).unwrap();
                if !first {
                    fabric.wait_on(&rank.push, super::wait_for(rank.previous(), came), LONG).unwrap();
                }
                let within = Put { to: rank.me(), copies: &[run(half(0), region, LEN)], post: None };
                fabric.put_signal(&rank.push, within).unwrap();
                fabric.follow(&other, &rank.push).unwrap();
                let put = Put { to: rank.next(), copies: &[run(half(1), region, 0)], post: Some(came) };
                fabric.put_signal(&other, put).unwrap();
                rank.wait(rank.previous(), came);
                assert!(fabric.load(half(0)).unwrap() == token, "round {round}: it did not wait");
                rank.synchronize();
                fabric.synchronize(&other, LONG).unwrap();
                fabric.barrier(LONG).unwrap();
            }
        });
    }
}

/// Notes come through whole, and the last ones are kept.
pub fn notes_are_told<B: Backend>(backend: &B) {
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| {
            let (me, world) = (fabric.me(), fabric.world());
            let note =
                |pe: Pe, number: u64| [0, 1, 2, 3, 4, 5].map(|at| number << 8 | u64::from(pe.0) << 4 | at);
            assert_eq!(fabric.published(me, 0).unwrap(), None);
            fabric.barrier(LONG).unwrap();
            for number in 0..2 * NOTES {
                fabric.publish(number, note(me, number));
            }
            fabric.barrier(LONG).unwrap();
            for pe in world.ranks() {
                for number in [NOTES, NOTES + 1, 2 * NOTES - 1] {
                    assert_eq!(fabric.published(pe, number).unwrap(), Some(note(pe, number)));
                }
                for number in [0, NOTES - 1, 2 * NOTES, u64::MAX] {
                    assert_eq!(fabric.published(pe, number).unwrap(), None, "{number}");
                }
            }
            assert!(fabric.published(Pe(ranks), 0).is_err());
            fabric.barrier(LONG).unwrap();
            // While they change, a note is whole or not there.
            for number in 2 * NOTES..2 * NOTES + 5000 {
                fabric.publish(number, note(me, number));
                for pe in world.after(me) {
                    let found = fabric.published(pe, number).unwrap();
                    assert!(found.is_none_or(|found| found == note(pe, number)));
                }
            }
        });
    }
}
