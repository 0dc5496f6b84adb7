//! One line of the table, measured: ours and the peers', turn by turn.
use std::time::{Duration, Instant};

use fm3_kernels::cuda::cudarc::driver::CudaSlice;
use fm3_kernels::shape::Dims;

use super::cases::{Case, Pass};
use super::device::{Device, Half};
use super::monitor::Monitor;
use super::peers::{Launches, MATMUL, Peers, Work};
use super::report::{PeerFigures, Row};
use super::stats::Summary;

/// Turns: ours, the peer's, ours again. Median of all launches.
const ROUNDS: usize = 2;

/// Launches before the timed ones.
const WARMUPS: usize = 3;

/// Timed launches of a round: as many as take this long, within limits.
const ROUND_MS: f64 = 120.0;
const LAUNCHES: std::ops::RangeInclusive<usize> = 9..=40;

/// What all lines share.
pub(super) struct Bench<'a, T> {
    pub device: &'a mut Device,
    pub pool: CudaSlice<T>,
    pub peers: Option<&'a mut Peers>,
    pub monitor: &'a Monitor,
    /// Rest before each measurement.
    pub pause: Duration,
}

impl<T: Half> Bench<'_, T> {
    /// Measures one line.
    ///
    /// # Errors
    /// A mask or sizes that make no problem; a launch that fails. A peer that fails is a note in the row.
    pub(super) fn run(&mut self, case: &Case) -> anyhow::Result<Row> {
        let mask = case.mask.build(case.dims)?;
        let pairs = pairs(&mask, case.dims);
        let prepared = self.device.prepare(&mask, case.mask.segments(case.dims.seq_k))?;
        let backward = (case.pass == Pass::Backward).then_some(&prepared);
        let mut tensors = self.device.tensors(&self.pool, case.dims, backward)?;
        tensors.set_options(case.options());
        let mut row = Row::new(case, pairs);

        if case.pass == Pass::Backward {
            // Its inputs: O and LSE.
            self.device.enqueue(&mut tensors, &prepared)?;
        }
        let once = Launches { warmups: 1, launches: 1 };
        let first = self.device.calls(&mut tensors, &prepared, once, &mut Vec::new())?;
        let counts = Launches { warmups: WARMUPS, launches: launches(first[0]) };
        let (mut ours, mut host, mut matmul, mut peer) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let mut readings = Vec::new();
        for _ in 0..ROUNDS {
            self.ask(&Work::Matmul { size: MATMUL }, counts, &mut matmul, &mut row.notes);
            std::thread::sleep(self.pause);
            let start = Instant::now();
            ours.extend(self.device.calls(&mut tensors, &prepared, counts, &mut host)?);
            readings.extend(self.monitor.since(start));
            if let Some(rival) = case.peer {
                let name = if let Some((options, name)) = rival.own(case.options()) {
                    std::thread::sleep(self.pause);
                    tensors.set_options(options);
                    peer.extend(self.device.calls(&mut tensors, &prepared, counts, &mut Vec::new())?);
                    tensors.set_options(case.options());
                    Some(name.to_owned())
                } else {
                    let work = Work::of(rival, case.dims, case.pass)?;
                    work.and_then(|work| self.ask(&work, counts, &mut peer, &mut row.notes))
                };
                row.peer_name = name.or(row.peer_name);
            }
        }
        self.device.check(&tensors)?;
        row.launches = ours.len();
        row.set_times(Summary::of(&ours), Summary::of(&matmul));
        row.peer = Summary::of(&peer).map(|ms| PeerFigures::new(ms, row.flops));
        row.host_us = Summary::of(&host);
        row.reading = super::monitor::mean(readings.into_iter());
        Ok(row)
    }

    /// Adds a peer's times; its name when it answers.
    fn ask(
        &mut self,
        work: &Work,
        counts: Launches,
        times: &mut Vec<f64>,
        notes: &mut Vec<String>,
    ) -> Option<String> {
        let peers = self.peers.as_mut()?;
        std::thread::sleep(self.pause);
        match peers.time(work, counts) {
            Ok(answer) => {
                times.extend(answer.ms);
                Some(answer.name)
            }
            Err(error) => {
                let note = format!("{error:#}");
                if !notes.contains(&note) {
                    notes.push(note);
                }
                None
            }
        }
    }
}

/// Visible pairs of one query head, over all query heads and sequences.
fn pairs(mask: &fm3_kernels::FlashMask, dims: Dims) -> u64 {
    let of = mask.dims();
    let copies = (dims.heads_q / of.heads) * (dims.batch / of.batch);
    mask.visible_pairs() * copies as u64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped")]
fn launches(ms: f64) -> usize {
    ((ROUND_MS / ms).min(1e6) as usize).clamp(*LAUNCHES.start(), *LAUNCHES.end())
}

#[cfg(test)]
mod tests {
    use fm3_kernels::FlashMask;
    use fm3_kernels::mask::MaskDims;

    use super::*;

    #[test]
    fn pairs_are_of_all_heads_and_sequences() {
        let dims = Dims { batch: 3, heads_q: 8, heads_kv: 2, seq_q: 4, seq_k: 4, head_dim: 128 };
        let mask = |batch, heads| FlashMask::causal(MaskDims { batch, heads, seq_q: 4, seq_k: 4 }).unwrap();
        for mask in [mask(1, 1), mask(3, 2), mask(3, 8)] {
            assert_eq!(pairs(&mask, dims), 10 * 3 * 8);
        }
    }

    #[test]
    fn a_round_has_at_least_nine_launches() {
        assert_eq!([1000.0, 10.0, 0.01, 0.0].map(launches), [9, 12, 40, 40]);
    }
}
