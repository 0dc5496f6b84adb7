//! Partials: slots against overwrite (rules S4, S5), and many tiles behind one signal (rule S3).
use loom::thread;

use super::{Model, Mutant, Signal, Slot, epoch, order};
use crate::{
    Pe, Use,
    sync::{Arc, AtomicU64, Ordering, fence},
};

/// A rank with a compute thread and a stream, and the owner that adds its partials.
#[derive(Default)]
struct Route {
    /// The sender's one slot.
    send: Slot,
    /// The owner's two.
    receive: [Slot; 2],
    /// From compute to stream: a partial is in `send`.
    queued: Signal,
    /// From stream to compute: it has left.
    left: Signal,
    /// From stream to owner.
    partial: Signal,
    /// From owner to sender.
    free: Signal,
}

const USES: u64 = 3;

/// Compute fills the send slot, the stream copies it to the owner and posts, the owner reads and gives free.
fn slots(mutant: Option<Mutant>) {
    let route = Arc::new(Route::default());
    let (computes, streams) = (route.clone(), route.clone());
    let compute = thread::spawn(move || {
        for at in 0..USES {
            if at >= 2 && mutant != Some(Mutant::MissingFreeWait) {
                computes.free.wait(epoch(at - 2, 1));
            }
            computes.send.write(at + 1);
            computes.queued.post(Pe(0), epoch(at, 1));
            if mutant != Some(Mutant::MissingDrain) {
                computes.left.wait(epoch(at, 1));
            }
        }
    });
    let stream = thread::spawn(move || {
        for at in 0..USES {
            streams.queued.wait(epoch(at, 1));
            streams.receive[Use(at).half()].write(streams.send.read());
            streams.partial.post(Pe(0), epoch(at, 1));
            streams.left.post(Pe(0), epoch(at, 1));
        }
    });
    for at in 0..USES {
        route.partial.wait(epoch(at, 1));
        assert_eq!(route.receive[Use(at).half()].read(), at + 1);
        route.free.post(Pe(1), epoch(at, 1));
    }
    compute.join().unwrap();
    stream.join().unwrap();
}

/// Tiles of one rank write the owner's slots; the one that completes the count posts for all. The count is an epoch: it
/// goes on over the uses.
struct Tiles {
    slots: Vec<Slot>,
    arrived: AtomicU64,
    partial: Signal,
    free: Signal,
}

impl Tiles {
    fn new(tiles: usize) -> Self {
        let slots = (0..tiles).map(|_| Slot::default()).collect();
        Self { slots, arrived: AtomicU64::new(0), partial: Signal::default(), free: Signal::default() }
    }

    /// What one tile does after its stores.
    fn arrive(&self, at: u64, mutant: Option<Mutant>) {
        let tiles = self.slots.len() as u64;
        let release = order(Ordering::Release, mutant == Some(Mutant::RelaxedArrival));
        let before = self.arrived.fetch_add(1, release);
        let turn = if mutant == Some(Mutant::FirstArriverPosts) { 1 } else { tiles };
        if before + 1 == tiles * at + turn {
            if mutant != Some(Mutant::MissingAcquire) {
                fence(Ordering::Acquire);
            }
            self.partial.post(Pe(0), epoch(at, 1));
        }
    }
}

fn last_arriver(tiles: usize, uses: u64, mutant: Option<Mutant>) {
    let shared = Arc::new(Tiles::new(tiles));
    let spawn = |tile: usize| {
        let shared = shared.clone();
        thread::spawn(move || {
            for at in 0..uses {
                if at > 0 {
                    shared.free.wait(epoch(at - 1, 1));
                }
                shared.slots[tile].write(10 * at + tile as u64);
                shared.arrive(at, mutant);
            }
        })
    };
    let threads: Vec<_> = (0..tiles).map(spawn).collect();
    for at in 0..uses {
        shared.partial.wait(epoch(at, 1));
        for (slot, tile) in shared.slots.iter().zip(0..) {
            assert_eq!(slot.read(), 10 * at + tile);
        }
        shared.free.post(Pe(1), epoch(at, 1));
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

#[test]
fn no_slot_is_written_before_it_is_read() {
    let mutants = &[Mutant::MissingFreeWait, Mutant::MissingDrain];
    Model { name: "slots", body: slots, mutants, preemptions: Some(1) }.prove();
}

#[test]
#[ignore = "minutes"]
fn deep_no_slot_is_written_before_it_is_read() {
    let mutants = &[Mutant::MissingFreeWait, Mutant::MissingDrain];
    Model { name: "slots_deep", body: slots, mutants, preemptions: Some(2) }.prove();
}

const ARRIVALS: &[Mutant] = &[Mutant::RelaxedArrival, Mutant::MissingAcquire, Mutant::FirstArriverPosts];

#[test]
fn the_last_of_two_tiles_posts_for_both() {
    let body = |mutant| last_arriver(2, 2, mutant);
    Model { name: "last_arriver_2", body, mutants: ARRIVALS, preemptions: Some(2) }.prove();
}

#[test]
fn the_last_of_three_tiles_posts_for_all() {
    let body = |mutant| last_arriver(3, 1, mutant);
    Model { name: "last_arriver_3", body, mutants: ARRIVALS, preemptions: Some(2) }.prove();
}
