//! A test that proves a gap by its name proves one that the table of gaps has.

use super::Violation;
use crate::gaps::without_title;

/// Adds to `found` every function of `text` whose name begins with the number of no known gap.
pub fn check(name: &str, text: &str, found: &mut Vec<Violation>) {
    for (index, line) in text.lines().enumerate() {
        let code = line.trim_start();
        let Some((_, behind)) = code.split_once("fn ").filter(|(before, _)| !before.contains(['/', '"'])) else {
            continue;
        };
        let function = behind.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
        for gap in without_title(function) {
            found.push(Violation {
                file: name.to_owned(),
                line: index + 1,
                what: format!("`{function}` proves G{gap}"),
                reason: "no gap of that number is in xtask/src/gaps/titles.rs: give it a title there",
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(text: &str) -> usize {
        let mut found = Vec::new();
        check("tests/tests/a.rs", text, &mut found);
        found.len()
    }

    #[test]
    fn a_test_of_an_unknown_gap_is_found_where_it_stands() {
        assert_eq!(count("#[test]\nfn g1_a_known_gap() {}\n"), 0);
        assert_eq!(count("    async fn g1_g999_one_of_two() {}"), 1);
        assert_eq!(count("pub fn g998_g999_both() {}"), 2);
        assert_eq!(count("// fn g999_in_a_comment() {}"), 0);
        assert_eq!(count("fn gap() {}\nfn g() {}\nlet fn_g999 = 1;"), 0);
    }
}
