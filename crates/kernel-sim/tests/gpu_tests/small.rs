//! Small random problems of all kinds, forward and backward, against f64 attention: minutes of the GPU tests in seconds.
#[path = "../../../fm3-kernels/tests/gpu_common/mod.rs"]
mod gpu_common;

use fm3_kernels::Dims;
use fm3_kernels::mask::MaskDims;
use gpu_common::backward::{Workspaces, run_both};
use gpu_common::case::Segmented;
use gpu_common::gradients::check_gradients;
use gpu_common::keys::{Half, run};
use gpu_common::{Case, Gpu, Layout, Suite, check, masks};
use half::{bf16, f16};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn case(seed: usize) -> Case {
    let mut rng = ChaCha8Rng::seed_from_u64(seed as u64);
    let mut pick = |of: &[usize]| of[rng.random_range(0..of.len())];
    let (group, batch) = ([1, 2, 7][seed % 3], [1, 1, 1, 3][seed % 4]);
    let kv = if group == 7 { 1 } else { pick(&[1, 2]) };
    let rows = match seed % 2 {
        0 => vec![pick(&[1, 63, 128, 200, 257])],
        _ => (0..pick(&[2, 3, 5])).map(|_| pick(&[1, 60, 128, 131])).collect(),
    };
    let (seq_q, seq_k) = (pick(&[1, 64, 129, 211, 256]), rows.iter().sum());
    let dims = Dims { batch, heads_q: kv * group, heads_kv: kv, seq_q, seq_k, head_dim: 128 };
    let mask_dims = MaskDims { batch: pick(&[1, batch]), heads: pick(&[1, kv]), seq_q, seq_k };
    let (heads_per_group, margin) = (pick(&[1, kv]), pick(&[0, 100, 131]));
    let layout = [Layout::Bshd, Layout::Bhsd, Layout::Gaps][pick(&[0, 1, 2])];
    let segmented = (rows.len() > 1).then_some(Segmented { rows, heads_per_group });
    let mask = masks::raw(mask_dims, &mut rng);
    Case {
        layout,
        segmented,
        margin,
        deterministic: seed % 5 == 1,
        ..Case::new("small", dims, mask, seed as u64)
    }
}

fn both<T: Half>(gpu: &Gpu, case: &Case, workspaces: &mut Workspaces) -> Result<(), String> {
    let tensors = case.tensors::<T>();
    check(case, &tensors, &run(gpu, case, &tensors, &mut workspaces.forward)?)?;
    check_gradients(case, &tensors, &run_both(gpu, case, &tensors, workspaces)?)
}

#[test]
fn random_problems_are_right() {
    let Some(gpu) = Gpu::new() else { return };
    let (mut suite, mut workspaces) = (Suite::new("small"), Workspaces::new(&gpu));
    for seed in 0..12 {
        let case = case(seed);
        suite.case(&case, || match seed / 2 % 2 {
            0 => both::<bf16>(&gpu, &case, &mut workspaces),
            _ => both::<f16>(&gpu, &case, &mut workspaces),
        });
    }
}
