//! Two hosts, one policy: an agent on each, and a file that tells each where the workloads of the other are.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Map, json};
use tempfile::TempDir;
use tests::{
    frames::FAMILIES,
    lab::{Agent, AgentOptions, Errno, Family, HostOf, Kind, NetNs, Party, Socket, TwoHosts, join, magic},
    scene::{BRIEF, LONG},
};

const OPEN: &str = "[{ from: web, to: db, ports: [udp/any, tcp/any] }]";
const CLOSED: &str = "[{ from: other, to: db, ports: [udp/1] }]";

/// Where a workload is, as the other host is told.
fn whereabouts(of: &Party) -> String {
    let [v4, v6] = FAMILIES.map(|family| of.addr(family));
    format!("peers:\n  - {{ workload: {}, addresses: [{v4}, \"{v6}\"] }}\n", of.name)
}

/// The same on both hosts.
fn policy(hosts: &TwoHosts, rules: &str) -> String {
    let (near, far) = (hosts.near.cgroup.path(), hosts.far.cgroup.path());
    format!(
        "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: hosts }}\nspec:\n  trustDomain: \
         lab.example\n  defaults: {{ mode: enforce }}\n  workloads:\n    - {{ name: web, select: {{ cgroup: {near}/web }} \
         }}\n    - {{ name: other, select: {{ cgroup: {near}/other }} }}\n    - {{ name: db, select: {{ cgroup: \
         {far}/db }} }}\n  allow: {rules}\n"
    )
}

/// An agent of one host, and the file that names the workloads of the other.
struct Guarded {
    agent: Agent,
    peers: PathBuf,
    _dir: TempDir,
}

fn guard_near(hosts: &TwoHosts) -> Guarded {
    guard(hosts, &hosts.near, &whereabouts(&hosts.far.party), 2)
}

fn guard_far(hosts: &TwoHosts) -> Guarded {
    guard(hosts, &hosts.far, &whereabouts(&hosts.near.party), 2)
}

fn guard(hosts: &TwoHosts, host: &HostOf, peers: &str, addresses: usize) -> Guarded {
    let dir = TempDir::with_prefix("eastwall-lab-peers-").unwrap();
    let file = dir.path().join("peers.yaml");
    fs::write(&file, peers).unwrap();
    // What the hosts themselves send, such as their tunnels, is theirs, and passes.
    let more: Map<_, _> =
        [("scope", json!(host.cgroup.path())), ("peersFile", json!(file)), ("guardHost", json!(true))]
            .map(|(key, value)| (key.to_owned(), value))
            .into_iter()
            .collect();
    let options = AgentOptions { more, ..AgentOptions::default() };
    let mut agent = Agent::prepare(&hosts.lab, &policy(hosts, OPEN), &options).unwrap();
    agent.live_in(&host.net);
    agent.restart();
    let guarded = Guarded { agent, peers: file, _dir: dir };
    guarded.wait_for(1, addresses);
    guarded
}

impl Guarded {
    /// Waits for so many devices, and addresses of other hosts.
    fn wait_for(&self, devices: usize, peers: usize) {
        let end = Instant::now() + LONG;
        loop {
            let status = self.agent.status();
            if (status.devices, status.peers) == (devices, peers) && status.addresses > 0 {
                return;
            }
            assert!(Instant::now() < end, "{status:#?}\n{}", self.agent.log());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

fn arrives(hosts: &TwoHosts, receiver: Socket) -> bool {
    !hosts.far.party.actor.receive_for(receiver, 1, BRIEF).unwrap().is_empty()
}

#[test]
fn only_listed_edges_pass_between_two_hosts_and_a_dead_agent_opens_none() {
    TwoHosts::open().iter().for_each(only_listed_edges_pass);
}

#[test]
fn only_listed_edges_pass_through_a_tunnel_of_the_hosts_and_a_dead_agent_opens_none() {
    TwoHosts::overlay().iter().for_each(only_listed_edges_pass);
}

fn only_listed_edges_pass(hosts: &TwoHosts) {
    let (web, db) = (&hosts.near.party, &hosts.far.party);
    let sockets = FAMILIES.map(|family| (web.udp(family), db.udp(family)));
    for ((sender, _), (receiver, to)) in sockets {
        web.actor.send_to(sender, to, b"control").unwrap();
        assert_eq!(db.actor.receive(receiver, 1).unwrap()[0].data, b"control", "nobody judges yet");
    }
    let mut near = guard_near(hosts);
    let mut far = guard_far(hosts);
    let exchange = || {
        for ((sender, from), (receiver, to)) in sockets {
            web.actor.send_to(sender, to, b"ask").unwrap();
            assert_eq!(db.actor.receive(receiver, 1).unwrap()[0].data, b"ask");
            db.actor.send_to(receiver, from, b"answer").unwrap();
            assert_eq!(web.actor.receive(sender, 1).unwrap()[0].data, b"answer");
            // The other way is nobody's edge.
            let caller = db.actor.socket(Family::of(to), Kind::Datagram, 0).unwrap();
            assert_eq!(db.actor.send_to(caller, from, b"backwards"), Err(Errno::PERM));
            db.actor.close(caller);
        }
    };
    exchange();
    let connections = FAMILIES.map(|family| {
        let (listener, to) = db.listen(family);
        let ours = web.actor.tcp_connect(to, LONG).unwrap();
        (ours, db.actor.accept(listener).unwrap())
    });
    near.agent.kill();
    far.agent.kill();
    exchange();
    for (ours, theirs) in connections {
        web.actor.send(ours, b"still there").unwrap();
        assert_eq!(db.actor.receive(theirs, 1).unwrap()[0].data, b"still there");
    }
    near.agent.restart();
    far.agent.restart();
    exchange();

    // The door alone: what the near host lets pass, the far one denies by the name that it has for the address.
    far.agent.apply(&policy(hosts, CLOSED));
    let magic = magic();
    let mut sniffer = db.watch(&magic);
    for ((sender, _), (receiver, to)) in sockets {
        web.actor.send_to(sender, to, &magic).unwrap();
        assert!(!arrives(hosts, receiver));
    }
    assert_eq!(sniffer.arrived(), 0);
    let denial = far.agent.event("the denial at the door", |e| e["src_endpoint"]["ip"] == json!("10.9.0.1"));
    assert_eq!(denial["src_endpoint"]["uid"], json!("spiffe://lab.example/web"), "{denial:#}");
    // The exit alone.
    far.agent.apply(&policy(hosts, OPEN));
    near.agent.apply(&policy(hosts, CLOSED));
    for ((sender, _), (receiver, to)) in sockets {
        assert_eq!(web.actor.send_to(sender, to, &magic), Err(Errno::PERM));
        assert!(!arrives(hosts, receiver));
    }
    for guarded in [&near, &far] {
        assert!(guarded.agent.balance().problems.is_empty(), "{:#?}", guarded.agent.status());
    }
}

#[test]
fn the_next_owner_of_an_address_has_none_of_its_edges_on_either_host() {
    let Some(hosts) = TwoHosts::open() else { return };
    let (near, far) = (guard_near(&hosts), guard_far(&hosts));
    let (web, db) = (&hosts.near.party, &hosts.far.party);
    let (receiver, to) = db.udp(Family::V4);
    let (sender, from) = web.udp(Family::V4);
    web.actor.send_to(sender, to, b"as web").unwrap();
    assert_eq!(db.actor.receive(receiver, 1).unwrap().len(), 1);

    // `web` is gone, and `other` gets its address. The far host has not heard of it.
    hosts.near.net.ip("link delete to-web");
    let cgroup = hosts.near.cgroup.child("other");
    let net = Arc::new(NetNs::new());
    join(
        &hosts.near.net,
        ("to-other", ["10.9.0.254/24", "fd09::ff/64"]),
        &net,
        ("other0", ["10.9.0.1/24", "fd09::1/64"]),
    );
    let other = hosts.lab.actor(&cgroup, &net);
    near.wait_for(1, 2);
    let end = Instant::now() + LONG;
    while !String::from_utf8_lossy(&near.agent.cli(&["devices"]).stdout).contains("other ") {
        assert!(Instant::now() < end, "{}", near.agent.log());
        thread::sleep(Duration::from_millis(20));
    }
    let (socket, _) = other.udp_bind(from).unwrap();
    assert_eq!(other.send_to(socket, to, b"as other"), Err(Errno::PERM));
    assert!(!arrives(&hosts, receiver));
    // Once it has, its door denies by itself.
    fs::write(&far.peers, whereabouts(web).replace("web", "other")).unwrap();
    let end = Instant::now() + LONG;
    while far.agent.status().epoch < 3 || !far.agent.log().contains("workloads of other hosts have changed") {
        assert!(Instant::now() < end, "{}", far.agent.log());
        thread::sleep(Duration::from_millis(20));
    }
    near.agent.apply(&policy(&hosts, OPEN).replace("/other }", "/other }, egressMode: observe"));
    other.send_to(socket, to, b"as other").unwrap();
    assert!(!arrives(&hosts, receiver));
    let denial = far.agent.event("the denial at the door", |e| e["status_code"] == json!("no-rule"));
    assert_eq!(denial["src_endpoint"]["uid"], json!("spiffe://lab.example/other"), "{denial:#}");
}

#[test]
fn a_file_that_cannot_be_used_changes_nothing_and_is_named() {
    let Some(hosts) = TwoHosts::open() else { return };
    let mut near = guard_near(&hosts);
    let problem = |guarded: &Guarded, text: &str| {
        let end = Instant::now() + LONG;
        while !guarded.agent.status().problems.iter().any(|problem| problem.contains(text)) {
            assert!(Instant::now() < end, "{:#?}", guarded.agent.status());
            thread::sleep(Duration::from_millis(20));
        }
        assert_eq!(guarded.agent.status().peers, 2, "what was in force stays");
    };
    fs::write(&near.peers, "peers:\n  - { workload: db, adresses: [10.9.1.2] }\n").unwrap();
    problem(&near, "peers.yaml:2:");
    // Nor at a start.
    near.agent.stop();
    near.agent.restart();
    problem(&near, "peers.yaml:2:");
    fs::write(&near.peers, whereabouts(&hosts.far.party).replace("db", "nobody")).unwrap();
    problem(&near, "policy declares no workload `nobody`");
    // What policy does not know is not the world either.
    let (_, to) = hosts.far.party.udp(Family::V4);
    let world = policy(&hosts, "[{ from: web, to: world, ports: [udp/any] }]");
    near.agent.apply(&world);
    let (sender, _) = hosts.near.party.udp(Family::V4);
    assert_eq!(hosts.near.party.actor.send_to(sender, to, b"to the world"), Err(Errno::PERM));
    fs::write(&near.peers, "peers: []\n").unwrap();
    near.wait_for(1, 0);
    hosts.near.party.actor.send_to(sender, to, b"to the world").unwrap();
    assert_eq!(near.agent.status().problems, Vec::<String>::new());
}

#[test]
fn a_door_without_shared_peers_takes_nobody_by_the_name_of_a_neighbour() {
    let Some(hosts) = TwoHosts::open() else { return };
    let shared = whereabouts(&hosts.near.party) + "  - { workload: other, addresses: [10.9.0.1, \"fd09::1\"] }\n";
    let far = guard(&hosts, &hosts.far, &shared, 2);
    let (web, db) = (&hosts.near.party, &hosts.far.party);
    let alone = policy(&hosts, OPEN).replace("/db }", "/db }, sharedPeers: deny");
    for family in FAMILIES {
        let ((sender, _), (receiver, to)) = (web.udp(family), db.udp(family));
        far.agent.apply(&policy(&hosts, OPEN));
        web.actor.send_to(sender, to, b"as any member").unwrap();
        assert_eq!(db.actor.receive(receiver, 1).unwrap()[0].data, b"as any member");
        far.agent.apply(&alone);
        let magic = magic();
        let mut sniffer = db.watch(&magic);
        web.actor.send_to(sender, to, &magic).unwrap();
        assert_eq!(sniffer.arrived(), 0);
        assert!(!arrives(&hosts, receiver));
    }
    far.agent.event("the denial at the door", |e| e["status_code"] == json!("no-rule"));
    // Whose address it is alone may call as ever.
    fs::write(&far.peers, whereabouts(web)).unwrap();
    let end = Instant::now() + LONG;
    let ((sender, _), (receiver, to)) = (web.udp(Family::V4), db.udp(Family::V4));
    loop {
        web.actor.send_to(sender, to, b"alone").unwrap();
        if arrives(&hosts, receiver) {
            return;
        }
        assert!(Instant::now() < end, "{}", far.agent.log());
    }
}

/// Where workloads are, and nobody else.
const RANGES: &str = "ranges: [10.9.0.0/16, \"fd09::/16\"]\n";

#[test]
fn an_address_of_a_range_is_nobodys_until_it_is_told_whose_it_is() {
    let Some(hosts) = TwoHosts::open() else { return };
    let (web, db) = (&hosts.near.party, &hosts.far.party);
    let far = guard(&hosts, &hosts.far, "peers: []\n", 0);
    let world = "[{ from: world, to: db, ports: [udp/any] }, { from: web, to: db, ports: [tcp/any] }]";
    far.agent.apply(&policy(&hosts, world));
    let sockets = FAMILIES.map(|family| (web.udp(family), db.udp(family)));
    for ((sender, _), (receiver, to)) in sockets {
        web.actor.send_to(sender, to, b"as the world").unwrap();
        assert_eq!(db.actor.receive(receiver, 1).unwrap()[0].data, b"as the world", "the control");
    }
    fs::write(&far.peers, format!("peers: []\n{RANGES}")).unwrap();
    let end = Instant::now() + LONG;
    for ((sender, _), (receiver, to)) in sockets {
        while {
            web.actor.send_to(sender, to, b"in a range").unwrap();
            arrives(&hosts, receiver)
        } {
            assert!(Instant::now() < end, "{}", far.agent.log());
        }
        let magic = magic();
        let mut sniffer = db.watch(&magic);
        web.actor.send_to(sender, to, &magic).unwrap();
        assert!(!arrives(&hosts, receiver));
        assert_eq!(sniffer.arrived(), 0);
    }
    // Nobody says whose it is: that is told, a moment later.
    for family in FAMILIES {
        let from = json!(web.addr(family));
        let told = far.agent.event("the denial of nobody", |e| e["src_endpoint"]["ip"] == from);
        assert_eq!(told["status_code"], json!("unknown-caller"), "{told:#}");
        let [logged, time] =
            ["/metadata/logged_time", "/time"].map(|field| told.pointer(field).unwrap().as_u64().unwrap());
        assert!(logged - time >= 5_000, "{told:#}");
    }
}

#[test]
fn a_denial_is_settled_if_it_is_told_in_time_whose_the_address_is() {
    /// On a busy machine the news come late.
    const ROUNDS: u32 = 5;
    let Some(hosts) = TwoHosts::open() else { return };
    let (web, db) = (&hosts.near.party, &hosts.far.party);
    let nobody = format!("peers: []\n{RANGES}");
    let far = guard(&hosts, &hosts.far, &nobody, 0);
    let (listener, to) = db.listen(Family::V4);
    for round in 1..=ROUNDS {
        let start = Instant::now();
        let before = far.agent.status();
        // It counts once it has been the same for a moment: after the first SYN, and before the next ones.
        fs::write(&far.peers, whereabouts(web) + RANGES).unwrap();
        let caller = web.actor.tcp_connect(to, LONG).unwrap();
        far.wait_for(1, 2);
        let took = start.elapsed();
        let callee = db.actor.accept(listener).unwrap();
        web.actor.send(caller, b"known").unwrap();
        assert_eq!(db.actor.receive(callee, 1).unwrap()[0].data, b"known");
        assert!(far.agent.status().denied > before.denied, "nothing was denied, so there is nothing to settle");
        let status = far.agent.balance();
        if took < Duration::from_secs(3) {
            assert_eq!(status.reported, before.reported, "{:#?}", far.agent.events());
            assert_eq!(status.lost, before.lost);
            assert_eq!(status.settled - before.settled, status.denied - before.denied, "{status:#?}");
            let shown = String::from_utf8(far.agent.cli(&["status"]).stdout).unwrap();
            assert!(shown.contains(&format!("({} settled)", status.settled)), "{shown}");
            return;
        }
        assert!(round < ROUNDS, "this machine is never told in time");
        web.actor.close(caller);
        db.actor.close(callee);
        fs::write(&far.peers, &nobody).unwrap();
        far.wait_for(1, 0);
    }
}
