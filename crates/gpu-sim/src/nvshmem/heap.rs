//! The symmetric heap: mine, and the mappings of the others'.
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

use super::allocator::Allocator;
use super::control::{Control, Seat, open_of};
use crate::memory::{Kind, Range};
use crate::table::lock;
use crate::{config, map, memory};

/// Heaps of all ranks, mapped here.
pub(super) struct Heap {
    bytes: usize,
    me: usize,
    /// Where each rank's heap begins here.
    begins: Vec<usize>,
    allocator: Mutex<Allocator>,
}

/// My heap before the others know of it.
pub(super) struct Offer {
    file: File,
    bytes: usize,
    begin: usize,
}

impl Offer {
    /// Makes my heap and says where it is.
    pub(super) fn new(seat: &Seat) -> io::Result<Self> {
        let bytes = config::symmetric_size().next_multiple_of(map::PAGE).max(map::PAGE);
        let file = map::memory_file("gpu-sim-heap", bytes)?;
        let begin = map::shared(&file, bytes)?;
        seat.process.store(std::process::id(), Ordering::Relaxed);
        seat.file.store(file.as_raw_fd(), Ordering::Relaxed);
        seat.heap_bytes.store(bytes as u64, Ordering::Release);
        Ok(Self { file, bytes, begin })
    }

    /// Maps the others' heaps, when all have made theirs. The result keeps my file open: others may not have mapped it.
    pub(super) fn open(self, control: &Control, me: usize, world: usize) -> io::Result<(Heap, File)> {
        let mut begins = Vec::new();
        for (pe, seat) in control.seats.iter().enumerate().take(world) {
            if seat.heap_bytes.load(Ordering::Acquire) != self.bytes as u64 {
                control.fail("ranks have heaps of different sizes: NVSHMEM_SYMMETRIC_SIZE differs");
            }
            let begin = if pe == me {
                self.begin
            } else {
                let place = (seat.process.load(Ordering::Relaxed), seat.file.load(Ordering::Relaxed));
                map::shared(&open_of(place.0, place.1)?, self.bytes)?
            };
            memory::add(Range { first: begin, bytes: self.bytes, kind: Kind::Symmetric });
            begins.push(begin);
        }
        let allocator = Mutex::new(Allocator::new(self.bytes));
        Ok((Heap { bytes: self.bytes, me, begins, allocator }, self.file))
    }
}

impl Heap {
    /// A new block of mine; the same place in every heap if every rank asks for the same.
    pub(super) fn allocate(&self, bytes: usize, alignment: usize) -> Option<usize> {
        let offset = lock(&self.allocator).allocate(bytes, alignment)?;
        Some(self.begins[self.me] + offset)
    }

    /// Gives a block of mine back; `false` if it is none.
    pub(super) fn free(&self, address: usize) -> bool {
        self.offset(address).is_some_and(|offset| lock(&self.allocator).free(offset))
    }

    /// Where an address of my heap is in that of `pe`.
    pub(super) fn at(&self, address: usize, pe: usize) -> Option<usize> {
        Some(self.begins.get(pe)? + self.offset(address)?)
    }

    /// Unmaps all of it.
    pub(super) fn end(&self) {
        for begin in &self.begins {
            memory::remove(*begin);
            map::unmap(*begin, self.bytes);
        }
    }

    fn offset(&self, address: usize) -> Option<usize> {
        address.checked_sub(self.begins[self.me]).filter(|offset| *offset < self.bytes)
    }
}
