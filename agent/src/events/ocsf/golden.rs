//! The sample records of the design are what the code writes, byte for byte.
//!
//! What this build has no source for (namespace, pod, image, age of a peer, other sinks) is taken out
//! of the sample before it is compared; everything else must be equal, and in the same order.

use agent_common::{
    flow::Direction,
    id::{Epoch, IdentityId, RuleNumber},
    layout::{Hook, KnownBy},
    verdict::{Mode, Reason},
};
use proptest::prelude::*;
use uuid::Uuid;

use super::{Stamp, parse, write_line};
use crate::events::{
    record::*,
    testing::{self, PAYMENTS_DB, WEB},
};

const DOOR_CONTAINER: &str = "3b7a9c1d2e4f5a6b7c8d9e0f1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d";
const EXIT_CONTAINER: &str = "b41d07f3a95c2e86d1f4730b9ac85e62f7041d93b8ca5e2076fd14a93b0c8e57";

/// Parts of the samples that need Kubernetes or a feed of other nodes.
const ELSEWHERE: [&str; 6] = [
    r#","domain":"shop","instance_uid":"5d1b6b0e-4d2f-4b0b-9a3c-1a2b3c4d5e6f""#,
    r#","domain":"pay","instance_uid":"0c9e7a52-6f0d-4b5e-8a41-77c0a1d2b3e4""#,
    r#","name":"postgres","pod_uuid":"0c9e7a52-6f0d-4b5e-8a41-77c0a1d2b3e4","orchestrator":"kubernetes","image":{"name":"registry.example/pay/postgres","uid":"sha256:9f86d081884c7d65"}"#,
    r#","name":"web","pod_uuid":"5d1b6b0e-4d2f-4b0b-9a3c-1a2b3c4d5e6f","orchestrator":"kubernetes","image":{"name":"registry.example/shop/web","uid":"sha256:2c26b46b68ffc68f"}"#,
    r#","peer_age_ms":2100,"peer_stale":false"#,
    r#","peer_age_ms":340,"peer_stale":false"#,
];

fn check(sample: &str, without: &[&str], record: &Record, sequence: u64, logged_ms: u64) {
    let mut expected = sample.to_owned();
    for part in without {
        assert!(expected.contains(part), "the sample has no {part}");
        expected = expected.replace(part, "");
    }
    for part in ELSEWHERE {
        expected = expected.replace(part, "");
    }
    let node = match expected.contains(r#""hostname":"node-b""#) {
        false => testing::node(),
        true => super::Node {
            hostname: "node-b".into(),
            machine_id: "2b7f41c09a6e4d13b5c8e7f0a1d2c3b4".into(),
            boot_id: "7e2d9c14-5a3b-4f60-8c71-b0a9d8e7f6c5".into(),
            ..testing::node()
        },
    };
    let mut line = Vec::new();
    write_line(&mut line, record, &Stamp { node: &node, sequence, logged: UnixMillis(logged_ms) }).unwrap();
    let line = String::from_utf8(line).unwrap();
    assert_eq!(line, expected);
    if let Record::Deny(event) = record {
        assert_eq!(&parse(line.as_bytes()).unwrap().event, event.as_ref(), "the line is lossless");
    }
}

fn uid(text: &str) -> Uuid {
    Uuid::parse_str(text).unwrap()
}

fn deny(event: DenyEvent) -> Record {
    Record::Deny(event.into())
}

/// The attempt as the door sees it.
fn door() -> DenyEvent {
    let mut event = testing::event();
    event.source.place = Some("web-7c9f8d6b5-x2lqp".into());
    event.target.place = Some("payments-db-0".into());
    event.target.container = Some(DOOR_CONTAINER.into());
    event
}

/// The same attempt as the exit sees it.
fn exit(own: &str) -> DenyEvent {
    let mut event = door();
    event.target.container = None;
    event.source.container = Some(EXIT_CONTAINER.into());
    DenyEvent {
        uid: uid(own),
        series: uid(own),
        boot_ns: 9_120_034_000_123,
        direction: Direction::Egress,
        cgroup: Some(0x1c07),
        process: Some(Process {
            pid: 4242,
            uid: 10001,
            comm: "python3".into(),
            exe: Some("/usr/bin/python3.11".into()),
            start: Some(UnixMillis(1_795_320_000_000)),
        }),
        ..event
    }
}

#[test]
fn a_first_denial_at_the_door_is_the_sample() {
    let sample = include_str!("../../../tests/samples/ocsf-deny-first.json");
    check(sample, &[], &deny(door()), 48211, 1_795_327_402_131);
}

#[test]
fn a_denied_connect_is_the_sample_and_has_no_source_port() {
    let mut event = exit("01a201da-208f-7d55-a7c2-0a4d8be1f733");
    event.source.port = None;
    let event = DenyEvent {
        point: Some(Point::Hook(Hook::Connect4)),
        answer: Answer::Eperm,
        tcp_flags: None,
        community_id: None,
        ifindex: 0,
        packets: 0,
        bytes: 0,
        ..event
    };
    let sample = include_str!("../../../tests/samples/ocsf-deny-exit.json");
    check(sample, &[], &deny(event), 7713, 1_795_327_402_127);
}

#[test]
fn a_would_be_denial_is_the_sample_and_is_never_said_to_be_denied() {
    let event = DenyEvent {
        outcome: Outcome::WouldDeny,
        mode: Some(Mode::Audit),
        point: Some(Point::Hook(Hook::Egress)),
        ..exit("01a201da-208f-7e01-b3a4-6b5c4d3e2f10")
    };
    let sample = include_str!("../../../tests/samples/ocsf-would-deny.json");
    check(sample, &[], &deny(event), 7712, 1_795_327_402_127);
}

#[test]
fn repeats_are_the_sample() {
    let event = DenyEvent {
        uid: uid("01a201da-47ab-7c22-8b1f-55d0c6a94e10"),
        kind: Kind::Repeat { window_ms: 10_000 },
        time: UnixMillis(1_795_327_403_147),
        last: UnixMillis(1_795_327_409_291),
        count: 3,
        packets: 3,
        bytes: 180,
        ..door()
    };
    let sample = include_str!("../../../tests/samples/ocsf-deny-repeat.json");
    check(sample, &[], &deny(event), 48219, 1_795_327_412_139);
}

#[test]
fn a_cut_is_the_sample() {
    let own = uid("01a201da-2093-7e31-9d02-6c3f8a7b5e44");
    let event = DenyEvent {
        uid: own,
        series: own,
        kind: Kind::Cut,
        outcome: Outcome::Cut,
        point: Some(Point::SockDestroy),
        answer: Answer::Rst,
        reason: Reason::Revoked,
        rule_ref: RuleRef {
            id: "ov-19".into(),
            title: Some("INC-2041 token leak".into()),
            kind: RuleKind::OverrideDeny,
        },
        epoch: Some(Epoch(42)),
        tcp_flags: Some(4),
        packets: 0,
        bytes: 0,
        ..door()
    };
    let sample = include_str!("../../../tests/samples/ocsf-cut.json");
    check(sample, &[], &deny(event), 48260, 1_795_327_402_131);
}

#[test]
fn folded_denials_are_the_sample() {
    let event = FoldedEvent {
        uid: uid("01a201da-95bf-7b16-b8e4-91c2d3e4f506"),
        time: UnixMillis(1_795_327_422_123),
        last: UnixMillis(1_795_327_432_121),
        local: Owner::Identity {
            id: WEB,
            service: Some("web".into()),
            spiffe: Some("spiffe://shop.example.com/web".into()),
        },
        direction: Direction::Egress,
        outcome: Outcome::Denied,
        epoch: Some(Epoch(41)),
        count: 64_210,
        bytes: 0,
    };
    let sample = include_str!("../../../tests/samples/ocsf-folded.json");
    // The outcome is known of each, the mode is not: an override denies in every mode.
    let without = [r#""mode":"enforce","#];
    check(sample, &without, &Record::Folded(event), 48240, 1_795_327_432_127);
}

#[test]
fn losses_are_the_samples() {
    let ring = LossEvent {
        uid: uid("01a201db-0ccb-7a2b-9f3d-40c1b2d3e4f5"),
        time: UnixMillis(1_795_327_462_123),
        stage: Stage::Ring,
        records: 0,
        denials: 1204,
        sequences: None,
        detail: None,
        start: UnixMillis(1_795_327_460_135),
        end: UnixMillis(1_795_327_462_111),
    };
    let sample = include_str!("../../../tests/samples/ocsf-loss-ring.json");
    check(sample, &[], &Record::Loss(ring.clone()), 48302, 1_795_327_462_603);
    let write = LossEvent {
        uid: uid("01a201db-0ccb-7f10-8c77-2b9e61d4a0c5"),
        stage: Stage::Write,
        records: 37,
        denials: 52,
        sequences: Some((48_264, 48_300)),
        detail: Some("No space left on device (os error 28)".into()),
        ..ring
    };
    let sample = include_str!("../../../tests/samples/ocsf-loss-write.json");
    check(sample, &[], &Record::Loss(write), 48301, 1_795_327_462_603);
}

#[test]
fn the_sums_are_the_sample() {
    let event = AccountingEvent {
        uid: uid("01a201db-f54e-7c0d-8e1f-aa10bb20cc30"),
        time: UnixMillis(1_795_327_522_123),
        denied: 65_566,
        listed: 92,
        repeated: 6,
        folded: 64_210,
        settled: 2,
        lost: Lost { ring: 1204, write: 52, ..Lost::default() },
        pending: 0,
        records_lost: RecordsLost { write: 37, ..RecordsLost::default() },
        epoch: Some(Epoch(41)),
    };
    let sample = include_str!("../../../tests/samples/ocsf-accounting.json");
    let without = [r#","sinks":{"splunk":{"acked":48292,"rejected":0,"evicted":0,"pending":1}}"#];
    check(sample, &without, &Record::Accounting(event), 48330, 1_795_327_522_126);
}

#[test]
fn a_change_of_policy_is_the_sample() {
    let event = PolicyEvent {
        uid: uid("01a201db-801f-7e6a-9a3b-5c4d3e2f1a00"),
        time: UnixMillis(1_795_327_492_123),
        change: PolicyChange::OverrideStarted(OverrideData {
            id: "ov-19".into(),
            action: "deny".into(),
            from: "web".into(),
            to: "payments-db".into(),
            expires: "2026-11-23T06:04:52Z".into(),
        }),
        comment: Some("eastwall revoke web payments-db --reason 'INC-2041 token leak'".into()),
        actor: Some(Actor { user: Some("root".into()), uid: 0, pid: 9911, process: Some("eastwall".into()) }),
        set: "sha256:9f31c2d07ab84e15".into(),
        epoch_before: Some(Epoch(41)),
        epoch: Some(Epoch(42)),
        edges_opened: 0,
        edges_closed: 1,
        flows_cut: 3,
    };
    let sample = include_str!("../../../tests/samples/ocsf-policy.json");
    check(sample, &[], &Record::Policy(event), 48310, 1_795_327_492_127);
}

#[test]
fn an_act_of_tampering_is_the_sample() {
    let event = TamperEvent {
        uid: uid("01a201da-ff37-7b44-a1c9-7e0f9d8c6b5a"),
        time: UnixMillis(1_795_327_459_123),
        act: "overtaken",
        object: "ew_tc_from".into(),
        device: Some(TamperedDevice { index: 12, name: Some("to-web".into()) }),
        programs: vec![ForeignProgram { id: 512, name: "other".into(), tag: "57cd311f2e27366b".into(), loaded_by: 0 }],
        last_good: Some(UnixMillis(1_795_327_458_911)),
        error: None,
    };
    let sample = include_str!("../../../tests/samples/ocsf-tamper.json");
    check(sample, &[], &Record::Tamper(event), 48311, 1_795_327_459_127);
}

#[test]
fn a_start_is_the_sample() {
    let event = LifecycleEvent {
        uid: uid("01a201a3-320d-7110-b0c1-d2e3f4a5b6c7"),
        time: UnixMillis(1_795_323_802_123),
        phase: Phase::Started {
            adopted: true,
            previous_boot_last_sequence: Some(901_233),
            previous_stop_clean: Some(true),
        },
        epoch: Some(Epoch(41)),
        links: 9,
    };
    let sample = include_str!("../../../tests/samples/ocsf-lifecycle.json");
    check(sample, &[], &Record::Lifecycle(event), 1, 1_795_323_802_125);
}

#[test]
fn a_line_with_a_value_that_no_record_has_is_refused_by_name() {
    let line = include_str!("../../../tests/samples/ocsf-deny-first.json");
    for (from, to, field) in [
        (r#""verdict":"denied""#, r#""verdict":"maybe""#, "verdict"),
        (r#""local_id":"0x381e9e96e270f5f5""#, r#""local_id":"381e9e96e270f5f5""#, "local_id"),
        (r#""reason":1,"rule""#, r#""reason":99,"rule""#, "reason"),
    ] {
        let line = line.replace(from, to);
        match parse(line.as_bytes()) {
            Err(super::InvalidLine::Field { field: found, .. }) => assert_eq!(found, field),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(parse(b"{}"), Err(super::InvalidLine::Json(_))));
}

fn text() -> impl Strategy<Value = String> {
    // The alphabet of escaped names, and what JSON itself must escape.
    "[ -~]{0,12}"
}

fn an_end() -> impl Strategy<Value = End> {
    let names = (any::<Option<String>>(), proptest::option::of(text()), proptest::option::of(text()));
    (any::<Option<std::net::IpAddr>>(), any::<Option<u16>>(), any::<u64>(), names, proptest::option::of(text()))
        .prop_map(|(addr, port, id, (service, spiffe, place), container)| End {
            addr,
            port,
            id: IdentityId(id),
            service,
            spiffe,
            place,
            container,
        })
}

fn a_process() -> impl Strategy<Value = Process> {
    (any::<u32>(), any::<u32>(), text(), proptest::option::of(text()), any::<Option<u64>>())
        .prop_map(|(pid, uid, comm, exe, start)| Process { pid, uid, comm, exe, start: start.map(UnixMillis) })
}

prop_compose! {
    fn an_event()(
        numbers in any::<[u64; 8]>(),
        small in any::<[u8; 6]>(),
        options in any::<[Option<u64>; 5]>(),
        ends in (an_end(), an_end()),
        process in proptest::option::of(a_process()),
        texts in (any::<String>(), any::<Option<String>>(), proptest::option::of(text()), text()),
        choose in any::<[prop::sample::Index; 10]>(),
        flags in any::<[bool; 5]>(),
    ) -> DenyEvent {
        let reasons = &Reason::ALL[1..];
        let epoch = flags[0].then_some(Epoch(7));
        DenyEvent {
            uid: Uuid::from_u64_pair(numbers[0], numbers[1]),
            series: Uuid::from_u64_pair(numbers[1], numbers[2]),
            kind: *choose[0].get(&[Kind::First, Kind::Cut, Kind::Repeat { window_ms: numbers[3] }]),
            time: UnixMillis(numbers[4]),
            last: UnixMillis(numbers[5]),
            boot_ns: numbers[6],
            outcome: *choose[1].get(&[Outcome::Denied, Outcome::WouldDeny, Outcome::Cut]),
            mode: *choose[2].get(&[None, Some(Mode::Enforce), Some(Mode::Audit), Some(Mode::Observe)]),
            direction: if flags[1] { Direction::Egress } else { Direction::Ingress },
            point: *choose[3].get(&[None, Some(Point::SockDestroy), Some(Point::Hook(Hook::Sendmsg6)),
                Some(Point::Hook(Hook::Egress)), Some(Point::Hook(Hook::Ingress)),
                Some(Point::Hook(Hook::TcFrom)), Some(Point::Hook(Hook::TcTo))]),
            answer: *choose[4].get(&[Answer::None, Answer::Eperm, Answer::Rst]),
            reason: *choose[5].get(reasons),
            rule: RuleNumber(u32::from(small[5])),
            rule_ref: RuleRef { id: texts.0, title: texts.1, kind: *choose[6].get(&RuleKind::ALL) },
            epoch,
            policy: epoch.filter(|_| flags[2]).map(|_| PolicyRef { name: texts.3.clone(), hash: texts.3 }),
            nearest: texts.2.clone(),
            proto: small[0],
            tcp_flags: flags[3].then_some(small[1]),
            icmp: flags[4].then_some((small[2], small[3])),
            source: ends.0,
            target: ends.1,
            known_by: *choose[7].get(&[None, Some(KnownBy::Socket), Some(KnownBy::World), Some(KnownBy::Host)]),
            peer_outside: small[4] & 1 == 1,
            process,
            task: options[0].map(IdentityId),
            cgroup: options[1],
            cgroup_path: texts.2,
            cookie: options[2],
            netns: options[3],
            ifindex: u32::from(small[1]),
            count: numbers[7],
            packets: numbers[3],
            bytes: numbers[2],
            community_id: options[4].map(|n| format!("1:{n}")),
            truncated: choose[8..].iter().map(|index| *index.get(&LongField::ALL)).collect(),
        }
    }
}

proptest! {
    #[test]
    fn a_line_of_a_denial_gives_back_the_event(event in an_event(), sequence in any::<u64>()) {
        let node = testing::node();
        let mut line = Vec::new();
        let record = deny(event.clone());
        write_line(&mut line, &record, &Stamp { node: &node, sequence, logged: UnixMillis(1) }).unwrap();
        prop_assert_eq!(line.iter().filter(|&&byte| byte == b'\n').count(), 1, "one record is one line");
        let parsed = parse(&line).unwrap();
        prop_assert_eq!(parsed.event, event);
        prop_assert_eq!((parsed.sequence, parsed.boot_id), (sequence, node.boot_id));
    }
}

/// The schema refuses an endpoint without any name, and class 4001 without any endpoint.
#[test]
fn an_end_without_a_name_is_written_with_its_number_and_read_without() {
    let mut event = testing::event();
    event.source = End { addr: None, port: None, service: None, spiffe: None, ..event.source };
    let mut line = Vec::new();
    let node = testing::node();
    let stamp = Stamp { node: &node, sequence: 1, logged: UnixMillis(1) };
    write_line(&mut line, &deny(event.clone()), &stamp).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(json["src_endpoint"]["uid"], "0x002197f5a4ca2450");
    assert_eq!(parse(&line).unwrap().event, event);
    let folded = FoldedEvent {
        uid: event.uid,
        time: event.time,
        last: event.last,
        local: Owner::Cgroup(0x2a41),
        direction: Direction::Ingress,
        outcome: Outcome::WouldDeny,
        epoch: None,
        count: 7,
        bytes: 0,
    };
    let mut line = Vec::new();
    write_line(&mut line, &Record::Folded(folded), &stamp).unwrap();
    let json: serde_json::Value = serde_json::from_slice(&line).unwrap();
    assert_eq!(json["dst_endpoint"]["uid"], "0x2a41");
    assert_eq!((&json["action"], &json["status"]), (&"Observed".into(), &"Success".into()), "it passed");
}

#[test]
fn the_two_ends_are_told_apart_by_direction() {
    let event = testing::event();
    assert_eq!((event.local().id, event.peer().id), (PAYMENTS_DB, WEB));
}
