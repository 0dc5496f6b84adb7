//! Rate of the CPU engine beside the rate of a large f32 matrix product of the `gemm` crate, with the same threads.
//!
//! `cargo bench -p fm3-kernels --bench engine`: one sequence of 4096 x 4096, 2 query heads over 1 KV head, d = 128.
//! GFLOP/s count visible pairs: 4 * pairs * d forward, 10 * pairs * d backward; 2 * n^3 for the product.
#![expect(clippy::print_stdout, reason = "a bench prints its table")]
use std::hint::black_box;
use std::time::Instant;

use fm3_kernels::cpu::{self, Grads, Keys, Problem, Saved};
use fm3_kernels::mask::MaskDims;
use fm3_kernels::view::Extents;
use fm3_kernels::{Dims, Element, Error, FlashMask, Shape, View4, View4Mut};
use half::bf16;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const DIMS: Dims = Dims { batch: 1, heads_q: 2, heads_kv: 1, seq_q: 4096, seq_k: 4096, head_dim: 128 };
const RUNS: usize = 5;

/// Smallest, middle and largest GFLOP/s of some runs.
struct Rates {
    min: f64,
    median: f64,
    max: f64,
}

fn main() -> Result<(), Error> {
    println!(
        "{} rayon threads, {RUNS} runs each, in turns with a 2048^3 f32 product; GFLOP/s",
        rayon::current_num_threads()
    );
    println!("{:<22} {:>26} {:>26} {:>8}", "", "median (min-max)", "gemm: median (min-max)", "of gemm");
    let dims = MaskDims { batch: 1, heads: 1, seq_q: DIMS.seq_q, seq_k: DIMS.seq_k };
    let mut product = Product::new(2048);
    for (name, mask) in [("full", FlashMask::full(dims)?), ("causal", FlashMask::causal(dims)?)] {
        attention::<f32>(name, &mask, &mut product)?;
        attention::<bf16>(name, &mask, &mut product)?;
    }
    Ok(())
}

fn attention<T: Element>(name: &str, mask: &FlashMask, product: &mut Product) -> Result<(), Error> {
    let shape = Shape::new(DIMS)?;
    let queries = Extents { batch: 1, seq: DIMS.seq_q, heads: DIMS.heads_q, head_dim: DIMS.head_dim };
    let keys = Extents { seq: DIMS.seq_k, heads: DIMS.heads_kv, ..queries };
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut random = |e: Extents| -> Vec<T> {
        let len = e.batch * e.seq * e.heads * e.head_dim;
        (0..len).map(|_| T::from_f32(rng.random::<f32>() * 2.0 - 1.0)).collect()
    };
    let (q, k, v, dout) = (random(queries), random(keys), random(keys), random(queries));
    let (mut o, mut lse) = (q.clone(), vec![0.0; DIMS.heads_q * DIMS.seq_q]);
    let problem = Problem { shape, mask, scale: shape.default_scale(), q: View4::bshd(&q, queries)? };
    let (k, v) = (View4::bshd(&k, keys)?, View4::bshd(&v, keys)?);
    let pieces = Keys { k, v, first_column: 0, first_head: 0 };
    // The mask has one head, which serves all query heads.
    let work = mask.visible_pairs() as f64 * (DIMS.heads_q * DIMS.head_dim) as f64;
    compare(&format!("forward {name} {}", T::DTYPE), 4.0 * work, product, || {
        let mut o = View4Mut::bshd(&mut o, queries)?;
        cpu::forward(problem, &pieces, &mut o, &mut lse)
    })?;
    let saved = Saved { o: View4::bshd(&o, queries)?, dout: View4::bshd(&dout, queries)?, lse: &lse };
    let (mut dq, mut dk, mut dv) = (q.clone(), vec![q[0]; k.data().len()], vec![q[0]; v.data().len()]);
    compare(&format!("backward {name} {}", T::DTYPE), 10.0 * work, product, || {
        let dq = View4Mut::bshd(&mut dq, queries)?;
        let (dk, dv) = (View4Mut::bshd(&mut dk, keys)?, View4Mut::bshd(&mut dv, keys)?);
        cpu::backward(problem, &pieces, saved, Grads { dq, dk, dv })
    })
}

/// Runs `attention` and the product in turns, so that both meet the same load of the machine, and prints a line.
fn compare(
    name: &str,
    flops: f64,
    product: &mut Product,
    mut attention: impl FnMut() -> Result<(), Error>,
) -> Result<(), Error> {
    attention()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        theirs.push(product.rate());
        let start = Instant::now();
        attention()?;
        ours.push(flops / start.elapsed().as_secs_f64() / 1e9);
    }
    let (ours, theirs) = (Rates::of(ours), Rates::of(theirs));
    let share = 100.0 * ours.median / theirs.median;
    println!("{name:<22} {:>26} {:>26} {share:>6.0} %", ours.to_string(), theirs.to_string());
    Ok(())
}

impl Rates {
    fn of(mut rates: Vec<f64>) -> Self {
        rates.sort_by(f64::total_cmp);
        Self { min: rates[0], median: rates[rates.len() / 2], max: rates[rates.len() - 1] }
    }
}

impl std::fmt::Display for Rates {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.1} ({:.1}-{:.1})", self.median, self.min, self.max)
    }
}

/// A square matrix product of the `gemm` crate.
struct Product {
    n: usize,
    a: Vec<f32>,
    b: Vec<f32>,
    c: Vec<f32>,
}

impl Product {
    fn new(n: usize) -> Self {
        Self { n, a: vec![1.0; n * n], b: vec![0.5; n * n], c: vec![0.0; n * n] }
    }

    /// GFLOP/s of one product on all rayon threads.
    fn rate(&mut self) -> f64 {
        let (n, step) = (self.n, self.n.cast_signed());
        let (a, b, c) = (self.a.as_ptr(), self.b.as_ptr(), self.c.as_mut_ptr());
        let threads = gemm::Parallelism::Rayon(0);
        let start = Instant::now();
        // SAFETY: all three are n x n dense row-major buffers that live across the call; only `c` is written.
        unsafe {
            gemm::gemm(
                n, n, n, c, 1, step, false, a, 1, step, b, 1, step, 1.0, 1.0, false, false, false, threads,
            );
        }
        black_box(&self.c);
        2.0 * (n as f64).powi(3) / start.elapsed().as_secs_f64() / 1e9
    }
}
