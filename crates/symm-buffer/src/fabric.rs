//! The one seam to the machine: symmetric memory, asynchronous puts, signals, deadlines.
//!
//! Memory contract. A put's data is visible to whoever has seen its signal: the writer raises the word with release
//! after the data, a wait reads it with acquire. Puts on one stream happen in order; puts on different streams in any.
//! Nothing else is promised, and nothing else is needed.
use std::time::Duration;

use crate::{Error, Incarnation, Pe, Post, Report, SignalId, Wait, World, signal::Epoch};

/// Length or offset in bytes.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Bytes(pub usize);

/// Memory that a put may name: a region of the symmetric heap (the same id on every rank), or a registered source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RegionId(pub u64);

impl RegionId {
    /// No region: of a buffer without memory.
    pub const NONE: RegionId = RegionId(u64::MAX);
}

/// A run of bytes in a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Where.
    pub region: RegionId,
    /// First byte.
    pub offset: usize,
    /// How many.
    pub len: usize,
}

/// Start of a 2-D view in a region: row r begins at `offset + r * pitch`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corner {
    /// Where.
    pub region: RegionId,
    /// First byte.
    pub offset: usize,
    /// Bytes from one row to the next.
    pub pitch: usize,
}

/// A 2-D copy: `rows` rows of `width` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copy2d {
    /// In my heap or a registered source.
    pub src: Corner,
    /// In the receiver's heap.
    pub dst: Corner,
    /// Bytes of a row.
    pub width: usize,
    /// Number of rows.
    pub rows: usize,
}

impl Copy2d {
    /// Bytes moved.
    pub const fn bytes(&self) -> usize {
        self.width * self.rows
    }

    /// Refuses a side of the copy, `src` or `dst`, that is not inside its region of `len` bytes.
    pub(crate) fn check_side(&self, corner: Corner, len: Bytes) -> Result<(), Error> {
        let call = "put_signal";
        let Copy2d { width, rows, .. } = *self;
        let Corner { region, offset, pitch } = corner;
        if rows > 1 && pitch < width {
            return Err(Error::Pitch { call, rows, width, pitch });
        }
        let last_row = rows.saturating_sub(1).checked_mul(pitch);
        let bytes = rows.checked_mul(width).and(last_row).and_then(|last| last.checked_add(width));
        let Some(bytes) = bytes else { return Err(Error::Pitch { call, rows, width, pitch }) };
        let span = Span { region, offset, len: if rows == 0 || width == 0 { 0 } else { bytes } };
        match offset.checked_add(span.len) {
            Some(end) if end <= len.0 => Ok(()),
            _ => Err(Error::OutOfRange { call, span, region_len: len }),
        }
    }
}

/// Copies to one peer, then (with release) a signal there. Either may be absent.
#[derive(Clone, Copy, Debug)]
pub struct Put<'a> {
    /// The receiver.
    pub to: Pe,
    /// What to copy, in order.
    pub copies: &'a [Copy2d],
    /// What to raise at the receiver when all copies are there.
    pub post: Option<Post>,
}

/// Numbers that a rank tells all others from host to host, for example hashes of what must be equal.
pub type Note = [u64; 6];

/// Notes of a rank that are kept.
pub const NOTES: usize = 256;

/// Address of a peer's memory, for kernels that store to it directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerAddress(pub u64);

/// What plans may ask of the machine, and nothing else. One value per rank.
///
/// *Collective* calls must be made by every rank, in the same order.
pub trait Fabric: Send + Sync {
    /// An in-order queue of work of this rank.
    type Stream: Send + Sync;
    /// Memory of the caller that puts may read in place.
    type Source<'a>: Copy;

    /// This rank.
    fn me(&self) -> Pe;

    /// All ranks.
    fn world(&self) -> World;

    /// Symmetric memory of `bytes` on every rank, aligned to 128 bytes. Collective.
    ///
    /// # Errors
    /// [`Error::AllocMismatch`] when ranks ask for different sizes, [`Error::CallMismatch`] when they are in different
    /// collectives, [`Error::NoMemory`]; [`Error::Missing`] naming a rank that did not come, or [`Error::Aborted`].
    fn alloc(&self, bytes: Bytes, deadline: Duration) -> Result<RegionId, Error>;

    /// Gives a region back. Collective; never done by `Drop`.
    ///
    /// # Errors
    /// [`Error::UnknownRegion`]; [`Error::Conflict`] while anybody uses it; else as [`Fabric::alloc`].
    fn free(&self, region: RegionId, deadline: Duration) -> Result<(), Error>;

    /// `count` new signal words on every rank, zero at first: the id of the first of them. Collective.
    ///
    /// # Errors
    /// As [`Fabric::alloc`].
    fn alloc_signals(&self, count: u32, deadline: Duration) -> Result<SignalId, Error>;

    /// A new stream; `name` is for traces.
    ///
    /// # Errors
    /// [`Error::Stream`] when the machine has no more.
    fn stream(&self, name: &'static str) -> Result<Self::Stream, Error>;

    /// Queues copies and a signal; returns at once.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::UnknownRegion`], [`Error::NoSuchPe`] now; failures while copying are sticky
    /// and come from [`Fabric::synchronize`] or [`Fabric::status`].
    fn put_signal(&self, stream: &Self::Stream, put: Put<'_>) -> Result<(), Error>;

    /// Queues several puts: all their copies, in any order and side by side, then all their signals. Returns at once.
    ///
    /// # Errors
    /// As [`Fabric::put_signal`]; puts before the one that is refused may be under way.
    fn put_all(&self, stream: &Self::Stream, puts: &[Put<'_>]) -> Result<(), Error> {
        puts.iter().try_for_each(|put| self.put_signal(stream, *put))
    }

    /// Later work on `stream` begins when what is queued on `after` now is done. Returns at once.
    ///
    /// # Errors
    /// [`Error::Stream`] for a stream that is not this rank's.
    fn follow(&self, stream: &Self::Stream, after: &Self::Stream) -> Result<(), Error>;

    /// Tells all ranks a note under a number, from host to host: no stream, no heap. Numbers grow; the last [`NOTES`] are
    /// kept.
    fn publish(&self, number: u64, note: Note);

    /// What `pe` has told under `number`; nothing when it has not yet, or has told [`NOTES`] others since.
    ///
    /// # Errors
    /// [`Error::NoSuchPe`].
    fn published(&self, pe: Pe, number: u64) -> Result<Option<Note>, Error>;

    /// Queues a wait: later work on `stream` begins once my word is high enough. Returns at once.
    ///
    /// # Errors
    /// [`Error::NoSuchSignal`] now; an expired deadline is sticky and comes from [`Fabric::synchronize`].
    fn wait_on(&self, stream: &Self::Stream, wait: Wait, deadline: Duration) -> Result<(), Error>;

    /// Blocks the calling thread until my word is high enough (acquire); returns how long it blocked.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the report, after which every other rank's waits end with [`Error::Aborted`].
    fn wait(&self, wait: Wait, deadline: Duration) -> Result<Duration, Error>;

    /// What my word is now (acquire).
    ///
    /// # Errors
    /// [`Error::NoSuchSignal`].
    fn seen(&self, signal: SignalId) -> Result<Epoch, Error>;

    /// Blocks until everything queued on `stream` is done, what it follows included; returns how long it blocked.
    ///
    /// # Errors
    /// The first failure of work on the stream; [`Error::Drain`] after `deadline`, which ends the waits of all ranks.
    fn synchronize(&self, stream: &Self::Stream, deadline: Duration) -> Result<Duration, Error>;

    /// Meets all ranks. Collective.
    ///
    /// # Errors
    /// [`Error::Missing`] naming a rank that did not come, or [`Error::Aborted`].
    fn barrier(&self, deadline: Duration) -> Result<(), Error>;

    /// Lets puts read `sources` in place while `body` runs; ends when every put that names them is done (rule S5).
    fn with_sources<R>(&self, sources: &[Self::Source<'_>], body: impl FnOnce(&[RegionId]) -> R) -> R;

    /// Copies bytes out of my heap. For small messages and tests; kernels read in place.
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::UnknownRegion`]; [`Error::Conflict`] while a put writes there.
    fn load(&self, span: Span) -> Result<Vec<u8>, Error>;

    /// Copies bytes into my heap. For small messages and tests.
    ///
    /// # Errors
    /// As [`Fabric::load`].
    fn store(&self, span: Span, bytes: &[u8]) -> Result<(), Error>;

    /// Where kernels of mine find `span` of `pe`'s heap, if the hardware can reach it.
    fn peer_address(&self, pe: Pe, span: Span) -> Option<PeerAddress>;

    /// The first failure of this rank's work or waits, or the abort by another rank.
    ///
    /// # Errors
    /// That failure; it stays until [`Fabric::recover`], whether somebody was told of it or not.
    fn status(&self) -> Result<(), Error>;

    /// Ends all waits of all ranks with [`Error::Aborted`] carrying `report` (rule D2).
    fn abort(&self, report: Report);

    /// After a failure: every live rank drops queued work, meets the others and begins the next incarnation (D3).
    /// Collective. Epochs of earlier incarnations are below every new one, so no word is reset.
    ///
    /// # Errors
    /// [`Error::Missing`] naming a rank that did not come; call it again when that rank lives.
    fn recover(&self, deadline: Duration) -> Result<Incarnation, Error>;

    /// The current incarnation.
    fn incarnation(&self) -> Incarnation;
}
