//! Source text -> the paths that its code names, such as `std::fs::read`.
//!
//! Works on tokens: comments and strings are no code, `use std::{fs, net}` names two paths, and what
//! is inside a macro call counts as well. Code behind `#[cfg(test)]` is left out.

use anyhow::Result;
use proc_macro2::{Delimiter, Group, Spacing, TokenStream, TokenTree};

/// One path as it is written; a macro call ends in `!`.
#[derive(Debug, Eq, PartialEq)]
pub struct CodePath {
    /// Where it begins, counted from 1.
    pub line: usize,
    /// Its parts, without a leading `::`.
    pub segments: Vec<String>,
}

/// Returns the paths of `source` in the order of the text.
///
/// # Errors
///
/// The text is not Rust: a bracket or a quote is not closed.
pub fn paths(source: &str) -> Result<Vec<CodePath>> {
    let tokens: TokenStream = source.parse().map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut found = Vec::new();
    walk(tokens, &[], &mut found);
    Ok(found)
}

/// Walks over `tokens`, the paths of which continue `prefix`.
fn walk(tokens: TokenStream, prefix: &[String], found: &mut Vec<CodePath>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at = match token {
            TokenTree::Punct(hash) if hash.as_char() == '#' && is_cfg_test(tokens.get(at + 1)) => {
                behind_item(&tokens, at + 2)
            }
            TokenTree::Ident(_) => path(&tokens, at, prefix, found),
            TokenTree::Group(group) => {
                walk(group.stream(), &[], found);
                at + 1
            }
            TokenTree::Punct(_) | TokenTree::Literal(_) => at + 1,
        };
    }
}

/// Reads the path that begins at `at` and returns where it ends.
fn path(tokens: &[TokenTree], mut at: usize, prefix: &[String], found: &mut Vec<CodePath>) -> usize {
    let mut segments = prefix.to_vec();
    let line = tokens[at].span().start().line;
    while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
        segments.push(ident.to_string());
        at += 1;
        if !is_path_separator(tokens, at) {
            break;
        }
        match tokens.get(at + 2) {
            Some(TokenTree::Ident(_)) => at += 2,
            // `use a::{b, c}`: each part of the list continues the path.
            Some(TokenTree::Group(list)) if list.delimiter() == Delimiter::Brace => {
                walk_list(list, &segments, found);
                return at + 3;
            }
            // `a::*` and `a::<T>`: the path as far as it has a name.
            _ => {
                at += 2;
                break;
            }
        }
    }
    if let (Some(TokenTree::Punct(bang)), Some(TokenTree::Group(_))) = (tokens.get(at), tokens.get(at + 1))
        && bang.as_char() == '!'
        && let Some(last) = segments.last_mut()
    {
        last.push('!');
    }
    found.push(CodePath { line, segments });
    at
}

/// Walks over the list of a `use`, in which only the first path of each part continues `prefix`.
fn walk_list(list: &Group, prefix: &[String], found: &mut Vec<CodePath>) {
    let tokens: Vec<TokenTree> = list.stream().into_iter().collect();
    for part in tokens.split(|token| matches!(token, TokenTree::Punct(comma) if comma.as_char() == ',')) {
        if matches!(part.first(), Some(TokenTree::Ident(_))) {
            path(part, 0, prefix, found);
        }
    }
}

fn is_path_separator(tokens: &[TokenTree], at: usize) -> bool {
    let (Some(TokenTree::Punct(first)), Some(TokenTree::Punct(second))) = (tokens.get(at), tokens.get(at + 1)) else {
        return false;
    };
    first.as_char() == ':' && first.spacing() == Spacing::Joint && second.as_char() == ':'
}

fn is_cfg_test(token: Option<&TokenTree>) -> bool {
    let Some(TokenTree::Group(attribute)) = token else { return false };
    let text: String = attribute.stream().into_iter().map(|token| token.to_string()).collect();
    text == "cfg(test)"
}

/// Returns the place behind the item that begins at `at`: behind its body, or its semicolon.
fn behind_item(tokens: &[TokenTree], at: usize) -> usize {
    let end = tokens.iter().skip(at).position(|token| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Ident(_) | TokenTree::Literal(_) => false,
    });
    end.map_or(tokens.len(), |end| at + end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(source: &str, expected: &[&str]) {
        let found: Vec<String> = paths(source).unwrap().iter().map(|path| path.segments.join("::")).collect();
        for path in expected {
            assert!(found.iter().any(|found| found == path), "{path} is not in {found:?}");
        }
    }

    #[test]
    fn a_list_of_imports_names_each_path() {
        check(
            "use std::{fs, net::{IpAddr, TcpStream as Tcp}, io::{self, Read as _}};",
            &["std::fs", "std::net::IpAddr", "std::net::TcpStream", "std::io::self", "std::io::Read"],
        );
    }

    #[test]
    fn paths_are_found_in_expressions_types_and_macro_calls() {
        check(
            "fn f(x: &aya::Ebpf) { assert!(::std::fs::read(\"x\").is_ok()); SystemTime::now(); println!(\"x\"); }",
            &["aya::Ebpf", "std::fs::read", "SystemTime::now", "println!", "assert!"],
        );
    }

    #[test]
    fn comments_strings_and_test_code_are_no_code() {
        let source = "//! aya\n// aya::x\nconst A: &str = \"aya::x\";\n\
                      #[cfg(test)]\nmod tests { use aya::x; }\n#[cfg(test)]\nuse aya::y;\nfn f() { b::c }\n";
        let found = paths(source).unwrap();
        assert!(!found.iter().any(|path| path.segments[0] == "aya"), "{found:?}");
        let last = found.last().unwrap();
        assert_eq!((last.line, last.segments.join("::").as_str()), (8, "b::c"));
    }

    #[test]
    fn a_comparison_is_no_macro_call() {
        check("fn f() { a != (b); }", &["a"]);
    }
}
