//! The reference itself: its mask against hand-written pairs, its gradients against finite differences, samples
//! against the whole.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]
mod engine_support;

use engine_support::{Case, masks, rel_err};
use fm3_kernels::mask::{Columns, MaskDims};
use fm3_kernels::reference::{HeadAt, Pair, Saved, visible};
use fm3_kernels::{Dims, FlashMask, View4};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Rows of the picture are query rows; `#` is visible.
fn picture(columns: Columns, causal: bool, seq_q: usize, bounds: Vec<i32>) -> Vec<String> {
    let seq_k = bounds.len() / columns.count();
    let mask =
        FlashMask::new(MaskDims { batch: 1, heads: 1, seq_q, seq_k }, columns, causal, bounds).unwrap();
    let sees = |row, column| visible(&mask, 1, Pair { batch: 0, head: 0, row, column });
    let line = |row| (0..seq_k).map(|column| if sees(row, column) { '#' } else { '.' }).collect();
    (0..seq_q).map(line).collect()
}

#[test]
fn every_form_of_mask_means_what_its_definition_says() {
    let lts = picture(Columns::One, true, 4, vec![4, 2, 3, 0]);
    assert_eq!(lts, ["#...", "##..", "#.#.", "#..."]);
    let lts_lte = picture(Columns::Two, true, 4, vec![1, 3, 4, 4, 3, 2, 0, 9]);
    assert_eq!(lts_lte, ["#...", ".#..", ".##.", "###."]);
    let lts_ute = picture(Columns::Two, false, 3, vec![2, 0, 9, 1, 0, 0, 3, 3]);
    assert_eq!(lts_ute, ["#...", "##..", ".#.."]);
    let four = picture(Columns::Four, false, 3, vec![0, 1, 2, 3, 1, 1, 0, 2, 2, 1, 3, 0]);
    assert_eq!(four, ["..#", "#.#", ".##"]);
}

#[test]
fn causality_is_aligned_bottom_right_and_heads_share_mask_heads() {
    assert_eq!(picture(Columns::One, true, 2, vec![9; 4]), ["###.", "####"]);
    assert_eq!(picture(Columns::One, true, 4, vec![9; 2]), ["..", "..", "#.", "##"]);
    let dims = MaskDims { batch: 2, heads: 2, seq_q: 1, seq_k: 1 };
    let mask = FlashMask::new(dims, Columns::Two, false, vec![0, 0, 1, 0, 1, 0, 0, 0]).unwrap();
    let sees = |batch| (0..4).map(move |head| Pair { batch, head, row: 0, column: 0 });
    let seen = |batch| sees(batch).map(|pair| visible(&mask, 4, pair)).collect::<Vec<_>>();
    assert_eq!((seen(0), seen(1)), (vec![false, false, true, true], vec![true, true, false, false]));
}

fn case(seed: u64) -> Case {
    let dims = Dims { batch: 2, heads_q: 4, heads_kv: 2, seq_q: 13, seq_k: 17, head_dim: 8 };
    let mask_dims = MaskDims { batch: 2, heads: 2, seq_q: 13, seq_k: 17 };
    let mask = masks::raw(mask_dims, 3, &mut ChaCha8Rng::seed_from_u64(seed));
    Case { dims, mask, scale: 0.4, seed }
}

#[test]
fn gradients_are_those_of_finite_differences() {
    for seed in 0..3 {
        let case = case(seed);
        let mut tensors = case.tensors::<f32>();
        let dout = tensors.dout.clone();
        let exact = case.exact(&tensors);
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for (which, gradient) in [&exact.dq, &exact.dk, &exact.dv].into_iter().enumerate() {
            let (mut measured, mut expected) = (Vec::new(), Vec::new());
            for _ in 0..40 {
                let at = rng.random_range(0..gradient.len());
                // The loss is dO . O. A step of 2^-8 leaves an error of its square, about 1e-5.
                let mut loss = |step: f32| -> (f64, f64) {
                    let tensor =
                        [&mut tensors.q, &mut tensors.k, &mut tensors.v].into_iter().nth(which).unwrap();
                    let old = tensor[at];
                    tensor[at] += step;
                    let new = f64::from(tensor[at]);
                    let o = case.attention(&tensors).forward().o;
                    [&mut tensors.q, &mut tensors.k, &mut tensors.v].into_iter().nth(which).unwrap()[at] =
                        old;
                    (o.iter().zip(&dout).map(|(o, dout)| o * f64::from(*dout)).sum(), new)
                };
                let (above, below) = (loss(1.0 / 256.0), loss(-1.0 / 256.0));
                measured.push((above.0 - below.0) / (above.1 - below.1));
                expected.push(gradient[at]);
            }
            let error = rel_err(&measured, &expected);
            assert!(error < 1e-4, "{error:e}, tensor {which}, {case:?}");
        }
    }
}

#[test]
fn samples_are_rows_of_the_whole() {
    let case = case(9);
    let tensors = case.tensors::<f32>();
    let (exact, written) = (case.exact(&tensors), case.engine(&tensors));
    let attention = case.attention(&tensors);
    let dout = View4::bshd(&tensors.dout, case.queries()).unwrap();
    let o = View4::bshd(&written.o, case.queries()).unwrap();
    let (rows, columns) = ([0, 7, 12], [16, 3, 5]);
    for (batch, head) in [(0, 0), (1, 3), (0, 2)] {
        let at = HeadAt { batch, head };
        let outputs = attention.forward_rows(at, &rows);
        let gradients = attention.query_gradients(at, &rows, &dout);
        for ((row, output), dq) in rows.iter().zip(outputs).zip(gradients) {
            let place = ((batch * 13 + row) * 4 + head) * 8;
            assert_eq!(output.o, &exact.o[place..place + 8]);
            assert_eq!(output.lse, exact.lse[(batch * 4 + head) * 13 + row]);
            assert_eq!(dq, &exact.dq[place..place + 8]);
        }
    }
    for (batch, head) in [(0, 1), (1, 0)] {
        let saved = Saved { o, lse: &written.lse, dout };
        let gradients = attention.column_gradients(HeadAt { batch, head }, &columns, &saved);
        for (column, gradient) in columns.iter().zip(gradients) {
            let place = ((batch * 17 + column) * 2 + head) * 8;
            for (got, want) in [(gradient.dk, &exact.dk), (gradient.dv, &exact.dv)] {
                let difference = engine_support::lse_err(&got, &want[place..place + 8]);
                // LSE and O came from the f32 engine.
                assert!(difference < 1e-5, "{difference:e}");
            }
        }
    }
}
