//! The two generated files as text: made of bindgen's output, and checked without it.
use anyhow::{Context, ensure};
use xxhash_rust::xxh3::xxh3_64;

use super::recipe;

/// The generated files, by name in `crates/nvshmem-sys/src/sys/`.
pub(super) const FILES: [&str; 2] = ["types.rs", "functions.rs"];

/// Opens bindgen's block of functions, which is its last.
const BLOCK: &str = "unsafe extern \"C\" {\n";

/// Texts of [`FILES`] from bindgen's output; `headers` is the hash of the headers.
///
/// # Errors
/// When the output is not of the form that we know.
pub(super) fn files(raw: &str, headers: u64) -> anyhow::Result<[String; 2]> {
    let (types, block) = raw.split_once(BLOCK).context("bindgen wrote no block of functions")?;
    let functions = block.trim_end().strip_suffix('}').context("the block of functions is not the last")?;
    ensure!(!functions.contains('{'), "bindgen wrote something behind the block of functions");
    let functions = functions.replace("    pub fn ", "    fn ");
    let version = recipe::NVSHMEM;
    Ok([
        sealed(&format!("Types and constants of the NVSHMEM {version} host API."), types, headers),
        sealed(
            &format!("Functions of the NVSHMEM {version} host API, as a table to look up at run time."),
            &format!("functions! {{\n{functions}}}\n"),
            headers,
        ),
    ])
}

/// Puts the seal over a text.
fn sealed(what: &str, body: &str, headers: u64) -> String {
    let (recipe, text) = (recipe::hash(), xxh3_64(body.as_bytes()));
    format!(
        "//! {what}\n// Made by `cargo xtask bindgen`; do not edit.\n\
         // recipe {recipe:016x}, headers {headers:016x}, text {text:016x}\n{body}"
    )
}

/// What the seal of a committed file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seal {
    recipe: u64,
    headers: u64,
    text: u64,
}

/// Why a committed file is stale, if it is. Headers are compared where there are any.
pub(super) fn stale(file: &str, headers: Option<u64>) -> Option<&'static str> {
    let Some((seal, body)) = unseal(file) else { return Some("has no seal of `cargo xtask bindgen`") };
    if seal.text != xxh3_64(body.as_bytes()) {
        return Some("was edited by hand");
    }
    if seal.recipe != recipe::hash() {
        return Some("was made by another recipe");
    }
    (headers.is_some_and(|headers| headers != seal.headers)).then_some("was made of other headers")
}

fn unseal(file: &str) -> Option<(Seal, &str)> {
    let mut lines = file.splitn(4, '\n');
    let seal = lines.nth(2)?.strip_prefix("// ")?;
    let body = lines.next()?;
    let mut numbers = seal.split(", ").map(|part| part.split_once(' '));
    let mut number = |name: &str| {
        let (found, number) = numbers.next()??;
        (found == name).then(|| u64::from_str_radix(number, 16).ok())?
    };
    Some((Seal { recipe: number("recipe")?, headers: number("headers")?, text: number("text")? }, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RAW: &str =
        "pub type a = i32;\nunsafe extern \"C\" {\n    pub fn f(x: a);\n    pub fn g() -> a;\n}\n";

    #[test]
    fn types_and_functions_part_and_what_was_made_is_fresh() {
        let [types, functions] = files(RAW, 7).unwrap();
        assert!(types.starts_with("//! ") && types.ends_with("pub type a = i32;\n"), "{types}");
        assert!(functions.ends_with("functions! {\n    fn f(x: a);\n    fn g() -> a;\n}\n"), "{functions}");
        for file in [&types, &functions] {
            assert_eq!((stale(file, None), stale(file, Some(7))), (None, None));
            assert_eq!(stale(file, Some(8)), Some("was made of other headers"));
        }
    }

    #[test]
    fn every_edit_is_found() {
        let [types, _] = files(RAW, 7).unwrap();
        assert_eq!(stale(&types.replace("i32", "i64"), None), Some("was edited by hand"));
        let recipe = format!("{:016x}", recipe::hash());
        assert_eq!(stale(&types.replace(&recipe, "12"), None), Some("was made by another recipe"));
        for text in ["", "a\nb\nc\n", "//! a\n// b\n// recipe x, headers 1, text 2\n"] {
            assert_eq!(stale(text, None), Some("has no seal of `cargo xtask bindgen`"));
        }
    }

    #[test]
    fn output_of_another_form_is_refused() {
        for raw in ["", "pub type a = i32;\n", &format!("{RAW}pub type b = i32;\n"), &RAW.replace("}\n", "")]
        {
            assert!(files(raw, 0).is_err(), "{raw}");
        }
        assert!(files(&format!("{RAW}{RAW}"), 0).is_err());
    }
}
