//! The backward kernels against the definition of a gradient: finite differences of f64 attention, not its formulas.
#![expect(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "packed gradients overlap, as no safe view may")]
mod gpu_common;

use fm3_kernels::FlashMask;
use gpu_common::differences::check_differences;
use gpu_common::keys::Half;
use gpu_common::parts::Parted;
use gpu_common::problems::{columns, dims, shared};
use gpu_common::{Case, Gpu, Suite};
use half::{bf16, f16};

/// One tile, and two tiles either way; causal, and two bands in every column.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (seed, lengths) in (0..).zip([[40, 40], [150, 200]]) {
        let dims = dims(1, [2, 1], lengths);
        let bands = columns(dims, |j| [12 + j / 2, 20 + j / 2, 3, 9 - j % 4]);
        cases.push(Case::new("causal", dims, FlashMask::causal(shared(dims)).unwrap(), seed));
        cases.push(Case::new("two bands", dims, bands, seed));
    }
    cases
}

#[test]
fn bf16_gradients_are_those_of_finite_differences() {
    run::<bf16>("differences bf16");
}

#[test]
fn f16_gradients_are_those_of_finite_differences() {
    run::<f16>("differences f16");
}

/// dQ in any order and in one.
fn run<T: Half>(name: &'static str) {
    let Some(_) = Gpu::new() else { return };
    let mut suite = Suite::new(name);
    for case in cases() {
        suite.case(&case, || {
            let mut problem = Parted::<T>::new(Gpu::new().unwrap(), case.clone());
            let any_order = problem.plain()?;
            problem.case.deterministic = true;
            let one_order = problem.plain()?;
            check_differences(&case, &problem.tensors, &[any_order, one_order])
        });
    }
}
