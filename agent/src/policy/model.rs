//! A policy set known to be valid: every name resolves, every port is a number, every rule has an id.

use std::{collections::BTreeMap, net::IpAddr};

use agent_common::verdict::Mode;

use super::dns_name::DnsName;
use crate::identity::spiffe::SpiffeId;

/// All documents of a policy directory, merged.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// Names of the documents, sorted and joined by `+`.
    pub name: String,
    /// `sha256:` and 16 hex digits over the canonical form: equal meaning, equal hash.
    pub hash: String,
    /// The trust domain all names are paths in.
    pub trust_domain: String,
    /// Mode of derived names and of workloads without their own.
    pub default_mode: Option<Mode>,
    /// Mode of local sockets that carry no label yet.
    pub unknown_mode: Option<Mode>,
    /// Answer to denied callers at the door of derived names.
    pub default_on_deny: OnDeny,
    /// By name.
    pub workloads: BTreeMap<String, Workload>,
    /// By name.
    pub externals: BTreeMap<String, External>,
    /// By name; members are expanded to workloads and externals, sorted.
    pub groups: BTreeMap<String, Vec<String>>,
    /// Sorted by id; a rule's number is its index + 1.
    pub rules: Vec<Rule>,
    /// One for each promise of `tests`, in the order of the documents.
    pub tests: Vec<Test>,
}

/// What a door does with a denied caller.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum OnDeny {
    /// Silence.
    #[default]
    Drop,
    /// TCP RST.
    Reset,
}

impl OnDeny {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Drop, Self::Reset];

    /// The word of the policy language.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Drop => "drop",
            Self::Reset => "reset",
        }
    }
}

/// What a door makes of a caller whose address several workloads of another host share.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum SharedPeers {
    /// It may do what any of them may.
    #[default]
    AnyMember,
    /// It is none of them.
    Deny,
}

impl SharedPeers {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::AnyMember, Self::Deny];

    /// The word of the policy language.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AnyMember => "any-member",
            Self::Deny => "deny",
        }
    }
}

/// A declared workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Its name in the policy: a path in the trust domain.
    pub name: String,
    /// The identity.
    pub id: SpiffeId,
    /// Which endpoints it is: one of these matches.
    pub select: Vec<Selector>,
    /// Port names.
    pub ports: BTreeMap<String, PortRange>,
    /// Mode of the door.
    pub ingress_mode: Mode,
    /// Mode of the exit.
    pub egress_mode: Mode,
    /// Answer at the door.
    pub on_deny: OnDeny,
    /// Callers at the door that share an address.
    pub shared_peers: SharedPeers,
    /// Free text.
    pub owner: Option<String>,
    /// Where it was written.
    pub place: Place,
}

/// Conditions that must all hold; absent ones hold.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Selector {
    /// Glob over the systemd unit name.
    pub systemd_unit: Option<String>,
    /// Glob over the path from the root of the cgroup v2 hierarchy; `**` crosses `/`.
    pub cgroup: Option<String>,
    /// Glob over the container id (64 hex) found in the cgroup path.
    pub container_id: Option<String>,
    /// Glob over the host name.
    pub host: Option<String>,
    /// Owners of the socket; empty = any.
    pub uids: Vec<u32>,
}

/// An outside party.
#[derive(Clone, Debug, PartialEq)]
pub struct External {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub id: SpiffeId,
    /// Ranges, host bits zero.
    pub cidrs: Vec<Cidr>,
    /// Ranges cut out of them.
    pub except: Vec<Cidr>,
    /// DNS names, sorted: who answers of resolvers say is there.
    pub dns: Vec<DnsName>,
    /// Where it was written.
    pub place: Place,
}

/// An address range.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Cidr {
    /// First address, host bits zero.
    pub addr: IpAddr,
    /// Prefix length: 0 to 32 or 0 to 128.
    pub prefix: u8,
}

/// One rule: one edge.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Unique.
    pub id: String,
    /// What it says.
    pub action: Action,
    /// The caller: a workload, external, group, derived name, `any` or `world`.
    pub from: String,
    /// The callee, likewise.
    pub to: String,
    /// Sorted. Named ports are resolved per member of `to` in [`super`]'s compiler.
    pub ports: Vec<PortSpec>,
    /// Unix seconds from which it no longer matches.
    pub expires: Option<i64>,
    /// Free text.
    pub reason: Option<String>,
    /// Free text.
    pub owner: Option<String>,
    /// Free text.
    pub ticket: Option<String>,
    /// Where it was written.
    pub place: Place,
}

/// What a rule says. Overrides come from `revoke` and `break-glass`, never from files.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Action {
    /// Level 0.
    OverrideDeny,
    /// Level 1.
    OverrideAllow,
    /// Level 2.
    Deny,
    /// Level 3.
    Allow,
}

/// One entry of `ports`.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum PortSpec {
    /// A port name of `to`.
    Named(String),
    /// Numbers.
    Range(PortRange),
}

/// Ports of one protocol.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct PortRange {
    /// As in [`agent_common::flow::Flow::proto`]; 0 = every protocol.
    pub proto: u8,
    /// First, included.
    pub lo: u16,
    /// Last, included.
    pub hi: u16,
}

/// One promise of `tests`.
#[derive(Clone, Debug, PartialEq)]
pub struct Test {
    /// What must hold.
    pub expect: Expect,
    /// Unix seconds at which it must hold; absent = when it is run.
    pub at: Option<i64>,
    /// Free text.
    pub name: Option<String>,
    /// Where it was written.
    pub place: Place,
}

/// What a test promises. A group means all of its members, a range of ports every port of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Expect {
    /// The flow is allowed.
    Allow {
        /// The caller.
        from: Party,
        /// The callee.
        to: Party,
        /// The port.
        port: PortSpec,
    },
    /// The flow is denied.
    Deny {
        /// The caller.
        from: Party,
        /// The callee.
        to: Party,
        /// The port.
        port: PortSpec,
    },
    /// These callers are allowed, and nobody else.
    Only {
        /// The callee.
        to: Party,
        /// The port.
        port: PortSpec,
        /// All who may call.
        callers: Vec<Party>,
    },
}

impl Expect {
    /// Returns a promise about one caller.
    #[must_use]
    pub const fn new(allowed: bool, from: Party, to: Party, port: PortSpec) -> Self {
        if allowed { Self::Allow { from, to, port } } else { Self::Deny { from, to, port } }
    }
}

/// An end of a flow in a test or a question.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Party {
    /// A workload, external, group, derived name or `world`.
    Name(String),
    /// `ip/203.0.113.9`: whoever the policy takes this address for.
    Address(IpAddr),
}

/// A place in a policy file.
#[derive(Clone, Debug, Default, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Place {
    /// Path as given.
    pub file: String,
    /// From 1.
    pub line: u32,
    /// From 1, in characters.
    pub column: u32,
}
