//! The wall at devices: G12, G14, G15, G28, G43, G48, G52, G54, G62, G70 and G80 of the list of gaps, with nothing
//! but the programs at the devices to stop anything.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use agent_common::{
    layout::{DenyCounter, Hook},
    verdict::Reason,
};
use etherparse::{PacketBuilder, PacketBuilderStep};
use tests::lab::{Command, Denials, Errno, Family, GuardOptions, Kind, Socket, Wall, Witness, magic};

const BRIEF: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(5);
const IPPROTO_RAW: u32 = 255;
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The wall without the hooks of sockets.
fn wall() -> Option<Wall> {
    Wall::open(false)
}

type Builder<L> = fn(L) -> L;

/// A packet from its IP header on, with nothing behind that yet.
fn ip(from: SocketAddr, to: SocketAddr) -> PacketBuilderStep<etherparse::IpHeaders> {
    match (from, to) {
        (SocketAddr::V4(a), SocketAddr::V4(b)) => PacketBuilder::ipv4(a.ip().octets(), b.ip().octets(), 64),
        (SocketAddr::V6(a), SocketAddr::V6(b)) => PacketBuilder::ipv6(a.ip().octets(), b.ip().octets(), 64),
        _ => panic!("one family"),
    }
}

/// A packet of UDP from the IP header on.
fn ip_udp(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    ip(from, to).udp(from.port(), to.port()).write(&mut packet, data).expect("build a packet");
    packet
}

/// A segment of TCP from the IP header on.
fn ip_tcp(
    from: SocketAddr,
    to: SocketAddr,
    flags: Builder<PacketBuilderStep<etherparse::TcpHeader>>,
    data: &[u8],
) -> Vec<u8> {
    let mut packet = Vec::new();
    flags(ip(from, to).tcp(from.port(), to.port(), 7, 1024)).write(&mut packet, data).expect("build a packet");
    packet
}

/// A frame from `web` to the host around a packet.
fn frame(wall: &Wall, packet: &[u8]) -> Vec<u8> {
    let (web, host) = wall.ethernet();
    let kind: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&host[..], &web, &kind, packet].concat()
}

/// On a raw socket the port is nothing.
fn host(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip(), 0)
}

/// Checks that nothing arrives, neither in a socket nor at a sniffer in its namespace.
fn nothing_arrives(wall: &Wall, receiver: Socket, magic: &[u8], send: impl FnOnce()) {
    let mut sniffer = wall.watch(magic);
    send();
    assert_eq!(sniffer.arrived(), 0, "a sniffer in the receiver's namespace saw a packet");
    assert_eq!(wall.db.actor.received(receiver), Ok(vec![]), "the socket got a payload");
}

/// Checks that `web` was stopped at its own device.
fn stopped_at_the_exit(wall: &Wall, denials: &Denials, reason: Reason, count: u64) {
    assert_eq!((denials.causes(), denials.denied()), (vec![(Hook::TcFrom, reason)], count));
    assert_eq!(denials.count(DenyCounter::Dropped), count);
    let record = denials.records[0];
    assert_eq!(record.ifindex, wall.devices()[0].index);
    assert_eq!((record.local_id, record.cgroup), (wall.web.id().0, wall.web.cgroup.id()));
}

#[test]
fn g1_datagrams_of_sockets_pass_a_device_if_allowed_and_only_then() {
    let Some(wall) = wall() else { return };
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        let (sender, from) = wall.web.udp(family);
        wall.open_way("udp/any");
        for _ in 0..3 {
            wall.web.actor.send_to(sender, to, b"allowed").unwrap();
        }
        assert_eq!(wall.db.actor.receive(receiver, 3).unwrap().len(), 3);
        wall.db.actor.send_to(receiver, from, b"reply").unwrap();
        assert_eq!(wall.web.actor.receive(sender, 1).unwrap()[0].data, b"reply");
        assert_eq!(wall.denials().denied(), 0);

        wall.allow(&[]);
        let magic = magic();
        nothing_arrives(&wall, receiver, &magic, || {
            for _ in 0..5 {
                // Nobody tells the socket.
                assert_eq!(wall.web.actor.send_to(sender, to, &magic), Ok(magic.len()));
            }
        });
        let denials = wall.denials();
        stopped_at_the_exit(&wall, &denials, Reason::NoRule, 5);
        let record = denials.records[0];
        assert_eq!((record.proto, record.local_port, record.peer_port), (17, from.port(), to.port()));
    }
}

#[test]
fn g14_frames_past_every_hook_of_sockets_are_judged_at_the_device() {
    // With the hooks of sockets as well: they see none of these leave.
    for sockets in [false, true] {
        let Some(wall) = Wall::open(sockets) else { return };
        for family in FAMILIES {
            for bypass in [false, true] {
                let (receiver, to) = wall.db.udp(family);
                let from = wall.web.at(family, 40_001);
                let send = |data: &[u8]| wall.send_frame(&frame(&wall, &ip_udp(from, to, data)), bypass).unwrap();
                wall.open_way("udp/any");
                send(b"allowed");
                assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, b"allowed", "{family:?} {bypass}");
                assert_eq!(wall.denials().denied(), 0);

                wall.allow(&[]);
                let magic = magic();
                nothing_arrives(&wall, receiver, &magic, || (0..5).for_each(|_| send(&magic)));
                stopped_at_the_exit(&wall, &wall.denials(), Reason::NoRule, 5);
                // A SYN is a call as well.
                nothing_arrives(&wall, receiver, &magic, || {
                    let syn = ip_tcp(from, to, |tcp| tcp.syn(), &magic);
                    wall.send_frame(&frame(&wall, &syn), bypass).unwrap();
                });
                stopped_at_the_exit(&wall, &wall.denials(), Reason::NoRule, 1);
            }
        }
    }
}

#[test]
fn g14_without_the_programs_at_the_device_frames_leave() {
    let Some(wall) = Wall::open(true) else { return };
    let [device, _] = wall.devices();
    let (receiver, to) = wall.db.udp(Family::V4);
    let send = |data: &[u8]| {
        let packet = ip_udp(wall.web.at(Family::V4, 40_001), to, data);
        wall.send_frame(&frame(&wall, &packet), false).unwrap();
    };
    wall.allow_at_the_exit(&[]);
    let magic = magic();
    nothing_arrives(&wall, receiver, &magic, || send(&magic));
    wall.guard().inside(|d| d.release_device(device.index)).unwrap();
    let end = Instant::now() + LONG;
    while wall.db.actor.received(receiver).unwrap().is_empty() {
        assert!(Instant::now() < end, "something else stops it: the test above proves nothing");
        send(&magic);
    }
}

#[test]
fn g15_a_sniffer_sees_nothing_of_what_the_door_denies() {
    let Some(wall) = wall() else { return };
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        let sender = wall.web.actor.socket(family, Kind::Datagram, 0).unwrap();
        let magic = magic();
        let mut sniffer = wall.watch(&magic);
        wall.open_way("udp/any");
        wall.web.actor.send_to(sender, to, &magic).unwrap();
        assert_eq!((sniffer.arrived(), wall.db.actor.receive(receiver, 1).unwrap().len()), (1, 1));
        assert_eq!(wall.denials().denied(), 0);

        wall.allow_at_the_door(&[]);
        let mut leaving = Witness::new(&wall.host, &magic);
        for _ in 0..4 {
            wall.web.actor.send_to(sender, to, &magic).unwrap();
        }
        assert_eq!(leaving.arrived(), 4, "the exit lets them pass");
        assert_eq!((sniffer.arrived(), wall.db.actor.received(receiver)), (1, Ok(vec![])));
        let denials = wall.denials();
        assert_eq!((denials.causes(), denials.denied()), (vec![(Hook::TcTo, Reason::NoRule)], 4));
        let record = denials.records[0];
        assert_eq!((record.local_id, record.local_port), (wall.db.id().0, to.port()));
        assert_eq!(record.ifindex, wall.devices()[1].index);
    }
}

#[test]
fn g12_raw_packets_with_a_header_of_their_own_are_judged_at_the_device() {
    let Some(wall) = wall() else { return };
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        let from = wall.web.at(family, 40_002);
        let sender = wall.web.actor.socket(family, Kind::Raw, IPPROTO_RAW).unwrap();
        wall.open_way("udp/any");
        wall.web.actor.send_to(sender, host(to), &ip_udp(from, to, b"allowed")).unwrap();
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, b"allowed");
        assert_eq!(wall.denials().denied(), 0);
        wall.allow(&[]);
        let magic = magic();
        nothing_arrives(&wall, receiver, &magic, || {
            wall.web.actor.send_to(sender, host(to), &ip_udp(from, to, &magic)).unwrap();
        });
        stopped_at_the_exit(&wall, &wall.denials(), Reason::NoRule, 1);
    }
}

#[test]
fn g70_a_connection_through_a_device_ends_with_its_edge() {
    let Some(wall) = wall() else { return };
    for family in FAMILIES {
        let (listener, to) = wall.db.listen(family);
        assert_eq!(wall.web.actor.tcp_connect(to, BRIEF), Err(Errno::TIMEDOUT), "denied in silence");
        assert_eq!(wall.denials().calls(), [(Hook::TcFrom, Reason::NoRule)]);
        wall.open_way("tcp/any");
        let ours = wall.web.actor.tcp_connect(to, LONG).unwrap();
        let theirs = wall.db.actor.accept(listener).unwrap();
        for round in 0..3 {
            wall.web.actor.send(ours, b"ask").unwrap();
            assert_eq!(wall.db.actor.receive(theirs, 1).unwrap()[0].data, b"ask");
            wall.db.actor.send(theirs, b"answer").unwrap();
            assert_eq!(wall.web.actor.receive(ours, 1).unwrap()[0].data, b"answer");
            if round == 1 {
                // The same edge under another epoch.
                wall.open_way("tcp/any");
            }
        }
        assert_eq!(wall.denials().denied(), 0);

        wall.allow(&[]);
        let (there, back) = (magic(), magic());
        let mut sniffer = wall.watch(&there);
        wall.web.actor.send(ours, &there).unwrap();
        assert_eq!(wall.db.actor.receive_for(theirs, 1, BRIEF), Ok(vec![]));
        assert_eq!(sniffer.arrived(), 0);
        let mut sniffer = Witness::new(&wall.web.net, &back);
        wall.db.actor.send(theirs, &back).unwrap();
        assert_eq!(wall.web.actor.receive_for(ours, 1, BRIEF), Ok(vec![]));
        assert_eq!(sniffer.arrived(), 0);
        let causes = wall.denials().causes();
        assert!(causes.iter().all(|cause| *cause == (Hook::TcFrom, Reason::NoRule)), "{causes:?}");
        for (actor, socket) in [(&wall.web.actor, ours), (&wall.db.actor, theirs), (&wall.db.actor, listener)] {
            actor.close(socket);
        }
        // What TCP sends again of what was closed is denied; then there is silence.
        let _ = wall.guard().look();
    }
}

#[test]
fn a_connection_older_than_the_programs_at_its_device_is_judged_like_any_other() {
    // With the hooks of sockets, a socket knows which end of the connection it is; else its listener says so.
    for (family, sockets) in FAMILIES.into_iter().flat_map(|family| [(family, false), (family, true)]) {
        let Some(wall) = Wall::unguarded(GuardOptions::default()) else { return };
        wall.open_way("tcp/any");
        if sockets {
            wall.give_addresses();
            wall.guard().reattach().unwrap();
        }
        let (listener, to) = wall.db.listen(family);
        let ours = wall.web.actor.tcp_connect(to, LONG).unwrap();
        let theirs = wall.db.actor.accept(listener).unwrap();
        if sockets {
            wall.db.actor.close(listener);
        }
        let talk = |data: &[u8]| {
            // The callee speaks first.
            wall.db.actor.send(theirs, data).unwrap();
            assert_eq!(wall.web.actor.receive(ours, 1).unwrap()[0].data, data);
            wall.web.actor.send(ours, data).unwrap();
            assert_eq!(wall.db.actor.receive(theirs, 1).unwrap()[0].data, data);
        };
        talk(b"before");
        let _ = wall.denials();
        wall.guard_devices();
        wall.open_way("tcp/any");
        talk(b"after");
        assert_eq!(wall.denials().denied(), 0);
        // Segments that only look like a part of it.
        let from = wall.web.actor.local_addr(ours).unwrap();
        let magic = magic();
        let mut sniffer = wall.watch(&magic);
        for (from, to) in [(wall.web.at(family, from.port() ^ 1), to), (from, wall.db.at(family, to.port() ^ 1))] {
            wall.send_frame(&frame(&wall, &ip_tcp(from, to, |tcp| tcp.ack(1), &magic)), true).unwrap();
        }
        assert_eq!(sniffer.arrived(), 0);
        let denials = wall.denials();
        assert_eq!((denials.causes(), denials.denied()), (vec![(Hook::TcFrom, Reason::NoFlow); 2], 2));
        // The edge is gone, and that from the callee to the caller is no way back.
        wall.allow(&["db -> web: tcp/any"]);
        let mut sniffer = wall.watch(&magic);
        let _ = wall.web.actor.send(ours, &magic);
        assert_eq!((wall.db.actor.receive_for(theirs, 1, BRIEF), sniffer.arrived()), (Ok(vec![]), 0));
        assert!(wall.denials().denied() > 0);
        let _ = (wall.web.actor.close(ours), wall.db.actor.close(theirs), wall.guard().look());
    }
}

#[test]
fn g62_what_nobody_asked_for_is_no_reply_at_a_device() {
    let Some(wall) = wall() else { return };
    for family in FAMILIES {
        // From the port that `db` may call.
        let (server, from) = wall.web.udp(family);
        let (client, to) = wall.db.udp(family);
        wall.allow(&["db -> web: udp/any, tcp/any"]);
        let magic = magic();
        nothing_arrives(&wall, client, &magic, || {
            wall.web.actor.send_to(server, to, &magic).unwrap();
        });
        stopped_at_the_exit(&wall, &wall.denials(), Reason::NoRule, 1);
        wall.db.actor.send_to(client, from, b"request").unwrap();
        assert_eq!(wall.web.actor.receive(server, 1).unwrap().len(), 1);
        wall.web.actor.send_to(server, to, b"reply").unwrap();
        assert_eq!(wall.db.actor.receive(client, 1).unwrap()[0].data, b"reply");
        // Another port of the caller asked nothing.
        let (other, other_port) = wall.db.udp(family);
        nothing_arrives(&wall, other, &magic, || {
            wall.web.actor.send_to(server, other_port, &magic).unwrap();
        });
        assert_eq!(wall.denials().denied(), 1);

        // Segments that begin nothing, though their edge is there.
        wall.open_way("tcp/any");
        let odd: [(&str, Builder<PacketBuilderStep<etherparse::TcpHeader>>); 6] = [
            ("ACK", |tcp| tcp.ack(1)),
            ("SYN and ACK", |tcp| tcp.syn().ack(1)),
            ("FIN", |tcp| tcp.fin()),
            ("RST", |tcp| tcp.rst()),
            ("RST and ACK", |tcp| tcp.rst().ack(1)),
            ("nothing", |tcp| tcp),
        ];
        let from = wall.web.at(family, 40_003);
        nothing_arrives(&wall, client, &magic, || {
            for (_, flags) in odd {
                wall.send_frame(&frame(&wall, &ip_tcp(from, to, flags, &magic)), true).unwrap();
            }
        });
        stopped_at_the_exit(&wall, &wall.denials(), Reason::NoFlow, 6);
        // A SYN against the direction of a flow is a call.
        wall.allow(&["db -> web: tcp/any"]);
        let (listener, to_web) = wall.web.listen(family);
        let theirs = wall.db.actor.tcp_connect(to_web, LONG).unwrap();
        let caller = wall.db.actor.local_addr(theirs).unwrap();
        assert_eq!(wall.denials().denied(), 0);
        nothing_arrives(&wall, client, &magic, || {
            let syn = ip_tcp(to_web, caller, |tcp| tcp.syn(), &magic);
            wall.send_frame(&frame(&wall, &syn), true).unwrap();
        });
        stopped_at_the_exit(&wall, &wall.denials(), Reason::NoRule, 1);
        wall.db.actor.close(theirs);
        wall.web.actor.close(listener);
        let _ = wall.denials();
    }
}

#[test]
fn g54_an_echo_through_a_device_is_one_way() {
    let Some(wall) = wall() else { return };
    for family in FAMILIES {
        let (web, db) = (wall.web.addr(family), wall.db.addr(family));
        assert_eq!(wall.web.actor.ping(db, b"denied", BRIEF), Err(Errno::TIMEDOUT));
        assert_eq!(wall.denials().causes(), [(Hook::TcFrom, Reason::NoRule)]);
        wall.open_way("icmp/echo");
        wall.web.actor.ping(db, b"allowed", LONG).unwrap();
        assert_eq!(wall.denials().denied(), 0);
        assert_eq!(wall.db.actor.ping(web, b"the other way", BRIEF), Err(Errno::TIMEDOUT));
        assert_eq!(wall.denials().causes(), [(Hook::TcFrom, Reason::NoRule)]);
        wall.allow(&[]);
    }
}

#[test]
fn g28_a_frame_by_the_device_of_another_workload_is_denied() {
    let Some(wall) = wall() else { return };
    let stranger = wall.lab().actor(&wall.db.cgroup, &wall.web.net);
    let (receiver, to) = wall.db.udp(Family::V4);
    let from = wall.web.at(Family::V4, 40_004);
    // Both may do this, each by its own device.
    wall.allow(&["web -> db: udp/any", "db -> db: udp/any"]);
    for bypass in [false, true] {
        let send = |data: &[u8]| Command::SendFrame {
            device: "web0".to_owned(),
            frame: frame(&wall, &ip_udp(from, to, data)),
            bypass,
        };
        wall.web.actor.call(&send(b"its own")).unwrap();
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
        assert_eq!(wall.denials().denied(), 0);
        // On the flow that was allowed a moment ago.
        let magic = magic();
        nothing_arrives(&wall, receiver, &magic, || drop(stranger.call(&send(&magic)).unwrap()));
        let denials = wall.denials();
        assert_eq!(denials.causes(), [(Hook::TcFrom, Reason::DeviceMismatch)]);
        assert_eq!(denials.records[0].cgroup, wall.db.cgroup.id());
    }
}

#[test]
fn g52_what_leaves_by_a_device_has_an_address_of_its_workload_for_its_source() {
    let Some(wall) = wall() else { return };
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        wall.open_way("udp/any");
        let send = |from: SocketAddr, data: &[u8], bypass: bool| {
            wall.send_frame(&frame(&wall, &ip_udp(from, to, data)), bypass).unwrap();
        };
        let own = wall.web.at(family, 40_010);
        send(own, b"its own", false);
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
        assert_eq!(wall.denials().denied(), 0);
        let others: [&str; 5] = match family {
            Family::V4 => ["10.9.0.2", "10.9.0.254", "10.9.1.2", "192.0.2.1", "127.0.0.1"],
            Family::V6 => ["fd09::2", "fd09::ff", "fd09:1::2", "2001:db8::1", "::ffff:10.9.0.1"],
        };
        let magic = magic();
        for other in others {
            let from = SocketAddr::new(other.parse().unwrap(), own.port());
            for bypass in [false, true] {
                nothing_arrives(&wall, receiver, &magic, || send(from, &magic, bypass));
                let denials = wall.denials();
                // No IPv6 packet passes for one of an IPv4 address.
                let reason = if other.contains("ffff") { Reason::Malformed } else { Reason::SpoofedSource };
                assert_eq!((denials.causes(), denials.denied()), (vec![(Hook::TcFrom, reason)], 1), "{other}");
            }
        }
    }
}

#[test]
fn g80_an_address_that_changes_hands_takes_no_edge_along() {
    let Some(wall) = wall() else { return };
    let [device, _] = wall.devices();
    // Nothing but the door of `db` judges, by what it knows of the address.
    wall.guard().inside(|d| d.release_device(device.index)).unwrap();
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        let (sender, from) = wall.web.udp(family);
        wall.open_way("udp/any");
        let ask = |data: &[u8]| wall.web.actor.send_to(sender, to, data).map(drop).unwrap();
        ask(b"as web");
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
        let stranger = wall.lab().cgroup().child("stranger");
        wall.give_address(from.ip(), stranger.id());
        let magic = magic();
        // On the flow that was allowed a moment ago.
        nothing_arrives(&wall, receiver, &magic, || ask(&magic));
        assert_eq!(wall.denials().causes(), [(Hook::TcTo, Reason::UnknownCaller)]);
        wall.give_address(from.ip(), wall.web.cgroup.id());
        ask(b"as web again");
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
        assert_eq!(wall.denials().denied(), 0);
    }
}

#[test]
fn g43_a_later_fragment_is_dropped_at_a_device() {
    let Some(wall) = wall() else { return };
    let (receiver, to) = wall.db.udp(Family::V4);
    let from = wall.web.at(Family::V4, 40_005);
    wall.open_way("udp/any");
    let magic = magic();
    let whole = ip_udp(from, to, &magic);
    wall.send_frame(&frame(&wall, &whole), false).unwrap();
    assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
    nothing_arrives(&wall, receiver, &magic, || {
        for offset in [1_u16, 2, 185] {
            let mut later = whole.clone();
            later[6..8].copy_from_slice(&offset.to_be_bytes());
            later[10..12].fill(0);
            let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&later[..20]).ones_complement();
            later[10..12].copy_from_slice(&sum.to_ne_bytes());
            wall.send_frame(&frame(&wall, &later), false).unwrap();
        }
    });
    assert_eq!(wall.denials().causes(), [(Hook::TcFrom, Reason::Fragment)]);
}

#[test]
fn g48_what_cannot_be_read_does_not_pass_a_device() {
    let Some(wall) = wall() else { return };
    let (receiver, to) = wall.db.udp(Family::V4);
    wall.open_way("udp/any");
    let magic = magic();
    let packet = ip_udp(wall.web.at(Family::V4, 40_006), to, &magic);
    let good = frame(&wall, &packet);
    let mut leaving = Witness::new(&wall.host, &magic);
    wall.send_frame(&good, false).unwrap();
    assert_eq!((leaving.arrived(), wall.db.actor.receive(receiver, 1).unwrap().len()), (1, 1));
    assert_eq!(wall.denials().denied(), 0);
    let tagged = |tag: [u8; 4]| [&good[..12], &tag, &good[12..]].concat();
    let with = |kind: [u8; 2]| [&good[..12], &kind, &good[14..]].concat();
    let broken = |bytes: &[(usize, u8)]| {
        let mut frame = good.clone();
        bytes.iter().for_each(|(at, value)| frame[14 + at] = *value);
        frame
    };
    for (name, frame, reason) in [
        ("a tag", tagged([0x81, 0, 0, 7]), Reason::LinkProtocol),
        ("a tag of 0", tagged([0x81, 0, 0, 0]), Reason::LinkProtocol),
        ("a service tag", tagged([0x88, 0xa8, 0, 7]), Reason::LinkProtocol),
        ("MPLS", with([0x88, 0x47]), Reason::LinkProtocol),
        ("a length", with([0, 46]), Reason::LinkProtocol),
        ("ARP that is none", with([8, 6]), Reason::LinkProtocol),
        ("IPv6 that is none", with([0x86, 0xdd]), Reason::Malformed),
        ("a short header", broken(&[(0, 0x44)]), Reason::Malformed),
        ("a longer header than the packet", broken(&[(0, 0x47), (2, 0), (3, 24)]), Reason::Malformed),
        ("a shorter packet than its header", broken(&[(2, 0), (3, 19)]), Reason::Malformed),
    ] {
        for bypass in [false, true] {
            nothing_arrives(&wall, receiver, &magic, || wall.send_frame(&frame, bypass).unwrap());
            stopped_at_the_exit(&wall, &wall.denials(), reason, 1);
        }
        eprintln!("{name}: denied");
    }
}

#[test]
fn audit_reports_at_a_device_and_lets_pass() {
    let Some(wall) = wall() else { return };
    let (receiver, to) = wall.db.udp(Family::V4);
    let sender = wall.web.actor.socket(Family::V4, Kind::Datagram, 0).unwrap();
    wall.audit(&[]);
    wall.web.actor.send_to(sender, to, b"would be denied").unwrap();
    assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
    let denials = wall.denials();
    assert_eq!(denials.causes(), [(Hook::TcFrom, Reason::NoRule), (Hook::TcTo, Reason::NoRule)]);
    assert_eq!(denials.count(DenyCounter::WouldDeny), 2);
}

#[test]
fn programs_at_a_device_are_replaced_in_place_and_a_new_device_gets_its_own() {
    let Some(wall) = wall() else { return };
    let (receiver, to) = wall.db.udp(Family::V4);
    let sender = wall.web.actor.socket(Family::V4, Kind::Datagram, 0).unwrap();
    wall.open_way("udp/any");
    wall.web.actor.send_to(sender, to, b"before").unwrap();
    // As an agent does that comes after another one.
    wall.guard_devices();
    wall.web.actor.send_to(sender, to, b"after").unwrap();
    assert_eq!(wall.db.actor.receive(receiver, 2).unwrap().len(), 2);
    let guarded = wall.guard().datapath().guarded_devices().unwrap();
    let owners: Vec<(u32, u64)> = guarded.into_iter().map(|(index, entry)| (index, entry.cgroup)).collect();
    let [web, db] = wall.devices();
    assert_eq!(owners, [(web.index, wall.web.cgroup.id()), (db.index, wall.db.cgroup.id())]);

    // The device of `web` dies, and its link with it. Another one takes its index.
    wall.host.ip("link delete to-web");
    let peer = format!("/proc/{}/ns/net", wall.web.actor.process().pid());
    wall.host.ip(&format!("link add to-web index {} type veth peer name web0 netns {peer}", web.index));
    for (netns, commands) in [
        (&wall.host, ["address add 10.9.0.254/24 dev to-web", "link set to-web up", "link show to-web"]),
        (&wall.web.net, ["address add 10.9.0.1/24 dev web0", "link set web0 up", "route add default via 10.9.0.254"]),
    ] {
        let _ = commands.map(|command| netns.ip(command));
    }
    wall.guard_devices();
    let end = Instant::now() + LONG;
    while wall.db.actor.receive_for(receiver, 1, BRIEF).unwrap().is_empty() {
        assert!(Instant::now() < end, "nothing passes the new device");
        let _ = wall.web.actor.send_to(sender, to, b"by the new device");
    }
    wall.allow(&[]);
    let _ = (wall.db.actor.received(receiver), wall.denials());
    let magic = magic();
    nothing_arrives(&wall, receiver, &magic, || {
        wall.web.actor.send_to(sender, to, &magic).unwrap();
    });
    stopped_at_the_exit(&wall, &wall.denials(), Reason::NoRule, 1);
}

#[test]
fn a_new_owner_of_a_device_begins_without_flows() {
    let Some(wall) = wall() else { return };
    let [device, _] = wall.devices();
    let own = |cgroup: u64| wall.guard_device(device, cgroup);
    let (receiver, to) = wall.db.udp(Family::V4);
    let (sender, from) = wall.web.udp(Family::V4);
    wall.open_way("udp/any");
    wall.web.actor.send_to(sender, to, b"ask").unwrap();
    assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
    own(wall.web.cgroup.id());
    wall.db.actor.send_to(receiver, from, b"the same owner").unwrap();
    assert_eq!(wall.web.actor.receive(sender, 1).unwrap().len(), 1);
    assert_eq!(wall.denials().denied(), 0);
    own(wall.db.cgroup.id());
    wall.db.actor.send_to(receiver, from, b"another").unwrap();
    let denials = wall.denials();
    assert_eq!(denials.causes(), [(Hook::TcTo, Reason::NoRule)]);
    assert_eq!(wall.web.actor.received(sender), Ok(vec![]));
    own(wall.web.cgroup.id());
    wall.db.actor.send_to(receiver, from, b"the first one again").unwrap();
    assert_eq!(wall.denials().causes(), [(Hook::TcTo, Reason::NoRule)]);
}

#[test]
fn g28_behind_a_device_that_several_share_the_socket_tells_who_it_is() {
    let Some(wall) = Wall::open(true) else { return };
    let [device, _] = wall.devices();
    let stranger = wall.lab().actor(&wall.db.cgroup, &wall.web.net);
    wall.guard_device(device, 0);
    for family in FAMILIES {
        wall.give_address(wall.web.addr(family), 0);
        let (receiver, to) = wall.db.udp(family);
        let (web, from) = wall.web.udp(family);
        let frame = frame(&wall, &ip_udp(from, to, b"a frame of nobody"));
        wall.allow_at_the_exit(&["web -> db: udp/any"]);
        wall.web.actor.send_to(web, to, b"web").unwrap();
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, b"web");
        assert_eq!(wall.denials().denied(), 0);
        // The hooks of sockets see none of these.
        for (actor, id) in [(&wall.web.actor, wall.web.id()), (&stranger, wall.db.id())] {
            let other = ip_udp(wall.web.at(family, 40_020), to, b"by a frame");
            let bytes = [&frame[..14], &other].concat();
            let send = Command::SendFrame { device: "web0".to_owned(), frame: bytes, bypass: true };
            actor.call(&send).unwrap();
            let arrived = wall.db.actor.receive_for(receiver, 1, BRIEF).unwrap().len();
            let denials = wall.denials();
            if id == wall.web.id() {
                assert_eq!((arrived, denials.denied()), (1, 0));
                continue;
            }
            assert_eq!((arrived, denials.causes()), (0, vec![(Hook::TcFrom, Reason::NoRule)]));
            assert_eq!(denials.records[0].local_id, id.0);
        }
        // Towards them: by who would receive.
        let (open, at) = wall.web.udp(family);
        for (rules, passes) in [(&["db -> web: udp/any"][..], true), (&[], false)] {
            wall.allow_at_the_door_of_web(rules);
            let (caller, _) = wall.db.udp(family);
            wall.db.actor.send_to(caller, at, b"to web").unwrap();
            assert_eq!(wall.web.actor.receive_for(open, 1, BRIEF).unwrap().len(), usize::from(passes));
            let denials = wall.denials();
            if !passes {
                assert_eq!(denials.causes(), [(Hook::TcTo, Reason::NoRule)]);
                assert_eq!(denials.records[0].local_id, wall.web.id().0);
            }
        }
    }
}
