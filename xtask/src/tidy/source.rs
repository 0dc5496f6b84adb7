//! One Rust file: its text, its syntax, its tokens without comments, and which lines are tests.
use std::ops::RangeInclusive;

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use syn::visit::Visit;

use super::Violation;

/// A parsed file.
pub(super) struct Source<'a> {
    /// Relative to the workspace's root.
    pub path: &'a str,
    /// The whole file.
    pub text: &'a str,
    /// Its syntax tree.
    pub syntax: syn::File,
    /// Its code without comments and documentation, in order.
    pub tokens: Vec<Token>,
    /// Lines of test code, from 1.
    pub tests: Vec<RangeInclusive<usize>>,
}

/// An identifier, literal or punctuation mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    /// Counted from 1.
    pub line: usize,
    /// As written.
    pub text: String,
    /// Numbers, strings, characters.
    pub literal: bool,
}

impl<'a> Source<'a> {
    /// Parses a file.
    ///
    /// # Errors
    /// A violation where the syntax is wrong.
    pub(crate) fn parse(path: &'a str, text: &'a str) -> Result<Self, Violation> {
        let wrong = |line: usize, error: &dyn std::fmt::Display| Violation {
            path: path.to_owned(),
            line,
            text: format!("is not Rust ({error}); mend the syntax"),
        };
        let syntax = syn::parse_file(text).map_err(|error| wrong(error.span().start().line, &error))?;
        let stream: TokenStream = text.parse().map_err(|error| wrong(1, &error))?;
        let mut tokens = Vec::new();
        flatten(stream, &mut tokens);
        let mut tests = Tests(Vec::new());
        if is_test_file(path) {
            tests.0.push(1..=usize::MAX);
        }
        tests.visit_file(&syntax);
        Ok(Self { path, text, syntax, tokens, tests: tests.0 })
    }

    /// A violation in this file.
    pub(crate) fn violation(&self, line: usize, text: String) -> Violation {
        Violation { path: self.path.to_owned(), line, text }
    }
}

/// Files that are tests as a whole.
fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.starts_with("tests/") || path.ends_with("/tests.rs")
}

/// Appends all tokens but documentation, which reaches us as `#[doc = "..."]` or `#![doc = "..."]`.
fn flatten(stream: TokenStream, tokens: &mut Vec<Token>) {
    let mut trees = stream.into_iter().peekable();
    while let Some(tree) = trees.next() {
        let line = tree.span().start().line;
        match tree {
            TokenTree::Punct(mark) if mark.as_char() == '#' => {
                trees.next_if(|next| matches!(next, TokenTree::Punct(mark) if mark.as_char() == '!'));
                if let Some(TokenTree::Group(group)) = trees.next_if(is_bracketed) {
                    let mut inner = Vec::new();
                    flatten(group.stream(), &mut inner);
                    if inner.first().is_none_or(|token| token.text != "doc") {
                        tokens.append(&mut inner);
                    }
                }
            }
            TokenTree::Group(group) => flatten(group.stream(), tokens),
            TokenTree::Literal(literal) => {
                tokens.push(Token { line, text: literal.to_string(), literal: true })
            }
            TokenTree::Ident(name) => tokens.push(Token { line, text: name.to_string(), literal: false }),
            TokenTree::Punct(mark) => tokens.push(Token { line, text: mark.to_string(), literal: false }),
        }
    }
}

fn is_bracketed(tree: &TokenTree) -> bool {
    matches!(tree, TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket)
}

/// Collects the lines of modules under `#[cfg(test)]`.
struct Tests(Vec<RangeInclusive<usize>>);

impl<'ast> Visit<'ast> for Tests {
    fn visit_item_mod(&mut self, module: &'ast syn::ItemMod) {
        if module.attrs.iter().any(is_cfg_test) {
            let start = module.mod_token.span.start().line;
            let end = module.content.as_ref().map_or(start, |(brace, _)| brace.span.close().end().line);
            self.0.push(start..=end);
        } else {
            syn::visit::visit_item_mod(self, module);
        }
    }
}

fn is_cfg_test(attribute: &syn::Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute.parse_args::<syn::Ident>().is_ok_and(|condition| condition == "test")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_documentation_are_no_tokens() {
        let text = "//! a\n/// b\n#[doc = \"c\"]\n#[must_use]\nfn d() -> u8 {\n    // e\n    7 /* f */\n}\n";
        let source = Source::parse("x.rs", text).unwrap();
        let words: Vec<_> = source.tokens.iter().map(|token| (token.line, token.text.as_str())).collect();
        let wanted = [(4, "must_use"), (5, "fn"), (5, "d"), (5, "-"), (5, ">"), (5, "u8"), (7, "7")];
        assert_eq!(words, wanted);
        assert!(source.tokens.last().unwrap().literal);
    }

    #[test]
    fn test_modules_and_files_are_known() {
        let text = "//! a\nfn b() {}\n#[cfg(test)]\nmod tests {\n    fn c() {}\n}\n";
        assert_eq!(Source::parse("src/x.rs", text).unwrap().tests, [4..=6]);
        assert_eq!(
            Source::parse("src/x.rs", &text.replace("(test)", "(loom)")).unwrap().tests,
            Vec::<RangeInclusive<usize>>::new()
        );
        assert!(Source::parse("crates/a/tests/x.rs", "//! a\n").unwrap().tests[0].contains(&1));
    }

    #[test]
    fn wrong_syntax_is_a_violation_with_its_line() {
        assert_eq!(Source::parse("x.rs", "//! a\nfn (").err().unwrap().line, 2);
    }
}
