//! `eastwall map`: what the kernel holds.

use std::path::Path;

use clap::Subcommand;
use serde_json::{Value, json, to_value};

use super::{ask, status::duration, unexpected};
use crate::{
    cli::{
        exit::{CliError, Exit},
        output::{Output, escape},
        policy::set::count,
    },
    control::wire::{EdgeRow, Reply, Request},
};

#[derive(Debug, Subcommand)]
pub(crate) enum MapCommand {
    /// Every edge of the policy in force, with the hits of its rule
    Dump {
        /// Only edges from or to this name
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
        /// Everything that the side in force holds, in hex, as the kernel has it
        #[arg(long, conflicts_with = "name")]
        raw: bool,
    },
    /// Whether the kernel holds what the agent believes; exit code 1 if not
    Check,
    /// How full the maps are, and the counters of the kernel
    Stats,
}

/// Shows edges or counters.
pub(crate) fn map(socket: &Path, command: MapCommand, output: &mut Output) -> Result<Exit, CliError> {
    match command {
        MapCommand::Dump { raw: true, .. } => raw(socket, output),
        MapCommand::Check => check(socket, output),
        MapCommand::Dump { name, raw: false } => dump(socket, name.as_deref(), output),
        MapCommand::Stats => stats(socket, output),
    }
}

fn dump(socket: &Path, name: Option<&str>, output: &mut Output) -> Result<Exit, CliError> {
    let mut edges = match ask(socket, &Request::Edges)? {
        Reply::Edges { edges } => edges,
        other => return Err(unexpected(&other)),
    };
    edges.retain(|e| name.is_none_or(|name| e.from == name || e.to == name));
    if output.for_people() {
        let row = |e: EdgeRow| {
            let expires = e.expires.unwrap_or_else(|| "never".to_owned());
            let last = e.last_seconds_ago.map_or_else(|| "-".to_owned(), |s| format!("{} ago", duration(s)));
            vec![e.from, e.to, e.action, e.ports, e.rule, expires, e.hits.to_string(), last]
        };
        let rows: Vec<Vec<String>> = edges.into_iter().map(row).collect();
        let headers = ["FROM", "TO", "ACTION", "PORTS", "RULE", "EXPIRES", "HITS", "LAST"];
        let nothing = match name {
            Some(name) => format!("no edge is from or to `{name}`; `eastwall policy show` lists rules"),
            None => "the policy in force opens nothing".to_owned(),
        };
        output.table(&headers, &rows, &nothing)?;
    } else {
        let items: Vec<Value> = edges.iter().map(to_value).collect::<Result<_, _>>().map_err(anyhow::Error::from)?;
        output.machine(json!({"edges": items.clone()}), items)?;
    }
    Ok(Exit::Done)
}

fn raw(socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    let elements = match ask(socket, &Request::Raw)? {
        Reply::Raw { elements } => elements,
        other => return Err(unexpected(&other)),
    };
    if output.for_people() {
        let rows: Vec<Vec<String>> = elements.into_iter().map(|(map, key, value)| vec![map, key, value]).collect();
        output.table(&["MAP", "KEY", "VALUE"], &rows, "the maps are empty")?;
    } else {
        let item = |(map, key, value)| json!({"map": map, "key": key, "value": value});
        let items: Vec<Value> = elements.into_iter().map(item).collect();
        output.machine(json!({"elements": items.clone()}), items)?;
    }
    Ok(Exit::Done)
}

fn check(socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    let (compared, differences) = match ask(socket, &Request::Check)? {
        Reply::Checked { compared, differences } => (compared, differences),
        other => return Err(unexpected(&other)),
    };
    let same = differences.is_empty();
    if output.for_people() {
        let mut text: String = differences.iter().map(|line| format!("{}\n", escape(line))).collect();
        let all: Vec<String> = compared.iter().map(|(what, n)| format!("{n} {what}")).collect();
        let all = all.join(", ");
        text.push_str(&match differences.len() {
            0 => format!("the kernel holds what the agent believes: {all}\n"),
            n => format!("{} in {all}; a change of policy writes all of it anew\n", count(n, "difference")),
        });
        output.write(&text)?;
    } else {
        let items: Vec<Value> = differences.iter().map(|line| json!({"difference": line})).collect();
        output.machine(json!({"same": same, "compared": compared, "differences": differences}), items)?;
    }
    Ok(if same { Exit::Done } else { Exit::No })
}

fn stats(socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    let counters = match ask(socket, &Request::Stats)? {
        Reply::Stats { counters } => counters,
        other => return Err(unexpected(&other)),
    };
    if output.for_people() {
        let rows: Vec<Vec<String>> = counters.into_iter().map(|(name, n)| vec![name, n.to_string()]).collect();
        output.table(&["COUNTER", "VALUE"], &rows, "there are no counters")?;
    } else {
        let value = to_value(&counters).map_err(anyhow::Error::from)?;
        output.machine(value.clone(), [value])?;
    }
    Ok(Exit::Done)
}
