//! Models of the protocol's primitives for loom: all interleavings, and all reorderings that the memory model allows.
//!
//! A model is the right code, made of the words, events and waits that the host backend uses, one thread per rank. A
//! [`Mutant`] weakens one place in it. The right code must pass every execution, and every mutant must fail one.
mod buffers;
mod cell;
mod reduce;
mod signals;

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

use cell::Slot;

use crate::{
    Epoch, Incarnation, Pe, Step, Use,
    deadline::{Deadline, Event, wait_until},
    sync::{Arc, Ordering, Tally},
    word::{LOOK, POST, Word},
};

/// One weakened place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The post does not release what was written before it.
    RelaxedPost,
    /// The look does not acquire what was written before the post.
    RelaxedLook,
    /// The post goes out before its data.
    SignalBeforeData,
    /// The post names a piece that comes later.
    EarlyStep,
    /// Nobody is woken.
    MissingNotify,
    /// A slot is written without waiting until its use before last is read.
    MissingFreeWait,
    /// A slot is given free before it is read.
    FreeBeforeRead,
    /// The free post does not order the reads before it.
    RelaxedFree,
    /// Every use posts the same value.
    ReusedEpoch,
    /// All uses work in one half.
    OneHalf,
    /// The call ends before its own puts have left (rule S5).
    MissingDrain,
    /// An arriving tile does not release what it wrote.
    RelaxedArrival,
    /// The last arriver does not acquire what the others wrote.
    MissingAcquire,
    /// Not the last arriver posts but the first.
    FirstArriverPosts,
    /// Epochs do not carry the incarnation.
    MissingIncarnation,
    /// Stream waits are released before the abort is known.
    ReleaseBeforeAbort,
    /// Whoever gives up reports, whether somebody has before or not.
    UnclaimedReport,
    /// The end of a collective is told to all, also to those who were not in it.
    EndForAll,
}

/// A model, what weakens it, and how far it is explored.
pub(crate) struct Model {
    pub(crate) name: &'static str,
    pub(crate) body: fn(Option<Mutant>),
    pub(crate) mutants: &'static [Mutant],
    /// At most so many preemptions in an execution; `None` for all.
    pub(crate) preemptions: Option<usize>,
}

impl Model {
    /// Explores the right code and every mutant, and prints how many executions each took.
    ///
    /// # Panics
    /// When the right code fails or a mutant passes.
    pub(crate) fn prove(&self) {
        let (right, executions) = self.explore(None);
        let bound = self.preemptions.map_or("none".to_owned(), |most| most.to_string());
        println!("verify: loom {} executions={executions} preemptions={bound}", self.name);
        if let Err(panic) = right {
            std::panic::resume_unwind(panic);
        }
        for &mutant in self.mutants {
            let (result, executions) = self.explore(Some(mutant));
            let caught = u8::from(result.is_err());
            println!("verify: loom-mutant {}/{mutant:?} caught={caught} executions={executions}", self.name);
            assert!(result.is_err(), "{}: the checker passes {mutant:?}", self.name);
        }
    }

    fn explore(&self, mutant: Option<Mutant>) -> (Result<(), Box<dyn Any + Send>>, u64) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = self.preemptions;
        builder.max_branches = 20_000;
        let (tally, body) = (Arc::new(Tally::new(0)), self.body);
        let counted = {
            let tally = tally.clone();
            move || {
                tally.fetch_add(1, Ordering::Relaxed);
                body(mutant);
            }
        };
        let result = catch_unwind(AssertUnwindSafe(|| builder.check(counted)));
        (result, tally.load(Ordering::Relaxed))
    }
}

/// A word and the event on which its owner sleeps, as each rank of the host backend has them.
#[derive(Default)]
pub(crate) struct Signal {
    word: Word,
    event: Event,
}

impl Signal {
    fn post(&self, by: Pe, value: Epoch) {
        self.post_in(POST, by, value);
    }

    fn post_in(&self, order: Ordering, by: Pe, value: Epoch) {
        self.word.raise_in(order, by, value).unwrap();
        self.event.notify();
    }

    fn wait(&self, at_least: Epoch) {
        self.wait_in(LOOK, at_least);
    }

    fn wait_in(&self, order: Ordering, at_least: Epoch) {
        let poll = || (self.word.seen_in(order) >= at_least).then_some(());
        wait_until(&self.event, Deadline::never(), poll).unwrap();
    }
}

/// `right`, or `weak` under the mutant.
fn order(right: Ordering, is_weak: bool) -> Ordering {
    if is_weak { Ordering::Relaxed } else { right }
}

fn epoch(at: u64, step: u32) -> Epoch {
    Epoch::new(Incarnation(0), Use(at), Step(step)).unwrap()
}
