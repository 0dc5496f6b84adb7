//! Where dK and dV of a key tile go: tensors, sums of parts, or f32 slots for their owner, who adds them up.
use fm3_kernels::Element;
use fm3_kernels::params::{BackwardParams, GradSegment, GradSlot, KeySegment};

use super::place::KeyPlace;
use super::step::KeyTile;
use super::{Form, STEP_ELEMENTS, registers};
use crate::memory::Array;
use crate::tensor::Rows;
use crate::tile::{ELEMENTS, TILE};

/// Writes the gradients. `has_grads`: somebody sees the tile, or its gradients are NaN because its keys did not come.
pub(super) fn write<T: Element>(
    p: &BackwardParams,
    form: Form,
    place: &KeyPlace,
    mut tile: KeyTile,
    has_grads: bool,
) {
    tile.dk.iter_mut().for_each(|dk| *dk *= p.scale);
    let table = (form.part && p.grad_segments != 0)
        .then(|| Array::<GradSegment>::at(p.grad_segments).get(place.segment()));
    let is_written = has_grads || table.is_none_or(|segment| segment.skip_unseen == 0);
    if form.is_split() {
        let first = (place.slab_head(p) * p.key_tiles as usize + place.key_tile) * ELEMENTS;
        store(p.dk_sums, first, &tile.dk);
        store(p.dv_sums, first, &tile.dv);
        return;
    }
    if form.slots {
        let segment = table.expect("a form with slots has their table");
        if is_written {
            let first = slot_tile(p, place, segment) * ELEMENTS;
            store(segment.dk, first, &tile.dk);
            store(segment.dv, first, &tile.dv);
        }
        return;
    }
    if let Some(segment) = table {
        add_slots(p, place, segment, &mut tile);
    }
    if is_written {
        store_rounded::<T>(p, form, place, table, &tile);
    }
}

/// Number of the tile in a slot, [b, hkv, tiles].
fn slot_tile(p: &BackwardParams, place: &KeyPlace, segment: GradSegment) -> usize {
    place.slab_head(p) * segment.tiles as usize + place.tile_in_segment()
}

/// What others have sent, in the order of the table, so that the sums have the same bits in every launch.
fn add_slots(p: &BackwardParams, place: &KeyPlace, segment: GradSegment, tile: &mut KeyTile) {
    let at = slot_tile(p, place, segment);
    for slot in segment.first_slot..segment.first_slot + segment.slots {
        let slot: GradSlot = Array::at(p.grad_slots).get(slot as usize);
        if slot.written == 0 || Array::<u8>::at(slot.written).get(at) != 0 {
            add(&mut tile.dk, slot.dk, at * ELEMENTS);
            add(&mut tile.dv, slot.dv, at * ELEMENTS);
        }
    }
}

/// Halves of 64 rows, each in register order.
fn add(sums: &mut [f32], slot: u64, first: usize) {
    let mut parts = vec![0.0; ELEMENTS];
    Array::<f32>::at(slot).read(first, &mut parts);
    for (sums, parts) in sums.chunks_mut(STEP_ELEMENTS).zip(parts.chunks(STEP_ELEMENTS)) {
        registers().for_each(|(at, place)| sums[at] += parts[place]);
    }
}

fn store(slot: u64, first: usize, sums: &[f32]) {
    let mut parts = vec![0.0; ELEMENTS];
    for (parts, sums) in parts.chunks_mut(STEP_ELEMENTS).zip(sums.chunks(STEP_ELEMENTS)) {
        registers().for_each(|(at, place)| parts[place] = sums[at]);
    }
    Array::<f32>::at(slot).write(first, &parts);
}

fn store_rounded<T: Element>(
    p: &BackwardParams,
    form: Form,
    place: &KeyPlace,
    table: Option<GradSegment>,
    tile: &KeyTile,
) {
    let (map, slab) = table.map_or_else(
        || {
            let keys: KeySegment = Array::at(p.segments).get(place.segment());
            (keys.map, keys.slab)
        },
        |segment| (segment.map, segment.slab),
    );
    let map = map as usize;
    let heads_per_group = if form.part { p.grad_heads_per_group } else { p.heads_per_group };
    let (kv_head, per_group) = (place.kv_head as u64, u64::from(heads_per_group[map]));
    let row = (place.tile_in_segment() * TILE) as u64;
    let at = [row, kv_head % per_group, kv_head / per_group, u64::from(slab) + place.batch as u64];
    Rows::<T>::of(&p.dk[map], 64).store(at, &tile.dk);
    Rows::<T>::of(&p.dv[map], 64).store(at, &tile.dv);
}
