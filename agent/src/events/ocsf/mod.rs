//! The native format: one record is one line of OCSF 1.8 JSON.
//!
//! - [`write_line`] is the only way a record becomes bytes.
//! - A line of a denial is lossless: [`parse`] gives back the event.
//! - A line has at most [`LINE_BYTES_MAX`] bytes: the longest names are cut first.
//!
//! Source: events.md, section 4.

mod control;
mod finding;
mod fit;
mod flow;
#[cfg(test)]
mod golden;
mod parse;
mod wire;

pub use parse::{InvalidLine, Parsed, parse};

use super::record::{Record, UnixMillis};
use wire::{Device, Feature, Metadata, Product};

/// Version of the schema. The fields in use are valid from 1.5.0 on.
pub const OCSF_VERSION: &str = "1.8.0";
/// Version of `unmapped.eastwall`.
pub const SCHEMA: u8 = 1;
/// Longest line, without its newline: container runtimes split longer ones.
pub const LINE_BYTES_MAX: usize = 16_384;

/// Where the records come from: the same for every line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Node {
    /// Host name.
    pub hostname: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// `/proc/sys/kernel/random/boot_id`: the scope of the sequence.
    pub boot_id: String,
    /// Cluster or fleet, from agent.yaml.
    pub tenant: Option<String>,
    /// Version of the agent.
    pub version: String,
}

/// What the writer adds to a record.
#[derive(Clone, Copy, Debug)]
pub struct Stamp<'a> {
    /// The node.
    pub node: &'a Node,
    /// Number of the record in this boot, from 1.
    pub sequence: u64,
    /// When it is written.
    pub logged: UnixMillis,
}

/// Appends the line of `record` and a newline to `buffer`.
///
/// # Errors
///
/// What serde_json says; `buffer` is then as it was. The caller counts the record lost at `encode`.
pub fn write_line(buffer: &mut Vec<u8>, record: &Record, stamp: &Stamp<'_>) -> serde_json::Result<()> {
    let before = buffer.len();
    let written = match record {
        Record::Deny(event) => fit::write_fitting(buffer, event, stamp),
        Record::Folded(event) => flow::write_folded(buffer, event, stamp),
        Record::Loss(event) => control::write_loss(buffer, event, stamp),
        Record::Accounting(event) => control::write_accounting(buffer, event, stamp),
        Record::Policy(event) => control::write_policy(buffer, event, stamp),
        Record::Tamper(event) => finding::write_tamper(buffer, event, stamp),
        Record::Lifecycle(event) => control::write_lifecycle(buffer, event, stamp),
    };
    match written {
        Ok(()) => buffer.push(b'\n'),
        Err(_) => buffer.truncate(before),
    }
    written
}

/// Returns `metadata` without the fields that only flows have.
fn metadata<'a>(
    stamp: &Stamp<'a>,
    uid: uuid::Uuid,
    code: &'static str,
    feature: &'static str,
    profiles: &[&'static str],
) -> Metadata<'a> {
    Metadata {
        version: OCSF_VERSION.into(),
        uid: uid.to_string().into(),
        sequence: stamp.sequence,
        event_code: code.into(),
        profiles: profiles.iter().map(|&profile| profile.into()).collect(),
        product: Product {
            name: "eastwall".into(),
            vendor_name: "eastwall".into(),
            version: stamp.node.version.as_str().into(),
            feature: Feature { name: feature.into() },
        },
        log_name: "eastwall".into(),
        log_provider: "eastwall".into(),
        logged_time: stamp.logged.0,
        tenant_uid: stamp.node.tenant.as_deref().map(Into::into),
        correlation_uid: None,
    }
}

fn device(node: &Node) -> Device<'_> {
    Device {
        hostname: node.hostname.as_str().into(),
        uid: node.machine_id.as_str().into(),
        type_id: 1,
        kind: "Server".into(),
        boot_uid: node.boot_id.as_str().into(),
    }
}

const fn severity_name(id: u8) -> &'static str {
    match id {
        1 => "Informational",
        2 => "Low",
        3 => "Medium",
        4 => "High",
        _ => "Critical",
    }
}

const fn status_name(id: u8) -> &'static str {
    if id == 1 { "Success" } else { "Failure" }
}
