//! The block: a few pages that all processes of a group share. An array of 64-bit words; who writes which is said here.
#![expect(unsafe_code, reason = "words of shared memory are seen as atomics")]
use std::fs::File;

use memmap2::MmapRaw;

use super::place::Failed;
use crate::sync::{AtomicU64, Ordering, fence};
use crate::{Error, Note, Pe, SignalId, World};

/// Ranks of a group: one bit each in a word that says who is present.
pub(super) const MOST_RANKS: usize = 64;
/// Streams of one rank.
pub(super) const STREAMS: usize = 128;
/// Notes of one rank.
pub(super) const PLACES: usize = crate::fabric::NOTES;
/// Words of a line: what one rank writes often shares no cache line with what another writes.
const LINE: usize = 8;
/// First word of every block: `SBNB`, and the version of this layout.
const MAGIC: u64 = 0x5342_4e42_0000_0001;
/// Lines before those of the ranks.
const COMMON: usize = 8;

/// How large a group is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) world: World,
    /// Signal words of each rank.
    pub(super) signals: usize,
}

/// One of the places where all ranks meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hall {
    /// Of the collectives.
    Collective,
    /// Of the recovery: apart, as a rank may still be in the other one when the first begins to recover.
    Recovery,
}

/// A word of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// [`MAGIC`], the world and the signals: written by rank 0 before the others see the file.
    Header(usize),
    /// Bits of the ranks that have the block open (0), and that hold the files of all others (1).
    Joined(usize),
    /// Bits of the ranks that have come.
    Presence(Hall),
    /// Counts the meetings that have ended.
    Generation(Hall),
    /// How the meeting of even (0) and odd (1) generations ended.
    Outcome(Hall, usize),
    /// What a rank asks for in meetings of even (0) and odd (1) generations: two words.
    Ballot(Hall, usize, Pe, usize),
    /// One more after every recovery.
    Incarnation,
    /// How many ranks have left.
    Departures,
    /// The report of who gave up first; word 0 is its state.
    Abort(usize),
    /// 0 while a rank's fabric is there; else 1, 2, ... in the order in which they went.
    Left(Pe),
    /// 1 when somebody has seen that the rank's process is gone.
    Dead(Pe),
    /// A rank's copy of a signal word, for the host and for streams.
    Signal(Pe, SignalId),
    /// Work that a stream of a rank has done.
    Progress(Pe, usize),
    /// A place for a note of a rank: its number + 1, then the note.
    Note(Pe, usize, usize),
}

/// The mapped block.
#[derive(Debug)]
pub(super) struct Block {
    map: MmapRaw,
    sizes: Sizes,
}

impl Sizes {
    const fn ranks(self) -> usize {
        self.world.size()
    }

    /// Words of the block.
    const fn words(self) -> usize {
        (self.line(At::Note(Pe(0), 0, 0)) + self.ranks() * PLACES) * LINE
    }

    /// First line of each kind; they follow each other.
    const fn line(self, at: At) -> usize {
        let ranks = self.ranks();
        match at {
            At::Header(_) | At::Joined(_) => 0,
            At::Presence(hall) | At::Generation(hall) | At::Outcome(hall, _) => 1 + hall as usize,
            At::Incarnation | At::Departures => 3,
            // Two lines.
            At::Abort(_) => 4,
            At::Left(pe) | At::Dead(pe) => COMMON + pe.index(),
            At::Ballot(hall, parity, pe, _) => {
                COMMON + ranks + (hall as usize * 2 + parity) * ranks + pe.index()
            }
            At::Signal(pe, signal) => COMMON + 5 * ranks + pe.index() * self.signals + signal.0 as usize,
            At::Progress(pe, stream) => {
                COMMON + 5 * ranks + ranks * self.signals + pe.index() * STREAMS + stream
            }
            At::Note(pe, place, _) => {
                COMMON + 5 * ranks + ranks * (self.signals + STREAMS) + pe.index() * PLACES + place
            }
        }
    }

    const fn word(self, at: At) -> usize {
        let within = match at {
            At::Header(word) | At::Abort(word) | At::Ballot(_, _, _, word) | At::Note(_, _, word) => word,
            At::Joined(phase) => 4 + phase,
            At::Presence(_) | At::Incarnation | At::Left(_) | At::Signal(..) | At::Progress(..) => 0,
            At::Generation(_) | At::Departures | At::Dead(_) => 1,
            At::Outcome(_, parity) => 2 + parity,
        };
        self.line(at) * LINE + within
    }
}

impl Block {
    /// Makes the block in a new, empty file.
    pub(super) fn create(file: &File, sizes: Sizes) -> Result<Self, Failed> {
        let bytes = sizes.words() * size_of::<u64>();
        file.set_len(bytes as u64).map_err(|error| Failed::io("set_len", &error))?;
        let block = Self::map(file, sizes)?;
        for (word, value) in header(sizes).into_iter().enumerate() {
            block.word(At::Header(word)).store(value, Ordering::Release);
        }
        Ok(block)
    }

    /// Maps the block that another rank has made.
    pub(super) fn open(file: &File, sizes: Sizes) -> Result<Self, Failed> {
        let len = file.metadata().map_err(|error| Failed::io("metadata", &error))?.len();
        let wanted = sizes.words() * size_of::<u64>();
        if len != wanted as u64 {
            return Err(Failed::Other(format!("it has {len} bytes instead of {wanted}")));
        }
        let block = Self::map(file, sizes)?;
        let found = [0, 1, 2].map(|word| block.word(At::Header(word)).load(Ordering::Acquire));
        match found == header(sizes) {
            true => Ok(block),
            false => Err(Failed::Other(format!("it is for {found:x?}, not {:x?}", header(sizes)))),
        }
    }

    fn map(file: &File, sizes: Sizes) -> Result<Self, Failed> {
        let map = MmapRaw::map_raw(file).map_err(|error| Failed::io("mmap", &error))?;
        Ok(Self { map, sizes })
    }

    /// How large the group is.
    pub(super) const fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// A word.
    ///
    /// # Panics
    /// For a rank, signal or stream outside the sizes: callers have checked them.
    pub(super) fn word(&self, at: At) -> &AtomicU64 {
        let word = self.sizes.word(at);
        assert!((word + 1) * size_of::<u64>() <= self.map.len(), "{at:?} is outside the block");
        // SAFETY: the word is inside the mapping, which is live as long as `self`.
        let place = unsafe { self.map.as_mut_ptr().cast::<u64>().add(word) };
        // SAFETY: the mapping is page-aligned, so words are aligned; all processes and devices access them only as
        // atomics of this size, and nobody shortens the file.
        unsafe { AtomicU64::from_ptr(place) }
    }

    /// Where the mapping begins, and its bytes.
    pub(super) fn memory(&self) -> (*mut u8, usize) {
        (self.map.as_mut_ptr(), self.map.len())
    }

    /// Bytes from the beginning to a word.
    pub(super) const fn offset(&self, at: At) -> u64 {
        (self.sizes.word(at) * size_of::<u64>()) as u64
    }

    /// Writes a note over the oldest: readers see its number last, and no number while it changes.
    pub(super) fn write_note(&self, pe: Pe, number: u64, note: Note) {
        let place = place(number);
        let told = self.word(At::Note(pe, place, 0));
        told.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        for (at, word) in note.into_iter().enumerate() {
            self.word(At::Note(pe, place, 1 + at)).store(word, Ordering::Relaxed);
        }
        told.store(number.wrapping_add(1), Ordering::Release);
    }

    /// A note, if it is the one of this number from the first word to the last.
    pub(super) fn read_note(&self, pe: Pe, number: u64) -> Option<Note> {
        let place = place(number);
        let told = self.word(At::Note(pe, place, 0));
        let is_it = |order| told.load(order) == number.wrapping_add(1);
        if !is_it(Ordering::Acquire) {
            return None;
        }
        let note = std::array::from_fn(|at| self.word(At::Note(pe, place, 1 + at)).load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        is_it(Ordering::Relaxed).then_some(note)
    }

    /// Refuses a word that does not exist.
    pub(super) const fn check_signal(
        &self,
        call: &'static str,
        signal: SignalId,
        made: u32,
    ) -> Result<(), Error> {
        if signal.0 < made { Ok(()) } else { Err(Error::NoSuchSignal { call, signal, len: made as usize }) }
    }
}

/// Where a note of this number is.
fn place(number: u64) -> usize {
    usize::try_from(number % PLACES as u64).unwrap_or(0)
}

const fn header(sizes: Sizes) -> [u64; 3] {
    [MAGIC, sizes.ranks() as u64, sizes.signals as u64]
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_two_words_are_one_and_all_are_in_the_block() {
        for ranks in [1, 2, 5, 64] {
            let sizes = Sizes { world: World::new(ranks).unwrap(), signals: 3 };
            let mut words = HashSet::new();
            let mut all = vec![At::Incarnation, At::Departures];
            all.extend((0..3).map(At::Header));
            all.extend((0..2).map(At::Joined));
            all.extend((0..2 * LINE).map(At::Abort));
            for hall in [Hall::Collective, Hall::Recovery] {
                all.extend([
                    At::Presence(hall),
                    At::Generation(hall),
                    At::Outcome(hall, 0),
                    At::Outcome(hall, 1),
                ]);
                for pe in sizes.world.ranks() {
                    all.extend([0, 1].map(|word| At::Ballot(hall, 0, pe, word)));
                    all.extend([0, 1].map(|word| At::Ballot(hall, 1, pe, word)));
                }
            }
            for pe in sizes.world.ranks() {
                all.extend([At::Left(pe), At::Dead(pe)]);
                all.extend((0..3).map(|signal| At::Signal(pe, SignalId(signal))));
                all.extend((0..STREAMS).map(|stream| At::Progress(pe, stream)));
                all.extend((0..PLACES * 7).map(|at| At::Note(pe, at / 7, at % 7)));
            }
            for at in all {
                assert!(sizes.word(at) < sizes.words(), "{at:?}");
                assert!(words.insert(sizes.word(at)), "{at:?}");
            }
        }
    }
}
