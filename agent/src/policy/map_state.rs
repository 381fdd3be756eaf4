//! The compiled form in memory: what one side of the maps holds.

use std::{collections::BTreeMap, net::IpAddr};

use agent_common::{
    addr::of_octets,
    builtin,
    decide::{Clock, PolicyMap, decide},
    flow::Flow,
    id::IdentityId,
    layout::{EdgeEntry, EdgeKey, INLINE_RANGES, PrefixKey, Range, SpillEntry},
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
    /// Mode of local sockets without a label.
    pub unknown_mode: Option<Mode>,
    /// Whom the built-in `dns` lets every workload ask; nobody if it is off.
    pub resolvers: Resolvers,
    /// Workloads of other hosts, by address; they are in `prefixes`.
    pub peers: Peers,
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

    /// Returns the decision for a flow to the address `asked`, the built-in `dns` included. `caller_is_here`: it
    /// is known by its socket, which matters at a door.
    pub fn decide_at(&self, flow: &Flow, asked: IpAddr, caller_is_here: bool, clock: &impl Clock) -> Decision {
        let decision = decide(self, flow, clock);
        builtin::with_dns(decision, flow, &of_octets(octets(asked)), caller_is_here, &self.resolvers.table())
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
