//! Modes, names that no policy gives, and limits.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{fs, net::SocketAddr};

use eastwall::control::{
    client,
    wire::{Reply, Request},
};
use serde_json::{Map, Value, json};
use tests::{
    lab::{AgentOptions, Errno, Lab},
    scene::{LONG, LOOPBACK, PORT, Scene, datagram, document, policy},
};

const OPEN: &str = "[{ from: web, to: db, ports: [tcp/5432] }]";

fn text<'a>(event: &'a Value, pointer: &str) -> &'a str {
    event.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn in_mode(lab: &Lab, mode: &str) -> String {
    policy(lab, OPEN, "").replace("mode: enforce", &format!("mode: {mode}"))
}

/// Both flows of a scene pass: the one with a rule, and the one without.
fn both_pass(scene: &Scene) {
    let connection = scene.connection(LOOPBACK[0]);
    scene.talk(&connection);
    let caller = scene.other.tcp_connect(connection.addr, LONG).expect("nothing is refused in this mode");
    let callee = scene.db.accept(connection.listener).unwrap();
    scene.other.send(caller, b"x").unwrap();
    assert_eq!(scene.db.receive(callee, 1).unwrap()[0].data, b"x");
    let (receiver, to) = scene.db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    datagram(&scene.other, to, b"y").unwrap();
    assert_eq!(scene.db.receive(receiver, 1).unwrap()[0].data, b"y");
    scene.hang_up(connection);
    // The caller first: a callee that closes first keeps its port for a minute.
    scene.other.close(caller);
    for socket in [callee, receiver] {
        scene.db.close(socket);
    }
}

#[test]
fn audit_lets_everything_pass_and_tells_what_it_would_deny() {
    let Some(scene) = Scene::open_by(|lab| in_mode(lab, "audit"), &AgentOptions::default()) else { return };
    both_pass(&scene);
    let event = scene.agent.event("the would-be denial", |e| {
        text(e, "/src_endpoint/svc_name") == "other" && text(e, "/dst_endpoint/svc_name") == "db"
    });
    assert_eq!(text(&event, "/unmapped/eastwall/verdict"), "would-deny", "{event:#}");
    assert_eq!(text(&event, "/unmapped/eastwall/mode"), "audit");
    assert_ne!(text(&event, "/action"), "Denied");
    let status = scene.agent.balance();
    assert!(status.would_deny >= 2 && status.would_deny == status.denied, "all of them passed: {status:#?}");
    let recent = status.recent;
    assert_eq!((recent.denied, recent.would_deny, recent.lost), (status.denied, status.would_deny, 0), "{status:#?}");
    // The same flow in enforce.
    scene.rules(OPEN);
    let (_listener, addr) = scene.db.tcp_listen(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    assert_eq!(scene.other.tcp_connect(addr, LONG), Err(Errno::PERM));
    scene.agent.balance();
}

#[test]
fn observe_lets_everything_pass_and_tells_nothing() {
    let Some(scene) = Scene::open_by(|lab| in_mode(lab, "observe"), &AgentOptions::default()) else { return };
    both_pass(&scene);
    let status = scene.agent.balance();
    assert_eq!((status.denied, status.would_deny), (0, 0));
    scene.rules(OPEN);
    let (_listener, addr) = scene.db.tcp_listen(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    assert_eq!(scene.other.tcp_connect(addr, LONG), Err(Errno::PERM));
    assert_eq!(scene.agent.balance().denied, 1);
}

#[test]
fn what_no_policy_declares_has_a_name_all_the_same_in_events_and_lists() {
    let Some(scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let unit = scene.lab.cgroup().child("system.slice/batch.service");
    let batch = scene.lab.actor(&unit, &scene.net);
    let connection = scene.connection(LOOPBACK[0]);
    assert_eq!(batch.tcp_connect(connection.addr, LONG), Err(Errno::PERM));
    let listed = document(&scene.agent.cli(&["identities", "-o", "json"]));
    let rows = listed["identities"].as_array().unwrap();
    let row = rows.iter().find(|row| text(row, "/path") == unit.path()).unwrap_or_else(|| panic!("{listed:#}"));
    assert_eq!((text(row, "/name"), row["declared"].as_bool()), ("unit/batch.service", Some(false)));
    // Once it is labelled, its denials carry the name; the first packet may be older than the label.
    assert_eq!(batch.tcp_connect(connection.addr, LONG), Err(Errno::PERM));
    let event =
        scene.agent.event("the denial of the unit", |e| text(e, "/src_endpoint/svc_name") == "unit/batch.service");
    assert_eq!(text(&event, "/src_endpoint/uid"), "spiffe://lab.example/unit/batch.service", "{event:#}");
    scene.agent.balance();
}

#[test]
fn the_workload_that_listens_is_protected_even_if_the_caller_is_only_audited() {
    let by = |lab: &Lab| policy(lab, OPEN, "").replace("name: other,", "name: other, mode: audit,");
    let Some(scene) = Scene::open_by(by, &AgentOptions::default()) else { return };
    scene.hang_up(scene.connection(LOOPBACK[0]));
    let (listener, addr) = scene.db.tcp_listen(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    let (receiver, to) = scene.db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    assert!(scene.other.tcp_connect(addr, tests::scene::BRIEF).is_err(), "the door of db enforces");
    let _ = datagram(&scene.other, to, b"x");
    assert_eq!(scene.db.receive_for(receiver, 1, tests::scene::BRIEF), Ok(vec![]));
    let event = scene.agent.event("the denial at the door", |e| {
        text(e, "/unmapped/eastwall/direction") == "ingress" && text(e, "/metadata/event_code") == "deny"
    });
    assert_eq!(text(&event, "/src_endpoint/svc_name"), "other", "{event:#}");
    scene.db.close(listener);
    scene.agent.balance();
}

#[test]
fn g68_a_policy_that_does_not_fit_is_refused_whole_and_the_running_one_goes_on() {
    let more = Map::from_iter([("capacity".to_owned(), json!({ "edges": 8, "cgroups": 64, "flows": 1024 }))]);
    let Some(mut scene) = Scene::open(OPEN, &AgentOptions { more, ..AgentOptions::default() }) else { return };
    let connection = scene.connection(LOOPBACK[0]);
    let before = scene.agent.status();
    let scope = scene.lab.cgroup().path();
    let many: String =
        (0..16).map(|n| format!("    - {{ name: n{n}, select: {{ cgroup: {scope}/n{n} }} }}\n")).collect();
    let rules: Vec<String> = (0..16).map(|n| format!("{{ from: n{n}, to: db, ports: [tcp/5432] }}")).collect();
    let large = scene.policy(&format!("[{}]", rules.join(", ")), "");
    let large = large.replace("  workloads:\n", &format!("  workloads:\n{many}"));
    let directory = fs::read_to_string(scene.agent.policy_file()).unwrap();
    let output = scene.agent.try_apply(&large);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("E16"), "{said}");
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert_eq!(fs::read_to_string(scene.agent.policy_file()).unwrap(), directory, "the directory is as it was");
    let after = scene.agent.status();
    assert_eq!((&after.policy_hash, after.epoch), (&before.policy_hash, before.epoch));
    scene.talk(&connection);
    // By the directory, and again at a start: the last complete policy holds.
    fs::write(scene.agent.policy_file(), &large).unwrap();
    scene.agent.wait("the problem is shown", |agent| agent.status().problems.iter().any(|p| p.contains("E16")));
    scene.talk(&connection);
    scene.agent.kill();
    scene.agent.restart();
    let after = scene.agent.status();
    assert_eq!(after.policy_hash, before.policy_hash);
    assert!(after.problems.iter().any(|p| p.contains("E16")), "{after:#?}");
    scene.talk(&connection);
    assert_eq!(scene.other.tcp_connect(connection.addr, LONG), Err(Errno::PERM));
    match client::ask(&scene.agent.control_socket(), &Request::Reload).unwrap() {
        Reply::Refused { code, message } => assert_eq!(code, 3, "{message}"),
        other => panic!("{other:?}"),
    }
    scene.agent.balance();
}

#[test]
fn g68_a_cgroup_that_finds_no_room_for_its_label_is_denied_and_told_as_a_problem() {
    const ROOM: usize = 64;
    let more = Map::from_iter([("capacity".to_owned(), json!({ "edges": 8, "cgroups": ROOM, "flows": 1024 }))]);
    let Some(scene) = Scene::open(OPEN, &AgentOptions { more, ..AgentOptions::default() }) else { return };
    let connection = scene.connection(LOOPBACK[0]);
    assert_eq!(scene.agent.status().problems, [""; 0]);
    let before = scene.agent.status().labelled;
    let many: Vec<_> = (0..ROOM).map(|n| scene.cgroups[0].child(&format!("{n}"))).collect();
    // The last of them is a part of `web` for which there was no room.
    let late = scene.lab.actor(&many[ROOM - 1], &scene.net);
    assert_eq!(late.tcp_connect(connection.addr, LONG), Err(Errno::PERM));
    let mut agent = scene.agent;
    agent.wait("the problem is shown", |agent| agent.status().problems.iter().any(|p| p.contains("stays unknown")));
    let caller = scene.web.tcp_connect(connection.addr, LONG).expect("who has a label goes on");
    scene.db.accept(connection.listener).unwrap();
    scene.web.close(caller);
    assert!(agent.status().labelled >= before);
    agent.balance();
}
