//! What a run of tests said: lines of the test harness -> which gap each test proves, and its result.

/// How one test ended.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It was left out.
    Ignored,
}

impl Outcome {
    /// As the table shows it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::Ignored => "ignored",
        }
    }
}

/// A test that proves gaps, by its name.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Proof {
    /// The name of its function.
    pub test: String,
    /// The numbers that the name begins with: `g12_g13_…` proves both.
    pub gaps: Vec<u16>,
    /// How it ended.
    pub outcome: Outcome,
}

/// Finds the tests that prove gaps in what a run printed.
pub fn proofs<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<Proof> {
    lines.into_iter().filter_map(proof).collect()
}

/// Reads one line, such as `test some::module::g12_g13_a_name ... ok`.
fn proof(line: &str) -> Option<Proof> {
    let (name, ending) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let outcome = match ending.split([' ', ',']).next()? {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed,
        "ignored" => Outcome::Ignored,
        _ => return None,
    };
    // Behind the name may stand ` - should panic`.
    let path = name.split(' ').next()?;
    let test = path.rsplit("::").next()?;
    let gaps = numbers(test);
    (!gaps.is_empty()).then(|| Proof { test: test.to_owned(), gaps, outcome })
}

/// The gaps that a test of this name proves; none for most tests.
pub fn numbers(test: &str) -> Vec<u16> {
    test.split('_').map_while(number).collect()
}

/// The number in `g12`.
fn number(word: &str) -> Option<u16> {
    let digits = word.strip_prefix('g')?;
    digits.starts_with(|c: char| c.is_ascii_digit() && c != '0').then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(line: &str) -> Option<(String, Vec<u16>, Outcome)> {
        let found = proofs([line]);
        assert!(found.len() <= 1);
        found.into_iter().next().map(|p| (p.test, p.gaps, p.outcome))
    }

    #[test]
    fn a_test_is_known_by_the_numbers_its_name_begins_with() {
        let line = "test policy::compile::tests::g12_g130_raw_and_ping_are_judged ... ok";
        let name = "g12_g130_raw_and_ping_are_judged".to_owned();
        assert_eq!(only(line), Some((name, vec![12, 130], Outcome::Passed)));
        assert_eq!(only("test a_flow_of_g12_is_none ... ok"), None);
        assert_eq!(only("test g_12 ... ok"), None);
        assert_eq!(only("test g012_is_written_otherwise ... ok"), None);
        assert_eq!(only("test g1x_is_no_number ... ok"), None);
        assert_eq!(only("test g99999999_is_no_gap ... ok"), None);
    }

    #[test]
    fn every_ending_is_told_apart() {
        assert_eq!(only("test g1_a ... FAILED").map(|p| p.2), Some(Outcome::Failed));
        assert_eq!(only("test g1_a ... ignored, needs patience").map(|p| p.2), Some(Outcome::Ignored));
        assert_eq!(only("test g1_a - should panic ... ok").map(|p| (p.0, p.2)), Some(("g1_a".into(), Outcome::Passed)));
        assert_eq!(only("test g1_a ... ok <1.234s>").map(|p| p.2), Some(Outcome::Passed));
    }

    #[test]
    fn what_else_is_printed_proves_nothing() {
        for line in [
            "",
            "running 3 tests",
            "test g1_a has been running for over 60 seconds",
            "test g1_a ...",
            "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.50s",
            "    g1_a",
            "---- g1_a stdout ----",
            "test g1_a ... okay",
        ] {
            assert_eq!(only(line), None, "{line}");
        }
    }
}
