//! The symmetric heap: chunks from NVSHMEM, regions in them, and where each lies in the memory of every rank.
#![expect(unsafe_code, reason = "NVSHMEM's collectives are promises about other ranks")]
use std::alloc::Layout;
use std::ffi::c_void;
use std::ptr::NonNull;

use nvshmem_sys::Session;

use super::arena::Arena;
use crate::{Bytes, Error, Pe, RegionId, Span};

/// What NVSHMEM gives, and where peers have it.
#[derive(Debug)]
pub(super) struct Chunk {
    memory: Memory,
    /// Where this process finds each rank's copy of it.
    bases: Vec<u64>,
}

/// Where NVSHMEM has it.
#[derive(Debug)]
struct Memory(NonNull<c_void>);

// SAFETY: a device address, which every thread may name.
unsafe impl Send for Memory {}
// SAFETY: nothing is reached through it here.
unsafe impl Sync for Memory {}

/// Regions and chunks. Every rank does the same to it, in the same order.
#[derive(Debug, Default)]
pub(super) struct Heap {
    arena: Arena,
    chunks: Vec<Option<Chunk>>,
}

impl Chunk {
    /// Collective: every rank asks for as many bytes, at the same point of the program.
    ///
    /// # Errors
    /// [`Error::Nvshmem`] when the heap is full, [`Error::Unreachable`].
    pub(super) fn new(session: &Session, me: Pe, bytes: usize) -> Result<Self, Error> {
        /// Of chunks: more than any region or tensor map needs.
        const ALIGN: usize = 1024;
        let call = "alloc";
        let too_large = || Error::TooLarge { call, used: Bytes(0), wanted: Bytes(bytes) };
        let layout = Layout::from_size_align(bytes, ALIGN).map_err(|_| too_large())?;
        // SAFETY: the ranks have met over this very request just before.
        let memory = unsafe { session.alloc(layout) }.map_err(Error::Nvshmem)?;
        let base = |pe: u32| {
            let found = session.peer_address(memory, pe).map_err(Error::Nvshmem)?;
            found.map(|base| base.as_ptr() as u64).ok_or(Error::Unreachable { call, me, peer: Pe(pe) })
        };
        let bases = (0..session.seat().world).map(base).collect::<Result<_, Error>>()?;
        Ok(Self { memory: Memory(memory), bases })
    }

    /// Where this process finds byte `offset` of a rank's copy.
    pub(super) fn address(&self, pe: Pe, offset: usize) -> u64 {
        self.bases[pe.index()] + offset as u64
    }

    /// Gives it back. Collective, as [`Chunk::new`].
    pub(super) fn free(self, session: &Session) {
        // SAFETY: it came from this session; the ranks have met over giving it back, with their streams drained.
        unsafe { session.free(self.memory.0) };
    }
}

impl Heap {
    /// A region in the chunks that there are.
    pub(super) fn take(&mut self, bytes: Bytes) -> Option<RegionId> {
        self.arena.take(bytes)
    }

    pub(super) fn grow(&mut self, len: usize, chunk: Chunk) {
        let index = self.arena.grow(len);
        debug_assert_eq!(index, self.chunks.len());
        self.chunks.push(Some(chunk));
    }

    /// Ends a region; the chunk that nothing is left in.
    pub(super) fn give(&mut self, region: RegionId) -> Option<Chunk> {
        self.arena.give(region).and_then(|chunk| self.chunks[chunk].take())
    }

    /// Its length.
    pub(super) fn len(&self, region: RegionId) -> Option<Bytes> {
        self.arena.region(region).map(|region| Bytes(region.len))
    }

    /// Where this process finds byte `offset` of a rank's region, which must be there.
    pub(super) fn address(&self, pe: Pe, region: RegionId, offset: usize) -> Option<u64> {
        let at = self.arena.region(region)?;
        self.chunks[at.chunk].as_ref().map(|chunk| chunk.address(pe, at.offset + offset))
    }

    /// Where this process finds `span` of a rank's heap.
    ///
    /// # Errors
    /// [`Error::UnknownRegion`], [`Error::OutOfRange`].
    pub(super) fn find(&self, call: &'static str, pe: Pe, span: Span) -> Result<u64, Error> {
        let Span { region, offset, len } = span;
        let region_len = self.len(region).ok_or(Error::UnknownRegion { call, region })?;
        if offset.checked_add(len).is_none_or(|end| end > region_len.0) {
            return Err(Error::OutOfRange { call, span, region_len });
        }
        self.address(pe, region, offset).ok_or(Error::UnknownRegion { call, region })
    }

    /// All chunks, to give them back.
    pub(super) fn take_all(&mut self) -> Vec<Chunk> {
        self.chunks.iter_mut().filter_map(Option::take).collect()
    }
}
