//! A signal word: what makes data that was written before a post visible to who waits for it (rules S1, S2).
use crate::{
    Epoch, Pe,
    sync::{AtomicU32, AtomicU64, Ordering},
};

/// Order of a post: what was written before it is seen by whoever sees it.
pub(crate) const POST: Ordering = Ordering::Release;
/// Order of a look: what was written before the post that it sees is seen after it.
pub(crate) const LOOK: Ordering = Ordering::Acquire;

/// A signal word of one rank, alone on its cache lines.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(crate) struct Word {
    value: AtomicU64,
    /// Rank + 1 of its one writer; 0 before the first post.
    writer: AtomicU32,
}

/// Why a post broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// Another rank writes this word.
    Writer(Pe),
    /// The word is higher already.
    WentBack(Epoch),
}

impl Word {
    /// What it is now; then what was written before its post may be read.
    pub(crate) fn seen(&self) -> Epoch {
        self.seen_in(LOOK)
    }

    /// Raises it; what `by` has written before can be read by whoever sees the value.
    pub(crate) fn raise(&self, by: Pe, value: Epoch) -> Result<(), Refused> {
        self.raise_in(POST, by, value)
    }

    /// As `seen`. Only models choose another order, to show that a weaker one is caught.
    pub(crate) fn seen_in(&self, order: Ordering) -> Epoch {
        Epoch(self.value.load(order))
    }

    /// As `raise`. Only models choose another order.
    pub(crate) fn raise_in(&self, order: Ordering, by: Pe, value: Epoch) -> Result<(), Refused> {
        let first = self.writer.compare_exchange(0, by.0 + 1, Ordering::Relaxed, Ordering::Relaxed);
        if let Err(writer) = first
            && writer != by.0 + 1
        {
            return Err(Refused::Writer(Pe(writer - 1)));
        }
        // Nobody else writes it.
        let seen = Epoch(self.value.load(Ordering::Relaxed));
        if value < seen {
            return Err(Refused::WentBack(seen));
        }
        self.value.store(value.0, order);
        Ok(())
    }
}
