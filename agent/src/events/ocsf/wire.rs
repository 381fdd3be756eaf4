//! The fields of OCSF 1.8 that eastwall writes, in the order in which they stand on disk.
//!
//! `time` and `metadata` come first: collectors fingerprint the first bytes of a file, and equal
//! heads would collide. An absent value is an absent field.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// A string that is borrowed to be written and owned once read.
pub type Text<'a> = Cow<'a, str>;

/// Class 4001, Network Activity.
#[derive(Debug, Deserialize, Serialize)]
pub struct Flow<'a> {
    pub time: u64,
    pub metadata: Metadata<'a>,
    pub activity_id: u8,
    pub activity_name: Text<'a>,
    pub category_uid: u8,
    pub category_name: Text<'a>,
    pub class_uid: u32,
    pub class_name: Text<'a>,
    pub type_uid: u32,
    pub type_name: Text<'a>,
    pub severity_id: u8,
    pub severity: Text<'a>,
    pub status_id: u8,
    pub status: Text<'a>,
    pub status_code: Text<'a>,
    pub status_detail: Text<'a>,
    pub action_id: u8,
    pub action: Text<'a>,
    pub disposition_id: u8,
    pub disposition: Text<'a>,
    pub is_alert: bool,
    pub message: Text<'a>,
    pub firewall_rule: FirewallRule<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy<'a>>,
    pub connection_info: Connection<'a>,
    pub src_endpoint: Endpoint<'a>,
    pub dst_endpoint: Endpoint<'a>,
    pub device: Device<'a>,
    pub traffic: Traffic,
    pub count: u64,
    pub start_time: u64,
    pub end_time: u64,
    pub duration: u64,
    pub observables: Vec<Observable<'a>>,
    pub unmapped: Unmapped<FlowRest<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actor: Option<FlowActor<'a>>,
}

/// Who wrote the record, and its place in the stream.
#[derive(Debug, Deserialize, Serialize)]
pub struct Metadata<'a> {
    pub version: Text<'a>,
    pub uid: Text<'a>,
    pub sequence: u64,
    pub event_code: Text<'a>,
    pub profiles: Vec<Text<'a>>,
    pub product: Product<'a>,
    pub log_name: Text<'a>,
    pub log_provider: Text<'a>,
    pub logged_time: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_uid: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlation_uid: Option<Text<'a>>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Product<'a> {
    pub name: Text<'a>,
    pub vendor_name: Text<'a>,
    pub version: Text<'a>,
    pub feature: Feature<'a>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Feature<'a> {
    pub name: Text<'a>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct FirewallRule<'a> {
    pub uid: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text<'a>>,
    #[serde(rename = "type")]
    pub kind: Text<'a>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Policy<'a> {
    pub name: Text<'a>,
    pub uid: Text<'a>,
    pub version: Text<'a>,
    pub is_applied: bool,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Connection<'a> {
    pub direction_id: u8,
    pub direction: Text<'a>,
    pub boundary_id: u8,
    pub boundary: Text<'a>,
    pub protocol_num: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_name: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_ver_id: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol_ver: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub community_uid: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<Text<'a>>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Endpoint<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ip: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub svc_name: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub type_id: Option<u8>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<Container<'a>>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Container<'a> {
    pub uid: Text<'a>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Device<'a> {
    pub hostname: Text<'a>,
    pub uid: Text<'a>,
    pub type_id: u8,
    #[serde(rename = "type")]
    pub kind: Text<'a>,
    pub boot_uid: Text<'a>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packets_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_out: Option<u64>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct Observable<'a> {
    pub name: Text<'a>,
    #[serde(rename = "type")]
    pub kind: Text<'a>,
    pub type_id: u8,
    pub value: Text<'a>,
}

/// Where OCSF has no field.
#[derive(Debug, Deserialize, Serialize)]
pub struct Unmapped<T> {
    pub eastwall: T,
}

/// What makes the line of a denial lossless.
#[derive(Debug, Deserialize, Serialize)]
pub struct FlowRest<'a> {
    pub schema: u8,
    pub kind: Text<'a>,
    pub verdict: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<Text<'a>>,
    pub direction: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hook: Option<Text<'a>>,
    pub answer: Text<'a>,
    pub reason: u8,
    pub rule: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u32>,
    pub local_id: Text<'a>,
    pub peer_id: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_id: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<Text<'a>>,
    pub ifindex: u32,
    pub boot_ns: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_known_by: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub window_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_id: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icmp: Option<(u8, u8)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nearest: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_path: Option<Text<'a>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub truncated: Vec<Text<'a>>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct FlowActor<'a> {
    pub process: FlowProcess<'a>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct FlowProcess<'a> {
    pub pid: u32,
    pub name: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_time: Option<u64>,
    pub user: FlowUser<'a>,
}

#[derive(Debug, Deserialize, Serialize)]
pub struct FlowUser<'a> {
    pub uid: Text<'a>,
}

/// The head that records about eastwall itself share.
#[derive(Debug, Serialize)]
pub struct Head<'a> {
    pub time: u64,
    pub metadata: Metadata<'a>,
    pub activity_id: u8,
    pub activity_name: Text<'a>,
    pub category_uid: u8,
    pub category_name: Text<'a>,
    pub class_uid: u32,
    pub class_name: Text<'a>,
    pub type_uid: u32,
    pub type_name: Text<'a>,
    pub severity_id: u8,
    pub severity: Text<'a>,
    pub status_id: u8,
    pub status: Text<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_code: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_detail: Option<Text<'a>>,
}
