//! The backward kernels against f64 attention: lengths, ratios, layouts, masks, segments, calls.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "packed gradients overlap, as no safe view may")]
mod gpu_common;

use fm3_kernels::FlashMask;
use fm3_kernels::mask::MaskDims;
use gpu_common::backward::{Workspaces, run_both};
use gpu_common::case::Segmented;
use gpu_common::gradients::check_gradients;
use gpu_common::keys::Half;
use gpu_common::problems::{columns, dims, shared};
use gpu_common::suite::say;
use gpu_common::{Case, Data, Gpu, Layout, Suite, masks, problems};
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// bf16 and f16 in turn, all cases with one workspace that held NaN.
struct Runner {
    gpu: Gpu,
    workspaces: Workspaces,
    suite: Suite,
    count: usize,
}

impl Runner {
    fn new(name: &'static str) -> Option<Self> {
        let gpu = Gpu::new()?;
        let workspaces = Workspaces::new(&gpu);
        Some(Self { gpu, workspaces, suite: Suite::new(name), count: 0 })
    }

    fn run(&mut self, case: &Case) {
        self.count += 1;
        if self.count % 2 == 1 { self.typed::<bf16>(case) } else { self.typed::<f16>(case) }
    }

    fn both(&mut self, case: &Case) {
        self.run(case);
        self.run(case);
    }

    fn typed<T: Half>(&mut self, case: &Case) {
        let (gpu, workspaces) = (&self.gpu, &mut self.workspaces);
        self.suite.case(case, || {
            let tensors = case.tensors::<T>();
            check_gradients(case, &tensors, &run_both(gpu, case, &tensors, workspaces)?)
        });
    }
}

#[test]
fn lengths_around_tile_edges() {
    let Some(mut runner) = Runner::new("lengths") else { return };
    let lengths = [1, 63, 64, 65, 127, 128, 129, 255, 257, 1000];
    for (i, seq_q) in lengths.into_iter().enumerate() {
        for (j, seq_k) in lengths.into_iter().enumerate() {
            let dims = dims(1, [2, 1], [seq_q, seq_k]);
            let seed = 100 * i as u64 + j as u64;
            runner.run(&Case::new("full", dims, FlashMask::full(shared(dims)).unwrap(), seed));
            runner.run(&Case::new("causal", dims, FlashMask::causal(shared(dims)).unwrap(), seed));
        }
    }
}

#[test]
fn ratios_batches_and_layouts() {
    let Some(mut runner) = Runner::new("ratios") else { return };
    let layouts = [Layout::Bshd, Layout::Bhsd, Layout::Packed, Layout::Gaps];
    for (index, heads) in [[2, 2], [2, 1], [8, 2], [7, 1], [8, 1], [14, 2]].into_iter().enumerate() {
        for batch in [1, 3] {
            for layout in layouts {
                let dims = dims(batch, heads, [259, 259]);
                let mask = FlashMask::causal(shared(dims)).unwrap();
                let section_heads = [None, Some(1), Some(2)][index % 3];
                let seed = index as u64;
                runner.both(&Case { layout, section_heads, ..Case::new("causal", dims, mask, seed) });
            }
        }
    }
}

#[test]
fn every_named_mask() {
    let Some(mut runner) = Runner::new("named") else { return };
    problems::named([(129, 40), (300, 3), (640, 300)]).iter().for_each(|case| runner.run(case));
}

#[test]
fn random_raw_masks() {
    let Some(mut runner) = Runner::new("raw") else { return };
    (0..120).map(problems::raw).for_each(|case| runner.run(&case));
}

#[test]
fn rows_and_columns_without_a_pair() {
    let Some(mut runner) = Runner::new("limits") else { return };
    for (seed, lengths) in (0..).zip([[300, 300], [256, 384], [130, 70]]) {
        let dims = dims(1, [2, 1], lengths);
        let rows = i32::try_from(lengths[0]).unwrap();
        let all = [
            ("all masked", columns(dims, |_| [0, rows, 0, 0])),
            ("all masked by two", columns(dims, |_| [100, rows, 0, 100])),
            ("first rows masked", columns(dims, |_| [0, 65, 0, 0])),
            ("a row masked", columns(dims, |_| [99, 100, 128, 129])),
            ("columns masked", columns(dims, |j| [if j % 3 == 0 { 0 } else { rows }, rows, 0, 0])),
            ("last tile of columns masked", columns(dims, |j| [if j >= 60 { 0 } else { rows }, rows, 0, 0])),
            ("lts 0", columns(dims, |j| [if j % 3 == 0 { 0 } else { rows }])),
            ("bounds above sq", columns(dims, |_| [rows - 3, i32::MAX, 0, 2])),
            ("seam inside tiles", columns(dims, |j| [60 + j, rows, 0, 60 + j])),
            ("one column seen", columns(dims, |j| [if j == 69 { rows } else { 0 }, rows, 0, 0])),
            ("window 1", FlashMask::sliding_window(shared(dims), 1).unwrap()),
        ];
        for (name, mask) in all {
            runner.both(&Case::new(name, dims, mask, seed));
        }
    }
}

#[test]
fn hard_data() {
    let Some(mut runner) = Runner::new("data") else { return };
    for data in [Data::Outliers, Data::Peaky, Data::Ones] {
        for seed in 0..2 {
            let dims = dims(1, [4, 2], [385, 1000]);
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let raw = masks::raw(MaskDims { heads: 2, ..shared(dims) }, &mut rng);
            for mask in [FlashMask::full(shared(dims)).unwrap(), raw] {
                runner.both(&Case { data, ..Case::new("data", dims, mask, seed) });
            }
        }
    }
}

/// More tiles than blocks, many sections, long lists, many adds into one sum.
#[test]
fn large_problems() {
    let Some(mut runner) = Runner::new("large") else { return };
    if runner.gpu.is_simulated() {
        say("LEFT OUT on the simulated driver: large problems, which take minutes there");
        return;
    }
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let all = [
        ("full", dims(1, [2, 1], [2049, 4095])),
        ("causal", dims(2, [8, 2], [4095, 4097])),
        ("causal", dims(1, [16, 16], [4096, 4096])),
        ("sliding-window:window=1000", dims(1, [2, 1], [8192, 8192])),
        ("full", dims(1, [2, 2], [128, 20000])),
        ("full", dims(3, [2, 1], [8000, 100])),
        ("causal-document", dims(1, [4, 1], [8192, 8192])),
        ("share-question", dims(1, [4, 1], [8192, 8192])),
    ];
    for (seed, (name, dims)) in (0..).zip(all) {
        runner.run(&Case::new(name, dims, masks::named(name, shared(dims), 2000, &mut rng), seed));
    }
}

#[test]
fn segments_in_up_to_four_maps() {
    let Some(mut runner) = Runner::new("segments") else { return };
    for (seed, count) in (0..).zip([1, 2, 3, 4, 5, 8, 12, 24, 2, 3]) {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let lengths = [1, 60, 127, 128, 129, 200, 256].map(|base| base + rng.random_range(0..3));
        let distinct = rng.random_range(1..5);
        let rows: Vec<usize> =
            (0..count).map(|_| lengths[(rng.random_range(0..distinct) * 3 + count) % 7]).collect();
        let [heads_q, heads_kv, heads_per_group] =
            [[2, 2, 1], [2, 2, 2], [4, 4, 2], [6, 3, 3], [4, 1, 1]][rng.random_range(0..5)];
        let batch = 1 + usize::from(seed % 3 == 1);
        let dims = dims(batch, [heads_q, heads_kv], [rng.random_range(1..500), rows.iter().sum()]);
        let mask = masks::raw(MaskDims { batch, heads: heads_kv, ..shared(dims) }, &mut rng);
        let layout = [Layout::Bshd, Layout::Bhsd, Layout::Gaps][rng.random_range(0..3)];
        let segmented = Some(Segmented { rows, heads_per_group });
        runner.both(&Case { layout, segmented, ..Case::new("segments", dims, mask, seed) });
    }
}
