//! Which running sockets a policy no longer allows.
//!
//! The packet hooks stop such flows by themselves; ending the sockets lets both programs notice. What
//! is not certain is therefore left alone.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use agent_common::{
    flow::{Direction, Flow, proto},
    id::{BootSeconds, IdentityId},
    layout::{IdentSlot, UidKey, ident_flags},
    verdict::{Decision, Mode, Verdict},
};

use super::dns_names::Known;
use crate::policy::{ask::octets, map_state::MapState};

/// A socket that has a peer, or listens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Open {
    /// 6 or 17.
    pub proto: u8,
    /// It accepts connections.
    pub listens: bool,
    /// This end.
    pub local: SocketAddr,
    /// The other end; port 0 = none.
    pub peer: SocketAddr,
    /// Its cgroup.
    pub cgroup: u64,
    /// Its owner.
    pub uid: u32,
}

/// Who is who.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    /// By cgroup.
    pub cgroups: &'a BTreeMap<u64, IdentSlot>,
    /// Narrowed by owner.
    pub uids: &'a BTreeMap<UidKey, IdentSlot>,
    /// By address, those of workloads of this host.
    pub addresses: &'a BTreeMap<[u8; 16], IdentityId>,
    /// What answers of resolvers said of addresses: a flow that is running keeps its name when its answer runs out.
    pub dns: &'a Known,
}

/// One socket to end, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cut {
    /// Index in the list that was given.
    pub index: usize,
    /// The flow that is denied, seen from this socket.
    pub flow: Flow,
    /// This socket's identity.
    pub local: IdentityId,
    /// Mode of that end in that direction.
    pub mode: Mode,
    /// Why.
    pub decision: Decision,
}

/// Returns the sockets of one network namespace that `state` denies and an enforcing end must stop.
///
/// Sockets whose cgroup has no label are left to the packet hooks.
#[must_use]
pub fn cut_list(sockets: &[Open], who: Who<'_>, state: &MapState, now: BootSeconds) -> Vec<Cut> {
    let listeners: HashSet<(u8, u16)> =
        sockets.iter().filter(|s| s.listens).map(|s| (s.proto, s.local.port())).collect();
    let pairs: HashMap<(u8, SocketAddr, SocketAddr), usize> =
        sockets.iter().enumerate().map(|(i, s)| ((s.proto, s.local, s.peer), i)).collect();
    let unconnected: HashMap<(u8, u16), usize> = sockets
        .iter()
        .enumerate()
        .filter(|(_, s)| s.peer.port() == 0)
        .map(|(i, s)| ((s.proto, s.local.port()), i))
        .collect();
    let locals: HashSet<IpAddr> = sockets.iter().map(|s| s.local.ip()).filter(|ip| !ip.is_unspecified()).collect();

    let mut cuts = Vec::new();
    for (index, socket) in sockets.iter().enumerate() {
        if socket.listens || socket.peer.port() == 0 {
            continue;
        }
        let Some(slot) = who.slot(socket) else { continue };
        let other = pairs
            .get(&(socket.proto, socket.peer, socket.local))
            .or_else(|| unconnected.get(&(socket.proto, socket.peer.port())))
            .map(|&i| &sockets[i]);
        let is_here = socket.peer.ip().is_loopback() || locals.contains(&socket.peer.ip());
        let peer = match other {
            Some(other) if is_here => who.slot(other).map(|s| (s.id, vec![])),
            None if is_here => None,
            _ => Some(who.at(socket.peer.ip(), state)),
        };
        let Some((peer, names)) = peer else { continue };
        if peer == slot.id && is_here {
            continue;
        }
        let judge = |direction| judge(socket, slot, (peer, &names, is_here), direction, state, now);
        let denied = match socket.proto {
            proto::TCP if listeners.contains(&(proto::TCP, socket.local.port())) => judge(Direction::Ingress),
            proto::TCP => judge(Direction::Egress),
            // Who sent first is not known for UDP: only what is denied both ways is ended.
            _ => judge(Direction::Ingress).and_then(|_| judge(Direction::Egress)),
        };
        cuts.extend(denied.map(|(flow, mode, decision)| Cut { index, flow, local: slot.id, mode, decision }));
    }
    cuts
}

fn judge(
    socket: &Open,
    slot: &IdentSlot,
    (peer, names, is_here): (IdentityId, &[IdentityId], bool),
    direction: Direction,
    state: &MapState,
    now: BootSeconds,
) -> Option<(Flow, Mode, Decision)> {
    let (from, to, asked, mode) = match direction {
        Direction::Egress => (slot.id, peer, socket.peer, slot.egress_mode),
        Direction::Ingress => (peer, slot.id, socket.local, slot.ingress_mode),
    };
    let flow = Flow { from, to, proto: socket.proto, port: asked.port(), direction };
    let decision = state.decide_at(&flow, names, asked.ip(), is_here, &now);
    let mode = Mode::from_u8(mode);
    (mode.apply(&decision) == Verdict::Deny).then_some((flow, mode, decision))
}

impl Who<'_> {
    /// Who is at an address away from this network, and what else it is called.
    fn at(&self, address: IpAddr, state: &MapState) -> (IdentityId, Vec<IdentityId>) {
        let octets = octets(address);
        if let Some(id) = self.addresses.get(&octets) {
            return (*id, vec![]);
        }
        let named = self.dns.get(&octets).filter(|_| state.peers.names(address.to_canonical()).is_none());
        // Every socket here has a flow that is running.
        (state.peer_of(&octets), named.map(|named| named.live(0, true).collect()).unwrap_or_default())
    }

    fn slot(&self, socket: &Open) -> Option<&IdentSlot> {
        let slot = self.cgroups.get(&socket.cgroup).filter(|s| s.flags & ident_flags::LABELLED != 0)?;
        let narrowed = (slot.flags & ident_flags::ASK_UID != 0)
            .then(|| self.uids.get(&UidKey { cgroup: socket.cgroup, uid: socket.uid, reserved: 0 }));
        Some(narrowed.flatten().unwrap_or(slot))
    }
}

#[cfg(test)]
mod tests {
    use agent_common::layout::{EdgeEntry, EdgeKey, Range, level};

    use super::*;

    fn open(local: &str, peer: &str, cgroup: u64, listens: bool) -> Open {
        let (local, peer) = (local.parse().unwrap(), peer.parse().unwrap());
        Open { proto: proto::TCP, listens, local, peer, cgroup, uid: 0 }
    }

    fn slots(mode: Mode) -> BTreeMap<u64, IdentSlot> {
        [(7, 1000), (8, 2000)]
            .map(|(cgroup, id)| {
                let (m, id) = (mode as u8, IdentityId(id));
                let flags = ident_flags::LABELLED;
                (cgroup, IdentSlot { id, ingress_mode: m, egress_mode: m, flags, ..IdentSlot::default() })
            })
            .into()
    }

    fn allowing(port: u16) -> MapState {
        let mut entry = EdgeEntry { count: 1, ..EdgeEntry::default() };
        entry.ranges[0] =
            Range { proto: proto::TCP, flags: level::ALLOW, lo: port, hi: port, rule: 1, ..Range::default() };
        let key = EdgeKey { from: IdentityId(1000), to: IdentityId(2000) };
        MapState { edges: [(key, entry)].into(), ..MapState::default() }
    }

    #[test]
    fn both_ends_of_a_connection_without_a_rule_are_cut_and_an_allowed_one_is_never_cut() {
        let sockets = [
            open("127.0.0.1:5432", "0.0.0.0:0", 8, true),
            open("127.0.0.1:40000", "127.0.0.1:5432", 7, false),
            open("127.0.0.1:5432", "127.0.0.1:40000", 8, false),
        ];
        let (cgroups, uids) = (slots(Mode::Enforce), BTreeMap::new());
        let who = Who { cgroups: &cgroups, uids: &uids, addresses: &BTreeMap::new(), dns: &BTreeMap::new() };
        assert_eq!(cut_list(&sockets, who, &allowing(5432), BootSeconds(0)), []);
        let cuts = cut_list(&sockets, who, &allowing(5433), BootSeconds(0));
        assert_eq!(cuts.iter().map(|c| c.index).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(cuts[0].flow.direction, Direction::Egress);
        assert_eq!(cuts[1].flow.direction, Direction::Ingress);
        let cgroups = slots(Mode::Audit);
        let who = Who { cgroups: &cgroups, uids: &uids, addresses: &BTreeMap::new(), dns: &BTreeMap::new() };
        assert_eq!(cut_list(&sockets, who, &allowing(5433), BootSeconds(0)), [], "audit cuts nothing");
    }

    #[test]
    fn a_connection_to_a_resolver_is_cut_when_it_is_none_any_more() {
        let sockets = [
            open("127.0.0.53:53", "0.0.0.0:0", 8, true),
            open("127.0.0.1:40000", "127.0.0.53:53", 7, false),
            open("127.0.0.53:53", "127.0.0.1:40000", 8, false),
            open("10.0.0.1:40001", "10.0.0.53:53", 7, false),
        ];
        let (cgroups, uids) = (slots(Mode::Enforce), BTreeMap::new());
        let who = Who { cgroups: &cgroups, uids: &uids, addresses: &BTreeMap::new(), dns: &BTreeMap::new() };
        let cut = |resolvers: &[&str]| {
            let resolvers: Vec<IpAddr> = resolvers.iter().map(|address| address.parse().unwrap()).collect();
            let resolvers = resolvers.try_into().unwrap();
            let state = MapState { resolvers, ..MapState::default() };
            cut_list(&sockets, who, &state, BootSeconds(0)).iter().map(|c| c.index).collect::<Vec<_>>()
        };
        assert_eq!(cut(&["127.0.0.53", "10.0.0.53"]), [0; 0]);
        assert_eq!(cut(&["10.0.0.53"]), [1, 2]);
        assert_eq!(cut(&["127.0.0.53"]), [3]);
    }

    #[test]
    fn a_connection_to_an_address_is_cut_by_who_has_it() {
        let sockets = [open("10.0.0.1:40000", "10.0.0.2:5432", 7, false)];
        let (cgroups, uids) = (slots(Mode::Enforce), BTreeMap::new());
        let cut = |owner: Option<u64>| {
            let addresses = owner.map(|id| (octets("10.0.0.2".parse().unwrap()), IdentityId(id))).into_iter().collect();
            let who = Who { cgroups: &cgroups, uids: &uids, addresses: &addresses, dns: &BTreeMap::new() };
            cut_list(&sockets, who, &allowing(5432), BootSeconds(0)).len()
        };
        assert_eq!([Some(2000), Some(3000), Some(IdentityId::UNKNOWN.0), None].map(cut), [0, 1, 1, 1]);
    }
}
