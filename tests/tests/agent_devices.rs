//! A running agent and the devices of workloads with networks of their own: found, guarded, followed.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    net::{IpAddr, SocketAddr},
    process::Output,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    frames::{FAMILIES, framed, ip_udp},
    lab::{Actor, Agent, AgentOptions, Cgroup, Command, Errno, Family, Kind, NetNs, Routed, Socket, join, magic},
    scene::{BRIEF, LONG, document, policy},
};

/// Only what the hooks of sockets do not see is left to the programs at devices.
const RULES: &str = "[{ from: web, to: db, ports: [udp/any, tcp/any] }]";
/// `web -> db` is somebody else's edge.
const CLOSED: &str = "[{ from: other, to: db, ports: [udp/1] }]";

/// A host with two workloads behind devices, and an agent in the host's network.
struct Host {
    agent: Agent,
    net: Routed,
}

fn open(rules: &str) -> Option<Host> {
    let net = Routed::open()?;
    let mut agent = Agent::prepare(&net.lab, &policy(&net.lab, rules, ""), &AgentOptions::default()).unwrap();
    agent.live_in(&net.host);
    agent.restart();
    Some(Host { agent, net })
}

/// What `eastwall devices` says: device, workload, addresses.
fn devices(agent: &Agent) -> Vec<(String, String, Vec<IpAddr>)> {
    let said = document(&agent.cli(&["devices", "-o", "json"]));
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let rows = said["devices"].as_array().unwrap().iter();
    rows.map(|d| {
        let addresses = d["addresses"].as_array().unwrap().iter().map(|a| text(a).parse().unwrap());
        let global = addresses.filter(|a| !matches!(a, IpAddr::V6(v6) if v6.is_unicast_link_local()));
        (text(&d["device"]), text(&d["workload"]), global.collect())
    })
    .collect()
}

/// Waits until the agent says this of its devices.
fn wait_for(agent: &Agent, expected: &[(&str, &str, &[&str])]) {
    let expected: Vec<(String, String, Vec<IpAddr>)> = expected
        .iter()
        .map(|(device, workload, addresses)| {
            let addresses = addresses.iter().map(|a| a.parse().unwrap()).collect();
            ((*device).to_owned(), (*workload).to_owned(), addresses)
        })
        .collect();
    let end = Instant::now() + LONG;
    loop {
        let found = devices(agent);
        if found == expected {
            return;
        }
        assert!(Instant::now() < end, "{found:#?} is not {expected:#?}\n{}", agent.log());
        thread::sleep(Duration::from_millis(20));
    }
}

const BOTH: [(&str, &str, &[&str]); 2] =
    [("to-db", "db", &["10.9.1.2", "fd09:1::2"]), ("to-web", "web", &["10.9.0.1", "fd09::1"])];

/// A datagram from `web` by a frame, past every hook of sockets.
fn send_frame(net: &Routed, from: SocketAddr, to: SocketAddr, data: &[u8]) {
    let frame = framed(net.ethernet(), &ip_udp(from, to, data));
    let send = Command::SendFrame { device: "web0".to_owned(), frame, bypass: true };
    net.web.actor.call(&send).unwrap();
}

fn arrives(net: &Routed, receiver: Socket) -> bool {
    !net.db.actor.receive_for(receiver, 1, BRIEF).unwrap().is_empty()
}

fn reasons(agent: &Agent) -> Vec<String> {
    let of = |e: &Value, path: &str| e.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let denials = agent.events().into_iter().filter(|e| of(e, "/action") == "Denied");
    let mut reasons: Vec<String> =
        denials.map(|e| format!("{} {}", of(&e, "/unmapped/eastwall/hook"), of(&e, "/status_code"))).collect();
    reasons.dedup();
    reasons
}

#[test]
fn devices_are_guarded_and_addresses_name_their_workloads() {
    let Some(Host { mut agent, net }) = open(RULES) else { return };
    wait_for(&agent, &BOTH);
    for family in FAMILIES {
        // By identity, though each end sees an address of the other.
        let (receiver, to) = net.db.udp(family);
        let (sender, from) = net.web.udp(family);
        net.web.actor.send_to(sender, to, b"ask").unwrap();
        assert_eq!(net.db.actor.receive(receiver, 1).unwrap()[0].data, b"ask");
        net.db.actor.send_to(receiver, from, b"answer").unwrap();
        assert_eq!(net.web.actor.receive(sender, 1).unwrap()[0].data, b"answer");
        let caller = net.db.actor.socket(family, Kind::Datagram, 0).unwrap();
        assert_eq!(net.db.actor.send_to(caller, from, b"the other way"), Err(Errno::PERM));
    }
    let explained = agent.cli(&["explain", "ip/10.9.0.1", "ip/fd09:1::2:udp/53"]);
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.starts_with("ALLOW  ip/10.9.0.1 (web) -> ip/fd09:1::2 (db) udp/53"), "{explained}");
    let (receiver, to) = net.db.udp(Family::V4);
    send_frame(&net, net.web.at(Family::V4, 40_000), to, b"by a frame");
    assert!(arrives(&net, receiver), "{:#?}", agent.events());
    agent.apply(&policy(&net.lab, CLOSED, ""));
    send_frame(&net, net.web.at(Family::V4, 40_000), to, b"by a frame");
    send_frame(&net, "10.9.0.77:40000".parse().unwrap(), to, b"from nobody's address");
    assert!(!arrives(&net, receiver));
    let spoofed = agent.event("the spoofed source", |e| e["status_code"] == json!("spoofed-source"));
    assert_eq!(spoofed["src_endpoint"]["ip"], json!("10.9.0.77"), "{spoofed:#}");
    assert!(reasons(&agent).iter().any(|reason| reason.ends_with(" no-rule")));
    let status = agent.balance();
    assert_eq!((status.devices, status.lost, status.problems.len()), (2, 0, 0), "{status:#?}");

    // The deliberate way out takes these programs off as well.
    agent.stop();
    let config = agent.path("agent.yaml").display().to_string();
    // Filters of clsact are looked for where the caller is.
    let detached = net.host.run(|| agent.cli(&["detach", "--config", &config, "--yes"]));
    assert!(detached.status.success(), "{detached:?}");
    let end = Instant::now() + LONG;
    while !arrives(&net, receiver) {
        assert!(Instant::now() < end, "something else stops it: the test above proves nothing");
        send_frame(&net, "10.9.0.77:40000".parse().unwrap(), to, b"from nobody's address");
    }
}

#[test]
fn g82_an_agent_that_dies_leaves_devices_guarded_and_the_next_one_cuts_nothing() {
    let Some(Host { mut agent, net }) = open(RULES) else { return };
    wait_for(&agent, &BOTH);
    let (listener, to) = net.db.listen(Family::V4);
    let ours = net.web.actor.tcp_connect(to, LONG).unwrap();
    let theirs = net.db.actor.accept(listener).unwrap();
    let (receiver, at) = net.db.udp(Family::V4);
    let talk = |data: &[u8]| {
        net.web.actor.send(ours, data).unwrap();
        assert_eq!(net.db.actor.receive(theirs, 1).unwrap()[0].data, data);
    };
    talk(b"before");
    agent.kill();
    talk(b"while no agent runs");
    send_frame(&net, "10.9.0.77:40000".parse().unwrap(), at, b"from nobody's address");
    assert!(!arrives(&net, receiver));
    // Meanwhile a workload comes.
    let other = net.lab.cgroup().child("other");
    let far = Arc::new(NetNs::new());
    join(&net.host, ("to-far", ["10.9.2.254/24", "fd09:2::ff/64"]), &far, ("far0", ["10.9.2.3/24", "fd09:2::3/64"]));
    let _inhabitant = net.lab.actor(&other, &far);
    agent.restart();
    let three = [BOTH[0], ("to-far", "other", &["10.9.2.3", "fd09:2::3"][..]), BOTH[1]];
    wait_for(&agent, &three);
    talk(b"after");
    // Its edge goes, and both ends see that.
    agent.apply(&policy(&net.lab, CLOSED, ""));
    assert!(ends(&net.web.actor, ours) && ends(&net.db.actor, theirs), "{}", agent.log());
    // A device that is gone is forgotten.
    net.host.ip("link delete to-far");
    wait_for(&agent, &BOTH);
    assert!(agent.balance().problems.is_empty(), "{:#?}", agent.status());
}

/// Says whether a connection ends, one way or the other.
fn ends(actor: &Actor, socket: Socket) -> bool {
    let end = Instant::now() + LONG;
    while Instant::now() < end {
        match actor.receive_for(socket, 1, Duration::from_millis(50)) {
            Err(_) => return true,
            Ok(messages) if messages.iter().any(|m| m.data.is_empty()) => return true,
            Ok(_) => {}
        }
    }
    false
}

#[test]
fn g80_the_next_owner_of_an_address_has_its_own_edges_only() {
    let Some(Host { agent, net }) = open(RULES) else { return };
    wait_for(&agent, &BOTH);
    let (receiver, to) = net.db.udp(Family::V4);
    let (sender, from) = net.web.udp(Family::V4);
    net.web.actor.send_to(sender, to, b"as web").unwrap();
    assert_eq!(net.db.actor.receive(receiver, 1).unwrap().len(), 1);

    // The exit of `other` denies nothing: the door of `db` has the last word.
    let observed = policy(&net.lab, RULES, "").replace("/other }", "/other }, egressMode: observe");
    agent.apply(&observed);
    net.host.ip("link delete to-web");
    wait_for(&agent, &BOTH[..1]);
    let other: Cgroup = net.lab.cgroup().child("other");
    let far = Arc::new(NetNs::new());
    join(&net.host, ("to-web", ["10.9.0.254/24", "fd09::ff/64"]), &far, ("web0", ["10.9.0.1/24", "fd09::1/64"]));
    let stranger = net.lab.actor(&other, &far);
    wait_for(&agent, &[BOTH[0], ("to-web", "other", BOTH[1].2)]);
    // On the flow of the one before, from its port.
    let (socket, _) = stranger.udp_bind(from).unwrap();
    let magic = magic();
    let mut sniffer = net.db.watch(&magic);
    stranger.send_to(socket, to, &magic).unwrap();
    assert!(!arrives(&net, receiver));
    assert_eq!(sniffer.arrived(), 0, "a sniffer in the receiver's namespace saw it");
    let denial = agent.event("the denial at the door", |e| e["status_code"] == json!("no-rule"));
    assert_eq!(denial["src_endpoint"]["uid"], json!("spiffe://lab.example/other"), "{denial:#}");
}

#[test]
fn without_devices_the_agent_says_so_and_guards_sockets() {
    let net = match Routed::open() {
        Some(net) => net,
        None => return,
    };
    let options = AgentOptions {
        more: [("guardDevices".to_owned(), json!(false))].into_iter().collect(),
        ..AgentOptions::default()
    };
    let agent = Agent::start(&net.lab, &policy(&net.lab, RULES, ""), &options);
    assert_eq!(devices(&agent), []);
    let output: Output = agent.cli(&["devices"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("no device leads to a workload"), "{output:?}");
}
