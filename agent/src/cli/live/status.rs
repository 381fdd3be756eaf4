//! `eastwall status`.

use std::{net::IpAddr, path::Path};

use serde_json::to_value;

use super::{ask, unexpected};
use crate::{
    cli::{
        exit::{CliError, Exit},
        output::{Output, escape},
    },
    control::wire::{Reply, Request, Status, Tampering},
    policy::resolvers::listed,
};

/// Shows the state of the agent; the answer is "no" if something is wrong.
pub(crate) fn status(socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    let status = match ask(socket, &Request::Status)? {
        Reply::Status(status) => status,
        other => return Err(unexpected(&other)),
    };
    if output.for_people() {
        output.write(&text(&status))?;
    } else {
        let value = to_value(&status).map_err(anyhow::Error::from)?;
        output.machine(value.clone(), [value])?;
    }
    Ok(if status.problems.is_empty() { Exit::Done } else { Exit::No })
}

fn text(s: &Status) -> String {
    let mut by_mode: Vec<String> = s.modes.iter().map(|(name, modes)| format!("{name} {modes}")).collect();
    if by_mode.is_empty() {
        by_mode.push("no workload is declared".to_owned());
    }
    let started = if s.adopted { "adopted a running kernel side" } else { "started afresh" };
    let accounted = s.reported + s.suppressed + s.lost + s.pending;
    let mut text = format!(
        "agent      {} on {}, pid {}, up {}; {started}; guards {}\n\
         policy     {}@{} ({}, {}, {})   applied {} ago, epoch {}\n\
         modes      {}   (door/exit; without a label: {})\n\
         dns        built-in: {}{}\n\
         endpoints  {} cgroups labelled, {} ambiguous   overrides {}\n\
         devices    {} guarded, {} of workloads here, {} of other hosts'\n\
         denials    {} = {} reported + {} suppressed + {} lost + {} pending{}   of them would-deny {}\n\
         last {:<5} {} denials, of them would-deny {}, lost {}\n\
         tampering  {}\n",
        s.version,
        escape(&s.host),
        s.pid,
        duration(s.uptime_seconds),
        s.scope,
        s.policy,
        short(&s.policy_hash),
        many(s.documents, "document"),
        many(s.rules, "rule"),
        many(s.edges, "edge"),
        duration(s.applied_seconds_ago),
        s.epoch,
        by_mode.join(", "),
        s.unknown_mode,
        resolvers(&s.resolvers),
        match s.dns_names {
            0 => String::new(),
            names => format!("   externals: {}, {} addresses known", many(names, "name"), s.dns_addresses),
        },
        s.labelled,
        s.ambiguous,
        s.overrides,
        s.devices,
        match s.addresses {
            1 => "1 address".to_owned(),
            n => format!("{n} addresses"),
        },
        s.peers,
        s.denied,
        s.reported,
        s.suppressed,
        s.lost,
        s.pending,
        if accounted == s.denied { "" } else { "   DOES NOT ADD UP" },
        s.would_deny,
        if s.recent.seconds < 3_600 { duration(s.recent.seconds) } else { "hour".to_owned() },
        s.recent.denied,
        s.recent.would_deny,
        s.recent.lost,
        tampering(&s.tampering),
    );
    for problem in &s.problems {
        text.push_str(&format!("problem    {}\n", problem.replace('\n', "\n           ")));
    }
    text
}

fn tampering(t: &Tampering) -> String {
    let verified = format!("verified {} ms ago", t.verified_ms_ago);
    let (Some(last), Some(ago)) = (&t.last, t.last_seconds_ago) else { return format!("none; {verified}") };
    let found: Vec<String> = t.found.iter().map(|(act, count)| format!("{act} {count}")).collect();
    format!("{}, put back {}; {verified}; {} ago: {last}", found.join(", "), t.repaired, duration(ago))
}

fn resolvers(all: &[IpAddr]) -> String {
    if all.is_empty() { "off, or no resolver".to_owned() } else { listed(all) }
}

fn many(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn short(hash: &str) -> &str {
    let digits = hash.strip_prefix("sha256:").unwrap_or(hash);
    digits.get(..6).unwrap_or(digits)
}

/// Returns `12s`, `5m`, `3h20m`, `2d4h`.
pub(super) fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds / 3600 % 24),
    }
}
