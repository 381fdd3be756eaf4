//! `eastwall policy show`.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use agent_common::{id::IdentityId, layout::level};
use clap::Args;
use serde_json::{Value, json};

use super::set::{self, Set};
use crate::{
    cli::{
        exit::{CliError, Exit},
        live,
        output::Output,
    },
    control::wire::{Reply, Request},
    policy::{
        canonical,
        model::{PortRange, Rule},
        names,
        resolvers::listed,
        time,
    },
};

/// What needs no rule. Taken before any rule, so that no rule can deny it.
const BUILT_INS: [(&str, &str); 3] = [
    ("builtin:self", "an endpoint to itself, at any address"),
    ("builtin:replies", "packets of a flow whose first packet was allowed"),
    ("builtin:icmp-errors", "errors that quote an allowed flow; neighbour discovery"),
];

#[derive(Debug, Args)]
pub(in crate::cli) struct ShowArgs {
    /// Files or directories (their *.yaml, not recursive); without one the policy in force is shown
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Show every edge that the rules open or close, as the kernel holds it, and the built-ins
    #[arg(long)]
    effective: bool,
    /// Trust domain, if the files do not name it
    #[arg(long, value_name = "DOMAIN")]
    trust_domain: Option<String>,
}

pub(super) fn run(args: &ShowArgs, socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    let (files, in_force, resolvers) = match args.paths.as_slice() {
        [] => {
            let (files, domain) = set::in_force(socket, output)?;
            let resolvers = match live::ask(socket, &Request::Status)? {
                Reply::Status(status) => status.resolvers,
                other => return Err(live::unexpected(&other)),
            };
            (files, Some(domain), Some(resolvers))
        }
        paths => (set::read(paths)?, None, None),
    };
    let set = match Set::compile(&files, args.trust_domain.as_deref().or(in_force.as_deref())) {
        Ok(set) => set,
        Err(findings) => return set::refuse(&files, &findings, output),
    };
    if args.effective {
        edges(&set, resolvers.as_deref(), output)?
    } else {
        rules(&set, output)?
    }
    Ok(Exit::Done)
}

fn rules(set: &Set, output: &mut Output) -> Result<(), CliError> {
    if output.for_people() {
        let row = |rule: &Rule| {
            let ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
            vec![
                rule.action.name().to_owned(),
                rule.from.clone(),
                rule.to.clone(),
                ports.join(","),
                rule.id.clone(),
                rule.expires.map_or_else(|| "never".to_owned(), time::format),
                format!("{}:{}", rule.place.file, rule.place.line),
            ]
        };
        let rows: Vec<Vec<String>> = set.policy.rules.iter().map(row).collect();
        return output.table(
            &["ACTION", "FROM", "TO", "PORTS", "RULE", "EXPIRES", "PLACE"],
            &rows,
            "the policy has no rules",
        );
    }
    let mut document = canonical::value(&set.policy);
    let items = document["rules"].as_array().cloned().unwrap_or_default();
    document["name"] = set.policy.name.clone().into();
    document["hash"] = set.policy.hash.clone().into();
    output.machine(document, items)
}

/// The built-in that rules can beat, and agent.yaml can switch off.
fn dns(resolvers: Option<&[IpAddr]>) -> (&'static str, String) {
    let what = match resolvers {
        None => "any workload to the resolvers of its node, udp and tcp 53, unless a rule denies it".to_owned(),
        Some([]) => "off, or the node names no resolver".to_owned(),
        Some(all) => format!("any workload to {}, udp and tcp 53, unless a rule denies it", listed(all)),
    };
    ("builtin:dns", what)
}

fn edges(set: &Set, resolvers: Option<&[IpAddr]>, output: &mut Output) -> Result<(), CliError> {
    let mut items = Vec::new();
    for key in set.map.edges.keys() {
        for range in set.map.ranges(key) {
            let allows = matches!(range.level(), level::ALLOW | level::OVERRIDE_ALLOW);
            let rule = usize::try_from(range.rule).ok().and_then(|n| set.map.rule_ids.get(n.checked_sub(1)?));
            items.push(Edge {
                from: name(set, key.from),
                to: name(set, key.to),
                ports: PortRange { proto: range.proto, lo: range.lo, hi: range.hi },
                action: if allows { "allow" } else { "deny" },
                rule: rule.cloned().unwrap_or_default(),
                expires: (range.expires != 0).then(|| time::format(range.expires.into())),
            });
        }
    }
    items.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
    let built_ins = BUILT_INS.map(|(name, what)| (name, what.to_owned())).into_iter().chain([dns(resolvers)]);
    if output.for_people() {
        let row = |edge: Edge| {
            let Edge { from, to, ports, action, rule, expires } = edge;
            let expires = expires.unwrap_or_else(|| "never".to_owned());
            vec![from, to, ports.to_string(), action.to_owned(), rule, expires]
        };
        let mut rows: Vec<Vec<String>> = items.into_iter().map(row).collect();
        let built_in = |(name, what): (&str, String)| {
            vec!["-".to_owned(), "-".to_owned(), what, "allow".to_owned(), name.to_owned(), "never".to_owned()]
        };
        rows.extend(built_ins.map(built_in));
        return output.table(&["FROM", "TO", "PORTS", "ACTION", "RULE", "EXPIRES"], &rows, "the policy opens nothing");
    }
    let items: Vec<Value> = items.into_iter().map(Edge::into_json).collect();
    let built_ins: Vec<Value> = built_ins.map(|(name, what)| json!({"rule": name, "what": what})).collect();
    output.machine(json!({"hash": set.policy.hash, "edges": items.clone(), "builtIns": built_ins}), items)
}

struct Edge {
    from: String,
    to: String,
    ports: PortRange,
    action: &'static str,
    rule: String,
    expires: Option<String>,
}

impl Edge {
    fn into_json(self) -> Value {
        let Self { from, to, ports, action, rule, expires } = self;
        json!({"from": from, "to": to, "ports": ports.to_string(), "action": action, "rule": rule, "expires": expires})
    }
}

fn name(set: &Set, id: IdentityId) -> String {
    if id == IdentityId::ANY {
        return names::ANY.to_owned();
    }
    set.map.names.get(&id).cloned().unwrap_or_default()
}
