//! `eastwall policy check`.

use std::{fmt::Write as _, path::PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::{
    sarif,
    set::{self, Set, count},
};
use crate::{
    cli::{
        exit::{CliError, Exit},
        output::Output,
    },
    clock,
    policy::{
        ask::{Asked, unix_moment},
        assertions,
        finding::{Code, Finding, Mark},
        lint::{self, RuleField},
    },
    sources::policy_dir::PolicyText,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct CheckArgs {
    /// Files or directories (their *.yaml, not recursive)
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Refuse a policy with warnings (exit code 1)
    #[arg(long)]
    strict: bool,
    /// Fields that every rule must have
    #[arg(long, value_delimiter = ',', value_name = "FIELD,...")]
    require: Vec<RequiredField>,
    /// Let rules stay that have expired
    #[arg(long)]
    allow_expired: bool,
    /// Trust domain, if the files do not name it
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// Check as of this moment instead of now, `2036-01-31T00:00:00Z`
    #[arg(long, value_name = "TIME", value_parser = set::parse_time)]
    at: Option<i64>,
    /// Form of the findings
    #[arg(long, value_enum, value_name = "FORM")]
    format: Option<FindingFormat>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RequiredField {
    Owner,
    Reason,
    Ticket,
}

/// Forms of findings beside those of `-o`.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum FindingFormat {
    /// Annotations of GitHub Actions
    Github,
    /// SARIF 2.1.0
    Sarif,
}

/// What a check found.
#[derive(Default)]
struct Report {
    errors: Vec<Finding>,
    warnings: Vec<Finding>,
    /// Of a set that could be compiled.
    summary: Option<Summary>,
}

struct Summary {
    name: String,
    hash: String,
    rules: usize,
    edges: usize,
    tests: usize,
    failed: usize,
}

pub(super) fn run(args: &CheckArgs, output: &mut Output) -> Result<Exit, CliError> {
    let files = set::read(&args.paths)?;
    let report = check(args, &files);
    match args.format {
        Some(FindingFormat::Github) => github(&report, output)?,
        Some(FindingFormat::Sarif) => {
            let log = sarif::log(&report.errors, &report.warnings);
            output.write(&format!("{}\n", serde_json::to_string_pretty(&log).map_err(anyhow::Error::from)?))?;
        }
        None if output.for_people() => table(args, &files, &report, output)?,
        None => machine(&files, &report, output)?,
    }
    let failed = report.summary.as_ref().is_some_and(|summary| summary.failed > 0);
    Ok(match report {
        // A test that fails is an answer about a valid policy.
        Report { ref errors, .. } if errors.iter().any(|finding| finding.code != Code::E14) => Exit::Invalid,
        _ if failed => Exit::No,
        Report { ref warnings, .. } if args.strict && !warnings.is_empty() => Exit::No,
        _ => Exit::Done,
    })
}

fn check(args: &CheckArgs, files: &[PolicyText]) -> Report {
    let mut report = Report::default();
    let set = match Set::compile(files, args.trust_domain.as_deref()) {
        Ok(set) => set,
        Err(errors) => return Report { errors, ..report },
    };
    let now = args.at.unwrap_or_else(clock::unix_seconds);
    let require = args.require.iter().map(|field| match field {
        RequiredField::Owner => RuleField::Owner,
        RequiredField::Reason => RuleField::Reason,
        RequiredField::Ticket => RuleField::Ticket,
    });
    let options = lint::Options { now, allow_expired: args.allow_expired, require: require.collect() };
    report.warnings = set.warnings.clone();
    for lint in lint::lint(&set.policy, &options) {
        let list = if lint.refuses { &mut report.errors } else { &mut report.warnings };
        list.push(lint.finding);
    }
    let outcomes = assertions::run(&set.policy, &set.map, now);
    let failed = outcomes.iter().filter(|outcome| !outcome.failures.is_empty()).count();
    for outcome in outcomes.iter().filter(|outcome| !outcome.failures.is_empty()) {
        let moment = unix_moment(outcome.test.at.unwrap_or(now));
        let asked = Asked { policy: &set.policy, map: &set.map, overrides: &[], now: moment };
        let message = format!("test failed: {}", assertions::describe(&outcome.test.expect));
        let at = Mark { place: outcome.test.place.clone(), width: 1 };
        let lines = outcome.failures.iter().map(|f| assertions::describe_failure(&asked, &outcome.test.expect, f));
        let lines: Vec<String> = lines.collect();
        report.errors.push(Finding::new(Code::E14, at, message).help(lines.join("\n")));
    }
    report.summary = Some(Summary {
        name: set.policy.name.clone(),
        hash: set.policy.hash.clone(),
        rules: set.policy.rules.len(),
        edges: set.map.edges.len(),
        tests: outcomes.len(),
        failed,
    });
    report
}

fn table(args: &CheckArgs, files: &[PolicyText], report: &Report, output: &mut Output) -> Result<(), CliError> {
    let Report { errors, warnings, summary } = report;
    if !output.quiet || args.strict {
        set::show(files, warnings, output)?;
    }
    set::show(files, errors, output)?;
    let refused = errors.iter().any(|finding| finding.code != Code::E14);
    let text = match summary {
        Some(summary) if !refused => {
            if output.quiet {
                return Ok(());
            }
            let Summary { name, hash, rules, edges, tests, failed } = summary;
            let word = if *failed == 0 { "ok" } else { "failed" };
            format!(
                "{word}  {name} {hash}  {}, {}, {}, tests {}/{tests}, {}\n",
                count(files.len(), "file"),
                count(*rules, "rule"),
                count(*edges, "edge"),
                tests - failed,
                count(warnings.len(), "warning"),
            )
        }
        _ => set::refusal(files, errors),
    };
    output.write(&text)
}

fn machine(files: &[PolicyText], report: &Report, output: &mut Output) -> Result<(), CliError> {
    let Report { errors, warnings, summary } = report;
    let all: Vec<Finding> = errors.iter().chain(warnings).cloned().collect();
    let findings = set::records(&all)?;
    let policy = summary.as_ref().map(|Summary { name, hash, rules, edges, tests, failed }| {
        json!({"name": name, "hash": hash, "rules": rules, "edges": edges,
            "tests": {"passed": tests - failed, "failed": failed}})
    });
    let document =
        json!({"ok": errors.is_empty(), "files": files.len(), "policy": policy, "findings": findings.clone()});
    output.machine(document, findings)
}

/// The workflow commands of GitHub Actions: one line each, with its own escapes.
fn github(report: &Report, output: &mut Output) -> Result<(), CliError> {
    let escape = |text: &str| text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A");
    let property = |text: &str| escape(text).replace(':', "%3A").replace(',', "%2C");
    let mut text = String::new();
    let errors = report.errors.iter().map(|finding| ("error", finding));
    for (kind, finding) in errors.chain(report.warnings.iter().map(|finding| ("warning", finding))) {
        let Finding { code, message, at, label, help, .. } = finding;
        let place = at.as_ref().map(|at| {
            let end = at.place.column.saturating_add(at.width);
            format!("file={},line={},col={},endColumn={end},", property(&at.place.file), at.place.line, at.place.column)
        });
        let details: Vec<&str> =
            [Some(message), label.as_ref(), help.as_ref()].into_iter().flatten().map(String::as_str).collect();
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "::{kind} {}title={}::{}",
            place.unwrap_or_default(),
            code.name(),
            escape(&details.join("\n"))
        );
    }
    output.write(&text)
}
