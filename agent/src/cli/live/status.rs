//! `eastwall status`.

use std::{collections::BTreeMap, net::IpAddr, path::Path};

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
    let started = if s.adopted { "adopted a running kernel side" } else { "started afresh" };
    let accounted = s.reported + s.suppressed + s.lost + s.pending;
    let mut text = format!(
        "agent      {} on {}, pid {}, up {}; {started}; guards {}\n\
         policy     {}@{} ({}, {}, {})   applied {} ago, epoch {}\n\
         modes      {}   (door/exit; without a label: {})\n\
         dns        built-in: {}{}\n\
         endpoints  {} cgroups labelled, {} ambiguous   overrides {}\n\
         devices    {} of workloads and {} of the host guarded; {} of workloads here, {} of other hosts'\n\
         denials    {} = {} reported + {} suppressed{} + {} lost + {} pending{}   of them would-deny {}\n\
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
        modes(&s.modes),
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
        s.host_devices,
        match s.addresses {
            1 => "1 address".to_owned(),
            n => format!("{n} addresses"),
        },
        s.peers,
        s.denied,
        s.reported,
        s.suppressed,
        if s.settled == 0 { String::new() } else { format!(" ({} settled)", s.settled) },
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

/// Names each workload with its modes; where there are many, only those whose modes few others have.
fn modes(of: &BTreeMap<String, String>) -> String {
    /// So many fit into two lines.
    const WORKLOADS_MAX: usize = 8;
    const NAMES_MAX: usize = 3;
    if of.is_empty() {
        return "no workload is declared".to_owned();
    }
    if of.len() <= WORKLOADS_MAX {
        let each: Vec<String> = of.iter().map(|(name, modes)| format!("{name} {modes}")).collect();
        return each.join(", ");
    }
    let mut by_modes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, modes) in of {
        by_modes.entry(modes).or_default().push(name);
    }
    let said = |(modes, names): (&str, Vec<&str>)| match names.len() {
        0..=NAMES_MAX => format!("{} {modes}", names.join(", ")),
        many => format!("{many} workloads {modes}"),
    };
    by_modes.into_iter().map(said).collect::<Vec<_>>().join("; ")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_workloads_only_those_with_rare_modes_are_named() {
        let of = |count: usize, rare: &[&str]| {
            let usual = (0..count).map(|n| (format!("w{n}"), "enforce/enforce".to_owned()));
            let rare = rare.iter().map(|name| ((*name).to_owned(), "enforce/audit".to_owned()));
            modes(&usual.chain(rare).collect())
        };
        assert_eq!(of(0, &[]), "no workload is declared");
        assert_eq!(of(2, &["db"]), "db enforce/audit, w0 enforce/enforce, w1 enforce/enforce");
        assert_eq!(of(1_000, &[]), "1000 workloads enforce/enforce");
        assert_eq!(of(1_000, &["cache", "db"]), "cache, db enforce/audit; 1000 workloads enforce/enforce");
    }
}
