//! `eastwall policy test`.

use std::{fmt::Write as _, path::PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::{
    junit,
    set::{self, Set},
};
use crate::{
    cli::{
        exit::{CliError, Exit},
        output::{Output, escape},
    },
    clock,
    policy::{
        ask::{Asked, unix_moment},
        assertions::{self, Outcome},
        time,
    },
};

#[derive(Debug, Args)]
pub(in crate::cli) struct TestArgs {
    /// Files or directories (their *.yaml, not recursive)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Show the tests that passed as well
    #[arg(short, long)]
    verbose: bool,
    /// Write the outcomes as JUnit XML
    #[arg(long)]
    junit: bool,
    /// Trust domain, if the files do not name it
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// Run tests that name no moment as of this one instead of now
    #[arg(long, value_name = "TIME", value_parser = set::parse_time)]
    at: Option<i64>,
}

pub(super) fn run(args: &TestArgs, output: &mut Output) -> Result<Exit, CliError> {
    let files = set::read(&args.paths)?;
    let set = match Set::compile(&files, args.trust_domain.as_deref()) {
        Ok(set) => set,
        Err(findings) => return set::refuse(&files, &findings, output),
    };
    let now = args.at.unwrap_or_else(clock::unix_seconds);
    let outcomes = assertions::run(&set.policy, &set.map, now);
    let failed = outcomes.iter().filter(|outcome| !outcome.failures.is_empty()).count();
    let passed = outcomes.len() - failed;
    if args.junit {
        let cases: Vec<junit::Case> = outcomes.iter().map(|outcome| case(&set, outcome, now)).collect();
        output.write(&junit::document(&set.policy.name, &cases))?;
    } else if output.for_people() {
        let mut text = String::new();
        for outcome in &outcomes {
            write_outcome(&mut text, &set, outcome, now, args.verbose);
        }
        if !output.quiet {
            let _ = writeln!(text, "{passed} passed, {failed} failed");
        }
        output.write(&text)?;
    } else {
        let items: Vec<Value> = outcomes.iter().map(|outcome| record(&set, outcome, now)).collect();
        output.machine(json!({"passed": passed, "failed": failed, "tests": items.clone()}), items)?;
    }
    Ok(if failed == 0 { Exit::Done } else { Exit::No })
}

fn lines(set: &Set, outcome: &Outcome<'_>, now: i64) -> Vec<String> {
    let moment = unix_moment(outcome.test.at.unwrap_or(now));
    let asked = Asked { policy: &set.policy, map: &set.map, overrides: &[], now: moment };
    let describe = |failure| assertions::describe_failure(&asked, &outcome.test.expect, failure);
    outcome.failures.iter().map(describe).collect()
}

fn case(set: &Set, outcome: &Outcome<'_>, now: i64) -> junit::Case {
    let promise = assertions::describe(&outcome.test.expect);
    // Two tests may promise the same at different times.
    let at = outcome.test.at.map(|at| format!(" at {}", time::format(at))).unwrap_or_default();
    let name = outcome.test.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let name = format!("{promise}{at}{name}");
    let place = outcome.test.place.clone();
    junit::Case { file: place.file, line: place.line, name, failures: lines(set, outcome, now) }
}

fn write_outcome(text: &mut String, set: &Set, outcome: &Outcome<'_>, now: i64, verbose: bool) {
    let passed = outcome.failures.is_empty();
    if passed && !verbose {
        return;
    }
    let word = if passed { "ok  " } else { "FAIL" };
    let place = &outcome.test.place;
    let name = outcome.test.name.as_ref().map(|name| format!("  ({})", escape(name))).unwrap_or_default();
    let promise = assertions::describe(&outcome.test.expect);
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{word}  {}:{}  {promise}{name}", escape(&place.file), place.line);
    for line in lines(set, outcome, now) {
        let _ = writeln!(text, "        {}", escape(&line));
    }
}

fn record(set: &Set, outcome: &Outcome<'_>, now: i64) -> Value {
    let place = &outcome.test.place;
    json!({
        "file": place.file,
        "line": place.line,
        "name": outcome.test.name,
        "test": assertions::describe(&outcome.test.expect),
        "passed": outcome.failures.is_empty(),
        "failures": lines(set, outcome, now),
    })
}
