//! Rules that plain text shows: blanks at the end of a line, paths of somebody's machine.
use std::ops::RangeInclusive;

use super::Violation;

/// Starts of paths that exist on one machine only. Written in pieces, so that this file keeps its own rule.
const MACHINE_PATHS: [&str; 3] = [concat!("/", "home/"), concat!("/", "root/"), concat!("/", "tmp/")];

/// Checks one text file; machine paths are allowed in the lines of `tests`.
pub(super) fn check(path: &str, text: &str, tests: &[RangeInclusive<usize>]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (index, content) in text.lines().enumerate() {
        let line = index + 1;
        let mut report = |text: String| violations.push(Violation { path: path.to_owned(), line, text });
        if content.ends_with([' ', '\t']) {
            report("blank at the end of the line; remove it".to_owned());
        }
        if tests.iter().any(|lines| lines.contains(&line)) {
            continue;
        }
        for machine_path in MACHINE_PATHS {
            if content.contains(machine_path) {
                report(format!(
                    "names a path of one machine ({machine_path}); use a relative path or an argument"
                ));
            }
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        let line = text.lines().count();
        let text = "last line has no end; add one".to_owned();
        violations.push(Violation { path: path.to_owned(), line, text });
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: [usize; 0] = [];

    fn lines(text: &str, tests: &[RangeInclusive<usize>]) -> Vec<usize> {
        check("a", text, tests).iter().map(|violation| violation.line).collect()
    }

    #[test]
    fn blanks_at_the_end_are_found() {
        assert_eq!(lines("a\nb \n\t\n", &[]), [2, 3]);
        assert_eq!(lines(" a\n\tb\n", &[]), NONE);
    }

    #[test]
    fn a_file_ends_its_last_line() {
        assert_eq!(lines("a\nb", &[]), [2]);
        assert_eq!(lines("", &[]), NONE);
    }

    #[test]
    fn machine_paths_are_found_outside_tests() {
        let text = "see /home/me/x\nand /root/y\n/tmp/z\n";
        assert_eq!(lines(text, &[]), [1, 2, 3]);
        assert_eq!(lines(text, &[2..=3]), [1]);
        assert_eq!(lines("a/homes/b, target/tmp\n", &[]), NONE);
    }
}
