//! Numbers -> a record with names, by what the agent knew under the epoch of the denial.
//!
//! Foreign strings pass the rule of [`super::escape`] here and nowhere later.

mod late;

pub use late::CutFlow;

use agent_common::{
    flow::{Direction, Flow, proto},
    id::{Epoch, IdentityId, RuleNumber},
    layout::KnownBy,
    verdict::Reason,
};

use super::{
    community_id::{Tuple, community_id},
    decode::{Denial, KernelProcess, is_packet},
    escape::{KERNEL_NAME_CHARS_MAX, NAME_CHARS_MAX, PATH_CHARS_MAX, escape},
    process::ProcessDetails,
    record::{
        Answer, DenyEvent, End, Kind, LongField, Now, Outcome, Point, PolicyRef, Process, RuleKind, RuleRef, new_uid,
    },
    snapshot::{Place, Snapshots},
};

/// Makes records.
#[derive(Clone, Copy, Debug)]
pub struct Enrich<'a> {
    /// The moment.
    pub now: Now,
    /// The names.
    pub snapshots: &'a Snapshots,
    /// As in [`mod@super::community_id`].
    pub community_id_seed: u16,
}

impl Enrich<'_> {
    /// Returns the record of a denial. Its series begins with itself.
    #[must_use]
    pub fn denial(&self, denial: &Denial, details: Option<ProcessDetails>) -> DenyEvent {
        let mut truncated = Vec::new();
        let epoch = (denial.epoch != Epoch(0)).then_some(denial.epoch);
        let local = Side { addr: denial.local_addr, port: denial.local_port, id: denial.local_id };
        let peer = Side { addr: denial.peer_addr, port: denial.peer_port, id: denial.peer_id };
        let place = self.snapshots.place(denial.cgroup);
        let (source, target) = self.ends(epoch, denial.direction, &local, &peer, place, &mut truncated);
        let time = self.now.wall_of(denial.boot_ns);
        let uid = new_uid(time);
        let packet = is_packet(denial.hook);
        DenyEvent {
            uid,
            series: uid,
            kind: Kind::First,
            time,
            last: time,
            boot_ns: denial.boot_ns,
            outcome: if denial.would { Outcome::WouldDeny } else { Outcome::Denied },
            mode: Some(denial.mode),
            direction: denial.direction,
            point: Some(Point::Hook(denial.hook)),
            answer: if denial.eperm { Answer::Eperm } else { Answer::None },
            reason: denial.reason,
            rule: denial.rule,
            rule_ref: self.rule_ref(epoch, denial.reason, denial.rule),
            epoch,
            policy: self.policy(epoch),
            nearest: self.nearest(denial, epoch),
            proto: denial.proto,
            tcp_flags: denial.tcp_flags,
            icmp: denial.icmp,
            known_by: (denial.known_by != KnownBy::Nothing).then_some(denial.known_by),
            peer_outside: self.is_outside(epoch, denial.peer_id),
            process: denial.process.map(|process| self.process(&process, details, &mut truncated)),
            task: denial.task,
            cgroup: Some(denial.cgroup),
            cgroup_path: cgroup_path(place, &mut truncated),
            cookie: denial.cookie,
            netns: denial.netns,
            ifindex: denial.ifindex,
            count: 1,
            packets: u64::from(packet),
            bytes: if packet { u64::from(denial.bytes) } else { 0 },
            community_id: self.community_id(denial.proto, denial.icmp, &source, &target),
            source,
            target,
            truncated,
        }
    }

    /// Returns caller and callee, in this order.
    fn ends(
        &self,
        epoch: Option<Epoch>,
        direction: Direction,
        local: &Side,
        peer: &Side,
        place: Option<&Place>,
        truncated: &mut Vec<LongField>,
    ) -> (End, End) {
        let field = match direction {
            Direction::Egress => LongField::SourcePlace,
            Direction::Ingress => LongField::TargetPlace,
        };
        let mut local = self.end(epoch, local);
        if let Some(place) = place {
            local.container = place.container.as_ref().map(|id| escape(id.as_bytes(), NAME_CHARS_MAX).text);
            // A container's own unit is a scope made for it: its id says more.
            let name = place.container.as_ref().map(|id| id.as_bytes()).or(place.unit.as_deref());
            local.place = name.map(|name| limited(name, NAME_CHARS_MAX, field, truncated));
        }
        let peer = self.end(epoch, peer);
        match direction {
            Direction::Egress => (local, peer),
            Direction::Ingress => (peer, local),
        }
    }

    fn end(&self, epoch: Option<Epoch>, side: &Side) -> End {
        let name = self.snapshots.name(epoch, side.id);
        let service = match side.id {
            IdentityId::WORLD => Some("world".to_owned()),
            _ => name.map(|name| name.short.clone()),
        };
        End {
            addr: side.addr.map(|addr| addr.to_canonical()),
            port: side.port,
            id: side.id,
            service,
            spiffe: name.and_then(|name| name.spiffe.clone()),
            place: None,
            container: None,
        }
    }

    fn is_outside(&self, epoch: Option<Epoch>, peer: IdentityId) -> bool {
        peer == IdentityId::WORLD || self.snapshots.name(epoch, peer).is_some_and(|name| name.is_external)
    }

    fn policy(&self, epoch: Option<Epoch>) -> Option<PolicyRef> {
        self.snapshots.of(epoch?)?.policy.clone()
    }

    fn rule_ref(&self, epoch: Option<Epoch>, reason: Reason, number: RuleNumber) -> RuleRef {
        if let Some(name) = builtin_name(number) {
            return RuleRef { id: name.to_owned(), title: None, kind: RuleKind::Builtin };
        }
        let kind = rule_kind(reason);
        if number == RuleNumber::DEFAULT {
            return match kind {
                RuleKind::Default => RuleRef::default_deny(),
                // Which rule it was, only the kernel knew at that time.
                _ => RuleRef { id: reason.name().to_owned(), title: None, kind },
            };
        }
        let known = epoch.and_then(|epoch| self.snapshots.of(epoch)).and_then(|snapshot| snapshot.rule(number));
        known.cloned().unwrap_or_else(|| RuleRef { id: format!("#{}", number.0), title: None, kind })
    }

    fn nearest(&self, denial: &Denial, epoch: Option<Epoch>) -> Option<String> {
        if !matches!(denial.reason, Reason::NoRule | Reason::Expired) {
            return None;
        }
        let nearest = self.snapshots.of(epoch?)?.nearest.as_ref()?;
        let (from, to) = match denial.direction {
            Direction::Egress => (denial.local_id, denial.peer_id),
            Direction::Ingress => (denial.peer_id, denial.local_id),
        };
        // Policy names both families of ICMP by the number of the first; the key has its types.
        let proto = if denial.proto == proto::ICMPV6 { proto::ICMP } else { denial.proto };
        nearest(&Flow { from, to, proto, port: denial.key.port, direction: denial.direction })
    }

    fn process(
        &self,
        kernel: &KernelProcess,
        details: Option<ProcessDetails>,
        truncated: &mut Vec<LongField>,
    ) -> Process {
        let length = kernel.comm.iter().position(|&byte| byte == 0).unwrap_or(kernel.comm.len());
        let (exe, start) = match details {
            Some(details) => (Some(details.exe), Some(self.now.wall_of(details.start_boot_ns))),
            None => (None, None),
        };
        Process {
            pid: kernel.pid,
            uid: kernel.uid,
            comm: limited(&kernel.comm[..length], KERNEL_NAME_CHARS_MAX, LongField::Comm, truncated),
            exe: exe.map(|exe| limited(&exe, PATH_CHARS_MAX, LongField::Exe, truncated)),
            start,
        }
    }

    fn community_id(&self, proto: u8, icmp: Option<(u8, u8)>, source: &End, target: &End) -> Option<String> {
        let tuple =
            Tuple { source: source.addr?, target: target.addr?, proto, ports: source.port.zip(target.port), icmp };
        community_id(self.community_id_seed, &tuple)
    }
}

/// What is known about an end before it has names.
struct Side {
    addr: Option<std::net::IpAddr>,
    port: Option<u16>,
    id: IdentityId,
}

fn limited(bytes: &[u8], chars_max: usize, field: LongField, truncated: &mut Vec<LongField>) -> String {
    let escaped = escape(bytes, chars_max);
    if escaped.truncated {
        truncated.push(field);
    }
    escaped.text
}

fn cgroup_path(place: Option<&Place>, truncated: &mut Vec<LongField>) -> Option<String> {
    place.map(|place| limited(&place.cgroup_path, PATH_CHARS_MAX, LongField::CgroupPath, truncated))
}

/// Returns what decided, by the reason alone.
const fn rule_kind(reason: Reason) -> RuleKind {
    match reason {
        Reason::DenyRule => RuleKind::Deny,
        Reason::OverrideDeny => RuleKind::OverrideDeny,
        Reason::Protocol
        | Reason::Fragment
        | Reason::Malformed
        | Reason::SpoofedSource
        | Reason::LinkProtocol
        | Reason::DeviceMismatch
        | Reason::Bypass
        | Reason::Internal => RuleKind::Error,
        Reason::Allowed
        | Reason::NoRule
        | Reason::Expired
        | Reason::UnknownSelf
        | Reason::UnknownCaller
        | Reason::UnknownTarget
        | Reason::TaskMismatch
        | Reason::NoFlow
        | Reason::Revoked => RuleKind::Default,
    }
}

const fn builtin_name(number: RuleNumber) -> Option<&'static str> {
    match number {
        RuleNumber::BUILTIN_SELF => Some("self"),
        RuleNumber::BUILTIN_REPLIES => Some("replies"),
        RuleNumber::BUILTIN_ICMP_ERRORS => Some("icmp-errors"),
        RuleNumber::BUILTIN_DNS => Some("dns"),
        number if number.is_builtin() => Some("builtin"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use agent_common::layout::{DenyRecord, Hook, record_flags};
    use zerocopy::IntoBytes as _;

    use super::*;
    use crate::events::{decode::decode, snapshot::Snapshot, testing};

    fn event(record: &DenyRecord, snapshots: &Snapshots) -> DenyEvent {
        let enrich = Enrich { now: testing::now(), snapshots, community_id_seed: 0 };
        enrich.denial(&decode(record.as_bytes()).unwrap(), None)
    }

    #[test]
    fn an_event_is_explained_by_the_policy_of_its_own_epoch() {
        let mut snapshots = testing::snapshots();
        let newer = Snapshot {
            epoch: Epoch(42),
            policy: Some(PolicyRef { name: "shop".into(), hash: "sha256:other".into() }),
            rules: vec![RuleRef { id: "other".into(), title: None, kind: RuleKind::Deny }],
            ..Snapshot::default()
        };
        snapshots.install(Arc::new(newer));
        let by_rule = DenyRecord { reason: Reason::DenyRule as u8, rule: 1, ..testing::record() };
        assert_eq!(event(&by_rule, &snapshots).rule_ref.id, "no-web");
        assert_eq!(event(&by_rule, &snapshots).policy.unwrap().hash, "sha256:9f31c2d07ab84e15");
        let later = DenyRecord { epoch: 42, ..by_rule };
        assert_eq!(event(&later, &snapshots).rule_ref.id, "other");
        assert_eq!(
            event(&later, &snapshots).source.service.as_deref(),
            Some("web"),
            "its name is older than the epoch"
        );
        let gone = DenyRecord { epoch: 7, rule: 9, ..by_rule };
        let gone = event(&gone, &snapshots);
        assert_eq!((gone.rule_ref.id.as_str(), gone.policy, gone.epoch), ("#9", None, Some(Epoch(7))));
    }

    #[test]
    fn a_name_that_a_workload_chose_is_escaped_and_its_cut_is_said() {
        let mut snapshots = testing::snapshots();
        let place = Place { cgroup_path: vec![b'\n'; 400], unit: Some(b"a\x1b[31m.service".to_vec()), container: None };
        snapshots.set_places(Arc::new([(testing::record().cgroup, place)].into()));
        let comm = *b"evil\nname \0\0\0\0\0\0";
        let event = event(&DenyRecord { flags: record_flags::PROCESS, comm, ..testing::record() }, &snapshots);
        assert_eq!(event.process.unwrap().comm, "evil\\x0aname\\x20");
        assert_eq!(event.target.place.as_deref(), Some("a\\x1b[31m.service"));
        assert_eq!(event.cgroup_path.unwrap().len(), 1024);
        assert_eq!(event.truncated, [LongField::CgroupPath]);
    }

    #[test]
    fn the_nearest_rule_is_asked_only_when_nothing_matched() {
        let mut snapshots = testing::snapshots();
        let mut snapshot = snapshots.newest().unwrap().clone();
        snapshot.nearest = Some(Arc::new(|flow: &Flow| {
            Some(format!("from {:x} proto {} port {}", flow.from.0, flow.proto, flow.port))
        }));
        snapshots.install(Arc::new(snapshot));
        let found = event(&testing::record(), &snapshots).nearest;
        assert_eq!(found.as_deref(), Some("from 2197f5a4ca2450 proto 6 port 5432"));
        let by_rule = DenyRecord { reason: Reason::DenyRule as u8, rule: 1, ..testing::record() };
        assert_eq!(event(&by_rule, &snapshots).nearest, None);
        let echo = DenyRecord { hook: Hook::Ingress as u8, proto: proto::ICMPV6, icmp: [128, 0], ..testing::record() };
        assert_eq!(event(&echo, &snapshots).nearest.as_deref(), Some("from 2197f5a4ca2450 proto 1 port 8"));
    }

    #[test]
    fn an_end_without_an_identity_keeps_its_number_and_gets_no_name() {
        let record = DenyRecord {
            peer_id: IdentityId::UNKNOWN.0,
            reason: Reason::UnknownCaller as u8,
            known_by: KnownBy::Nothing as u8,
            ..testing::record()
        };
        let event = event(&record, &testing::snapshots());
        assert_eq!((event.source.id, event.source.service.as_deref()), (IdentityId::UNKNOWN, None));
        assert_eq!((event.known_by, event.peer_outside), (None, false));
    }

    #[test]
    fn the_world_and_externals_are_outside() {
        let snapshots = testing::snapshots();
        assert!(!event(&testing::record(), &snapshots).peer_outside);
        let world = event(&DenyRecord { peer_id: IdentityId::WORLD.0, ..testing::record() }, &snapshots);
        assert!(world.peer_outside && world.source.service.as_deref() == Some("world"));
        let external = event(&DenyRecord { peer_id: testing::EXTERNAL.0, ..testing::record() }, &snapshots);
        assert!(external.peer_outside);
    }

    #[test]
    fn what_never_was_judged_by_a_rule_is_an_error_and_not_the_default() {
        let malformed = DenyRecord { reason: Reason::Malformed as u8, ..testing::record() };
        let rule = event(&malformed, &testing::snapshots()).rule_ref;
        assert_eq!(rule, RuleRef { id: "malformed".into(), title: None, kind: RuleKind::Error });
    }
}
