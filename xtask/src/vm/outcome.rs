//! What the tests in the guest said: lines -> which passed, failed or were skipped, and why. Pure.

use std::{collections::BTreeMap, fmt};

/// How the tests of all files ended.
#[derive(Default)]
pub struct Report {
    files: Vec<File>,
    /// The test whose output is being read.
    told: Option<String>,
    /// The next line says why it failed.
    is_reason_next: bool,
}

#[derive(Default)]
struct File {
    name: String,
    /// `None`: it has not ended.
    status: Option<i32>,
    passed: Vec<String>,
    failed: Vec<String>,
    ignored: usize,
    /// Test -> why it was skipped; it has passed as well.
    skipped: BTreeMap<String, String>,
    /// Test -> what it said when it failed.
    reasons: BTreeMap<String, String>,
}

/// The status of a file that was ended because time ran out.
const TIME_RAN_OUT: i32 = 124;

/// A reason is cut there, in characters.
const REASON_MAX: usize = 240;

impl Report {
    /// Reads the next line.
    pub fn read(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("::file ") {
            self.files.push(File { name: name.to_owned(), ..File::default() });
            (self.told, self.is_reason_next) = (None, false);
            return;
        }
        let Some(file) = self.files.last_mut() else { return };
        if let Some(status) = line.strip_prefix("::status ") {
            file.status = Some(status.trim().parse().unwrap_or(-1));
        } else if let Some((test, ending)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            let test = test.split(' ').next().unwrap_or(test).to_owned();
            match ending.split([' ', ',']).next() {
                Some("ok") => file.passed.push(test),
                Some("FAILED") => file.failed.push(test),
                Some("ignored") => file.ignored += 1,
                _ => {}
            }
        } else if let Some((test, reason)) = line.strip_prefix("SKIP ").and_then(|rest| rest.split_once(": ")) {
            file.skipped.insert(test.to_owned(), reason.to_owned());
        } else if let Some(test) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            (self.told, self.is_reason_next) = (Some(test.to_owned()), false);
        } else if let Some(test) = &self.told {
            if self.is_reason_next || line.starts_with("Error: ") {
                self.is_reason_next = false;
                let reason = file.reasons.entry(test.clone()).or_default();
                reason.push_str(line);
                *reason = reason.chars().take(REASON_MAX).collect();
            } else if let Some((_, place)) = line.split_once(" panicked at ")
                && !file.reasons.contains_key(test)
            {
                file.reasons.insert(test.clone(), format!("{place} "));
                self.is_reason_next = true;
            }
        }
    }

    /// Says whether every file ended, and no test failed.
    pub fn passed(&self) -> bool {
        !self.files.is_empty() && self.files.iter().all(|file| file.status == Some(0) && file.failed.is_empty())
    }
}

impl File {
    fn ending(&self) -> String {
        match self.status {
            Some(0) => String::new(),
            Some(TIME_RAN_OUT) => "time ran out".to_owned(),
            Some(_) if !self.failed.is_empty() => String::new(),
            Some(status) => format!("ended with {status}"),
            None => "never ended".to_owned(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.files.iter().map(|file| file.name.len()).max().unwrap_or(0).max(4);
        writeln!(f, "| {:width$} | passed | failed | skipped |", "file")?;
        writeln!(f, "| {:-<width$} | ------ | ------ | ------- |", "")?;
        for file in &self.files {
            let passed = file.passed.iter().filter(|test| !file.skipped.contains_key(*test)).count();
            let (failed, skipped) = (file.failed.len(), file.skipped.len() + file.ignored);
            writeln!(f, "| {:width$} | {passed:6} | {failed:6} | {skipped:7} | {}", file.name, file.ending())?;
        }
        for file in &self.files {
            for test in &file.failed {
                let reason = file.reasons.get(test).map_or("it did not say why", String::as_str);
                writeln!(f, "FAILED  {}::{test}: {reason}", file.name)?;
            }
            for (test, reason) in &file.skipped {
                writeln!(f, "skipped {}::{test}: {reason}", file.name)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(text: &str) -> Report {
        let mut report = Report::default();
        text.lines().for_each(|line| report.read(line));
        report
    }

    #[test]
    fn every_test_is_passed_failed_or_skipped_with_its_reason() {
        let report = report(
            "::file hook_a\n\
             running 3 tests\n\
             SKIP one: it needs root\n\
             test one ... ok\n\
             test two ... ok\n\
             test three ... FAILED\n\
             ---- three stdout ----\n\
             \n\
             thread 'three' (12) panicked at tests/tests/hook_a.rs:9:5:\n\
             assertion failed\n\
             test result: FAILED. 2 passed; 1 failed; 0 ignored\n\
             ::status 101\n\
             ::file hook_b\n\
             test slow ... ok\n\
             ::status 124",
        );
        assert!(!report.passed());
        assert_eq!(
            report.to_string(),
            "\
| file   | passed | failed | skipped |
| ------ | ------ | ------ | ------- |
| hook_a |      1 |      1 |       1 | \n\
| hook_b |      1 |      0 |       0 | time ran out
FAILED  hook_a::three: tests/tests/hook_a.rs:9:5: assertion failed
skipped hook_a::one: it needs root
"
        );
    }

    #[test]
    fn no_file_and_one_that_never_ended_are_no_success() {
        assert!(!report("").passed());
        assert!(!report("::file hook_a\ntest one ... ok").passed());
        assert!(report("::file hook_a\ntest one ... ok\n::status 0").passed());
    }
}
