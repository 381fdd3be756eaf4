//! The wall at devices: G12, G14, G15, G48, G54, G62 and G70 of the list of gaps, with nothing but the programs at
//! the devices to stop anything.

use std::{net::SocketAddr, time::Instant};

use agent_common::{
    layout::{DenyCounter, Hook},
    verdict::Reason,
};
use etherparse::{PacketBuilderStep, TcpHeader};
use tests::{
    frames::{Builder, FAMILIES, forged_sources, frame, ip_tcp, ip_udp, nothing_arrives, stopped_at_the_exit},
    lab::{Errno, Family, Kind, Transmit, Wall, Witness, magic},
    scene::{BRIEF, LONG},
};

const IPPROTO_RAW: u32 = 255;

/// The wall without the hooks of sockets.
fn wall() -> Option<Wall> {
    Wall::open(false)
}

/// On a raw socket the port is nothing.
fn host(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip(), 0)
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
            for by in Transmit::ALL {
                let (receiver, to) = wall.db.udp(family);
                let from = wall.web.at(family, 40_001);
                let send_packet = |packet: &[u8]| {
                    assert_eq!(wall.hammer_frames(&[frame(&wall, packet)], 1, by), Ok(1), "{family:?} {by:?}");
                };
                let send = |data: &[u8]| send_packet(&ip_udp(from, to, data));
                wall.open_way("udp/any");
                send(b"allowed");
                assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, b"allowed", "{family:?} {by:?}");
                assert_eq!(wall.denials().denied(), 0);
                // Nobody's address has no edges.
                let forged = SocketAddr::new(forged_sources(family)[1], from.port());
                let unseen = magic();
                nothing_arrives(&wall, receiver, &unseen, || send_packet(&ip_udp(forged, to, &unseen)));
                stopped_at_the_exit(&wall, &wall.denials(), Reason::SpoofedSource, 1);

                wall.allow(&[]);
                let magic = magic();
                nothing_arrives(&wall, receiver, &magic, || (0..5).for_each(|_| send(&magic)));
                stopped_at_the_exit(&wall, &wall.denials(), Reason::NoRule, 5);
                // A SYN is a call as well.
                nothing_arrives(&wall, receiver, &magic, || send_packet(&ip_tcp(from, to, |tcp| tcp.syn(), &magic)));
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
    // Nor is there anything else that stops the others.
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        for by in Transmit::ALL {
            for source in [wall.web.addr(family), forged_sources(family)[1]] {
                let packet = ip_udp(SocketAddr::new(source, 40_001), to, b"past it");
                assert_eq!(wall.hammer_frames(&[frame(&wall, &packet)], 1, by), Ok(1));
                assert_eq!(
                    wall.db.actor.receive(receiver, 1).unwrap()[0].data,
                    b"past it",
                    "{family:?} {by:?} {source}"
                );
            }
        }
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
        let odd: [(&str, Builder<PacketBuilderStep<TcpHeader>>); 6] = [
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
