//! Lengths of the documents packed into each sequence of a batch.
use std::ops::Range;

use super::MaskDims;
use crate::Error;

/// Checked document lengths: per sequence, each at least 1, together exactly the sequence.
///
/// Padding is not guessed: a sequence that ends in padding names it as a last document of its own, which then
/// sees only itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Documents {
    lengths: Vec<Vec<usize>>,
    seq: usize,
}

impl Documents {
    /// `lengths[batch]` are the documents of one sequence in order; each sequence has `seq` rows.
    ///
    /// # Errors
    /// [`Error::EmptyDocument`], or [`Error::DocumentSum`] when a sequence is not filled exactly;
    /// [`Error::ZeroDim`] for no sequence or no rows.
    pub fn new(lengths: Vec<Vec<usize>>, seq: usize) -> Result<Self, Error> {
        let call = "Documents::new";
        if let Some((name, _)) = [("batch", lengths.len()), ("seq", seq)].into_iter().find(|(_, n)| *n == 0) {
            return Err(Error::ZeroDim { call, name });
        }
        for (batch, documents) in lengths.iter().enumerate() {
            if let Some(document) = documents.iter().position(|length| *length == 0) {
                return Err(Error::EmptyDocument { batch, document });
            }
            let sum = documents.iter().fold(0, |sum: usize, length| sum.saturating_add(*length));
            if sum != seq {
                return Err(Error::DocumentSum { batch, sum, seq });
            }
        }
        Ok(Self { lengths, seq })
    }

    /// One document per sequence of `dims`, as long as its keys.
    ///
    /// # Errors
    /// [`Error::ZeroDim`], [`Error::TooLong`] or [`Error::MaskMemory`] when no mask has these `dims`.
    pub fn one_per_sequence(dims: MaskDims) -> Result<Self, Error> {
        dims.check("Documents::one_per_sequence")?;
        dims.check_memory("Documents::one_per_sequence")?;
        Self::new(vec![vec![dims.seq_k]; dims.batch], dims.seq_k)
    }

    /// Number of sequences.
    pub const fn batch(&self) -> usize {
        self.lengths.len()
    }

    /// Rows of each sequence.
    pub const fn seq(&self) -> usize {
        self.seq
    }

    /// Lengths of the documents of one sequence.
    ///
    /// # Panics
    /// When there is no such sequence.
    pub fn lengths(&self, batch: usize) -> &[usize] {
        &self.lengths[batch]
    }

    /// Rows of each document of one sequence, in order.
    ///
    /// # Panics
    /// When there is no such sequence.
    pub fn spans(&self, batch: usize) -> impl DoubleEndedIterator<Item = Range<usize>> + '_ {
        // Cumulative ends would do, but the iterator must also run backwards: the last document is asked for.
        let starts: Vec<usize> = (self.lengths[batch].iter())
            .scan(0, |end, length| {
                let start = *end;
                *end += length;
                Some(start)
            })
            .collect();
        starts.into_iter().zip(&self.lengths[batch]).map(|(start, length)| start..start + length)
    }

    /// For each document the first `floor(fraction * length)` rows, as `prefix_lm_document` takes them.
    pub fn prefixes(&self, fraction: f64) -> Vec<Vec<usize>> {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to 0..=length")]
        let prefix = |length: &usize| (fraction * *length as f64).clamp(0.0, *length as f64) as usize;
        self.lengths.iter().map(|documents| documents.iter().map(prefix).collect()).collect()
    }

    /// Whether these are documents of a mask of `dims`, and rows and columns are the same tokens.
    pub(super) fn check(&self, call: &'static str, dims: MaskDims) -> Result<(), Error> {
        let MaskDims { batch, seq_q, seq_k, .. } = dims;
        if seq_q != seq_k {
            return Err(Error::NotSquare { call, seq_q, seq_k });
        }
        if self.batch() != batch {
            return Err(Error::PerSequence { call, name: "documents", got: self.batch(), batch });
        }
        if self.seq != seq_k {
            return Err(Error::DocumentSum { batch: 0, sum: self.seq, seq: seq_k });
        }
        Ok(())
    }
}
