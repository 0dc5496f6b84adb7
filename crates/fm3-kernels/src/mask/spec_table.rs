//! Names of the masks, their parameters and how the values are written.
use std::fmt;
use std::ops::Range;

/// Which mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Full,
    Causal,
    SlidingWindow,
    CausalDocument,
    Document,
    ShareQuestion,
    GlobalSlidingWindow,
    CausalBlockwise,
    PrefixLmCausal,
    PrefixLmDocument,
    QkSparse,
    RandomEviction,
}

/// One mask that can be named.
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    pub(super) keys: &'static [Key],
}

/// Every mask; `MaskSpec::NAMES` has the same order.
pub(super) const TABLE: [Entry; 12] = [
    Entry { kind: Kind::Full, name: "full", keys: &[] },
    Entry { kind: Kind::Causal, name: "causal", keys: &[] },
    Entry { kind: Kind::SlidingWindow, name: "sliding-window", keys: &[Key::Window] },
    Entry { kind: Kind::CausalDocument, name: "causal-document", keys: &[Key::Docs] },
    Entry { kind: Kind::Document, name: "document", keys: &[Key::Docs] },
    Entry { kind: Kind::ShareQuestion, name: "share-question", keys: &[Key::Docs] },
    Entry {
        kind: Kind::GlobalSlidingWindow,
        name: "global-sliding-window",
        keys: &[Key::Global, Key::Left, Key::Right],
    },
    Entry { kind: Kind::CausalBlockwise, name: "causal-blockwise", keys: &[Key::Docs] },
    Entry { kind: Kind::PrefixLmCausal, name: "prefix-lm-causal", keys: &[Key::Prefix] },
    Entry { kind: Kind::PrefixLmDocument, name: "prefix-lm-document", keys: &[Key::Fraction, Key::Docs] },
    Entry { kind: Kind::QkSparse, name: "qk-sparse", keys: &[Key::Spans] },
    Entry { kind: Kind::RandomEviction, name: "random-eviction", keys: &[Key::Start] },
];

/// A parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Key {
    Window,
    Docs,
    Global,
    Left,
    Right,
    Prefix,
    Fraction,
    Spans,
    Start,
}

/// The value of a parameter.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Size(usize),
    Fraction(f64),
    /// Document lengths, one list for all sequences or one for each.
    Lengths(Vec<Vec<usize>>),
    Spans(Vec<Range<usize>>),
}

impl Key {
    /// As it is written before `=`.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Key::Window => "window",
            Key::Docs => "docs",
            Key::Global => "global",
            Key::Left => "left",
            Key::Right => "right",
            Key::Prefix => "prefix",
            Key::Fraction => "fraction",
            Key::Spans => "spans",
            Key::Start => "start",
        }
    }

    /// What its value is, for error texts.
    pub(super) const fn expected(self) -> &'static str {
        match self {
            Key::Docs => "document lengths such as 100+200+50, with / between the sequences of a batch",
            Key::Fraction => "a number from 0 to 1",
            Key::Spans => "ranges of positions such as 10..20+40..60",
            _ => "a number of tokens",
        }
    }

    /// Reads a value; none when it is not one of this parameter.
    pub(super) fn parse(self, text: &str) -> Option<Value> {
        match self {
            Key::Docs => {
                let sequences = text.split('/').map(|list| list.split('+').map(|n| n.parse().ok()).collect());
                sequences.collect::<Option<_>>().map(Value::Lengths)
            }
            Key::Fraction => {
                let fraction = text.parse().ok().filter(|fraction| (0.0..=1.0).contains(fraction));
                fraction.map(Value::Fraction)
            }
            Key::Spans => {
                let span = |text: &str| {
                    let (start, end) = text.split_once("..")?;
                    Some(start.parse().ok()?..end.parse().ok()?)
                };
                text.split('+').map(span).collect::<Option<_>>().map(Value::Spans)
            }
            _ => text.parse().ok().map(Value::Size),
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum = |list: &[usize]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join("+");
        match self {
            Value::Size(size) => write!(f, "{size}"),
            Value::Fraction(fraction) => write!(f, "{fraction}"),
            Value::Lengths(lists) => {
                f.write_str(&lists.iter().map(|list| sum(list)).collect::<Vec<_>>().join("/"))
            }
            Value::Spans(spans) => {
                let spans = spans.iter().map(|span| format!("{}..{}", span.start, span.end));
                f.write_str(&spans.collect::<Vec<_>>().join("+"))
            }
        }
    }
}
