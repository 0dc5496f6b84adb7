//! Keys in pieces, strided views, poison where nothing may be read, and bits that no thread count changes.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]
mod engine_support;

use std::ops::Range;

use engine_support::{Case, Tensors, Written, masks, rel_err};
use fm3_kernels::cpu::{Backward, Forward, KeyGrads, Keys, Saved, TILE};
use fm3_kernels::mask::{BlockLists, MaskDims, TileAt};
use fm3_kernels::view::{Extents, Strides};
use fm3_kernels::{Dims, Element, FlashMask, Shape, View4, View4Mut};
use half::bf16;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Some columns of some KV heads, with the segment for which its block lists are built.
#[derive(Clone, Debug)]
struct Part {
    segment: Range<usize>,
    columns: Range<usize>,
    heads: Range<usize>,
}

/// Segments at `cuts`, each cut into pieces of `tiles` tiles and single KV heads or all.
fn parts(case: &Case, cuts: &[usize], tiles: usize, by_head: bool) -> Vec<Part> {
    let Dims { seq_k, heads_kv, .. } = case.dims;
    let mut all = Vec::new();
    let edges: Vec<usize> = [&[0], cuts, &[seq_k]].concat();
    for segment in edges.windows(2).map(|edge| edge[0]..edge[1]) {
        for start in segment.clone().step_by(tiles * TILE.cols) {
            let columns = start..(start + tiles * TILE.cols).min(segment.end);
            let step = if by_head { 1 } else { heads_kv };
            all.extend((0..heads_kv).step_by(step).map(|head| Part {
                segment: segment.clone(),
                columns: columns.clone(),
                heads: head..head + step,
            }));
        }
    }
    all
}

/// A copy of a part of [b, sk, hkv, d]: memory that ends where the piece ends.
fn cut<T: Element>(case: &Case, data: &[T], part: &Part) -> (Vec<T>, Extents) {
    let all = View4::bshd(data, case.keys()).unwrap();
    let extents = Extents { seq: part.columns.len(), heads: part.heads.len(), ..case.keys() };
    let rows = rows_of(case, part).flat_map(|at| all.row(at).to_vec());
    (rows.collect(), extents)
}

fn rows_of(case: &Case, part: &Part) -> impl Iterator<Item = fm3_kernels::view::At> {
    let Part { columns, heads, .. } = part.clone();
    (0..case.dims.batch).flat_map(move |batch| {
        let heads = heads.clone();
        columns
            .clone()
            .flat_map(move |seq| heads.clone().map(move |head| fm3_kernels::view::At { batch, seq, head }))
    })
}

/// Runs the engine over `parts` in the order given; dK and dV stay f32.
fn in_parts<T: Element>(case: &Case, tensors: &Tensors<T>, parts: &[Part]) -> (Written<T>, [Vec<f32>; 2]) {
    let queries = case.queries();
    let view = |data| View4::bshd(data, queries).unwrap();
    let problem = case.problem(view(&tensors.q));
    let mut out = Written::poisoned(case);
    let mut forward = Forward::new(problem).unwrap();
    for part in parts {
        let (k, extents) = cut(case, &tensors.k, part);
        let (v, _) = cut(case, &tensors.v, part);
        let keys = keys_of(&k, &v, extents, part);
        forward.attend(&keys, &BlockLists::build(&case.mask, part.segment.clone(), TILE).unwrap()).unwrap();
    }
    forward.finish(&mut View4Mut::bshd(&mut out.o, queries).unwrap(), &mut out.lse).unwrap();
    let saved = Saved { o: view(&out.o), dout: view(&tensors.dout), lse: &out.lse };
    let mut backward = Backward::new(problem, saved).unwrap();
    let mut grads = [vec![f32::NAN; tensors.k.len()], vec![f32::NAN; tensors.v.len()]];
    for part in parts {
        let (k, extents) = cut(case, &tensors.k, part);
        let (v, _) = cut(case, &tensors.v, part);
        let (mut dk, mut dv) = (vec![f32::NAN; k.len()], vec![f32::NAN; v.len()]);
        let to = KeyGrads {
            dk: View4Mut::bshd(&mut dk, extents).unwrap(),
            dv: View4Mut::bshd(&mut dv, extents).unwrap(),
        };
        let blocks = BlockLists::build(&case.mask, part.segment.clone(), TILE).unwrap();
        backward.attend(&keys_of(&k, &v, extents, part), &blocks, to).unwrap();
        for (all, piece) in grads.iter_mut().zip([dk, dv]) {
            let mut all = View4Mut::bshd(all, case.keys()).unwrap();
            let rows = piece.chunks(extents.head_dim);
            rows_of(case, part).zip(rows).for_each(|(at, row)| all.row_mut(at).copy_from_slice(row));
        }
    }
    backward.finish(&mut View4Mut::bshd(&mut out.dq, queries).unwrap()).unwrap();
    (out, grads)
}

fn keys_of<'a, T>(k: &'a [T], v: &'a [T], extents: Extents, part: &Part) -> Keys<'a, T> {
    Keys {
        k: View4::bshd(k, extents).unwrap(),
        v: View4::bshd(v, extents).unwrap(),
        first_column: part.columns.start,
        first_head: part.heads.start,
    }
}

fn wide(data: &[f32]) -> Vec<f64> {
    data.iter().map(|value| f64::from(*value)).collect()
}

fn case(seed: u64, run: usize) -> Case {
    let dims = Dims { batch: 2, heads_q: 6, heads_kv: 3, seq_q: 300, seq_k: 421, head_dim: 16 };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mask_dims =
        MaskDims { batch: 2, heads: [1, 2, 3, 6][rng.random_range(0..4)], seq_q: 300, seq_k: 421 };
    Case { dims, mask: masks::raw(mask_dims, run, &mut rng), scale: 0.25, seed }
}

#[test]
fn pieces_in_any_order_agree_with_the_reference() {
    for (seed, run) in (0..).zip([1, 40, 130, 421]) {
        let case = case(seed, run);
        let tensors = case.tensors::<f32>();
        let exact = case.exact(&tensors);
        let cuttings =
            [parts(&case, &[], 1, false), parts(&case, &[77, 300], 1, true), parts(&case, &[150], 2, false)];
        for mut parts in cuttings {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            for order in 0..3 {
                let (got, [dk, dv]) = in_parts(&case, &tensors, &parts);
                let got = got.widened();
                let pairs = [
                    (&got.o, &exact.o),
                    (&got.dq, &exact.dq),
                    (&wide(&dk), &exact.dk),
                    (&wide(&dv), &exact.dv),
                ];
                for (got, exact) in pairs {
                    let error = rel_err(got, exact);
                    assert!(error <= 2e-6, "{error:e} order {order}, {parts:?}, {case:?}");
                }
                if order == 0 { parts.reverse() } else { parts.shuffle(&mut rng) }
            }
        }
    }
}

#[test]
fn one_piece_is_the_whole_problem_bit_for_bit() {
    let case = case(5, 130);
    let tensors = case.tensors::<f32>();
    let (pieces, [dk, dv]) = in_parts(&case, &tensors, &parts(&case, &[], 100, false));
    let whole = case.engine(&tensors);
    assert_eq!(Written { dk, dv, ..pieces }.bits(), whole.bits());
}

#[test]
fn keys_of_skipped_tiles_are_never_read() {
    let mut poisoned = 0;
    for (seed, run) in [(10, 128), (11, 128), (12, 421), (13, 64), (14, 256), (15, 128)] {
        let case = case(seed, run);
        let mut tensors = case.tensors::<bf16>();
        let clean = case.engine(&tensors);
        let blocks = BlockLists::build(&case.mask, 0..case.dims.seq_k, TILE).unwrap();
        let nan = bf16::NAN;
        let Dims { heads_q, heads_kv, head_dim, .. } = case.dims;
        for (row, (k, v)) in tensors.k.chunks_mut(head_dim).zip(tensors.v.chunks_mut(head_dim)).enumerate() {
            let (head, column) = (row % heads_kv, row / heads_kv % case.dims.seq_k);
            let batch = row / heads_kv / case.dims.seq_k;
            let group = case.shape().group_size();
            let unseen = (head * group..(head + 1) * group).all(|head| {
                let head = head / (heads_q / case.mask.dims().heads);
                blocks.for_keys(TileAt { batch, head, tile: column / TILE.cols }).is_empty()
            });
            if unseen {
                k.fill(nan);
                v.fill(nan);
                poisoned += 1;
            }
        }
        assert_eq!(case.engine(&tensors).bits(), clean.bits(), "{case:?}");
    }
    assert!(poisoned > 1000, "only {poisoned} rows were poisoned: the test shows nothing");
}

#[test]
fn rows_that_nobody_sees_have_zero_gradients() {
    let dims = Dims { batch: 1, heads_q: 2, heads_kv: 1, seq_q: 40, seq_k: 300, head_dim: 8 };
    // Only columns 10 and 290 are visible, to rows 0..20: tile 1 is skipped, tiles 0 and 2 are partial.
    let bounds =
        (0..300).map(|column| if column == 10 || column == 290 { 20 } else { 0 }).flat_map(|lts| [lts, 0]);
    let mask_dims = MaskDims { batch: 1, heads: 1, seq_q: 40, seq_k: 300 };
    let columns = fm3_kernels::mask::Columns::Two;
    let mask = FlashMask::new(mask_dims, columns, false, bounds.collect()).unwrap();
    let case = Case { dims, mask, scale: 0.3, seed: 1 };
    let out = case.engine(&case.tensors::<f32>());
    for (column, (dk, dv)) in out.dk.chunks(8).zip(out.dv.chunks(8)).enumerate() {
        let seen = column == 10 || column == 290;
        assert_eq!(dk.iter().chain(dv).all(|value| *value == 0.0), !seen, "{column}");
    }
    assert!(out.o[20 * 16..].iter().chain(&out.dq[20 * 16..]).all(|value| *value == 0.0));
    assert!((0..80).all(|row| (out.lse[row] == f32::NEG_INFINITY) == (row % 40 >= 20)));
}

#[test]
fn strided_views_give_the_bits_of_dense_ones() {
    let case = case(21, 60);
    let tensors = case.tensors::<bf16>();
    let dense = case.engine(&tensors);
    let (queries, keys) = (case.queries(), case.keys());
    // K and V interleaved head by head in rows of one tensor, which also holds other data.
    let width = (2 * keys.heads + 1) * keys.head_dim;
    let mut packed = vec![bf16::NAN; keys.batch * keys.seq * width];
    for (row, target) in packed.chunks_mut(width).enumerate() {
        let len = keys.heads * keys.head_dim;
        target[..len].copy_from_slice(&tensors.k[row * len..][..len]);
        target[len..2 * len].copy_from_slice(&tensors.v[row * len..][..len]);
    }
    let strides = Strides { batch: keys.seq * width, seq: width, heads: keys.head_dim };
    let keys = Keys {
        k: View4::strided(&packed, keys, strides).unwrap(),
        v: View4::strided(&packed[keys.heads * keys.head_dim..], keys, strides).unwrap(),
        first_column: 0,
        first_head: 0,
    };
    // Q and O as [b, h, s, d].
    let mut q = vec![bf16::NAN; tensors.q.len()];
    let mut target = View4Mut::bhsd(&mut q, queries).unwrap();
    let source = View4::bshd(&tensors.q, queries).unwrap();
    let all = (0..queries.batch).flat_map(|batch| {
        let rows = (0..queries.seq).flat_map(move |seq| (0..queries.heads).map(move |head| (seq, head)));
        rows.map(move |(seq, head)| fm3_kernels::view::At { batch, seq, head })
    });
    let all: Vec<_> = all.collect();
    all.iter().for_each(|at| target.row_mut(*at).copy_from_slice(source.row(*at)));
    let (mut o, mut lse) = (vec![bf16::NAN; q.len()], vec![f32::NAN; dense.lse.len()]);
    let mut o = View4Mut::bhsd(&mut o, queries).unwrap();
    let problem = case.problem(View4::bhsd(&q, queries).unwrap());
    fm3_kernels::cpu::forward(problem, &keys, &mut o, &mut lse).unwrap();
    let expected = View4::bshd(&dense.o, queries).unwrap();
    assert!(all.iter().all(|at| o.as_view().row(*at) == expected.row(*at)));
    assert_eq!(lse, dense.lse);
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    let big = Dims { batch: 1, heads_q: 3, heads_kv: 1, seq_q: 2100, seq_k: 900, head_dim: 32 };
    let mask_dims = MaskDims { batch: 1, heads: 3, seq_q: 2100, seq_k: 900 };
    let mask = masks::raw(mask_dims, 100, &mut ChaCha8Rng::seed_from_u64(3));
    let scale = Shape::new(big).unwrap().default_scale();
    for case in [case(31, 50), case(32, 128), Case { dims: big, mask, scale, seed: 33 }] {
        let tensors = case.tensors::<f32>();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| case.engine(&tensors).bits())
        };
        let one = run(1);
        assert!(run(2) == one && run(5) == one, "{case:?}");
    }
}
