//! The main kernel in all its forms: dK and dV of key tiles, and sums of dQ.
use fm3_kernels::Element;
use fm3_kernels::params::{BackwardParams, KeySegment};

use super::place::KeyPlace;
use super::step::KeyTile;
use super::turn::{add, add_in_turn, limits, poison_query_grads};
use super::{STEP, epilogue};
use crate::blocks::{Block, Claims, Shape};
use crate::memory::Array;
use crate::signal::Awaited;
use crate::tensor::Rows;
use crate::tile::TILE;

/// What a kernel does beyond the plain one. All that is neither plain nor split is a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    /// A launch over some of the key tiles: signals, tables of gradients.
    pub(super) part: bool,
    /// dK and dV go to slots in f32.
    pub(super) slots: bool,
    /// dQ is added in the order of the tiles.
    pub(super) ordered: bool,
}

impl Form {
    pub(crate) const PLAIN: Self = Self { part: false, slots: false, ordered: false };
    pub(crate) const PART: Self = Self { part: true, ..Self::PLAIN };
    pub(crate) const SLOTS: Self = Self { slots: true, ..Self::PART };
    pub(crate) const ORDERED: Self = Self { ordered: true, ..Self::PART };
    pub(crate) const ORDERED_SLOTS: Self = Self { slots: true, ..Self::ORDERED };
    /// All keys, each KV head in parts of its query heads, whose dK and dV go to sums of their own.
    pub(crate) const SPLIT: Self = Self { slots: true, ..Self::PLAIN };

    pub(super) const fn is_split(self) -> bool {
        self.slots && !self.part
    }
}

/// Tiles of all blocks.
pub(crate) fn gradients<T: Element>(p: &BackwardParams, shape: Shape, form: Form) {
    let claims = Claims { tiles: p.tiles, words: p.claims, in_order: form.ordered };
    claims.run(shape, |block, index| one_tile::<T>(p, form, block, index as usize));
}

fn one_tile<T: Element>(p: &BackwardParams, form: Form, block: &mut Block, index: usize) {
    let place = KeyPlace::of(p, form, index);
    let mut steps = if form.part && p.sum_only != 0 { Vec::new() } else { place.steps(p, form) };
    let mut tile = KeyTile::new();
    if form.part && !await_keys(p, &place, block, !steps.is_empty()) {
        poison_query_grads(p);
        steps.clear();
        tile.dk.fill(f32::NAN);
        tile.dv.fill(f32::NAN);
    }
    if !steps.is_empty() {
        load_keys::<T>(p, form, &place, &mut tile);
    }
    for step in &steps {
        let dq = tile.step::<T>(p, &place, *step);
        let head = place.kv_head * p.group as usize + step.member;
        let target =
            (place.batch * p.heads_q as usize + head) * p.row_tiles as usize * (TILE / STEP) + step.block;
        if form.ordered {
            add_in_turn(p, block, (target, place.turn(p, *step)), &dq);
        } else {
            add(p, target, &dq);
        }
    }
    let has_grads = !steps.is_empty() || (form.part && block.poisoned);
    epilogue::write::<T>(p, form, &place, tile, has_grads);
}

/// Waits until the keys of a tile are there, if somebody sees it. False: nothing is loaded any more.
fn await_keys(p: &BackwardParams, place: &KeyPlace, block: &mut Block, is_seen: bool) -> bool {
    block.poisoned |= limits(p).stopped();
    let KeySegment { signal, .. } = Array::at(p.segments).get(place.segment());
    if is_seen && signal != 0 && !block.poisoned {
        let head = u32::try_from(place.kv_head).unwrap_or(u32::MAX);
        let wanted = p.signal_base + u64::from(head / p.heads_per_piece) + 1;
        let awaited = Awaited { segment: place.place >> 20, head, wanted, block: block.index };
        block.poisoned = limits(p).await_signal(signal, awaited).is_none();
    }
    !block.poisoned
}

fn load_keys<T: Element>(p: &BackwardParams, form: Form, place: &KeyPlace, tile: &mut KeyTile) {
    let KeySegment { map, slab, .. } = Array::at(p.segments).get(place.segment());
    let map = map as usize;
    let kv_head = if form.is_split() { place.kv_head / p.split as usize } else { place.kv_head };
    let (kv_head, per_group) = (kv_head as u64, u64::from(p.heads_per_group[map]));
    let row = (place.tile_in_segment() * TILE) as u64;
    let at = [row, kv_head % per_group, kv_head / per_group, u64::from(slab) + place.batch as u64];
    Rows::<T>::of(&p.k[map], 128).load(at, &mut tile.k);
    Rows::<T>::of(&p.v[map], 128).load(at, &mut tile.v);
}
