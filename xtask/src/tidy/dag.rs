//! Which crate depends on which: what ARCHITECTURE.md states against what the manifests say.
use std::collections::{BTreeMap, BTreeSet};

use super::Violation;

/// For each crate the crates of this workspace that it depends on.
pub(super) type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The stated arrows, and where they stand.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stated {
    arrows: Arrows,
    /// Line of each crate's statement, from 1.
    lines: BTreeMap<String, usize>,
    /// Line of the fence that opens the block.
    start: usize,
}

/// Name of the document, relative to the workspace's root.
pub(super) const DOCUMENT: &str = "ARCHITECTURE.md";

/// Reads the block fenced by "```dag": one line `crate -> crate, crate` for each crate, nothing after the arrow for none.
///
/// # Errors
/// A violation if there is no such block or a line in it is not of that form.
pub(super) fn parse(document: &str) -> Result<Stated, Violation> {
    let wrong =
        |line: usize, text: &str| Violation { path: DOCUMENT.to_owned(), line, text: text.to_owned() };
    let mut lines = document.lines().enumerate().skip_while(|(_, line)| line.trim() != "```dag");
    let Some((fence, _)) = lines.next() else {
        return Err(wrong(1, "has no block fenced by ```dag; state there which crate depends on which"));
    };
    let mut stated = Stated { arrows: Arrows::new(), lines: BTreeMap::new(), start: fence + 1 };
    for (index, line) in lines.take_while(|(_, line)| line.trim() != "```") {
        let Some((from, to)) = line.split_once("->") else {
            return Err(wrong(index + 1, "is not `crate -> crate, crate`; write it so"));
        };
        let to = to.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        let from = from.trim().to_owned();
        stated.lines.insert(from.clone(), index + 1);
        if stated.arrows.insert(from, to).is_some() {
            return Err(wrong(index + 1, "states a crate twice; merge the lines"));
        }
    }
    Ok(stated)
}

/// Differences between the two, and cycles.
pub(super) fn compare(stated: &Stated, actual: &Arrows) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut report = |from: &str, text: String| {
        let line = stated.lines.get(from).copied().unwrap_or(stated.start);
        violations.push(Violation { path: DOCUMENT.to_owned(), line, text });
    };
    let nothing = BTreeSet::new();
    for from in stated.arrows.keys().chain(actual.keys()).collect::<BTreeSet<_>>() {
        match (stated.arrows.contains_key(from), actual.contains_key(from)) {
            (true, false) => report(from, format!("states {from}, which is no crate here; remove the line")),
            (false, true) => report(from, format!("does not state {from}; add a line for it")),
            _ => {}
        }
        let (said, done) =
            (stated.arrows.get(from).unwrap_or(&nothing), actual.get(from).unwrap_or(&nothing));
        for to in said.difference(done) {
            report(from, format!("states {from} -> {to}, which no manifest has; remove it here"));
        }
        for to in done.difference(said) {
            report(
                from,
                format!("{from} depends on {to} against the stated arrows; undo it in its Cargo.toml"),
            );
        }
    }
    if let Some(name) = in_cycle(actual) {
        report(&name, format!("{name} depends on itself in a circle; break the circle"));
    }
    violations
}

/// A crate that can reach itself.
fn in_cycle(arrows: &Arrows) -> Option<String> {
    arrows
        .keys()
        .find(|start| {
            let mut seen = BTreeSet::new();
            let mut open: Vec<&String> = arrows[*start].iter().collect();
            while let Some(name) = open.pop() {
                if name == *start {
                    return true;
                }
                if seen.insert(name) {
                    open.extend(arrows.get(name).into_iter().flatten());
                }
            }
            false
        })
        .cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrows(lines: &[(&str, &[&str])]) -> Arrows {
        lines
            .iter()
            .map(|(from, to)| ((*from).to_owned(), to.iter().map(|&name| name.to_owned()).collect()))
            .collect()
    }

    fn stated(block: &str) -> Stated {
        parse(&format!("# A\n\n```dag\n{block}\n```\n\n```\nb -> c\n```\n")).unwrap()
    }

    #[test]
    fn the_block_is_read_with_its_lines() {
        let stated = stated("a -> b, c\nb ->\nc -> b");
        assert_eq!(stated.arrows, arrows(&[("a", &["b", "c"]), ("b", &[]), ("c", &["b"])]));
        assert_eq!((stated.start, stated.lines["c"]), (3, 6));
    }

    #[test]
    fn a_missing_block_and_wrong_lines_are_violations() {
        assert!(parse("# A\n```\na -> b\n```\n").unwrap_err().text.contains("no block"));
        assert_eq!(parse("```dag\na -> b\na, b\n```\n").unwrap_err().line, 3);
        assert!(parse("```dag\na -> b\na -> c\n```\n").unwrap_err().text.contains("twice"));
    }

    #[test]
    fn equal_arrows_are_right_and_each_difference_is_found() {
        let said = stated("a -> b, c\nb ->\nc ->");
        assert!(compare(&said, &arrows(&[("a", &["b", "c"]), ("b", &[]), ("c", &[])])).is_empty());
        let missing = compare(&said, &arrows(&[("a", &["b"]), ("b", &[]), ("c", &[])]));
        assert!(
            missing.len() == 1 && missing[0].line == 4 && missing[0].text.contains("a -> c"),
            "{missing:?}"
        );
        let extra = compare(&said, &arrows(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])]));
        assert!(extra.len() == 1 && extra[0].text.contains("b depends on c"), "{extra:?}");
        let unstated = compare(&said, &arrows(&[("a", &["b", "c"]), ("b", &[]), ("c", &[]), ("d", &[])]));
        assert!(unstated.len() == 1 && unstated[0].text.contains("does not state d"), "{unstated:?}");
        let gone = compare(&said, &arrows(&[("a", &["b", "c"]), ("b", &[])]));
        assert!(gone.len() == 1 && gone[0].text.contains("no crate here"), "{gone:?}");
    }

    #[test]
    fn a_circle_is_found_even_when_it_is_stated() {
        let circle = compare(&stated("a -> b\nb -> a"), &arrows(&[("a", &["b"]), ("b", &["a"])]));
        assert!(circle.len() == 1 && circle[0].text.contains("circle"), "{circle:?}");
    }
}
