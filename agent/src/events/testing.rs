//! Values for the tests of this room: the flow of the sample records.

use std::sync::Arc;

use agent_common::{
    flow::Direction,
    id::{Epoch, IdentityId},
    layout::{DenyRecord, Hook, KnownBy, LAYOUT_VERSION, record_flags},
    verdict::Reason,
};
use uuid::Uuid;
use zerocopy::IntoBytes as _;

use super::{
    decode::decode,
    enrich::Enrich,
    ocsf::Node,
    record::{DenyEvent, Now, PolicyRef, RuleKind, RuleRef, UnixMillis},
    snapshot::{Name, Snapshot, Snapshots},
};

pub const WEB: IdentityId = IdentityId(0x0021_97f5_a4ca_2450);
pub const PAYMENTS_DB: IdentityId = IdentityId(0x381e_9e96_e270_f5f5);
pub const EXTERNAL: IdentityId = IdentityId(0x1234_5678_9abc_def0);

/// The moment at which `record` was stamped.
pub fn now() -> Now {
    Now { wall: UnixMillis(1_795_327_402_123), boot_ns: 7_402_123_456_789 }
}

/// `web` at the door of `payments-db`.
pub fn record() -> DenyRecord {
    DenyRecord {
        version: u8::try_from(LAYOUT_VERSION).unwrap(),
        hook: Hook::Ingress as u8,
        direction: Direction::Ingress as u8,
        mode: 0,
        reason: Reason::NoRule as u8,
        flags: record_flags::LOCAL_ADDR | record_flags::LOCAL_PORT,
        proto: 6,
        tcp_flags: 2,
        icmp: [0; 2],
        known_by: KnownBy::Address as u8,
        reserved: 0,
        epoch: 41,
        rule: 0,
        ifindex: 4,
        boot_ns: now().boot_ns,
        local_id: PAYMENTS_DB.0,
        peer_id: WEB.0,
        task_id: 0,
        cgroup: 0x2a41,
        cookie: 0x1f2a,
        netns: 0xf000_0098,
        local_addr: mapped([10, 244, 2, 17]),
        peer_addr: mapped([10, 244, 1, 23]),
        local_port: 5432,
        peer_port: 51734,
        pid: 0,
        uid: 0,
        bytes: 60,
        comm: [0; 16],
    }
}

pub fn mapped(v4: [u8; 4]) -> [u8; 16] {
    std::net::Ipv4Addr::from(v4).to_ipv6_mapped().octets()
}

pub fn snapshots() -> Snapshots {
    let name = |short: &str, is_external| Name {
        short: short.to_owned(),
        spiffe: Some(format!("spiffe://shop.example.com/{short}")),
        is_external,
    };
    let snapshot = Snapshot {
        epoch: Epoch(41),
        policy: Some(PolicyRef { name: "shop".to_owned(), hash: "sha256:9f31c2d07ab84e15".to_owned() }),
        names: [(WEB, name("web", false)), (PAYMENTS_DB, name("payments-db", false)), (EXTERNAL, name("bank", true))]
            .into(),
        rules: vec![RuleRef {
            id: "no-web".to_owned(),
            title: Some("deny web -> payments-db".to_owned()),
            kind: RuleKind::Deny,
        }],
        nearest: None,
    };
    let mut snapshots = Snapshots::default();
    snapshots.install(Arc::new(snapshot));
    snapshots
}

pub fn node() -> Node {
    Node {
        hostname: "node-a".to_owned(),
        machine_id: "9c0f2b5e8d2c4f7c9f4a6b1d0e3c5a77".to_owned(),
        boot_id: "1c7c0f3e-0b5f-4b9d-9d0e-7d6f5e4c3b2a".to_owned(),
        tenant: Some("prod-eu1".to_owned()),
        version: "0.1.0".to_owned(),
    }
}

/// The event of [`record`], with the names of the sample.
pub fn event() -> DenyEvent {
    let enrich = Enrich { now: now(), snapshots: &snapshots(), community_id_seed: 0 };
    let event = enrich.denial(&decode(record().as_bytes()).unwrap(), None);
    let uid = Uuid::parse_str("01a201da-2093-7a10-9c54-2f7f3a1b5d01").unwrap();
    DenyEvent { uid, series: uid, ..event }
}
