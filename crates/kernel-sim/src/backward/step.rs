//! One step: 64 query rows of a head against a key tile (Dao, "FlashAttention-2", algorithm 2).
use fm3_kernels::Element;
use fm3_kernels::params::BackwardParams;

use super::place::{KeyPlace, Step};
use super::{STEP, STEP_ELEMENTS};
use crate::forward::{SIMPLE, columns, mask};
use crate::memory::Array;
use crate::tensor::Rows;
use crate::tile::{Matrix, TILE, add_product, tile};

/// K, V and the gradients of a key tile.
pub(super) struct KeyTile {
    pub(super) k: Vec<f32>,
    pub(super) v: Vec<f32>,
    /// Without the scale.
    pub(super) dk: Vec<f32>,
    pub(super) dv: Vec<f32>,
}

impl KeyTile {
    pub(super) fn new() -> Self {
        let [k, v, dk, dv] = [(); 4].map(|()| tile());
        Self { k, v, dk, dv }
    }

    /// Adds the step to dK and dV; dQ without the scale is returned. P and dS are rounded to T before products.
    pub(super) fn step<T: Element>(&mut self, p: &BackwardParams, place: &KeyPlace, step: Step) -> Vec<f32> {
        let rows = load::<T>(p, place, step);
        let mut weights = product(&rows.q, &self.k);
        if step.class != 0 {
            let tile = place.mask(p, step.member) * p.key_tiles as usize + place.key_tile;
            mask(&mut weights, &columns(p.bands, tile), step.block * STEP, step.class == SIMPLE);
        }
        for (weights, lse2) in weights.chunks_mut(TILE).zip(rows.lse2) {
            let weight = |score: f32| T::from_f32((score * p.scale_log2 - lse2).exp2()).to_f32();
            weights.iter_mut().for_each(|score| *score = weight(*score));
        }
        add_product(&mut self.dv, Matrix::columns(&weights), Matrix::rows(&rows.dout));
        let mut ds = product(&rows.dout, &self.v);
        for ((ds, weights), delta) in ds.chunks_mut(TILE).zip(weights.chunks(TILE)).zip(rows.delta) {
            ds.iter_mut().zip(weights).for_each(|(ds, p)| *ds = T::from_f32(p * (*ds - delta)).to_f32());
        }
        add_product(&mut self.dk, Matrix::columns(&ds), Matrix::rows(&rows.q));
        let mut dq = vec![0.0; STEP_ELEMENTS];
        add_product(&mut dq, Matrix::rows(&ds), Matrix::rows(&self.k));
        dq
    }
}

/// What belongs to the 64 rows.
struct QueryRows {
    q: Vec<f32>,
    dout: Vec<f32>,
    lse2: [f32; STEP],
    delta: [f32; STEP],
}

fn load<T: Element>(p: &BackwardParams, place: &KeyPlace, step: Step) -> QueryRows {
    let head = place.kv_head * p.group as usize + step.member;
    let at = [(step.block * STEP) as u64, head as u64, place.batch as u64, 0];
    let (mut q, mut dout) = (vec![0.0; STEP_ELEMENTS], vec![0.0; STEP_ELEMENTS]);
    Rows::<T>::of(&p.q, 64).load(at, &mut q);
    Rows::<T>::of(&p.dout, 64).load(at, &mut dout);
    let query_head = place.batch * p.heads_q as usize + head;
    let first = query_head * p.row_tiles as usize * TILE + step.block * STEP;
    let (mut lse2, mut delta) = ([0.0; STEP], [0.0; STEP]);
    Array::at(p.lse2).read(first, &mut lse2);
    Array::at(p.delta).read(first, &mut delta);
    QueryRows { q, dout, lse2, delta }
}

/// Rows of `a` with rows of `b`.
fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
    let mut to = vec![0.0; STEP_ELEMENTS];
    add_product(&mut to, Matrix::rows(a), Matrix::columns(b));
    to
}
