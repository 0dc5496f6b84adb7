//! Tables of a mask against the dense definition, and against block lists.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
mod mask_common;

use fm3_kernels::FlashMask;
use fm3_kernels::mask::{
    BlockClass, BlockLists, BlockSize, Columns, FULL, GENERAL, KeySegments, ListAt, MaskDims, MaskTables,
    SIMPLE, TileAt, TileLists,
};
use mask_common::{Dense, Pair};
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const TILE: usize = 128;

/// Segment lengths around tile edges, and query lengths likewise.
fn problem() -> impl Strategy<Value = (Vec<usize>, usize, usize, usize)> {
    let length = || prop_oneof![1usize..4, 125usize..132, 254usize..260, 1usize..400];
    (proptest::collection::vec(length(), 1..5), length(), 1usize..3, 1usize..3)
}

/// Bounds that change every few columns, every 200 or so, or hardly: general, simple, full and skipped blocks.
fn random_mask(dims: MaskDims, seed: u64) -> FlashMask {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let forms = [(Columns::One, true), (Columns::Two, true), (Columns::Two, false), (Columns::Four, false)];
    let (columns, causal) = forms[random.random_range(0..forms.len())];
    let run = [1, 40, 200, 1000][random.random_range(0..4)];
    let limit = i32::try_from(dims.seq_q + dims.seq_q / 4).unwrap();
    let edges = [0, 1, 127, 128, 129, 256, limit, i32::MAX];
    let mut bounds: Vec<i32> = Vec::new();
    let mut last = Vec::new();
    for column in 0..dims.batch * dims.heads * dims.seq_k {
        if column % run == 0 {
            let mut bound = || match random.random_range(0..3) {
                0 => edges[random.random_range(0..edges.len())],
                _ => random.random_range(0..=limit),
            };
            last = (0..columns.count()).map(|_| bound()).collect();
        }
        bounds.extend(&last);
    }
    FlashMask::new(dims, columns, causal, bounds).unwrap()
}

/// Rows that the stored bands mask, as the kernels compare.
fn stored_masks([a_start, b_end, a_end, b_start]: [i32; 4], row: usize) -> bool {
    let row = i32::try_from(row).unwrap();
    (a_start <= row && row < a_end) || (b_start <= row && row < b_end)
}

/// The columns of a key tile: `None` behind the end of its segment.
fn columns_of(segments: &KeySegments, tile: usize) -> Vec<Option<usize>> {
    let mut tiles = Vec::new();
    let mut column = 0;
    for rows in segments.rows() {
        for start in (0..*rows).step_by(TILE) {
            tiles.push((0..TILE).map(|i| (start + i < *rows).then_some(column + start + i)).collect());
        }
        column += rows;
    }
    tiles.swap_remove(tile)
}

/// The class of a block by looking at every pair; none when it is skipped.
fn class_of(dense: &Dense, at: Pair, rows: std::ops::Range<usize>, columns: &[Option<usize>]) -> Option<u32> {
    let sees = |row, column: &Option<usize>| column.is_some_and(|col| dense.sees(Pair { row, col, ..at }));
    let seen = rows.clone().map(|row| columns.iter().filter(|column| sees(row, column)).count()).sum();
    match seen {
        0_usize => None,
        seen if seen == rows.len() * TILE => Some(FULL),
        _ => Some(SIMPLE),
    }
}

/// Half octaves of work; none comes last.
fn grade(work: u32) -> f64 {
    (2.0 * f64::from(work).log2()).floor()
}

/// `rate`: which tiles come first.
fn check_lists(
    lists: &TileLists,
    head: usize,
    classes: &[Vec<Option<u32>>],
    rate: fn(u32) -> f64,
) -> Result<(), TestCaseError> {
    for (tile, classes) in classes.iter().enumerate() {
        let listed = lists.list(ListAt { head, tile });
        let expected: Vec<(u32, bool)> = classes
            .iter()
            .zip(0..)
            .filter_map(|(class, other)| class.map(|class| (other, class == FULL)))
            .collect();
        let got: Vec<(u32, bool)> = listed.iter().map(|entry| (entry >> 2, entry & 3 == FULL)).collect();
        prop_assert_eq!(&got, &expected);
        let start = (head * lists.lists + tile) * lists.others;
        prop_assert!(lists.entries[start..start + lists.others][got.len()..].iter().all(|w| *w == u32::MAX));
        let full = u32::try_from(got.iter().filter(|(_, full)| *full).count()).unwrap();
        let partial = u32::try_from(got.len()).unwrap() - full;
        prop_assert_eq!(lists.work[head * lists.lists + tile], 2 * full + 3 * partial);
    }
    let of_head = head * lists.lists..(head + 1) * lists.lists;
    let (work, ranked) = (&lists.work[of_head.clone()], &lists.ranked[of_head]);
    let mut all = ranked.to_vec();
    all.sort_unstable();
    prop_assert!(all.into_iter().eq(0..u32::try_from(lists.lists).unwrap()));
    for pair in ranked.windows(2) {
        let of = |tile: u32| rate(work[tile as usize]);
        prop_assert!(of(pair[0]) > of(pair[1]) || (of(pair[0]) == of(pair[1]) && pair[0] < pair[1]));
    }
    Ok(())
}

/// The word order of bands: whoever reads one comparison of each band must be right where the class is simple.
fn check_classes(tables: &MaskTables, head: usize) -> Result<(), TestCaseError> {
    let sq = tables.dims.seq_q;
    for tile in 0..tables.row_tiles() {
        let rows = tile * TILE..((tile + 1) * TILE).min(sq);
        for entry in tables.by_rows.list(ListAt { head, tile }) {
            let first = (head * tables.segments.key_tiles() + (entry >> 2) as usize) * TILE;
            let bands = &tables.bands[first..first + TILE];
            let simple = bands.iter().all(|words| {
                let [a_start, b_end, ..] = *words;
                rows.clone().all(|row| {
                    let i = i32::try_from(row).unwrap();
                    stored_masks(*words, row) == (i >= a_start || i < b_end)
                })
            });
            match entry & 3 {
                // A general block may happen to be right by one comparison: bands that end inside the other.
                SIMPLE => prop_assert!(simple),
                GENERAL => {}
                class => prop_assert_eq!(class, FULL),
            }
            let open = |[a_start, b_end, a_end, b_start]: &[i32; 4]| {
                let (r0, r1) = (i32::try_from(rows.start).unwrap(), i32::try_from(rows.end).unwrap());
                (*a_end >= r1 || *a_start >= r1) && (*b_start <= r0 || *b_end <= r0)
            };
            prop_assert_eq!(entry & 3 == GENERAL, entry & 3 != FULL && !bands.iter().all(open));
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn tables_say_what_the_dense_mask_says((rows, seq_q, batch, heads) in problem(), seed: u64) {
        let segments = KeySegments::new(rows).unwrap();
        let dims = MaskDims { batch, heads, seq_q, seq_k: segments.seq_k() };
        let mask = random_mask(dims, seed);
        let dense = Dense::of_mask(&mask);
        let tables = MaskTables::build(&mask, &segments).unwrap();
        let key_tiles = segments.key_tiles();
        let columns: Vec<_> = (0..key_tiles).map(|tile| columns_of(&segments, tile)).collect();
        for index in 0..batch * heads {
            let at = Pair { batch: index / heads, head: index % heads, row: 0, col: 0 };
            for (tile, columns) in columns.iter().enumerate() {
                for (i, column) in columns.iter().enumerate() {
                    let words = tables.bands[(index * key_tiles + tile) * TILE + i];
                    for row in 0..seq_q {
                        let sees = column.is_some_and(|col| dense.sees(Pair { row, col, ..at }));
                        prop_assert_eq!(stored_masks(words, row), !sees, "{:?} row {}", words, row);
                    }
                }
            }
            let classes: Vec<Vec<Option<u32>>> = (0..tables.row_tiles())
                .map(|tile| {
                    let rows = tile * TILE..((tile + 1) * TILE).min(seq_q);
                    columns.iter().map(|columns| class_of(&dense, at, rows.clone(), columns)).collect()
                })
                .collect();
            check_lists(&tables.by_rows, index, &classes, f64::from)?;
            let turned: Vec<Vec<_>> =
                (0..key_tiles).map(|key| classes.iter().map(|row| row[key]).collect()).collect();
            check_lists(&tables.by_keys, index, &turned, grade)?;
            check_classes(&tables, index)?;
        }
    }

    #[test]
    fn whole_tiles_are_listed_as_block_lists_have_them(
        tiles in proptest::collection::vec(1usize..4, 1..4), seq_q in 1usize..700, seed: u64,
    ) {
        let segments = KeySegments::new(tiles.iter().map(|tiles| tiles * TILE).collect()).unwrap();
        let dims = MaskDims { batch: 1, heads: 2, seq_q, seq_k: segments.seq_k() };
        let mask = random_mask(dims, seed);
        let tables = MaskTables::build(&mask, &segments).unwrap();
        let lists = BlockLists::build(&mask, 0..dims.seq_k, BlockSize { rows: TILE, cols: TILE }).unwrap();
        for head in 0..2 {
            for tile in 0..tables.row_tiles() {
                let expected: Vec<_> = lists
                    .for_rows(TileAt { batch: 0, head, tile })
                    .iter()
                    .map(|entry| (entry.tile, entry.class == BlockClass::Full))
                    .collect();
                let listed = tables.by_rows.list(ListAt { head, tile });
                let got: Vec<_> = listed.iter().map(|entry| (entry >> 2, entry & 3 == FULL)).collect();
                prop_assert_eq!(got, expected);
            }
        }
    }
}

#[test]
fn bands_are_ordered_by_where_they_start() {
    // One column each: nothing, rows from 2, rows below 2, all rows, two bands, two from the same row, an empty one.
    let columns =
        [[9, 9, 3, 3], [2, 9, 0, 0], [0, 2, 0, 0], [0, 9, 0, 0], [1, 2, 4, 9], [3, 4, 3, 5], [5, 1, 2, 3]];
    let dims = MaskDims { batch: 1, heads: 1, seq_q: 6, seq_k: 7 };
    let mask = FlashMask::new(dims, Columns::Four, false, columns.concat()).unwrap();
    let tables = MaskTables::build(&mask, &KeySegments::whole(7).unwrap()).unwrap();
    const NONE: i32 = i32::MAX;
    let expected = [
        [NONE, 0, NONE, 0],
        [2, 0, 6, 0],
        [NONE, 2, NONE, 0],
        [0, 0, 6, 0],
        [4, 2, 6, 1],
        [3, 4, 5, 3],
        [2, 0, 3, 0],
        [0, 0, NONE, 0],
    ];
    assert_eq!(tables.bands[..8], expected);
    assert_eq!(
        (tables.by_rows.entries.as_slice(), tables.by_rows.work.as_slice()),
        (&[GENERAL][..], &[3][..])
    );
}

#[test]
fn segments_of_another_length_are_refused() {
    let mask = FlashMask::full(MaskDims { batch: 1, heads: 1, seq_q: 6, seq_k: 7 }).unwrap();
    let text = MaskTables::build(&mask, &KeySegments::whole(8).unwrap()).unwrap_err().to_string();
    assert!(text.contains('7') && text.contains('8'), "{text}");
}
