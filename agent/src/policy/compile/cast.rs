//! Everyone who can be an end of an edge, and the numbers they carry.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{
    id::IdentityId,
    layout::{DNS_NAMES_MAX, NameKey, PrefixKey},
};

use super::{mark, prefixes};
use crate::{
    identity::spiffe::set_number,
    policy::{
        ask::octets,
        dns_name::DnsName,
        finding::{Code, Finding},
        model::{External, Place, Policy, Rule, SharedPeers, Workload},
        names::{self, Form},
        peers::Peers,
    },
};

/// Everyone, by number.
pub(super) struct Cast {
    /// What an address stands for.
    pub(super) prefixes: BTreeMap<PrefixKey, IdentityId>,
    /// Which externals a DNS name stands for.
    pub(super) dns_names: BTreeMap<NameKey, [IdentityId; DNS_NAMES_MAX]>,
    /// Names for people.
    pub(super) names: BTreeMap<IdentityId, String>,
    /// The sets that each external, or workload of another host, is a member of.
    sets: BTreeMap<String, BTreeSet<IdentityId>>,
    /// Of those the sets of workloads that share an address.
    shared: BTreeSet<IdentityId>,
    /// Workloads that take no caller of those, and sets of nothing else.
    closed: BTreeSet<IdentityId>,
}

/// The ends that a name stands for, each with the name under which its ports are looked up: several for an address that
/// several workloads share, since each may mean something else by the name of a port.
pub(super) type Ends<'n> = BTreeSet<(IdentityId, &'n str)>;

impl Cast {
    pub(super) fn new(policy: &Policy, rules: &[&Rule], peers: Option<&Peers>) -> Result<Self, Vec<Finding>> {
        let mut numbers = Numbers::default();
        numbers.add(IdentityId::WORLD, names::WORLD, None);
        for workload in policy.workloads.values() {
            numbers.add(workload.id.number(), &workload.name, Some(&workload.place));
        }
        for external in policy.externals.values() {
            numbers.add(external.id.number(), &external.name, Some(&external.place));
        }
        for rule in rules {
            for name in [&rule.from, &rule.to] {
                if let (Form::Derived, Some(number)) = (Form::of(name), policy.identity_of(name)) {
                    numbers.add(number, name, Some(&rule.place));
                }
            }
        }
        let mut prefixes = BTreeMap::new();
        let mut sets: BTreeMap<String, BTreeSet<IdentityId>> = BTreeMap::new();
        let mut shared = BTreeSet::new();
        for (prefix, members) in prefixes::split(policy.externals.values()) {
            let number = together("names", policy, &members, &mut numbers, &mut sets);
            prefixes.insert(prefix, number.unwrap_or(IdentityId::WORLD));
        }
        // In a range of workloads an address that is nobody's is no external's either.
        for range in peers.into_iter().flat_map(Peers::ranges) {
            prefixes.retain(|prefix, _| !prefixes::covers(range, prefix));
            prefixes.insert(prefixes::key(range), IdentityId::UNKNOWN);
        }
        // Who is there says more about an address than the ranges around it.
        for (address, workloads) in peers.into_iter().flat_map(Peers::iter) {
            let is_known = workloads.iter().all(|name| policy.workloads.contains_key(name));
            let number = is_known.then(|| together("members", policy, workloads, &mut numbers, &mut sets)).flatten();
            shared.extend(number.filter(|_| workloads.len() > 1));
            let prefix = PrefixKey { bits: 128, addr: octets(address) };
            prefixes.insert(prefix, number.unwrap_or(IdentityId::UNKNOWN));
        }
        let dns_names = dns_names(policy)?;
        let (closed, open): (Vec<&Workload>, Vec<&Workload>) =
            policy.workloads.values().partition(|workload| workload.shared_peers == SharedPeers::Deny);
        let sets_of = |name: &String| sets.get(name).into_iter().flatten();
        let half_open: BTreeSet<&IdentityId> = open.iter().flat_map(|workload| sets_of(&workload.name)).collect();
        let all = closed.iter().flat_map(|workload| sets_of(&workload.name)).filter(|&set| !half_open.contains(set));
        let closed = all.copied().chain(closed.iter().map(|workload| workload.id.number())).collect();
        if numbers.collisions.is_empty() {
            Ok(Self { prefixes, dns_names, names: numbers.names, sets, shared, closed })
        } else {
            Err(numbers.collisions)
        }
    }

    /// Returns the ends that a name in a rule stands for: none if it is unknown.
    ///
    /// An address in several externals carries all their names, and every external carries `world`.
    pub(super) fn ends<'n>(&self, policy: &'n Policy, name: &'n str) -> Option<Ends<'n>> {
        let mut ends = Ends::new();
        if name == names::WORLD {
            ends.insert((IdentityId::WORLD, name));
            for external in policy.externals.keys() {
                self.add(policy, external, &mut ends)?;
            }
        } else if let Some(members) = policy.groups.get(name) {
            for member in members {
                self.add(policy, member, &mut ends)?;
            }
        } else {
            self.add(policy, name, &mut ends)?;
        }
        Some(ends)
    }

    /// Says whether an end is several workloads of another host, of which nobody can tell which one calls.
    pub(super) fn is_shared(&self, end: IdentityId) -> bool {
        self.shared.contains(&end)
    }

    /// The ends that no rule opens for those, unless it is for `any` caller.
    pub(super) const fn closed(&self) -> &BTreeSet<IdentityId> {
        &self.closed
    }

    fn add<'n>(&self, policy: &'n Policy, name: &'n str, ends: &mut Ends<'n>) -> Option<()> {
        ends.insert((policy.identity_of(name)?, name));
        for &set in self.sets.get(name).into_iter().flatten() {
            ends.insert((set, name));
        }
        Some(())
    }
}

/// Every DNS name that stands in the policy, with all externals that it means: the kernel finds the longest only.
fn dns_names(policy: &Policy) -> Result<BTreeMap<NameKey, [IdentityId; DNS_NAMES_MAX]>, Vec<Finding>> {
    let written: Vec<(&DnsName, &External)> =
        policy.externals.values().flat_map(|external| external.dns.iter().map(move |name| (name, external))).collect();
    let mut found = BTreeMap::new();
    for (name, external) in &written {
        let meant = written.iter().filter(|(other, _)| other.covers(name)).map(|(_, external)| external.id.number());
        let meant: BTreeSet<IdentityId> = meant.collect();
        let mut ids = [IdentityId(0); DNS_NAMES_MAX];
        if meant.len() > ids.len() {
            let message = format!("`{name}` is a name of {} externals, and {DNS_NAMES_MAX} are the most", meant.len());
            return Err(vec![Finding::new(Code::E18, mark(&external.place), message)]);
        }
        for (place, id) in ids.iter_mut().zip(meant) {
            *place = id;
        }
        found.insert(name.key(), ids);
    }
    Ok(found)
}

/// The number of those who share an address: of the only one, or of the set. None: it is nobody's.
fn together(
    kind: &str,
    policy: &Policy,
    members: &BTreeSet<String>,
    numbers: &mut Numbers,
    sets: &mut BTreeMap<String, BTreeSet<IdentityId>>,
) -> Option<IdentityId> {
    let mut ids: Vec<IdentityId> = members.iter().filter_map(|name| policy.identity_of(name)).collect();
    ids.sort_unstable();
    match ids.as_slice() {
        [] => None,
        [one] => Some(*one),
        several => {
            let number = set_number(kind, several);
            let name = members.iter().map(String::as_str).collect::<Vec<_>>().join("+");
            numbers.add(number, &name, None);
            for member in members {
                sets.entry(member.clone()).or_default().insert(number);
            }
            Some(number)
        }
    }
}

/// Names by number, and the pairs of names that met on one.
#[derive(Default)]
struct Numbers {
    names: BTreeMap<IdentityId, String>,
    collisions: Vec<Finding>,
}

impl Numbers {
    fn add(&mut self, number: IdentityId, name: &str, place: Option<&Place>) {
        let Some(other) = self.names.get(&number) else {
            self.names.insert(number, name.to_owned());
            return;
        };
        if other != name {
            let message = format!("`{name}` and `{other}` have the same identity number {:#x}", number.0);
            let mut finding = Finding::general(Code::E13, message).help("rename one of them");
            finding.at = place.map(mark);
            self.collisions.push(finding);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_names_with_one_number_are_reported_and_one_name_twice_is_not() {
        let mut numbers = Numbers::default();
        numbers.add(IdentityId(500), "web", None);
        numbers.add(IdentityId(500), "web", None);
        numbers.add(IdentityId(501), "db", None);
        assert_eq!(numbers.collisions, []);
        numbers.add(IdentityId(500), "db", None);
        assert_eq!(numbers.collisions[0].code, Code::E13);
        assert!(numbers.collisions[0].message.contains("`db` and `web`"));
    }
}
