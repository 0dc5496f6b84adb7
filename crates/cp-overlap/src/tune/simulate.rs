//! The cost model: when pieces arrive, when they are attended to, when the last partial is home.
//!
//! List scheduling of one rank: the link brings pieces one after the other in push order, the compute stream takes local
//! keys first and then each piece when it is there. Within 3-5 % of measured times on two H200s.
use crate::tune::Tunables;

/// What the heuristic knows of a problem: global facts, the same on every rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    /// KV heads of the problem.
    pub heads_kv: usize,
    /// Rows of the longest segment.
    pub max_rows: usize,
    /// Bytes of K and V of one row of one KV head.
    pub kv_bytes: f64,
    /// Bytes of the dK and dV partials of one row of one KV head.
    pub partial_bytes: f64,
    /// The ranks that may be slowest: those with most work.
    pub ranks: Vec<RankFacts>,
}

/// One rank of [`Facts`].
#[derive(Clone, Debug, PartialEq)]
pub struct RankFacts {
    /// Forward flops of its queries against its own keys.
    pub local_flops: f64,
    /// Forward flops of its queries against all other keys.
    pub remote_flops: f64,
    /// For each other rank, in arrival order: the rows it needs from there, summed over batches and KV heads.
    pub needed: Vec<f64>,
}

/// How a segment is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceCount {
    /// KV heads of a piece.
    pub heads: usize,
    /// Row chunks of each head group.
    pub chunks: usize,
}

impl PieceCount {
    /// Pieces of one segment.
    pub const fn pieces(self, heads_kv: usize) -> usize {
        heads_kv.div_ceil(self.heads) * self.chunks
    }
}

/// Predicted seconds of forward plus backward on the slowest rank, when segments are cut as `cut` says.
///
/// Needed rows are taken to be spread evenly over heads and rows of a segment, and remote work over the needed rows.
/// Peers are taken to be as fast as this rank, so that partials come in when this rank's go out.
pub fn simulate(facts: &Facts, cut: PieceCount, tunables: &Tunables) -> f64 {
    facts.ranks.iter().map(|rank| simulate_rank(facts, rank, cut, tunables)).fold(0.0, f64::max)
}

fn simulate_rank(facts: &Facts, rank: &RankFacts, cut: PieceCount, tunables: &Tunables) -> f64 {
    let all_needed: f64 = rank.needed.iter().sum();
    // Backward work per forward work: 10 d flops per pair instead of 4 d.
    let backward = 2.5;
    let seconds = |flops: f64| flops / tunables.flops_per_s;
    let tail = f64::from(tunables.local_tail) / 256.0;
    let mut link = tunables.first_push_s;
    let mut forward = seconds(rank.local_flops);
    let mut first = seconds(rank.local_flops) * backward * (1.0 - tail);
    // When the pieces are done in the backward, and the bytes of their partials.
    let mut partials = Vec::new();
    for group in 0..facts.heads_kv.div_ceil(cut.heads) {
        let heads = cut.heads.min(facts.heads_kv - group * cut.heads);
        let share = heads as f64 / facts.heads_kv as f64 / cut.chunks as f64;
        for needed in rank.needed.iter().filter(|needed| **needed > 0.0) {
            for _ in 0..cut.chunks {
                let rows = needed * share;
                let work = seconds(rank.remote_flops) * rows / all_needed;
                link += tunables.push_fixed_s + rows * facts.kv_bytes / tunables.link_bytes_per_s;
                forward = forward.max(link) + tunables.piece_fixed_s + work;
                first = first.max(link) + tunables.piece_fixed_s + work * backward;
                partials.push((first, rows * facts.partial_bytes));
            }
        }
    }
    let computed = first + seconds(rank.local_flops) * backward * tail;
    let home = partials.into_iter().fold(link, |busy, (done, bytes)| {
        busy.max(done) + tunables.push_fixed_s + bytes / tunables.link_bytes_per_s
    });
    forward + computed.max(home)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The measured problem: 2 ranks, 16 heads of 128, no mask, `seq` tokens in all.
    fn measured(seq: f64) -> Facts {
        let flops = 4.0 * 128.0 * 16.0 * (seq / 2.0) * (seq / 2.0);
        let rank = RankFacts { local_flops: flops, remote_flops: flops, needed: vec![seq / 2.0 * 16.0] };
        Facts { heads_kv: 16, max_rows: 2048, kv_bytes: 512.0, partial_bytes: 1024.0, ranks: vec![rank] }
    }

    #[test]
    fn the_forward_is_near_the_measured_times() {
        // S = 8192, milliseconds: 4 batches of 4 heads 0.3974, one batch 0.439. The forward alone: backward costs 0.
        let facts = measured(8192.0);
        for (heads, milliseconds) in [(4, 0.3974), (16, 0.439)] {
            let cut = PieceCount { heads, chunks: 1 };
            let (flops, link) = (facts.ranks[0].local_flops, 32.0 * 1048576.0 / 385e9);
            let both = simulate(&facts, cut, &Tunables::h200());
            // With 2.5 times the work the backward hides all pieces: local and remote work, then nothing.
            let backward = 2.5 * 2.0 * flops / 7.1e14 + 4.0 * 2.6e-6;
            let forward = (both - backward) * 1e3;
            assert!(
                (forward / milliseconds - 1.0).abs() < 0.08,
                "{heads}: {forward} for {milliseconds}, link {link}"
            );
        }
    }

    #[test]
    fn more_pieces_start_earlier_and_cost_more() {
        let facts = measured(4096.0);
        let time = |heads, tunables| simulate(&facts, PieceCount { heads, chunks: 1 }, &tunables);
        let h200 = Tunables::h200();
        assert!(time(8, h200) < time(16, h200));
        assert!(time(8, h200) < time(1, h200));
        let free = Tunables { push_fixed_s: 0.0, piece_fixed_s: 0.0, ..h200 };
        assert!(time(1, free) <= time(8, free));
    }
}
