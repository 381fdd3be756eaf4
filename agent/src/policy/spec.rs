//! The specification: the decision by reading every rule, as policy.md, section 6, says it.
//!
//! Deliberately naive, and deliberately without a line of [`super::compile`] or of
//! `agent_common::decide`: comparing the two would prove nothing if they shared one.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use agent_common::{flow::Direction, verdict::Reason};

use super::{
    model::{Action, Cidr, External, Policy, PortSpec, Rule, SharedPeers},
    peers::Peers,
};

/// One end of a flow.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum End {
    /// No identity.
    Unknown,
    /// Known by a name: a workload, an external by itself, a derived name, `world`.
    Named(String),
    /// Known by its address alone.
    Address(IpAddr),
}

/// One attempt, and when.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Attempt {
    /// The caller.
    pub from: End,
    /// The callee.
    pub to: End,
    /// As in [`agent_common::flow::Flow`].
    pub proto: u8,
    /// As in [`agent_common::flow::Flow`].
    pub port: u16,
    /// Which end asks.
    pub direction: Direction,
    /// Address that is asked, at whichever end, where one is known.
    pub asked: Option<IpAddr>,
    /// The caller is a socket on this host.
    pub here: bool,
    /// Externals that live answers of resolvers name with the address of the other end, seen from the one that asks.
    pub named: BTreeSet<String>,
    /// Unix seconds.
    pub now: i64,
}

/// What the rules say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Answer {
    /// Whether the flow is allowed.
    pub allow: bool,
    /// Why not.
    pub reason: Reason,
    /// The id of the rule that decided, or [`BUILTIN_DNS`]; none for the default.
    pub rule: Option<String>,
    /// When that rule ends, in Unix seconds.
    pub expires: Option<i64>,
}

/// What a host knows beside its policy.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Whom the built-in `dns` lets every workload ask.
    pub resolvers: &'a [IpAddr],
    /// Who is where on other hosts.
    pub peers: &'a Peers,
}

/// Returns the decision by looking at every rule.
#[must_use]
pub fn decide_naively(policy: &Policy, overrides: &[Rule], known: &Known<'_>, attempt: &Attempt) -> Answer {
    // "`unknown` carries no name at all, so no rule matches it."
    // "a CIDR minus `except`, or a live DNS answer"
    let nobody = BTreeSet::new();
    let (of_from, of_to) = match attempt.direction {
        Direction::Egress => (&nobody, &attempt.named),
        Direction::Ingress => (&attempt.named, &nobody),
    };
    let names = |end, named| names_of(policy, known.peers, end, named);
    let (from, to) = match (names(&attempt.from, of_from), names(&attempt.to, of_to)) {
        (Some(from), Some(to)) => (from, to),
        (from, to) => return deny(unknown(from.is_none(), to.is_none(), attempt.direction)),
    };
    // "a `deny` of one denies it" and "lets no such caller in by the name of one of them"
    let is_shared = matches!(&attempt.from, End::Address(_)) && from.len() > 1 && !from.contains("world");
    let matches = |rule: &Rule| {
        let opens = matches!(rule.action, Action::Allow | Action::OverrideAllow);
        from.iter().any(|caller| stands_for(policy, &rule.from, caller))
            && to.iter().filter(|callee| stands_for(policy, &rule.to, callee)).any(|callee| {
                let takes_shared = policy.workloads.get(callee).is_none_or(|w| w.shared_peers != SharedPeers::Deny);
                let may_open = takes_shared || !is_shared || rule.from == "any";
                (may_open || !opens) && rule.ports.iter().any(|port| port_matches(policy, port, callee, attempt))
            })
    };
    let lives = |rule: &Rule| rule.expires.is_none_or(|end| attempt.now < end);
    // "The first level that matches decides; within a level the lowest id is reported."
    for (action, allow, reason) in [
        (Action::OverrideDeny, false, Reason::OverrideDeny),
        (Action::OverrideAllow, true, Reason::Allowed),
        (Action::Deny, false, Reason::DenyRule),
        (Action::Allow, true, Reason::Allowed),
    ] {
        let rules = policy.rules.iter().chain(overrides).filter(|rule| rule.action == action);
        let best = rules.filter(|rule| matches(rule) && lives(rule)).min_by(|a, b| a.id.cmp(&b.id));
        if let Some(rule) = best {
            return Answer { allow, reason, rule: Some(rule.id.clone()), expires: rule.expires };
        }
    }
    // "ALLOW by b if the built-in `dns` matches": a workload, which at a door is known by its socket alone, asks a
    // resolver of the node at udp or tcp 53.
    let by_workload = attempt.direction == Direction::Egress || attempt.here;
    let asks_resolver =
        attempt.asked.is_some_and(|asked| known.resolvers.iter().any(|r| unmapped(*r) == unmapped(asked)));
    if by_workload && asks_resolver && attempt.port == 53 && (attempt.proto == 17 || attempt.proto == 6) {
        return Answer { allow: true, reason: Reason::Allowed, rule: Some(BUILTIN_DNS.to_owned()), expires: None };
    }
    // "default" says which of two things happened: nobody ever allowed it, or the permission ran out.
    let once_allowed = policy
        .rules
        .iter()
        .chain(overrides)
        .any(|rule| matches!(rule.action, Action::Allow | Action::OverrideAllow) && matches(rule) && !lives(rule));
    deny(if once_allowed { Reason::Expired } else { Reason::NoRule })
}

/// What stands in an answer for the built-in; no rule can have this id.
pub const BUILTIN_DNS: &str = "builtin:dns";

const fn deny(reason: Reason) -> Answer {
    Answer { allow: false, reason, rule: None, expires: None }
}

fn unknown(from_is_unknown: bool, to_is_unknown: bool, direction: Direction) -> Reason {
    match direction {
        Direction::Egress if from_is_unknown => Reason::UnknownSelf,
        Direction::Ingress if to_is_unknown => Reason::UnknownSelf,
        Direction::Egress => Reason::UnknownTarget,
        Direction::Ingress => Reason::UnknownCaller,
    }
}

/// Returns what an end is: its name, and `world` for every external; for an address the workloads of other hosts there,
/// else `world` with all externals that hold it.
fn names_of(policy: &Policy, peers: &Peers, end: &End, named: &BTreeSet<String>) -> Option<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    match end {
        End::Unknown => return None,
        End::Named(name) => {
            names.insert(name.clone());
            if policy.externals.contains_key(name) {
                names.insert("world".to_owned());
            }
        }
        End::Address(address) => {
            if let Some((_, there)) = peers.iter().find(|(peer, _)| *peer == unmapped(*address)) {
                // "One that it does not declare ... its addresses are `unknown`"
                let is_declared = there.iter().all(|name| policy.workloads.contains_key(name));
                return is_declared.then(|| there.clone());
            }
            // "An address in there that the file gives to none is `unknown`"
            if peers.ranges().any(|range| within(range, *address)) {
                return None;
            }
            names.insert("world".to_owned());
            let externals = policy.externals.values().filter(|external| is_in(external, *address));
            names.extend(externals.map(|external| external.name.clone()));
            names.extend(named.iter().cloned());
        }
    }
    Some(names)
}

/// Says whether what stands in a rule means an end: by its name, by a group it is a member of, or as `any`.
fn stands_for(policy: &Policy, written: &str, name: &str) -> bool {
    written == "any"
        || written == name
        || policy.groups.get(written).is_some_and(|members| members.iter().any(|member| member == name))
}

fn is_in(external: &External, address: IpAddr) -> bool {
    external.cidrs.iter().any(|cidr| within(cidr, address)) && !external.except.iter().any(|cidr| within(cidr, address))
}

/// Compares bit by bit from the left.
fn within(cidr: &Cidr, address: IpAddr) -> bool {
    let bits = |octets: &[u8]| -> Vec<bool> {
        octets.iter().flat_map(|byte| (0..8).map(move |i| byte & (0x80 >> i) != 0)).collect()
    };
    let length = usize::from(cidr.prefix);
    match (cidr.addr, unmapped(address)) {
        (IpAddr::V4(range), IpAddr::V4(address)) => {
            bits(&range.octets())[..length] == bits(&address.octets())[..length]
        }
        (IpAddr::V6(range), IpAddr::V6(address)) => {
            bits(&range.octets())[..length] == bits(&address.octets())[..length]
        }
        _ => false,
    }
}

/// "IPv4-mapped IPv6 addresses are treated as IPv4."
fn unmapped(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.octets() {
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d] => Ipv4Addr::new(a, b, c, d).into(),
            octets => Ipv6Addr::from(octets).into(),
        },
        v4 => v4,
    }
}

/// A port name means what the callee calls by it.
fn port_matches(policy: &Policy, port: &PortSpec, callee: &str, attempt: &Attempt) -> bool {
    let range = match port {
        PortSpec::Range(range) => *range,
        PortSpec::Named(name) => match policy.workloads.get(callee).and_then(|workload| workload.ports.get(name)) {
            Some(range) => *range,
            None => return false,
        },
    };
    (range.proto == 0 || range.proto == attempt.proto) && (range.lo..=range.hi).contains(&attempt.port)
}
