//! What one thread of a world tells another without a signal word.

/// The events of `docs/protocol.md`, in the order of its table, which says who tells whom and what it promises.
///
/// Where an event can fail or be waited for, its [`name`](Notice::name) is the call or the stage in errors and reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A rank to its stream's thread: there is work.
    Queue,
    /// A stream's thread to its rank: the work has left.
    Drain,
    /// A stream's thread to the rank whose memory it read: no put needs the source any more.
    Source,
    /// All ranks to all: there is a new region of the heap.
    Alloc,
    /// All ranks to all: a region is gone.
    Free,
    /// All ranks to all: there are new signal words.
    AllocSignals,
    /// All ranks to all: everybody has come here.
    Barrier,
    /// A rank to all: it has given up, and why.
    Abort,
    /// All ranks to all: the next incarnation has begun.
    Recover,
    /// A rank to all: its fabric is gone.
    Closing,
    /// Who changed what a wait reads, to who waits: look again.
    Wake,
    /// A rank to all: numbers under a number, from host to host.
    Note,
}

impl Notice {
    /// All events, in table order.
    pub const ALL: [Notice; 12] = [
        Self::Queue,
        Self::Drain,
        Self::Source,
        Self::Alloc,
        Self::Free,
        Self::AllocSignals,
        Self::Barrier,
        Self::Abort,
        Self::Recover,
        Self::Closing,
        Self::Wake,
        Self::Note,
    ];

    /// Its name in the table, in errors and in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Drain => "drain",
            Self::Source => "source",
            Self::Alloc => "alloc",
            Self::Free => "free",
            Self::AllocSignals => "alloc_signals",
            Self::Barrier => "barrier",
            Self::Abort => "abort",
            Self::Recover => "recover",
            Self::Closing => "closing",
            Self::Wake => "wake",
            Self::Note => "note",
        }
    }
}
