//! Random raw masks of every form against the dense definition.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
mod mask_common;

use fm3_kernels::FlashMask;
use fm3_kernels::mask::{
    BlockClass, BlockEntry, BlockLists, BlockSize, ColumnAt, Columns, MaskDims, MaskHead, Rows, TileAt,
    classify,
};
use mask_common::{Dense, Pair};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const FORMS: [(Columns, bool); 4] =
    [(Columns::One, true), (Columns::Two, true), (Columns::Two, false), (Columns::Four, false)];

const SIZES: [BlockSize; 4] = [
    BlockSize { rows: 16, cols: 16 },
    BlockSize { rows: 13, cols: 7 },
    BlockSize { rows: 128, cols: 64 },
    BlockSize { rows: 1, cols: 5 },
];

/// Small problems give odd edges, large ones many tiles.
fn dims() -> impl Strategy<Value = MaskDims> {
    let lengths =
        prop_oneof![(1usize..12, 1usize..12), (150usize..400, 150usize..400), (1usize..5, 200usize..300)];
    (1usize..4, 1usize..4, lengths, any::<bool>()).prop_map(|(batch, heads, (long, short), swap)| {
        let (seq_q, seq_k) = if swap { (short, long) } else { (long, short) };
        MaskDims { batch, heads, seq_q, seq_k }
    })
}

/// Runs of columns share bounds, so that whole tiles are skipped or full; some columns jitter.
///
/// Each run draws from: two independent intervals (which may overlap, be empty or reach beyond s_q), two that
/// touch at one row and cover all, nothing masked, one interval alone.
fn random_bounds(dims: MaskDims, columns: Columns, seed: u64) -> Vec<i32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let sq = i32::try_from(dims.seq_q).unwrap();
    let mut bounds = Vec::new();
    for _ in 0..dims.batch * dims.heads {
        let mut column = 0;
        while column < dims.seq_k {
            let run = random.random_range(1..=40).min(dims.seq_k - column);
            let mut row = || random.random_range(0..=sq + sq / 4);
            let (r, s, t, u) = (row(), row(), row(), row());
            let base = match random.random_range(0..6) {
                0 => [r, s, t, u],
                1 => [r, sq + 3, 0, r],
                2 if columns == Columns::Two => [r, r, 0, 0],
                2 => [r, s, r.min(s), r.max(s)],
                3 if columns == Columns::Two => [sq, 0, 0, 0],
                3 => [sq, sq, 0, 0],
                4 => [r.min(s), r.max(s), s, s],
                _ => [0, r, r, i32::MAX],
            };
            let jitters = random.random_range(0..3) == 0;
            for _ in 0..run {
                for bound in &base[..columns.count()] {
                    let by = if jitters && random.random_range(0..4) == 0 {
                        random.random_range(-3..=3)
                    } else {
                        0
                    };
                    bounds.push(bound.saturating_add(by).max(0));
                }
            }
            column += run;
        }
    }
    bounds
}

fn random_mask(dims: MaskDims, form: usize, seed: u64) -> FlashMask {
    let (columns, causal) = FORMS[form];
    FlashMask::new(dims, columns, causal, random_bounds(dims, columns, seed)).unwrap()
}

fn all_heads(dims: MaskDims) -> impl Iterator<Item = MaskHead> {
    (0..dims.batch).flat_map(move |batch| (0..dims.heads).map(move |head| MaskHead { batch, head }))
}

/// Every block's class by counting pairs, as [row tile][key tile].
fn classes(
    dense: &Dense,
    at: MaskHead,
    cols: std::ops::Range<usize>,
    size: BlockSize,
) -> Vec<Vec<BlockClass>> {
    let MaskHead { batch, head } = at;
    let starts = (0..dense.dims.seq_q).step_by(size.rows);
    starts
        .map(|row| {
            let row_end = (row + size.rows).min(dense.dims.seq_q);
            let of_cols = cols.clone().step_by(size.cols).map(|col| {
                let last = Pair { batch, head, row: row_end, col: (col + size.cols).min(cols.end) };
                dense.class(Pair { batch, head, row, col }, last)
            });
            of_cols.collect()
        })
        .collect()
}

fn entries<'a>(classes: impl Iterator<Item = &'a BlockClass>) -> Vec<BlockEntry> {
    let numbered = classes.enumerate().filter(|(_, class)| **class != BlockClass::Skip);
    numbered.map(|(tile, class)| BlockEntry { tile: u32::try_from(tile).unwrap(), class: *class }).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn bands_and_density_say_what_the_definition_says(dims in dims(), form in 0usize..4, seed: u64) {
        let mask = random_mask(dims, form, seed);
        let dense = Dense::of_mask(&mask);
        for MaskHead { batch, head } in all_heads(dims) {
            for column in 0..dims.seq_k {
                let bands = mask.bands(ColumnAt { batch, head, column });
                for band in [bands.a, bands.b] {
                    prop_assert!(band.start <= band.end && band.end <= dims.seq_q, "{:?}", bands);
                }
                let sees = |row| dense.sees(Pair { batch, head, row, col: column });
                prop_assert!((0..dims.seq_q).all(|row| bands.masks(row) != sees(row)), "{:?}", bands);
                let all = Rows { start: 0, end: dims.seq_q };
                let visible: Vec<usize> = bands.visible(all).flat_map(|gap| gap.start..gap.end).collect();
                prop_assert!(visible.iter().copied().eq((0..dims.seq_q).filter(|row| sees(*row))));
            }
        }
        prop_assert_eq!(mask.visible_pairs(), dense.pairs());
        prop_assert_eq!(mask.density(), dense.pairs() as f64 / dense.visible.len() as f64);
    }

    #[test]
    fn blocks_are_classified_exactly_in_both_directions(
        dims in dims(), form in 0usize..4, seed: u64, size in 0usize..4, cut in (0usize..500, 0usize..500),
    ) {
        let (mask, size) = (random_mask(dims, form, seed), SIZES[size]);
        let dense = Dense::of_mask(&mask);
        let (start, end) = (cut.0 % (dims.seq_k + 1), cut.1 % (dims.seq_k + 1));
        let part = start.min(end)..start.max(end);
        for cols in [0..dims.seq_k, part] {
            let lists = BlockLists::build(&mask, cols.clone(), size).unwrap();
            prop_assert_eq!((lists.size(), lists.cols()), (size, cols.clone()));
            for MaskHead { batch, head } in all_heads(dims) {
                let classes = classes(&dense, MaskHead { batch, head }, cols.clone(), size);
                prop_assert_eq!(lists.row_tiles(), classes.len());
                prop_assert_eq!(lists.key_tiles(), classes[0].len());
                for (tile, of_row) in classes.iter().enumerate() {
                    let start = tile * size.rows;
                    let rows = Rows { start, end: (start + size.rows).min(dims.seq_q) };
                    for (key_tile, class) in of_row.iter().enumerate() {
                        let start = cols.start + key_tile * size.cols;
                        let keys = start..(start + size.cols).min(cols.end);
                        let bands = mask.bands_in(MaskHead { batch, head }, keys);
                        prop_assert_eq!(classify(bands, rows), *class);
                    }
                    let listed = lists.for_rows(TileAt { batch, head, tile });
                    prop_assert_eq!(listed, &entries(of_row.iter())[..]);
                }
                for tile in 0..lists.key_tiles() {
                    let listed = lists.for_keys(TileAt { batch, head, tile });
                    prop_assert_eq!(listed, &entries(classes.iter().map(|row| &row[tile]))[..]);
                }
            }
        }
    }

    #[test]
    fn dense_masks_come_back_in_a_form_no_larger(dims in dims(), form in 0usize..4, seed: u64) {
        let mask = random_mask(dims, form, seed);
        let dense = Dense::of_mask(&mask);
        let back = FlashMask::from_dense(dims, &dense.visible).unwrap();
        prop_assert!(Dense::of_mask(&back).visible == dense.visible);
        prop_assert!(back.columns().count() <= mask.columns().count());
    }

    #[test]
    fn a_column_of_three_intervals_is_named(
        dims in dims().prop_filter("3 runs need 5 rows", |dims| dims.seq_q >= 5),
        form in 0usize..4,
        seed: u64,
    ) {
        let mut dense = Dense::of_mask(&random_mask(dims, form, seed));
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let (batch, head) = (random.random_range(0..dims.batch), random.random_range(0..dims.heads));
        let column = random.random_range(0..dims.seq_k);
        let first = (batch * dims.heads + head) * dims.seq_q;
        for row in 0..dims.seq_q {
            dense.visible[(first + row) * dims.seq_k + column] = ![0, 2, 4].contains(&row);
        }
        let err = FlashMask::from_dense(dims, &dense.visible).unwrap_err();
        let expected = fm3_kernels::Error::NotExpressible { batch, head, column, intervals: 3 };
        prop_assert_eq!(err, expected);
    }
}

/// Neither band alone covers any block: rows below 24 are masked by UTE, the rest by LTS, the seam is inside
/// a tile.
#[test]
fn blocks_covered_by_the_union_alone_are_skipped() {
    let dims = MaskDims { batch: 1, heads: 1, seq_q: 48, seq_k: 32 };
    let bounds = (0..32).flat_map(|column| if column < 16 { [24, 24] } else { [24, 23] }).collect();
    let mask = FlashMask::new(dims, Columns::Two, false, bounds).unwrap();
    let lists = BlockLists::build(&mask, 0..32, BlockSize { rows: 16, cols: 16 }).unwrap();
    assert!(lists.for_keys(TileAt { batch: 0, head: 0, tile: 0 }).is_empty());
    let seam = BlockEntry { tile: 1, class: BlockClass::Partial };
    assert_eq!(lists.for_keys(TileAt { batch: 0, head: 0, tile: 1 }), [seam]);
}

/// The seam between the bands moves from column to column: no pair of extremes shows the block as covered.
#[test]
fn a_slanted_seam_is_skipped_too() {
    let dims = MaskDims { batch: 1, heads: 1, seq_q: 64, seq_k: 16 };
    let bounds = (0..16).flat_map(|column| [20 + column, 64, 0, 20 + column]).collect();
    let mask = FlashMask::new(dims, Columns::Four, false, bounds).unwrap();
    let lists = BlockLists::build(&mask, 0..16, BlockSize { rows: 64, cols: 16 }).unwrap();
    assert!(lists.for_keys(TileAt { batch: 0, head: 0, tile: 0 }).is_empty());
    assert_eq!(mask.visible_pairs(), 0);
}
