//! Post and wait, put and signal (rules S1, S2), and the order in which an expired wait lets go (rule D2).
use loom::thread;

use super::{Model, Mutant, Signal, Slot, epoch, order};
use crate::{
    Pe,
    sync::{Arc, AtomicU64, Ordering, fence},
    word::{LOOK, POST},
};

/// One piece and its signal.
fn put_then_signal(mutant: Option<Mutant>) {
    let shared = Arc::new((Slot::default(), Signal::default()));
    let its = shared.clone();
    let writer = thread::spawn(move || {
        let (slot, signal) = &*its;
        let post = order(POST, mutant == Some(Mutant::RelaxedPost));
        if mutant == Some(Mutant::SignalBeforeData) {
            signal.post_in(post, Pe(1), epoch(0, 1));
            slot.write(7);
        } else {
            slot.write(7);
            signal.post_in(post, Pe(1), epoch(0, 1));
        }
    });
    let (slot, signal) = &*shared;
    signal.wait_in(order(LOOK, mutant == Some(Mutant::RelaxedLook)), epoch(0, 1));
    assert_eq!(slot.read(), 7);
    writer.join().unwrap();
}

/// Three pieces behind one word: step k says that the first k are there. A waiter may skip steps and misses none.
fn post_and_wait(mutant: Option<Mutant>) {
    const PIECES: u32 = 3;
    let shared = Arc::new((<[Slot; PIECES as usize]>::default(), Signal::default()));
    let its = shared.clone();
    let writer = thread::spawn(move || {
        let (slots, signal) = &*its;
        for (slot, step) in slots.iter().zip(1..) {
            let early = u32::from(mutant == Some(Mutant::EarlyStep) && step < PIECES);
            slot.write(u64::from(step));
            if mutant == Some(Mutant::MissingNotify) {
                signal.word.raise(Pe(1), epoch(0, step)).unwrap();
            } else {
                signal.post(Pe(1), epoch(0, step + early));
            }
        }
    });
    let (slots, signal) = &*shared;
    for steps in [2, 3] {
        signal.wait(epoch(0, steps));
        for (slot, step) in slots.iter().zip(1..=steps) {
            assert_eq!(slot.read(), u64::from(step));
        }
    }
    writer.join().unwrap();
}

/// A watchdog gives up a copy that waits behind a slot's free signal: first the abort at the peer, then the stream wait.
/// The copy may then overwrite what the slow peer reads, but the peer looks for the abort after it has read.
fn abort_then_release(mutant: Option<Mutant>) {
    const OLD: u64 = 1;
    // What the peer reads is torn by then, so it is an atomic here; only the order counts.
    let shared = Arc::new((AtomicU64::new(OLD), AtomicU64::new(0), Signal::default()));
    let (watched, copied) = (shared.clone(), shared.clone());
    let watchdog = thread::spawn(move || {
        let (_, abort, released) = &*watched;
        if mutant == Some(Mutant::ReleaseBeforeAbort) {
            released.post(Pe(0), epoch(0, 1));
            abort.store(1, Ordering::Release);
        } else {
            abort.store(1, Ordering::Release);
            released.post(Pe(0), epoch(0, 1));
        }
    });
    let copy = thread::spawn(move || {
        let (slot, _, released) = &*copied;
        released.wait(epoch(0, 1));
        slot.store(2, Ordering::Release);
    });
    let (slot, abort, _) = &*shared;
    let read = slot.load(Ordering::Relaxed);
    fence(Ordering::Acquire);
    let aborted = abort.load(Ordering::Relaxed) == 1;
    assert!(aborted || read == OLD, "the peer took what a copy of an aborted call wrote");
    watchdog.join().unwrap();
    copy.join().unwrap();
}

#[test]
fn a_seen_signal_shows_its_data() {
    let mutants = &[Mutant::RelaxedPost, Mutant::RelaxedLook, Mutant::SignalBeforeData];
    Model { name: "put_then_signal", body: put_then_signal, mutants, preemptions: None }.prove();
}

#[test]
fn a_step_shows_all_pieces_up_to_it() {
    let mutants = &[Mutant::EarlyStep, Mutant::MissingNotify];
    Model { name: "post_and_wait", body: post_and_wait, mutants, preemptions: Some(3) }.prove();
}

#[test]
fn an_abort_is_known_before_its_waits_are_released() {
    let mutants = &[Mutant::ReleaseBeforeAbort];
    Model { name: "abort_then_release", body: abort_then_release, mutants, preemptions: None }.prove();
}
