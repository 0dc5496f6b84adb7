//! Double buffering per use (rule S4): ranks push to each other, into both halves in turn.
//!
//! Where every rank needs something of every other, nobody can run ahead and the free signals change nothing: the models
//! in which one is caught without them are the ring and the broadcast.
use loom::thread;

use super::{Model, Mutant, Signal, Slot, epoch, order};
use crate::{Pe, Use, sync::Arc, word::POST};

/// What one rank owns.
struct Rank {
    /// For each peer two halves that it writes.
    gather: Vec<[Slot; 2]>,
    /// For each peer: its pieces are in my gather buffer.
    ready: Vec<Signal>,
    /// For each peer: it has read what I pushed.
    free: Vec<Signal>,
}

impl Rank {
    fn new(ranks: usize) -> Self {
        let signals = || (0..ranks).map(|_| Signal::default()).collect();
        Self { gather: (0..ranks).map(|_| Default::default()).collect(), ready: signals(), free: signals() }
    }
}

/// Uses of the buffer: in the third, the first half is written again.
const USES: u64 = 3;

/// What `from` pushes in a use.
fn value(from: usize, at: u64) -> u64 {
    100 * (at + 1) + from as u64
}

/// Whom a rank sends to: the next so many around the ring; it reads from as many before it.
#[derive(Clone, Copy)]
struct Reach(usize);

/// One rank's calls, in the executor's order: push to all, wait for all, read, give free.
fn calls(ranks: &[Rank], me: usize, reach: Reach, mutant: Option<Mutant>) {
    let after = || (1..=reach.0).map(move |step| (me + step) % ranks.len());
    let before = || (1..=reach.0).map(move |step| (me + ranks.len() - step) % ranks.len());
    let pe = Pe(u32::try_from(me).unwrap());
    for at in 0..USES {
        let half = if mutant == Some(Mutant::OneHalf) { 0 } else { Use(at).half() };
        let posted = if mutant == Some(Mutant::ReusedEpoch) { 0 } else { at };
        for to in after() {
            if at >= 2 && mutant != Some(Mutant::MissingFreeWait) {
                ranks[me].free[to].wait(epoch(at - 2, 1));
            }
            ranks[to].gather[me][half].write(value(me, at));
            ranks[to].ready[me].post(pe, epoch(posted, 1));
        }
        for from in before() {
            ranks[me].ready[from].wait(epoch(posted, 1));
            let free = order(POST, mutant == Some(Mutant::RelaxedFree));
            let give_free = || ranks[from].free[me].post_in(free, pe, epoch(at, 1));
            if mutant == Some(Mutant::FreeBeforeRead) {
                give_free();
            }
            assert_eq!(ranks[me].gather[from][half].read(), value(from, at));
            if mutant != Some(Mutant::FreeBeforeRead) {
                give_free();
            }
        }
    }
}

fn exchange(count: usize, reach: Reach, mutant: Option<Mutant>) {
    let ranks: Arc<Vec<Rank>> = Arc::new((0..count).map(|_| Rank::new(count)).collect());
    let spawn = |me: usize| {
        let ranks = ranks.clone();
        thread::spawn(move || calls(&ranks, me, reach, mutant))
    };
    let threads: Vec<_> = (1..count).map(spawn).collect();
    calls(&ranks, 0, reach, mutant);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// One rank pushes, the others read: the pusher may run ahead of the slowest by two uses, never by three.
fn broadcast(count: usize, mutant: Option<Mutant>) {
    let ranks: Arc<Vec<Rank>> = Arc::new((0..count).map(|_| Rank::new(count)).collect());
    let spawn = |me: usize| {
        let ranks = ranks.clone();
        thread::spawn(move || {
            let pe = Pe(u32::try_from(me).unwrap());
            for at in 0..USES {
                ranks[me].ready[0].wait(epoch(at, 1));
                let free = order(POST, mutant == Some(Mutant::RelaxedFree));
                let give_free = || ranks[0].free[me].post_in(free, pe, epoch(at, 1));
                if mutant == Some(Mutant::FreeBeforeRead) {
                    give_free();
                }
                assert_eq!(ranks[me].gather[0][Use(at).half()].read(), value(0, at));
                if mutant != Some(Mutant::FreeBeforeRead) {
                    give_free();
                }
            }
        })
    };
    let threads: Vec<_> = (1..count).map(spawn).collect();
    for at in 0..USES {
        for to in 1..count {
            if at >= 2 && mutant != Some(Mutant::MissingFreeWait) {
                ranks[0].free[to].wait(epoch(at - 2, 1));
            }
            ranks[to].gather[0][Use(at).half()].write(value(0, at));
            ranks[to].ready[0].post(Pe(0), epoch(at, 1));
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

const EXCHANGE: &[Mutant] = &[Mutant::ReusedEpoch, Mutant::OneHalf];
const RING: &[Mutant] = &[Mutant::MissingFreeWait, Mutant::ReusedEpoch, Mutant::FreeBeforeRead];
const BROADCAST: &[Mutant] = &[Mutant::MissingFreeWait, Mutant::FreeBeforeRead, Mutant::RelaxedFree];

#[test]
fn two_ranks_exchange() {
    let body = |mutant| exchange(2, Reach(1), mutant);
    Model { name: "exchange_2", body, mutants: EXCHANGE, preemptions: Some(2) }.prove();
}

#[test]
fn three_ranks_in_a_ring() {
    let body = |mutant| exchange(3, Reach(1), mutant);
    Model { name: "ring_3", body, mutants: RING, preemptions: Some(1) }.prove();
}

#[test]
fn one_reader_is_never_overrun() {
    let body = |mutant| broadcast(2, mutant);
    Model { name: "broadcast_2", body, mutants: BROADCAST, preemptions: Some(3) }.prove();
}

#[test]
fn two_readers_are_never_overrun() {
    let body = |mutant| broadcast(3, mutant);
    Model { name: "broadcast_3", body, mutants: BROADCAST, preemptions: Some(1) }.prove();
}

#[test]
#[ignore = "minutes"]
fn deep_two_ranks_exchange() {
    let body = |mutant| exchange(2, Reach(1), mutant);
    Model { name: "exchange_2_deep", body, mutants: EXCHANGE, preemptions: Some(3) }.prove();
}

#[test]
#[ignore = "minutes"]
fn deep_three_ranks_exchange() {
    let body = |mutant| exchange(3, Reach(2), mutant);
    Model { name: "exchange_3", body, mutants: EXCHANGE, preemptions: Some(1) }.prove();
}

#[test]
#[ignore = "minutes"]
fn deep_two_readers_are_never_overrun() {
    let body = |mutant| broadcast(3, mutant);
    Model { name: "broadcast_3_deep", body, mutants: BROADCAST, preemptions: Some(2) }.prove();
}
