//! Ranks as threads, attention by the CPU engine: the same rows, to see plans and reports at work anywhere.
use std::time::{Duration, Instant};

use anyhow::Context;
use fm_cp::host::{HostConfig, Link, try_run};
use fm_cp::view::Extents;
use fm_cp::{
    Config, CpAttention, CpGroup, DType, ForwardInputs, ForwardOutputs, Options, Overlap, Sharding, View4,
    View4Mut, World,
};
use half::bf16;

use super::report::Measured;
use super::rows::Row;

/// What the emulated machine is: a link as slow against the CPU as NVLink is against a GPU.
const LINK: Link = Link { bytes_per_second: 1e9, latency: Duration::from_micros(10) };

/// How it is called in the table.
pub(super) const DEVICE: &str = "threads on this machine's CPU, links of 1 GB/s";

/// Measures a row on all ranks.
///
/// # Errors
/// What a rank returned.
pub(super) fn measure(row: &Row, ranks: u32, repeats: usize) -> anyhow::Result<Vec<Measured>> {
    let mut all = vec![Measured::default(); ranks as usize];
    for overlap in [Overlap::On, Overlap::Off] {
        let measured = measure_one(row, World::new(ranks)?, overlap, repeats)?;
        for (all, one) in all.iter_mut().zip(measured) {
            match overlap {
                Overlap::On => *all = Measured { gathered: std::mem::take(&mut all.gathered), ..one },
                Overlap::Off => all.gathered = one.overlapped,
            }
        }
    }
    Ok(all)
}

fn measure_one(row: &Row, world: World, overlap: Overlap, repeats: usize) -> anyhow::Result<Vec<Measured>> {
    let mask = row.build()?;
    let host = HostConfig { link: Some(LINK), poison: false, ..HostConfig::default() };
    let sharding = Sharding::dual_chunk(row.seq, world)?;
    let shape = row.shape(DType::Bf16);
    let results = try_run(world, host, |fabric| -> anyhow::Result<Measured> {
        let mut config = Config::from_env()?.tuned_to(&host, world);
        config.overlap = overlap;
        let mut group = CpGroup::join(fabric, config)?;
        let prepared = group.prepare(&mask, shape, &sharding)?;
        let seq = sharding.len(group.rank());
        let extents = |heads| Extents { batch: 1, seq, heads, head_dim: row.head_dim };
        let fill = |heads: usize, seed: usize| -> Vec<bf16> {
            let value = |at: usize| ((at * 2_654_435_761 + seed * 40_503) % 2003) as f32 / 1001.5 - 1.0;
            (0..seq * heads * row.head_dim).map(|at| bf16::from_f32(value(at))).collect()
        };
        let (q, k, v) = (fill(row.heads_q, 1), fill(row.heads_kv, 2), fill(row.heads_kv, 3));
        let mut o = vec![bf16::ZERO; q.len()];
        let mut lse = vec![0.0; seq * row.heads_q];
        let attention = CpAttention::new(Options::default())?;
        let mut measured = Measured::default();
        for launch in 0..=repeats {
            group.barrier()?;
            let inputs = ForwardInputs {
                q: View4::bshd(&q, extents(row.heads_q))?,
                k: View4::bshd(&k, extents(row.heads_kv))?,
                v: View4::bshd(&v, extents(row.heads_kv))?,
            };
            let outputs = ForwardOutputs { o: View4Mut::bshd(&mut o, extents(row.heads_q))?, lse: &mut lse };
            let begun = Instant::now();
            let report = attention.forward(&mut group, &prepared, inputs, outputs)?;
            let elapsed = begun.elapsed();
            // The first launch warms up.
            if launch > 0 {
                measured.overlapped.push(elapsed.as_secs_f64() * 1e3);
                measured.attention.push(report.busy.as_secs_f64() * 1e3);
            }
            measured.sent = report.bytes_sent().0 as u64;
            measured.sent_mask_blind = report.bytes_mask_blind.0 as u64;
            measured.flops = report.flops;
            measured.host_us = elapsed.as_secs_f64() * 1e6;
        }
        group.close()?;
        Ok(measured)
    })?;
    results.into_iter().collect::<anyhow::Result<_>>().with_context(|| row.name())
}
