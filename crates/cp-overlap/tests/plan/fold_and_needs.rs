//! Folded masks, column order, needs and pair counts against brute force.
use cp_overlap::fold_mask;
use cp_overlap::needs::{Link, Needs, Part, count_pairs};
use cp_overlap::plan::NEED_ROWS;
use fm3_kernels::mask::{BlockClass, MaskHead, Rows, classify};
use proptest::prelude::*;

use crate::problems::{recipes, sees};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_folded_mask_shows_what_the_global_mask_shows(recipe in recipes(), me: u32) {
        let (mask, sharding) = (recipe.mask(), recipe.sharding());
        let me = sharding.world().ranks().nth(me as usize % recipe.ranks).unwrap();
        let folded = fold_mask(&mask, &sharding, me).unwrap();
        prop_assert!(!folded.is_causal() && folded.columns().count() == 4);
        // Gather order, counted anew: mine, then down the ring.
        let owners = (0..recipe.ranks).map(|step| (me.index() + recipe.ranks - step) % recipe.ranks);
        let ranks: Vec<_> = sharding.world().ranks().collect();
        let keys: Vec<usize> = owners.flat_map(|owner| sharding.positions(ranks[owner])).collect();
        let dims = folded.dims();
        prop_assert_eq!((dims.batch, dims.heads, dims.seq_k), (recipe.batch, mask.dims().heads, keys.len()));
        for at in heads(dims.batch, dims.heads) {
            for (local, row) in sharding.positions(me).into_iter().enumerate() {
                for (column, key) in keys.iter().enumerate() {
                    prop_assert_eq!(sees(&folded, at, (local, column)), sees(&mask, at, (row, *key)));
                }
            }
        }
    }

    #[test]
    fn needs_and_pairs_are_exact(recipe in recipes()) {
        let (mask, sharding) = (recipe.mask(), recipe.sharding());
        let needs = Needs::new(&mask, &sharding).unwrap();
        let pairs = count_pairs(&mask, &sharding).unwrap();
        for reader in sharding.world().ranks() {
            let rows = sharding.positions(reader);
            let (mut all, mut local) = (0, 0);
            for owner in sharding.world().ranks() {
                let keys = sharding.positions(owner);
                for (batch, head) in heads(recipe.batch, mask.dims().heads) {
                    let seen = |key: &usize| rows.iter().filter(|row| sees(&mask, (batch, head), (**row, *key))).count();
                    let seen: Vec<usize> = keys.iter().map(seen).collect();
                    let sum: usize = seen.iter().sum();
                    all += sum;
                    local += if owner == reader { sum } else { 0 };
                    let part = Part { batch, heads: head..head + 1, rows: 0..keys.len() };
                    let runs = needs.rows(Link { owner, reader }, &part);
                    let listed: Vec<usize> = runs.iter().cloned().flatten().collect();
                    let blocks = seen.chunks(NEED_ROWS).enumerate().filter(|(_, seen)| seen.iter().any(|n| *n > 0));
                    let expected: Vec<usize> = blocks
                        .flat_map(|(block, seen)| block * NEED_ROWS..block * NEED_ROWS + seen.len())
                        .collect();
                    prop_assert_eq!(listed, expected);
                    prop_assert!(runs.windows(2).all(|pair| pair[0].end < pair[1].start), "not joined: {:?}", runs);
                }
            }
            let counted = pairs[reader.index()];
            prop_assert_eq!((counted.all, counted.local), (all as u64, local as u64));
        }
    }

    #[test]
    fn needs_are_what_classification_does_not_skip(recipe in recipes()) {
        let (mask, sharding) = (recipe.mask(), recipe.sharding());
        let needs = Needs::new(&mask, &sharding).unwrap();
        for reader in sharding.world().ranks() {
            let folded = fold_mask(&mask, &sharding, reader).unwrap();
            let rows = Rows { start: 0, end: sharding.len(reader) };
            let mut first_column = 0;
            for owner in sharding.gather_order(reader) {
                let len = sharding.len(owner);
                for (batch, head) in heads(recipe.batch, mask.dims().heads) {
                    for start in (0..len).step_by(NEED_ROWS) {
                        let block = start..(start + NEED_ROWS).min(len);
                        let columns = first_column + block.start..first_column + block.end;
                        let class = classify(folded.bands_in(MaskHead { batch, head }, columns), rows);
                        let part = Part { batch, heads: head..head + 1, rows: block };
                        let needed = !needs.rows(Link { owner, reader }, &part).is_empty();
                        prop_assert_eq!(needed, class != BlockClass::Skip);
                    }
                }
                first_column += len;
            }
        }
    }

    #[test]
    fn a_part_needs_what_any_of_its_heads_needs(recipe in recipes(), from: usize, to: usize) {
        let problem = recipe.problem();
        let (needs, heads) = (problem.needs(), problem.mask().dims().heads);
        let (from, to) = (from % heads, to % heads);
        let range = from.min(to)..from.max(to) + 1;
        for link in problem.sharding().world().ranks().map(|reader| Link { owner: symm_buffer::Pe(0), reader }) {
            let rows = 0..problem.sharding().len(link.owner);
            let listed = |heads| -> Vec<usize> {
                let part = Part { batch: recipe.batch - 1, heads, rows: rows.clone() };
                needs.rows(link, &part).into_iter().flatten().collect()
            };
            let mut apart: Vec<usize> = range.clone().flat_map(|head| listed(head..head + 1)).collect();
            apart.sort_unstable();
            apart.dedup();
            prop_assert_eq!(listed(range.clone()), apart);
        }
        // Mask heads of KV heads, query head by query head.
        let dims = problem.shape().dims();
        for kv in 0..dims.heads_kv {
            let queries = (0..dims.heads_q).filter(|query| query / problem.shape().group_size() == kv);
            let read: Vec<usize> = queries.map(|query| query / (dims.heads_q / heads)).collect();
            let expected = *read.iter().min().unwrap()..read.iter().max().unwrap() + 1;
            prop_assert_eq!(problem.mask_heads(&(kv..kv + 1)), expected);
        }
    }
}

fn heads(batch: usize, heads: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..batch).flat_map(move |batch| (0..heads).map(move |head| (batch, head)))
}
