//! Who owns which rows of the sequence.
//!
//! A rank's rows are increasing in global order. That is what makes the fold of a mask exact (rule P2): an interval of
//! global rows meets them in an interval of local rows.
use std::ops::Range;

use serde::{Deserialize, Serialize};
use symm_buffer::{Pe, World};

use crate::Error;

/// The two cuts that need no lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ShardingKind {
    /// Rank r of N owns rows floor(r S / N) .. floor((r + 1) S / N).
    Contiguous,
    /// 2N blocks cut at floor(i S / 2N); rank r owns blocks r and 2N - 1 - r. Balances causal masks.
    DualChunk,
}

impl ShardingKind {
    /// All of them, in the order in which help texts list them.
    pub const ALL: [ShardingKind; 2] = [Self::Contiguous, Self::DualChunk];

    /// The name that users write: `contiguous`, `dual-chunk`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Contiguous => "contiguous",
            Self::DualChunk => "dual-chunk",
        }
    }
}

impl std::fmt::Display for ShardingKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for ShardingKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let found = Self::ALL.into_iter().find(|kind| kind.name() == text);
        found.ok_or_else(|| Error::UnknownSharding {
            name: text.to_owned(),
            known: Self::ALL.map(Self::name).join(", "),
        })
    }
}

/// A partition of rows 0 .. S among ranks. Every rank owns at least one row; lengths may differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawSharding", into = "RawSharding")]
pub struct Sharding {
    seq_len: usize,
    world: World,
    /// Per rank, increasing, none empty, neighbours joined.
    ranks: Vec<Vec<Range<usize>>>,
    /// Per rank, the local index of the first row of each range.
    firsts: Vec<Vec<usize>>,
    /// All ranges in global order.
    runs: Vec<Run>,
}

/// Neighbouring rows with one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Global rows.
    pub rows: Range<usize>,
    /// Who owns them.
    pub owner: Pe,
    /// Local index of the first of them.
    pub first_local: usize,
}

impl Sharding {
    /// Cuts `seq_len` rows for `world` ranks.
    ///
    /// # Errors
    /// [`Error::TooManyRanks`] for more ranks than rows; [`Error::EmptyRank`] when a dual-chunk cut of fewer than 2N
    /// rows leaves a rank with none.
    pub fn new(kind: ShardingKind, seq_len: usize, world: World) -> Result<Self, Error> {
        let n = world.size();
        if n > seq_len {
            return Err(Error::TooManyRanks { ranks: n, seq_len });
        }
        let block = |i: usize, of: usize| cut(i, of, seq_len)..cut(i + 1, of, seq_len);
        let rows = |rank: usize| match kind {
            ShardingKind::Contiguous => vec![block(rank, n)],
            ShardingKind::DualChunk => vec![block(rank, 2 * n), block(2 * n - 1 - rank, 2 * n)],
        };
        Self::checked(seq_len, (0..n).map(rows).map(joined).collect())
    }

    /// [`Sharding::new`] with [`ShardingKind::Contiguous`].
    ///
    /// # Errors
    /// [`Error::TooManyRanks`].
    pub fn contiguous(seq_len: usize, world: World) -> Result<Self, Error> {
        Self::new(ShardingKind::Contiguous, seq_len, world)
    }

    /// [`Sharding::new`] with [`ShardingKind::DualChunk`].
    ///
    /// # Errors
    /// [`Error::TooManyRanks`], [`Error::EmptyRank`].
    pub fn dual_chunk(seq_len: usize, world: World) -> Result<Self, Error> {
        Self::new(ShardingKind::DualChunk, seq_len, world)
    }

    /// Any partition: for each rank its ranges of global rows. Neighbouring ranges are joined.
    ///
    /// # Errors
    /// [`Error::Fabric`] for no ranks, [`Error::EmptyRank`], [`Error::EmptyRange`], [`Error::RangeOutside`],
    /// [`Error::RangeOrder`] when a rank's ranges do not increase, [`Error::RangeTwice`] or [`Error::RangeMissing`]
    /// when the ranks together do not cover every row once.
    pub fn explicit(seq_len: usize, ranks: Vec<Vec<Range<usize>>>) -> Result<Self, Error> {
        for (rank, ranges) in (0..).map(Pe).zip(&ranks) {
            check_ranges(seq_len, rank, ranges)?;
        }
        Self::checked(seq_len, ranks.into_iter().map(joined).collect())
    }

    /// Rows of the whole sequence, S.
    pub const fn seq_len(&self) -> usize {
        self.seq_len
    }

    /// The ranks.
    pub const fn world(&self) -> World {
        self.world
    }

    /// A rank's global rows: increasing ranges.
    ///
    /// # Panics
    /// When `rank` is outside the world.
    pub fn rows(&self, rank: Pe) -> &[Range<usize>] {
        &self.ranks[rank.index()]
    }

    /// How many rows a rank owns.
    ///
    /// # Panics
    /// When `rank` is outside the world.
    pub fn len(&self, rank: Pe) -> usize {
        self.rows(rank).iter().map(Range::len).sum()
    }

    /// The largest [`Sharding::len`].
    pub fn max_len(&self) -> usize {
        self.world.ranks().map(|rank| self.len(rank)).max().unwrap_or(0)
    }

    /// The global row of each local row, in order: for rotary positions and labels.
    ///
    /// # Panics
    /// When `rank` is outside the world.
    pub fn positions(&self, rank: Pe) -> Vec<usize> {
        self.rows(rank).iter().cloned().flatten().collect()
    }

    /// How many rows of `rank` lie before global row `row`: the fold of a mask bound (rule P2).
    ///
    /// # Panics
    /// When `rank` is outside the world.
    #[inline]
    pub fn rows_before(&self, rank: Pe, row: usize) -> usize {
        let ranges = &self.ranks[rank.index()];
        let begun = ranges.partition_point(|range| range.start < row);
        match begun.checked_sub(1) {
            None => 0,
            Some(last) => self.firsts[rank.index()][last] + (row.min(ranges[last].end) - ranges[last].start),
        }
    }

    /// Runs of rows with one owner, in global order; they cover the sequence.
    pub fn runs(&self) -> &[Run] {
        &self.runs
    }

    /// `me`, then the other ranks in the order in which their keys arrive: me-1, me-2, ... (rule P4).
    pub fn gather_order(&self, me: Pe) -> impl Iterator<Item = Pe> + '_ {
        std::iter::once(me).chain(self.world.before(me))
    }

    /// `me` as a rank of this world.
    ///
    /// # Errors
    /// [`Error::NoSuchRank`].
    pub fn check_rank(&self, me: Pe) -> Result<(), Error> {
        match me.index() < self.world.size() {
            true => Ok(()),
            false => Err(Error::NoSuchRank { rank: me, world: self.world.size() }),
        }
    }

    fn checked(seq_len: usize, ranks: Vec<Vec<Range<usize>>>) -> Result<Self, Error> {
        let world = World::new(u32::try_from(ranks.len()).unwrap_or(u32::MAX))?;
        if let Some((rank, _)) = (0..).map(Pe).zip(&ranks).find(|(_, ranges)| ranges.is_empty()) {
            return Err(Error::EmptyRank { rank, seq_len, ranks: world.size() });
        }
        let firsts: Vec<Vec<usize>> = ranks.iter().map(|ranges| firsts_of(ranges)).collect();
        let mut runs = Vec::with_capacity(ranks.iter().map(Vec::len).sum());
        for (owner, (ranges, firsts)) in (0..).map(Pe).zip(ranks.iter().zip(&firsts)) {
            let of_rank = ranges.iter().cloned().zip(firsts);
            runs.extend(of_rank.map(|(rows, &first_local)| Run { rows, owner, first_local }));
        }
        runs.sort_by_key(|run| run.rows.start);
        check_partition(seq_len, &runs)?;
        Ok(Self { seq_len, world, ranks, firsts, runs })
    }
}

/// floor(i S / n), without overflow.
fn cut(i: usize, n: usize, seq_len: usize) -> usize {
    let at = (i as u128 * seq_len as u128) / n as u128;
    // i <= n, so the cut is at most seq_len.
    at as usize
}

fn joined(ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::with_capacity(ranges.len());
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match out.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => out.push(range),
        }
    }
    out
}

fn firsts_of(ranges: &[Range<usize>]) -> Vec<usize> {
    let counted = ranges.iter().scan(0, |next, range| {
        let first = *next;
        *next += range.len();
        Some(first)
    });
    counted.collect()
}

fn check_ranges(seq_len: usize, rank: Pe, ranges: &[Range<usize>]) -> Result<(), Error> {
    let mut previous_end = 0;
    for range in ranges.iter().cloned() {
        if range.is_empty() {
            return Err(Error::EmptyRange { rank, range });
        }
        if range.end > seq_len {
            return Err(Error::RangeOutside { rank, range, seq_len });
        }
        if range.start < previous_end {
            return Err(Error::RangeOrder { rank, range, previous_end });
        }
        previous_end = range.end;
    }
    Ok(())
}

/// Every row exactly once; `runs` are sorted by their first row.
fn check_partition(seq_len: usize, runs: &[Run]) -> Result<(), Error> {
    let mut covered = 0;
    let mut last = Pe(0);
    for Run { rows, owner, .. } in runs {
        if rows.start < covered {
            return Err(Error::RangeTwice { row: rows.start, first: last, second: *owner });
        }
        if rows.start > covered {
            return Err(Error::RangeMissing { rows: covered..rows.start });
        }
        (covered, last) = (rows.end, *owner);
    }
    match covered == seq_len {
        true => Ok(()),
        false => Err(Error::RangeMissing { rows: covered..seq_len }),
    }
}

/// What is stored; checked again when read.
#[derive(Serialize, Deserialize)]
struct RawSharding {
    seq_len: usize,
    ranks: Vec<Vec<Range<usize>>>,
}

impl TryFrom<RawSharding> for Sharding {
    type Error = Error;

    fn try_from(raw: RawSharding) -> Result<Self, Error> {
        Self::explicit(raw.seq_len, raw.ranks)
    }
}

impl From<Sharding> for RawSharding {
    fn from(sharding: Sharding) -> Self {
        Self { seq_len: sharding.seq_len, ranks: sharding.ranks }
    }
}

#[cfg(test)]
#[expect(clippy::single_range_in_vec_init, reason = "a rank with one range is what is meant")]
mod tests {
    use super::*;

    fn world(ranks: u32) -> World {
        World::new(ranks).unwrap()
    }

    #[test]
    fn cuts_are_those_of_the_definition() {
        let contiguous = Sharding::contiguous(10, world(3)).unwrap();
        assert_eq!([0, 1, 2].map(|r| contiguous.rows(Pe(r)).to_vec()), [[0..3], [3..6], [6..10]]);
        let dual = Sharding::dual_chunk(13, world(3)).unwrap();
        // Cuts of 13 rows in 6 blocks: 0, 2, 4, 6, 8, 10, 13. The last rank's two blocks touch.
        assert_eq!(dual.rows(Pe(0)), [0..2, 10..13]);
        assert_eq!(dual.rows(Pe(1)), [2..4, 8..10]);
        assert_eq!(dual.rows(Pe(2)), [4..8]);
        assert_eq!(dual.positions(Pe(0)), [0, 1, 10, 11, 12]);
        assert_eq!(dual.len(Pe(0)) + dual.len(Pe(1)) + dual.len(Pe(2)), 13);
    }

    #[test]
    fn every_cut_is_a_partition_and_folds_as_counted() {
        for seq_len in 1..40 {
            for ranks in 1..9 {
                for kind in ShardingKind::ALL {
                    let Ok(sharding) = Sharding::new(kind, seq_len, world(ranks)) else {
                        assert!(seq_len < 2 * ranks as usize, "{kind} of {seq_len} rows for {ranks} ranks");
                        continue;
                    };
                    let mut all: Vec<usize> =
                        sharding.world().ranks().flat_map(|rank| sharding.positions(rank)).collect();
                    all.sort_unstable();
                    assert_eq!(all, (0..seq_len).collect::<Vec<_>>());
                    for rank in sharding.world().ranks() {
                        for row in 0..seq_len + 3 {
                            let expected = sharding.positions(rank).iter().filter(|at| **at < row).count();
                            assert_eq!(sharding.rows_before(rank, row), expected);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn refusals_name_rank_range_and_numbers() {
        assert!(matches!(
            Sharding::contiguous(3, world(4)),
            Err(Error::TooManyRanks { ranks: 4, seq_len: 3 })
        ));
        // 6 rows in 10 blocks: blocks 2 and 7 are empty.
        assert!(matches!(Sharding::dual_chunk(6, world(5)), Err(Error::EmptyRank { rank: Pe(2), .. })));
        let refused = |ranks: Vec<Vec<Range<usize>>>| Sharding::explicit(10, ranks).unwrap_err();
        assert!(matches!(refused(vec![]), Error::Fabric(symm_buffer::Error::NoRanks { .. })));
        assert!(matches!(refused(vec![vec![0..10], vec![]]), Error::EmptyRank { rank: Pe(1), .. }));
        assert!(matches!(refused(vec![vec![0..4, 4..4]]), Error::EmptyRange { rank: Pe(0), .. }));
        assert!(matches!(refused(vec![vec![0..11]]), Error::RangeOutside { seq_len: 10, .. }));
        let order = refused(vec![vec![5..10, 0..5]]);
        assert!(matches!(&order, Error::RangeOrder { rank: Pe(0), previous_end: 10, .. }), "{order}");
        assert!(order.to_string().contains("0..5"));
        let twice = refused(vec![vec![0..6], vec![5..10]]);
        assert!(matches!(twice, Error::RangeTwice { row: 5, first: Pe(0), second: Pe(1) }));
        assert!(
            matches!(refused(vec![vec![0..4], vec![5..10]]), Error::RangeMissing { rows } if rows == (4..5))
        );
        assert!(matches!(refused(vec![vec![0..4]]), Error::RangeMissing { rows } if rows == (4..10)));
    }

    #[test]
    fn names_and_stored_shardings_round_trip() {
        for kind in ShardingKind::ALL {
            assert_eq!(kind.name().parse::<ShardingKind>().unwrap(), kind);
        }
        let unknown = "zigzag".parse::<ShardingKind>().unwrap_err().to_string();
        assert!(unknown.contains("contiguous, dual-chunk"), "{unknown}");
        let sharding = Sharding::explicit(9, vec![vec![0..2, 2..3, 7..9], vec![3..7]]).unwrap();
        let text = serde_json::to_string(&sharding).unwrap();
        assert_eq!(serde_json::from_str::<Sharding>(&text).unwrap(), sharding);
        assert!(serde_json::from_str::<Sharding>(&text.replace("\"seq_len\":9", "\"seq_len\":8")).is_err());
    }
}
