//! The sentences in a record. All of them follow from its fields, so none is read back.

use agent_common::{flow::proto, id::IdentityId, verdict::Reason};

use super::record::{
    AccountingEvent, DenyEvent, End, FoldedEvent, ForeignProgram, Kind, LifecycleEvent, LossEvent, Outcome, Owner,
    Phase, PolicyChange, PolicyEvent, RuleKind, TamperEvent,
};

/// Returns the word of the policy language for a protocol on the wire.
#[must_use]
pub fn proto_word(number: u8) -> String {
    match number {
        proto::ICMP | proto::ICMPV6 => "icmp".to_owned(),
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::SCTP => "sctp".to_owned(),
        proto::UDPLITE => "udplite".to_owned(),
        other => format!("proto-{other}"),
    }
}

/// Returns what was called: `tcp/5432`, `icmp/echo`, `icmp/3`, or the protocol alone.
#[must_use]
pub fn port_word(event: &DenyEvent) -> String {
    let word = proto_word(event.proto);
    match (event.target.port, event.icmp) {
        (Some(port), _) => format!("{word}/{port}"),
        (None, Some((8, _))) if event.proto == proto::ICMP => format!("{word}/echo"),
        (None, Some((128, _))) if event.proto == proto::ICMPV6 => format!("{word}/echo"),
        (None, Some((kind, _))) => format!("{word}/{kind}"),
        (None, None) => word,
    }
}

/// Returns the shortest name of an end: its service, else its address, else its number.
#[must_use]
pub fn who(end: &End) -> String {
    match (&end.service, end.addr) {
        (Some(service), _) => service.clone(),
        (None, Some(addr)) => addr.to_string(),
        (None, None) => identity_word(end.id),
    }
}

/// Returns an identity without a name.
fn identity_word(id: IdentityId) -> String {
    match id {
        IdentityId::ANY => "any".to_owned(),
        IdentityId::UNKNOWN => "unknown".to_owned(),
        IdentityId::WORLD => "world".to_owned(),
        IdentityId(number) => format!("{number:#018x}"),
    }
}

/// `denied tcp web 10.244.1.23:51734 -> payments-db 10.244.2.17:5432: no-rule`
#[must_use]
pub fn message(event: &DenyEvent) -> String {
    let verb = verb(event.outcome);
    let (proto, source, target) = (proto_word(event.proto), end_words(&event.source), end_words(&event.target));
    let reason = event.reason.name();
    let tail = match event.kind {
        Kind::First => String::new(),
        Kind::Repeat { window_ms } => format!(" x{} in {}s", event.count, window_ms / 1000),
        Kind::Cut if event.rule_ref.kind == RuleKind::Default => String::new(),
        Kind::Cut => format!(" by {}", event.rule_ref.id),
    };
    format!("{verb} {proto} {source} -> {target}: {reason}{tail}")
}

const fn verb(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Denied => "denied",
        Outcome::WouldDeny => "would deny",
        Outcome::Cut => "cut",
    }
}

fn end_words(end: &End) -> String {
    let place = match (end.addr, end.port) {
        (Some(addr), Some(port)) => Some(std::net::SocketAddr::new(addr, port).to_string()),
        (Some(addr), None) => Some(addr.to_string()),
        (None, Some(port)) => Some(format!("port {port}")),
        (None, None) => None,
    };
    match (&end.service, place) {
        (Some(service), Some(place)) => format!("{service} {place}"),
        (Some(service), None) => service.clone(),
        (None, Some(place)) => place,
        (None, None) => identity_word(end.id),
    }
}

/// Returns the reason as a sentence, with the rule that was missing or matched.
#[must_use]
pub fn detail(event: &DenyEvent) -> String {
    let (from, to, port) = (who(&event.source), who(&event.target), port_word(event));
    let rule = &event.rule_ref;
    match event.reason {
        Reason::Revoked => match rule.kind {
            RuleKind::OverrideDeny => format!("live flow cut: override {} denies {from} -> {to}", rule.id),
            RuleKind::Deny => format!("live flow cut: rule {} denies {from} -> {to}", rule.id),
            RuleKind::Default | RuleKind::Allow | RuleKind::OverrideAllow | RuleKind::Builtin | RuleKind::Error => {
                format!("live flow cut: no allow rule from {from} to {to} {port}")
            }
        },
        Reason::Allowed => format!("allowed from {from} to {to} {port}"),
        Reason::NoRule => format!("default deny: no allow rule from {from} to {to} {port}"),
        Reason::DenyRule => format!("rule {} denies {from} -> {to} {port}", rule.id),
        Reason::OverrideDeny => format!("override {} denies {from} -> {to}", rule.id),
        Reason::Expired => format!("the allow rule from {from} to {to} {port} has expired"),
        Reason::UnknownSelf => "this end has no identity yet, so no rule matches it".to_owned(),
        Reason::UnknownCaller => format!("the caller {from} has no identity, so no rule matches it"),
        Reason::UnknownTarget => format!("the target {to} has no identity, so no rule matches it"),
        Reason::TaskMismatch => match event.task {
            Some(task) => format!("the acting task is {}, which may not call {to} {port}", identity_word(task)),
            None => format!("the acting task is another workload, which may not call {to} {port}"),
        },
        Reason::NoFlow => format!("a reply from {from} to {to} {port} without a request"),
        Reason::Protocol => format!("no rule can name protocol {}", event.proto),
        Reason::Fragment => "a fragment that does not follow one that passed".to_owned(),
        Reason::Malformed => "headers that cannot be read to their end".to_owned(),
        Reason::SpoofedSource => "the source is not an address or port of the sender".to_owned(),
        Reason::LinkProtocol => "a frame with a VLAN tag, or of a protocol that is not IP".to_owned(),
        Reason::DeviceMismatch => "the frame came by the device of another workload than its socket's".to_owned(),
        Reason::Bypass => "a socket option by which frames leave past the programs at the host's devices".to_owned(),
        Reason::Internal => "a table was full or something was missing on our side".to_owned(),
    }
}

/// `denied 64210 more egress attempts of web in 10s (folded)`
#[must_use]
pub fn folded_message(event: &FoldedEvent) -> String {
    let who = match &event.local {
        Owner::Identity { service: Some(service), .. } => service.clone(),
        Owner::Identity { id, .. } => identity_word(*id),
        Owner::Cgroup(id) => format!("cgroup {id:#x}"),
    };
    let seconds = (event.last.0.saturating_sub(event.time.0) + 500) / 1000;
    let verb = verb(event.outcome);
    format!("{verb} {} more {} attempts of {who} in {seconds}s (folded)", event.count, event.direction.name())
}

/// `37 records (52 denials) lost at write: sequence 48264 to 48300`
#[must_use]
pub fn loss_message(event: &LossEvent) -> String {
    let stage = event.stage.name();
    match (event.stage.counts_records(), event.sequences) {
        (true, Some((first, last))) => {
            format!("{} records ({} denials) lost at {stage}: sequence {first} to {last}", event.records, event.denials)
        }
        (true, None) => format!("{} records ({} denials) lost at {stage}", event.records, event.denials),
        (false, _) => format!("{} denials lost at {stage}: counted by the kernel, no details", event.denials),
    }
}

/// `denials since boot: 65566 = 92 listed + 6 repeated + 64210 folded + 2 settled + 1256 lost + 0 pending`
#[must_use]
pub fn accounting_message(event: &AccountingEvent) -> String {
    let AccountingEvent { denied, listed, repeated, folded, settled, lost, pending, .. } = event;
    let lost = lost.total();
    format!(
        "denials since boot: {denied} = {listed} listed + {repeated} repeated + {folded} folded + {settled} settled + {lost} lost + \
         {pending} pending"
    )
}

/// `policy epoch 42 applied: 1 edge closed, 0 opened, 3 live flows cut`
#[must_use]
pub fn policy_message(event: &PolicyEvent) -> String {
    let epoch = event.epoch.map_or_else(|| "none".to_owned(), |epoch| epoch.0.to_string());
    match &event.change {
        PolicyChange::Refused { error, .. } => {
            format!("policy refused, epoch {epoch} stays in force: {error}")
        }
        PolicyChange::Applied { .. } | PolicyChange::OverrideStarted(_) | PolicyChange::OverrideEnded(_) => {
            let (closed, cut) = (event.edges_closed, event.flows_cut);
            let (edges, flows) = (plural(closed, "edge", "edges"), plural(cut, "live flow", "live flows"));
            format!(
                "policy epoch {epoch} applied: {closed} {edges} closed, {} opened, {cut} {flows} cut",
                event.edges_opened
            )
        }
    }
}

/// `ew_tc_from at to-web was detached; put back at most 212 ms later`
#[must_use]
pub fn tamper_message(event: &TamperEvent) -> String {
    let place = match &event.device {
        Some(device) => {
            let index = || format!("device {}", device.index);
            format!(" at {}", device.name.clone().unwrap_or_else(index))
        }
        None => String::new(),
    };
    let by: Vec<String> = event.programs.iter().map(program_words).collect();
    let by = if by.is_empty() { String::new() } else { format!(" by {}", by.join(", ")) };
    let end = match (&event.error, event.last_good) {
        (None, Some(good)) => format!("put back at most {} ms later", event.time.0.saturating_sub(good.0)),
        (None, None) => "put back; nobody knows since when it was so".to_owned(),
        (Some(error), _) => format!("NOT put back, tried again: {error}"),
    };
    format!("{}{place} was {}{by}; {end}", event.object, event.act)
}

/// `the program 512 `other` (tag 57cd311f2e27366b, loaded by user 0)`
#[must_use]
pub fn program_words(program: &ForeignProgram) -> String {
    let ForeignProgram { id, name, tag, loaded_by } = program;
    let name = if name.is_empty() { "without a name".to_owned() } else { format!("`{name}`") };
    format!("the program {id} {name} (tag {tag}, loaded by user {loaded_by})")
}

/// Returns what an act of tampering means, as a sentence.
#[must_use]
pub fn tamper_detail(event: &TamperEvent) -> String {
    match event.act {
        "detached" => "the link of a program of eastwall was detached: it did not run",
        "replaced" => "another program was put under a link of eastwall: it ran instead",
        "overtaken" => "another program was put before that of eastwall, which does not run if that one lets pass",
        "unpinned" => {
            "the pin of an object of eastwall is gone or another's: it is in force as long as the agent lives"
        }
        "unmounted" => "the bpffs with the pins of eastwall is not mounted: all is in force as long as the agent lives",
        _ => "a map of eastwall says something else than was written to it",
    }
    .to_owned()
}

/// `eastwall 0.1.0 started: adopted 9 pinned links, epoch 41, no gap`
#[must_use]
pub fn lifecycle_message(event: &LifecycleEvent, version: &str) -> String {
    let epoch = event.epoch.map_or_else(|| "no epoch".to_owned(), |epoch| format!("epoch {}", epoch.0));
    let links = event.links;
    match &event.phase {
        Phase::Started { adopted: true, .. } => {
            format!("eastwall {version} started: adopted {links} pinned links, {epoch}, no gap")
        }
        Phase::Started { adopted: false, .. } => format!("eastwall {version} started: attached {links} links, {epoch}"),
        Phase::Relieved { dropped: (sent, received) } => format!(
            "eastwall {version} took the boot guard off, {epoch}: it had dropped {sent} packets to send and {received} to receive"
        ),
        Phase::Stopped => format!("eastwall {version} stopped: {links} links stay attached, {epoch}"),
        Phase::Upgraded { from } => format!("eastwall {version} took over from {from}: {links} links, {epoch}"),
    }
}

const fn plural(n: u64, one: &'static str, many: &'static str) -> &'static str {
    if n == 1 { one } else { many }
}
