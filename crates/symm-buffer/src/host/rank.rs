//! What belongs to one rank of a host world.
use std::collections::{HashMap, VecDeque};

use super::{
    HostConfig,
    faults::{Losses, Missteps},
    heap::{Hold, Source},
    link::Egress,
    stream::{Core, Worker},
};
use crate::{
    Error, Pe, RegionId, World,
    deadline::{Deadline, Event, wait_until},
    fabric::{NOTES, Note},
    sync::{Arc, AtomicU64, AtomicUsize, Mutex, Ordering},
};

/// Ids from here on are registered sources, known to one rank; below are regions of the heap.
const FIRST_SOURCE: u64 = 1 << 63;

/// What belongs to one rank.
pub(super) struct Rank {
    /// Told of signals, aborts, meetings, finished sources.
    pub(super) event: Arc<Event>,
    /// Goes up when the rank begins to recover: work of an earlier life is dropped.
    pub(super) life: AtomicU64,
    /// The first failure since then.
    failure: Mutex<Option<Error>>,
    pub(super) egress: Egress,
    pub(super) losses: Losses,
    pub(super) missteps: Missteps,
    sources: Mutex<Sources>,
    pub(super) workers: Mutex<Workers>,
    /// Number and content, the oldest first.
    notes: Mutex<VecDeque<(u64, Note)>>,
    /// 0 while its fabric is there, then 1, 2, ... in the order in which they went.
    left: AtomicUsize,
}

#[derive(Default)]
struct Sources {
    next: u64,
    known: HashMap<RegionId, Arc<Source>>,
}

/// The streams of a rank.
#[derive(Default)]
pub(super) struct Workers {
    /// How many were ever made.
    pub(super) made: u32,
    pub(super) alive: Vec<Worker>,
}

impl Rank {
    pub(super) fn new(me: Pe, world: World, config: HostConfig) -> Self {
        Self {
            event: Arc::default(),
            life: AtomicU64::new(0),
            failure: Mutex::default(),
            egress: Egress::default(),
            losses: Losses::new(config.faults, me, world),
            missteps: Missteps::new(config.faults, me),
            sources: Mutex::default(),
            workers: Mutex::default(),
            notes: Mutex::default(),
            left: AtomicUsize::new(0),
        }
    }

    /// When its fabric went, among the others; `None` while it is there.
    pub(super) fn left(&self) -> Option<usize> {
        Some(self.left.load(Ordering::Acquire)).filter(|&left| left > 0)
    }

    /// Its fabric went as the `number`-th.
    pub(super) fn leave(&self, number: usize) {
        self.left.store(number, Ordering::Release);
    }

    /// Keeps the last notes.
    pub(super) fn publish(&self, number: u64, note: Note) {
        let mut notes = self.notes.lock();
        if notes.len() == NOTES {
            notes.pop_front();
        }
        notes.push_back((number, note));
    }

    pub(super) fn published(&self, number: u64) -> Option<Note> {
        let notes = self.notes.lock();
        notes.iter().rev().find(|(told, _)| *told == number).map(|(_, note)| *note)
    }

    /// Keeps the failure if it is the first.
    pub(super) fn fail(&self, error: &Error) {
        self.failure.lock().get_or_insert_with(|| error.clone());
    }

    pub(super) fn failure(&self) -> Option<Error> {
        self.failure.lock().clone()
    }

    pub(super) fn forget_failure(&self) {
        *self.failure.lock() = None;
    }

    /// Registers slices; `close_sources` ends it.
    pub(super) fn open_sources(&self, slices: &[&[u8]]) -> Vec<RegionId> {
        let mut sources = self.sources.lock();
        let open = |bytes: &&[u8]| {
            let id = RegionId(FIRST_SOURCE | sources.next);
            sources.next += 1;
            sources.known.insert(id, Arc::new(Source::new(bytes, self.event.clone())));
            id
        };
        slices.iter().map(open).collect()
    }

    /// Ends when no put can read the sources any more. Every put before us in a queue ends, and every stream wait by its
    /// deadline, so this needs none of its own.
    pub(super) fn close_sources(&self, ids: &[RegionId]) {
        let closed: Vec<Arc<Source>> = {
            let mut sources = self.sources.lock();
            ids.iter().filter_map(|id| sources.known.remove(id)).collect()
        };
        let idle = || closed.iter().all(|source| source.is_idle()).then_some(());
        while wait_until(&self.event, Deadline::never(), idle).is_err() {}
    }

    /// Looked up and held under one lock, so that a scope which has closed gives no new holds.
    pub(super) fn hold(&self, id: RegionId) -> Option<Hold> {
        self.sources.lock().known.get(&id).map(Source::hold)
    }
}

impl Workers {
    pub(super) fn owns(&self, core: &Core) -> bool {
        self.alive.iter().any(|worker| std::ptr::eq(&*worker.core, core))
    }

    pub(super) fn cores(&self) -> Vec<Arc<Core>> {
        self.alive.iter().map(|worker| worker.core.clone()).collect()
    }
}
