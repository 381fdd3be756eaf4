//! The canonical form of a policy: equal meaning, equal bytes, whatever the files looked like.

use std::fmt::Write as _;

use agent_common::verdict::Mode;
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::{
    model::{Action, Cidr, External, Policy, PortRange, Rule, Selector, SharedPeers, Workload},
    time,
};

/// Returns `sha256:` and 16 hex digits over [`value`].
#[must_use]
pub fn hash(policy: &Policy) -> String {
    let digest = Sha256::digest(value(policy).to_string());
    digest.iter().take(8).fold("sha256:".to_owned(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Returns the policy as JSON with sorted keys. Places, tests and the names of documents are left
/// out: they change no decision.
#[must_use]
pub fn value(policy: &Policy) -> Value {
    let Policy {
        name: _,
        hash: _,
        trust_domain,
        default_mode,
        unknown_mode,
        default_on_deny,
        workloads,
        externals,
        groups,
        rules,
        tests: _,
    } = policy;
    json!({
        "trustDomain": trust_domain,
        "defaults": {
            "mode": policy.mode_of_derived().name(),
            "unknownMode": unknown_mode.or(*default_mode).unwrap_or(Mode::Observe).name(),
            "onDeny": default_on_deny.name(),
        },
        "workloads": workloads.values().map(workload).collect::<Vec<_>>(),
        "externals": externals.values().map(external).collect::<Vec<_>>(),
        "groups": groups,
        "rules": rules.iter().map(rule).collect::<Vec<_>>(),
    })
}

fn workload(workload: &Workload) -> Value {
    let Workload { name, id, select, ports, ingress_mode, egress_mode, on_deny, shared_peers, owner, place: _ } =
        workload;
    let ports: Map<String, Value> =
        ports.iter().map(|(name, range)| (name.clone(), Value::String(range.to_string()))).collect();
    let mut select: Vec<Value> = select.iter().map(selector).collect();
    select.sort_by_key(ToString::to_string);
    let mut value = json!({
        "name": name,
        "id": id.as_str(),
        "select": select,
        "ports": ports,
        "ingressMode": ingress_mode.name(),
        "egressMode": egress_mode.name(),
        "onDeny": on_deny.name(),
        "owner": owner,
    });
    // Those that say nothing of it have the hash that they had before it could be said.
    if *shared_peers == SharedPeers::Deny {
        value["sharedPeers"] = shared_peers.name().into();
    }
    value
}

fn selector(selector: &Selector) -> Value {
    let Selector { systemd_unit, cgroup, container_id, host, uids } = selector;
    json!({"systemdUnit": systemd_unit, "cgroup": cgroup, "containerId": container_id, "host": host, "uids": uids})
}

fn external(external: &External) -> Value {
    let External { name, id, cidrs, except, dns, place: _ } = external;
    let texts = |list: &[Cidr]| list.iter().map(ToString::to_string).collect::<Vec<_>>();
    let mut value = json!({"name": name, "id": id.as_str(), "cidrs": texts(cidrs), "except": texts(except)});
    // Those without any have the hash that they had before there were any.
    if !dns.is_empty() {
        value["dns"] = dns.iter().map(ToString::to_string).collect();
    }
    value
}

fn rule(rule: &Rule) -> Value {
    let Rule { id, action, from, to, ports, expires, reason, owner, ticket, place: _ } = rule;
    json!({
        "id": id,
        "action": action.name(),
        "from": from,
        "to": to,
        "ports": ports.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "expires": expires.map(time::format),
        "reason": reason,
        "owner": owner,
        "ticket": ticket,
    })
}

impl Action {
    /// The word used on the command line and in records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OverrideDeny => "override-deny",
            Self::OverrideAllow => "override-allow",
            Self::Deny => "deny",
            Self::Allow => "allow",
        }
    }

    /// Says whether a rule with this action lets flows pass.
    #[must_use]
    pub const fn allows(self) -> bool {
        match self {
            Self::OverrideAllow | Self::Allow => true,
            Self::OverrideDeny | Self::Deny => false,
        }
    }
}

impl Policy {
    /// Returns the mode of derived names: `observe` where no document says otherwise.
    #[must_use]
    pub fn mode_of_derived(&self) -> Mode {
        self.default_mode.unwrap_or(Mode::Observe)
    }

    /// Returns the mode of local sockets without a label.
    #[must_use]
    pub fn mode_of_unknown(&self) -> Mode {
        self.unknown_mode.unwrap_or(self.mode_of_derived())
    }

    /// Returns the ports that `spec` means on the workload `name`; nothing if it has no such port.
    #[must_use]
    pub fn ports_on(&self, name: &str, spec: &super::model::PortSpec) -> Option<PortRange> {
        match spec {
            super::model::PortSpec::Range(range) => Some(*range),
            super::model::PortSpec::Named(port) => self.workloads.get(name)?.ports.get(port).copied(),
        }
    }
}
