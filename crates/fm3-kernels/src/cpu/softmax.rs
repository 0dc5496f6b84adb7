//! Row-wise arithmetic of attention on one tile of scores, written so that the compiler vectorises it.
//!
//! Scores are in units of log2: the caller folds scale * log2(e) into Q, so that 2^score is what softmax needs.
//! `pulp` compiles each loop for the best instruction set that the processor has.
use pulp::Arch;

/// Independent partial results of a reduction over a row; a fixed number, so that sums have one order everywhere.
const LANES: usize = 16;

/// Below this 2^x is taken as 0: the result would leave the normal f32 range.
const SMALLEST_EXPONENT: f32 = -125.0;

/// Coefficients of x^0 .. x^6 of the polynomial nearest to 2^x on [-1/2, 1/2] in relative error (1.9e-9, by the
/// Remez exchange; in f32 the second is ln 2). With all roundings [`exp2`] is within 1.5e-7 of the truth.
const EXP2: [f32; 7] = [
    1.0,
    std::f32::consts::LN_2,
    0.240_226_47,
    0.055_503_29,
    0.009_618_489,
    0.001_339_993_1,
    0.000_153_458_17,
];

/// 2^x: exactly 0 below [`SMALLEST_EXPONENT`] (so also for -inf), NaN for NaN; x above 127 counts as 127.
///
/// x = n + f with n the nearest integer: 2^f from the polynomial, n added to the exponent bits.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    // Adding 1.5 * 2^23 leaves no fraction bits: the sum holds n in its low bits.
    const TO_INTEGER: f32 = 12_582_912.0;
    let clamped = if x > 127.0 { 127.0 } else { x };
    let shifted = clamped + TO_INTEGER;
    let f = clamped - (shifted - TO_INTEGER);
    let [c0, c1, c2, c3, c4, c5, c6] = EXP2;
    let polynomial = ((((((c6 * f) + c5) * f + c4) * f + c3) * f + c2) * f + c1) * f + c0;
    // n = 127 would overflow the exponent for f < 0 only through a carry that cannot happen: 2^f < 1 borrows one.
    let power = f32::from_bits(polynomial.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < SMALLEST_EXPONENT { 0.0 } else { power }
}

#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn row_max(row: &[f32]) -> f32 {
    let (blocks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *lane = larger(*value, *lane);
        }
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, value| larger(*value, max))
}

/// Replaces a row by 2^(row - shift) and returns its sum.
#[inline(always)]
fn exponentiate(row: &mut [f32], shift: f32) -> f32 {
    let (blocks, rest) = row.as_chunks_mut::<LANES>();
    let mut lanes = [0.0; LANES];
    for block in blocks {
        for (lane, value) in lanes.iter_mut().zip(block) {
            *value = exp2(*value - shift);
            *lane += *value;
        }
    }
    let mut sum = lanes.iter().sum();
    for value in rest {
        *value = exp2(*value - shift);
        sum += *value;
    }
    sum
}

/// What the online softmax keeps for some query rows.
pub(super) struct Running<'a> {
    /// Unnormalised O, dense [rows, d].
    pub(super) o: &'a mut [f32],
    /// Largest score so far, log2 units; -inf before the first.
    pub(super) max: &'a mut [f32],
    /// Sum of 2^(score - max) so far.
    pub(super) sum: &'a mut [f32],
}

/// One step of the online softmax: `scores` [rows, cols] become P relative to the new row maxima, and what was
/// accumulated is rescaled to them.
///
/// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018, algorithm 3.
pub(super) fn online_step(running: &mut Running<'_>, scores: &mut [f32]) {
    let rows = running.max.len();
    let (cols, head_dim) = (scores.len() / rows, running.o.len() / rows);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let state = running.max.iter_mut().zip(running.sum.iter_mut());
            let tiles = scores.chunks_exact_mut(cols).zip(running.o.chunks_exact_mut(head_dim));
            for ((max, sum), (row, o)) in state.zip(tiles) {
                let new = larger(row_max(row), *max);
                // A row that has seen nothing: any finite shift turns its -inf scores to 0.
                let shift = if new == f32::NEG_INFINITY { 0.0 } else { new };
                let factor = exp2(*max - shift);
                *sum = *sum * factor + exponentiate(row, shift);
                if *max < new {
                    o.iter_mut().for_each(|value| *value *= factor);
                }
                *max = new;
            }
        },
    );
}

/// P of the backward pass: `scores` [rows, cols] become 2^(score - lse), with one LSE (log2 units) a row.
///
/// A row with LSE = +inf becomes 0: that is how the caller marks a fully masked row.
pub(super) fn probabilities(scores: &mut [f32], lse: &[f32]) {
    let cols = scores.len() / lse.len();
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (row, lse) in scores.chunks_exact_mut(cols).zip(lse) {
                row.iter_mut().for_each(|score| *score = exp2(*score - lse));
            }
        },
    );
}

/// `dp` [rows, cols] becomes dS = P (dP - delta), with one delta a row.
pub(super) fn score_gradients(dp: &mut [f32], p: &[f32], delta: &[f32]) {
    let cols = p.len() / delta.len();
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let rows = dp.chunks_exact_mut(cols).zip(p.chunks_exact(cols));
            for ((dp, p), delta) in rows.zip(delta) {
                dp.iter_mut().zip(p).for_each(|(dp, p)| *dp = p * (*dp - delta));
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp2_is_within_its_stated_error_and_exact_at_its_edges() {
        let steps = 2_000_000u32;
        let xs = (0..=steps).map(|k| -125.0 + 252.0 * (f64::from(k) / f64::from(steps)));
        #[expect(clippy::cast_possible_truncation, reason = "any nearby f32 serves")]
        let error = |x: f64| {
            let x = x as f32;
            (f64::from(exp2(x)) / f64::from(x).exp2() - 1.0).abs()
        };
        let worst = xs.map(error).fold(0.0, f64::max);
        assert!(worst < 1.5e-7, "{worst:e}");
        assert_eq!(exp2(0.0), 1.0);
        assert_eq!(exp2(-3.0), 0.125);
        assert_eq!(exp2(-125.1), 0.0);
        assert_eq!(exp2(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp2(f32::INFINITY), 127f32.exp2());
        assert!(exp2(f32::NAN).is_nan());
    }

    #[test]
    fn a_row_that_sees_nothing_keeps_its_state_and_never_turns_nan() {
        let (mut o, mut max, mut sum) = ([0.0; 8], [f32::NEG_INFINITY], [0.0]);
        let mut scores = [f32::NEG_INFINITY; 5];
        online_step(&mut Running { o: &mut o, max: &mut max, sum: &mut sum }, &mut scores);
        assert_eq!((scores, max, sum), ([0.0; 5], [f32::NEG_INFINITY], [0.0]));
        let (mut o, mut max, mut sum) = ([2.0; 8], [1.0], [4.0]);
        let mut scores = [3.0, f32::NEG_INFINITY, 2.0];
        online_step(&mut Running { o: &mut o, max: &mut max, sum: &mut sum }, &mut scores);
        assert_eq!((scores, max, sum, o), ([1.0, 0.0, 0.5], [3.0], [2.5], [0.5; 8]));
    }
}
