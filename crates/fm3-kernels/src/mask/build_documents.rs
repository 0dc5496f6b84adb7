//! Constructors of masks over packed documents; rows and columns are the same tokens, so s_q = s_k.
use std::ops::Range;

use super::build::{at_most, generate, per_sequence};
use super::{Documents, FlashMask, MaskDims};
use crate::Error;

impl FlashMask {
    /// Each document is causal and alone (C = 1).
    ///
    /// # Errors
    /// [`Error::NotSquare`], [`Error::PerSequence`] or [`Error::DocumentSum`] when `documents` do not fit
    /// `dims`; as [`causal`](Self::causal).
    pub fn causal_document(dims: MaskDims, documents: &Documents) -> Result<Self, Error> {
        let call = "FlashMask::causal_document";
        documents.check(call, dims)?;
        generate(call, dims, true, |at| of_each_key(documents, at.batch).map(|document| [document.end]))
    }

    /// Each document sees itself whole and no other (C = 2, not causal).
    ///
    /// # Errors
    /// As [`causal_document`](Self::causal_document).
    pub fn document(dims: MaskDims, documents: &Documents) -> Result<Self, Error> {
        let call = "FlashMask::document";
        documents.check(call, dims)?;
        generate(call, dims, false, |at| {
            of_each_key(documents, at.batch).map(|document| [document.end, document.start])
        })
    }

    /// Causal documents, and the first, the question, is seen by all that follow (C = 1).
    ///
    /// # Errors
    /// As [`causal_document`](Self::causal_document).
    pub fn share_question(dims: MaskDims, documents: &Documents) -> Result<Self, Error> {
        let call = "FlashMask::share_question";
        documents.check(call, dims)?;
        generate(call, dims, true, |at| {
            of_each_key(documents, at.batch).map(|document| {
                let question = document.start == 0;
                [if question { documents.seq() } else { document.end }]
            })
        })
    }

    /// Causal documents, and the last sees all before it (C = 2).
    ///
    /// # Errors
    /// As [`causal_document`](Self::causal_document).
    pub fn causal_blockwise(dims: MaskDims, documents: &Documents) -> Result<Self, Error> {
        let call = "FlashMask::causal_blockwise";
        documents.check(call, dims)?;
        generate(call, dims, true, |at| {
            let last = documents.spans(at.batch).next_back().map_or(0, |document| document.start);
            of_each_key(documents, at.batch).map(move |document| [document.end, last.max(document.end)])
        })
    }

    /// Causal documents, and the first `prefixes[batch][document]` keys of each are seen by all of its rows
    /// (C = 2, not causal). [`Documents::prefixes`] makes a list from a fraction.
    ///
    /// # Errors
    /// As [`causal_document`](Self::causal_document); [`Error::PerSequence`] and [`Error::WrongLength`] when
    /// there are not as many prefixes as documents, [`Error::MaskParameter`] for one longer than its
    /// document.
    pub fn prefix_lm_document(
        dims: MaskDims,
        documents: &Documents,
        prefixes: &[Vec<usize>],
    ) -> Result<Self, Error> {
        let call = "FlashMask::prefix_lm_document";
        documents.check(call, dims)?;
        per_sequence(call, "prefixes", prefixes.len(), dims)?;
        for (batch, list) in prefixes.iter().enumerate() {
            let lengths = documents.lengths(batch);
            if list.len() != lengths.len() {
                return Err(Error::WrongLength { call, expected: lengths.len(), got: list.len() });
            }
            for (prefix, length) in list.iter().zip(lengths) {
                at_most(call, "prefix", *prefix, *length)?;
            }
        }
        generate(call, dims, false, |at| {
            let spans = documents.spans(at.batch).zip(&prefixes[at.batch]);
            spans.flat_map(|(document, prefix)| {
                let seen_by_all = document.start + prefix;
                document
                    .clone()
                    .map(move |key| [document.end, if key < seen_by_all { document.start } else { key }])
            })
        })
    }

    /// One sequence, one mask head, documents given by cumulative lengths `[0, l0, l0 + l1, ...]`; causal or
    /// not.
    ///
    /// # Errors
    /// [`Error::CuSeqlens`] when they do not start at 0 or do not increase; [`Error::MaskMemory`].
    pub fn from_cu_seqlens(cu_seqlens: &[i32], causal: bool) -> Result<Self, Error> {
        let first = cu_seqlens.first().copied().unwrap_or(0);
        if first != 0 {
            return Err(Error::CuSeqlens { index: 0, value: first });
        }
        if cu_seqlens.len() < 2 {
            return Err(Error::CuSeqlens { index: cu_seqlens.len(), value: 0 });
        }
        let mut lengths = Vec::with_capacity(cu_seqlens.len() - 1);
        for (index, pair) in cu_seqlens.windows(2).enumerate() {
            if pair[1] <= pair[0] {
                return Err(Error::CuSeqlens { index: index + 1, value: pair[1] });
            }
            lengths.push(pair[1].abs_diff(pair[0]) as usize);
        }
        let seq = lengths.iter().sum();
        let dims = MaskDims { batch: 1, heads: 1, seq_q: seq, seq_k: seq };
        let documents = Documents::new(vec![lengths], seq)?;
        if causal { Self::causal_document(dims, &documents) } else { Self::document(dims, &documents) }
    }
}

/// The rows of its document, for each key of a sequence.
fn of_each_key(documents: &Documents, batch: usize) -> impl Iterator<Item = Range<usize>> + '_ {
    documents.spans(batch).flat_map(|document| std::iter::repeat_n(document.clone(), document.len()))
}
