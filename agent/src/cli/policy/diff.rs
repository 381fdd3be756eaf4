//! `eastwall policy diff`: what one policy decides otherwise than another, or than the one in force.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::{Value, json};

use super::set::{self, Set, count};
use crate::{
    cli::{
        exit::{CliError, Exit},
        output::{Output, escape},
    },
    clock,
    policy::{
        ask::{Asked, unix_moment},
        diff::{Change, Differences, EdgeChange, SettingChange, Side, diff},
        time,
    },
};

#[derive(Debug, Args)]
pub(in crate::cli) struct DiffArgs {
    /// Files or directories (their *.yaml): the old policy and the new one, or only the new one, which is
    /// compared with the policy in force
    #[arg(required = true, num_args = 1..=2, value_name = "[OLD] NEW")]
    paths: Vec<PathBuf>,
    /// Trust domain, if the files do not name it
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
    /// Compare as of this moment instead of now, `2036-01-31T00:00:00Z`
    #[arg(long, value_name = "TIME", value_parser = set::parse_time)]
    at: Option<i64>,
}

/// Shows the differences; the answer is "no" if there are some.
pub(super) fn run(args: &DiffArgs, socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    let mut trust_domain = args.trust_domain.clone();
    let (old, new) = match args.paths.as_slice() {
        [old, new] => (set::read(std::slice::from_ref(old))?, set::read(std::slice::from_ref(new))?),
        paths => {
            let new = set::read(paths)?;
            let (old, domain) = set::in_force(socket, output)?;
            trust_domain = trust_domain.or(Some(domain));
            (old, new)
        }
    };
    let mut sets = Vec::new();
    for files in [&old, &new] {
        match Set::compile(files, trust_domain.as_deref()) {
            Ok(set) => sets.push(set),
            Err(findings) => return set::refuse(files, &findings, output),
        }
    }
    let now = unix_moment(args.at.unwrap_or_else(clock::unix_seconds));
    let asked: Vec<Asked<'_>> =
        sets.iter().map(|set| Asked { policy: &set.policy, map: &set.map, overrides: &[], now }).collect();
    let differences = match asked.as_slice() {
        [old, new] => diff(old, new),
        _ => Differences::default(),
    };
    if output.for_people() {
        output.write(&text(&differences, output.quiet))?;
    } else {
        machine(&differences, output)?;
    }
    Ok(if differences.is_empty() { Exit::Done } else { Exit::No })
}

fn text(differences: &Differences, quiet: bool) -> String {
    let Differences { edges, settings } = differences;
    let rows: Vec<[String; 3]> = edges.iter().map(edge).chain(settings.iter().map(setting)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for row in &rows {
        let [sign, what, why] = row.each_ref().map(|cell| escape(cell));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{sign} {what:<width$}  {why}", width = width(1));
    }
    if !quiet {
        let [opened, closed, changed] = differences.counts();
        let opened = count(opened, "edge");
        let settings = count(settings.len(), "setting");
        let _ = match differences.is_empty() {
            true => writeln!(text, "no difference"),
            false => writeln!(text, "{opened} opened, {closed} closed, {changed} changed; {settings} changed"),
        };
    }
    text
}

fn edge(edge: &EdgeChange) -> [String; 3] {
    let EdgeChange { change, from, to, ports, before, after } = edge;
    let sign = match change {
        Change::Opened => "+",
        Change::Closed => "-",
        Change::Changed => "~",
    };
    let why = format!("{}, was {}", said(after), said(before));
    [sign.to_owned(), format!("{from} -> {to}:{}", ports.join(",")), why]
}

/// `allow by rule x until ...`, `deny by default`.
fn said(side: &Side) -> String {
    let Side { allow, rule, until } = side;
    let rule = rule.as_ref().map_or_else(|| "default".to_owned(), |rule| format!("rule {rule}"));
    let until = until.map(|until| format!(" until {}", time::format(until))).unwrap_or_default();
    format!("{} by {rule}{until}", if *allow { "allow" } else { "deny" })
}

fn setting(setting: &SettingChange) -> [String; 3] {
    let SettingChange { what, field, before, after } = setting;
    let (sign, why) = match (before, after) {
        (Value::Null, _) if field.is_empty() => ("+", String::new()),
        (_, Value::Null) if field.is_empty() => ("-", String::new()),
        _ => ("~", format!("{field} {after}, was {before}")),
    };
    [sign.to_owned(), what.clone(), why]
}

fn machine(differences: &Differences, output: &mut Output) -> Result<(), CliError> {
    let edges: Vec<Value> = differences.edges.iter().map(EdgeChange::to_json).collect();
    let settings: Vec<Value> = differences.settings.iter().map(SettingChange::to_json).collect();
    let [opened, closed, changed] = differences.counts();
    let document = json!({
        "opened": opened, "closed": closed, "changed": changed, "edges": edges.clone(), "settings": settings.clone(),
    });
    output.machine(document, edges.into_iter().chain(settings))
}
