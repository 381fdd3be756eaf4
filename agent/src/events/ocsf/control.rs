//! Records about eastwall itself: classes 1008, 3004 and 6002.

use serde::Serialize;

use super::{
    SCHEMA, Stamp, device, metadata, severity_name, status_name,
    wire::{Device, Head, Text, Unmapped},
};
use crate::events::{
    record::{
        AccountingEvent, Actor, LifecycleEvent, LossEvent, Lost, OverrideData, Phase, PolicyChange, PolicyEvent,
        RecordsLost, UnixMillis,
    },
    words,
};

/// A class of the schema: category, class, their captions.
pub(super) struct Class {
    pub(super) category_uid: u8,
    pub(super) category: &'static str,
    pub(super) uid: u32,
    pub(super) name: &'static str,
}

const EVENT_LOG: Class = Class { category_uid: 1, category: "System Activity", uid: 1008, name: "Event Log Activity" };
const ENTITY: Class =
    Class { category_uid: 3, category: "Identity & Access Management", uid: 3004, name: "Entity Management" };
const LIFECYCLE: Class =
    Class { category_uid: 6, category: "Application Activity", uid: 6002, name: "Application Lifecycle" };

/// What differs between the heads.
pub(super) struct Kind {
    pub(super) code: &'static str,
    pub(super) feature: &'static str,
    pub(super) class: &'static Class,
    pub(super) activity_id: u8,
    pub(super) activity: &'static str,
    /// Caption of the activity within the type; differs for activities that the schema calls "Other".
    pub(super) of_type: &'static str,
    pub(super) severity_id: u8,
    pub(super) status_id: u8,
}

pub(super) fn head<'a>(kind: &Kind, uid: uuid::Uuid, time: UnixMillis, stamp: &Stamp<'a>) -> Head<'a> {
    let class = kind.class;
    Head {
        time: time.0,
        metadata: metadata(stamp, uid, kind.code, kind.feature, &["host"]),
        activity_id: kind.activity_id,
        activity_name: kind.activity.into(),
        category_uid: class.category_uid,
        category_name: class.category.into(),
        class_uid: class.uid,
        class_name: class.name.into(),
        type_uid: class.uid * 100 + u32::from(kind.activity_id),
        type_name: format!("{}: {}", class.name, kind.of_type).into(),
        severity_id: kind.severity_id,
        severity: severity_name(kind.severity_id).into(),
        status_id: kind.status_id,
        status: status_name(kind.status_id).into(),
        status_code: None,
        status_detail: None,
    }
}

/// Class 1008: something happened to the log itself.
#[derive(Serialize)]
struct EventLog<'a, T> {
    #[serde(flatten)]
    head: Head<'a>,
    message: String,
    log_name: &'static str,
    log_provider: &'static str,
    log_type_id: u8,
    log_type: &'static str,
    device: Device<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    end_time: Option<u64>,
    unmapped: Unmapped<T>,
}

impl<'a, T> EventLog<'a, T> {
    fn new(head: Head<'a>, message: String, stamp: &Stamp<'a>, rest: T) -> Self {
        Self {
            head,
            message,
            log_name: "eastwall",
            log_provider: "eastwall",
            log_type_id: 2,
            log_type: "Application",
            device: device(stamp.node),
            count: None,
            start_time: None,
            end_time: None,
            unmapped: Unmapped { eastwall: rest },
        }
    }
}

#[derive(Serialize)]
struct LossRest {
    schema: u8,
    kind: &'static str,
    stage: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    records: Option<u64>,
    denials: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_sequence: Option<u64>,
}

/// Appends a loss, without a newline.
pub fn write_loss(buffer: &mut Vec<u8>, event: &LossEvent, stamp: &Stamp<'_>) -> serde_json::Result<()> {
    let kind = Kind {
        code: "loss",
        feature: "events",
        class: &EVENT_LOG,
        activity_id: 99,
        activity: "Events Lost",
        of_type: "Other",
        severity_id: 4,
        status_id: 2,
    };
    let records = event.stage.counts_records().then_some(event.records);
    let rest = LossRest {
        schema: SCHEMA,
        kind: "loss",
        stage: event.stage.name(),
        records,
        denials: event.denials,
        first_sequence: event.sequences.map(|(first, _)| first),
        last_sequence: event.sequences.map(|(_, last)| last),
    };
    let head = Head {
        status_code: Some(event.stage.name().into()),
        status_detail: Some(event.detail.as_deref().unwrap_or(event.stage.detail()).into()),
        ..head(&kind, event.uid, event.time, stamp)
    };
    let line = EventLog {
        count: Some(records.unwrap_or(event.denials)),
        start_time: Some(event.start.0),
        end_time: Some(event.end.0),
        ..EventLog::new(head, words::loss_message(event), stamp, rest)
    };
    serde_json::to_writer(buffer, &line)
}

#[derive(Serialize)]
struct AccountingRest {
    schema: u8,
    kind: &'static str,
    denied: u64,
    listed: u64,
    repeated: u64,
    folded: u64,
    settled: u64,
    lost: Lost,
    pending: u64,
    records_lost: RecordsLost,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u32>,
}

/// Appends the sums, without a newline.
pub fn write_accounting(buffer: &mut Vec<u8>, event: &AccountingEvent, stamp: &Stamp<'_>) -> serde_json::Result<()> {
    let kind = Kind {
        code: "accounting",
        feature: "events",
        class: &EVENT_LOG,
        activity_id: 99,
        activity: "Accounting",
        of_type: "Other",
        severity_id: 1,
        status_id: 1,
    };
    let &AccountingEvent { uid, time, denied, listed, repeated, folded, settled, lost, pending, records_lost, epoch } =
        event;
    let epoch = epoch.map(|epoch| epoch.0);
    let (schema, name) = (SCHEMA, "accounting");
    let rest = AccountingRest {
        schema,
        kind: name,
        denied,
        listed,
        repeated,
        folded,
        settled,
        lost,
        pending,
        records_lost,
        epoch,
    };
    let line = EventLog::new(head(&kind, uid, time, stamp), words::accounting_message(event), stamp, rest);
    serde_json::to_writer(buffer, &line)
}

/// Class 3004: a policy or an override changed.
#[derive(Serialize)]
struct Entity<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    comment: Option<&'a str>,
    entity: Managed<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<EntityActor<'a>>,
    device: Device<'a>,
    unmapped: Unmapped<PolicyRest<'a>>,
}

#[derive(Serialize)]
struct Managed<'a> {
    name: &'a str,
    type_id: u8,
    #[serde(rename = "type")]
    kind: &'static str,
    uid: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<ManagedData<'a>>,
}

#[derive(Serialize)]
struct ManagedData<'a> {
    action: &'a str,
    from: &'a str,
    to: &'a str,
    expires: &'a str,
}

#[derive(Serialize)]
struct EntityActor<'a> {
    user: EntityUser<'a>,
    process: EntityProcess<'a>,
}

#[derive(Serialize)]
struct EntityUser<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    uid: String,
}

#[derive(Serialize)]
struct EntityProcess<'a> {
    pid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
}

#[derive(Serialize)]
struct PolicyRest<'a> {
    schema: u8,
    kind: &'static str,
    change: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch_before: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u32>,
    set: &'a str,
    edges_opened: u64,
    edges_closed: u64,
    flows_cut: u64,
}

/// Appends a change of policy, without a newline.
pub fn write_policy(buffer: &mut Vec<u8>, event: &PolicyEvent, stamp: &Stamp<'_>) -> serde_json::Result<()> {
    let (name, uid, over) = match &event.change {
        PolicyChange::Applied { name } | PolicyChange::Refused { name, .. } => (name, &event.set, None),
        PolicyChange::OverrideStarted(data) | PolicyChange::OverrideEnded(data) => (&data.id, &data.id, Some(data)),
    };
    let (activity_id, activity) = match &event.change {
        PolicyChange::Applied { .. } if event.epoch_before.is_none() => (1, "Create"),
        PolicyChange::Applied { .. } | PolicyChange::Refused { .. } | PolicyChange::OverrideStarted(_) => (3, "Update"),
        PolicyChange::OverrideEnded(_) => (4, "Delete"),
    };
    let error = match &event.change {
        PolicyChange::Refused { error, .. } => Some(error.as_str()),
        PolicyChange::Applied { .. } | PolicyChange::OverrideStarted(_) | PolicyChange::OverrideEnded(_) => None,
    };
    let kind = Kind {
        code: "policy",
        feature: "policy",
        class: &ENTITY,
        activity_id,
        activity,
        of_type: activity,
        severity_id: if error.is_some() { 4 } else { 1 },
        status_id: if error.is_some() { 2 } else { 1 },
    };
    let line = Entity {
        head: Head { status_detail: error.map(Into::into), ..head(&kind, event.uid, event.time, stamp) },
        message: words::policy_message(event),
        comment: event.comment.as_deref(),
        entity: Managed {
            name,
            type_id: 5,
            kind: "Policy",
            uid,
            version: event.epoch.map(|epoch| epoch.0.to_string()),
            data: over.map(|OverrideData { id: _, action, from, to, expires }| ManagedData {
                action,
                from,
                to,
                expires,
            }),
        },
        actor: event.actor.as_ref().map(|Actor { user, uid, pid, process }| EntityActor {
            user: EntityUser { name: user.as_deref(), uid: uid.to_string() },
            process: EntityProcess { pid: *pid, name: process.as_deref() },
        }),
        device: device(stamp.node),
        unmapped: Unmapped {
            eastwall: PolicyRest {
                schema: SCHEMA,
                kind: "policy",
                change: event.change.name(),
                epoch_before: event.epoch_before.map(|epoch| epoch.0),
                epoch: event.epoch.map(|epoch| epoch.0),
                set: &event.set,
                edges_opened: event.edges_opened,
                edges_closed: event.edges_closed,
                flows_cut: event.flows_cut,
            },
        },
    };
    serde_json::to_writer(buffer, &line)
}

/// Class 6002: the agent itself.
#[derive(Serialize)]
struct Application<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    message: String,
    app: App<'a>,
    device: Device<'a>,
    unmapped: Unmapped<LifecycleRest<'a>>,
}

#[derive(Serialize)]
struct App<'a> {
    name: &'static str,
    vendor_name: &'static str,
    version: &'a str,
}

#[derive(Serialize)]
struct LifecycleRest<'a> {
    schema: u8,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    adopted: Option<bool>,
    links: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    epoch: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_boot_last_sequence: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_stop: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous_version: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    boot_guard: Option<BootGuardRest>,
}

#[derive(Serialize)]
struct BootGuardRest {
    packets_not_sent: u64,
    packets_not_received: u64,
}

/// Appends a start, a stop or a change of version, without a newline.
pub fn write_lifecycle(buffer: &mut Vec<u8>, event: &LifecycleEvent, stamp: &Stamp<'_>) -> serde_json::Result<()> {
    let mut rest = LifecycleRest {
        schema: SCHEMA,
        kind: "lifecycle",
        adopted: None,
        links: event.links,
        epoch: event.epoch.map(|epoch| epoch.0),
        previous_boot_last_sequence: None,
        previous_stop: None,
        previous_version: None,
        boot_guard: None,
    };
    let (activity_id, activity) = match &event.phase {
        Phase::Started { adopted, previous_boot_last_sequence, previous_stop_clean } => {
            rest.adopted = Some(*adopted);
            rest.previous_boot_last_sequence = *previous_boot_last_sequence;
            rest.previous_stop = previous_stop_clean.map(|clean| if clean { "clean" } else { "crash" });
            (3, "Start")
        }
        Phase::Relieved { dropped: (packets_not_sent, packets_not_received) } => {
            rest.boot_guard = Some(BootGuardRest {
                packets_not_sent: *packets_not_sent,
                packets_not_received: *packets_not_received,
            });
            (7, "Disable")
        }
        Phase::Stopped => (4, "Stop"),
        Phase::Upgraded { from } => {
            rest.previous_version = Some(from.as_str().into());
            (8, "Update")
        }
    };
    let kind = Kind {
        code: "lifecycle",
        feature: "agent",
        class: &LIFECYCLE,
        activity_id,
        activity,
        of_type: activity,
        severity_id: 1,
        status_id: 1,
    };
    let version = stamp.node.version.as_str();
    let line = Application {
        head: head(&kind, event.uid, event.time, stamp),
        message: words::lifecycle_message(event, version),
        app: App { name: "eastwall", vendor_name: "eastwall", version },
        device: device(stamp.node),
        unmapped: Unmapped { eastwall: rest },
    };
    serde_json::to_writer(buffer, &line)
}
