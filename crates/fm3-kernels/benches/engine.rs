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
const RUNS: usize = 7;

/// Smallest, middle and largest GFLOP/s of some runs.
struct Rates {
    min: f64,
    median: f64,
    max: f64,
}

fn main() -> Result<(), Error> {
    let product = gemm_rate(2048);
    println!("{} rayon threads, {RUNS} runs each, GFLOP/s", rayon::current_num_threads());
    println!("{:<28} {:>8} {:>8} {:>8} {:>8}", "", "median", "min", "max", "of gemm");
    print("gemm f32 2048^3", &product, &product);
    let dims = MaskDims { batch: 1, heads: 1, seq_q: DIMS.seq_q, seq_k: DIMS.seq_k };
    for (name, mask) in [("full", FlashMask::full(dims)?), ("causal", FlashMask::causal(dims)?)] {
        attention::<f32>(name, &mask, &product)?;
        attention::<bf16>(name, &mask, &product)?;
    }
    print("gemm f32 2048^3, again", &gemm_rate(2048), &product);
    Ok(())
}

fn attention<T: Element>(name: &str, mask: &FlashMask, product: &Rates) -> Result<(), Error> {
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
    let forward = rates(4.0 * work, || {
        let mut o = View4Mut::bshd(&mut o, queries)?;
        cpu::forward(problem, &pieces, &mut o, &mut lse)
    })?;
    print(&format!("forward {name} {}", T::DTYPE), &forward, product);
    let saved = Saved { o: View4::bshd(&o, queries)?, dout: View4::bshd(&dout, queries)?, lse: &lse };
    let (mut dq, mut dk, mut dv) = (q.clone(), vec![q[0]; k.data().len()], vec![q[0]; v.data().len()]);
    let backward = rates(10.0 * work, || {
        let dq = View4Mut::bshd(&mut dq, queries)?;
        let (dk, dv) = (View4Mut::bshd(&mut dk, keys)?, View4Mut::bshd(&mut dv, keys)?);
        cpu::backward(problem, &pieces, saved, Grads { dq, dk, dv })
    })?;
    print(&format!("backward {name} {}", T::DTYPE), &backward, product);
    Ok(())
}

fn rates(flops: f64, mut run: impl FnMut() -> Result<(), Error>) -> Result<Rates, Error> {
    run()?;
    let mut rates = Vec::new();
    for _ in 0..RUNS {
        let start = Instant::now();
        run()?;
        rates.push(flops / start.elapsed().as_secs_f64() / 1e9);
    }
    rates.sort_by(f64::total_cmp);
    Ok(Rates { min: rates[0], median: rates[RUNS / 2], max: rates[RUNS - 1] })
}

fn gemm_rate(n: usize) -> Rates {
    let (a, b, mut c) = (vec![1.0f32; n * n], vec![0.5f32; n * n], vec![0.0f32; n * n]);
    let step = n.cast_signed();
    let run = || {
        // SAFETY: all three are n x n dense row-major buffers that live across the call; only `c` is written.
        unsafe {
            gemm::gemm(
                n,
                n,
                n,
                c.as_mut_ptr(),
                1,
                step,
                false,
                a.as_ptr(),
                1,
                step,
                b.as_ptr(),
                1,
                step,
                1.0,
                1.0,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(0),
            );
        }
        black_box(&c);
        Ok(())
    };
    rates(2.0 * (n as f64).powi(3), run).unwrap_or(Rates { min: 0.0, median: 0.0, max: 0.0 })
}

fn print(name: &str, rates: &Rates, product: &Rates) {
    let Rates { min, median, max } = rates;
    let share = 100.0 * median / product.median;
    println!("{name:<28} {median:>8.1} {min:>8.1} {max:>8.1} {share:>6.0} %");
}
