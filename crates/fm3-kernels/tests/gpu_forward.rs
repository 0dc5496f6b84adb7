//! The forward kernel against f64 attention: lengths, ratios, layouts, masks, data.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
mod gpu_common;

use fm3_kernels::FlashMask;
use fm3_kernels::cuda::Workspace;
use fm3_kernels::mask::MaskDims;
use gpu_common::keys::{Half, run};
use gpu_common::problems::{columns, dims, shared};
use gpu_common::{Case, Data, Gpu, Layout, Suite, check, masks, problems};
use half::{bf16, f16};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn one<T: Half>(gpu: &Gpu, case: &Case, workspace: &mut Workspace) -> Result<(), String> {
    let tensors = case.tensors::<T>();
    check(case, &tensors, &run(gpu, case, &tensors, workspace)?)
}

/// bf16 and f16 in turn, all cases with one workspace.
struct Runner {
    gpu: Gpu,
    workspace: Workspace,
    suite: Suite,
    count: usize,
}

impl Runner {
    fn new(name: &'static str) -> Option<Self> {
        let gpu = Gpu::new()?;
        let workspace = Workspace::new(&gpu.stream).unwrap();
        Some(Self { gpu, workspace, suite: Suite::new(name), count: 0 })
    }

    fn run(&mut self, case: &Case) {
        self.count += 1;
        let (gpu, workspace, first) = (&self.gpu, &mut self.workspace, self.count % 2 == 1);
        self.suite.case(case, || {
            if first { one::<bf16>(gpu, case, workspace) } else { one::<f16>(gpu, case, workspace) }
        });
    }

    fn both(&mut self, case: &Case) {
        self.run(case);
        self.run(case);
    }
}

#[test]
fn lengths_around_tile_edges() {
    let Some(mut runner) = Runner::new("lengths") else { return };
    let lengths = [1, 7, 63, 64, 65, 127, 128, 129, 255, 257, 1000];
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
    for (index, heads) in [[2, 2], [2, 1], [4, 1], [8, 2], [7, 1], [16, 2]].into_iter().enumerate() {
        for batch in [1, 3] {
            for layout in layouts {
                let dims = dims(batch, heads, [259, 259]);
                let mask = FlashMask::causal(shared(dims)).unwrap();
                let section_heads = [None, Some(heads[0] / heads[1])][index % 2];
                let seed = index as u64;
                runner.both(&Case { layout, section_heads, ..Case::new("causal", dims, mask, seed) });
            }
        }
    }
}

#[test]
fn every_named_mask() {
    let Some(mut runner) = Runner::new("named") else { return };
    problems::named([(129, 40), (300, 3), (1000, 400)]).iter().for_each(|case| runner.run(case));
}

#[test]
fn random_raw_masks() {
    let Some(mut runner) = Runner::new("raw") else { return };
    (0..160).map(problems::raw).for_each(|case| runner.run(&case));
}

#[test]
fn masks_at_their_limits() {
    let Some(mut runner) = Runner::new("limits") else { return };
    for (seed, lengths) in (0..).zip([[300, 300], [256, 384], [130, 70]]) {
        let dims = dims(1, [2, 1], lengths);
        let rows = i32::try_from(lengths[0]).unwrap();
        let columns_all = [
            ("all masked", columns(dims, |_| [0, rows, 0, 0])),
            ("all masked by two", columns(dims, |_| [100, rows, 0, 100])),
            ("first rows masked", columns(dims, |_| [0, 65, 0, 0])),
            ("a row masked", columns(dims, |_| [99, 100, 128, 129])),
            ("lts 0", columns(dims, |j| [if j % 3 == 0 { 0 } else { rows }])),
            ("empty and reversed", columns(dims, |j| [50 + j % 7, 50, 20, 20])),
            ("bounds above sq", columns(dims, |_| [rows - 3, i32::MAX, 0, 2])),
            ("seam inside tiles", columns(dims, |j| [60 + j, rows, 0, 60 + j])),
            ("one column seen", columns(dims, |j| [if j == 69 { rows } else { 0 }, rows, 0, 0])),
            ("window 1", FlashMask::sliding_window(shared(dims), 1).unwrap()),
        ];
        for (name, mask) in columns_all {
            runner.both(&Case::new(name, dims, mask, seed));
        }
    }
    for ends in [vec![1; 200], vec![127, 1, 72], vec![128, 72], vec![129, 71]] {
        let dims = dims(1, [1, 1], [200, 200]);
        let documents = fm3_kernels::mask::Documents::new(vec![ends], 200).unwrap();
        let mask = FlashMask::causal_document(shared(dims), &documents).unwrap();
        runner.both(&Case::new("documents at tile edges", dims, mask, 1));
    }
}

#[test]
fn hard_data() {
    let Some(mut runner) = Runner::new("data") else { return };
    for data in [Data::Outliers, Data::Peaky, Data::Ones] {
        for seed in 0..3 {
            let dims = dims(1, [4, 2], [385, 1000]);
            let mask_dims = MaskDims { heads: 2, ..shared(dims) };
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            for mask in [FlashMask::full(shared(dims)).unwrap(), masks::raw(mask_dims, &mut rng)] {
                runner.both(&Case { data, ..Case::new("data", dims, mask, seed) });
            }
        }
    }
}

/// More tiles than blocks, many sections, long lists.
#[test]
fn large_problems() {
    let Some(mut runner) = Runner::new("large") else { return };
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let all = [
        ("full", dims(1, [4, 2], [4095, 4095])),
        ("causal", dims(2, [8, 1], [4095, 4097])),
        ("causal", dims(1, [16, 2], [8192, 8192])),
        ("sliding-window:window=1000", dims(1, [2, 1], [32768, 32768])),
        ("causal", dims(1, [64, 8], [2048, 2048])),
        ("full", dims(1, [2, 2], [128, 40000])),
        ("full", dims(3, [2, 1], [20000, 100])),
    ];
    for (seed, (name, dims)) in (0..).zip(all) {
        let mask = masks::named(name, shared(dims), 3000, &mut rng);
        runner.run(&Case::new(name, dims, mask, seed));
    }
    for (seed, name) in
        (20..).zip(["causal-document", "share-question", "prefix-lm-document", "random-eviction"])
    {
        let dims = dims(1, [4, 1], [8192, 8192]);
        let mask = masks::named(name, shared(dims), 3000, &mut rng);
        runner.both(&Case::new(name, dims, mask, seed));
    }
}
