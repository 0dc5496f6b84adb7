//! The simulated kernels depend on a mask's tables as the real ones do: what the host gets wrong there shows.
#[path = "../../../fm3-kernels/tests/gpu_common/mod.rs"]
mod gpu_common;

use fm3_kernels::cuda::{PreparedMask, Workspace};
use fm3_kernels::mask::{FULL, MaskDims, MaskTables, SIMPLE, TileLists};
use fm3_kernels::{Dims, FlashMask};
use gpu_common::backward::{GradBuffers, Workspaces};
use gpu_common::gradients::check_gradients;
use gpu_common::keys::{Buffers, Waits};
use gpu_common::{Case, Gpu, check};
use half::bf16;

/// Causal, 3 x 3 tiles, of which one is skipped in each of the first two lists.
fn case() -> Case {
    let dims = Dims { batch: 1, heads_q: 2, heads_kv: 1, seq_q: 384, seq_k: 384, head_dim: 128 };
    let mask_dims = MaskDims { batch: 1, heads: 1, seq_q: 384, seq_k: 384 };
    Case::new("tables", dims, FlashMask::causal(mask_dims).unwrap(), 1)
}

/// What the comparison says of O and LSE by tables that a mistake was made in.
fn forward(gpu: &Gpu, mistake: impl Fn(&mut MaskTables)) -> Result<(), String> {
    let case = case();
    let tensors = case.tensors::<bf16>();
    let mut tables = MaskTables::build(&case.mask, &case.segments()).unwrap();
    mistake(&mut tables);
    let mask = PreparedMask::upload(&gpu.stream, &tables).unwrap();
    let mut buffers = Buffers::new(gpu, &case, &tensors);
    let mut workspace = Workspace::new(&gpu.stream).unwrap();
    buffers.launch(gpu, &case, &mask, &mut workspace, Waits::default()).unwrap();
    check(&case, &tensors, &buffers.outputs(gpu, &case)?)
}

/// Forgets the last entry of a list.
fn shorten(lists: &mut TileLists, list: usize) {
    lists.counts[list] -= 1;
    lists.entries[list * lists.others + lists.counts[list] as usize] = u32::MAX;
}

fn class(tables: &MaskTables, at: usize) -> u32 {
    tables.by_rows.entries[at] & 3
}

#[test]
fn right_tables_are_right() {
    let Some(gpu) = Gpu::new() else { return };
    forward(&gpu, |_| {}).unwrap();
    forward(&gpu, |tables| {
        // Full tiles do not look at bands.
        assert_eq!(class(tables, 6), FULL);
        tables.bands[0] = [0, 0, i32::MAX, 0];
        tables.bands[1][0] = 256;
    })
    .unwrap_err();
    forward(&gpu, |tables| {
        // Column 0 masks nothing up to row 256, where its tile is full.
        tables.bands[0] = [256, 0, i32::MAX, 0];
    })
    .unwrap();
}

#[test]
fn an_entry_that_is_missing_shows() {
    let Some(gpu) = Gpu::new() else { return };
    for list in 0..3 {
        forward(&gpu, |tables| shorten(&mut tables.by_rows, list)).unwrap_err();
    }
}

#[test]
fn a_class_that_is_wrong_shows() {
    let Some(gpu) = Gpu::new() else { return };
    forward(&gpu, |tables| {
        assert_eq!(class(tables, 0), SIMPLE);
        tables.by_rows.entries[0] = FULL;
    })
    .unwrap_err();
}

#[test]
fn an_order_of_work_that_forgets_a_tile_shows() {
    let Some(gpu) = Gpu::new() else { return };
    forward(&gpu, |tables| tables.by_rows.ranked[1] = tables.by_rows.ranked[0]).unwrap_err();
    forward(&gpu, |tables| tables.by_rows.ranked.reverse()).unwrap();
}

#[test]
fn the_backward_pass_reads_the_lists_of_key_tiles() {
    let Some(gpu) = Gpu::new() else { return };
    let (case, mut workspaces) = (case(), Workspaces::new(&gpu));
    let mut backward = |mistake: fn(&mut MaskTables)| {
        let tensors = case.tensors::<bf16>();
        let mut tables = MaskTables::build(&case.mask, &case.segments()).unwrap();
        let right = PreparedMask::upload(&gpu.stream, &tables).unwrap();
        mistake(&mut tables);
        let mask = PreparedMask::upload(&gpu.stream, &tables).unwrap();
        let mut buffers = Buffers::new(&gpu, &case, &tensors);
        buffers.launch(&gpu, &case, &right, &mut workspaces.forward, Waits::default()).unwrap();
        let mut grads = GradBuffers::new(&gpu, &case, &buffers);
        grads.launch(&gpu, &case, (&buffers, &mask), &mut workspaces.backward).unwrap();
        check_gradients(&case, &tensors, &grads.outputs(&gpu, &case, &buffers)?)
    };
    backward(|_| {}).unwrap();
    backward(|tables| tables.by_rows.entries.fill(u32::MAX)).unwrap();
    backward(|tables| shorten(&mut tables.by_keys, 2)).unwrap_err();
    backward(|tables| tables.by_keys.entries[0] &= !3).unwrap_err();
    backward(|tables| tables.by_keys.ranked[1] = tables.by_keys.ranked[0]).unwrap_err();
    backward(|tables| tables.by_keys.ranked.reverse()).unwrap();
}
