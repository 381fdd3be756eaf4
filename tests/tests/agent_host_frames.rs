//! What processes of the host's own network send past their sockets: by AF_PACKET, and by raw sockets with a source that
//! is made up.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd as _,
    thread,
    time::{Duration, Instant},
};

use agent_common::layout::LAYOUT_VERSION;
use eastwall::datapath::open_pin;
use serde_json::{Map, Value, json};
use tests::{
    bpf, filters,
    frames::{FAMILIES, framed, ip_tcp, ip_udp},
    lab::{
        Agent, AgentOptions, Command, Errno, Family, Kind, Party, Socket, Transmit, Tun, TwoHosts, magic, wants_tcx,
    },
    scene::{BRIEF, LONG, document},
};

/// Between the hosts.
const UPLINK: &str = "up0";
/// To `web`.
const TO_WEB: &str = "to-web";
const OPEN: &str = "[{ from: node, to: far, ports: [udp/any, tcp/any] }, { from: other, to: web, ports: [udp/any] }]";
const CLOSED: &str = "[{ from: other, to: web, ports: [udp/any] }]";

/// `node` is in the network of the near host itself, `web` behind a device of it, and `peer` in the other host.
struct Host {
    agent: Agent,
    node: Party,
    peer: Party,
    hosts: TwoHosts,
}

impl Host {
    fn open() -> Option<Self> {
        let hosts = TwoHosts::open()?;
        let [node, peer] = hosts.residents();
        let more: Map<_, _> = [("scope", json!(hosts.near.cgroup.path())), ("guardHost", json!(true))]
            .map(|(key, value)| (key.to_owned(), value))
            .into_iter()
            .collect();
        let options = AgentOptions { more, ..AgentOptions::default() };
        let mut agent = Agent::prepare(&hosts.lab, &policy(&hosts, "enforce", OPEN), &options).unwrap();
        agent.live_in(&hosts.near.net);
        agent.restart();
        let host = Self { agent, node, peer, hosts };
        // `lo`, and both ends of the wire to the other host.
        host.wait(|status| status.devices == 1 && status.host_devices >= 2);
        Some(host)
    }

    fn wait(&self, holds: impl Fn(&eastwall::control::wire::Status) -> bool) {
        let end = Instant::now() + LONG;
        while !holds(&self.agent.status()) {
            assert!(Instant::now() < end, "{:#?}\n{}", self.agent.status(), self.agent.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn apply(&self, mode: &str, rules: &str) {
        self.agent.apply(&policy(&self.hosts, mode, rules));
    }

    /// Sends a packet of `node` by a frame.
    fn send(&self, device: &str, packet: &[u8], by: Transmit) -> Result<(), Errno> {
        let frame = framed(self.hosts.ethernet(device), packet);
        self.node.actor.call(&Command::TryFrame { device: device.to_owned(), frame, by }).map(|_| ())
    }

    /// As [`Self::send`]: the kernel says that it was dropped.
    fn dropped(&self, device: &str, packet: &[u8], by: Transmit) {
        assert_eq!(self.send(device, packet, by), Err(Errno::NOBUFS));
    }

    /// The reasons of denials at a hook since there were so many events.
    fn reasons(&self, hook: &str, since: usize) -> Vec<String> {
        let of = |e: &Value, path: &str| e.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let events = self.agent.events().into_iter().skip(since);
        let mut reasons: Vec<String> =
            events.filter(|e| of(e, "/unmapped/eastwall/hook") == hook).map(|e| of(&e, "/status_code")).collect();
        reasons.sort();
        reasons.dedup();
        reasons
    }

    /// Checks that a payload comes to nobody at the other host, and that this is said.
    fn stops(&self, receiver: (&Party, Socket), reason: &str, what: &str, send: impl FnOnce(&[u8])) {
        let (since, magic) = (self.agent.events().len(), magic());
        let mut sniffer = receiver.0.watch(&magic);
        send(&magic);
        assert_eq!(sniffer.arrived(), 0, "{what}: a sniffer saw it");
        assert_eq!(receiver.0.actor.received(receiver.1), Ok(vec![]), "{what}: the socket got it");
        self.agent.event(what, |_| self.reasons("tc/host", since) == [reason]);
    }
}

fn policy(hosts: &TwoHosts, mode: &str, rules: &str) -> String {
    let scope = hosts.near.cgroup.path();
    let workload = |name: &str| format!("    - {{ name: {name}, select: {{ cgroup: {scope}/{name} }} }}\n");
    format!(
        "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: host }}\nspec:\n  trustDomain: \
         lab.example\n  defaults: {{ mode: {mode} }}\n  workloads:\n{}  externals:\n    - {{ name: far, cidrs: \
         [10.8.0.2/32, \"fd08::2/128\"] }}\n    - {{ name: other, cidrs: [10.9.1.0/24, \"fd09:1::/64\"] }}\n  allow: \
         {rules}\n",
        ["node", "web"].map(workload).concat()
    )
}

/// Sources that are not the host's: of a workload of it, beside it, of the other host, of the world.
fn forged(family: Family) -> [IpAddr; 4] {
    let texts = match family {
        Family::V4 => ["10.9.0.1", "10.8.0.7", "10.8.0.2", "192.0.2.1"],
        Family::V6 => ["fd09::1", "fd08::7", "fd08::2", "2001:db8::1"],
    };
    texts.map(|text| text.parse().unwrap())
}

#[test]
fn g14_frames_of_the_hosts_own_network_are_judged_at_its_devices() {
    let Some(mut host) = Host::open() else { return };
    let ways = [Transmit::Queue, Transmit::Ring];
    for family in FAMILIES {
        let (receiver, to) = host.peer.udp(family);
        let (since, from) = (host.agent.events().len(), host.node.at(family, 40_001));
        for by in ways {
            host.send(UPLINK, &ip_udp(from, to, b"allowed"), by).unwrap();
            assert_eq!(host.peer.actor.receive(receiver, 1).unwrap()[0].data, b"allowed", "{family:?} {by:?}");
        }
        assert_eq!(host.reasons("tc/host", since), [""; 0], "nothing was denied yet");
        // Whoever may call somebody may not do so under another name.
        for (n, source) in (0..).zip(forged(family)) {
            let source = SocketAddr::new(source, 40_001);
            host.stops((&host.peer, receiver), "spoofed-source", "a forged source", |data| {
                // Another port is another denial, which is told at once.
                host.dropped(UPLINK, &ip_udp(source, SocketAddr::new(to.ip(), to.port() ^ n), data), Transmit::Queue);
                host.dropped(UPLINK, &ip_udp(source, to, data), Transmit::Queue);
            });
        }
        host.peer.actor.close(receiver);
    }
    host.apply("enforce", CLOSED);
    let dhcp = |to: &str| {
        let (from, to) = ("0.0.0.0:68".parse().unwrap(), to.parse().unwrap());
        host.send(UPLINK, &ip_udp(from, to, b"give me an address"), Transmit::Queue)
    };
    assert_eq!(dhcp("255.255.255.255:67"), Ok(()), "or the host could get no address");
    assert_eq!(["255.255.255.255:68", "10.8.0.2:67"].map(dhcp), [Err(Errno::NOBUFS); 2]);
    let denied = |host: &Host, what: &str, port: u16| {
        for family in FAMILIES {
            let (receiver, to) = host.peer.udp(family);
            let from = host.node.at(family, port);
            for (n, by) in (0_u16..).zip(ways) {
                let what = format!("{what}, {family:?} {by:?}");
                host.stops((&host.peer, receiver), "no-rule", &what, |data| {
                    host.dropped(UPLINK, &ip_udp(from, SocketAddr::new(to.ip(), to.port() ^ n), data), by);
                    host.dropped(UPLINK, &ip_udp(from, to, data), by);
                    host.dropped(UPLINK, &ip_tcp(from, to, |tcp| tcp.syn(), data), by);
                });
            }
            host.peer.actor.close(receiver);
        }
    };
    denied(&host, "no rule", 40_002);
    host.agent.kill();
    let (receiver, to) = host.peer.udp(Family::V4);
    let unseen = magic();
    let mut sniffer = host.peer.watch(&unseen);
    host.dropped(UPLINK, &ip_udp(host.node.at(Family::V4, 40_003), to, &unseen), Transmit::Queue);
    assert_eq!((sniffer.arrived(), host.peer.actor.received(receiver)), (0, Ok(vec![])), "without an agent");
    host.agent.restart();
    host.wait(|status| status.host_devices >= 2);
    denied(&host, "under the next agent", 40_004);
    assert!(host.agent.balance().problems.is_empty(), "{:#?}", host.agent.status());
}

#[test]
fn g14_without_guard_host_frames_of_the_hosts_own_network_leave() {
    // So nothing else stops those of the tests here.
    let Some(hosts) = TwoHosts::open() else { return };
    let [node, peer] = hosts.residents();
    let scope: Map<_, _> = [("scope".to_owned(), json!(hosts.near.cgroup.path()))].into_iter().collect();
    let options = AgentOptions { more: scope, ..AgentOptions::default() };
    let mut agent = Agent::prepare(&hosts.lab, &policy(&hosts, "enforce", CLOSED), &options).unwrap();
    agent.live_in(&hosts.near.net);
    agent.restart();
    for family in FAMILIES {
        let (receiver, to) = peer.udp(family);
        for by in Transmit::ALL {
            for source in [node.addr(family), forged(family)[1]] {
                let packet = ip_udp(SocketAddr::new(source, 40_001), to, b"past it");
                let frames = vec![framed(hosts.ethernet(UPLINK), &packet)];
                let command = Command::HammerFrames { device: UPLINK.to_owned(), frames, rounds: 1, by };
                node.actor.call(&command).unwrap();
                assert_eq!(peer.actor.receive(receiver, 1).unwrap()[0].data, b"past it", "{family:?} {by:?} {source}");
            }
        }
    }
}

#[test]
fn g14_the_way_past_the_queue_is_refused_in_the_hosts_own_network() {
    let Some(host) = Host::open() else { return };
    let (receiver, to) = host.peer.udp(Family::V4);
    let packet = |data: &[u8]| ip_udp(host.node.at(Family::V4, 40_001), to, data);
    let since = host.agent.events().len();
    assert_eq!(host.send(UPLINK, &packet(b"past it"), Transmit::Bypass), Err(Errno::PERM));
    let event = host.agent.event("the option is refused", |e| e["status_code"] == json!("bypass"));
    assert_eq!(host.reasons("setsockopt", since), ["bypass"]);
    assert_eq!(event["src_endpoint"]["uid"], json!("spiffe://lab.example/node"), "{event:#}");
    assert_eq!(event["actor"]["process"]["name"], json!("labd"), "{event:#}");
    assert_eq!(host.peer.actor.received(receiver), Ok(vec![]));

    // In a network of its own it is past nothing: the host's end of the device is guarded.
    let web = &host.hosts.near.party;
    let frames = vec![framed(swap(host.hosts.ethernet(TO_WEB)), &ip_udp(web.at(Family::V4, 1), to, b"judged"))];
    let bypass = Command::HammerFrames { device: "web0".to_owned(), frames, rounds: 1, by: Transmit::Bypass };
    web.actor.call(&bypass).unwrap();
    host.agent.event("it is judged there", |_| host.reasons("tc/from", since) == ["no-rule"]);

    // Whoever is only looked at is hindered in nothing.
    let since = host.agent.events().len();
    host.apply("audit", CLOSED);
    host.send(UPLINK, &packet(b"seen"), Transmit::Bypass).unwrap();
    assert_eq!(host.peer.actor.receive(receiver, 1).unwrap()[0].data, b"seen");
    host.agent.event("it is reported", |_| host.reasons("setsockopt", since) == ["bypass"]);
    host.send(UPLINK, &ip_udp(host.node.at(Family::V4, 40_009), to, b"seen"), Transmit::Queue).unwrap();
    assert_eq!(host.peer.actor.receive(receiver, 1).unwrap()[0].data, b"seen");
    host.agent.event("and what it sends is, too", |_| host.reasons("tc/host", since) == ["no-rule"]);
    assert!(host.agent.balance().problems.is_empty(), "{:#?}", host.agent.status());
}

#[test]
fn other_options_are_set_as_ever_whatever_their_size() {
    let Some(host) = Host::open() else { return };
    let actor = &host.node.actor;
    let socket = actor.socket(Family::V4, Kind::Stream, 0).unwrap();
    actor.set_option(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1).unwrap();
    assert_eq!(actor.set_option(socket, libc::SOL_SOCKET, 9_999, 1), Err(Errno::NOPROTOOPT));
    // A table of netfilter is longer than a page.
    // The kernel takes the first four bytes, and a program that looks at options at most a page.
    actor.set_bytes(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, [1_i32.to_ne_bytes(); 4_096].concat()).unwrap();
    assert_eq!(actor.set_bytes(socket, libc::SOL_SOCKET, libc::SO_KEEPALIVE, Vec::new()), Err(Errno::INVAL));
}

#[test]
fn g52_a_raw_socket_of_the_host_sends_by_no_source_that_is_not_the_hosts() {
    let Some(host) = Host::open() else { return };
    let (receiver, to) = host.peer.udp(Family::V4);
    let raw = host.node.actor.socket(Family::V4, Kind::Raw, u32::try_from(libc::IPPROTO_RAW).unwrap()).unwrap();
    let send = |from: SocketAddr, data: &[u8]| host.node.actor.send_to(raw, to, &ip_udp(from, to, data));
    send(host.node.at(Family::V4, 40_001), b"its own").unwrap();
    assert_eq!(host.peer.actor.receive(receiver, 1).unwrap()[0].data, b"its own");
    for (n, source) in (0..).zip(forged(Family::V4)) {
        host.stops((&host.peer, receiver), "spoofed-source", "a raw packet", |data| {
            let other = SocketAddr::new(to.ip(), to.port() ^ n);
            let from = SocketAddr::new(source, 40_001);
            let _ = host.node.actor.send_to(raw, other, &ip_udp(from, other, data));
            let _ = send(from, data);
        });
    }
}

#[test]
fn g52_nobody_in_the_hosts_network_calls_a_workload_by_another_ones_address() {
    let Some(host) = Host::open() else { return };
    let web = &host.hosts.near.party;
    // `node` is only looked at, so that it is the door which denies.
    let watched = policy(&host.hosts, "enforce", OPEN).replace("/node }", "/node }, egressMode: observe");
    host.agent.apply(&watched);
    for family in FAMILIES {
        let (receiver, to) = web.udp(family);
        let source = SocketAddr::new(if family == Family::V4 { "10.9.1.9" } else { "fd09:1::9" }.parse().unwrap(), 9);
        // Who has that address may call: it comes by the other host.
        let (since, data) = (host.agent.events().len(), magic());
        let raw = |protocol: i32| {
            let raw = u32::try_from(protocol).unwrap();
            host.node.actor.socket(family, Kind::Raw, raw).unwrap()
        };
        let mut sniffer = web.watch(&data);
        host.dropped(TO_WEB, &ip_udp(source, to, &data), Transmit::Queue);
        if family == Family::V4 {
            host.node.actor.send_to(raw(libc::IPPROTO_RAW), to, &ip_udp(source, to, &data)).unwrap();
        }
        assert_eq!((sniffer.arrived(), web.actor.received(receiver)), (0, Ok(vec![])), "{family:?}");
        host.agent.event("a forged caller", |_| host.reasons("tc/to", since) == ["spoofed-source"]);
        drop(sniffer);
        // The very same packet by the wire.
        let frames = vec![framed(swap(host.hosts.ethernet(UPLINK)), &ip_udp(source, to, b"by the wire"))];
        let command = Command::HammerFrames { device: UPLINK.to_owned(), frames, rounds: 1, by: Transmit::Queue };
        host.peer.actor.call(&command).unwrap();
        assert_eq!(web.actor.receive(receiver, 1).unwrap()[0].data, b"by the wire", "{family:?}");
    }
}

#[test]
fn a_workload_gets_answers_from_the_host_under_the_address_that_it_called() {
    let Some(host) = Host::open() else { return };
    let text = policy(&host.hosts, "enforce", "[{ from: web, to: vip, ports: [udp/53, tcp/53] }]");
    let vip = "    - { name: vip, cidrs: [10.96.0.10/32] }\n  allow:";
    let text = text.replace("/node }", "/node }, mode: observe").replace("  allow:", vip);
    host.agent.apply(&text);
    let (receiver, local) = host.node.udp(Family::V4);
    let service = SocketAddr::new("10.96.0.10".parse().unwrap(), 53);
    host.hosts.near.net.nft(&format!(
        "table ip t {{\n chain c {{\n type nat hook prerouting priority -100\n ip daddr 10.96.0.10 udp dport 53 dnat to \
         {local}\n }}\n}}\n"
    ));
    let web = &host.hosts.near.party;
    let (sender, _) = web.udp(Family::V4);
    for _ in 0..3 {
        web.actor.send_to(sender, service, b"ask").unwrap();
        let asked = host.node.actor.receive(receiver, 1).unwrap();
        host.node.actor.send_to(receiver, asked[0].from.unwrap(), b"answer").unwrap();
        let answer = web.actor.receive(sender, 1).unwrap();
        assert_eq!((answer[0].data.as_slice(), answer[0].from), (&b"answer"[..], Some(service)));
    }
    assert_eq!(host.agent.status().denied, 0, "{}", host.agent.log());
}

#[test]
fn devices_of_the_host_are_followed_and_lent_to_workloads() {
    let Some(host) = Host::open() else { return };
    let listed = || -> Vec<(String, String)> {
        let said = document(&host.agent.cli(&["devices", "-o", "json"]));
        let text = |v: &Value| v.as_str().unwrap().to_owned();
        said["devices"].as_array().unwrap().iter().map(|d| (text(&d["device"]), text(&d["workload"]))).collect()
    };
    let of = |device: &str| listed().into_iter().find(|(name, _)| name == device).map(|(_, workload)| workload);
    assert_eq!((of("lo"), of(UPLINK), of(TO_WEB)), (Some("(host)".into()), Some("(host)".into()), Some("web".into())));
    let net = &host.hosts.near.net;
    net.ip("link add br7 type bridge");
    net.ip("link set br7 up");
    host.wait(|_| of("br7").as_deref() == Some("(host)"));
    let (before, to) = (host.agent.events().len(), host.peer.at(Family::V4, 7));
    host.apply("enforce", CLOSED);
    let frame = framed(([2; 6], [4; 6]), &ip_udp(host.node.at(Family::V4, 7), to, b"denied"));
    let send = Command::TryFrame { device: "br7".to_owned(), frame, by: Transmit::Queue };
    assert_eq!(host.node.actor.call(&send).map(|_| ()), Err(Errno::NOBUFS));
    host.agent.event("judged at a new device", |_| host.reasons("tc/host", before) == ["no-rule"]);
    net.ip("link delete br7");
    host.wait(|_| of("br7").is_none());

    // It leads to `web` no more, but within the host; and back again.
    net.ip("link delete to-web");
    host.wait(|status| status.devices == 0);
    net.ip("link add to-web type veth peer name here0");
    host.wait(|_| of(TO_WEB).as_deref() == Some("(host)") && of("here0").as_deref() == Some("(host)"));
    net.ip(&format!("link set here0 netns {}", host.hosts.near.party.actor.process().pid()));
    host.wait(|_| of(TO_WEB).as_deref() == Some("web"));
    host.hosts.near.party.net.ip("link delete here0");
    host.wait(|status| status.devices == 0);
    assert!(host.agent.balance().problems.is_empty(), "{:#?}", host.agent.status());
}

#[test]
fn g14_frames_for_loopback_do_not_pass_the_exit() {
    let Some(host) = Host::open() else { return };
    let cgroup = host.hosts.near.cgroup.child("local");
    let local = host.hosts.lab.actor(&cgroup, &host.hosts.near.net);
    host.hosts.near.net.run(|| {
        // Else IPv4 takes no such packet that was not routed there.
        for setting in ["all/accept_local", "all/route_localnet", "lo/accept_local", "lo/route_localnet"] {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{setting}"), "1").unwrap();
        }
    });
    let with_local = |rules: &str| {
        let path = cgroup.path();
        let workload = format!("  workloads:\n    - {{ name: local, select: {{ cgroup: {path} }}, mode: observe }}\n");
        policy(&host.hosts, "enforce", rules).replace("  workloads:\n", &workload)
    };
    for (n, address) in (0_u16..).zip(["127.0.0.1", "10.8.0.1", "::1", "fd08::1"]) {
        let address: IpAddr = address.parse().unwrap();
        let (receiver, to) = local.udp_bind(SocketAddr::new(address, 0)).unwrap();
        let send = |data: &[u8]| {
            let packet = ip_udp(SocketAddr::new(address, 40_000 + n), to, data);
            let frame = framed(([0; 6], [0; 6]), &packet);
            let try_frame = Command::TryFrame { device: "lo".to_owned(), frame, by: Transmit::Queue };
            host.node.actor.call(&try_frame).map(|_| ())
        };
        host.agent.apply(&with_local("[{ from: node, to: local, ports: [udp/any] }]"));
        assert_eq!(send(b"allowed"), Ok(()), "{address}");
        assert_eq!(local.receive(receiver, 1).unwrap()[0].data, b"allowed", "{address}");
        host.agent.apply(&with_local("[{ from: local, to: node, ports: [udp/any] }]"));
        let since = host.agent.events().len();
        assert_eq!(send(b"denied"), Err(Errno::NOBUFS), "{address}");
        assert_eq!(local.received(receiver), Ok(vec![]), "{address}");
        host.agent.event("no rule", |_| host.reasons("tc/host", since).contains(&"no-rule".to_owned()));
        local.close(receiver);
    }
}

#[test]
fn g14_packets_for_a_device_without_ethernet_are_judged_too() {
    let Some(host) = Host::open() else { return };
    let net = &host.hosts.near.net;
    let Some(mut tun) = Tun::open(net, "t0") else {
        eprintln!("skipped: this machine has no tun devices");
        return;
    };
    net.ip("addr add 10.7.0.1/24 dev t0");
    net.ip("link set t0 up");
    host.wait(|status| status.host_devices >= 3);
    let with_tunnel = |rules: &str| {
        let tunnel = "  externals:\n    - { name: tunnel, cidrs: [10.7.0.0/24] }\n";
        policy(&host.hosts, "enforce", rules).replace("  externals:\n", tunnel)
    };
    let (to, own) = ("10.7.0.2:9".parse().unwrap(), "10.7.0.1:9".parse().unwrap());
    let frame = |from: SocketAddr, data: &[u8]| {
        let (device, frame) = ("t0".to_owned(), ip_udp(from, to, data));
        host.node.actor.call(&Command::TryFrame { device, frame, by: Transmit::Queue }).map(|_| ())
    };
    host.agent.apply(&with_tunnel("[{ from: node, to: tunnel, ports: [udp/any] }]"));
    // Its address is new, and counts a moment after it is there.
    let end = Instant::now() + LONG;
    while frame(own, b"allowed").is_err() {
        assert!(Instant::now() < end, "{}", host.agent.log());
        thread::sleep(Duration::from_millis(20));
    }
    assert!(tun.next_with(b"allowed", LONG).is_some());
    let raw = host.node.actor.socket(Family::V4, Kind::Raw, u32::try_from(libc::IPPROTO_RAW).unwrap()).unwrap();
    host.node.actor.send_to(raw, to, &ip_udp(own, to, b"raw")).unwrap();
    assert!(tun.next_with(b"raw", LONG).is_some());

    // Eight bytes of it read as a frame of IPv4 with an allowed packet: it is none here.
    for forged in ["8.0.69.0:9", "10.9.0.1:9"] {
        let (since, forged) = (host.agent.events().len(), forged.parse().unwrap());
        assert_eq!(frame(forged, b"forged"), Err(Errno::NOBUFS));
        let _ = host.node.actor.send_to(raw, to, &ip_udp(forged, to, b"forged"));
        host.agent.event("a forged source", |_| host.reasons("tc/host", since) == ["spoofed-source"]);
    }
    host.agent.apply(&with_tunnel(CLOSED));
    assert_eq!(frame(own, b"denied"), Err(Errno::NOBUFS));
    for data in [&b"forged"[..], b"denied"] {
        assert!(tun.next_with(data, BRIEF).is_none());
    }
    assert!(host.agent.balance().problems.is_empty(), "{:#?}", host.agent.status());
}

#[test]
fn a_program_that_is_taken_off_a_device_of_the_host_is_put_back() {
    let Some(host) = Host::open() else { return };
    host.apply("enforce", CLOSED);
    let to = host.peer.at(Family::V4, 7);
    let net = &host.hosts.near.net;
    if wants_tcx() && bpf::has_tcx() {
        let said = document(&host.agent.cli(&["devices", "-o", "json"]));
        let uplink =
            said["devices"].as_array().unwrap().iter().find(|device| device["device"] == json!(UPLINK)).unwrap();
        let index = &uplink["index"];
        let pin = host.agent.path(format!("bpf/eastwall/v{LAYOUT_VERSION}/links/ew_tc_host_{index}"));
        let link = host.agent.inside(|| open_pin(&pin)).unwrap().unwrap();
        bpf::detach(link.as_fd()).unwrap();
    } else {
        net.run(|| filters::tc(&format!("filter del dev {UPLINK} egress"))).unwrap();
    }
    host.agent.event("it is told", |e| {
        let text = e.to_string();
        text.contains("ew_tc_host") && text.contains("detached") && text.contains(UPLINK)
    });
    let since = host.agent.events().len();
    host.dropped(UPLINK, &ip_udp(host.node.at(Family::V4, 7), to, b"denied"), Transmit::Queue);
    host.agent.event("and judges again", |_| host.reasons("tc/host", since) == ["no-rule"]);
}

fn swap<T>((a, b): (T, T)) -> (T, T) {
    (b, a)
}
