//! Where regions lie in the heap: each rank computes it for itself, and all find the same.
use std::collections::BTreeMap;

use crate::layout::ALIGNMENT;
use crate::{Bytes, RegionId};

/// Chunks of the heap, cut into regions.
#[derive(Debug, Default)]
pub(super) struct Arena {
    /// Free runs of each chunk, offset to length; none for a chunk that was given back.
    chunks: Vec<Option<Chunk>>,
    regions: BTreeMap<RegionId, Region>,
    next: u64,
}

#[derive(Debug)]
struct Chunk {
    len: usize,
    free: BTreeMap<usize, usize>,
}

/// A region of the heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) chunk: usize,
    pub(super) offset: usize,
    /// As it was asked for.
    pub(super) len: usize,
}

impl Arena {
    /// A new region in the chunks that there are; `None` when it does not fit.
    pub(super) fn take(&mut self, bytes: Bytes) -> Option<RegionId> {
        let room = room(bytes.0)?;
        let chunks = self.chunks.iter_mut().enumerate();
        let (chunk, offset) =
            chunks.filter_map(|(at, chunk)| Some((at, chunk.as_mut()?.take(room)?))).next()?;
        let id = RegionId(self.next);
        self.next += 1;
        self.regions.insert(id, Region { chunk, offset, len: bytes.0 });
        Some(id)
    }

    /// Adds a chunk; its index.
    pub(super) fn grow(&mut self, len: usize) -> usize {
        self.chunks.push(Some(Chunk { len, free: BTreeMap::from([(0, len)]) }));
        self.chunks.len() - 1
    }

    /// Ends a region; the chunk that nothing is left in, which is then gone.
    pub(super) fn give(&mut self, id: RegionId) -> Option<usize> {
        let region = self.regions.remove(&id)?;
        let chunk = self.chunks[region.chunk].as_mut()?;
        chunk.give(region.offset, room(region.len)?);
        if chunk.free.get(&0) != Some(&chunk.len) {
            return None;
        }
        self.chunks[region.chunk] = None;
        Some(region.chunk)
    }

    pub(super) fn region(&self, id: RegionId) -> Option<Region> {
        self.regions.get(&id).copied()
    }
}

impl Chunk {
    /// From the smallest run that fits, the first of several.
    fn take(&mut self, room: usize) -> Option<usize> {
        let fits = self.free.iter().filter(|(_, len)| **len >= room);
        let (&offset, &len) = fits.min_by_key(|(_, len)| **len)?;
        self.free.remove(&offset);
        if len > room {
            self.free.insert(offset + room, len - room);
        }
        Some(offset)
    }

    fn give(&mut self, mut offset: usize, mut len: usize) {
        if let Some(after) = self.free.remove(&(offset + len)) {
            len += after;
        }
        if let Some((&before, &before_len)) = self.free.range(..offset).next_back()
            && before + before_len == offset
        {
            (offset, len) = (before, before_len + len);
        }
        self.free.insert(offset, len);
    }
}

/// Bytes that a region takes; an empty one takes a place too.
fn room(len: usize) -> Option<usize> {
    len.max(1).checked_next_multiple_of(ALIGNMENT)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn regions_never_overlap_and_all_room_comes_back(
            steps in prop::collection::vec((any::<bool>(), 0usize..3000, any::<prop::sample::Index>()), 1..200),
        ) {
            let mut arena = Arena::default();
            let first = arena.grow(20_480);
            let mut live: Vec<RegionId> = Vec::new();
            for (takes, len, which) in steps {
                if takes || live.is_empty() {
                    match arena.take(Bytes(len)) {
                        Some(id) => live.push(id),
                        None => {
                            let chunk = arena.grow(room(len).unwrap().max(4096));
                            live.push(arena.take(Bytes(len)).unwrap());
                            prop_assert!(chunk > first);
                        }
                    }
                } else {
                    arena.give(live.swap_remove(which.index(live.len())));
                }
                let mut places: Vec<_> = live.iter().map(|id| arena.region(*id).unwrap()).collect();
                places.sort_by_key(|at| (at.chunk, at.offset));
                for at in &places {
                    prop_assert!(at.offset % ALIGNMENT == 0);
                    prop_assert!(at.offset + at.len <= arena.chunks[at.chunk].as_ref().unwrap().len);
                }
                for pair in places.windows(2) {
                    let apart = pair[0].chunk != pair[1].chunk || pair[0].offset + pair[0].len <= pair[1].offset;
                    prop_assert!(apart, "{pair:?}");
                }
            }
            // The last region of a chunk gives the whole chunk back.
            let used: std::collections::BTreeSet<usize> =
                live.iter().map(|id| arena.region(*id).unwrap().chunk).collect();
            let gone: std::collections::BTreeSet<usize> = live.iter().filter_map(|id| arena.give(*id)).collect();
            prop_assert_eq!(used, gone);
        }
    }
}
