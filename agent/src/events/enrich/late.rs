//! Records that no record of the kernel stands behind: repeats, folded denials, flows that were cut.

use std::net::SocketAddr;

use agent_common::{
    flow::{Direction, proto},
    id::{Epoch, IdentityId, RuleNumber},
    layout::{DenyKey, DenyStat},
    verdict::{Mode, Reason},
};

use super::{Enrich, Side, cgroup_path};
use crate::events::{
    decode::{address, has_ports, is_packet},
    record::{Answer, DenyEvent, FoldedEvent, Kind, Outcome, Owner, Point, RuleRef, new_uid},
    windows::{FoldedRow, RowCount},
};

/// A live flow that the agent closed.
#[derive(Clone, Debug, PartialEq)]
pub struct CutFlow {
    /// Exit or door of the local end.
    pub direction: Direction,
    /// Epoch that closed it.
    pub epoch: Epoch,
    /// The deny rule or override that closed it; `None` if an allow rule went away.
    pub cause: Option<RuleRef>,
    /// IP protocol.
    pub proto: u8,
    /// Identity of this end.
    pub local_id: IdentityId,
    /// Identity of the other end.
    pub peer_id: IdentityId,
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Cgroup of the socket.
    pub cgroup: Option<u64>,
    /// Cookie of the socket.
    pub cookie: Option<u64>,
    /// Cookie of the network namespace.
    pub netns: Option<u64>,
    /// Mode of the local end.
    pub mode: Option<Mode>,
}

impl Enrich<'_> {
    /// Returns the record of the repeats that a row counted, after the example of its first.
    #[must_use]
    pub fn repeat(&self, row: &RowCount) -> DenyEvent {
        let RowCount { key, stat, window_ms, series, first } = row;
        let mut event = match first {
            Some(first) => DenyEvent::clone(first),
            None => self.key_alone(key, stat),
        };
        let packets = match event.point {
            Some(Point::Hook(hook)) => is_packet(hook),
            // Without the first it is not known. Calls have no bytes, so bytes tell packets.
            Some(Point::SockDestroy) | None => stat.bytes > 0,
        };
        event.kind = Kind::Repeat { window_ms: *window_ms };
        event.time = self.now.wall_of(stat.first_ns);
        event.last = self.now.wall_of(stat.last_ns).max(event.time);
        event.boot_ns = stat.first_ns;
        event.uid = new_uid(self.now.wall);
        event.series = series.unwrap_or(event.uid);
        event.count = stat.count;
        event.packets = if packets { stat.count } else { 0 };
        event.bytes = if packets { stat.bytes } else { 0 };
        event
    }

    /// Returns the record of denials beyond a workload's budget.
    #[must_use]
    pub fn folded(&self, row: &FoldedRow) -> FoldedEvent {
        let id = IdentityId(row.owner);
        let local = match self.snapshots.name(None, id) {
            Some(name) => Owner::Identity { id, service: Some(name.short.clone()), spiffe: name.spiffe.clone() },
            None if self.snapshots.place(row.owner).is_some() => Owner::Cgroup(row.owner),
            // No name is left of it. Cgroup ids count up from 1 and never get near a hash of 63 bits.
            None if row.owner > u64::from(u32::MAX) => Owner::Identity { id, service: None, spiffe: None },
            None => Owner::Cgroup(row.owner),
        };
        let time = self.now.wall_of(row.stat.first_ns);
        FoldedEvent {
            uid: new_uid(self.now.wall),
            time,
            last: self.now.wall_of(row.stat.last_ns).max(time),
            local,
            direction: row.direction,
            outcome: if row.would { Outcome::WouldDeny } else { Outcome::Denied },
            epoch: self.snapshots.newest().map(|snapshot| snapshot.epoch),
            count: row.stat.count,
            bytes: row.stat.bytes,
        }
    }

    /// Returns the record of a flow that was closed.
    #[must_use]
    pub fn cut(&self, cut: &CutFlow) -> DenyEvent {
        let mut truncated = Vec::new();
        let epoch = Some(cut.epoch);
        let local = Side { addr: Some(cut.local.ip()), port: Some(cut.local.port()), id: cut.local_id };
        let peer = Side { addr: Some(cut.peer.ip()), port: Some(cut.peer.port()), id: cut.peer_id };
        let place = cut.cgroup.and_then(|cgroup| self.snapshots.place(cgroup));
        let (source, target) = self.ends(epoch, cut.direction, &local, &peer, place, &mut truncated);
        let uid = new_uid(self.now.wall);
        DenyEvent {
            uid,
            series: uid,
            kind: Kind::Cut,
            time: self.now.wall,
            last: self.now.wall,
            boot_ns: self.now.boot_ns,
            outcome: Outcome::Cut,
            mode: cut.mode,
            direction: cut.direction,
            point: Some(Point::SockDestroy),
            answer: if cut.proto == proto::TCP { Answer::Rst } else { Answer::None },
            reason: Reason::Revoked,
            rule: RuleNumber::DEFAULT,
            rule_ref: cut.cause.clone().unwrap_or_else(RuleRef::default_deny),
            epoch,
            policy: self.policy(epoch),
            nearest: None,
            proto: cut.proto,
            tcp_flags: None,
            icmp: None,
            known_by: None,
            peer_outside: self.is_outside(epoch, cut.peer_id),
            process: None,
            task: None,
            cgroup: cut.cgroup,
            cgroup_path: cgroup_path(place, &mut truncated),
            cookie: cut.cookie,
            netns: cut.netns,
            ifindex: 0,
            count: 1,
            packets: 0,
            bytes: 0,
            community_id: self.community_id(cut.proto, None, &source, &target),
            source,
            target,
            truncated,
        }
    }

    /// Returns what a key alone tells: the agent that read the first of it is gone.
    fn key_alone(&self, key: &DenyKey, stat: &DenyStat) -> DenyEvent {
        let direction = Direction::from_u8(key.direction).unwrap_or(Direction::Egress);
        let reason = Reason::from_u8(key.reason).unwrap_or(Reason::Internal);
        let would = key.would != 0;
        let local_known = self.snapshots.name(None, IdentityId(key.local)).is_some();
        let local_id = if local_known { IdentityId(key.local) } else { IdentityId::UNKNOWN };
        let target_port = (has_ports(key.proto) && key.port != 0).then_some(key.port);
        let (local_port, peer_port) = match direction {
            Direction::Egress => (None, target_port),
            Direction::Ingress => (target_port, None),
        };
        let local = Side { addr: None, port: local_port, id: local_id };
        let peer_addr = (key.peer_addr != [0; 16]).then(|| address(key.peer_addr));
        let peer = Side { addr: peer_addr, port: peer_port, id: IdentityId(key.peer) };
        let cgroup = (!local_known).then_some(key.local);
        let place = cgroup.and_then(|cgroup| self.snapshots.place(cgroup));
        let mut truncated = Vec::new();
        let (source, target) = self.ends(None, direction, &local, &peer, place, &mut truncated);
        let time = self.now.wall_of(stat.first_ns);
        let uid = new_uid(time);
        DenyEvent {
            uid,
            series: uid,
            kind: Kind::First,
            time,
            last: time,
            boot_ns: stat.first_ns,
            outcome: if would { Outcome::WouldDeny } else { Outcome::Denied },
            mode: match (would, reason) {
                (true, _) => Some(Mode::Audit),
                // An override-deny binds in every mode.
                (false, Reason::OverrideDeny) => None,
                (false, _) => Some(Mode::Enforce),
            },
            direction,
            point: None,
            answer: Answer::None,
            reason,
            rule: RuleNumber::DEFAULT,
            rule_ref: self.rule_ref(None, reason, RuleNumber::DEFAULT),
            epoch: None,
            policy: None,
            nearest: None,
            proto: key.proto,
            tcp_flags: None,
            icmp: None,
            source,
            target,
            known_by: None,
            peer_outside: self.is_outside(None, IdentityId(key.peer)),
            process: None,
            task: None,
            cgroup,
            cgroup_path: cgroup_path(place, &mut truncated),
            cookie: None,
            netns: None,
            ifindex: 0,
            count: 1,
            packets: 0,
            bytes: 0,
            community_id: None,
            truncated,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use zerocopy::IntoBytes as _;

    use super::*;
    use crate::events::{
        decode::decode,
        record::{Now, RuleKind},
        snapshot::{Place, Snapshots},
        testing::{self, PAYMENTS_DB, WEB},
    };

    const SECOND_NS: u64 = 1_000_000_000;

    fn later(snapshots: &Snapshots) -> Enrich<'_> {
        let Now { wall, boot_ns } = testing::now();
        let wall = crate::events::record::UnixMillis(wall.0 + 10_000);
        Enrich { now: Now { wall, boot_ns: boot_ns + 10 * SECOND_NS }, snapshots, community_id_seed: 0 }
    }

    fn stat() -> DenyStat {
        let first_ns = testing::now().boot_ns;
        DenyStat { count: 3, bytes: 180, first_ns, last_ns: first_ns + 7 * SECOND_NS }
    }

    #[test]
    fn repeats_are_told_after_the_example_of_their_first() {
        let first = testing::event();
        let row = RowCount {
            key: decode(testing::record().as_bytes()).unwrap().key,
            stat: stat(),
            window_ms: 10_000,
            series: Some(first.series),
            first: Some(Arc::new(first.clone())),
        };
        let event = later(&testing::snapshots()).repeat(&row);
        assert_eq!((event.series, event.kind), (first.series, Kind::Repeat { window_ms: 10_000 }));
        assert_ne!(event.uid, first.uid);
        assert_eq!((event.count, event.packets, event.bytes), (3, 3, 180));
        assert_eq!((event.time, event.last.0), (first.time, first.time.0 + 7_000));
        assert_eq!((event.community_id, event.source), (first.community_id, first.source));
    }

    #[test]
    fn repeats_without_a_first_are_told_with_what_the_key_says() {
        let key = decode(testing::record().as_bytes()).unwrap().key;
        let row = RowCount { key, stat: stat(), window_ms: 10_000, series: None, first: None };
        let event = later(&testing::snapshots()).repeat(&row);
        assert_eq!((event.source.service.as_deref(), event.target.id), (Some("web"), PAYMENTS_DB));
        assert_eq!((event.target.port, event.source.port), (Some(5432), None));
        assert_eq!((event.point, event.epoch, event.cgroup, event.community_id), (None, None, None, None));
        assert_eq!((event.count, event.packets, event.series), (3, 3, event.uid));
    }

    #[test]
    fn folded_denials_name_their_workload_or_their_cgroup() {
        let mut snapshots = testing::snapshots();
        snapshots.set_places(Arc::new([(0x2a41, Place::default())].into()));
        let enrich = later(&snapshots);
        let row = FoldedRow::from_kernel([WEB.0, 0], stat());
        let event = enrich.folded(&row);
        assert!(matches!(event.local, Owner::Identity { id: WEB, service: Some(_), .. }), "{:?}", event.local);
        assert_eq!((event.count, event.outcome), (3, Outcome::Denied));
        let row = FoldedRow::from_kernel([0x2a41, 3], stat());
        let event = enrich.folded(&row);
        assert_eq!((event.local, event.outcome), (Owner::Cgroup(0x2a41), Outcome::WouldDeny));
    }

    #[test]
    fn a_cut_names_what_closed_it() {
        let cut = CutFlow {
            direction: Direction::Ingress,
            epoch: Epoch(42),
            cause: Some(RuleRef { id: "ov-19".into(), title: None, kind: RuleKind::OverrideDeny }),
            proto: proto::TCP,
            local_id: PAYMENTS_DB,
            peer_id: WEB,
            local: "10.244.2.17:5432".parse().unwrap(),
            peer: "[::ffff:10.244.1.23]:51734".parse().unwrap(),
            cgroup: Some(0x2a41),
            cookie: Some(7),
            netns: None,
            mode: Some(Mode::Enforce),
        };
        let snapshots = testing::snapshots();
        let event = later(&snapshots).cut(&cut);
        assert_eq!((event.rule_ref.id.as_str(), event.answer, event.reason), ("ov-19", Answer::Rst, Reason::Revoked));
        assert_eq!(event.community_id, testing::event().community_id, "the address is unmapped first");
        let event = later(&snapshots).cut(&CutFlow { cause: None, ..cut });
        assert_eq!(event.rule_ref, RuleRef::default_deny());
    }
}
