//! Every constructor against what its words say of one pair, for several batches, heads and lengths.
#![expect(
    clippy::unwrap_used,
    clippy::single_range_in_vec_init,
    reason = "a test may panic; one span is a list of one"
)]
mod mask_common;

use std::ops::Range;

use fm3_kernels::mask::{Documents, Eviction, GlobalWindow, MaskDims};
use fm3_kernels::{Error, FlashMask};
use mask_common::{Dense, Pair};

/// Lengths with more rows than keys, fewer, and equal.
const DIMS: [MaskDims; 5] = [
    MaskDims { batch: 2, heads: 1, seq_q: 120, seq_k: 120 },
    MaskDims { batch: 1, heads: 2, seq_q: 90, seq_k: 131 },
    MaskDims { batch: 2, heads: 2, seq_q: 131, seq_k: 90 },
    MaskDims { batch: 1, heads: 1, seq_q: 1, seq_k: 70 },
    MaskDims { batch: 1, heads: 1, seq_q: 70, seq_k: 1 },
];

/// The mask sees exactly the pairs that `sees(position of the row, pair)` allows, and survives a dense round
/// trip.
fn check(mask: &FlashMask, sees: impl Fn(i64, Pair) -> bool) {
    let dims = mask.dims();
    let shift = dims.seq_k as i64 - dims.seq_q as i64;
    let got = Dense::of_mask(mask);
    let expected = Dense::of(dims, |pair| sees(pair.row as i64 + shift, pair));
    if let Some(at) = (0..got.visible.len()).find(|at| got.visible[*at] != expected.visible[*at]) {
        let (row, col) = (at / dims.seq_k % dims.seq_q, at % dims.seq_k);
        panic!("row {row}, column {col} of {mask}: visible = {}", got.visible[at]);
    }
    assert!(mask.bounds().iter().all(|bound| usize::try_from(*bound).unwrap() <= dims.seq_q));
    let back = FlashMask::from_dense(dims, &got.visible).unwrap();
    assert!(Dense::of_mask(&back).visible == got.visible);
    assert!(back.columns().count() <= mask.columns().count());
}

#[test]
fn masks_of_positions() {
    for dims in DIMS {
        check(&FlashMask::full(dims).unwrap(), |_, _| true);
        check(&FlashMask::causal(dims).unwrap(), |p, at| at.col as i64 <= p);
        for window in [1, 2, 17, 119, 200, usize::MAX] {
            check(&FlashMask::sliding_window(dims, window).unwrap(), |p, at| {
                let ago = p - at.col as i64;
                ago >= 0 && (ago as u64) < window as u64
            });
        }
        for (global, left, right) in
            [(3, 10, 5), (0, 4, 0), (16, 0, 20), (200, 1, 1), (1, usize::MAX, usize::MAX)]
        {
            let window = GlobalWindow { global, left, right };
            check(&FlashMask::global_sliding_window(dims, window).unwrap(), |p, at| {
                let ago = p - at.col as i64;
                let near =
                    if ago >= 0 { ago as u64 <= left as u64 } else { ago.unsigned_abs() <= right as u64 };
                near || at.col < global || p < global as i64
            });
        }
        for prefix in [0, 1, dims.seq_k / 2, dims.seq_k] {
            let prefixes: Vec<usize> = (0..dims.batch).map(|batch| prefix / (batch + 1)).collect();
            check(&FlashMask::prefix_lm_causal(dims, &prefixes).unwrap(), |p, at| {
                at.col < prefixes[at.batch] || at.col as i64 <= p
            });
        }
    }
}

#[test]
fn qk_sparse_hides_a_span_from_itself() {
    for dims in DIMS {
        let lists: [Vec<Range<usize>>; 3] = [vec![], vec![5..20, 20..31, 60..70], vec![0..dims.seq_k]];
        for list in lists.into_iter().filter(|list| list.iter().all(|span| span.end <= dims.seq_k)) {
            let spans: Vec<_> =
                (0..dims.batch).map(|batch| if batch == 0 { list.clone() } else { vec![] }).collect();
            check(&FlashMask::qk_sparse(dims, &spans).unwrap(), |p, at| {
                let inside = |span: &Range<usize>| span.contains(&at.col) && (p as i128) < span.end as i128;
                at.col as i64 <= p && !spans[at.batch].iter().any(inside)
            });
        }
    }
}

#[test]
fn random_eviction_keeps_a_cache_of_constant_size() {
    for dims in DIMS {
        for start in [1, 7, 64, 1000] {
            let mask = FlashMask::random_eviction(dims, Eviction { start, seed: 3 }).unwrap();
            let dense = Dense::of_mask(&mask);
            for batch in 0..dims.batch {
                for row in 0..dims.seq_q {
                    let p = row as i64 + dims.seq_k as i64 - dims.seq_q as i64;
                    let seen =
                        (0..dims.seq_k).filter(|col| dense.sees(Pair { batch, head: 0, row, col: *col }));
                    // A row sees itself and, once the cache is full, all of the cache but the key that it
                    // evicts.
                    assert_eq!(
                        seen.count() as i64,
                        (p + 1).clamp(0, start as i64),
                        "row {row}, start {start}"
                    );
                }
            }
            check(&mask, |_, at| dense.sees(at));
        }
    }
    let eviction = Eviction { start: 30, seed: 9 };
    let bounds = FlashMask::random_eviction(DIMS[2], eviction).unwrap();
    let heads: Vec<&[i32]> = bounds.bounds().chunks(90).collect();
    assert!((1..4).all(|head| heads[head] != heads[0]), "each batch and head draws on its own");
    assert_eq!(bounds, FlashMask::random_eviction(DIMS[2], eviction).unwrap());
    assert_ne!(bounds, FlashMask::random_eviction(DIMS[2], Eviction { seed: 10, ..eviction }).unwrap());
}

/// Document number of each token, by walking.
fn numbers(documents: &Documents) -> Vec<Vec<usize>> {
    let of_lengths = |lengths: &[usize]| {
        let repeated = lengths.iter().enumerate().map(|(number, length)| vec![number; *length]);
        repeated.collect::<Vec<_>>().concat()
    };
    (0..documents.batch()).map(|batch| of_lengths(documents.lengths(batch))).collect()
}

#[test]
fn masks_of_documents() {
    let lists = [
        vec![vec![40, 1, 30, 49], vec![120]],
        vec![vec![1; 120], vec![60, 60]],
        vec![vec![119, 1], vec![1, 118, 1]],
    ];
    for lengths in lists {
        let dims = DIMS[0];
        let documents = Documents::new(lengths, 120).unwrap();
        let number = numbers(&documents);
        let same = |at: Pair| number[at.batch][at.row] == number[at.batch][at.col];
        check(&FlashMask::causal_document(dims, &documents).unwrap(), |_, at| at.col <= at.row && same(at));
        check(&FlashMask::document(dims, &documents).unwrap(), |_, at| same(at));
        check(&FlashMask::share_question(dims, &documents).unwrap(), |_, at| {
            at.col <= at.row && (same(at) || number[at.batch][at.col] == 0)
        });
        check(&FlashMask::causal_blockwise(dims, &documents).unwrap(), |_, at| {
            at.col <= at.row && (same(at) || number[at.batch][at.row] == number[at.batch][119])
        });
        for fraction in [0.0, 0.25, 1.0] {
            let prefixes = documents.prefixes(fraction);
            let mask = FlashMask::prefix_lm_document(dims, &documents, &prefixes).unwrap();
            check(&mask, |_, at| {
                let document = number[at.batch][at.col];
                let before: usize = documents.lengths(at.batch)[..document].iter().sum();
                same(at) && (at.col <= at.row || at.col - before < prefixes[at.batch][document])
            });
        }
    }
}

#[test]
fn cumulative_lengths_name_the_same_documents() {
    let dims = MaskDims { batch: 1, heads: 1, seq_q: 10, seq_k: 10 };
    let documents = Documents::new(vec![vec![3, 5, 2]], 10).unwrap();
    let cu = [0, 3, 8, 10];
    let causal = FlashMask::from_cu_seqlens(&cu, true).unwrap();
    assert_eq!(causal, FlashMask::causal_document(dims, &documents).unwrap());
    let whole = FlashMask::from_cu_seqlens(&cu, false).unwrap();
    assert_eq!(whole, FlashMask::document(dims, &documents).unwrap());
    let wrong = |cu: &[i32]| FlashMask::from_cu_seqlens(cu, true).unwrap_err();
    assert_eq!(wrong(&[]), Error::CuSeqlens { index: 0, value: 0 });
    assert_eq!(wrong(&[0]), Error::CuSeqlens { index: 1, value: 0 });
    assert_eq!(wrong(&[1, 4]), Error::CuSeqlens { index: 0, value: 1 });
    assert_eq!(wrong(&[0, 4, 4]), Error::CuSeqlens { index: 2, value: 4 });
    assert_eq!(wrong(&[0, 4, -1]), Error::CuSeqlens { index: 2, value: -1 });
}

/// Densities that FlashMask-3 benchmarks report for their documents, at 32 Ki tokens and above.
#[test]
fn densities_are_those_of_the_known_figures() {
    const D32: [usize; 16] =
        [1465, 1941, 1046, 3519, 509, 3614, 514, 1832, 618, 506, 339, 233, 9886, 2114, 2450, 2182];
    const D64: [usize; 16] =
        [1516, 1163, 804, 1071, 1378, 3153, 33782, 3293, 3361, 2397, 817, 1188, 1511, 6960, 2887, 255];
    const D128: [usize; 16] = [
        15454, 9049, 9773, 3342, 13062, 11743, 3210, 1517, 8818, 5090, 1725, 13217, 18877, 11751, 1576, 2868,
    ];
    let square = |seq| MaskDims { batch: 1, heads: 1, seq_q: seq, seq_k: seq };
    let documents = |lengths: [usize; 16], seq| Documents::new(vec![lengths.to_vec()], seq).unwrap();
    let (dims, docs) = (square(32768), documents(D32, 32768));
    let window = GlobalWindow { global: 16, left: 2048, right: 2048 };
    let figures = [
        (FlashMask::causal_document(dims, &docs), 0.06991),
        (FlashMask::causal_document(square(65536), &documents(D64, 65536)), 0.14525),
        (FlashMask::causal_document(square(131_072), &documents(D128, 131_072)), 0.04468),
        (FlashMask::sliding_window(dims, 4096), 0.11719),
        (FlashMask::document(dims, &docs), 0.13980),
        (FlashMask::global_sliding_window(dims, window), 0.12204),
        (FlashMask::prefix_lm_document(dims, &docs, &docs.prefixes(0.25)), 0.07427),
        (FlashMask::share_question(dims, &docs), 0.11262),
        (FlashMask::causal_blockwise(dims, &docs), 0.13207),
    ];
    for (mask, figure) in figures {
        let mask = mask.unwrap();
        assert!((mask.density() - figure).abs() <= 0.5e-5, "{figure} expected of {mask}");
    }
}
