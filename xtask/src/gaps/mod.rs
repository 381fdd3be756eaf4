//! `xtask gaps`: which test proves which gap, and how it ended.
//!
//! A test proves a gap by its name: `g12_raw_sockets_are_judged`, `g20_g21_…` for two. The table is made
//! from a run, so it cannot name a test that is not there.

mod outcome;
mod titles;

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use anyhow::{Context as _, Result, bail, ensure};
use outcome::{Outcome, Proof};
use titles::GAPS;

use crate::{Scope, test, workspace::Workspace};

/// Runs the tests of some gaps, or of all if none is named, and prints the table.
///
/// # Errors
///
/// A number is no gap's, the tests cannot be run, one fails, or a gap has none.
pub fn run(workspace: &Workspace, numbers: &[u16]) -> Result<()> {
    for number in numbers {
        ensure!(GAPS.iter().any(|(n, _)| n == number), "there is no gap {number} in the table of gaps");
    }
    let wanted: Vec<_> = GAPS.iter().filter(|(n, _)| numbers.is_empty() || numbers.contains(n)).copied().collect();
    let filters: Vec<String> = wanted.iter().map(|(n, _)| format!("g{n}_")).collect();
    let ran = test::run_tests(workspace, Scope::All, &filters, &mut io::stderr())?;
    let told = tell(&ran.lines, &wanted);
    ran.passed.and(told)
}

/// Prints the table of all gaps from the lines that a run of all tests printed.
///
/// # Errors
///
/// As [`run`].
pub fn tell_all(lines: &[String]) -> Result<()> {
    tell(lines, GAPS)
}

fn tell(lines: &[String], gaps: &[(u16, &str)]) -> Result<()> {
    let proofs = outcome::proofs(lines.iter().map(String::as_str));
    io::stdout().write_all(table(gaps, &proofs).as_bytes()).context("print the table of gaps")?;
    let problems = problems(gaps, &proofs);
    if !problems.is_empty() {
        bail!("gaps that are not proved: {}", problems.join("; "));
    }
    Ok(())
}

/// Those gaps that the name of a function says it proves, and that the table does not have.
pub fn without_title(function: &str) -> Vec<u16> {
    outcome::numbers(function).into_iter().filter(|number| !GAPS.iter().any(|(known, _)| known == number)).collect()
}

/// The tests of one gap, by name.
fn of(gap: u16, proofs: &[Proof]) -> Vec<&Proof> {
    let mut tests: Vec<&Proof> = proofs.iter().filter(|proof| proof.gaps.contains(&gap)).collect();
    tests.sort_by(|a, b| a.test.cmp(&b.test));
    tests
}

/// Says what is not proved. Empty: every gap has a test, and all of its tests passed.
fn problems(gaps: &[(u16, &str)], proofs: &[Proof]) -> Vec<String> {
    let mut problems = Vec::new();
    for &(gap, _) in gaps {
        let tests = of(gap, proofs);
        if tests.is_empty() {
            problems.push(format!("G{gap} has no test"));
        }
        for proof in tests.iter().filter(|proof| proof.outcome != Outcome::Passed) {
            problems.push(format!("G{gap}: {} {}", proof.test, proof.outcome.word()));
        }
    }
    for proof in proofs {
        for number in without_title(&proof.test) {
            problems.push(format!("{} names G{number}, which has no title", proof.test));
        }
    }
    problems
}

/// One row a test, as Markdown that also reads well as it is.
fn table(gaps: &[(u16, &str)], proofs: &[Proof]) -> String {
    let mut rows = vec![["gap", "what must not be a way around", "result", "proved by"].map(str::to_owned)];
    for &(gap, title) in gaps {
        let (mut gap_cell, mut title) = (format!("G{gap}"), title.to_owned());
        let tests = of(gap, proofs);
        if tests.is_empty() {
            rows.push([gap_cell, title, "NO TEST".to_owned(), String::new()]);
            continue;
        }
        for proof in tests {
            let (gap, title) = (std::mem::take(&mut gap_cell), std::mem::take(&mut title));
            rows.push([gap, title, proof.outcome.word().to_owned(), proof.test.clone()]);
        }
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; 4] = std::array::from_fn(width);
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a String cannot fail.
            let _ = write!(text, "| {cell:width$} ");
        }
        text.push_str("|\n");
        if index == 0 {
            for width in widths {
                let _ = write!(text, "| {:-<width$} ", "");
            }
            text.push_str("|\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &[(u16, &str)] = &[(1, "one"), (12, "two")];

    fn proof(test: &str, gaps: &[u16], outcome: Outcome) -> Proof {
        Proof { test: test.to_owned(), gaps: gaps.to_vec(), outcome }
    }

    #[test]
    fn a_gap_is_proved_by_tests_that_all_passed() {
        let both = proof("g1_g12_a", &[1, 12], Outcome::Passed);
        assert_eq!(problems(TWO, std::slice::from_ref(&both)), [""; 0]);
        let failed = proof("g12_b", &[12], Outcome::Failed);
        assert_eq!(problems(TWO, &[both.clone(), failed]), ["G12: g12_b FAILED"]);
        let ignored = proof("g12_b", &[12], Outcome::Ignored);
        assert_eq!(problems(TWO, &[both, ignored]), ["G12: g12_b ignored"]);
    }

    #[test]
    fn a_gap_without_a_test_and_a_number_without_a_gap_are_problems() {
        let proofs = [proof("g1_a", &[1], Outcome::Passed), proof("g999_b", &[999], Outcome::Passed)];
        assert_eq!(problems(TWO, &proofs), ["G12 has no test", "g999_b names G999, which has no title"]);
    }

    #[test]
    fn the_table_has_one_row_a_test() {
        let proofs = [proof("g1_b", &[1], Outcome::Failed), proof("g1_a", &[1], Outcome::Passed)];
        let expected = "\
| gap | what must not be a way around | result  | proved by |
| --- | ----------------------------- | ------- | --------- |
| G1  | one                           | ok      | g1_a      |
|     |                               | FAILED  | g1_b      |
| G12 | two                           | NO TEST |           |
";
        assert_eq!(table(TWO, &proofs), expected);
    }

    #[test]
    fn gaps_are_sorted_and_told_apart() {
        assert!(GAPS.is_sorted_by(|a, b| a.0 < b.0));
    }
}
