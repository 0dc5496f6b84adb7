//! Twins of the fuzz targets on stable: the committed corpora, and seeded random bytes and mutations of them.
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use rayon::prelude::*;

use super::Part;
use super::case::Dice;
use super::inputs::{INPUTS, Input};
use crate::files::workspace_root;

/// Runs `cases` inputs of each target, and all of its corpus.
pub(super) fn run(cases: u64) -> Part {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| ()));
    let outcomes: Vec<_> = INPUTS.iter().flat_map(|(name, input)| target(name, *input, cases)).collect();
    std::panic::set_hook(hook);
    let figures = format!("{} inputs of {} targets", outcomes.len(), INPUTS.len());
    Part::new("fuzz twins", figures, outcomes)
}

fn target(name: &str, input: Input, cases: u64) -> Vec<Result<(), String>> {
    let corpus = corpus(&workspace_root().join("fuzz/corpus").join(name));
    if corpus.is_empty() {
        return vec![Err(format!("fuzz/corpus/{name} is empty"))];
    }
    let known = corpus.par_iter().enumerate().map(|(index, data)| {
        hold(input, data).map_err(|panic| format!("{name}: corpus file {index}: {panic}"))
    });
    let random = (0..cases).into_par_iter().map(|seed| {
        let data = random_input(seed, &corpus);
        hold(input, &data).map_err(|panic| format!("{name}: seed {seed}: {panic}; input {data:?}"))
    });
    known.chain(random).collect()
}

fn hold(input: Input, data: &[u8]) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| input(data))).map_err(|panic| super::panic_text(&*panic))
}

/// Files of a corpus, in order of their names.
fn corpus(folder: &Path) -> Vec<Vec<u8>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths.iter().filter_map(|path| std::fs::read(path).ok()).collect()
}

/// Random bytes, or a file of the corpus with a few changes.
fn random_input(seed: u64, corpus: &[Vec<u8>]) -> Vec<u8> {
    let mut dice = Dice::new(seed);
    if dice.below(3) == 0 {
        let len = dice.below(600);
        return dice.bytes(len);
    }
    let mut data = corpus[dice.below(corpus.len())].clone();
    for _ in 0..dice.within(1..=4) {
        let at = dice.below(data.len() + 1);
        match dice.below(5) {
            0 => data.truncate(at),
            1 => {
                let len = dice.below(8);
                data.splice(at..at, dice.bytes(len));
            }
            2 => {
                let end = data.len().min(at + dice.below(16));
                data.drain(at..end);
            }
            3 => {
                let end = data.len().min(at + dice.below(32));
                let again = data[at..end].to_vec();
                data.splice(at..at, again);
            }
            _ => {
                let byte = u8::try_from(dice.below(256)).unwrap_or(0);
                if let Some(old) = data.get_mut(at) {
                    *old = byte;
                }
            }
        }
    }
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_input_panics() {
        assert_eq!(run(300).failures, Vec::<String>::new());
    }

    #[test]
    fn each_target_has_its_file_and_its_corpus() {
        for (name, _) in INPUTS {
            let file = workspace_root().join(format!("fuzz/fuzz_targets/{name}.rs"));
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            assert!(text.contains(&format!("inputs::{name}(")) || text.contains("inputs::"), "{name}");
            assert!(!corpus(&workspace_root().join("fuzz/corpus").join(name)).is_empty(), "{name}");
        }
    }
}
