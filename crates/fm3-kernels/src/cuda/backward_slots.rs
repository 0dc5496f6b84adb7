//! Gradients of key segments that go somewhere of their own: f32 slots, maps and slabs, and what is added to them.
#![expect(unsafe_code, reason = "a slot is a bare address, which its owner promises")]
use std::ops::Range;
use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};

use super::check::{equal, narrow, same_type, wrong};
use super::driver::Named;
use super::keys::KeyExtents;
use super::problem::{HEAD_DIM, KeyTensors, Problem};
use crate::mask::KeySegments;
use crate::params::{GradSegment, GradSlot, KEY_MAPS};
use crate::{Dims, Error};

/// Rows of a key tile.
const TILE: usize = 128;

/// dK and dV of one segment in f32, each [b, hkv, tiles of the segment] tiles of 128 x 128 numbers. It may lie on a peer.
///
/// A tile is whole even if the segment ends inside. Its numbers are in the order of the kernel's registers: row r,
/// column c is number `r / 64 * 8192 + c / 8 * 512 + r / 16 % 4 * 128 + r % 8 * 16 + c % 8 / 2 * 4 + r / 8 % 2 * 2 + c % 2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    at: SlotAt,
}

/// Addresses of a [`Slot`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotAt {
    /// Address of dK.
    pub dk: u64,
    /// Address of dV.
    pub dv: u64,
}

impl Slot {
    /// The memory at two addresses.
    ///
    /// # Errors
    /// [`CudaError::Value`](super::CudaError::Value) for an address that is 0 or not a multiple of 16.
    ///
    /// # Safety
    /// Each address is of [`bytes`](Self::bytes) that the device can read and write, for as long as launches with it
    /// run; nobody else uses what a launch writes, or writes what it reads, in that time.
    pub unsafe fn new(at: SlotAt) -> Result<Self, Error> {
        for (name, address) in [("dk", at.dk), ("dv", at.dv)] {
            if address == 0 || !address.is_multiple_of(16) {
                return Err(wrong("Slot::new", name, address, "a multiple of 16".to_owned()));
            }
        }
        Ok(Self { at })
    }

    /// Bytes of dK, and as many of dV, for the `rows` of one segment.
    pub fn bytes(dims: Dims, rows: usize) -> usize {
        let tiles = dims.batch.saturating_mul(dims.heads_kv).saturating_mul(rows.div_ceil(TILE));
        tiles.saturating_mul(TILE * HEAD_DIM * size_of::<f32>())
    }
}

/// Which tiles of a slot were written: u8 [b, hkv, tiles of the segment] in device memory, 0 for those that were not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenTiles {
    address: u64,
}

impl WrittenTiles {
    /// The bytes at `address`.
    ///
    /// # Errors
    /// [`CudaError::Value`](super::CudaError::Value) for address 0.
    ///
    /// # Safety
    /// They are memory that the device can read, and do not change, for as long as launches with it run.
    pub unsafe fn new(address: u64) -> Result<Self, Error> {
        if address == 0 {
            return Err(wrong("WrittenTiles::new", "address", 0, "that of device memory".to_owned()));
        }
        Ok(Self { address })
    }
}

/// A slot that is added to the gradients of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddedSlot {
    /// Where it is.
    pub slot: Slot,
    /// Which of its tiles count; none: all.
    pub written: Option<WrittenTiles>,
}

/// Where dK and dV of one segment go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GradAt<'a> {
    /// Which of the launch's maps of dK and dV, in launches that round.
    pub map: usize,
    /// Slab of the first sequence in that map; sequence b is in slab `slab + b`.
    pub slab: usize,
    /// Where they go in launches that write slots.
    pub slot: Option<Slot>,
    /// Leaves tiles that nobody here sees as they are, instead of zeroing them.
    pub skip_unseen: bool,
    /// What a launch that rounds adds, in f32 and in this order, before it rounds once.
    pub adds: &'a [AddedSlot],
}

/// Where dK and dV of each key segment go, in device memory.
#[derive(Debug)]
pub struct GradTable {
    device: CudaSlice<u8>,
    rows: Vec<usize>,
    segments: Vec<GradSegment>,
}

impl GradTable {
    /// Copies the table to the device, in the order of the segments.
    ///
    /// # Errors
    /// [`Error::Mismatch`] unless there is one entry for each segment;
    /// [`CudaError::Value`](super::CudaError::Value) for a map beyond [`KEY_MAPS`], and for a segment that adds slots
    /// and skips unseen tiles.
    pub fn new(
        stream: &Arc<CudaStream>,
        segments: &KeySegments,
        table: &[GradAt<'_>],
    ) -> Result<Self, Error> {
        let (words, slots) = rows_of(segments, table)?;
        let mut bytes = bytemuck::cast_slice::<_, u8>(&words).to_vec();
        bytes.extend_from_slice(bytemuck::cast_slice(&slots));
        let device = stream.clone_htod(&bytes).named("cuMemcpyHtoDAsync")?;
        Ok(Self { device, rows: segments.rows().to_vec(), segments: words })
    }

    pub(super) const fn device(&self) -> &CudaSlice<u8> {
        &self.device
    }

    /// Bytes before the slots.
    pub(super) const fn slots_at(&self) -> u64 {
        (self.segments.len() * size_of::<GradSegment>()) as u64
    }

    /// That it was made for these segments.
    pub(super) fn check_segments(&self, call: &'static str, segments: &KeySegments) -> Result<(), Error> {
        equal(call, ["grads", "segments"], self.rows.len(), segments.rows().len())?;
        let mut pairs = self.rows.iter().zip(segments.rows());
        pairs.try_for_each(|(own, rows)| equal(call, ["grads", "rows of a segment"], *own, *rows))
    }

    /// That these segments have slots.
    pub(super) fn check_slots(&self, call: &'static str, range: Range<usize>) -> Result<(), Error> {
        match range.clone().zip(&self.segments[range]).find(|(_, segment)| segment.dk == 0) {
            Some((index, _)) => {
                Err(wrong(call, "segment", index as u64, "one that has a slot in the table".to_owned()))
            }
            None => Ok(()),
        }
    }

    /// That these segments add nothing: a launch that writes slots would leave it out.
    pub(super) fn check_adds_nothing(&self, call: &'static str, range: Range<usize>) -> Result<(), Error> {
        match range.clone().zip(&self.segments[range]).find(|(_, segment)| segment.slots != 0) {
            Some((index, _)) => {
                let rule = "one that adds no slots, or the launch one that rounds".to_owned();
                Err(wrong(call, "segment", index as u64, rule))
            }
            None => Ok(()),
        }
    }

    /// That these segments have maps of their extents, and no two of them the same memory.
    pub(super) fn check_maps(
        &self,
        call: &'static str,
        problem: &Problem,
        (maps, range): (&KeyTensors, Range<usize>),
    ) -> Result<(), Error> {
        let dims = problem.dims;
        let mut places = Vec::new();
        for index in range {
            let (map, slab) = (self.segments[index].map as usize, self.segments[index].slab as usize);
            let Some([dk, dv]) = maps.get(map).copied().flatten() else {
                return Err(wrong(call, "map", map as u64, "that of given gradients".to_owned()));
            };
            for (name, grad) in [("dk", dk), ("dv", dv)] {
                let KeyExtents { rows, heads_per_group, groups, slabs, head_dim } = grad.extents;
                if let Some([k, _]) = problem.maps[0] {
                    same_type(call, name, grad.dtype, k.dtype)?;
                }
                equal(call, [name, "head_dim"], head_dim, HEAD_DIM)?;
                equal(call, [name, "heads"], heads_per_group.saturating_mul(groups), dims.heads_kv)?;
                equal(call, [name, "rows"], rows, self.rows[index])?;
                let needed = slab.saturating_add(dims.batch);
                if slabs < needed {
                    let rule = format!("at least {needed}, the segment's slab and the batch");
                    return Err(wrong(call, "slabs", slabs as u64, rule));
                }
            }
            equal(call, ["dv", "heads of a group"], dv.extents.heads_per_group, dk.extents.heads_per_group)?;
            places.push((map, slab));
        }
        places.sort_unstable();
        let pairs = places.windows(2).filter(|pair| pair[0].0 == pair[1].0);
        match pairs.map(|pair| pair[1].1 - pair[0].1).min() {
            Some(step) if step < dims.batch => {
                let rule = format!("at least {}, the batch, between segments of a map", dims.batch);
                Err(wrong(call, "slabs", step as u64, rule))
            }
            _ => Ok(()),
        }
    }
}

/// The words of a table.
fn rows_of(segments: &KeySegments, table: &[GradAt<'_>]) -> Result<(Vec<GradSegment>, Vec<GradSlot>), Error> {
    let call = "GradTable::new";
    equal(call, ["table", "segments"], table.len(), segments.rows().len())?;
    let (mut words, mut slots) = (Vec::with_capacity(table.len()), Vec::new());
    for (at, rows) in table.iter().zip(segments.rows()) {
        if at.skip_unseen && !at.adds.is_empty() {
            let rule = "0 where tiles that nobody here sees are not written".to_owned();
            return Err(wrong(call, "adds", at.adds.len() as u64, rule));
        }
        if at.map >= KEY_MAPS {
            return Err(wrong(call, "map", at.map as u64, format!("below {KEY_MAPS}")));
        }
        let SlotAt { dk, dv } = at.slot.map_or(SlotAt { dk: 0, dv: 0 }, |slot| slot.at);
        words.push(GradSegment {
            dk,
            dv,
            map: narrow(call, "map + 1", at.map + 1)? - 1,
            slab: narrow(call, "slab + 1", at.slab.saturating_add(1))? - 1,
            tiles: narrow(call, "tiles", rows.div_ceil(TILE))?,
            first_slot: narrow(call, "slots + 1", slots.len() + 1)? - 1,
            slots: narrow(call, "adds + 1", at.adds.len() + 1)? - 1,
            skip_unseen: u32::from(at.skip_unseen),
        });
        slots.extend(at.adds.iter().map(|added| GradSlot {
            dk: added.slot.at.dk,
            dv: added.slot.at.dv,
            written: added.written.map_or(0, |written| written.address),
        }));
    }
    Ok((words, slots))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the documentation of [`Slot`] says.
    fn documented(r: usize, c: usize) -> usize {
        r / 64 * 8192 + c / 8 * 512 + r / 16 % 4 * 128 + r % 8 * 16 + c % 8 / 2 * 4 + r / 8 % 2 * 2 + c % 2
    }

    /// Accumulators of a 64 x 128 product (PTX ISA, "wgmma", fragment of D), stored four at a time by 128 threads.
    #[test]
    fn numbers_of_a_tile_lie_as_documented() {
        let mut filled = vec![false; TILE * HEAD_DIM];
        for (warpgroup, thread, i) in
            (0..2).flat_map(|w| (0..128).flat_map(move |t| (0..64).map(move |i| (w, t, i))))
        {
            let (warp, lane) = (thread / 32, thread % 32);
            let row = 64 * warpgroup + 16 * warp + lane / 4 + 8 * ((i >> 1) & 1);
            let column = 8 * (i >> 2) + 2 * (lane % 4) + (i & 1);
            let stored = warpgroup * 8192 + ((i / 4) * 128 + thread) * 4 + i % 4;
            assert_eq!(documented(row, column), stored, "row {row} column {column}");
            filled[stored] = true;
        }
        assert!(filled.iter().all(|filled| *filled));
    }

    fn slot(first: u64) -> Slot {
        // SAFETY: no launch uses it.
        unsafe { Slot::new(SlotAt { dk: first, dv: first + 64 }) }.unwrap()
    }

    #[test]
    fn a_table_numbers_its_slots_through_all_segments() {
        let segments = KeySegments::new(vec![300, 128]).unwrap();
        let added = |first| AddedSlot { slot: slot(first), written: None };
        let (one, two) = ([added(256)], [added(512), added(768)]);
        let table = [
            GradAt { map: 1, slab: 5, adds: &one, ..GradAt::default() },
            GradAt { slot: Some(slot(1024)), adds: &two, ..GradAt::default() },
        ];
        let (words, slots) = rows_of(&segments, &table).unwrap();
        assert_eq!((words[0].map, words[0].slab, words[0].tiles, words[0].dk), (1, 5, 3, 0));
        assert_eq!((words[0].first_slot, words[0].slots, words[1].first_slot, words[1].slots), (0, 1, 1, 2));
        assert_eq!((words[1].dk, words[1].dv, words[1].tiles), (1024, 1088, 1));
        assert_eq!(slots.iter().map(|slot| slot.dk).collect::<Vec<_>>(), [256, 512, 768]);
    }

    #[test]
    fn what_a_table_cannot_hold_is_named() {
        let segments = KeySegments::new(vec![300, 128]).unwrap();
        let refused = |table: &[GradAt<'_>]| rows_of(&segments, table).unwrap_err().to_string();
        let good = GradAt::default();
        assert!(refused(&[good]).contains('2'));
        assert!(refused(&[good, GradAt { map: 4, ..good }]).contains("below 4"));
        let adds = [AddedSlot { slot: slot(16), written: None }];
        assert!(refused(&[good, GradAt { skip_unseen: true, adds: &adds, ..good }]).contains("adds"));
        // SAFETY: refused.
        let bad = unsafe { Slot::new(SlotAt { dk: 16, dv: 8 }) };
        assert!(bad.unwrap_err().to_string().contains("dv"));
    }

    #[test]
    fn a_slot_holds_whole_tiles() {
        let dims = Dims { batch: 2, heads_q: 6, heads_kv: 3, seq_q: 1, seq_k: 1, head_dim: 128 };
        assert_eq!(Slot::bytes(dims, 129), 2 * 3 * 2 * 65536);
    }
}
