//! The one error that means "the user wrote something wrong": exit code 2, one line.

/// What is wrong with the input, with the values and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct BadInput(pub String);

impl BadInput {
    /// Takes over the words of a lower layer's error.
    pub(crate) fn from_error(error: &dyn std::error::Error) -> Self {
        Self(error.to_string())
    }
}

/// The command-line parser's complaint as one line: without usage and pointer to the help.
pub(crate) fn one_line(complaint: &str) -> String {
    let lines = complaint.lines().map(str::trim).filter(|line| !line.is_empty());
    let told =
        lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    told.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_complaint_becomes_one_line() {
        let told = "error: invalid value 'x' for '--overlap <on|off>'\n  [possible values: on, off]\n\n\
                    For more information, try '--help'.\n";
        assert_eq!(
            one_line(told),
            "error: invalid value 'x' for '--overlap <on|off>' [possible values: on, off]"
        );
        assert_eq!(one_line("error: a\n\nUsage: b\n\nFor more"), "error: a");
    }
}
