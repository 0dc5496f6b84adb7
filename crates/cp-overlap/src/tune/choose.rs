//! The heuristic: how segments are cut into pieces.
use crate::plan::{Choice, NEED_ROWS};
use crate::tune::{Facts, PieceCount, Tunables, simulate};

/// Times closer than this are the same: the model leaves out small costs of pieces (calls, signals, caches).
const SAME: f64 = 1.01;
/// Small segments stay whole unless cutting wins by this factor; twice the 5 % by which the model is off.
const CLEARLY_SLOWER: f64 = 1.10;
/// Heads alone are enough when they give this many pieces a segment: a quarter of the link time is then the most that
/// is exposed.
const ENOUGH: usize = 4;

/// Decides the pieces from global facts alone, so every rank decides the same.
///
/// 1. Candidates: equal groups of KV heads (each divisor of their number), all rows. Row chunks only where they are
///    allowed and heads alone do not give enough pieces: 4, or as many as the piece size asks for. No piece is larger than `piece` (`large_piece`
///    for segments above two pieces) where that can be had with at most `max_pieces` pieces a segment.
/// 2. Each is [simulated](simulate) on the ranks with most work; the slowest rank counts.
/// 3. When no segment brings more than `one_piece` bytes, one piece wins unless it is over 10 % slower than the best
///    candidate (a slow link wants more pieces even of a little).
/// 4. Else the smallest time wins; among times within 1 % of it, the fewest pieces.
///
/// `heads_per_piece` and `rows_per_piece` of the tunables replace the answer. Costs under a millisecond up to 64 ranks.
pub fn choose(facts: &Facts, tunables: &Tunables) -> Choice {
    let whole = PieceCount { heads: facts.heads_kv, chunks: 1 };
    let timed: Vec<(PieceCount, f64)> =
        candidates(facts, tunables).into_iter().map(|cut| (cut, simulate(facts, cut, tunables))).collect();
    let best = timed.iter().map(|(_, time)| *time).fold(f64::INFINITY, f64::min);
    let small = segment_bytes(facts) <= tunables.one_piece.0 as f64;
    let stays_whole = small && simulate(facts, whole, tunables) <= best * CLEARLY_SLOWER;
    let near = timed.iter().filter(|(_, time)| *time <= best * SAME).map(|(cut, _)| *cut);
    let cut = match stays_whole {
        true => whole,
        false => near.min_by_key(|cut| cut.pieces(facts.heads_kv)).unwrap_or(whole),
    };
    let rows = facts.max_rows.div_ceil(cut.chunks).next_multiple_of(NEED_ROWS);
    Choice {
        heads_per_piece: tunables.heads_per_piece.unwrap_or(cut.heads).min(facts.heads_kv),
        rows_per_piece: tunables.rows_per_piece.unwrap_or(rows),
        local_tail: tunables.local_tail,
    }
}

fn candidates(facts: &Facts, tunables: &Tunables) -> Vec<PieceCount> {
    let pieces = |cut: &PieceCount| cut.pieces(facts.heads_kv);
    let divisors = (1..=facts.heads_kv).filter(|heads| facts.heads_kv.is_multiple_of(*heads));
    let mut cuts: Vec<PieceCount> = divisors.map(|heads| PieceCount { heads, chunks: 1 }).collect();
    let fewest = fewest_pieces(facts, tunables);
    let enough = fewest.max(ENOUGH);
    if tunables.row_chunks && facts.heads_kv < enough {
        // A chunk holds a block of needs at least.
        let most = enough.div_ceil(facts.heads_kv).min(facts.max_rows.div_ceil(NEED_ROWS));
        cuts.extend((2..=most).map(|chunks| PieceCount { heads: 1, chunks }));
    }
    cuts.retain(|cut| pieces(cut) <= tunables.max_pieces as usize);
    let most = cuts.iter().map(pieces).max().unwrap_or(1);
    cuts.retain(|cut| pieces(cut) >= fewest.min(most));
    cuts
}

/// Pieces of a segment that the largest piece of rule P4 asks for.
fn fewest_pieces(facts: &Facts, tunables: &Tunables) -> usize {
    let total = segment_bytes(facts);
    let (piece, large) = (tunables.piece.0 as f64, tunables.large_piece.0 as f64);
    let piece = if total <= 2.0 * piece { piece } else { large };
    let pieces = (total / piece).ceil().min(f64::from(tunables.max_pieces));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and max_pieces")]
    let pieces = pieces as usize;
    pieces
}

/// Bytes of K and V that the largest segment brings to one rank.
fn segment_bytes(facts: &Facts) -> f64 {
    let needed = facts.ranks.iter().flat_map(|rank| &rank.needed).copied().fold(0.0, f64::max);
    needed * facts.kv_bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::RankFacts;

    /// 2 ranks, `heads` MHA heads of 128 in bf16, no mask, `seq` tokens in all.
    fn facts(heads: usize, seq: usize) -> Facts {
        let rows = (seq / 2) as f64;
        let flops = 4.0 * 128.0 * heads as f64 * rows * rows;
        let rank = RankFacts { local_flops: flops, remote_flops: flops, needed: vec![rows * heads as f64] };
        Facts {
            heads_kv: heads,
            max_rows: seq / 2,
            kv_bytes: 512.0,
            partial_bytes: 1024.0,
            ranks: vec![rank],
        }
    }

    #[test]
    fn answers_near_those_that_measured_best() {
        let heads = |heads, seq| choose(&facts(heads, seq), &Tunables::h200()).heads_per_piece;
        // Up to 4 MiB one batch; 16 MiB in batches of 4 or 8 heads; above in batches of 8 to 16 MiB.
        assert_eq!([heads(4, 2048), heads(4, 4096), heads(16, 1024)], [4, 4, 16]);
        assert!(matches!(heads(16, 4096), 4 | 8));
        assert_eq!([heads(16, 8192), heads(16, 16384), heads(16, 32768)], [8, 4, 2]);
        // 8 MiB that way are 16 MiB of partials the other way: the backward wants two.
        assert_eq!(heads(16, 2048), 8);
        // One head: chunks of rows, of 16 MiB too, where they are allowed.
        let chunks = Tunables { row_chunks: true, ..Tunables::h200() };
        let choice = choose(&facts(1, 262144), &chunks);
        assert_eq!((choice.heads_per_piece, choice.rows_per_piece), (1, 32768));
    }

    #[test]
    fn one_head_is_cut_by_rows_when_the_link_is_slow() {
        let slow = Tunables { link_bytes_per_s: 20e9, row_chunks: true, ..Tunables::h200() };
        let choice = choose(&facts(1, 32768), &slow);
        assert_eq!(choice.heads_per_piece, 1);
        assert!(
            choice.rows_per_piece < 16384 && choice.rows_per_piece.is_multiple_of(NEED_ROWS),
            "{choice:?}"
        );
        // A small total too, if it matters there.
        let slower = Tunables { link_bytes_per_s: 5e9, flops_per_s: 1e13, ..slow };
        let small = facts(8, 4096);
        assert!(segment_bytes(&small) <= 8388608.0 && choose(&small, &slower).heads_per_piece < 8);
    }

    /// The groups are equal and rows are whole, whatever the sizes; no group is above what P4 allows if it can be below.
    #[test]
    fn kernels_get_equal_groups_of_whole_segments() {
        let h200 = Tunables::h200();
        for heads in 1..=33 {
            for seq in [256, 2048, 8192, 65_536, 524_288, 4_194_304] {
                let all = facts(heads, seq);
                let Choice { heads_per_piece, rows_per_piece, .. } = choose(&all, &h200);
                assert!(heads.is_multiple_of(heads_per_piece) && rows_per_piece >= seq / 2);
                let (total, head) = (segment_bytes(&all), segment_bytes(&all) / heads as f64);
                let most = if total <= 16777216.0 { 8388608.0 } else { 16777216.0 };
                let group = head * heads_per_piece as f64;
                assert!(group <= most || heads_per_piece == 1, "{heads} heads, {seq}: {group} bytes");
                // Up to 8 MiB the forward wants one batch; the backward, whose partials are twice as large, may not.
                assert!(total > 4194304.0 || heads_per_piece == heads, "{heads} heads, {seq}");
            }
        }
    }

    #[test]
    fn limits_and_overrides_hold() {
        let all = facts(16, 65536);
        let few = Tunables { max_pieces: 2, ..Tunables::h200() };
        assert!(choose(&all, &few).heads_per_piece >= 8);
        let forced = Tunables { heads_per_piece: Some(99), rows_per_piece: Some(256), ..Tunables::h200() };
        let choice = choose(&all, &forced);
        assert_eq!((choice.heads_per_piece, choice.rows_per_piece), (16, 256));
        let alone = Facts { ranks: vec![RankFacts { needed: vec![], ..all.ranks[0].clone() }], ..all };
        assert_eq!(choose(&alone, &Tunables::h200()).heads_per_piece, 16);
    }
}
