//! Questions to a compiled policy: whom a name means, and which ports need a decision of their own.
//!
//! Answers come from `agent_common::decide` over the compiled form, so what a test or `explain` says is
//! what the kernel does.

use std::{collections::BTreeSet, net::IpAddr};

use agent_common::{
    builtin::DNS_PORT,
    flow::{Direction, Flow, proto},
    id::{BootSeconds, IdentityId},
    layout::EdgeKey,
    verdict::{Decision, Reason},
};

use super::{
    finding::nearest,
    map_state::MapState,
    model::{Party, Policy, PortRange, PortSpec, Rule},
    names::{self, Form},
    ports::{self, InvalidPort},
};
use crate::identity::{derived, spiffe::InvalidSpiffeId};

/// Protocols that a rule for every protocol is tried with: those it can name, and one it cannot (GRE).
pub(super) const PROTOCOLS: [u8; 5] = [proto::TCP, proto::UDP, proto::SCTP, proto::ICMP, 47];

/// A compiled policy at a moment.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Its compiled form.
    pub map: &'a MapState,
    /// The overrides it was compiled with.
    pub overrides: &'a [Rule],
    /// The moment, on the boot clock of `map`.
    pub now: BootSeconds,
}

/// One end of a flow: a single identity.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Single {
    /// What it is called: its name, or `ip/<address>` with the name it is taken for.
    pub shown: String,
    /// The name it is known by in the policy; for an address that of its identity or set.
    pub name: String,
    /// Its number.
    pub id: IdentityId,
    /// Of an address, the externals that answers of resolvers say are there as well.
    pub more: Vec<IdentityId>,
}

impl Single {
    fn ids(&self) -> impl Iterator<Item = IdentityId> {
        [self.id].into_iter().chain(self.more.iter().copied())
    }
}

/// Ports that are decided alike.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stretch {
    /// One protocol, and ports without a boundary between them.
    pub range: PortRange,
    /// The decision for each of them.
    pub decision: Decision,
}

/// Why a question cannot be asked of a policy.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidQuestion {
    /// Nobody has the name.
    #[error("no workload, external or group is called `{name}`{}", hint(suggestion.as_ref()))]
    Unknown {
        /// As written.
        name: String,
        /// What was probably meant.
        suggestion: Option<String>,
    },
    /// A name that can stand in a rule, and is no party that calls or is called.
    #[error("`{0}` is nobody in particular; name someone, or `world`")]
    Nobody(String),
    /// Not a name.
    #[error("`{0}` is no name")]
    Name(String, #[source] InvalidSpiffeId),
    /// Not an address.
    #[error("`{0}` holds no address; write `ip/203.0.113.9`")]
    Address(String),
    /// `to` without `:port`.
    #[error("`{0}` names no port; write `name:port`, for example `{0}:tcp/443`")]
    NoPort(String),
    /// The port.
    #[error(transparent)]
    Port(#[from] InvalidPort),
    /// A port name that nobody has.
    #[error("`{to}` has no port called `{port}`; {}", known_ports(known))]
    PortName {
        /// The callee.
        to: String,
        /// The port.
        port: String,
        /// The names that it has.
        known: Vec<String>,
    },
}

fn known_ports(known: &[String]) -> String {
    match known {
        [] => "none of its ports has a name; write `tcp/443`".to_owned(),
        known => format!("it has `{}`", known.join("`, `")),
    }
}

fn hint(suggestion: Option<&String>) -> String {
    suggestion.map(|name| format!("; did you mean `{name}`?")).unwrap_or_default()
}

/// Reads a party as people write it: a declared name, a unit by its own name, `ip/<address>`.
///
/// # Errors
///
/// [`InvalidQuestion`].
pub fn party(policy: &Policy, written: &str) -> Result<Party, InvalidQuestion> {
    let written = match written.strip_prefix("unit/") {
        Some(unit) if unit.contains('@') => derived::unit(unit),
        _ => written.to_owned(),
    };
    // An IPv6 address is no path, so it is told apart first.
    let name = match Form::of(&written) {
        Form::Address(_) => written,
        _ => match names::canonical(&policy.trust_domain, &written) {
            Ok((name, _)) => name,
            Err(error) => return Err(InvalidQuestion::Name(written, error)),
        },
    };
    match Form::of(&name) {
        Form::Address(Some(address)) => Ok(Party::Address(address)),
        Form::Address(None) => Err(InvalidQuestion::Address(name)),
        Form::Any | Form::Unknown => Err(InvalidQuestion::Nobody(name)),
        Form::World | Form::Derived => Ok(Party::Name(name)),
        Form::Plain | Form::Unsupported => {
            let declared = || policy.workloads.keys().chain(policy.externals.keys()).chain(policy.groups.keys());
            if declared().any(|other| *other == name) {
                return Ok(Party::Name(name));
            }
            let suggestion =
                nearest(&name, declared().map(|name| (name.as_str(), ()))).map(|(name, ())| name.to_owned());
            Err(InvalidQuestion::Unknown { name, suggestion })
        }
    }
}

/// Reads `<name>:<port>`, split at the last colon.
///
/// # Errors
///
/// [`InvalidQuestion`].
pub fn target(policy: &Policy, written: &str) -> Result<(Party, PortSpec), InvalidQuestion> {
    let (name, port) = written.rsplit_once(':').ok_or_else(|| InvalidQuestion::NoPort(written.to_owned()))?;
    let to = party(policy, name)?;
    let spec = ports::parse(port)?;
    if let (PortSpec::Named(port), to) = (&spec, &to) {
        let members = match to {
            Party::Name(name) => policy.groups.get(name).cloned().unwrap_or_else(|| vec![name.clone()]),
            Party::Address(_) => vec![to.to_string()],
        };
        if let Some(to) = members.into_iter().find(|member| policy.ports_on(member, &spec).is_none()) {
            let known = policy.workloads.get(&to).map(|w| w.ports.keys().cloned().collect()).unwrap_or_default();
            return Err(InvalidQuestion::PortName { to, port: port.clone(), known });
        }
    }
    Ok((to, spec))
}

impl<'a> Asked<'a> {
    /// Returns the single identities that a party means: the members of a group, or itself.
    #[must_use]
    pub fn singles(&self, party: &Party) -> Vec<Single> {
        match party {
            Party::Address(address) => {
                let id = self.map.peer_of(&octets(*address));
                let unknown = if id.is_unknown() { names::UNKNOWN } else { "" };
                let mut name = self.map.names.get(&id).cloned().unwrap_or_else(|| unknown.to_owned());
                let more = self.map.named.get(&octets(*address)).cloned().unwrap_or_default();
                let also: Vec<&str> = more.iter().filter_map(|id| self.map.names.get(id)).map(String::as_str).collect();
                if !also.is_empty() {
                    // Every external is `world` as well.
                    let by_address = Some(name.as_str()).filter(|_| id != IdentityId::WORLD);
                    name = by_address.into_iter().chain(also).collect::<Vec<_>>().join("+");
                }
                vec![Single { shown: format!("ip/{address} ({name})"), name, id, more }]
            }
            Party::Name(name) => match self.policy.groups.get(name) {
                Some(members) => members.iter().filter_map(|member| self.single(member)).collect(),
                None => self.single(name).into_iter().collect(),
            },
        }
    }

    /// Returns the identity of a name that is no group.
    #[must_use]
    pub fn single(&self, name: &str) -> Option<Single> {
        let id = self.policy.identity_of(name)?;
        Some(Single { shown: name.to_owned(), name: name.to_owned(), id, more: vec![] })
    }

    /// Returns everyone who can call: workloads, externals, derived names of rules, `world`. Sets are
    /// left out: each member is asked alone.
    #[must_use]
    pub fn everyone(&self) -> Vec<Single> {
        let single =
            |(&id, name): (&IdentityId, &String)| Single { shown: name.clone(), name: name.clone(), id, more: vec![] };
        let mut everyone: Vec<Single> = self.map.names.iter().filter(|(id, _)| !id.is_set()).map(single).collect();
        everyone.sort();
        everyone
    }

    /// Returns the ports that `spec` means on one end.
    #[must_use]
    pub fn range(&self, to: &Single, spec: &PortSpec) -> Option<PortRange> {
        self.policy.ports_on(&to.name, spec)
    }

    /// Returns the decision for one flow, without built-ins.
    pub fn decide(&self, from: IdentityId, to: IdentityId, proto: u8, port: u16) -> Decision {
        self.decide_at(&[(from, to)], proto, port, None)
    }

    /// Decides for all pairs of names together, of which the first is the one by address.
    fn decide_at(&self, pairs: &[(IdentityId, IdentityId)], proto: u8, port: u16, address: Option<IpAddr>) -> Decision {
        // The direction matters for `unknown`, and nobody here is unknown, and for the built-in `dns` of a door,
        // where an address is never asked.
        let flow =
            |&(from, to): &(IdentityId, IdentityId)| Flow { from, to, proto, port, direction: Direction::Egress };
        let mut flows = pairs.iter().map(flow);
        let Some(first) = flows.next() else { return Decision::deny(Reason::Internal) };
        let decision = self.map.decide_all(&first, flows, &self.now);
        match address {
            Some(address) => self.map.with_dns(decision, &first, address, true),
            None => decision,
        }
    }

    /// Returns the decisions for all ports of a range, alike neighbours together, without built-ins.
    #[must_use]
    pub fn stretches(&self, from: IdentityId, to: IdentityId, asked: PortRange) -> Vec<Stretch> {
        self.stretches_of(&[(from, to)], asked, None)
    }

    /// As [`Self::stretches`]; with an `address` that a workload asks, the built-in `dns` is part of the answer.
    #[must_use]
    pub fn stretches_at(&self, from: &Single, to: &Single, asked: PortRange, address: Option<IpAddr>) -> Vec<Stretch> {
        let pairs: Vec<_> = from.ids().flat_map(|from| to.ids().map(move |to| (from, to))).collect();
        self.stretches_of(&pairs, asked, address)
    }

    fn stretches_of(
        &self,
        pairs: &[(IdentityId, IdentityId)],
        asked: PortRange,
        address: Option<IpAddr>,
    ) -> Vec<Stretch> {
        let mut stretches: Vec<Stretch> = Vec::new();
        for proto in protocols(asked.proto) {
            let starts = self.starts(pairs, PortRange { proto, ..asked });
            let ends = starts.iter().skip(1).map(|next| next - 1).chain([asked.hi]);
            for (&lo, hi) in starts.iter().zip(ends) {
                let decision = self.decide_at(pairs, proto, lo, address);
                match stretches.last_mut() {
                    Some(last) if last.range.proto == proto && last.decision == decision => last.range.hi = hi,
                    _ => stretches.push(Stretch { range: PortRange { proto, lo, hi }, decision }),
                }
            }
        }
        // Protocols that a question for `any` was split into are one again if they agree.
        if asked.proto == 0 && stretches.len() == PROTOCOLS.len() {
            let alike = stretches.windows(2).all(|pair| pair[0].decision == pair[1].decision);
            if let (true, Some(first)) = (alike, stretches.first().copied()) {
                return vec![Stretch { range: asked, ..first }];
            }
        }
        stretches
    }

    /// Returns the first ports of the stretches between which no range begins or ends.
    fn starts(&self, pairs: &[(IdentityId, IdentityId)], asked: PortRange) -> BTreeSet<u16> {
        let any = IdentityId::ANY;
        let keys = pairs.iter().flat_map(|&(from, to)| [(from, to), (from, any), (any, to), (any, any)]);
        let keys: Vec<EdgeKey> = keys.map(|(from, to)| EdgeKey { from, to }).collect();
        let ranges = keys.iter().flat_map(|key| self.map.ranges(key));
        let ranges = ranges.filter(|range| range.proto == 0 || range.proto == asked.proto);
        let bounds = ranges.flat_map(|range| [Some(range.lo), range.hi.checked_add(1)]).flatten();
        let dns = [DNS_PORT, DNS_PORT + 1];
        bounds.chain(dns).filter(|port| (asked.lo..=asked.hi).contains(port)).chain([asked.lo]).collect()
    }

    /// Returns the rule behind a decision; none for the default and for built-ins.
    #[must_use]
    pub fn rule(&self, decision: &Decision) -> Option<&'a Rule> {
        let index = usize::try_from(decision.rule.0).ok()?.checked_sub(1)?;
        let id = self.map.rule_ids.get(index)?;
        self.policy.rules.iter().chain(self.overrides).find(|rule| rule.id == *id)
    }
}

/// Returns an address as the maps hold it: 16 bytes, IPv4 mapped.
#[must_use]
pub fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn protocols(asked: u8) -> Vec<u8> {
    if asked == 0 { PROTOCOLS.to_vec() } else { vec![asked] }
}

/// Returns the moment on a boot clock that is the Unix clock, as maps compiled with an offset of 0 have
/// it. Moments before 1970 and after 2106 are those years.
#[must_use]
pub fn unix_moment(seconds: i64) -> BootSeconds {
    BootSeconds(u32::try_from(seconds.clamp(1, i64::from(u32::MAX))).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{compile::compile, random::Case};

    #[test]
    fn questions_are_read_as_people_write_them() {
        let policy = Case::new(1, 0).policy;
        let name = |name: &str| Party::Name(name.to_owned());
        assert_eq!(party(&policy, "web"), Ok(name("web")));
        assert_eq!(party(&policy, "spiffe://random.example/web"), Ok(name("web")));
        assert_eq!(party(&policy, "unit/pg@15.service"), Ok(name("unit/pg.service/15")));
        assert_eq!(party(&policy, "ip/2001:db8::1"), Ok(Party::Address("2001:db8::1".parse().unwrap())));
        assert_eq!(party(&policy, "any"), Err(InvalidQuestion::Nobody("any".to_owned())));
        assert_eq!(party(&policy, "wbe").unwrap_err().to_string().split(';').nth(1), Some(" did you mean `web`?"));
        assert!(matches!(party(&policy, "ip/x"), Err(InvalidQuestion::Address(_))));
        assert!(matches!(party(&policy, "a b"), Err(InvalidQuestion::Name(..))));
        assert_eq!(target(&policy, "web:main").unwrap().0, name("web"));
        assert_eq!(target(&policy, "ip/fd00::1:tcp/80").unwrap().0, Party::Address("fd00::1".parse().unwrap()));
        assert!(matches!(target(&policy, "web:nope"), Err(InvalidQuestion::PortName { .. })));
        assert!(matches!(target(&policy, "world:main"), Err(InvalidQuestion::PortName { .. })));
        assert!(matches!(target(&policy, "web"), Err(InvalidQuestion::NoPort(_))));
        assert!(matches!(target(&policy, "web:80"), Err(InvalidQuestion::Port(_))));
    }

    #[test]
    fn stretches_say_what_every_single_port_would() {
        for seed in 0..40 {
            let case = Case::new(seed, 6);
            assert_eq!(case.map, compile(&case.policy, &case.input()).unwrap());
            let Case { policy, map, overrides, samples, .. } = case;
            for sample in samples.iter().filter(|sample| !sample.flow.from.is_unknown() && !sample.flow.to.is_unknown())
            {
                let asked = Asked { policy: &policy, map: &map, overrides: &overrides, now: sample.now };
                let (from, to) = (sample.flow.from, sample.flow.to);
                let range = PortRange { proto: sample.flow.proto, lo: 0, hi: 9_100 };
                let stretches = asked.stretches(from, to, range);
                assert_eq!((stretches[0].range.lo, stretches.last().unwrap().range.hi), (0, 9_100));
                let mut next = 0;
                for stretch in stretches {
                    assert_eq!(stretch.range.lo, next, "no gap");
                    for port in stretch.range.lo..=stretch.range.hi {
                        assert_eq!(
                            asked.decide(from, to, range.proto, port),
                            stretch.decision,
                            "seed {seed} port {port}"
                        );
                    }
                    next = stretch.range.hi + 1;
                }
            }
        }
    }
}
