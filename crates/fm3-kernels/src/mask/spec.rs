//! Masks by name: `causal-document`, `sliding-window:window=4096`.
use std::fmt;
use std::str::FromStr;

use super::build::per_sequence;
use super::spec_table::{Entry, Key, Kind, TABLE, Value};
use super::{Documents, Eviction, FlashMask, GlobalWindow, MaskDims};
use crate::Error;

/// A mask as users write it: `name` or `name:key=value,key=value`, before the sizes are known.
///
/// | name | parameters and defaults, S = s_k |
/// |---|---|
/// | `full`, `causal` | none |
/// | `sliding-window` | `window`: S/8 |
/// | `causal-document`, `document`, `share-question`, `causal-blockwise` | `docs`: the caller's documents |
/// | `global-sliding-window` | `global`: 16, at most S; `left`, `right`: S/16 |
/// | `prefix-lm-causal` | `prefix`: S/8 |
/// | `prefix-lm-document` | `fraction` of each document: 0.25; `docs`: the caller's documents |
/// | `qk-sparse` | `spans`: the ranges 1024..1562 and 2358..4058 of 8192, scaled to S |
/// | `random-eviction` | `start`: S/2 |
///
/// Sizes are in tokens; a default is at least 1. `docs=100+200/300` gives document lengths, `+` between
/// documents, `/` between sequences; one list serves every sequence. The defaults are those of FlashMask's
/// own masks at 8192 tokens, scaled. Displayed, a spec parses back to itself.
#[derive(Clone, Debug, PartialEq)]
pub struct MaskSpec {
    kind: Kind,
    /// Given parameters, in the order of the table.
    values: Vec<(Key, Value)>,
}

impl MaskSpec {
    /// The names of all masks.
    pub const NAMES: [&'static str; TABLE.len()] = {
        let mut names = [""; TABLE.len()];
        let mut index = 0;
        while index < names.len() {
            names[index] = TABLE[index].name;
            index += 1;
        }
        names
    };

    /// Its name, without parameters.
    pub fn name(&self) -> &'static str {
        self.entry().name
    }

    /// Whether [`build`](Self::build) reads the caller's documents.
    pub fn needs_documents(&self) -> bool {
        self.entry().keys.contains(&Key::Docs) && self.get(Key::Docs).is_none()
    }

    /// The mask for `dims`. `documents` serve the masks that need them and have no `docs` of their own;
    /// `seed` serves random eviction.
    ///
    /// # Errors
    /// Those of the constructor, and of [`Documents::new`] for `docs`.
    pub fn build(&self, dims: MaskDims, documents: &Documents, seed: u64) -> Result<FlashMask, Error> {
        dims.check("MaskSpec::build")?;
        dims.check_memory("MaskSpec::build")?;
        let own = self.own_documents(dims)?;
        let documents = own.as_ref().unwrap_or(documents);
        let size = |key: Key, of_8192: usize| self.size(key).unwrap_or_else(|| scaled(of_8192, dims.seq_k));
        match self.kind {
            Kind::Full => FlashMask::full(dims),
            Kind::Causal => FlashMask::causal(dims),
            Kind::SlidingWindow => FlashMask::sliding_window(dims, size(Key::Window, 1024)),
            Kind::CausalDocument => FlashMask::causal_document(dims, documents),
            Kind::Document => FlashMask::document(dims, documents),
            Kind::ShareQuestion => FlashMask::share_question(dims, documents),
            Kind::GlobalSlidingWindow => {
                // Global tokens are a few fixed ones (sinks): they do not grow with the sequence.
                let global = self.size(Key::Global).unwrap_or(16.min(dims.seq_k));
                let window =
                    GlobalWindow { global, left: size(Key::Left, 512), right: size(Key::Right, 512) };
                FlashMask::global_sliding_window(dims, window)
            }
            Kind::CausalBlockwise => FlashMask::causal_blockwise(dims, documents),
            Kind::PrefixLmCausal => {
                FlashMask::prefix_lm_causal(dims, &vec![size(Key::Prefix, 1024); dims.batch])
            }
            Kind::PrefixLmDocument => {
                let fraction = match self.get(Key::Fraction) {
                    Some(Value::Fraction(fraction)) => *fraction,
                    _ => 0.25,
                };
                FlashMask::prefix_lm_document(dims, documents, &documents.prefixes(fraction))
            }
            Kind::QkSparse => {
                let spans = match self.get(Key::Spans) {
                    Some(Value::Spans(spans)) => spans.clone(),
                    _ => default_spans(dims.seq_k),
                };
                FlashMask::qk_sparse(dims, &vec![spans; dims.batch])
            }
            Kind::RandomEviction => {
                FlashMask::random_eviction(dims, Eviction { start: size(Key::Start, 4096), seed })
            }
        }
    }

    fn entry(&self) -> &'static Entry {
        // Every kind stands in the table at its own place; a test compares.
        &TABLE[self.kind as usize]
    }

    fn get(&self, key: Key) -> Option<&Value> {
        self.values.iter().find(|(own, _)| *own == key).map(|(_, value)| value)
    }

    fn size(&self, key: Key) -> Option<usize> {
        match self.get(key) {
            Some(Value::Size(size)) => Some(*size),
            _ => None,
        }
    }

    fn own_documents(&self, dims: MaskDims) -> Result<Option<Documents>, Error> {
        let Some(Value::Lengths(lists)) = self.get(Key::Docs) else {
            return Ok(None);
        };
        let lists = match lists.as_slice() {
            [one] => vec![one.clone(); dims.batch],
            all => all.to_vec(),
        };
        per_sequence("MaskSpec::build", "docs", lists.len(), dims)?;
        Documents::new(lists, dims.seq_k).map(Some)
    }
}

/// `of_8192` tokens of a sequence of 8192, scaled to `seq` and rounded down; at least 1.
fn scaled(of_8192: usize, seq: usize) -> usize {
    (of_8192 * seq / 8192).max(1)
}

/// (offset, length) = (1024, 538) and (2358, 1700) of 8192, scaled; those that vanish are left out.
fn default_spans(seq: usize) -> Vec<std::ops::Range<usize>> {
    let spans = [1024..1562, 2358..4058].map(|span| span.start * seq / 8192..span.end * seq / 8192);
    spans.into_iter().filter(|span| !span.is_empty()).collect()
}

impl FromStr for MaskSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (name, parameters) = match text.split_once(':') {
            Some((name, parameters)) => (name, Some(parameters)),
            None => (text, None),
        };
        let Some(entry) = TABLE.iter().find(|entry| entry.name == name) else {
            return Err(Error::UnknownMask { name: name.to_owned(), known: Self::NAMES.join(", ") });
        };
        let mut spec = Self { kind: entry.kind, values: Vec::new() };
        for parameter in parameters.into_iter().flat_map(|list| list.split(',')) {
            let (key, text) = parameter.split_once('=').unwrap_or((parameter, ""));
            let Some(key) = entry.keys.iter().copied().find(|own| own.name() == key) else {
                return Err(unknown_key(entry, key));
            };
            let refused = |expected| {
                Err(Error::MaskValue { mask: entry.name, key: key.name(), value: text.to_owned(), expected })
            };
            if spec.get(key).is_some() {
                return refused("it only once");
            }
            match key.parse(text) {
                Some(value) => spec.values.push((key, value)),
                None => return refused(key.expected()),
            }
        }
        spec.values.sort_by_key(|(key, _)| entry.keys.iter().position(|own| own == key));
        Ok(spec)
    }
}

fn unknown_key(entry: &Entry, key: &str) -> Error {
    let known = match entry.keys {
        [] => "none".to_owned(),
        keys => keys.iter().map(|key| key.name()).collect::<Vec<_>>().join(", "),
    };
    Error::UnknownMaskKey { mask: entry.name, key: key.to_owned(), known }
}

impl fmt::Display for MaskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        for (index, (key, value)) in self.values.iter().enumerate() {
            let before = if index == 0 { ':' } else { ',' };
            write!(f, "{before}{}={value}", key.name())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_stands_at_its_place_in_the_table() {
        for name in MaskSpec::NAMES {
            let spec: MaskSpec = name.parse().unwrap();
            assert_eq!((spec.name(), spec.to_string()), (name, name.to_owned()));
        }
    }
}
