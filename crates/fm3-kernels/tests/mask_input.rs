//! Wrong masks and mask specs are refused with their numbers; right ones parse and display.
#![expect(
    clippy::unwrap_used,
    clippy::single_range_in_vec_init,
    reason = "a test may panic; one span is a list of one"
)]
use fm3_kernels::mask::{BlockLists, BlockSize, Columns, Documents, Eviction, MaskDims, MaskSpec, QueryHead};
use fm3_kernels::{Error, FlashMask};

const DIMS: MaskDims = MaskDims { batch: 1, heads: 2, seq_q: 64, seq_k: 64 };

fn refused(text: &str) -> String {
    text.parse::<MaskSpec>().unwrap_err().to_string()
}

#[test]
fn raw_arrays_are_checked() {
    let new = |dims, columns, causal, len| FlashMask::new(dims, columns, causal, vec![0; len]);
    assert_eq!(
        new(DIMS, Columns::One, false, 128).unwrap_err(),
        Error::MaskForm { columns: 1, causal: false }
    );
    assert_eq!(
        new(DIMS, Columns::Four, true, 512).unwrap_err(),
        Error::MaskForm { columns: 4, causal: true }
    );
    let short = new(DIMS, Columns::Two, true, 255).unwrap_err();
    assert_eq!(short, Error::WrongLength { call: "FlashMask::new", expected: 256, got: 255 });
    let zero = new(MaskDims { seq_k: 0, ..DIMS }, Columns::One, true, 0).unwrap_err();
    assert!(matches!(zero, Error::ZeroDim { name: "seq_k", .. }), "{zero}");
    let mut bounds = vec![3; 256];
    bounds[64 * 2 + 5] = -7;
    let negative = FlashMask::new(DIMS, Columns::Two, false, bounds).unwrap_err();
    assert_eq!(negative, Error::NegativeBound { batch: 0, head: 1, column: 2, bound: -7 });
    assert_eq!(Columns::from_count(3).unwrap_err(), Error::MaskColumns { columns: 3 });
    let huge = MaskDims { batch: usize::MAX, heads: 2, seq_q: 1, seq_k: 1 };
    assert!(matches!(FlashMask::causal(huge).unwrap_err(), Error::MaskMemory { .. }));
    assert!(matches!(Documents::one_per_sequence(huge).unwrap_err(), Error::MaskMemory { .. }));
    let documents = Documents::new(vec![vec![1]], 1).unwrap();
    for name in MaskSpec::NAMES {
        let error = name.parse::<MaskSpec>().unwrap().build(huge, &documents, 0).unwrap_err();
        assert!(matches!(error, Error::MaskMemory { .. }), "{error}");
    }
    let long = MaskDims { seq_q: 1 << 31, ..DIMS };
    assert!(matches!(FlashMask::causal(long).unwrap_err(), Error::TooLong { name: "seq_q", .. }));
}

#[test]
fn a_stored_mask_is_checked_again_when_read() {
    let mask = FlashMask::sliding_window(DIMS, 9).unwrap();
    let text = serde_json::to_string(&mask).unwrap();
    assert_eq!(serde_json::from_str::<FlashMask>(&text).unwrap(), mask);
    let wrong = serde_json::from_str::<FlashMask>(&text.replace("true", "false")).unwrap_err();
    assert!(wrong.to_string().contains("C = 1"), "{wrong}");
}

#[test]
fn heads_tiles_and_columns_are_checked() {
    let mask = FlashMask::causal(DIMS).unwrap();
    assert_eq!(mask.check_heads(8), Ok(()));
    assert_eq!(mask.check_heads(7).unwrap_err(), Error::MaskHeads { heads_mask: 2, heads_q: 7 });
    assert!(mask.check_heads(0).is_err());
    let heads: Vec<usize> = (0..8).map(|head| mask.head_of(QueryHead { head, of: 8 })).collect();
    assert_eq!(heads, [0, 0, 0, 0, 1, 1, 1, 1]);
    let size = BlockSize { rows: 16, cols: 16 };
    assert!(BlockLists::build(&mask, 0..65, size).unwrap_err().to_string().contains("0..65"));
    assert!(BlockLists::build(&mask, 0..64, BlockSize { cols: 0, ..size }).is_err());
}

#[test]
fn documents_and_parameters_are_checked() {
    let error = Documents::new(vec![vec![64], vec![60, 3]], 64).unwrap_err();
    assert_eq!(error, Error::DocumentSum { batch: 1, sum: 63, seq: 64 });
    let error = Documents::new(vec![vec![64, 0]], 64).unwrap_err();
    assert_eq!(error, Error::EmptyDocument { batch: 0, document: 1 });
    assert!(Documents::new(vec![], 64).is_err() && Documents::new(vec![vec![]], 0).is_err());
    assert!(Documents::new(vec![vec![usize::MAX, 65]], 64).is_err());

    let documents = Documents::new(vec![vec![24, 40]], 64).unwrap();
    let tall = MaskDims { seq_q: 65, ..DIMS };
    let error = FlashMask::document(tall, &documents).unwrap_err();
    assert_eq!(error, Error::NotSquare { call: "FlashMask::document", seq_q: 65, seq_k: 64 });
    let error = FlashMask::share_question(MaskDims { batch: 2, ..DIMS }, &documents).unwrap_err();
    assert!(matches!(error, Error::PerSequence { got: 1, batch: 2, .. }), "{error}");
    let longer = MaskDims { seq_q: 65, seq_k: 65, ..DIMS };
    assert!(matches!(FlashMask::causal_blockwise(longer, &documents), Err(Error::DocumentSum { .. })));
    let error = FlashMask::prefix_lm_document(DIMS, &documents, &[vec![3, 41]]).unwrap_err();
    assert!(matches!(error, Error::MaskParameter { name: "prefix", value: 41, .. }), "{error}");
    assert!(FlashMask::prefix_lm_document(DIMS, &documents, &[vec![3]]).is_err());

    assert!(FlashMask::sliding_window(DIMS, 0).is_err());
    assert!(FlashMask::random_eviction(DIMS, Eviction { start: 0, seed: 0 }).is_err());
    assert!(FlashMask::prefix_lm_causal(DIMS, &[65]).is_err());
    assert!(FlashMask::prefix_lm_causal(DIMS, &[1, 1]).is_err());
    for spans in [vec![5..5], vec![60..65], vec![5..9, 8..12], vec![9..12, 1..3]] {
        let error = FlashMask::qk_sparse(DIMS, std::slice::from_ref(&spans)).unwrap_err();
        assert!(matches!(error, Error::MaskParameter { .. }), "{spans:?}");
    }
}

#[test]
fn a_wrong_spec_says_what_would_be_right() {
    let unknown = refused("casual");
    assert!(
        unknown.contains("casual") && MaskSpec::NAMES.iter().all(|name| unknown.contains(name)),
        "{unknown}"
    );
    let key = refused("global-sliding-window:window=4");
    assert!(key.contains("'window'") && key.contains("global, left, right"), "{key}");
    assert!(refused("causal:window=4").contains("it takes none"));
    assert!(refused("sliding-window:4096").contains("window"));
    for (spec, key, value) in [
        ("sliding-window:window=-3", "window", "-3"),
        ("sliding-window:window=", "window", "''"),
        ("prefix-lm-document:fraction=1.5", "fraction", "1.5"),
        ("prefix-lm-document:fraction=nan", "fraction", "nan"),
        ("document:docs=4+x", "docs", "4+x"),
        ("qk-sparse:spans=4-9", "spans", "4-9"),
        ("sliding-window:window=3,window=4", "window", "4"),
    ] {
        let text = refused(spec);
        assert!(text.contains(key) && text.contains(value), "{text}");
    }
}

#[test]
fn specs_display_what_they_parse_and_build_what_they_say() {
    let documents = Documents::new(vec![vec![24, 40]], 64).unwrap();
    let build = |text: &str| text.parse::<MaskSpec>().unwrap().build(DIMS, &documents, 5).unwrap();
    for (given, canonical) in [
        ("sliding-window:window=0012", "sliding-window:window=12"),
        ("global-sliding-window:right=3,global=1", "global-sliding-window:global=1,right=3"),
        ("prefix-lm-document:docs=4+60,fraction=0.50", "prefix-lm-document:fraction=0.5,docs=4+60"),
        ("document:docs=1+2/3", "document:docs=1+2/3"),
        ("qk-sparse:spans=1..2+5..9", "qk-sparse:spans=1..2+5..9"),
    ] {
        let spec: MaskSpec = given.parse().unwrap();
        assert_eq!(spec.to_string(), canonical);
        assert_eq!(canonical.parse::<MaskSpec>().unwrap(), spec);
    }
    assert_eq!(build("sliding-window"), FlashMask::sliding_window(DIMS, 8).unwrap());
    assert_eq!(build("causal-document"), FlashMask::causal_document(DIMS, &documents).unwrap());
    let own = Documents::new(vec![vec![60, 4]], 64).unwrap();
    assert_eq!(build("document:docs=60+4"), FlashMask::document(DIMS, &own).unwrap());
    let evicted = FlashMask::random_eviction(DIMS, Eviction { start: 32, seed: 5 }).unwrap();
    assert_eq!(build("random-eviction"), evicted);
    assert!("document:docs=60+4/64".parse::<MaskSpec>().unwrap().build(DIMS, &documents, 0).is_err());
    assert!(!"document:docs=64".parse::<MaskSpec>().unwrap().needs_documents());
}

#[test]
fn every_name_builds_at_every_length() {
    for seq in [1, 2, 5, 64, 300] {
        let dims = MaskDims { batch: 2, heads: 1, seq_q: seq, seq_k: seq };
        let documents = Documents::one_per_sequence(dims).unwrap();
        for name in MaskSpec::NAMES {
            let spec: MaskSpec = name.parse().unwrap();
            let mask = spec.build(dims, &documents, 1).unwrap();
            assert_eq!(mask.dims(), dims, "{name}");
            assert!(mask.density() > 0.0 && mask.to_string().lines().count() > 1, "{name}");
        }
    }
}
