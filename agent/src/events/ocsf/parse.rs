//! The line of a denial -> the event. Sentences and captions are not read: they follow from the rest.

use std::net::IpAddr;

use agent_common::{
    flow::Direction,
    id::{Epoch, IdentityId, RuleNumber},
    layout::{Hook, KnownBy},
    verdict::{Mode, Reason},
};
use uuid::Uuid;

use super::{
    flow::identity,
    wire::{Endpoint, Flow, FlowActor},
};
use crate::events::record::{
    Answer, DenyEvent, End, Kind, LongField, Outcome, Point, PolicyRef, Process, RuleKind, RuleRef, UnixMillis,
};

/// A line read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Parsed {
    /// The event.
    pub event: DenyEvent,
    /// Its number in its boot.
    pub sequence: u64,
    /// The boot.
    pub boot_id: String,
}

/// Why a line is no denial that this version wrote.
#[derive(Debug, thiserror::Error)]
pub enum InvalidLine {
    /// It is no JSON, or a field is missing or of another type.
    #[error("the line is no record of a denial")]
    Json(#[from] serde_json::Error),
    /// A field holds what no record holds.
    #[error("`{value}` is no value of {field}")]
    Field {
        /// Where it stands.
        field: &'static str,
        /// What stands there.
        value: String,
    },
}

/// Reads the line of a denial, a would-be denial or a cut.
///
/// # Errors
///
/// [`InvalidLine`], naming the field.
pub fn parse(line: &[u8]) -> Result<Parsed, InvalidLine> {
    let flow: Flow<'_> = serde_json::from_slice(line)?;
    let rest = &flow.unmapped.eastwall;
    let direction = named("direction", &rest.direction, [Direction::Egress, Direction::Ingress], Direction::name)?;
    let local_id = IdentityId(hex("local_id", &rest.local_id)?);
    let peer_id = IdentityId(hex("peer_id", &rest.peer_id)?);
    let (source_id, target_id) = match direction {
        Direction::Egress => (local_id, peer_id),
        Direction::Ingress => (peer_id, local_id),
    };
    let reason = Reason::from_u8(rest.reason).ok_or_else(|| invalid("reason", &rest.reason.to_string()))?;
    let rule = &flow.firewall_rule;
    let event = DenyEvent {
        uid: uuid("metadata.uid", &flow.metadata.uid)?,
        series: uuid("metadata.correlation_uid", flow.metadata.correlation_uid.as_deref().unwrap_or_default())?,
        kind: match rest.window_ms {
            Some(window_ms) => Kind::Repeat { window_ms },
            None => named("kind", &rest.kind, [Kind::First, Kind::Cut], Kind::name)?,
        },
        time: UnixMillis(flow.start_time),
        last: UnixMillis(flow.end_time),
        boot_ns: rest.boot_ns.parse().map_err(|_| invalid("boot_ns", &rest.boot_ns))?,
        outcome: named("verdict", &rest.verdict, [Outcome::Denied, Outcome::WouldDeny, Outcome::Cut], Outcome::name)?,
        mode: optional(rest.mode.as_deref(), |text| {
            named("mode", text, [Mode::Enforce, Mode::Audit, Mode::Observe], Mode::name)
        })?,
        direction,
        point: optional(rest.hook.as_deref(), |text| named("hook", text, POINTS, Point::name))?,
        answer: named("answer", &rest.answer, [Answer::None, Answer::Eperm, Answer::Rst], Answer::name)?,
        reason,
        rule: RuleNumber(rest.rule),
        rule_ref: RuleRef {
            id: rule.uid.to_string(),
            title: rule.name.as_ref().map(ToString::to_string),
            kind: named("firewall_rule.type", &rule.kind, RuleKind::ALL, RuleKind::name)?,
        },
        epoch: rest.epoch.map(Epoch),
        policy: flow
            .policy
            .as_ref()
            .map(|policy| PolicyRef { name: policy.name.to_string(), hash: policy.uid.to_string() }),
        nearest: rest.nearest.as_ref().map(ToString::to_string),
        proto: flow.connection_info.protocol_num,
        tcp_flags: flow.connection_info.tcp_flags,
        icmp: rest.icmp,
        source: end("src_endpoint.ip", &flow.src_endpoint, source_id)?,
        target: end("dst_endpoint.ip", &flow.dst_endpoint, target_id)?,
        known_by: optional(rest.peer_known_by.as_deref(), |text| {
            named("peer_known_by", text, KNOWN_BY, |known_by| KnownBy::name(known_by as u8))
        })?,
        peer_outside: flow.connection_info.direction_id != 3,
        process: optional(flow.actor.as_ref(), process)?,
        task: optional(rest.task_id.as_deref(), |text| hex("task_id", text))?.map(IdentityId),
        cgroup: optional(rest.cgroup_id.as_deref(), |text| hex("cgroup_id", text))?,
        cgroup_path: rest.cgroup_path.as_ref().map(ToString::to_string),
        cookie: optional(flow.connection_info.uid.as_deref(), |text| hex("connection_info.uid", text))?,
        netns: optional(rest.netns.as_deref(), |text| hex("netns", text))?,
        ifindex: rest.ifindex,
        count: flow.count,
        packets: flow.traffic.packets,
        bytes: flow.traffic.bytes,
        community_id: flow.connection_info.community_uid.as_ref().map(ToString::to_string),
        truncated: rest
            .truncated
            .iter()
            .map(|text| named("truncated", text, LongField::ALL, LongField::name))
            .collect::<Result<_, _>>()?,
    };
    Ok(Parsed { event, sequence: flow.metadata.sequence, boot_id: flow.device.boot_uid.into_owned() })
}

const POINTS: [Point; 9] = [
    Point::Hook(Hook::Connect4),
    Point::Hook(Hook::Connect6),
    Point::Hook(Hook::Sendmsg4),
    Point::Hook(Hook::Sendmsg6),
    Point::Hook(Hook::Egress),
    Point::Hook(Hook::Ingress),
    Point::Hook(Hook::TcFrom),
    Point::Hook(Hook::TcTo),
    Point::SockDestroy,
];

const KNOWN_BY: [KnownBy; 4] = [KnownBy::Socket, KnownBy::Address, KnownBy::World, KnownBy::Host];

fn end(field: &'static str, endpoint: &Endpoint<'_>, id: IdentityId) -> Result<End, InvalidLine> {
    let addr = optional(endpoint.ip.as_deref(), |text| text.parse::<IpAddr>().map_err(|_| invalid(field, text)))?;
    Ok(End {
        addr,
        port: endpoint.port,
        id,
        service: endpoint.svc_name.as_ref().map(ToString::to_string),
        // An end without any name is written with its number.
        spiffe: endpoint.uid.as_ref().filter(|uid| **uid != identity(id.0)).map(ToString::to_string),
        place: endpoint.name.as_ref().map(ToString::to_string),
        container: endpoint.container.as_ref().map(|container| container.uid.to_string()),
    })
}

fn process(actor: &FlowActor<'_>) -> Result<Process, InvalidLine> {
    let process = &actor.process;
    let uid = &process.user.uid;
    Ok(Process {
        pid: process.pid,
        uid: uid.parse().map_err(|_| invalid("actor.process.user.uid", uid))?,
        comm: process.name.to_string(),
        exe: process.path.as_ref().map(ToString::to_string),
        start: process.created_time.map(UnixMillis),
    })
}

fn optional<T, U>(value: Option<T>, read: impl FnOnce(T) -> Result<U, InvalidLine>) -> Result<Option<U>, InvalidLine> {
    value.map(read).transpose()
}

/// Returns the value that is written as `text`.
fn named<T: Copy>(
    field: &'static str,
    text: &str,
    all: impl IntoIterator<Item = T>,
    name: impl Fn(T) -> &'static str,
) -> Result<T, InvalidLine> {
    all.into_iter().find(|&value| name(value) == text).ok_or_else(|| invalid(field, text))
}

fn uuid(field: &'static str, text: &str) -> Result<Uuid, InvalidLine> {
    Uuid::parse_str(text).map_err(|_| invalid(field, text))
}

fn hex(field: &'static str, text: &str) -> Result<u64, InvalidLine> {
    let digits = text.strip_prefix("0x").ok_or_else(|| invalid(field, text))?;
    u64::from_str_radix(digits, 16).map_err(|_| invalid(field, text))
}

fn invalid(field: &'static str, value: &str) -> InvalidLine {
    InvalidLine::Field { field, value: value.to_owned() }
}
