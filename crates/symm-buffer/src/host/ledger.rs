//! What a host world holds of the machine's memory: for tests that look for leaks, also after the world has ended.
use crate::sync::{Arc, AtomicUsize, Ordering};

/// Counts of one host world; clones count the same world and may outlive it.
#[derive(Clone, Debug, Default)]
pub struct Ledger(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    blocks: AtomicUsize,
    bytes: AtomicUsize,
}

impl Ledger {
    /// Blocks of heap that are allocated now: one per region and rank.
    pub fn blocks(&self) -> usize {
        self.0.blocks.load(Ordering::Relaxed)
    }

    /// Their bytes, rounded up as they were allocated.
    pub fn bytes(&self) -> usize {
        self.0.bytes.load(Ordering::Relaxed)
    }

    /// Enters a block until the entry is dropped.
    pub(super) fn enter(&self, bytes: usize) -> Entry {
        self.0.blocks.fetch_add(1, Ordering::Relaxed);
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
        Entry { ledger: self.clone(), bytes }
    }
}

/// One block in the books.
#[derive(Debug)]
pub(super) struct Entry {
    ledger: Ledger,
    bytes: usize,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.ledger.0.blocks.fetch_sub(1, Ordering::Relaxed);
        self.ledger.0.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
