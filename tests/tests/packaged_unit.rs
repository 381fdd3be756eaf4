//! What the packaged systemd unit takes away from the agent, and what must work all the same.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{fs, path::Path};

use serde_json::Value;
use tests::{
    lab::{AgentOptions, Errno},
    scene::{LONG, LOOPBACK, Scene},
};

/// A setting of the unit; each stands on one line.
fn setting(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd/eastwall.service");
    let unit = fs::read_to_string(path).unwrap();
    let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("the unit has no {name}")).to_owned()
}

/// `CapabilityBoundingSet` as setpriv(1) takes it.
fn capabilities() -> String {
    let names = setting("CapabilityBoundingSet").to_lowercase();
    names.split_whitespace().map(|name| name.replacen("cap_", "+", 1)).collect::<Vec<_>>().join(",")
}

fn is(event: &Value, code: &str) -> bool {
    event.pointer("/metadata/event_code").and_then(Value::as_str) == Some(code)
}

#[test]
fn the_capabilities_of_the_unit_are_enough_to_judge_to_tell_to_cut_and_to_answer() {
    let options = AgentOptions { capabilities: Some(capabilities()), ..AgentOptions::default() };
    let Some(mut scene) = Scene::open("[{ from: web, to: db, ports: [tcp/5432] }]", &options) else { return };
    let status = fs::read_to_string(format!("/proc/{}/status", scene.agent.pid().unwrap())).unwrap();
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let permitted = |status: &str| status.lines().find(|line| line.starts_with("CapPrm")).unwrap().to_owned();
    assert_ne!(permitted(&status), permitted(&own), "the agent has been given less than this test has");

    let connection = scene.connection(LOOPBACK[0]);
    scene.talk(&connection);
    assert_eq!(scene.other.tcp_connect(connection.addr, LONG), Err(Errno::PERM));
    let told = scene.agent.event("the refused connect", |event| is(event, "deny"));
    // Which program it was is read from the process of somebody else.
    assert_eq!(told.pointer("/actor/process/name").and_then(Value::as_str), Some("labd"), "{told:#}");

    // Ending a socket takes the way into its network namespace.
    scene.rules("[{ from: other, to: db, ports: [tcp/1] }]");
    scene.agent.event("the flow that is no longer allowed", |event| is(event, "cut"));
    scene.web.send(connection.caller, b"gone").unwrap_err();
    assert_eq!(scene.agent.status().problems, Vec::<String>::new());
    assert!(!scene.agent.log().contains("not permitted"), "{}", scene.agent.log());

    // Over loopback whoever is in the agent's network gets an answer.
    scene.agent.stop();
    scene.agent.live_in(&scene.net);
    scene.agent.restart();
    let answers = scene.policy("[{ from: other, to: db, ports: [tcp/1] }]", "");
    scene
        .agent
        .apply(&answers.replace("/web }", "/web }, egressMode: observe").replace("/db }", "/db }, onDeny: reset"));
    assert_eq!(scene.web.tcp_connect(connection.addr, LONG), Err(Errno::CONNREFUSED));
    assert_eq!(scene.agent.status().problems, Vec::<String>::new());
}

#[test]
fn the_unit_stops_the_agent_alone_and_detaches_nothing() {
    assert_eq!(setting("KillMode"), "process");
    assert_eq!(setting("Restart"), "always");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd/eastwall.service");
    let unit = fs::read_to_string(path).unwrap();
    let stops: Vec<&str> = unit.lines().filter(|line| line.starts_with("ExecStop")).collect();
    assert_eq!(stops, Vec::<&str>::new(), "whatever runs at a stop could open the host");
}
