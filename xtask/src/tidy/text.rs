//! Rules about text: long files, loose ends, paths of one machine.

use super::Violation;

/// Longest file that needs no reason, in lines: a file holds one noun.
const LINES_MAX: usize = 500;

/// How far down the reason for a long file may stand, in lines.
const REASON_WITHIN: usize = 5;

/// What a long file begins with.
const REASON: &str = "// tidy: long because ";

/// Words that no file has. Each is written in two halves, so that this file has none of them either.
const WORDS: &[(&[&str], &str)] = &[
    (
        &[concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")],
        "a loose end is an issue, or it is done: a note in the code is found by nobody",
    ),
    (
        &[concat!("todo", "!("), concat!("unimpl", "emented!("), concat!("allow(", "dead_code")],
        "code that is not used or not written has no place yet",
    ),
    (
        &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("/wo", "rk/")],
        "a path of one machine means nothing on the next",
    ),
];

/// Adds to `found` what is not tidy in the file `name`.
pub fn check(name: &str, text: &str, found: &mut Vec<Violation>) {
    // Written by cargo, and by the fuzzer.
    if name.ends_with("Cargo.lock") || name.contains("/corpus/") {
        return;
    }
    for (index, line) in text.lines().enumerate() {
        for (words, reason) in WORDS {
            if let Some(word) = words.iter().find(|word| has(line, word)) {
                found.push(Violation { file: name.to_owned(), line: index + 1, what: format!("`{word}`"), reason });
            }
        }
    }
    let lines = text.lines().count();
    if name.ends_with(".rs")
        && lines > LINES_MAX
        && !text.lines().take(REASON_WITHIN).any(|line| line.starts_with(REASON) && line.len() > REASON.len())
    {
        found.push(Violation {
            file: name.to_owned(),
            line: lines,
            what: format!("{lines} lines"),
            reason: "more than 500: a file holds one noun; split it, or begin it with `// tidy: long because ...`",
        });
    }
}

/// Says whether `line` has `word`, not as part of a longer one, path or word.
fn has(line: &str, word: &str) -> bool {
    let joins = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(joins);
        let behind = word.ends_with(|c: char| c.is_ascii_alphanumeric())
            && line[at + word.len()..].chars().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
        !before && !behind
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons(name: &str, text: &str) -> usize {
        let mut found = Vec::new();
        check(name, text, &mut found);
        found.len()
    }

    #[test]
    fn a_long_file_needs_a_reason_among_its_first_lines() {
        let long = "fn f() {}\n".repeat(LINES_MAX + 1);
        assert_eq!(reasons("a.rs", &long), 1);
        assert_eq!(reasons("a.md", &long), 0);
        assert_eq!(reasons("a.rs", &format!("//! A table.\n{REASON}it is a table.\n{long}")), 0);
        assert_eq!(reasons("a.rs", &format!("{REASON}\n{long}")), 1, "a reason that says nothing");
        assert_eq!(reasons("a.rs", &format!("{long}{REASON}it is a table.\n")), 1, "a reason at the end");
        assert_eq!(reasons("a.rs", &"fn f() {}\n".repeat(LINES_MAX)), 0);
    }

    #[test]
    fn loose_ends_and_paths_of_one_machine_are_found_as_words() {
        assert_eq!(reasons("a.rs", concat!("// TO", "DO: later")), 1);
        assert_eq!(reasons("a.rs", concat!("// MASTO", "DON")), 0);
        assert_eq!(reasons("a.rs", concat!("#[allow(", "dead_code)]")), 1);
        assert_eq!(reasons("a.rs", concat!("#[allow(", "dead_code, reason = \"later\")]")), 1);
        assert_eq!(reasons("a.md", concat!("run /ho", "me/me/x")), 1);
        assert_eq!(reasons("a.md", concat!("see docs/ho", "me/x")), 0);
        assert_eq!(reasons("Cargo.lock", concat!("TO", "DO")), 0);
    }
}
