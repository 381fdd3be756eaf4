//! What was found and should not be: class 2004.

use serde::Serialize;

use super::{
    SCHEMA, Stamp,
    control::{Class, Kind, head},
    device,
    wire::{Device, Head, Text, Unmapped},
};
use crate::events::{
    record::{ForeignProgram, TamperEvent, TamperedDevice},
    words,
};

const FINDING: Class = Class { category_uid: 2, category: "Findings", uid: 2004, name: "Detection Finding" };

/// Class 2004.
#[derive(Serialize)]
struct Finding<'a> {
    #[serde(flatten)]
    head: Head<'a>,
    is_alert: bool,
    message: String,
    finding_info: Info,
    device: Device<'a>,
    count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    start_time: Option<u64>,
    end_time: u64,
    unmapped: Unmapped<TamperRest<'a>>,
}

#[derive(Serialize)]
struct Info {
    uid: String,
    title: &'static str,
    desc: String,
    types: [&'static str; 1],
    created_time: u64,
    first_seen_time: u64,
    last_seen_time: u64,
}

#[derive(Serialize)]
struct TamperRest<'a> {
    schema: u8,
    kind: &'static str,
    act: &'static str,
    object: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ifindex: Option<u32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    programs: Vec<ProgramRest<'a>>,
    repaired: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    unguarded_ms_max: Option<u64>,
}

#[derive(Serialize)]
struct ProgramRest<'a> {
    id: u32,
    name: Text<'a>,
    tag: &'a str,
    loaded_by: u32,
}

impl<'a> ProgramRest<'a> {
    fn of(program: &'a ForeignProgram) -> Self {
        let ForeignProgram { id, name, tag, loaded_by } = program;
        Self { id: *id, name: name.as_str().into(), tag, loaded_by: *loaded_by }
    }
}

/// Appends an act of tampering, without a newline.
pub fn write_tamper(buffer: &mut Vec<u8>, event: &TamperEvent, stamp: &Stamp<'_>) -> serde_json::Result<()> {
    let TamperEvent { uid, time, act, object, device: at, programs, last_good, error } = event;
    let kind = Kind {
        code: "tamper",
        feature: "agent",
        class: &FINDING,
        activity_id: 1,
        activity: "Create",
        of_type: "Create",
        severity_id: if error.is_some() { 5 } else { 4 },
        // A finding is new or resolved, and no success.
        status_id: if error.is_some() { 1 } else { 4 },
    };
    let rest = TamperRest {
        schema: SCHEMA,
        kind: "tamper",
        act,
        object,
        device: at.as_ref().and_then(|device| device.name.as_deref()).map(Into::into),
        ifindex: at.as_ref().map(|device| device.index),
        programs: programs.iter().map(ProgramRest::of).collect(),
        repaired: error.is_none(),
        unguarded_ms_max: last_good.map(|last_good| time.0.saturating_sub(last_good.0)),
    };
    let place = at.as_ref().map(|TamperedDevice { index, .. }| format!(":{index}")).unwrap_or_default();
    let line = Finding {
        head: Head {
            status: if error.is_some() { "New" } else { "Resolved" }.into(),
            status_code: Some((*act).into()),
            status_detail: error.as_deref().map(Into::into),
            ..head(&kind, *uid, *time, stamp)
        },
        is_alert: true,
        message: words::tamper_message(event),
        finding_info: Info {
            uid: format!("tamper:{object}{place}:{act}:{}", time.0),
            title: "The kernel side was tampered with",
            desc: words::tamper_detail(event),
            types: ["tampering"],
            created_time: time.0,
            first_seen_time: time.0,
            last_seen_time: time.0,
        },
        device: device(stamp.node),
        count: 1,
        start_time: last_good.map(|last_good| last_good.0),
        end_time: time.0,
        unmapped: Unmapped { eastwall: rest },
    };
    serde_json::to_writer(buffer, &line)
}
