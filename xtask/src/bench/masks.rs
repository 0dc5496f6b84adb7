//! Masks of the benchmark: by name over fixed documents, from a file, or one rank's share of a causal one.
use std::path::PathBuf;

use anyhow::Context;
use cp_overlap::{Sharding, fold_mask};
use fm3_kernels::FlashMask;
use fm3_kernels::mask::{Columns, Documents, MaskDims, MaskSpec};
use fm3_kernels::shape::Dims;
use serde::Deserialize;
use symm_buffer::{Pe, World};

use crate::input::BadInput;
use crate::npy;

/// Seed of masks that are random.
const SEED: u64 = 1;

/// Who sees whom, before it is a list of bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mask {
    /// As `MaskSpec` reads it; documents are those of the data file.
    Named(String),
    /// What rank 0 of 2 has of a causal mask, dealt in two chunks a rank; keys are its own, then its peer's.
    CausalShare,
    /// Bounds i32 [b, h, s, C] in a .npy file.
    File { path: PathBuf, causal: bool },
}

#[derive(Deserialize)]
struct Data {
    documents: std::collections::BTreeMap<usize, Vec<usize>>,
    #[cfg(test)]
    density: Vec<(usize, String, f64)>,
}

impl Mask {
    /// The bounds. One mask head, shared by all sequences, unless a file has more.
    ///
    /// # Errors
    /// [`BadInput`] for a name, a file or sizes that make no mask.
    pub(super) fn build(&self, dims: Dims) -> anyhow::Result<FlashMask> {
        let shared = MaskDims { batch: 1, heads: 1, seq_q: dims.seq_q, seq_k: dims.seq_k };
        match self {
            Mask::Named(name) => named(name, shared),
            Mask::CausalShare => {
                let seq = dims.seq_k;
                let whole = FlashMask::causal(MaskDims { seq_q: seq, ..shared })?;
                Ok(fold_mask(&whole, &Sharding::dual_chunk(seq, World::new(2)?)?, Pe(0))?)
            }
            Mask::File { path, causal } => {
                let refused = |what: String| BadInput(format!("--mask file:{}: {what}", path.display()));
                let bytes = std::fs::read(path).map_err(|error| refused(error.to_string()))?;
                let ([batch, heads, seq_k, columns], bounds) = npy::parse_i32(&bytes).map_err(refused)?;
                let columns = Columns::from_count(columns).map_err(|error| refused(error.to_string()))?;
                let mask =
                    FlashMask::new(MaskDims { batch, heads, seq_k, ..shared }, columns, *causal, bounds);
                Ok(mask.map_err(|error| refused(error.to_string()))?)
            }
        }
    }

    /// Rows of the key segments: one, or one for each rank.
    pub(super) fn segments(&self, seq_k: usize) -> Vec<usize> {
        match self {
            Mask::CausalShare => vec![seq_k / 2; 2],
            Mask::Named(_) | Mask::File { .. } => vec![seq_k],
        }
    }
}

/// Lengths of the documents of a sequence; none when the data file has no such sequence.
pub(crate) fn documents(seq: usize) -> Option<Vec<usize>> {
    data().ok()?.documents.remove(&seq)
}

fn data() -> anyhow::Result<Data> {
    serde_json::from_str(include_str!("../../data/bench_masks.json")).context("bench_masks.json")
}

fn named(name: &str, dims: MaskDims) -> anyhow::Result<FlashMask> {
    let refused = |error: fm3_kernels::Error| BadInput::from_error(&error);
    let spec: MaskSpec = name.parse().map_err(refused)?;
    let documents = match documents(dims.seq_k) {
        Some(lengths) => Documents::new(vec![lengths], dims.seq_k).map_err(refused)?,
        None if spec.needs_documents() => {
            let seq = dims.seq_k;
            return Err(BadInput(format!(
                "{name}: no documents of {seq} rows are known; give docs=LENGTH+LENGTH"
            ))
            .into());
        }
        None => Documents::one_per_sequence(dims).map_err(refused)?,
    };
    Ok(spec.build(dims, &documents, SEED).map_err(refused)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(seq_q: usize, seq_k: usize) -> Dims {
        Dims { batch: 1, heads_q: 1, heads_kv: 1, seq_q, seq_k, head_dim: 128 }
    }

    #[test]
    fn masks_have_the_published_densities() {
        for (seq, name, density) in data().unwrap().density {
            let mask = Mask::Named(name.clone()).build(dims(seq, seq)).unwrap();
            let got = mask.density();
            assert!((got - density).abs() < 0.5e-5, "{seq} {name}: {got}, published {density}");
        }
    }

    #[test]
    fn a_share_of_a_causal_mask_has_half_of_its_pairs() {
        // Chunks 0 and 3 of 4, c rows each: c (c + 1) / 2 pairs, and 3 c * c + c (c + 1) / 2.
        let c = 32_u64;
        let mask = Mask::CausalShare.build(dims(64, 128)).unwrap();
        assert_eq!((mask.dims().seq_q, mask.dims().seq_k), (64, 128));
        assert_eq!(mask.visible_pairs(), c * (c + 1) + 3 * c * c);
        assert_eq!(Mask::CausalShare.segments(128), [64, 64]);
    }

    #[test]
    fn wrong_masks_are_bad_input() {
        let absent = Mask::File { path: "no/such.npy".into(), causal: false };
        for (mask, words) in [
            (Mask::Named("no-such".to_owned()), "unknown mask"),
            (Mask::Named("document".to_owned()), "give docs="),
            (absent, "no/such.npy"),
        ] {
            let error = mask.build(dims(64, 64)).unwrap_err();
            assert!(error.is::<BadInput>() && error.to_string().contains(words), "{error}");
        }
        assert!(Mask::Named("document:docs=30+34".to_owned()).build(dims(64, 64)).is_ok());
    }
}
