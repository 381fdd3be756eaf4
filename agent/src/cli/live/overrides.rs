//! `eastwall revoke`, `break-glass` and `overrides`.

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    path::Path,
    time::Duration,
};

use anyhow::anyhow;
use clap::Args;
use serde_json::{Value, json, to_value};

use super::{apply::applied_text, ask, unexpected};
use crate::{
    cli::{
        exit::{CliError, Exit},
        output::Output,
    },
    control::wire::{Override, OverrideRow, Reply, Request},
    policy::time,
};

#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    /// The caller
    #[arg(required_unless_present = "undo", requires = "to")]
    from: Option<String>,
    /// The callee, `NAME` or `NAME:PORT`
    to: Option<String>,
    /// Why; it is in every event
    #[arg(long, required_unless_present = "undo")]
    reason: Option<String>,
    /// Where that is written down
    #[arg(long)]
    ticket: Option<String>,
    /// When it ends by itself: 30m, 24h, 7d
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    expires: Duration,
    /// End an override instead
    #[arg(long, value_name = "ID", conflicts_with_all = ["from", "to", "reason", "ticket"])]
    undo: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct BreakGlassArgs {
    /// The caller
    from: String,
    /// The callee, `NAME:PORT`
    to: String,
    /// Why; it is in every event
    #[arg(long)]
    reason: String,
    /// Where that is written down
    #[arg(long)]
    ticket: Option<String>,
    /// How long, at most 24h: 30m, 2h
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    lasts: Duration,
    /// Do not ask to retype the target
    #[arg(long)]
    yes: bool,
}

/// Denies an edge above all rules, and cuts its flows.
pub(crate) fn revoke(socket: &Path, args: RevokeArgs, output: &mut Output) -> Result<Exit, CliError> {
    if let Some(id) = args.undo {
        return done(ask(socket, &Request::Undo { id })?, output, "ended");
    }
    let (Some(from), Some(to), Some(reason)) = (args.from, args.to, args.reason) else {
        return Err(CliError::new(Exit::Usage, anyhow!("write `eastwall revoke FROM TO --reason WHY`")));
    };
    let what = format!("revoked {from} -> {to}");
    let (to, ports) = split(&to);
    let seconds = args.expires.as_secs();
    let request = Request::Revoke(Override { from, to, ports, seconds, reason, ticket: args.ticket });
    done(ask(socket, &request)?, output, &what)
}

/// Allows an edge for a while, above all rules but revocations.
pub(crate) fn break_glass(socket: &Path, args: BreakGlassArgs, output: &mut Output) -> Result<Exit, CliError> {
    let (to, ports) = split(&args.to);
    if ports.is_empty() {
        return Err(CliError::new(Exit::Usage, anyhow!("name the port that is opened: `{}:tcp/5432`", args.to)));
    }
    if !args.yes {
        if !io::stdin().is_terminal() {
            return Err(CliError::new(Exit::Usage, anyhow!("nobody can retype the target here; add --yes")));
        }
        output.talk(&format!("This opens `{}` to `{}`. Type the target again to go on:", args.to, args.from));
        let mut typed = String::new();
        io::stdin().lock().read_line(&mut typed)?;
        if typed.trim() != args.to {
            return Err(CliError::new(Exit::Usage, anyhow!("that is not `{}`; nothing was opened", args.to)));
        }
    }
    let what = format!("opened {} -> {}", args.from, args.to);
    let seconds = args.lasts.as_secs();
    let asked = Override { from: args.from, to, ports, seconds, reason: args.reason, ticket: args.ticket };
    done(ask(socket, &Request::BreakGlass(asked))?, output, &what)
}

/// Lists the overrides in force.
pub(crate) fn overrides(socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    let rows = match ask(socket, &Request::Overrides)? {
        Reply::Overrides { overrides } => overrides,
        other => return Err(unexpected(&other)),
    };
    if output.for_people() {
        let headers = ["ID", "KIND", "FROM", "TO", "PORTS", "ENDS", "REASON", "TICKET"];
        let columns = if output.is_wide() { headers.len() } else { 7 };
        let row = |o: OverrideRow| {
            let (ports, ends) = (o.ports.join(","), time::format(o.expires));
            let ticket = o.ticket.unwrap_or_else(|| "-".to_owned());
            let mut row = vec![o.id, o.kind, o.from, o.to, ports, ends, o.reason, ticket];
            row.truncate(columns);
            row
        };
        let rows: Vec<Vec<String>> = rows.into_iter().map(row).collect();
        output.table(&headers[..columns], &rows, "no override is in force")?;
    } else {
        let item = |row: &OverrideRow| {
            let mut item = to_value(row)?;
            item["expires"] = time::format(row.expires).into();
            Ok(item)
        };
        let items: Vec<Value> =
            rows.iter().map(item).collect::<Result<_, serde_json::Error>>().map_err(anyhow::Error::from)?;
        output.machine(json!({"overrides": items.clone()}), items)?;
    }
    Ok(Exit::Done)
}

fn done(reply: Reply, output: &mut Output, what: &str) -> Result<Exit, CliError> {
    match reply {
        Reply::Applied(applied) => {
            let exit = applied_text(&applied, output, what)?;
            if let (Some(id), true, false) = (&applied.id, output.for_people(), output.quiet) {
                output.write(&format!("undo: eastwall revoke --undo {id}\n"))?;
            }
            Ok(exit)
        }
        other => Err(unexpected(&other)),
    }
}

/// `name:port` -> name and port; a name without a port means every port.
fn split(to: &str) -> (String, Vec<String>) {
    match to.rsplit_once(':') {
        Some((name, port)) if !name.is_empty() && !port.starts_with('/') => (name.to_owned(), vec![port.to_owned()]),
        _ => (to.to_owned(), Vec::new()),
    }
}

/// Reads `30s`, `30m`, `24h`, `7d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time; write 30s, 30m, 24h or 7d");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let n: u64 = text.get(..text.len() - unit.len_utf8()).and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
    let factor = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    n.checked_mul(factor).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_targets_are_read_as_people_write_them() {
        assert_eq!(duration("30m"), Ok(Duration::from_secs(1800)));
        assert!(duration("30").is_err() && duration("m").is_err() && duration("").is_err());
        assert_eq!(split("db:tcp/5432"), ("db".to_owned(), vec!["tcp/5432".to_owned()]));
        assert_eq!(split("db"), ("db".to_owned(), vec![]));
        assert_eq!(split("spiffe://x/y"), ("spiffe://x/y".to_owned(), vec![]));
    }
}
