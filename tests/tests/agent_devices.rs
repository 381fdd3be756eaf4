//! A running agent and the devices of workloads with networks of their own: found, guarded, followed.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _},
    process::Output,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    frames::{FAMILIES, framed, ip_udp},
    lab::{
        Actor, Agent, AgentOptions, Cgroup, Command, Errno, Family, Kind, NetNs, Routed, Socket, VethEnd, Witness,
        join, magic,
    },
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
fn detach_where_filters_are_not_seen_changes_nothing() {
    let Some(net) = Routed::open() else { return };
    let more = [("tcx".to_owned(), json!(false))].into_iter().collect();
    let options = AgentOptions { more, ..AgentOptions::default() };
    let mut agent = Agent::prepare(&net.lab, &policy(&net.lab, CLOSED, ""), &options).unwrap();
    agent.live_in(&net.host);
    agent.restart();
    wait_for(&agent, &BOTH);
    agent.stop();
    let (receiver, to) = net.db.udp(Family::V4);
    let send = || send_frame(&net, net.web.at(Family::V4, 40_000), to, b"by a frame");
    let config = agent.path("agent.yaml").display().to_string();
    let words = ["detach", "--config", &config, "--yes"];
    let elsewhere = agent.cli(&words);
    let said = String::from_utf8_lossy(&elsewhere.stderr).into_owned();
    assert!(elsewhere.status.code() == Some(2) && said.contains("in another network namespace"), "{elsewhere:?}");
    send();
    assert!(!arrives(&net, receiver));
    let here = net.host.run(|| agent.cli(&words));
    assert!(here.status.success(), "{here:?}");
    let end = Instant::now() + LONG;
    while !arrives(&net, receiver) {
        assert!(Instant::now() < end, "something else stops it: the test above proves nothing");
        send();
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

/// The hardware address of a device, as `ip` says it.
fn hardware(netns: &NetNs, device: &str) -> [u8; 6] {
    let line = netns.ip(&format!("-o link show dev {device}"));
    let text = line.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    bytes.try_into().unwrap()
}

/// A namespace as `ip` opens it.
fn path_of(netns: &NetNs) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd())
}

#[test]
fn g51_a_device_that_a_workload_gets_later_is_guarded_as_the_first() {
    let Some(Host { agent, net }) = open(RULES) else { return };
    wait_for(&agent, &BOTH);
    // By hand: the lab says hello by a pair, which the agent may forbid already.
    let there = path_of(&net.web.net);
    net.host.ip(&format!("link add to-web2 index 2001 type veth peer name web1 index 2002 netns {there}"));
    let ends = [(&net.host, "to-web2", "10.9.5.254", "fd09:5::ff"), (&net.web.net, "web1", "10.9.5.1", "fd09:5::1")];
    for (netns, device, v4, v6) in ends {
        netns.ip(&format!("address add {v4}/24 dev {device}"));
        netns.ip(&format!("address add {v6}/64 dev {device} nodad"));
        netns.ip(&format!("link set {device} up"));
    }
    let addresses = &["10.9.0.1", "10.9.5.1", "fd09::1", "fd09:5::1"][..];
    wait_for(&agent, &[BOTH[0], ("to-web", "web", addresses), ("to-web2", "web", addresses)]);
    let ethernet = (hardware(&net.web.net, "web1"), hardware(&net.host, "to-web2"));
    let (receiver, to) = net.db.udp(Family::V4);
    let send = |from: &str| {
        let magic = magic();
        let mut sniffer = net.db.watch(&magic);
        let frame = framed(ethernet, &ip_udp(from.parse().unwrap(), to, &magic));
        let send = Command::SendFrame { device: "web1".to_owned(), frame, bypass: true };
        net.web.actor.call(&send).unwrap();
        let arrived = sniffer.arrived();
        assert_eq!(arrived == 1, !net.db.actor.received(receiver).unwrap().is_empty());
        arrived
    };
    assert_eq!(send("10.9.5.1:40000"), 1, "{:#?}", agent.events());
    assert_eq!(send("10.9.5.77:40000"), 0);
    // The network of the workload says things of its own.
    let spoofed = agent.event("the spoofed source", |e| e["src_endpoint"]["ip"] == json!("10.9.5.77"));
    assert_eq!(spoofed["status_code"], json!("spoofed-source"), "{spoofed:#}");
    agent.apply(&policy(&net.lab, CLOSED, ""));
    assert_eq!(send("10.9.5.1:40000"), 0);
    let is_it = |e: &Value| e["status_code"] == json!("no-rule") && e["src_endpoint"]["port"] == json!(40_000);
    let denial = agent.event("the denial at the device", is_it);
    assert_eq!(denial["src_endpoint"]["uid"], json!("spiffe://lab.example/web"), "{denial:#}");
}

#[test]
fn g51_by_a_device_without_programs_sockets_send_what_they_may_and_no_more() {
    let Some(Host { agent, net }) = open(RULES) else { return };
    wait_for(&agent, &BOTH);
    // Outside, behind a device of the host, of which the workload gets a share.
    let outside = NetNs::new();
    let end = |netns, device, addrs| VethEnd { netns, device, addrs };
    NetNs::veth(end(&net.host, "up0", &["10.9.6.254/24"]), end(&outside, "out0", &["10.9.6.2/24"]));
    let there = path_of(&net.web.net);
    net.host.ip(&format!("link add share0 link up0 netns {there} type macvlan mode bridge"));
    net.web.net.ip("address add 10.9.6.1/24 dev share0");
    net.web.net.ip("link set share0 up");
    let receiver = outside.run(|| UdpSocket::bind("10.9.6.2:0")).unwrap();
    receiver.set_read_timeout(Some(LONG)).unwrap();
    let to = receiver.local_addr().unwrap();
    let socket = net.web.actor.socket(Family::V4, Kind::Datagram, 0).unwrap();
    let magic = magic();
    let mut sniffer = Witness::new(&outside, &magic);
    assert_eq!(net.web.actor.send_to(socket, to, &magic), Err(Errno::PERM));
    assert_eq!(sniffer.arrived(), 0);
    let external = "  externals:\n    - { name: outside, cidrs: [10.9.6.2/32] }\n";
    agent.apply(&policy(&net.lab, "[{ from: web, to: outside, ports: [udp/any] }]", external));
    assert_eq!(net.web.actor.send_to(socket, to, b"allowed"), Ok(7));
    assert_eq!(receiver.recv(&mut [0; 16]).unwrap(), 7);
    // Its end is in no network of the host's.
    let names: Vec<String> = devices(&agent).into_iter().map(|(device, ..)| device).collect();
    assert_eq!(names, ["to-db", "to-web"]);
    // Nor is another workload's, which has no device but such a share.
    let (other, lonely) = (net.lab.cgroup().child("other"), NetNs::new());
    let _actor = net.lab.actor(&other, &lonely);
    net.host.ip(&format!("link add share1 link up0 netns {} type macvlan mode bridge", path_of(&lonely)));
    let is_told = |agent: &Agent, who: &str, device: &str| {
        let said = format!("`{who}` also has `{device}` (macvlan) in its network");
        agent.status().problems.iter().any(|problem| problem.contains(&said))
    };
    let wait = |what: &str, holds: &dyn Fn() -> bool| {
        let end = Instant::now() + LONG;
        while !holds() {
            assert!(Instant::now() < end, "{what}: {:#?}", agent.status().problems);
            thread::sleep(Duration::from_millis(50));
        }
    };
    wait("both are told", &|| is_told(&agent, "web", "share0") && is_told(&agent, "other", "share1"));
    net.web.net.ip("link delete share0");
    lonely.ip("link delete share1");
    wait("nothing is left to tell", &|| agent.status().problems.is_empty());
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
