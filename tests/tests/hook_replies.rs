//! Replies: G54 and G62 of the list of gaps. What nobody asked for is no reply, whatever it looks like.

use std::net::{IpAddr, SocketAddr};

use agent_common::{layout::Hook, verdict::Reason};
use etherparse::PacketBuilder;
use tests::lab::{Errno, Family, Kind, NetNs, Place, Scene, VethEnd, everywhere, magic};

/// On a raw socket the port is nothing.
fn host(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip(), 0)
}

/// Why packets were not let out. A raw socket for ICMPv6 is also sent copies of what the kernel says to
/// neighbours, whenever it likes to, and its door judges those.
fn at_exits(scene: &Scene) -> Vec<(Hook, Reason)> {
    scene.denials().causes().into_iter().filter(|(hook, _)| *hook != Hook::Ingress).collect()
}

#[test]
fn g54_an_echo_one_way_opens_nothing_the_other_way() {
    const V4: (Family, u32, u8, u8) = (Family::V4, 1, 8, 0);
    const V6: (Family, u32, u8, u8) = (Family::V6, 58, 128, 129);
    for (fast_refusal, (family, protocol, request, reply)) in [(true, V4), (false, V4), (true, V6), (false, V6)] {
        let Some(scene) = Scene::open(Place::Veth, fast_refusal) else { return };
        let message = |kind: u8, data: &[u8]| {
            let mut bytes = vec![kind, 0, 0, 0, 0x77, 0x77, 0, 1];
            bytes.extend(data);
            if family == Family::V4 {
                let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&bytes).ones_complement().to_ne_bytes();
                bytes[2..4].copy_from_slice(&sum);
            }
            bytes
        };
        let (web, db) = (&scene.web, &scene.db);
        let ours = web.actor.socket(family, Kind::Raw, protocol).unwrap();
        let theirs = db.actor.socket(family, Kind::Raw, protocol).unwrap();
        let (to_web, to_db) = (web.at(family, 0), db.at(family, 0));
        scene.allow(&["db -> web: icmp/echo"]);
        // The kernel of `web` answers, and the raw socket of `web` sees the request.
        db.actor.send_to(theirs, to_web, &message(request, b"ping")).unwrap();
        assert!(db.actor.receive(theirs, 1).unwrap()[0].data.ends_with(b"ping"));
        assert!(web.actor.receive(ours, 1).unwrap()[0].data.ends_with(b"ping"));
        assert_eq!(at_exits(&scene), []);
        // An answer of its own with this identifier is an answer.
        web.actor.send_to(ours, to_db, &message(reply, b"pong")).unwrap();
        assert!(db.actor.receive(theirs, 1).unwrap()[0].data.ends_with(b"pong"));
        // A request with this identifier is none.
        let magic = magic();
        let mut witness = scene.watch(&magic);
        assert_eq!(web.actor.send_to(ours, to_db, &message(request, &magic)), Err(Errno::PERM));
        assert_eq!(at_exits(&scene), [(Hook::Egress, Reason::NoRule)]);
        // Nor is an answer with another.
        let mut stray = message(reply, &magic);
        stray[5] ^= 1;
        // The sum of the words stays the same.
        stray[7] ^= 1;
        assert_eq!(web.actor.send_to(ours, to_db, &stray), Err(Errno::PERM));
        assert_eq!(at_exits(&scene), [(Hook::Egress, Reason::NoFlow)]);
        assert_eq!(witness.arrived(), 0);
    }
}

#[test]
fn g62_a_segment_of_no_connection_is_denied_though_its_edge_is_there() {
    for (place, fast_refusal) in
        [(Place::Loopback, true), (Place::Loopback, false), (Place::Veth, true), (Place::Veth, false)]
    {
        let Some(scene) = Scene::open(place, fast_refusal) else { return };
        let (listener, to) = scene.db.listen(Family::V4);
        let sender = scene.web.actor.socket(Family::V4, Kind::Raw, 6).unwrap();
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (scene.web.addr(Family::V4), to.ip()) else { panic!("IPv4") };
        let magic = magic();
        type Flags = fn(
            etherparse::PacketBuilderStep<etherparse::TcpHeader>,
        ) -> etherparse::PacketBuilderStep<etherparse::TcpHeader>;
        let segment = |flags: Flags, payload: &[u8]| {
            let tcp = PacketBuilder::ipv4(src.octets(), dst.octets(), 64).tcp(40_001, to.port(), 7, 1024);
            let mut packet = Vec::new();
            flags(tcp).write(&mut packet, payload).unwrap();
            packet.split_off(20)
        };
        scene.allow(&["web -> db: tcp/any"]);
        let mut witness = scene.watch(&magic);
        let odd: [(&str, Flags); 5] = [
            ("ACK", |tcp| tcp.ack(1)),
            ("SYN and ACK", |tcp| tcp.syn().ack(1)),
            ("FIN", |tcp| tcp.fin()),
            ("RST with payload", |tcp| tcp.rst()),
            ("nothing", |tcp| tcp),
        ];
        for (name, flags) in odd {
            let sent = scene.web.actor.send_to(sender, host(to), &segment(flags, &magic));
            assert_eq!(sent, Err(Errno::PERM), "{name}");
        }
        // The kernel's resets pass, and a forged one is not the kernel's.
        assert_eq!(scene.web.actor.send_to(sender, host(to), &segment(|tcp| tcp.rst(), b"")), Err(Errno::PERM));
        assert_eq!(witness.arrived(), 0);
        let denials = scene.denials();
        assert_eq!((denials.causes(), denials.denied()), (vec![(Hook::Egress, Reason::NoFlow)], 6));
        assert_eq!(scene.db.actor.accept_now(listener), Err(Errno::AGAIN));
    }
}

#[test]
fn g62_a_datagram_from_an_allowed_port_is_no_reply() {
    everywhere(|scene, family| {
        let (server, from) = scene.web.udp(family);
        let (client, to) = scene.db.udp(family);
        scene.allow(&["db -> web: udp/any"]);
        let magic = magic();
        let mut witness = scene.watch(&magic);
        assert_eq!(scene.web.actor.send_to(server, to, &magic), Err(Errno::PERM));
        assert_eq!(witness.arrived(), 0);
        scene.db.actor.send_to(client, from, b"request").unwrap();
        assert_eq!(scene.web.actor.receive(server, 1).unwrap().len(), 1);
        scene.web.actor.send_to(server, to, b"reply").unwrap();
        assert_eq!(scene.db.actor.receive(client, 1).unwrap()[0].data, b"reply");
        assert_eq!(scene.denials().denied(), 1);
    });
}

#[test]
fn g62_a_reply_by_another_path_is_a_reply_and_a_call_by_it_is_none() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Veth, fast_refusal) else { return };
        let (web, db) = (&scene.web, &scene.db);
        NetNs::veth(
            VethEnd { netns: &web.net, device: "web1", addrs: &["10.9.1.1/24", "fd09:1::1/64"] },
            VethEnd { netns: &db.net, device: "db1", addrs: &["10.9.1.2/24", "fd09:1::2/64"] },
        );
        for (family, back, via) in [(Family::V4, "10.9.0.1", "10.9.1.1"), (Family::V6, "fd09::1", "fd09:1::1")] {
            for conf in ["all", "web0", "web1"] {
                web.net.run(|| std::fs::write(format!("/proc/sys/net/ipv4/conf/{conf}/rp_filter"), "0")).unwrap();
            }
            // There by the first pair, back by the second, with the addresses of the first.
            let length = if family == Family::V4 { 32 } else { 128 };
            db.net.ip(&format!("route add {back}/{length} via {via} dev db1 src {}", db.addr(family)));
            scene.allow(&["web -> db: udp/any, tcp/any"]);
            let (server, to) = db.udp(family);
            let (client, from) = web.udp(family);
            let by_second = || -> u64 {
                let shown = web.net.ip("-s -o link show dev web1");
                // Bytes and packets follow the headings of what was received.
                let received = shown.split("RX:").nth(1).unwrap().split('\\').nth(1).unwrap();
                received.split_whitespace().nth(1).unwrap().parse().unwrap()
            };
            let before = by_second();
            let magic = magic();
            let mut witness = tests::lab::Witness::new(&web.net, &magic);
            web.actor.send_to(client, to, b"request").unwrap();
            assert_eq!(db.actor.receive(server, 1).unwrap()[0].from, Some(from));
            db.actor.send_to(server, from, &magic).unwrap();
            assert_eq!(web.actor.receive(client, 1).unwrap()[0].data, magic);
            assert_eq!(witness.arrived(), 1);
            assert!(by_second() > before, "the reply came by the second pair");
            let (listener, tcp) = db.listen(family);
            let caller = web.actor.tcp_connect(tcp, std::time::Duration::from_secs(5)).unwrap();
            let callee = db.actor.accept(listener).unwrap();
            db.actor.send(callee, b"back").unwrap();
            assert_eq!(web.actor.receive(caller, 1).unwrap()[0].data, b"back");
            assert_eq!(scene.denials().calls(), []);
            // By the same path, from another port: nobody asked.
            let (stray, _) = db.udp(family);
            assert_eq!(db.actor.send_to(stray, from, &magic), Err(Errno::PERM));
            // Let out by its exit, it meets the door.
            scene.allow(&["web -> db: udp/any, tcp/any", "exit db -> web: udp/any"]);
            let _ = scene.denials();
            db.actor.send_to(stray, from, &magic).unwrap();
            assert_eq!((witness.arrived(), web.actor.received(client)), (2, Ok(vec![])));
            assert_eq!(scene.denials().calls(), [(Hook::Ingress, Reason::NoRule)]);
            for (party, socket) in [(web, caller), (db, callee)] {
                party.actor.close(socket);
            }
        }
    }
}
