//! Another version of eastwall takes over, whose maps have other layouts: up, and down again.
//!
//! The version before is this one, with its pins moved to where another version has its own.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by the one and shows figures by the other")]

use std::{
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use agent_common::layout::LAYOUT_VERSION;
use tests::{
    frames::{FAMILIES, framed, ip_udp},
    lab::{Agent, AgentOptions, Command, Errno, NetNs, Routed, Witness, magic},
    scene::{BRIEF, LONG, LOOPBACK, PORT, Scene, datagram, policy, repetitions},
};

const OPEN: &str = "[{ from: web, to: db, ports: [tcp/5432, udp/5432] }]";
const CLOSED: &str = "[{ from: other, to: db, ports: [tcp/1] }]";

/// Where the pins of a version are.
fn pins(agent: &Agent, version: u32) -> PathBuf {
    agent.path(format!("bpf/eastwall/v{version}"))
}

/// Kills the agent, and starts one of a version that comes after the one before, or before it.
fn replace(agent: &mut Agent, before: u32) {
    agent.kill();
    agent.inside(|| fs::rename(pins(agent, LAYOUT_VERSION), pins(agent, before))).unwrap();
    agent.restart();
}

/// What is left of versions; this one's is all there should be.
fn versions(agent: &Agent) -> Vec<String> {
    let list =
        || fs::read_dir(agent.path("bpf/eastwall")).unwrap().flatten().map(|e| e.file_name()).collect::<Vec<_>>();
    let mut names: Vec<String> = agent.inside(list).into_iter().map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn g83_an_older_version_is_replaced_under_load_without_a_leak_and_without_a_loss() {
    replace_under_load(LAYOUT_VERSION - 1, repetitions(4, 100));
}

#[test]
fn g83_a_newer_version_is_replaced_under_load_without_a_leak_and_without_a_loss() {
    replace_under_load(LAYOUT_VERSION + 1, repetitions(4, 100));
}

fn replace_under_load(before: u32, swaps: usize) {
    let is_older = before < LAYOUT_VERSION;
    let Some(mut scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let addr = SocketAddr::new(LOOPBACK[0], PORT);
    let connection = scene.connection(LOOPBACK[0]);
    let denied_bytes = magic();
    let (answers, refusals) = (AtomicU64::new(0), AtomicU64::new(0));
    // A call that is answered only under the next version.
    let (server, at) = scene.db.udp_bind(addr).unwrap();
    let (client, _) = scene.web.udp_bind(SocketAddr::new(LOOPBACK[0], 0)).unwrap();
    let caller = scene.web.local_addr(client).unwrap();
    let Scene { agent, web, db, other, net, .. } = &mut scene;
    let mut witness = Witness::new(net, &denied_bytes);
    let allowed = || {
        web.send(connection.caller, b"ask").expect("the allowed connection lives");
        assert_eq!(db.receive(connection.callee, 1).expect("the allowed connection lives").len(), 1);
        answers.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(1));
    };
    let refused = || {
        assert_eq!(datagram(other, addr, &denied_bytes), Err(Errno::PERM));
        match other.tcp_connect(addr, if is_older { LONG } else { BRIEF }) {
            Err(Errno::PERM) => {}
            // What a newer version knows of a listener cannot be read, so that its callers are stopped at the boundary.
            Err(Errno::CONNABORTED | Errno::TIMEDOUT) if !is_older => {}
            called => panic!("a denied call: {called:?}"),
        }
        refusals.fetch_add(2, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(1));
    };
    witness.during(&[&allowed, &refused], || {
        for swap in 0..swaps {
            replace(agent, before);
            assert_eq!(versions(agent), [format!("v{LAYOUT_VERSION}")], "swap {swap}: the other one is taken off");
            assert!(agent.status().problems.is_empty(), "swap {swap}: {:#?}", agent.status().problems);
        }
    });
    assert_eq!(witness.arrived(), 0, "denied payloads");
    println!(
        "{swaps} swaps: {} answers, none lost; {} refusals, none missed",
        answers.into_inner(),
        refusals.into_inner()
    );

    scene.web.send_to(client, at, b"ask").unwrap();
    assert_eq!(scene.db.receive(server, 1).unwrap()[0].data, b"ask");
    replace(&mut scene.agent, before);
    if is_older {
        scene.db.send_to(server, caller, b"answer").unwrap();
        assert_eq!(scene.web.receive(client, 1).unwrap()[0].data, b"answer", "a flow that the version before knew");
    }
    // And nothing is left of the policy of the one before.
    scene.rules(CLOSED);
    assert!(scene.web.tcp_connect(addr, BRIEF).is_err());
    scene.rules("[{ from: other, to: db, ports: [tcp/5432] }]");
    assert!(scene.other.tcp_connect(addr, LONG).is_ok());
    assert!(scene.agent.balance().problems.is_empty(), "{:#?}", scene.agent.status());
}

#[test]
fn g83_another_version_takes_over_at_devices() {
    let Some(net) = Routed::open() else { return };
    let text = |rules: &str| policy(&net.lab, rules, "");
    let mut agent = Agent::prepare(&net.lab, &text(OPEN), &AgentOptions::default()).unwrap();
    agent.live_in(&net.host);
    agent.restart();
    agent.wait("both devices are guarded", |agent| agent.status().devices == 2);
    let denied = magic();
    let frame = |data: &[u8], port: u16| {
        let (from, to) = (net.web.at(FAMILIES[0], 40_001), net.db.at(FAMILIES[0], port));
        let frame = framed(net.ethernet(), &ip_udp(from, to, data));
        Command::SendFrame { device: "web0".to_owned(), frame, bypass: true }
    };
    let (receiver, _) = net.db.actor.udp_bind(net.db.at(FAMILIES[0], PORT)).unwrap();
    let mut witness = Witness::new(&net.db.net, &denied);
    let attempts = AtomicU64::new(0);
    let flood = || {
        net.web.actor.call(&frame(&denied, PORT + 1)).unwrap();
        attempts.fetch_add(1, Ordering::Relaxed);
        thread::sleep(Duration::from_millis(1));
    };
    witness.during(&[&flood], || {
        for swap in 0..repetitions(4, 50) {
            replace(&mut agent, if swap % 2 == 0 { LAYOUT_VERSION - 1 } else { LAYOUT_VERSION + 1 });
            agent.wait("the devices are guarded", |agent| agent.status().devices == 2);
            assert_eq!(versions(&agent), [format!("v{LAYOUT_VERSION}")], "swap {swap}");
        }
    });
    assert_eq!(witness.arrived(), 0, "denied payloads");
    // Whichever version denied it, one has counted it; where both stood, both have.
    let (attempts, denied) = (attempts.into_inner(), agent.balance().denied);
    assert!(denied >= attempts, "{denied} denials are in the books of {attempts}");
    println!("{attempts} attempts, {denied} denials in the books");
    net.web.actor.call(&frame(b"allowed", PORT)).unwrap();
    assert_eq!(net.db.actor.receive(receiver, 1).unwrap()[0].data, b"allowed");
    // A call that is answered only under the next version.
    let (sender, caller) = net.web.udp(FAMILIES[0]);
    net.web.actor.send_to(sender, net.db.at(FAMILIES[0], PORT), b"ask").unwrap();
    assert_eq!(net.db.actor.receive(receiver, 1).unwrap()[0].data, b"ask");
    replace(&mut agent, LAYOUT_VERSION - 1);
    agent.wait("the devices are guarded", |agent| agent.status().devices == 2);
    net.db.actor.send_to(receiver, caller, b"answer").unwrap();
    assert_eq!(net.web.actor.receive(sender, 1).unwrap()[0].data, b"answer", "a flow that the version before knew");
    agent.apply(&text(CLOSED));
    net.web.actor.call(&frame(b"denied", PORT)).unwrap();
    assert!(net.db.actor.receive_for(receiver, 1, Duration::from_millis(300)).unwrap().is_empty());
    assert!(agent.balance().problems.is_empty(), "{:#?}", agent.status());
}

#[test]
fn g83_a_device_that_changed_hands_between_two_versions_takes_no_flow_along() {
    let Some(net) = Routed::open() else { return };
    let mut agent = Agent::prepare(&net.lab, &policy(&net.lab, OPEN, ""), &AgentOptions::default()).unwrap();
    agent.live_in(&net.host);
    agent.restart();
    agent.wait("both devices are guarded", |agent| agent.status().devices == 2);
    let heir = net.lab.cgroup().child("other");
    for (family, is_handed_on) in FAMILIES.into_iter().zip([false, true]) {
        let (receiver, to) = net.db.actor.udp_bind(net.db.at(family, PORT)).unwrap();
        let (sender, caller) = net.web.udp(family);
        net.web.actor.send_to(sender, to, b"ask").unwrap();
        assert_eq!(net.db.actor.receive(receiver, 1).unwrap()[0].data, b"ask");
        agent.kill();
        agent.inside(|| fs::rename(pins(&agent, LAYOUT_VERSION), pins(&agent, LAYOUT_VERSION - 1))).unwrap();
        // `web` leaves its network, with its address, to `other`.
        let _other = is_handed_on.then(|| {
            net.web.actor.enter(&NetNs::new());
            net.lab.actor(&heir, &net.web.net)
        });
        agent.restart();
        let owner = if is_handed_on { " other " } else { " web " };
        let devices = |agent: &Agent| String::from_utf8(agent.cli(&["devices"]).stdout).unwrap();
        agent.wait("each device has its owner", |agent| devices(agent).contains(owner));
        // By a frame, so that no socket of `db` knows better.
        let answer = magic();
        let mut sniffer = net.web.watch(&answer);
        let frame = framed(net.ethernet_of_db(), &ip_udp(to, caller, &answer));
        net.db.actor.call(&Command::SendFrame { device: "db0".to_owned(), frame, bypass: true }).unwrap();
        if is_handed_on {
            agent.event("the denial at the device", |e| e["unmapped"]["eastwall"]["hook"] == "tc/to");
        } else {
            assert_eq!(net.web.actor.receive(sender, 1).unwrap()[0].data, answer, "the control: nobody moved");
        }
        assert_eq!(sniffer.arrived(), u64::from(!is_handed_on));
    }
}
