//! docs/protocol.md says what the code does: its signals are the enum's, its rules all there, its tests exist.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]
use std::path::{Path, PathBuf};

use cp_overlap::exec::SignalKind;
use symm_buffer::Notice;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn document() -> String {
    std::fs::read_to_string(root().join("docs/protocol.md")).unwrap()
}

/// Rows of the table under a heading, cell by cell, without its head.
fn table(document: &str, heading: &str) -> Vec<Vec<String>> {
    let section = document.split(&format!("\n## {heading}\n")).nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
}

/// Words in code font that can be names of tests.
fn names(text: &str) -> Vec<&str> {
    let is_name = |word: &&str| {
        word.len() > 3 && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    };
    text.split('`').skip(1).step_by(2).filter(is_name).collect()
}

fn sources(folder: &Path, text: &mut String) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&std::fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn the_table_of_signals_is_the_enum() {
    let table = table(&document(), "Signals");
    let stated: Vec<(&str, &str)> =
        table.iter().map(|row| (row[0].trim_matches('`'), row[1].trim_matches('`'))).collect();
    let kinds: Vec<(String, &str)> =
        SignalKind::ALL.iter().map(|kind| (format!("{kind:?}"), kind.stage())).collect();
    assert_eq!(stated, kinds.iter().map(|(name, stage)| (name.as_str(), *stage)).collect::<Vec<_>>());
    assert!(table.iter().all(|row| row.len() == 5 && row.iter().all(|cell| !cell.is_empty())));
}

#[test]
fn the_table_of_events_is_the_enum() {
    let table = table(&document(), "Events");
    let stated: Vec<&str> = table.iter().map(|row| row[0].trim_matches('`')).collect();
    assert_eq!(stated, Notice::ALL.map(Notice::name));
    assert!(table.iter().all(|row| row.len() == 4 && row.iter().all(|cell| !cell.is_empty())));
}

#[test]
fn every_rule_is_shown_by_tests_that_exist_or_says_that_it_is_not() {
    let document = document();
    let table = table(&document, "Rules, and what shows each");
    let counts = [("R", 6), ("S", 6), ("P", 7), ("T", 1), ("D", 4)];
    let rules = counts.into_iter().flat_map(|(group, count)| (1..=count).map(move |n| format!("{group}{n}")));
    assert_eq!(table.iter().map(|row| row[0].clone()).collect::<Vec<_>>(), rules.collect::<Vec<_>>());
    for row in &table {
        assert!(!names(&row[2]).is_empty() || row[2].contains("not yet"), "{} is shown by nothing", row[0]);
    }
    let mut code = String::new();
    for member in ["crates", "xtask"] {
        sources(&root().join(member), &mut code);
    }
    let rows = table.into_iter().map(|mut row| row.remove(2));
    let mutants = self::table(&document, "Mutants").into_iter().flat_map(|row| row.into_iter().skip(1));
    for cell in rows.chain(mutants) {
        for name in names(&cell) {
            let wanted = [format!("fn {name}("), format!("fn {name}<"), format!("name: \"{name}\"")];
            assert!(wanted.iter().any(|text| code.contains(text)), "no test is called {name}");
        }
    }
}
