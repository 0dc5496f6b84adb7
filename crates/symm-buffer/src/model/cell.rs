//! Plain memory of a model, such as a slot that a peer writes.
use loom::cell::Cell;

/// One value without any synchronisation. Two accesses that nothing orders, one of them a write, fail the model.
pub(super) struct Slot(Cell<u64>);

// SAFETY: loom runs the threads of a model one at a time on one thread of the system, so accesses never overlap.
unsafe impl Sync for Slot {}

impl Default for Slot {
    fn default() -> Self {
        Self(Cell::new(0))
    }
}

impl Slot {
    pub(super) fn write(&self, value: u64) {
        self.0.set(value);
    }

    pub(super) fn read(&self) -> u64 {
        self.0.get()
    }
}
