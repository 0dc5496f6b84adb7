//! Which parts of the heap are in use. Equal calls give equal places, so ranks need not ask each other.
use std::collections::BTreeMap;

/// Bytes by which blocks are at least aligned.
const ALIGNMENT: usize = 512;

/// First fit over one range of offsets.
#[derive(Debug)]
pub(super) struct Allocator {
    room: usize,
    /// Ends of used blocks by their beginnings.
    used: BTreeMap<usize, usize>,
}

impl Allocator {
    pub(super) fn new(room: usize) -> Self {
        Self { room, used: BTreeMap::new() }
    }

    /// Offset of a new block; `None` without room.
    pub(super) fn allocate(&mut self, bytes: usize, alignment: usize) -> Option<usize> {
        let alignment = alignment.max(ALIGNMENT);
        let mut begin = 0;
        for (used, end) in &self.used {
            if begin + bytes <= *used {
                break;
            }
            begin = end.checked_next_multiple_of(alignment)?;
        }
        let end = begin.checked_add(bytes).filter(|end| *end <= self.room)?;
        self.used.insert(begin, end);
        Some(begin)
    }

    /// Gives a block back; `false` if there is none.
    pub(super) fn free(&mut self, begin: usize) -> bool {
        self.used.remove(&begin).is_some()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_full_heap_says_so_and_freed_room_is_used_again() {
        let mut heap = Allocator::new(4096);
        assert_eq!(heap.allocate(4097, 1), None);
        assert_eq!([1, 1000, 2048].map(|bytes| heap.allocate(bytes, 16)), [Some(0), Some(512), Some(1536)]);
        assert_eq!(heap.allocate(1000, 16), None);
        assert!(heap.free(512) && !heap.free(512) && !heap.free(3));
        // Room for 512 bytes is left at 1024, and 512 after the last block.
        assert_eq!(heap.allocate(513, 1024), None);
        assert_eq!(heap.allocate(1024, 16), Some(512));
    }

    proptest! {
        #[test]
        fn blocks_are_aligned_inside_and_apart(
            calls in prop::collection::vec((0..3_u8, 1..5000_usize, 0..12_u32), 1..60),
        ) {
            let (mut heap, mut blocks) = (Allocator::new(1 << 16), Vec::<(usize, usize)>::new());
            for (call, bytes, power) in calls {
                if call == 0 && !blocks.is_empty() {
                    let (begin, _) = blocks.remove(bytes % blocks.len());
                    prop_assert!(heap.free(begin));
                } else if let Some(begin) = heap.allocate(bytes, 1 << power) {
                    prop_assert!(begin % (1 << power) == 0 && begin + bytes <= 1 << 16);
                    prop_assert!(blocks.iter().all(|(other, end)| begin + bytes <= *other || *end <= begin));
                    blocks.push((begin, begin + bytes));
                }
            }
        }
    }
}
