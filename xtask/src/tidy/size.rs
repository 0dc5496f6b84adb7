//! Limits: lines of a file, lines and parameters of a function, integers side by side in a public signature.
use syn::visit::Visit;

use super::Violation;
use super::source::Source;

/// Lines of a file, its tests included.
const FILE_LINES: usize = 400;
/// Lines of a function from its `fn` to its closing brace.
const FUNCTION_LINES: usize = 60;
/// Parameters of a function, `self` included.
const PARAMETERS: usize = 7;

/// Checks one file.
pub(super) fn check(source: &Source<'_>) -> Vec<Violation> {
    let mut functions = Functions { source, violations: Vec::new() };
    let lines = source.text.lines().count();
    if lines > FILE_LINES {
        let text = format!("file has {lines} lines, the limit is {FILE_LINES}; split it by subject");
        functions.violations.push(source.violation(FILE_LINES + 1, text));
    }
    functions.visit_file(&source.syntax);
    functions.violations
}

struct Functions<'a> {
    source: &'a Source<'a>,
    violations: Vec<Violation>,
}

impl Functions<'_> {
    fn function(&mut self, signature: &syn::Signature, body: Option<&syn::Block>, public: bool) {
        let (name, start) = (&signature.ident, signature.fn_token.span.start().line);
        let end = body.map_or(start, |body| body.brace_token.span.close().end().line);
        let (lines, parameters) = (end - start + 1, signature.inputs.len());
        let mut report = |text: String| self.violations.push(self.source.violation(start, text));
        if lines > FUNCTION_LINES {
            report(format!(
                "fn {name} has {lines} lines, the limit is {FUNCTION_LINES}; move a step to a helper"
            ));
        }
        if parameters > PARAMETERS {
            report(format!(
                "fn {name} has {parameters} parameters, the limit is {PARAMETERS}; group them in a struct"
            ));
        }
        let integers: Vec<bool> = signature.inputs.iter().map(is_bare_integer).collect();
        if public && integers.windows(2).any(|pair| pair == [true, true]) {
            report(format!(
                "pub fn {name} takes two integers side by side; use newtypes or a struct with named fields"
            ));
        }
    }
}

impl<'ast> Visit<'ast> for Functions<'_> {
    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.function(&item.sig, Some(&item.block), is_public(&item.vis));
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_item_impl(&mut self, item: &'ast syn::ItemImpl) {
        // A trait's own signature is checked where the trait is declared.
        let inherent = item.trait_.is_none();
        for member in &item.items {
            if let syn::ImplItem::Fn(function) = member {
                self.function(&function.sig, Some(&function.block), inherent && is_public(&function.vis));
            }
        }
        syn::visit::visit_item_impl(self, item);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        for member in &item.items {
            if let syn::TraitItem::Fn(function) = member {
                self.function(&function.sig, function.default.as_ref(), is_public(&item.vis));
            }
        }
        syn::visit::visit_item_trait(self, item);
    }
}

fn is_public(visibility: &syn::Visibility) -> bool {
    matches!(visibility, syn::Visibility::Public(_))
}

fn is_bare_integer(parameter: &syn::FnArg) -> bool {
    const INTEGERS: [&str; 12] =
        ["usize", "u128", "u64", "u32", "u16", "u8", "isize", "i128", "i64", "i32", "i16", "i8"];
    let syn::FnArg::Typed(parameter) = parameter else { return false };
    let syn::Type::Path(path) = parameter.ty.as_ref() else { return false };
    path.path.get_ident().is_some_and(|name| INTEGERS.iter().any(|integer| name == integer))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(text: &str) -> Vec<String> {
        check(&Source::parse("x.rs", text).unwrap())
            .into_iter()
            .map(|violation| violation.to_string())
            .collect()
    }

    #[test]
    fn files_have_at_most_400_lines() {
        assert!(texts(&"// a\n".repeat(400)).is_empty());
        assert!(texts(&"// a\n".repeat(401))[0].starts_with("x.rs:401: file has 401 lines"));
    }

    #[test]
    fn functions_have_at_most_60_lines_wherever_they_stand() {
        let body = |lines: usize| format!("{{\n{}}}\n", "    ;\n".repeat(lines - 2));
        assert!(texts(&format!("/// doc\n/// doc\nfn f() {}", body(60))).is_empty());
        for around in ["", "impl A { ", "trait A { ", "mod a { ", "fn g() { "] {
            let close = if around.is_empty() { "" } else { "}" };
            let found = texts(&format!("{around}fn f() {}{close}", body(61)));
            assert!(found.iter().any(|text| text.contains("fn f has 61 lines")), "{around}: {found:?}");
        }
    }

    #[test]
    fn functions_have_at_most_7_parameters() {
        let parameters =
            |count: usize| (0..count).map(|i| format!("a{i}: &str")).collect::<Vec<_>>().join(", ");
        assert!(texts(&format!("fn f({}) {{}}", parameters(7))).is_empty());
        assert!(texts(&format!("fn f({}) {{}}", parameters(8)))[0].contains("8 parameters"));
    }

    #[test]
    fn public_signatures_have_no_two_integers_side_by_side() {
        for bad in [
            "pub fn f(a: usize, b: usize) {}",
            "impl A { pub fn f(&self, a: u64, b: i32) {} }",
            "pub trait A { fn f(&self, a: u64, b: i32); }",
        ] {
            assert!(texts(bad)[0].contains("side by side"), "{bad}");
        }
        for good in [
            "fn f(a: usize, b: usize) {}",
            "pub(crate) fn f(a: usize, b: usize) {}",
            "pub fn f(a: usize, b: &str, c: usize) {}",
            "pub fn f(a: Rows, b: usize, c: Option<usize>) {}",
            "impl B for A { fn f(&self, a: u64, b: i32) {} }",
            "trait A { fn f(&self, a: u64, b: i32); }",
        ] {
            assert!(texts(good).is_empty(), "{good}");
        }
    }
}
