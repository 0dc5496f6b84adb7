//! Constructors of masks that know nothing of documents.
//!
//! Row i stands at position i + s_k - s_q: the last row at the last key, as in the causal diagonal. Windows
//! and prefixes count positions, so that each mask is defined for any s_q and s_k. The set of masks is that
//! of FlashMask's benchmarks (Wang et al. 2024, figure 1).
use std::ops::Range;

use super::random::SplitMix64;
use super::{Columns, FlashMask, MaskDims, MaskHead};
use crate::Error;

/// Parameters of [`FlashMask::global_sliding_window`], in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GlobalWindow {
    /// The first tokens, which see and are seen by all.
    pub global: usize,
    /// Keys before itself that a row sees.
    pub left: usize,
    /// Keys after itself that a row sees.
    pub right: usize,
}

/// Parameters of [`FlashMask::random_eviction`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// Keys that the cache holds: the position from which each row evicts one key.
    pub start: usize,
    /// Seed of the choice; the same on every platform.
    pub seed: u64,
}

impl FlashMask {
    /// Every row sees every column (C = 2, not causal).
    ///
    /// # Errors
    /// [`Error::ZeroDim`], [`Error::TooLong`] or [`Error::MaskMemory`].
    pub fn full(dims: MaskDims) -> Result<Self, Error> {
        generate("FlashMask::full", dims, false, |_| (0..dims.seq_k).map(|_| [dims.seq_q, 0]))
    }

    /// Every row sees the columns up to its own position (C = 1).
    ///
    /// # Errors
    /// [`Error::ZeroDim`], [`Error::TooLong`] or [`Error::MaskMemory`].
    pub fn causal(dims: MaskDims) -> Result<Self, Error> {
        generate("FlashMask::causal", dims, true, |_| (0..dims.seq_k).map(|_| [dims.seq_q]))
    }

    /// Causal, and each row sees only the last `window` keys, itself among them (C = 1).
    ///
    /// # Errors
    /// As [`causal`](Self::causal); [`Error::MaskParameter`] for a window of 0.
    pub fn sliding_window(dims: MaskDims, window: usize) -> Result<Self, Error> {
        let call = "FlashMask::sliding_window";
        at_least_one(call, "window", window)?;
        generate(call, dims, true, |_| {
            (0..dims.seq_k).map(move |key| [dims.row_of(key.saturating_add(window))])
        })
    }

    /// Each row sees `left` keys before itself, itself, `right` after; the global tokens see and are seen by
    /// all (C = 4).
    ///
    /// # Errors
    /// As [`causal`](Self::causal).
    pub fn global_sliding_window(dims: MaskDims, window: GlobalWindow) -> Result<Self, Error> {
        let GlobalWindow { global, left, right } = window;
        generate("FlashMask::global_sliding_window", dims, false, |_| {
            (0..dims.seq_k).map(move |key| {
                let past = if key < global {
                    dims.seq_q
                } else {
                    dims.row_of(key.saturating_add(left).saturating_add(1))
                };
                [past, dims.seq_q, dims.row_of(global), dims.row_of(key.saturating_sub(right))]
            })
        })
    }

    /// Causal, and the first `prefixes[batch]` keys are seen by every row (C = 2, not causal).
    ///
    /// # Errors
    /// As [`causal`](Self::causal); [`Error::PerSequence`]; [`Error::MaskParameter`] for a prefix above s_k.
    pub fn prefix_lm_causal(dims: MaskDims, prefixes: &[usize]) -> Result<Self, Error> {
        let call = "FlashMask::prefix_lm_causal";
        per_sequence(call, "prefixes", prefixes.len(), dims)?;
        for prefix in prefixes {
            at_most(call, "prefix", *prefix, dims.seq_k)?;
        }
        generate(call, dims, false, |at| {
            let prefix = prefixes[at.batch];
            (0..dims.seq_k).map(move |key| [dims.seq_q, if key < prefix { 0 } else { dims.row_of(key) }])
        })
    }

    /// Causal, and the keys of each span are hidden from the rows that stand within the same span, themselves
    /// included (C = 2). `spans[batch]` are increasing, disjoint ranges of positions.
    ///
    /// # Errors
    /// As [`causal`](Self::causal); [`Error::PerSequence`]; [`Error::MaskParameter`] for a span that is
    /// empty, beyond s_k or not after the one before.
    pub fn qk_sparse(dims: MaskDims, spans: &[Vec<Range<usize>>]) -> Result<Self, Error> {
        let call = "FlashMask::qk_sparse";
        per_sequence(call, "spans", spans.len(), dims)?;
        for list in spans {
            check_spans(call, list, dims.seq_k)?;
        }
        generate(call, dims, true, |at| {
            let mut bounds = vec![[dims.seq_q; 2]; dims.seq_k];
            for span in &spans[at.batch] {
                for key in span.clone() {
                    bounds[key] = [dims.row_of(key), dims.row_of(span.end)];
                }
            }
            bounds.into_iter()
        })
    }

    /// Causal over a cache of `start` keys: from position `start` on, each row first evicts one random key of
    /// those before it, which no later row sees (C = 1). Each batch and head draws on its own.
    ///
    /// # Errors
    /// As [`causal`](Self::causal); [`Error::MaskParameter`] for a start of 0.
    pub fn random_eviction(dims: MaskDims, eviction: Eviction) -> Result<Self, Error> {
        let call = "FlashMask::random_eviction";
        at_least_one(call, "start", eviction.start)?;
        generate(call, dims, true, |at| {
            let mut random = SplitMix64::stream(eviction.seed, [at.batch as u64, at.head as u64]);
            let mut bounds = vec![[dims.seq_q]; dims.seq_k];
            let mut kept: Vec<usize> = (0..eviction.start.min(dims.seq_k)).collect();
            for position in eviction.start..dims.seq_k {
                // `kept` has `start` >= 1 keys here, all of them before `position`.
                let evicted = kept.swap_remove(random.below(kept.len()));
                bounds[evicted] = [dims.row_of(position)];
                kept.push(position);
            }
            bounds.into_iter()
        })
    }
}

impl MaskDims {
    /// The row that stands at a position, clipped to [0, s_q].
    pub(super) fn row_of(self, position: usize) -> usize {
        position.saturating_add(self.seq_q).saturating_sub(self.seq_k).min(self.seq_q)
    }
}

/// Fills [b, h, s_k, N] from one iterator of s_k columns per head; bounds are at most s_q.
pub(super) fn generate<const N: usize, I: Iterator<Item = [usize; N]>>(
    call: &'static str,
    dims: MaskDims,
    causal: bool,
    mut head: impl FnMut(MaskHead) -> I,
) -> Result<FlashMask, Error> {
    dims.check(call)?;
    let total = dims.total_columns().saturating_mul(N);
    let mut bounds = Vec::new();
    bounds.try_reserve_exact(total).map_err(|_| Error::MaskMemory { call, bounds: total })?;
    for batch in 0..dims.batch {
        for number in 0..dims.heads {
            bounds.extend(head(MaskHead { batch, head: number }).flatten().map(bound));
        }
    }
    FlashMask::new(dims, Columns::from_count(N)?, causal, bounds)
}

/// A row as the format stores it.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "rows are checked to fit i32"
)]
pub(super) const fn bound(row: usize) -> i32 {
    row as i32
}

/// Lists given per sequence must be as many as the sequences.
pub(super) const fn per_sequence(
    call: &'static str,
    name: &'static str,
    got: usize,
    dims: MaskDims,
) -> Result<(), Error> {
    if got == dims.batch { Ok(()) } else { Err(Error::PerSequence { call, name, got, batch: dims.batch }) }
}

pub(super) fn at_most(
    call: &'static str,
    name: &'static str,
    value: usize,
    limit: usize,
) -> Result<(), Error> {
    if value > limit {
        return Err(Error::MaskParameter { call, name, value, rule: format!("at most {limit}") });
    }
    Ok(())
}

fn at_least_one(call: &'static str, name: &'static str, value: usize) -> Result<(), Error> {
    if value == 0 {
        return Err(Error::MaskParameter { call, name, value, rule: "at least 1".to_owned() });
    }
    Ok(())
}

fn check_spans(call: &'static str, spans: &[Range<usize>], seq_k: usize) -> Result<(), Error> {
    let mut reached = 0;
    for span in spans {
        if span.start < reached {
            let rule = format!("at least {reached}, where the span before ends");
            return Err(Error::MaskParameter { call, name: "span start", value: span.start, rule });
        }
        if span.end <= span.start || span.end > seq_k {
            let rule = format!("above its start {} and at most seq_k = {seq_k}", span.start);
            return Err(Error::MaskParameter { call, name: "span end", value: span.end, rule });
        }
        reached = span.end;
    }
    Ok(())
}
