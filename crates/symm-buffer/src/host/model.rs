//! Models of what a host world shares, for loom: its own code for waits, aborts, reports and recovery (rules D1 to D3).
use std::time::Duration;

use loom::thread;

use super::{HostConfig, HostFabric, meeting::Refusal, shared::Shared};
use crate::{
    Epoch, Error, Fabric, Incarnation, Label, Pe, Post, Report, SignalId, Step, Use, Wait, World,
    deadline::{Deadline, wait_until},
    model::{Model, Mutant},
    sync::{Arc, AtomicU64, Ordering},
};

/// One look in vain.
const SHORT: Duration = Duration::from_nanos(1);
/// Never, for a checker.
const LONG: Duration = Duration::from_secs(1);

fn shared(ranks: u32) -> Arc<Shared> {
    let shared = Shared::new(World::new(ranks).unwrap(), HostConfig::default());
    assert_eq!(shared.add_signals(2).unwrap(), 0);
    Arc::new(shared)
}

fn epoch(incarnation: Incarnation, at: u64) -> Epoch {
    Epoch::new(incarnation, Use(at), Step(1)).unwrap()
}

fn wait_of(me: Pe, at_least: Epoch) -> Wait {
    Wait {
        signal: SignalId(me.0),
        at_least,
        peer: Pe(1 - me.0),
        label: Label { stage: "model", piece: me.0 },
    }
}

fn await_first(shared: &Shared, me: Pe, budget: Duration) -> Result<Duration, Error> {
    let wait = wait_of(me, epoch(Incarnation(0), 0));
    let words = shared.words("model", wait.signal).unwrap();
    shared.await_word(me, wait, &words[me.index()], Deadline::after(budget), 0)
}

/// Two ranks give up at about the same time: one of them reports, the other learns that report.
fn two_give_up(mutant: Option<Mutant>) {
    let shared = shared(2);
    let theirs = shared.clone();
    let give_up = move |shared: &Shared, me| match mutant {
        Some(Mutant::UnclaimedReport) => unclaimed(shared, me),
        _ => await_first(shared, me, SHORT).unwrap_err(),
    };
    let other = thread::spawn(move || give_up(&theirs, Pe(1)));
    let mine = give_up(&shared, Pe(0));
    let theirs = other.join().unwrap();
    let (first, second) =
        if let Error::Timeout(report) = mine { (report, theirs) } else { (told(theirs), mine) };
    assert!(matches!(second, Error::Aborted { by, report, .. } if by == first.rank && report == first));
}

/// A wait that expires and does not ask whether it is the first.
fn unclaimed(shared: &Shared, me: Pe) -> Error {
    let stopped = || shared.stopped(me, 0);
    let report = Report::plain(me, Pe(1 - me.0), Label { stage: "model", piece: me.0 });
    match wait_until(&shared.rank(me).event, Deadline::after(SHORT), stopped) {
        Ok(stopped) => stopped.value,
        Err(_) => {
            shared.raise(me, report);
            Error::Timeout(report)
        }
    }
}

fn told(error: Error) -> Report {
    match error {
        Error::Timeout(report) => report,
        error => panic!("nobody reported: {error}"),
    }
}

/// A rank waits without end, another posts and waits for what never comes, a third gives the group up. Both waits always
/// return, and if one returns that the word is there, its data is.
fn post_and_abort(mutant: Option<Mutant>) {
    let (shared, data) = (shared(3), Arc::new(AtomicU64::new(0)));
    let (posts, aborts, its_data) = (shared.clone(), shared.clone(), data.clone());
    let poster = thread::spawn(move || {
        let (signal, value) = (SignalId(0), epoch(Incarnation(0), 0));
        let words = posts.words("model", signal).unwrap();
        let post = || posts.post(Pe(1), Pe(0), &words, Post { signal, value }).unwrap();
        if mutant == Some(Mutant::SignalBeforeData) {
            post();
            its_data.store(7, Ordering::Relaxed);
        } else {
            its_data.store(7, Ordering::Relaxed);
            post();
        }
        assert!(matches!(await_first(&posts, Pe(1), LONG), Err(Error::Aborted { by: Pe(2), .. })));
    });
    let report = Report::plain(Pe(2), Pe(1), Label { stage: "abort", piece: 0 });
    let aborter = thread::spawn(move || {
        let is_first = match mutant {
            Some(Mutant::MissingNotify) => aborts.claim(Pe(2), report),
            _ => aborts.raise(Pe(2), report),
        };
        assert!(is_first);
    });
    match await_first(&shared, Pe(0), LONG) {
        Ok(_) => assert_eq!(data.load(Ordering::Relaxed), 7),
        Err(error) => assert_eq!(error, Error::Aborted { me: Pe(0), by: Pe(2), report }),
    }
    poster.join().unwrap();
    aborter.join().unwrap();
}

/// A rank gives up a use, both recover, and use 0 begins again. A signal of the life before does not pass for a new one.
fn recover(mutant: Option<Mutant>) {
    let (shared, data) = (shared(2), Arc::new(AtomicU64::new(0)));
    let (theirs, its_data) = (shared.clone(), data.clone());
    let incarnation =
        move |now| if mutant == Some(Mutant::MissingIncarnation) { Incarnation(0) } else { now };
    let other = thread::spawn(move || {
        let fabric = HostFabric { me: Pe(1), shared: theirs };
        let post = |at, life| {
            let (signal, value) = (SignalId(0), epoch(incarnation(life), at));
            let words = fabric.shared.words("model", signal).unwrap();
            let posted = fabric.shared.post(Pe(1), Pe(0), &words, Post { signal, value });
            // Without incarnations the second post goes back.
            assert!(posted.is_ok() || mutant.is_some());
        };
        // Use 0 is lost; use 1 is posted.
        post(1, Incarnation(0));
        let life = fabric.recover(LONG).unwrap();
        its_data.store(7, Ordering::Relaxed);
        post(0, life);
    });
    let fabric = HostFabric { me: Pe(0), shared };
    fabric.abort(Report::plain(Pe(0), Pe(1), Label { stage: "model", piece: 0 }));
    assert!(fabric.status().is_err());
    let life = fabric.recover(LONG).unwrap();
    assert_eq!(life, Incarnation(1));
    assert_eq!(fabric.status(), Ok(()));
    fabric.wait(wait_of(Pe(0), epoch(incarnation(life), 0)), LONG).unwrap();
    assert_eq!(data.load(Ordering::Relaxed), 7, "a signal of an earlier life was taken for a new one");
    other.join().unwrap();
}

/// A collective that all came to, then one that only the first comes to and gives up. The second rank still learns what
/// became of the first collective, however late it looks.
fn rounds(mutant: Option<Mutant>) {
    let shared = shared(2);
    let theirs = shared.clone();
    let other = thread::spawn(move || {
        let fabric = HostFabric { me: Pe(1), shared: theirs };
        let signal = fabric.alloc_signals(1, LONG);
        // Its drop would end the other's wait before its deadline.
        (fabric, signal)
    });
    let fabric = HostFabric { me: Pe(0), shared };
    assert_eq!(fabric.alloc_signals(1, LONG), Ok(SignalId(2)));
    assert!(matches!(fabric.barrier(SHORT), Err(Error::Missing { missing: Pe(1), .. })));
    if mutant == Some(Mutant::EndForAll) {
        fabric.shared.meeting.end_for_all(&Err(Refusal::Missing(Pe(1))));
    }
    let (_fabric, signal) = other.join().unwrap();
    assert_eq!(signal, Ok(SignalId(2)));
}

#[test]
fn each_rank_learns_of_its_own_round() {
    Model { name: "rounds", body: rounds, mutants: &[Mutant::EndForAll], preemptions: Some(3) }.prove();
}

#[test]
fn one_waiter_claims_the_report() {
    let mutants = &[Mutant::UnclaimedReport];
    Model { name: "two_give_up", body: two_give_up, mutants, preemptions: Some(4) }.prove();
}

#[test]
fn an_abort_ends_a_wait() {
    let mutants = &[Mutant::SignalBeforeData, Mutant::MissingNotify];
    Model { name: "post_and_abort", body: post_and_abort, mutants, preemptions: Some(3) }.prove();
}

#[test]
fn recovery_begins_a_life_of_its_own() {
    let mutants = &[Mutant::MissingIncarnation];
    Model { name: "recover", body: recover, mutants, preemptions: Some(2) }.prove();
}
