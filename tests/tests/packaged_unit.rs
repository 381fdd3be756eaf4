//! What the packaged systemd units take away from the agent and the boot guard, and what must work all the same.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{fs, net::SocketAddr, path::Path, process::Command};

use serde_json::{Value, json};
use tests::{
    lab::{Agent, AgentOptions, Errno, Lab, Need, NetNs},
    scene::{LONG, LOOPBACK, PORT, Scene, datagram},
};

const AGENT: &str = "eastwall.service";
const BOOT_GUARD: &str = "eastwall-boot-guard.service";

fn unit(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/systemd").join(name)).unwrap()
}

/// A setting of a unit; each stands on one line.
fn setting(of: &str, name: &str) -> String {
    let unit = unit(of);
    let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("the unit has no {name}")).to_owned()
}

/// `CapabilityBoundingSet` as setpriv(1) takes it.
fn capabilities(of: &str) -> String {
    let names = setting(of, "CapabilityBoundingSet").to_lowercase();
    names.split_whitespace().map(|name| name.replacen("cap_", "+", 1)).collect::<Vec<_>>().join(",")
}

fn is(event: &Value, code: &str) -> bool {
    event.pointer("/metadata/event_code").and_then(Value::as_str) == Some(code)
}

#[test]
fn the_capabilities_of_the_unit_are_enough_to_judge_to_tell_to_cut_and_to_answer() {
    let options = AgentOptions { capabilities: Some(capabilities(AGENT)), ..AgentOptions::default() };
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
    assert_eq!(setting(AGENT, "KillMode"), "process");
    assert_eq!(setting(AGENT, "Restart"), "always");
    for name in [AGENT, BOOT_GUARD] {
        let stops = unit(name).lines().filter(|line| line.starts_with("ExecStop")).count();
        assert_eq!(stops, 0, "whatever runs at a stop could open the host");
    }
}

#[test]
fn the_boot_guard_comes_before_agent_and_network_and_needs_no_more_than_its_unit_leaves_it() {
    assert_eq!(setting(BOOT_GUARD, "Before"), "network-pre.target eastwall.service");
    assert_eq!(setting(BOOT_GUARD, "DefaultDependencies"), "no");
    let command = setting(BOOT_GUARD, "ExecStart");
    let words = command.strip_prefix("/usr/bin/eastwall ").unwrap().replace("/etc/eastwall", "{}");
    assert_eq!(words, "boot-guard on --config {}/agent.yaml");

    let Some(lab) = Lab::open(&[Need::Ip, Need::Agent]) else { return };
    let net = NetNs::new();
    let cgroups = ["web", "db"].map(|name| lab.cgroup().child(name));
    let [web, db] = cgroups.each_ref().map(|cgroup| lab.actor(cgroup, &net));
    let mut options = AgentOptions::default();
    options.more.insert("bootGuard".to_owned(), json!([cgroups[0].path()]));
    let agent = Agent::prepare(&lab, "", &options).unwrap();
    let to = db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap().1;
    datagram(&web, to, b"x").unwrap();
    let raised = agent.inside(|| {
        Command::new("setpriv")
            .args(["--no-new-privs", "--inh-caps=-all"])
            .arg(format!("--bounding-set=-all,{}", capabilities(BOOT_GUARD)))
            .arg(agent.binary())
            .args(["boot-guard", "on", "--config"])
            .arg(agent.path("agent.yaml"))
            .output()
            .unwrap()
    });
    assert!(raised.status.success(), "{raised:?}");
    assert_eq!(datagram(&web, to, b"x"), Err(Errno::PERM));
}
