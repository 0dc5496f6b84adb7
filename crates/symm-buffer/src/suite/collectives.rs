//! Collectives: memory comes and goes, disagreement is named, a barrier orders.
use super::{Backend, LONG, Rank, WORLDS, pattern, run};
use crate::{Bytes, Error, Fabric, Pe, Post, Put, Span};

/// What was done before a barrier is seen after it by all.
pub fn barrier_orders<B: Backend>(backend: &B) {
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| {
            let rank = Rank::new(&fabric);
            let slots = fabric.world().size();
            let region = fabric.alloc(Bytes(8 * (slots + 1)), LONG).unwrap();
            for round in 0..20_u64 {
                let mine = Span { region, offset: 8 * slots, len: 8 };
                fabric.store(mine, &(100 * round + u64::from(rank.me().0)).to_le_bytes()).unwrap();
                for to in fabric.world().ranks() {
                    let copies = &[run(mine, region, 8 * rank.me().index())];
                    fabric.put_signal(&rank.push, Put { to, copies, post: None }).unwrap();
                }
                rank.synchronize();
                fabric.barrier(LONG).unwrap();
                for from in fabric.world().ranks() {
                    let got = fabric.load(Span { region, offset: 8 * from.index(), len: 8 }).unwrap();
                    assert_eq!(got, (100 * round + u64::from(from.0)).to_le_bytes(), "round {round}");
                }
                fabric.barrier(LONG).unwrap();
            }
        });
    }
}

/// Regions come and go, in any order; ids are the same on all ranks, and a freed one is unknown.
pub fn alloc_and_free<B: Backend>(backend: &B) {
    for ranks in WORLDS {
        backend.run(ranks, &|fabric| {
            let rank = Rank::new(&fabric);
            let signal = fabric.alloc_signals(1, LONG).unwrap();
            assert_eq!(fabric.alloc_signals(3, LONG).unwrap().0, signal.0 + 1);
            let mut kept = Vec::new();
            for round in 1..25_u32 {
                let len = 37 * round as usize;
                let region = fabric.alloc(Bytes(len), LONG).unwrap();
                assert!(kept.iter().all(|(other, _)| *other != region), "an id was given twice");
                kept.push((region, len));
                let all = Span { region, offset: 0, len };
                fabric.store(all, &pattern(u64::from(rank.me().0), len)).unwrap();
                let post = Post { signal, value: rank.epoch(0, round) };
                // The last byte goes to the first byte of the next rank, in the region of the same id there.
                let last = Span { region, offset: len - 1, len: 1 };
                fabric.barrier(LONG).unwrap();
                rank.put(rank.next(), &[run(last, region, 0)], post);
                rank.wait(rank.previous(), post);
                let first = fabric.load(Span { len: 1, ..all }).unwrap();
                assert_eq!(first[0], pattern(u64::from(rank.previous().0), len)[len - 1]);
                rank.synchronize();
                fabric.barrier(LONG).unwrap();
                if round % 3 == 0 {
                    let (freed, len) = kept.remove(kept.len() / 2);
                    fabric.free(freed, LONG).unwrap();
                    let gone = fabric.load(Span { region: freed, offset: 0, len });
                    assert!(matches!(gone, Err(Error::UnknownRegion { .. })), "{gone:?}");
                }
            }
            kept.into_iter().for_each(|(region, _)| fabric.free(region, LONG).unwrap());
        });
    }
}

/// One rank asks for another size: every rank hears of a pair that differs, and the group goes on.
pub fn sizes_that_differ_are_named<B: Backend>(backend: &B) {
    for ranks in [2, 3, 8] {
        backend.run(ranks, &|fabric| {
            let (me, odd) = (fabric.me(), Pe(ranks - 1));
            let size = |pe| Bytes(if pe == odd { 2048 } else { 1024 });
            match fabric.alloc(size(me), LONG) {
                Err(Error::AllocMismatch { me: who, peer, mine, theirs, .. }) => {
                    assert!(who == me && (me == odd) != (peer == odd), "{me} {peer}");
                    assert_eq!((mine, theirs), (size(me), size(peer)));
                }
                other => panic!("{me}: {other:?}"),
            }
            fabric.status().unwrap();
            let region = fabric.alloc(Bytes(64), LONG).unwrap();
            fabric.free(region, LONG).unwrap();
        });
    }
}
