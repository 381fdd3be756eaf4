//! Denials, numbers of them, and cut flows: class 4001, Network Activity.

use std::net::IpAddr;

use agent_common::{
    flow::{Direction, proto},
    layout::{Hook, KnownBy},
    verdict::Reason,
};
use serde::Serialize;

use super::{
    SCHEMA, Stamp, device, metadata, severity_name, status_name,
    wire::{
        Connection, Container, Device, Endpoint, FirewallRule, Flow, FlowActor, FlowProcess, FlowRest, FlowUser,
        Metadata, Observable, Policy, Text, Traffic, Unmapped,
    },
};
use crate::events::{
    decode::is_packet,
    record::{DenyEvent, End, FoldedEvent, Kind, Outcome, Owner, Point, Process},
    words,
};

/// Appends a denial, without a newline.
pub fn write(buffer: &mut Vec<u8>, event: &DenyEvent, stamp: &Stamp<'_>) -> serde_json::Result<()> {
    serde_json::to_writer(buffer, &view(event, stamp))
}

fn view<'a>(event: &'a DenyEvent, stamp: &Stamp<'a>) -> Flow<'a> {
    let words = Words::of(event.outcome);
    let severity_id = severity(event);
    Flow {
        time: event.time.0,
        metadata: flow_metadata(event, stamp),
        activity_id: words.activity_id,
        activity_name: words.activity.into(),
        category_uid: 4,
        category_name: "Network Activity".into(),
        class_uid: 4001,
        class_name: "Network Activity".into(),
        type_uid: 400_100 + u32::from(words.activity_id),
        type_name: format!("Network Activity: {}", words.activity).into(),
        severity_id,
        severity: severity_name(severity_id).into(),
        status_id: words.status_id,
        status: status_name(words.status_id).into(),
        status_code: event.reason.name().into(),
        status_detail: words::detail(event).into(),
        action_id: words.action_id,
        action: words.action.into(),
        disposition_id: words.disposition_id,
        disposition: words.disposition.into(),
        is_alert: false,
        message: words::message(event).into(),
        firewall_rule: FirewallRule {
            uid: event.rule_ref.id.as_str().into(),
            name: event.rule_ref.title.as_deref().map(Into::into),
            kind: event.rule_ref.kind.name().into(),
        },
        policy: event.policy.as_ref().zip(event.epoch).map(|(policy, epoch)| Policy {
            name: policy.name.as_str().into(),
            uid: policy.hash.as_str().into(),
            version: epoch.0.to_string().into(),
            is_applied: true,
        }),
        connection_info: connection(event),
        src_endpoint: endpoint(&event.source),
        dst_endpoint: endpoint(&event.target),
        device: device(stamp.node),
        traffic: traffic(event),
        count: event.count,
        start_time: event.time.0,
        end_time: event.last.0,
        duration: event.last.0.saturating_sub(event.time.0),
        observables: observables(event),
        unmapped: Unmapped { eastwall: rest(event) },
        actor: event.process.as_ref().map(actor),
    }
}

fn flow_metadata<'a>(event: &'a DenyEvent, stamp: &Stamp<'a>) -> Metadata<'a> {
    let code = match event.outcome {
        Outcome::Denied => "deny",
        Outcome::WouldDeny => "would-deny",
        Outcome::Cut => "cut",
    };
    let profiles: &[_] = match event.local().container {
        Some(_) => &["security_control", "host", "container"],
        None => &["security_control", "host"],
    };
    let metadata = metadata(stamp, event.uid, code, "datapath", profiles);
    Metadata { correlation_uid: Some(event.series.to_string().into()), ..metadata }
}

/// The schema's numbers and captions for an outcome.
///
/// A packet that passed is never said to be denied. Not "Dropped", which the schema keeps for threats.
struct Words {
    activity_id: u8,
    activity: &'static str,
    status_id: u8,
    action_id: u8,
    action: &'static str,
    disposition_id: u8,
    disposition: &'static str,
}

impl Words {
    const fn of(outcome: Outcome) -> Self {
        const BLOCKED: Words = Words {
            activity_id: 5,
            activity: "Refuse",
            status_id: 2,
            action_id: 2,
            action: "Denied",
            disposition_id: 2,
            disposition: "Blocked",
        };
        match outcome {
            Outcome::Denied => BLOCKED,
            Outcome::Cut => Self { activity_id: 3, activity: "Reset", status_id: 1, ..BLOCKED },
            // Open, because the flow did open.
            Outcome::WouldDeny => Self {
                activity_id: 1,
                activity: "Open",
                status_id: 1,
                action_id: 3,
                action: "Observed",
                disposition_id: 15,
                disposition: "Detected",
            },
        }
    }
}

const fn severity(event: &DenyEvent) -> u8 {
    match (event.outcome, event.reason) {
        (Outcome::WouldDeny, _) => 2,
        (
            _,
            Reason::DenyRule
            | Reason::OverrideDeny
            | Reason::SpoofedSource
            | Reason::DeviceMismatch
            | Reason::Bypass
            | Reason::Internal,
        ) => 4,
        (_, _) => 3,
    }
}

fn connection(event: &DenyEvent) -> Connection<'_> {
    let (direction_id, direction) = match (event.peer_outside, event.direction) {
        (false, _) => (3, "Lateral"),
        (true, Direction::Ingress) => (1, "Inbound"),
        (true, Direction::Egress) => (2, "Outbound"),
    };
    let addresses = [event.source.addr, event.target.addr];
    let (boundary_id, boundary) = match (event.peer_outside, event.target.addr) {
        (true, _) => (3, "External"),
        (false, Some(addr)) if addr.is_loopback() => (1, "Localhost"),
        (false, _) => (2, "Internal"),
    };
    let version = addresses.into_iter().flatten().next().map(|addr| match addr {
        IpAddr::V4(_) => (4, "IPv4"),
        IpAddr::V6(_) => (6, "IPv6"),
    });
    Connection {
        direction_id,
        direction: direction.into(),
        boundary_id,
        boundary: boundary.into(),
        protocol_num: event.proto,
        protocol_name: protocol_name(event.proto).map(Into::into),
        protocol_ver_id: version.map(|(id, _)| id),
        protocol_ver: version.map(|(_, name)| name.into()),
        tcp_flags: event.tcp_flags,
        community_uid: event.community_id.as_deref().map(Into::into),
        uid: event.cookie.map(hex),
    }
}

/// The keyword of the IANA registry, in lower case.
const fn protocol_name(number: u8) -> Option<&'static str> {
    match number {
        proto::ICMP => Some("icmp"),
        proto::TCP => Some("tcp"),
        proto::UDP => Some("udp"),
        proto::ICMPV6 => Some("ipv6-icmp"),
        proto::SCTP => Some("sctp"),
        proto::UDPLITE => Some("udplite"),
        _ => None,
    }
}

fn endpoint(end: &End) -> Endpoint<'_> {
    // The schema wants one of these four; the number of the identity is always known.
    let nameless = end.addr.is_none() && end.service.is_none() && end.spiffe.is_none() && end.place.is_none();
    Endpoint {
        ip: end.addr.map(|addr| addr.to_string().into()),
        port: end.port,
        svc_name: end.service.as_deref().map(Into::into),
        uid: if nameless { Some(identity(end.id.0)) } else { end.spiffe.as_deref().map(Into::into) },
        name: end.place.as_deref().map(Into::into),
        type_id: end.place.as_ref().map(|_| 6),
        kind: end.place.as_ref().map(|_| "Virtual".into()),
        container: end.container.as_deref().map(|id| Container { uid: id.into() }),
    }
}

fn traffic(event: &DenyEvent) -> Traffic {
    let DenyEvent { packets, bytes, .. } = *event;
    let none = Traffic { packets, bytes, packets_in: None, bytes_in: None, packets_out: None, bytes_out: None };
    match event.point {
        Some(Point::Hook(Hook::Ingress | Hook::TcTo)) => {
            Traffic { packets_in: Some(packets), bytes_in: Some(bytes), ..none }
        }
        Some(Point::Hook(Hook::Egress | Hook::TcFrom | Hook::TcHost)) => {
            Traffic { packets_out: Some(packets), bytes_out: Some(bytes), ..none }
        }
        Some(
            Point::Hook(Hook::Connect4 | Hook::Connect6 | Hook::Sendmsg4 | Hook::Sendmsg6 | Hook::Setsockopt)
            | Point::SockDestroy,
        )
        | None => none,
    }
}

/// Pivots for people. Derived, not read back.
fn observables(event: &DenyEvent) -> Vec<Observable<'_>> {
    let (ip, port, identity) = (("IP Address", 2), ("Port", 11), ("Resource UID", 10));
    let (source, target) = (&event.source, &event.target);
    let address = |end: &End| end.addr.map(|addr| Text::from(addr.to_string()));
    // A packet only knows who last used its socket; a pivot must not name another.
    let acting = matches!(event.point, Some(Point::Hook(hook)) if !is_packet(hook));
    let process = event.process.as_ref().filter(|_| acting).map(|process| process.comm.as_str().into());
    [
        ("src_endpoint.ip", ip, address(source)),
        ("dst_endpoint.ip", ip, address(target)),
        ("dst_endpoint.port", port, target.port.map(|port| port.to_string().into())),
        ("src_endpoint.uid", identity, source.spiffe.as_deref().map(Into::into)),
        ("dst_endpoint.uid", identity, target.spiffe.as_deref().map(Into::into)),
        ("actor.process.name", ("Process Name", 9), process),
    ]
    .into_iter()
    .filter_map(|(name, (kind, type_id), value)| {
        Some(Observable { name: name.into(), kind: kind.into(), type_id, value: value? })
    })
    .collect()
}

fn rest(event: &DenyEvent) -> FlowRest<'_> {
    FlowRest {
        schema: SCHEMA,
        kind: event.kind.name().into(),
        verdict: event.outcome.name().into(),
        mode: event.mode.map(|mode| mode.name().into()),
        direction: event.direction.name().into(),
        hook: event.point.map(|point| point.name().into()),
        answer: event.answer.name().into(),
        reason: event.reason as u8,
        rule: event.rule.0,
        epoch: event.epoch.map(|epoch| epoch.0),
        local_id: identity(event.local().id.0),
        peer_id: identity(event.peer().id.0),
        cgroup_id: event.cgroup.map(hex),
        netns: event.netns.map(hex),
        ifindex: event.ifindex,
        boot_ns: event.boot_ns.to_string().into(),
        peer_known_by: event.known_by.map(|known_by| KnownBy::name(known_by as u8).into()),
        window_ms: match event.kind {
            Kind::Repeat { window_ms } => Some(window_ms),
            Kind::First | Kind::Cut => None,
        },
        task_id: event.task.map(|task| identity(task.0)),
        icmp: event.icmp,
        nearest: event.nearest.as_deref().map(Into::into),
        cgroup_path: event.cgroup_path.as_deref().map(Into::into),
        truncated: event.truncated.iter().map(|field| field.name().into()).collect(),
    }
}

fn actor(process: &Process) -> FlowActor<'_> {
    FlowActor {
        process: FlowProcess {
            pid: process.pid,
            name: process.comm.as_str().into(),
            path: process.exe.as_deref().map(Into::into),
            created_time: process.start.map(|start| start.0),
            user: FlowUser { uid: process.uid.to_string().into() },
        },
    }
}

/// Numbers of 64 bits are strings: many readers keep 53 bits of a JSON number.
fn hex(number: u64) -> Text<'static> {
    format!("{number:#x}").into()
}

/// An identity has all its digits, so that it is found by one spelling.
pub fn identity(number: u64) -> Text<'static> {
    format!("{number:#018x}").into()
}

/// A record of class 4001 without an opposite end.
#[derive(Serialize)]
struct Folded<'a> {
    time: u64,
    metadata: Metadata<'a>,
    activity_id: u8,
    activity_name: &'static str,
    category_uid: u8,
    category_name: &'static str,
    class_uid: u32,
    class_name: &'static str,
    type_uid: u32,
    type_name: String,
    severity_id: u8,
    severity: &'static str,
    status_id: u8,
    status: &'static str,
    status_code: &'static str,
    status_detail: &'static str,
    action_id: u8,
    action: &'static str,
    disposition_id: u8,
    disposition: &'static str,
    is_alert: bool,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    src_endpoint: Option<Endpoint<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_endpoint: Option<Endpoint<'a>>,
    connection_info: FoldedConnection,
    device: Device<'a>,
    count: u64,
    start_time: u64,
    end_time: u64,
    duration: u64,
    unmapped: Unmapped<FoldedRest<'a>>,
}

#[derive(Serialize)]
struct FoldedConnection {
    direction_id: u8,
    direction: &'static str,
}

#[derive(Serialize)]
struct FoldedRest<'a> {
    schema: u8,
    kind: &'static str,
    verdict: &'static str,
    direction: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    local_id: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup_id: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u32>,
    #[serde(skip_serializing_if = "is_zero")]
    bytes: u64,
}

/// Refused system calls carry no bytes.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// Appends a number of denials, without a newline.
pub fn write_folded(buffer: &mut Vec<u8>, event: &FoldedEvent, stamp: &Stamp<'_>) -> serde_json::Result<()> {
    let (local_id, cgroup_id, end) = match &event.local {
        Owner::Identity { id, service, spiffe } => {
            let number = identity(id.0);
            let (svc_name, spiffe) = (service.as_deref().map(Into::into), spiffe.as_deref().map(Into::into));
            // The schema wants an endpoint, and a name in it.
            let uid = spiffe.or_else(|| service.is_none().then(|| number.clone()));
            (Some(number), None, Endpoint { svc_name, uid, ..Endpoint::default() })
        }
        Owner::Cgroup(id) => (None, Some(hex(*id)), Endpoint { uid: Some(hex(*id)), ..Endpoint::default() }),
    };
    let (src_endpoint, dst_endpoint) = match event.direction {
        Direction::Egress => (Some(end), None),
        Direction::Ingress => (None, Some(end)),
    };
    let words = Words::of(event.outcome);
    let severity_id = if event.outcome == Outcome::WouldDeny { 2 } else { 3 };
    let line = Folded {
        time: event.time.0,
        metadata: metadata(stamp, event.uid, "folded", "datapath", &["security_control", "host"]),
        activity_id: words.activity_id,
        activity_name: words.activity,
        category_uid: 4,
        category_name: "Network Activity",
        class_uid: 4001,
        class_name: "Network Activity",
        type_uid: 400_100 + u32::from(words.activity_id),
        type_name: format!("Network Activity: {}", words.activity),
        severity_id,
        severity: severity_name(severity_id),
        status_id: words.status_id,
        status: status_name(words.status_id),
        status_code: "folded",
        status_detail: "more distinct denials than the budget of this workload; counted, not listed",
        action_id: words.action_id,
        action: words.action,
        disposition_id: words.disposition_id,
        disposition: words.disposition,
        is_alert: false,
        message: words::folded_message(event),
        src_endpoint,
        dst_endpoint,
        // The peers are not known one by one; the schema wants a direction, and this is the usual one.
        connection_info: FoldedConnection { direction_id: 3, direction: "Lateral" },
        device: device(stamp.node),
        count: event.count,
        start_time: event.time.0,
        end_time: event.last.0,
        duration: event.last.0.saturating_sub(event.time.0),
        unmapped: Unmapped {
            eastwall: FoldedRest {
                schema: SCHEMA,
                kind: "folded",
                verdict: event.outcome.name(),
                direction: event.direction.name(),
                local_id,
                cgroup_id,
                epoch: event.epoch.map(|epoch| epoch.0),
                bytes: event.bytes,
            },
        },
    };
    serde_json::to_writer(buffer, &line)
}
