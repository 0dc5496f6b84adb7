//! The small kernels around the gradients: prepare, order, finish, sum.
use std::f32::consts::LOG2_E;
use std::sync::atomic::Ordering;

use fm3_kernels::Element;
use fm3_kernels::params::{
    BackwardFinishParams, BackwardOrderParams, BackwardPrepareParams, BackwardSumParams,
};

use super::{STEP_ELEMENTS, registers};
use crate::blocks::Shape;
use crate::memory::{Array, index, word32};
use crate::tile::HEAD_DIM;

/// Rows of a block of the preparing pass: half a warp each.
const PREPARED_ROWS: u32 = 16;

/// What the gradients need of each row: delta, LSE in units of log2, and dQ sums of 0. +inf instead of LSE makes P zero:
/// for rows that see nothing, and for rows past the end.
pub(crate) fn prepare<T: Element>(p: &BackwardPrepareParams, shape: Shape) {
    shape.each(|[x, head, batch]| {
        for row in (x * PREPARED_ROWS..(x + 1) * PREPARED_ROWS).filter(|row| *row < p.rows_padded) {
            let query_head = batch as usize * p.heads_q as usize + head as usize;
            let (mut lse2, mut delta) = (f32::INFINITY, 0.0);
            if row < p.seq_q {
                let lse: f32 = Array::at(p.lse).get(query_head * p.seq_q as usize + row as usize);
                if lse != f32::NEG_INFINITY {
                    let [o, dout] =
                        [(p.o, p.o_strides), (p.dout, p.dout_strides)].map(|(address, strides)| {
                            read_row::<T>(address, offset(strides, [batch, row, head]))
                        });
                    delta = o.iter().zip(&dout).map(|(o, dout)| o * dout).sum();
                    lse2 = lse * LOG2_E;
                }
            }
            let at = query_head * p.rows_padded as usize + row as usize;
            Array::at(p.lse2).set(at, lse2);
            Array::at(p.delta).set(at, delta);
            Array::at(p.dq_sums).write(at * HEAD_DIM, &[0_f32; HEAD_DIM]);
        }
    });
}

/// The key tiles of a launch, in the order in which they stand among all. One block per mask head.
pub(crate) fn order(p: &BackwardOrderParams, shape: Shape) {
    shape.each(|[mask, ..]| {
        let all = mask as usize * p.key_tiles as usize;
        let ranked = (0..p.key_tiles as usize).map(|rank| Array::<u32>::at(p.ranked_t).get(all + rank));
        let mine = ranked.filter(|tile| (p.first_tile..p.first_tile + p.part_tiles).contains(tile));
        for (at, tile) in (0_u32..).zip(mine) {
            Array::at(p.order).set(mask as usize * p.part_tiles as usize + at as usize, tile);
            if p.positions != 0 {
                Array::at(p.positions).set(all + tile as usize, p.base + at + 1);
            }
        }
    });
}

/// dQ = scale * sums, 64 rows of one head per block.
pub(crate) fn finish<T: Element>(p: &BackwardFinishParams, shape: Shape) {
    write_query_grads::<T>(p, shape, p.scale);
}

/// As `finish`; NaN when some part is not complete.
pub(crate) fn finish_part<T: Element>(p: &BackwardFinishParams, shape: Shape) {
    let is_complete = word32(p.poisoned).load(Ordering::Relaxed) == 0;
    write_query_grads::<T>(p, shape, if is_complete { p.scale } else { f32::NAN });
}

fn write_query_grads<T: Element>(p: &BackwardFinishParams, shape: Shape, scale: f32) {
    shape.each(|[x, head, batch]| {
        let block = (batch as usize * p.heads_q as usize + head as usize) * p.blocks as usize + x as usize;
        let mut sums = [0.0; STEP_ELEMENTS];
        Array::<f32>::at(p.dq_sums).read(block * STEP_ELEMENTS, &mut sums);
        let mut dq = [T::from_f32(0.0); STEP_ELEMENTS];
        registers().for_each(|(at, place)| dq[at] = T::from_f32(sums[place] * scale));
        let first = x * 64;
        for (row, dq) in (first..p.seq_q.min(first + 64)).zip(dq.chunks(HEAD_DIM)) {
            Array::at(p.dq).write(offset(p.dq_strides, [batch, row, head]), dq);
        }
    });
}

/// dK and dV of the parts of KV heads, added in their order; 64 rows of one KV head per block.
pub(crate) fn sum_parts<Out: Element>(p: &BackwardSumParams, shape: Shape) {
    shape.each(|[x, head, batch]| {
        let slab_head = batch as usize * p.heads_kv as usize + head as usize;
        let (tile, half) = (x as usize / 2, x as usize % 2);
        for (from, to, strides) in [(p.dk_sums, p.dk, p.dk_strides), (p.dv_sums, p.dv, p.dv_strides)] {
            let mut sums = [0.0; STEP_ELEMENTS];
            for part in 0..p.split as usize {
                let tile = (slab_head * p.split as usize + part) * p.key_tiles as usize + tile;
                let mut more = [0.0; STEP_ELEMENTS];
                Array::<f32>::at(from).read((2 * tile + half) * STEP_ELEMENTS, &mut more);
                sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            }
            let mut rows = [Out::from_f32(0.0); STEP_ELEMENTS];
            registers().for_each(|(at, place)| rows[at] = Out::from_f32(sums[place]));
            let first = x * 64;
            for (row, values) in (first..p.seq_k.min(first + 64)).zip(rows.chunks(HEAD_DIM)) {
                Array::at(to).write(offset(strides, [batch, row, head]), values);
            }
        }
    });
}

/// Element at which a row starts; strides are of batch, row, head.
fn offset(strides: [u64; 3], at: [u32; 3]) -> usize {
    index(strides.iter().zip(at).map(|(stride, at)| stride * u64::from(at)).sum())
}

fn read_row<T: Element>(address: u64, offset: usize) -> [f32; HEAD_DIM] {
    let mut row = [T::from_f32(0.0); HEAD_DIM];
    Array::at(address).read(offset, &mut row);
    row.map(T::to_f32)
}
