//! Tables that the GPU builds against those of the host: every word.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
mod gpu_common;

use fm3_kernels::cuda::{Lengths, MaskForm, PreparedMask};
use fm3_kernels::mask::{Columns, KeySegments, MaskDims, MaskSpec, MaskTables, TileLists};
use fm3_kernels::{Error, FlashMask};
use gpu_common::{Gpu, Suite, masks};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn first_difference<T: PartialEq + std::fmt::Debug>(name: &str, got: &[T], want: &[T]) -> Result<(), String> {
    match got.iter().zip(want).position(|(got, want)| got != want) {
        None if got.len() == want.len() => Ok(()),
        None => Err(format!("{name}: {} words, the host has {}", got.len(), want.len())),
        Some(at) => Err(format!("{name}[{at}] = {:?}, the host has {:?}", got[at], want[at])),
    }
}

fn same_lists(name: &str, got: &TileLists, want: &TileLists) -> Result<(), String> {
    first_difference(&format!("counts of {name}"), &got.counts, &want.counts)?;
    first_difference(&format!("entries of {name}"), &got.entries, &want.entries)?;
    first_difference(&format!("work of {name}"), &got.work, &want.work)?;
    first_difference(&format!("ranked of {name}"), &got.ranked, &want.ranked)
}

fn same(got: &MaskTables, want: &MaskTables) -> Result<(), String> {
    first_difference("bands", &got.bands, &want.bands)?;
    same_lists("row tiles", &got.by_rows, &want.by_rows)?;
    same_lists("key tiles", &got.by_keys, &want.by_keys)?;
    if got == want { Ok(()) } else { Err("sizes differ".to_owned()) }
}

/// Both ways through the device against the host's tables.
fn compare(gpu: &Gpu, mask: &FlashMask, segments: &KeySegments) -> Result<(), String> {
    let text = |error: Error| error.to_string();
    let want = MaskTables::build(mask, segments).map_err(text)?;
    let built = PreparedMask::new(gpu.kernels(), &gpu.stream, mask, segments).map_err(text)?;
    same(&built.download(&gpu.stream).map_err(text)?, &want)?;
    let copied = PreparedMask::on_host(&gpu.stream, mask, segments).map_err(text)?;
    same(&copied.download(&gpu.stream).map_err(text)?, &want).map_err(|text| format!("uploaded: {text}"))
}

#[test]
fn random_masks_over_random_segments() {
    let Some(gpu) = Gpu::new() else { return };
    let mut suite = Suite::new("tables");
    for seed in 0..200 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let length = |rng: &mut ChaCha8Rng| match rng.random_range(0..3) {
            0 => [1, 127, 128, 129, 256, 257][rng.random_range(0..6)],
            1 => rng.random_range(1..4000),
            _ => rng.random_range(1..300),
        };
        let rows: Vec<usize> = (0..rng.random_range(1..9)).map(|_| length(&mut rng)).collect();
        let segments = KeySegments::new(rows.clone()).unwrap();
        let dims = MaskDims {
            batch: rng.random_range(1..4),
            heads: rng.random_range(1..4),
            seq_q: length(&mut rng),
            seq_k: segments.seq_k(),
        };
        let mask = masks::raw(dims, &mut rng);
        let name = format!("{dims:?} {:?} causal {} {rows:?} seed {seed}", mask.columns(), mask.is_causal());
        suite.case(&name, || compare(&gpu, &mask, &segments));
    }
}

#[test]
fn named_masks_at_8192_and_128k_rows() {
    let Some(gpu) = Gpu::new() else { return };
    let mut suite = Suite::new("tables of named masks");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for name in MaskSpec::NAMES {
        let dims = MaskDims { batch: 1, heads: 2, seq_q: 8192, seq_k: 8192 };
        let mask = masks::named(name, dims, 3000, &mut rng);
        suite.case(&name, || compare(&gpu, &mask, &KeySegments::new(vec![4000, 4192]).unwrap()));
    }
    for name in ["causal-document", "global-sliding-window"] {
        let dims = MaskDims { batch: 1, heads: 1, seq_q: 1 << 17, seq_k: 1 << 17 };
        let mask = masks::named(name, dims, 30000, &mut rng);
        suite.case(&format!("{name} 128k"), || compare(&gpu, &mask, &KeySegments::whole(1 << 17).unwrap()));
    }
}

#[test]
fn more_tiles_than_the_kernel_sorts_go_over_the_host() {
    let Some(gpu) = Gpu::new() else { return };
    let mut suite = Suite::new("long tables");
    let dims = MaskDims { batch: 1, heads: 1, seq_q: (1 << 20) + 1, seq_k: 300 };
    let mask = FlashMask::causal(dims).unwrap();
    suite.case(&"2^20 + 1 rows", || compare(&gpu, &mask, &KeySegments::whole(300).unwrap()));
    let lengths = Lengths { seq_q: dims.seq_q, causal: true };
    let refused = PreparedMask::plain(gpu.kernels(), &gpu.stream, lengths, &KeySegments::whole(300).unwrap());
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("8193") && text.contains("8192"), "{text}");
}

#[test]
fn plain_masks_are_those_of_the_named_ones() {
    let Some(gpu) = Gpu::new() else { return };
    let mut suite = Suite::new("plain tables");
    for (seq_q, rows) in [(1, vec![1]), (300, vec![130, 129, 200]), (5000, vec![4096]), (128, vec![128; 3])] {
        let segments = KeySegments::new(rows).unwrap();
        let dims = MaskDims { batch: 1, heads: 1, seq_q, seq_k: segments.seq_k() };
        for causal in [false, true] {
            let mask = if causal { FlashMask::causal(dims) } else { FlashMask::full(dims) }.unwrap();
            suite.case(&format!("{dims:?} causal {causal}"), || {
                let lengths = Lengths { seq_q, causal };
                let plain = PreparedMask::plain(gpu.kernels(), &gpu.stream, lengths, &segments);
                let plain = plain.map_err(|error| error.to_string())?;
                let got = plain.download(&gpu.stream).map_err(|error| error.to_string())?;
                same(&got, &MaskTables::build(&mask, &segments).unwrap())
            });
        }
    }
}

#[test]
fn bounds_in_device_memory_are_read_there() {
    let Some(gpu) = Gpu::new() else { return };
    let mut suite = Suite::new("device bounds");
    let segments = KeySegments::new(vec![200, 300]).unwrap();
    let dims = MaskDims { batch: 2, heads: 2, seq_q: 450, seq_k: 500 };
    let mask = masks::raw(dims, &mut ChaCha8Rng::seed_from_u64(3));
    let form = MaskForm { dims, columns: mask.columns(), causal: mask.is_causal() };
    suite.case(&"raw", || {
        let bounds = gpu.stream.clone_htod(mask.bounds()).unwrap();
        let prepared = PreparedMask::from_device(gpu.kernels(), &gpu.stream, form, &bounds, &segments);
        let got = prepared.and_then(|prepared| prepared.download(&gpu.stream));
        same(&got.map_err(|error| error.to_string())?, &MaskTables::build(&mask, &segments).unwrap())
    });
    let bounds = gpu.stream.clone_htod(&[0; 7]).unwrap();
    let refuse = |form, segments: &KeySegments| {
        PreparedMask::from_device(gpu.kernels(), &gpu.stream, form, &bounds, segments).unwrap_err()
    };
    assert!(matches!(refuse(form, &segments), Error::WrongLength { got: 7, .. }));
    let wrong = MaskForm { columns: Columns::Four, causal: true, ..form };
    assert!(matches!(refuse(wrong, &segments), Error::MaskForm { columns: 4, causal: true }));
}
