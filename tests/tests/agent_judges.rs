//! What the agent promises about every flow, by real sockets: allowed flows pass, all others are refused
//! and told, by either way of refusing.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use tests::{
    lab::{AgentOptions, Errno, Witness, magic},
    scene::{BRIEF, LONG, LOOPBACK, PORT, Scene, datagram},
};

const WEB_TO_DB: &str = "[{ from: web, to: db, ports: [tcp/5432, udp/5432] }]";

fn at<'a>(event: &'a Value, pointer: &str) -> &'a str {
    event.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// A denial of this scene, by its ends and protocol.
fn is_denial(event: &Value, from: &str, to: &str, proto: &str) -> bool {
    at(event, "/metadata/event_code") == "deny"
        && at(event, "/src_endpoint/svc_name") == from
        && at(event, "/dst_endpoint/svc_name") == to
        && at(event, "/connection_info/protocol_name") == proto
}

fn allowed_flows_pass(scene: &Scene, addr: IpAddr) {
    let connection = scene.connection(addr);
    scene.talk(&connection);
    scene.hang_up(connection);
    let (receiver, to) = scene.db.udp_bind(SocketAddr::new(addr, PORT)).unwrap();
    datagram(&scene.web, to, b"hello").unwrap();
    let got = scene.db.receive(receiver, 1).unwrap();
    assert_eq!(got[0].data, b"hello", "an allowed datagram at {addr}");
    // The way back is no flow of its own.
    scene.db.send_to(receiver, got[0].from.unwrap(), b"reply").unwrap();
    scene.db.close(receiver);
}

#[test]
fn an_allowed_flow_passes_and_any_other_is_refused_with_eperm_and_told() {
    let Some(scene) = Scene::open(WEB_TO_DB, &AgentOptions::default()) else { return };
    for addr in LOOPBACK {
        allowed_flows_pass(&scene, addr);
        let denied = magic();
        let mut witness = Witness::new(&scene.net, &denied);
        let (_listener, tcp) = scene.db.tcp_listen(SocketAddr::new(addr, PORT)).unwrap();
        assert_eq!(scene.other.tcp_connect(tcp, LONG), Err(Errno::PERM), "connect at {addr}");
        let (receiver, udp) = scene.db.udp_bind(SocketAddr::new(addr, PORT)).unwrap();
        assert_eq!(datagram(&scene.other, udp, &denied), Err(Errno::PERM), "sendto at {addr}");
        // Neither the port nor the direction is what the rule says.
        let (_elsewhere, wrong_port) = scene.db.tcp_listen(SocketAddr::new(addr, PORT + 1)).unwrap();
        assert_eq!(scene.web.tcp_connect(wrong_port, LONG), Err(Errno::PERM), "another port at {addr}");
        let (_back, backwards) = scene.web.tcp_listen(SocketAddr::new(addr, PORT + 2)).unwrap();
        assert_eq!(scene.db.tcp_connect(backwards, LONG), Err(Errno::PERM), "backwards at {addr}");
        assert_eq!(scene.db.receive_for(receiver, 1, BRIEF), Ok(vec![]));
        assert_eq!(witness.arrived(), 0, "no denied payload at {addr}");
        scene.db.close(_listener);
        scene.db.close(receiver);
        scene.db.close(_elsewhere);
        scene.web.close(_back);
    }
    let tcp = scene.agent.event("the refused connect", |e| is_denial(e, "other", "db", "tcp"));
    let process = i64::from(scene.other.process().pid());
    assert_eq!(at(&tcp, "/status_code"), "no-rule", "{tcp:#}");
    assert_eq!(at(&tcp, "/action"), "Denied");
    assert_eq!(at(&tcp, "/src_endpoint/uid"), "spiffe://lab.example/other");
    assert_eq!(at(&tcp, "/dst_endpoint/uid"), "spiffe://lab.example/db");
    assert_eq!(at(&tcp, "/firewall_rule/name"), "default deny");
    assert_eq!(at(&tcp, "/policy/name"), "scene");
    assert_eq!(at(&tcp, "/unmapped/eastwall/answer"), "eperm");
    assert_eq!(tcp.pointer("/dst_endpoint/port").and_then(Value::as_u64), Some(u64::from(PORT)));
    assert_eq!(tcp.pointer("/actor/process/pid").and_then(Value::as_i64), Some(process), "{tcp:#}");
    assert_eq!(at(&tcp, "/actor/process/name"), "labd");
    scene.agent.event("the refused sendto", |e| is_denial(e, "other", "db", "udp"));
    scene.agent.event("the flow backwards", |e| is_denial(e, "db", "web", "tcp"));
    let status = scene.agent.balance();
    assert_eq!((status.denied, status.lost, status.would_deny), (8, 0, 0), "four denials for each family");
    assert_eq!(status.problems, Vec::<String>::new());
}

#[test]
fn without_early_refusal_the_packets_of_a_denied_flow_never_arrive() {
    let options = AgentOptions { fast_refusal: false, ..AgentOptions::default() };
    let Some(scene) = Scene::open(WEB_TO_DB, &options) else { return };
    for addr in LOOPBACK {
        allowed_flows_pass(&scene, addr);
        let denied = magic();
        let mut witness = Witness::new(&scene.net, &denied);
        let (_listener, tcp) = scene.db.tcp_listen(SocketAddr::new(addr, PORT)).unwrap();
        let refused = scene.other.tcp_connect(tcp, BRIEF).unwrap_err();
        assert!([Errno::PERM, Errno::TIMEDOUT].contains(&refused), "{refused:?}");
        let (receiver, udp) = scene.db.udp_bind(SocketAddr::new(addr, PORT)).unwrap();
        assert_eq!(datagram(&scene.other, udp, &denied), Err(Errno::PERM), "the packet itself is refused");
        assert_eq!(scene.db.receive_for(receiver, 1, BRIEF), Ok(vec![]));
        assert_eq!(witness.arrived(), 0, "no denied payload at {addr}");
        scene.db.close(_listener);
        scene.db.close(receiver);
    }
    for proto in ["tcp", "udp"] {
        let event = scene.agent.event("the denial", |e| is_denial(e, "other", "db", proto));
        assert_eq!(at(&event, "/status_code"), "no-rule", "{event:#}");
    }
    let status = scene.agent.balance();
    assert!(status.denied >= 4 && status.lost == 0, "{status:#?}");
}

#[test]
fn g73_every_denial_of_a_flood_is_told_once() {
    const FLOOD: usize = 5_000;
    let Some(scene) = Scene::open(WEB_TO_DB, &AgentOptions::default()) else { return };
    allowed_flows_pass(&scene, LOOPBACK[0]);
    let before = scene.agent.status().denied;
    assert_eq!(before, 0, "an allowed flow is no denial");
    let (_receiver, udp) = scene.db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    for n in 0..FLOOD {
        // A new port each time: every one is a first denial of its own.
        let to = SocketAddr::new(udp.ip(), 1024 + u16::try_from(n).unwrap());
        assert_eq!(datagram(&scene.other, to, b"flood"), Err(Errno::PERM));
        assert_eq!(datagram(&scene.other, udp, b"flood"), Err(Errno::PERM));
    }
    let status = scene.agent.balance();
    println!(
        "flood: {} denied = {} reported + {} suppressed + {} lost",
        status.denied, status.reported, status.suppressed, status.lost
    );
    assert_eq!(status.denied, 2 * FLOOD as u64);
    assert_eq!(status.lost, 0);
    assert!(status.suppressed > status.reported, "a flood is folded: {status:#?}");
}
