//! What the engine refuses, with the numbers in the message.
#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]
mod engine_support;

use engine_support::Case;
use fm3_kernels::cpu::{self, Backward, Forward, Grads, KeyGrads, Keys, Problem, Saved, TILE};
use fm3_kernels::mask::{BlockLists, BlockSize, MaskDims};
use fm3_kernels::view::Extents;
use fm3_kernels::{Dims, Error, FlashMask, View4, View4Mut};

const DIMS: Dims = Dims { batch: 1, heads_q: 4, heads_kv: 2, seq_q: 140, seq_k: 300, head_dim: 8 };
const MASK: MaskDims = MaskDims { batch: 1, heads: 2, seq_q: 140, seq_k: 300 };

fn case() -> Case {
    Case { dims: DIMS, mask: FlashMask::full(MASK).unwrap(), scale: 0.3, seed: 1 }
}

fn zeros(extents: Extents) -> Vec<f32> {
    vec![0.0; engine_support::count(extents)]
}

/// `Forward::new` on a changed problem.
fn start(change: impl FnOnce(&mut Problem<'_, f32>)) -> Error {
    let case = case();
    let data = zeros(case.queries());
    let mut problem = case.problem(View4::bshd(&data, case.queries()).unwrap());
    change(&mut problem);
    Forward::new(problem).map(|_| ()).unwrap_err()
}

/// `Forward::attend` and `Backward::attend` on a piece; both must refuse alike.
fn attend(
    extents: Extents,
    first_column: usize,
    first_head: usize,
    blocks: &BlockLists,
) -> Result<(), Error> {
    let case = case();
    let (data, piece) = (zeros(case.queries()), zeros(extents));
    let (queries, lse) = (View4::bshd(&data, case.queries()).unwrap(), vec![0.0; 4 * 140]);
    let piece = View4::bshd(&piece, extents).unwrap();
    let keys = Keys { k: piece, v: piece, first_column, first_head };
    let forward = Forward::new(case.problem(queries)).unwrap().attend(&keys, blocks);
    let (mut dk, mut dv) = (zeros(extents), zeros(extents));
    let grads = KeyGrads {
        dk: View4Mut::bshd(&mut dk, extents).unwrap(),
        dv: View4Mut::bshd(&mut dv, extents).unwrap(),
    };
    let saved = Saved { o: queries, dout: queries, lse: &lse };
    let backward = Backward::new(case.problem(queries), saved).unwrap().attend(&keys, blocks, grads);
    assert_eq!(forward.is_err(), backward.is_err());
    forward
}

#[test]
fn a_scale_that_is_no_number_is_refused() {
    for scale in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = start(|problem| problem.scale = scale);
        assert!(matches!(error, Error::Scale { .. }), "{error}");
        assert!(error.to_string().contains(&scale.to_string()), "{error}");
    }
}

#[test]
fn a_mask_of_another_problem_is_refused_with_both_numbers() {
    let wrong = [
        (MaskDims { batch: 2, ..MASK }, "batch = 2", "needs 1"),
        (MaskDims { seq_q: 139, ..MASK }, "seq_q = 139", "needs 140"),
        (MaskDims { seq_k: 301, ..MASK }, "seq_k = 301", "needs 300"),
        (MaskDims { heads: 3, ..MASK }, "4", "3 heads"),
    ];
    for (dims, got, expected) in wrong {
        let mask = FlashMask::full(dims).unwrap();
        let case = Case { mask, ..case() };
        let data = zeros(case.queries());
        let error = Forward::new(case.problem(View4::bshd(&data, case.queries()).unwrap())).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(got) && text.contains(expected), "{text}");
    }
}

#[test]
fn pieces_that_do_not_fit_are_refused() {
    let blocks = BlockLists::build(&case().mask, 10..300, TILE).unwrap();
    let good = Extents { batch: 1, seq: 128, heads: 1, head_dim: 8 };
    attend(good, 10, 1, &blocks).unwrap();
    attend(Extents { seq: 34, ..good }, 266, 0, &blocks).unwrap();
    let refused = |extents, first_column, first_head| {
        attend(extents, first_column, first_head, &blocks).unwrap_err().to_string()
    };
    assert!(refused(Extents { batch: 2, ..good }, 10, 0).contains("batch = 2, the problem needs 1"));
    assert!(refused(Extents { head_dim: 16, ..good }, 10, 0).contains("head_dim = 16, the problem needs 8"));
    assert!(refused(good, 10, 2).contains("KV heads 2..3 are not within 0..2"));
    assert!(refused(good, 0, 0).contains("columns 0..128 are not within 10..300"));
    assert!(refused(good, 266, 0).contains("columns 266..394 are not within 10..300"));
    let text = refused(good, 11, 0);
    assert!(text.contains("column 11") && text.contains("10 plus a multiple of 128"), "{text}");
    let longer = FlashMask::full(MaskDims { seq_k: 400, ..MASK }).unwrap();
    let text =
        attend(good, 256, 0, &BlockLists::build(&longer, 0..400, TILE).unwrap()).unwrap_err().to_string();
    assert!(text.contains("0..400 are not within 0..300"), "{text}");
    let other = BlockLists::build(&case().mask, 0..300, BlockSize { rows: 64, ..TILE }).unwrap();
    let text = attend(good, 0, 0, &other).unwrap_err().to_string();
    assert!(text.contains("rows of a tile = 64"), "{text}");
    let more_heads = FlashMask::full(MaskDims { heads: 4, ..MASK }).unwrap();
    let text = attend(good, 0, 0, &BlockLists::build(&more_heads, 0..300, TILE).unwrap()).unwrap_err();
    assert!(text.to_string().contains("mask heads = 4"), "{text}");
}

#[test]
fn whole_problems_check_every_tensor_before_they_start() {
    let case = case();
    let (queries, keys) = (case.queries(), case.keys());
    let (data, key_data) = (zeros(queries), zeros(keys));
    let q = View4::bshd(&data, queries).unwrap();
    let k = View4::bshd(&key_data, keys).unwrap();
    let pieces = Keys { k, v: k, first_column: 0, first_head: 0 };
    let mut out = zeros(queries);
    let mut forward = |keys: &Keys<'_, f32>, rows: usize| {
        let extents = Extents { seq: rows, ..queries };
        let mut o = View4Mut::bshd(&mut out, extents).unwrap();
        cpu::forward(case.problem(q), keys, &mut o, &mut vec![0.0; 4 * rows]).unwrap_err().to_string()
    };
    assert!(forward(&pieces, 139).contains("o has seq = 139, the problem needs 140"));
    let text = forward(&Keys { first_column: 5, ..pieces }, 140);
    assert!(text.contains("first_column = 5, the problem needs 0"), "{text}");
    let (mut dq, mut dk, mut dv) = (zeros(queries), zeros(keys), zeros(keys));
    let grads = Grads {
        dq: View4Mut::bshd(&mut dq, queries).unwrap(),
        dk: View4Mut::bshd(&mut dk, Extents { seq: 299, ..keys }).unwrap(),
        dv: View4Mut::bshd(&mut dv, keys).unwrap(),
    };
    let lse = vec![0.0; 560];
    let text = cpu::backward(case.problem(q), &pieces, Saved { o: q, dout: q, lse: &lse }, grads)
        .unwrap_err()
        .to_string();
    assert!(text.contains("dk has seq = 299, the problem needs 300"), "{text}");
    let short = Saved { o: q, dout: q, lse: &lse[1..] };
    let text = Backward::new(case.problem(q), short).unwrap_err().to_string();
    assert!(text.contains("elements = 559, the problem needs 560"), "{text}");
}
