//! Steady state without a barrier: signals say what has come and what is free.
use super::{Backend, LONG, Rank, WORLDS, pattern, run, wait_for, word};
use crate::{
    Bytes, Fabric, Pe, Post, Put, SepSrBuffer, SignalId, Span, SrBuffer, Use, buffer::SepBytes, layout::Part,
};

/// Every rank posts to every other, on a word per sender; nobody's post covers another's.
pub fn signals_from_all<B: Backend>(backend: &B) {
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| {
            let rank = Rank::new(&fabric);
            let first = fabric.alloc_signals(ranks, LONG).unwrap();
            for round in 1..30 {
                let post = |from: Pe| Post { signal: word(first, from.index()), value: rank.epoch(round, 0) };
                for to in fabric.world().after(rank.me()) {
                    rank.put(to, &[], post(rank.me()));
                }
                for from in fabric.world().before(rank.me()) {
                    rank.wait(from, post(from));
                }
            }
            assert_eq!(fabric.seen(word(first, rank.me().index())).unwrap(), crate::Epoch(0));
            rank.synchronize();
        });
    }
}

/// Streams wait and pass on by themselves: a token goes round the ring, queued on all ranks before it starts.
pub fn stream_waits_relay<B: Backend>(backend: &B) {
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| {
            const LEN: usize = 300;
            let rank = Rank::new(&fabric);
            let region = fabric.alloc(Bytes(2 * LEN), LONG).unwrap();
            let signal = fabric.alloc_signals(1, LONG).unwrap();
            let half = |index| Span { region, offset: LEN * index, len: LEN };
            let token = pattern(99, LEN);
            let post = Post { signal, value: rank.epoch(0, 1) };
            if rank.me() != Pe(0) {
                fabric.wait_on(&rank.push, wait_for(rank.previous(), post), LONG).unwrap();
                rank.put(rank.next(), &[run(half(1), region, LEN)], post);
            }
            fabric.barrier(LONG).unwrap();
            if rank.me() == Pe(0) {
                fabric.store(half(0), &token).unwrap();
                rank.put(rank.next(), &[run(half(0), region, LEN)], post);
            }
            rank.wait(rank.previous(), post);
            assert!(fabric.load(half(1)).unwrap() == token, "the token changed on its way to {}", rank.me());
            rank.synchronize();
        });
    }
}

/// Uses of a buffer in [`double_buffered_gather`].
const ROUNDS: u64 = 100;

/// Everybody gathers from everybody, round after round, in two halves. The use before last must be free, no more.
pub fn double_buffered_gather<B: Backend>(backend: &B) {
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| {
            const LEN: usize = 600;
            let rank = Rank::new(&fabric);
            let (me, world) = (rank.me(), fabric.world());
            let mut buffer = SrBuffer::new();
            assert!(buffer.ensure(&fabric, Bytes(640 * world.size()), LONG).unwrap());
            let words = fabric.alloc_signals(2 * ranks, LONG).unwrap();
            let ready = |from: Pe, at| Post { signal: word(words, from.index()), value: rank.epoch(at, 1) };
            let free = |by: Pe, at| Post {
                signal: word(words, world.size() + by.index()),
                value: rank.epoch(at, 2),
            };
            let slot = |buffer: &SrBuffer, at, from: Pe| {
                buffer.span(at, Part { offset: 640 * from.index(), len: LEN }).unwrap()
            };
            let data = |from: Pe, at: Use| pattern(at.0 << 8 | u64::from(from.0), LEN);
            let release = fabric.stream("free").unwrap();
            for _ in 0..ROUNDS {
                let at = buffer.begin();
                let mine = data(me, at);
                B::with_sources(&fabric, &[&mine], |ids| {
                    for to in world.after(me) {
                        if at.0 >= 2 {
                            rank.wait(to, free(to, at.0 - 2));
                        }
                        let target = slot(&buffer, at, me);
                        let copy =
                            run(Span { region: ids[0], offset: 0, len: LEN }, target.region, target.offset);
                        rank.put(to, &[copy], ready(me, at.0));
                    }
                    for from in world.before(me) {
                        rank.wait(from, ready(from, at.0));
                        let got = fabric.load(slot(&buffer, at, from)).unwrap();
                        assert!(got == data(from, at), "{me} read bad bytes of {from} in use {}", at.0);
                    }
                    for to in world.after(me) {
                        let put = Put { to, copies: &[], post: Some(free(me, at.0)) };
                        fabric.put_signal(&release, put).unwrap();
                    }
                });
            }
            rank.synchronize();
            fabric.synchronize(&release, LONG).unwrap();
            buffer.free(&fabric, LONG).unwrap();
        });
    }
}

/// Everybody sends a number to everybody from send slots, and adds what it received; the send slots come once.
pub fn double_buffered_reduce<B: Backend>(backend: &B) {
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| {
            let rank = Rank::new(&fabric);
            let slots = Bytes(8 * fabric.world().size());
            let mut buffer = SepSrBuffer::new();
            buffer.ensure(&fabric, SepBytes { send: slots, receive: slots }, LONG).unwrap();
            let words = fabric.alloc_signals(2 * ranks, LONG).unwrap();
            for _ in 0..30 {
                reduce_once(&rank, &mut buffer, words);
            }
            buffer.free(&fabric, LONG).unwrap();
        });
    }
}

fn reduce_once<F: Fabric>(rank: &Rank<'_, F>, buffer: &mut SepSrBuffer, words: SignalId) {
    let (fabric, me, world) = (rank.fabric, rank.me(), rank.fabric.world());
    let at = buffer.begin();
    let ready = |from: Pe| Post { signal: word(words, from.index()), value: rank.epoch(at.0, 1) };
    let free = |by: Pe, at| Post { signal: word(words, world.size() + by.index()), value: rank.epoch(at, 2) };
    let slot = |pe: Pe| Part { offset: 8 * pe.index(), len: 8 };
    let number = |from: Pe, to: Pe| at.0 * 10_000 + u64::from(from.0) * 100 + u64::from(to.0);
    for to in world.ranks() {
        if at.0 >= 2 {
            rank.wait(to, free(to, at.0 - 2));
        }
        let send = buffer.send(slot(to)).unwrap();
        fabric.store(send, &number(me, to).to_le_bytes()).unwrap();
        let receive = buffer.receive(at, slot(me)).unwrap();
        rank.put(to, &[run(send, receive.region, receive.offset)], ready(me));
    }
    let add = |sum: u64, from: Pe| {
        rank.wait(from, ready(from));
        let bytes = fabric.load(buffer.receive(at, slot(from)).unwrap()).unwrap();
        sum + u64::from_le_bytes(bytes.try_into().unwrap())
    };
    let sum = world.ranks().fold(0, add);
    assert_eq!(sum, world.ranks().map(|from| number(from, me)).sum::<u64>());
    for to in world.ranks() {
        rank.put(to, &[], free(me, at.0));
    }
    // Rule S5: the call is done when its own puts have left, so the send slots are free for the next one.
    rank.synchronize();
}
