//! Symmetric buffers that are used again and again: double-buffered per use (rule S4), freed by value.
//!
//! A use is one round of the protocol with this buffer, counted per buffer: with a global count, two passes that take
//! turns would each see one parity only. Use u works in half `u % 2`. Before a peer writes for use u, the owner must
//! have posted that its use u - 2 is read; practically that has always happened.
use std::time::Duration;

use crate::{Bytes, Error, Fabric, Layout, RegionId, Span, Use, layout::Part};

/// One buffer that peers write and the owner reads, in two halves: the gather of K and V.
#[derive(Debug, Default)]
pub struct SrBuffer {
    memory: Memory,
    halves: [Part; 2],
    next: Use,
}

/// What a [`SepSrBuffer`] has room for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SepBytes {
    /// Bytes of all send slots.
    pub send: Bytes,
    /// Bytes of all receive slots of one use.
    pub receive: Bytes,
}

/// Send slots that the owner fills, and receive slots that peers write: the reduction of dK and dV.
///
/// The receive slots come in two halves. The send slots come once: a call counts as done only when its own puts have
/// left (rule S5), so when the next use begins nobody reads the send slots any more.
#[derive(Debug, Default)]
pub struct SepSrBuffer {
    memory: Memory,
    send: Part,
    halves: [Part; 2],
    next: Use,
}

impl SrBuffer {
    /// A buffer of size 0; it needs no `free`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room for `half` bytes per use; true when the memory moved, and with it lost its content. Uses count on.
    ///
    /// Collective when it is too small, which it is on all ranks or on none as all ask for the same. Nothing may be
    /// under way in it.
    ///
    /// # Errors
    /// As [`Fabric::alloc`] and [`Fabric::free`]; the buffer is then as before or empty, the same on every rank.
    pub fn ensure(&mut self, fabric: &impl Fabric, half: Bytes, deadline: Duration) -> Result<bool, Error> {
        if half <= self.half() {
            return Ok(false);
        }
        let mut layout = Layout::new();
        let halves = [layout.add(half)?, layout.add(half)?];
        self.memory.free(fabric, deadline)?;
        self.halves = [Part::default(); 2];
        self.memory.alloc(fabric, layout.total(), deadline)?;
        self.halves = halves;
        Ok(true)
    }

    /// Begins the next use, the first is 0.
    pub fn begin(&mut self) -> Use {
        take(&mut self.next)
    }

    /// After [`Fabric::recover`]: uses count from 0 again, in the new incarnation.
    pub fn reset(&mut self) {
        self.next = Use(0);
    }

    /// `part` of the half of `at`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when it does not fit the half.
    pub fn span(&self, at: Use, part: Part) -> Result<Span, Error> {
        self.memory.span("SrBuffer::span", self.halves[at.half()], part)
    }

    /// Bytes of a half.
    pub const fn half(&self) -> Bytes {
        Bytes(self.halves[0].len)
    }

    /// Gives the memory back. Collective; `Drop` cannot do it and only warns.
    ///
    /// # Errors
    /// As [`Fabric::free`]; the memory is then lost until the world ends.
    pub fn free(mut self, fabric: &impl Fabric, deadline: Duration) -> Result<(), Error> {
        self.memory.free(fabric, deadline)
    }
}

impl SepSrBuffer {
    /// A buffer of size 0; it needs no `free`.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes room; as [`SrBuffer::ensure`].
    ///
    /// # Errors
    /// As [`SrBuffer::ensure`].
    pub fn ensure(
        &mut self,
        fabric: &impl Fabric,
        room: SepBytes,
        deadline: Duration,
    ) -> Result<bool, Error> {
        let has = self.room();
        if room.send <= has.send && room.receive <= has.receive {
            return Ok(false);
        }
        // Neither part shrinks: calls that take turns would else move it every time.
        let (send, receive) = (room.send.max(has.send), room.receive.max(has.receive));
        let mut layout = Layout::new();
        let send = layout.add(send)?;
        let halves = [layout.add(receive)?, layout.add(receive)?];
        self.memory.free(fabric, deadline)?;
        (self.send, self.halves) = (Part::default(), [Part::default(); 2]);
        self.memory.alloc(fabric, layout.total(), deadline)?;
        (self.send, self.halves) = (send, halves);
        Ok(true)
    }

    /// Begins the next use, the first is 0.
    pub fn begin(&mut self) -> Use {
        take(&mut self.next)
    }

    /// As [`SrBuffer::reset`].
    pub fn reset(&mut self) {
        self.next = Use(0);
    }

    /// `part` of the send slots, the same for every use.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when it does not fit them.
    pub fn send(&self, part: Part) -> Result<Span, Error> {
        self.memory.span("SepSrBuffer::send", self.send, part)
    }

    /// `part` of the receive slots of `at`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] when it does not fit them.
    pub fn receive(&self, at: Use, part: Part) -> Result<Span, Error> {
        self.memory.span("SepSrBuffer::receive", self.halves[at.half()], part)
    }

    /// What it has room for.
    pub const fn room(&self) -> SepBytes {
        SepBytes { send: Bytes(self.send.len), receive: Bytes(self.halves[0].len) }
    }

    /// As [`SrBuffer::free`].
    ///
    /// # Errors
    /// As [`SrBuffer::free`].
    pub fn free(mut self, fabric: &impl Fabric, deadline: Duration) -> Result<(), Error> {
        self.memory.free(fabric, deadline)
    }
}

fn take(next: &mut Use) -> Use {
    let at = *next;
    *next = at.next();
    at
}

/// A region, or none yet.
#[derive(Debug, Default)]
struct Memory(Option<RegionId>);

impl Memory {
    fn alloc(&mut self, fabric: &impl Fabric, bytes: Bytes, deadline: Duration) -> Result<(), Error> {
        self.0 = Some(fabric.alloc(bytes, deadline)?);
        Ok(())
    }

    /// Forgets the region only when it is freed. A collective that fails does so on every rank, also on one that never
    /// came: if those that came forgot, sizes would differ from then on and the group could not go on after a recovery.
    fn free(&mut self, fabric: &impl Fabric, deadline: Duration) -> Result<(), Error> {
        if let Some(region) = self.0 {
            fabric.free(region, deadline)?;
            self.0 = None;
        }
        Ok(())
    }

    fn span(&self, call: &'static str, inside: Part, part: Part) -> Result<Span, Error> {
        let fits = part.offset.checked_add(part.len).is_some_and(|end| end <= inside.len);
        match self.0 {
            Some(region) if fits => Ok(Span { region, offset: inside.offset + part.offset, len: part.len }),
            region => {
                let span = part.of(region.unwrap_or(RegionId::NONE));
                Err(Error::OutOfRange { call, span, region_len: Bytes(inside.len) })
            }
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Some(region) = self.0 {
            tracing::warn!(
                ?region,
                "a symmetric buffer was dropped without free(): its memory is lost until the world ends"
            );
        }
    }
}

#[cfg(test)]
#[cfg(not(any(loom, shuttle)))]
mod tests {
    use super::*;
    use crate::{
        World, host,
        sync::{Arc, AtomicUsize, Ordering},
    };

    const SOON: Duration = Duration::from_secs(20);

    fn on_each_rank(ranks: u32, body: impl Fn(host::HostFabric) + Sync) {
        host::run(World::new(ranks).unwrap(), host::HostConfig::default(), body);
    }

    #[test]
    fn uses_take_turns_between_halves_that_are_apart() {
        on_each_rank(2, |fabric| {
            let mut buffer = SrBuffer::new();
            assert!(buffer.ensure(&fabric, Bytes(1000), SOON).unwrap());
            let all = Part { offset: 0, len: 1000 };
            let [a, b, c] = std::array::from_fn(|_| buffer.begin());
            assert_eq!((a, b, c), (Use(0), Use(1), Use(2)));
            let spans = [a, b, c].map(|at| buffer.span(at, all).unwrap());
            assert_eq!(spans[0], spans[2]);
            assert_eq!((spans[0].offset, spans[1].offset), (0, 1024));
            assert!(buffer.span(a, Part { offset: 1, len: 1000 }).is_err());
            assert!(buffer.span(a, Part { offset: usize::MAX, len: 2 }).is_err());
            buffer.reset();
            assert_eq!(buffer.begin(), Use(0));
            buffer.free(&fabric, SOON).unwrap();
        });
    }

    #[test]
    fn growth_moves_and_a_smaller_wish_does_nothing() {
        on_each_rank(3, |fabric| {
            let mut buffer = SepSrBuffer::new();
            let room = |send, receive| SepBytes { send: Bytes(send), receive: Bytes(receive) };
            assert!(buffer.send(Part { offset: 0, len: 1 }).is_err(), "nothing there yet");
            assert!(buffer.ensure(&fabric, room(100, 200), SOON).unwrap());
            assert!(!buffer.ensure(&fabric, room(100, 10), SOON).unwrap());
            assert_eq!(buffer.begin(), Use(0));
            assert!(buffer.ensure(&fabric, room(300, 10), SOON).unwrap());
            assert_eq!(buffer.room(), room(300, 200));
            let at = buffer.begin();
            assert_eq!(at, Use(1), "uses count on");
            assert_eq!(buffer.send(Part { offset: 8, len: 292 }).unwrap().offset, 8);
            let receive = buffer.receive(at, Part { offset: 0, len: 200 }).unwrap();
            assert_eq!(receive.offset, 384 + 256);
            fabric.store(receive, &[7; 200]).unwrap();
            buffer.free(&fabric, SOON).unwrap();
        });
    }

    #[test]
    fn a_growth_that_one_rank_missed_works_after_recovery() {
        on_each_rank(2, |fabric| {
            let mut buffer = SrBuffer::new();
            assert!(buffer.ensure(&fabric, Bytes(100), SOON).unwrap());
            if fabric.me().0 == 0 {
                let missed = buffer.ensure(&fabric, Bytes(1000), Duration::from_millis(10)).unwrap_err();
                assert!(matches!(missed, Error::Missing { .. }), "{missed}");
            }
            fabric.recover(SOON).unwrap();
            assert!(buffer.ensure(&fabric, Bytes(1000), SOON).unwrap());
            buffer.free(&fabric, SOON).unwrap();
        });
    }

    /// Counts warnings.
    struct Warnings(Arc<AtomicUsize>);

    impl tracing::Subscriber for Warnings {
        fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
            *metadata.level() == tracing::Level::WARN
        }
        fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
            tracing::span::Id::from_u64(1)
        }
        fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
        fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
        fn enter(&self, _: &tracing::span::Id) {}
        fn exit(&self, _: &tracing::span::Id) {}
    }

    #[test]
    fn only_a_drop_without_free_is_warned_of_once() {
        on_each_rank(1, |fabric| {
            let count = Arc::default();
            tracing::subscriber::with_default(Warnings(Arc::clone(&count)), || {
                let warned = || count.load(Ordering::Relaxed);
                drop(SrBuffer::new());
                let mut freed = SepSrBuffer::new();
                let one = SepBytes { send: Bytes(1), receive: Bytes(1) };
                freed.ensure(&fabric, one, SOON).unwrap();
                freed.free(&fabric, SOON).unwrap();
                assert_eq!(warned(), 0);
                let mut lost = SrBuffer::new();
                lost.ensure(&fabric, Bytes(1), SOON).unwrap();
                lost.ensure(&fabric, Bytes(1000), SOON).unwrap();
                drop(lost);
                assert_eq!(warned(), 1);
            });
        });
    }

    #[test]
    fn ranks_that_disagree_are_told_and_can_go_on() {
        on_each_rank(2, |fabric| {
            let mut buffer = SrBuffer::new();
            let mine = Bytes(if fabric.me().0 == 0 { 128 } else { 256 });
            let error = buffer.ensure(&fabric, mine, SOON).unwrap_err();
            assert!(matches!(error, Error::AllocMismatch { .. }), "{error}");
            assert_eq!(buffer.half(), Bytes(0));
            assert!(buffer.ensure(&fabric, Bytes(512), SOON).unwrap());
            // Dropped without free: it leaks until the world ends, says so, and hangs nobody.
        });
    }
}
