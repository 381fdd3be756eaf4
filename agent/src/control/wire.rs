//! What goes over the control socket: one JSON request on a line, then JSON replies, one on a line.

use std::{collections::BTreeMap, net::IpAddr};

use serde::{Deserialize, Serialize};

/// Longest request, bytes: a policy directory with room to spare.
pub const REQUEST_MAX: usize = 16 << 20;
/// Longest request of a caller that may only ask, bytes.
pub const QUESTION_MAX: usize = 64 << 10;

/// A question or an order.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "verb", rename_all = "kebab-case")]
pub enum Request {
    /// How is it?
    Status,
    /// Who is who on this host?
    Identities,
    /// Which devices are guarded, and whose are they?
    Devices,
    /// Which programs of others are where eastwall's are?
    Programs,
    /// What is in force?
    Policy,
    /// Install and load these documents instead of those in the directory.
    Apply {
        /// File name and text, in the order of names.
        files: Vec<(String, String)>,
    },
    /// Read the directory again.
    Reload,
    /// What does the policy in force say about a flow?
    Explain {
        /// A name.
        from: String,
        /// `name:port`.
        to: String,
    },
    /// The denials that are still known, oldest first; then the agent hangs up.
    Recent,
    /// Denials from this moment on; the replies go on until the caller hangs up.
    Follow {
        /// The denials that are still known come before them.
        #[serde(default)]
        known: bool,
    },
    /// The edges in the maps.
    Edges,
    /// How full the maps are, and the counters.
    Stats,
    /// Every element of the side in force, as the kernel has it.
    Raw,
    /// Does the kernel hold what the agent believes?
    Check,
    /// Deny an edge above all rules and cut its flows.
    Revoke(Override),
    /// Allow an edge above all rules but revocations.
    BreakGlass(Override),
    /// Overrides in force.
    Overrides,
    /// End an override.
    Undo {
        /// Its id.
        id: String,
    },
}

impl Request {
    /// Says whether an agent has much to do before it answers: a change, or all that the maps hold.
    #[must_use]
    pub const fn is_work(&self) -> bool {
        matches!(
            self,
            Self::Apply { .. }
                | Self::Reload
                | Self::Edges
                | Self::Raw
                | Self::Check
                | Self::Revoke(_)
                | Self::BreakGlass(_)
                | Self::Undo { .. }
        )
    }
}

/// What `revoke` and `break-glass` ask for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Override {
    /// The caller.
    pub from: String,
    /// The callee.
    pub to: String,
    /// Ports as in a rule; empty = any.
    pub ports: Vec<String>,
    /// How long, in seconds.
    pub seconds: u64,
    /// Why.
    pub reason: String,
    /// Where that is written down.
    pub ticket: Option<String>,
}

/// An answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "reply", rename_all = "kebab-case")]
pub enum Reply {
    /// To `Status`.
    Status(Box<Status>),
    /// To `Identities`.
    Identities {
        /// Sorted by path.
        endpoints: Vec<Endpoint>,
    },
    /// To `Devices`.
    Devices {
        /// Sorted by name.
        devices: Vec<GuardedDevice>,
    },
    /// To `Programs`.
    Programs {
        /// Devices first, then the guarded cgroup, then those below it.
        programs: Vec<ProgramOfOthers>,
    },
    /// To `Policy`: the documents in force.
    Policy {
        /// File name and text.
        files: Vec<(String, String)>,
        /// As they say, or as the settings of the agent do.
        trust_domain: String,
    },
    /// To `Apply`, `Reload`, `Revoke`, `BreakGlass`, `Undo`: the kernel holds it.
    Applied(Applied),
    /// To `Explain`.
    Explained {
        /// As `eastwall explain -o json` prints it.
        explanations: serde_json::Value,
        /// As it prints it for people.
        text: String,
        /// Whether the flow passes.
        allowed: bool,
    },
    /// To `Recent` and `Follow`: one denial.
    Denial {
        /// The OCSF record.
        record: serde_json::Value,
        /// One line for people.
        line: String,
    },
    /// To `Follow`: the caller was too slow; with the number 0, that everything from here on is new.
    Missed {
        /// How many it did not see; they are in the events file.
        count: u64,
    },
    /// To `Edges`.
    Edges {
        /// Sorted.
        edges: Vec<EdgeRow>,
    },
    /// To `Stats`.
    Stats {
        /// Counter -> value.
        counters: BTreeMap<String, u64>,
    },
    /// To `Raw`.
    Raw {
        /// Map, key and value in hex, byte by byte as they lie in memory.
        elements: Vec<(String, String, String)>,
    },
    /// To `Check`.
    Checked {
        /// What was compared -> how many.
        compared: BTreeMap<String, usize>,
        /// A line each; empty = the kernel holds what the agent believes.
        differences: Vec<String>,
    },
    /// To `Overrides`.
    Overrides {
        /// Oldest first.
        overrides: Vec<OverrideRow>,
    },
    /// Not done, and nothing has changed.
    Refused {
        /// Why and what to do.
        message: String,
        /// Exit code for the caller, of policy.md, section 16.
        code: u8,
    },
}

/// State of the agent.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Name of this host.
    pub host: String,
    /// Scope: `/` is the whole host.
    pub scope: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// Whether the kernel side of an earlier agent was adopted.
    pub adopted: bool,
    /// Name of the policy set.
    pub policy: String,
    /// Its hash.
    pub policy_hash: String,
    /// Number of the policy on this node.
    pub epoch: u32,
    /// Documents, rules, edges.
    pub documents: usize,
    /// Rules, overrides included.
    pub rules: usize,
    /// Edges in the maps.
    pub edges: usize,
    /// Seconds since it was applied.
    pub applied_seconds_ago: u64,
    /// Workload -> its modes, as `enforce/audit` (door/exit).
    pub modes: BTreeMap<String, String>,
    /// Mode of sockets without a label.
    pub unknown_mode: String,
    /// DNS names of externals in the policy.
    pub dns_names: usize,
    /// Addresses that answers of resolvers gave to them, a few seconds ago.
    pub dns_addresses: usize,
    /// Whom the built-in `dns` lets every workload ask; nobody if it is off.
    #[serde(default)]
    pub resolvers: Vec<IpAddr>,
    /// Devices of workloads whose frames are judged.
    #[serde(default)]
    pub devices: usize,
    /// Devices of the host at which what its processes send past their sockets is judged.
    #[serde(default)]
    pub host_devices: usize,
    /// Addresses that stand for a workload of this host.
    #[serde(default)]
    pub addresses: usize,
    /// Addresses that stand for workloads of other hosts.
    #[serde(default)]
    pub peers: usize,
    /// Cgroups with a label.
    pub labelled: usize,
    /// Endpoints that two workloads claim.
    pub ambiguous: usize,
    /// Overrides in force.
    pub overrides: usize,
    /// Denials of the kernel.
    pub denied: u64,
    /// Of them: let pass by audit.
    pub would_deny: u64,
    /// Shown as records of their own.
    pub reported: u64,
    /// Shown as numbers.
    pub suppressed: u64,
    /// Of them: settled, because it was soon known whose the address is, and policy allows the call.
    #[serde(default)]
    pub settled: u64,
    /// Counted, but lost as records.
    pub lost: u64,
    /// Not written yet.
    pub pending: u64,
    /// What happened lately.
    pub recent: Recent,
    /// Whether all that is attached stays so.
    #[serde(default)]
    pub tampering: Tampering,
    /// What is wrong; empty = all is well.
    pub problems: Vec<String>,
}

/// What happened in the last hour, or since the agent started.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Recent {
    /// How long that is, to the minute.
    pub seconds: u64,
    /// Denials, would-be denials included.
    pub denied: u64,
    /// Of them: let pass by audit.
    pub would_deny: u64,
    /// Of them: lost as records.
    pub lost: u64,
}

/// What others did to the kernel side since the agent started.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tampering {
    /// Acts that were found, by kind: `detached`.
    pub found: BTreeMap<String, u64>,
    /// Of all of them: what is put back.
    pub repaired: u64,
    /// The last one, as a sentence.
    pub last: Option<String>,
    /// Seconds since then.
    pub last_seconds_ago: Option<u64>,
    /// Milliseconds since everything was last looked at and was as it should be.
    pub verified_ms_ago: u64,
    /// How often everything was looked at.
    pub looks: u64,
    /// How long that took in all, microseconds.
    pub looks_us: u64,
}

/// One cgroup and who it is.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// From the root of the hierarchy, escaped.
    pub path: String,
    /// Its number.
    pub cgroup: u64,
    /// Short name.
    pub name: String,
    /// In full.
    pub spiffe_id: String,
    /// Whether policy declares it.
    pub declared: bool,
    /// Mode of the door.
    pub ingress_mode: String,
    /// Mode of the exit.
    pub egress_mode: String,
}

/// A device whose frames are judged, and the workload behind it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GuardedDevice {
    /// Its name on the host, escaped.
    pub device: String,
    /// Its index there.
    pub index: u32,
    /// Short name of the workload; `unknown` if it is not one alone; `(host)` where it leads to none.
    pub workload: String,
    /// One cgroup of the workload; 0 if it is not one alone, or the host.
    pub cgroup: u64,
    /// Addresses that stand for the workload; empty if it is not one alone.
    pub addresses: Vec<IpAddr>,
}

/// A program that is not eastwall's, where eastwall's are.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramOfOthers {
    /// The index of the device that it is at; none = it is at a cgroup.
    pub device: Option<u32>,
    /// The name of the device or the path of the cgroup, escaped.
    pub place: String,
    /// What it sees there: `ingress`, `connect4`.
    pub hook: String,
    /// Whether it runs before eastwall's, and may decide instead.
    pub before: bool,
    /// Its number; 0 = a filter of another kind, which `name` is then.
    pub id: u32,
    /// As its maker calls it, escaped; empty if it has no name.
    pub name: String,
    /// A hash of its instructions.
    pub tag: String,
    /// Who loaded it.
    pub loaded_by: u32,
}

/// A change that the kernel holds.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Applied {
    /// The epoch that is in force.
    pub epoch: u32,
    /// Nothing had to be done: this was in force already.
    pub unchanged: bool,
    /// Edges that allow something which the policy before did not.
    pub opened: usize,
    /// Edges that no longer allow something which the policy before did.
    pub closed: usize,
    /// Sockets that were closed because their edge is gone.
    pub cut: usize,
    /// Sockets that should have been closed and could not; their packets are dropped all the same.
    pub uncut: usize,
    /// Why not; also if it is not known how many there are.
    pub cut_problem: Option<String>,
    /// Edges in the maps.
    pub edges: usize,
    /// Id of the override, if this is one.
    pub id: Option<String>,
    /// Milliseconds it took.
    pub millis: u64,
    /// Warnings, rendered.
    pub warnings: String,
}

/// One range of one edge.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeRow {
    /// The caller.
    pub from: String,
    /// The callee.
    pub to: String,
    /// `allow`, `deny`, `override-allow`, `override-deny`.
    pub action: String,
    /// As in a rule.
    pub ports: String,
    /// Rule id.
    pub rule: String,
    /// When it ends, RFC 3339; none = never.
    pub expires: Option<String>,
    /// Hits of the rule in this epoch.
    pub hits: u64,
    /// Seconds since the last of them; none = not yet.
    pub last_seconds_ago: Option<u64>,
}

/// An override in force.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OverrideRow {
    /// Its id.
    pub id: String,
    /// `revoke` or `break-glass`.
    pub kind: String,
    /// The caller.
    pub from: String,
    /// The callee.
    pub to: String,
    /// Ports.
    pub ports: Vec<String>,
    /// Unix seconds.
    pub expires: i64,
    /// Why.
    pub reason: String,
    /// Where that is written down.
    pub ticket: Option<String>,
}
