//! The forward kernel: `kernels/include/fm3/attn/{schedule,producer,consumer}.cuh`.
use std::f32::consts::LN_2;
use std::mem::offset_of;
use std::sync::atomic::Ordering;

use fm3_kernels::Element;
use fm3_kernels::params::{ForwardParams, KeySegment, WaitTimes};

use crate::blocks::{Block, Claims, Shape};
use crate::mask::ColumnBands;
use crate::memory::{Array, word64};
use crate::signal::{Awaited, Limits, global_nanoseconds};
use crate::tensor::Rows;
use crate::tile::{HEAD_DIM, Matrix, TILE, add_product, tile};

/// Classes of entries; every other is general.
const FULL: u32 = 0;
pub(crate) const SIMPLE: u32 = 1;

/// Tiles of all blocks.
pub(crate) fn forward<T: Element>(p: &ForwardParams, shape: Shape) {
    timed_forward::<T>(&ForwardParams { times: 0, ..*p }, shape);
}

/// The same; what it waits for goes to the table of times.
pub(crate) fn timed_forward<T: Element>(p: &ForwardParams, shape: Shape) {
    let claims = Claims { tiles: p.tiles, words: p.claims, in_order: false };
    claims.run(shape, |block, index| {
        let place = Place::of(p, index as usize);
        let begin = global_nanoseconds();
        let mut rows = QueryRows::new();
        // From here on nothing is loaded, in this tile and in those to come.
        block.poisoned |= limits(p).stopped();
        if !block.poisoned {
            attend::<T>(p, &place, block, &mut rows);
        }
        write::<T>(p, &place, rows, block.poisoned);
        if p.times != 0 {
            record_span(p.times, begin, global_nanoseconds());
            let blocks = p.times + offset_of!(WaitTimes, blocks) as u64;
            word64(blocks).fetch_max(u64::from(block.index) + 1, Ordering::Relaxed);
        }
    });
}

const fn limits(p: &ForwardParams) -> Limits {
    Limits { report: p.report, abort: p.abort, deadline_ns: p.deadline_ns }
}

/// A tile of 128 query rows of one head.
struct Place {
    batch: usize,
    head: usize,
    row_tile: usize,
    /// Index of its mask among all masks.
    mask: usize,
}

impl Place {
    /// Tiles come in sections of heads; in a section the row tiles with most work come first, each for all its heads.
    fn of(p: &ForwardParams, index: usize) -> Self {
        let [row_tiles, heads_q, section_heads, tiles] =
            [p.row_tiles, p.heads_q, p.section_heads, p.tiles].map(|number| number as usize);
        let (section, inside) = (index / (section_heads * row_tiles), index % (section_heads * row_tiles));
        let first_head = section * section_heads;
        let heads = section_heads.min(tiles / row_tiles - first_head);
        let (rank, query_head) = (inside / heads, first_head + inside % heads);
        let (batch, head) = (query_head / heads_q, query_head % heads_q);
        let mask = batch * p.mask_batch_step as usize + head / p.heads_per_mask as usize;
        let row_tile = Array::<u32>::at(p.ranked).get(mask * row_tiles + rank) as usize;
        Self { batch, head, row_tile, mask }
    }

    fn first_row(&self) -> usize {
        self.row_tile * TILE
    }
}

/// Sums of the online softmax (Dao et al., "FlashAttention-2", algorithm 1).
struct QueryRows {
    o: Vec<f32>,
    greatest: [f32; TILE],
    sum: [f32; TILE],
}

/// Finite, so that exp2(-inf - it) = 0 before a row has seen anything.
const NOTHING_SEEN: f32 = -1e30;

impl QueryRows {
    fn new() -> Self {
        Self { o: tile(), greatest: [NOTHING_SEEN; TILE], sum: [0.0; TILE] }
    }

    /// Turns scores into P, rounded to the type in which it meets V, and brings the sums to the new maximum.
    fn softmax<T: Element>(&mut self, scores: &mut [f32], scale_log2: f32) {
        for (row, scores) in scores.chunks_mut(TILE).enumerate() {
            let greatest = scores.iter().copied().fold(self.greatest[row], f32::max);
            let factor = ((self.greatest[row] - greatest) * scale_log2).exp2();
            self.greatest[row] = greatest;
            let mut sum = 0.0;
            for score in scores {
                let weight = ((*score - greatest) * scale_log2).exp2();
                sum += weight;
                *score = T::from_f32(weight).to_f32();
            }
            self.sum[row] = self.sum[row] * factor + sum;
            if factor != 1.0 {
                self.o[row * HEAD_DIM..][..HEAD_DIM].iter_mut().for_each(|o| *o *= factor);
            }
        }
    }
}

/// All key tiles of the row tile's list, in its order.
fn attend<T: Element>(p: &ForwardParams, place: &Place, block: &mut Block, rows: &mut QueryRows) {
    let list = place.mask * p.row_tiles as usize + place.row_tile;
    let mut q = tile();
    Rows::<T>::of(&p.q, 64)
        .load([place.first_row() as u64, place.head as u64, place.batch as u64, 0], &mut q);
    let [mut keys, mut values] = [tile(), tile()];
    let mut segment = None;
    for at in 0..Array::<u32>::at(p.counts).get(list) as usize {
        let entry = Array::<u32>::at(p.entries).get(list * p.key_tiles as usize + at);
        let key_tile = (entry >> 2) as usize;
        let key_place = Array::<u32>::at(p.places).get(key_tile);
        if segment != Some(key_place >> 20) {
            segment = Some(key_place >> 20);
            if !enter(p, place, block, key_place >> 20) {
                block.poisoned = true;
                return;
            }
        }
        load_keys::<T>(p, place, key_place, [&mut keys, &mut values]);
        let mut scores = tile();
        add_product(&mut scores, Matrix::rows(&q), Matrix::columns(&keys));
        if entry & 3 != FULL {
            let columns = columns(p.bands, place.mask * p.key_tiles as usize + key_tile);
            mask(&mut scores, &columns, place.first_row(), entry & 3 == SIMPLE);
        }
        rows.softmax::<T>(&mut scores, p.scale_log2);
        add_product(&mut rows.o, Matrix::rows(&scores), Matrix::rows(&values));
    }
}

/// Waits until the segment's rows of the tile's KV head are there. False: they will not come.
fn enter(p: &ForwardParams, place: &Place, block: &Block, segment: u32) -> bool {
    let KeySegment { signal, .. } = Array::at(p.segments).get(segment as usize);
    let head = u32::try_from(place.head).unwrap_or(u32::MAX) / p.group;
    let wanted = p.signal_base + u64::from(head / p.heads_per_piece) + 1;
    if signal == 0 {
        return true;
    }
    let awaited = Awaited { segment, head, wanted, block: block.index };
    let Some(waited_ns) = limits(p).await_signal(signal, awaited) else { return false };
    if p.times != 0 && waited_ns != 0 {
        let piece = u64::from(segment) * u64::from(p.pieces) + u64::from(head / p.heads_per_piece);
        record_wait(p.times + (1 + piece) * size_of::<WaitTimes>() as u64, waited_ns);
    }
    true
}

/// Adds to a [`WaitTimes`] as all blocks do.
fn record_wait(record: u64, waited_ns: u64) {
    let now = global_nanoseconds();
    record_span(record, now - waited_ns, now);
    let word = |offset: usize| word64(record + offset as u64);
    word(offset_of!(WaitTimes, sum_ns)).fetch_add(waited_ns, Ordering::Relaxed);
    word(offset_of!(WaitTimes, longest_ns)).fetch_max(waited_ns, Ordering::Relaxed);
    word(offset_of!(WaitTimes, blocks)).fetch_add(1, Ordering::Relaxed);
}

fn record_span(record: u64, begin: u64, end: u64) {
    let word = |offset: usize| word64(record + offset as u64);
    word(offset_of!(WaitTimes, begin_inverted)).fetch_max(!begin, Ordering::Relaxed);
    word(offset_of!(WaitTimes, end)).fetch_max(end, Ordering::Relaxed);
}

fn load_keys<T: Element>(p: &ForwardParams, place: &Place, key_place: u32, to: [&mut Vec<f32>; 2]) {
    let KeySegment { map, slab, .. } = Array::at(p.segments).get((key_place >> 20) as usize);
    let map = map as usize;
    let kv_head = place.head as u64 / u64::from(p.group);
    let per_group = u64::from(p.heads_per_group[map]);
    let row = u64::from(key_place & 0xF_FFFF) * TILE as u64;
    let at = [row, kv_head % per_group, kv_head / per_group, u64::from(slab) + place.batch as u64];
    for (map, to) in [&p.k[map], &p.v[map]].into_iter().zip(to) {
        Rows::<T>::of(map, 128).load(at, to);
    }
}

/// Bands of a key tile of a mask.
pub(crate) fn columns(bands: u64, tile: usize) -> [ColumnBands; TILE] {
    let mut words = [[0; 4]; TILE];
    Array::at(bands).read(tile * TILE, &mut words);
    words.map(ColumnBands::from_words)
}

/// Scores of rows from `first` on, 128 columns each.
pub(crate) fn mask(scores: &mut [f32], columns: &[ColumnBands; TILE], first: usize, is_simple: bool) {
    let first = i32::try_from(first).expect("row numbers are below 2^31");
    for (row, scores) in (first..).zip(scores.chunks_mut(TILE)) {
        for (score, bands) in scores.iter_mut().zip(columns) {
            if bands.masks(row, is_simple) {
                *score = f32::NEG_INFINITY;
            }
        }
    }
}

/// O / sum, and LSE = maximum * scale + ln(sum). A row that saw nothing gives 0 and -inf, a poisoned one NaN.
fn write<T: Element>(p: &ForwardParams, place: &Place, mut rows: QueryRows, poisoned: bool) {
    let lse = Array::<f32>::at(p.lse);
    let first_lse = (place.batch * p.heads_q as usize + place.head) * p.seq_q as usize;
    for (row, o) in rows.o.chunks_mut(HEAD_DIM).enumerate() {
        let sum = rows.sum[row];
        let (factor, value) = if poisoned || sum.is_nan() {
            (f32::NAN, f32::NAN)
        } else if sum > 0.0 {
            (1.0 / sum, rows.greatest[row] * p.scale_log2 * LN_2 + sum.ln())
        } else {
            (0.0, f32::NEG_INFINITY)
        };
        o.iter_mut().for_each(|o| *o *= factor);
        if place.first_row() + row < p.seq_q as usize {
            lse.set(first_lse + place.first_row() + row, value);
        }
    }
    let at = [place.first_row() as u64, place.head as u64, place.batch as u64, 0];
    Rows::<T>::of(&p.o, 64).store(at, &rows.o);
}
