//! The compiled form in memory: what one side of the maps holds.

use std::{collections::BTreeMap, net::IpAddr};

use agent_common::{
    addr::of_octets,
    builtin,
    decide::{Clock, PolicyMap, best, unknown_end},
    flow::{Direction, Flow},
    id::IdentityId,
    layout::{
        AddrEntry, DNS_NAMES_MAX, EdgeEntry, EdgeKey, INLINE_RANGES, NameKey, PrefixKey, Range, SpillEntry, addr_flags,
    },
    verdict::{Decision, Mode},
};

use super::{ask::octets, peers::Peers, resolvers::Resolvers};

/// One side of the maps, in a stable order, so that dumps and differences are stable.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MapState {
    /// `edges`.
    pub edges: BTreeMap<EdgeKey, EdgeEntry>,
    /// `spill`, by index.
    pub spill: Vec<SpillEntry>,
    /// `addr_ext`: the identity or set that a prefix stands for.
    pub prefixes: BTreeMap<PrefixKey, IdentityId>,
    /// `dns_names`: the externals that a DNS name stands for; 0 = none.
    pub dns_names: BTreeMap<NameKey, [IdentityId; DNS_NAMES_MAX]>,
    /// Mode of local sockets without a label.
    pub unknown_mode: Option<Mode>,
    /// Whom the built-in `dns` lets every workload ask; nobody if it is off.
    pub resolvers: Resolvers,
    /// Whose answers tell the addresses of DNS names.
    pub answers: Resolvers,
    /// Workloads of other hosts, by address; they are in `prefixes`.
    pub peers: Peers,
    /// Externals that answers of resolvers name with an address, for questions about addresses: the kernel side has its
    /// own, and a compiled policy none.
    pub named: BTreeMap<[u8; 16], Vec<IdentityId>>,
    /// Rule ids; the number of a rule is its index + 1.
    pub rule_ids: Vec<String>,
    /// Name of every identity and set that occurs: a workload, external, derived name, or the members
    /// of a set joined by `+`. For people only; decisions use numbers.
    pub names: BTreeMap<IdentityId, String>,
}

impl PolicyMap for MapState {
    fn edge(&self, key: &EdgeKey) -> Option<&EdgeEntry> {
        self.edges.get(key)
    }

    fn spill(&self, index: u32) -> Option<&SpillEntry> {
        self.spill.get(index as usize)
    }
}

impl MapState {
    /// Returns the ranges of the entry of a pair in their order, spill included; none if there is no
    /// such entry.
    pub fn ranges(&self, key: &EdgeKey) -> impl Iterator<Item = &Range> {
        let entry = self.edges.get(key);
        let count = entry.map_or(0, |entry| usize::from(entry.count));
        let spill = entry.filter(|_| count > INLINE_RANGES).and_then(|entry| self.spill(entry.spill));
        let inline = entry.into_iter().flat_map(|entry| &entry.ranges);
        inline.chain(spill.into_iter().flat_map(|spill| &spill.ranges)).take(count)
    }

    /// Returns the decision for a flow whose other end, seen from the one that is asked, has more names than that in
    /// `flow`: all rules of all names apply.
    pub fn decide_named(&self, flow: &Flow, names: &[IdentityId], clock: &impl Clock) -> Decision {
        let named = names.iter().map(|&name| match flow.direction {
            Direction::Egress => Flow { to: name, ..*flow },
            Direction::Ingress => Flow { from: name, ..*flow },
        });
        self.decide_all(flow, named, clock)
    }

    /// Returns the decision for a flow that is `more` flows as well, under other names: all rules of all of them apply.
    pub fn decide_all(&self, flow: &Flow, more: impl Iterator<Item = Flow>, clock: &impl Clock) -> Decision {
        match unknown_end(flow) {
            Some(reason) => Decision::deny(reason),
            None => more.fold(best(self, flow, clock), |found, flow| found.or(best(self, &flow, clock))).decision(),
        }
    }

    /// As [`Self::decide_named`], for a flow to the address `asked`, the built-in `dns` included. `caller_is_here`: it
    /// is known by its socket, which matters at a door.
    pub fn decide_at(
        &self,
        flow: &Flow,
        names: &[IdentityId],
        asked: IpAddr,
        caller_is_here: bool,
        clock: &impl Clock,
    ) -> Decision {
        self.with_dns(self.decide_named(flow, names, clock), flow, asked, caller_is_here)
    }

    /// Returns the decision with the built-in `dns` taken into account; see [`Self::decide_at`].
    pub fn with_dns(&self, decision: Decision, flow: &Flow, asked: IpAddr, caller_is_here: bool) -> Decision {
        builtin::with_dns(decision, flow, &of_octets(octets(asked)), caller_is_here, &self.resolvers.table())
    }

    /// Returns a prefix as the maps hold it.
    #[must_use]
    pub fn entry(&self, prefix: &PrefixKey, id: IdentityId) -> AddrEntry {
        let address = IpAddr::from(prefix.addr).to_canonical();
        let is_labelled = prefix.bits == 128 && self.peers.names(address).is_some();
        AddrEntry { id, flags: if is_labelled { addr_flags::LABELLED } else { 0 } }
    }

    /// Returns what an address stands for: the longest prefix that contains it, else `world`.
    ///
    /// Shape: 16 bytes, network order, IPv4 mapped.
    #[must_use]
    pub fn peer_of(&self, addr: &[u8; 16]) -> IdentityId {
        let n = u128::from_be_bytes(*addr);
        (0..=128_u32)
            .rev()
            .find_map(|bits| {
                let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits) };
                self.prefixes.get(&PrefixKey { bits, addr: (n & mask).to_be_bytes() })
            })
            .copied()
            .unwrap_or(IdentityId::WORLD)
    }
}
