//! What comes with flows, and what only looks like it: G55, G56, G63 and G71 of the list of gaps, at the programs of
//! devices.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use agent_common::{layout::Hook, verdict::Reason};
use tests::{
    frames::{
        FAMILIES, frame, framed, icmp_error, ip_tcp, ip_udp, nothing_arrives, stopped_at_the_exit, with_protocol,
    },
    lab::{Errno, Family, GuardOptions, Kind, Socket, Transmit, Wall, magic, slowness},
    scene::LONG,
};

/// Where nothing comes, this long is waited for it.
const BRIEF: Duration = Duration::from_millis(100);

/// The host, as `web` knows it.
const HOST: [&str; 2] = ["10.9.0.254", "fd09::ff"];

/// The wall without the hooks of sockets.
fn wall() -> Option<Wall> {
    Wall::open(false)
}

fn send(wall: &Wall, packet: &[u8]) {
    assert_eq!(wall.hammer_frames(&[frame(wall, packet)], 1, Transmit::Bypass), Ok(1));
}

/// A UDP socket of `web` with a peer.
fn connected(wall: &Wall, to: SocketAddr) -> (Socket, SocketAddr) {
    let (socket, from) = wall.web.udp(Family::of(to));
    wall.web.actor.connect(socket, to, BRIEF).unwrap();
    (socket, from)
}

#[test]
fn g55_an_error_about_a_flow_passes_a_device() {
    let Some(wall) = wall() else { return };
    for family in FAMILIES {
        wall.open_way("udp/any");
        // The kernel of `db` says that nobody is there.
        let (nobody, to) = wall.db.udp(family);
        wall.db.actor.close(nobody);
        let (socket, _) = connected(&wall, to);
        wall.web.actor.send(socket, b"anybody?").unwrap();
        assert_eq!(wall.web.actor.receive_for(socket, 1, LONG), Err(Errno::CONNREFUSED), "{family:?}");
        // The host says that the packet is too big for the next link.
        let (receiver, to) = wall.db.udp(family);
        let (socket, _) = connected(&wall, to);
        let (level, name) = match family {
            Family::V4 => (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER),
            Family::V6 => (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER),
        };
        wall.web.actor.set_option(socket, level, name, libc::IP_PMTUDISC_DO).unwrap();
        wall.host.ip("link set to-db mtu 1300");
        let big = vec![b'.'; 1_400];
        wall.web.actor.send(socket, &big).unwrap();
        assert_eq!(wall.db.actor.received(receiver), Ok(vec![]));
        let again = (0..100).find_map(|_| wall.web.actor.send(socket, &big).err());
        assert_eq!(again, Some(Errno::MSGSIZE), "{family:?}");
        wall.host.ip("link set to-db mtu 1500");
        assert_eq!(wall.denials().denied(), 0);
    }
}

#[test]
fn g55_an_error_about_anything_else_passes_no_device() {
    let Some(wall) = wall() else { return };
    for family in FAMILIES {
        let (web, db) = (wall.web.addr(family), wall.db.addr(family));
        let (server, at) = wall.web.udp(family);
        let (client, from) = wall.db.udp(family);
        wall.db.actor.connect(client, at, BRIEF).unwrap();
        wall.allow(&["db -> web: any", "web -> db: any"]);
        wall.db.actor.send(client, b"ask").unwrap();
        assert_eq!(wall.web.actor.receive(server, 1).unwrap().len(), 1);
        let quote = |from: SocketAddr, to: SocketAddr| ip_udp(from, to, b"ask");
        let asked = quote(from, at);
        let other = |addr: SocketAddr| SocketAddr::new(addr.ip(), addr.port() ^ 1);
        // No edge helps an error about nothing.
        let too_big = if family == Family::V4 { (3, 4) } else { (2, 0) };
        let nested = icmp_error(db, web, too_big, &asked);
        let cut = |length: usize| asked[..length].to_vec();
        let header = if family == Family::V4 { 20 } else { 40 };
        for (name, quoted, reason) in [
            ("another port of theirs", quote(other(from), at), Reason::NoFlow),
            ("another port of ours", quote(from, other(at)), Reason::NoFlow),
            ("our own packet", quote(at, from), Reason::NoFlow),
            (
                "somebody else's packet",
                quote(SocketAddr::new(HOST[usize::from(family == Family::V6)].parse().unwrap(), 9), at),
                Reason::NoFlow,
            ),
            ("another protocol", with_protocol(&asked, 136), Reason::NoFlow),
            ("an error", nested, Reason::NoFlow),
            ("nothing", Vec::new(), Reason::Malformed),
            ("half a header", cut(header / 2), Reason::Malformed),
            ("no ports", cut(header), Reason::Malformed),
        ] {
            let magic = magic();
            let error = icmp_error(web, db, too_big, &[&quoted[..], &magic].concat());
            // Bytes behind a quote are no part of it.
            let error = if reason == Reason::Malformed { icmp_error(web, db, too_big, &quoted) } else { error };
            let mut sniffer = wall.watch(if reason == Reason::Malformed { b"never" } else { &magic });
            send(&wall, &error);
            assert_eq!(sniffer.arrived(), 0, "{name}");
            stopped_at_the_exit(&wall, &wall.denials(), reason, 1);
            assert_eq!(wall.db.actor.send(client, b"goes on"), Ok(7), "{name}");
        }
        // A workload is no router.
        let redirects: &[(u8, u8)] = if family == Family::V4 { &[(5, 1), (9, 0)] } else { &[(137, 0), (134, 0)] };
        for redirect in redirects {
            send(&wall, &icmp_error(web, db, *redirect, &asked));
            stopped_at_the_exit(&wall, &wall.denials(), Reason::NoFlow, 1);
        }
        // The same about the flow that there is.
        let unreachable = if family == Family::V4 { (3, 3) } else { (1, 4) };
        send(&wall, &icmp_error(web, db, unreachable, &asked));
        assert_eq!(wall.denials().denied(), 0);
        assert_eq!(wall.db.actor.receive_for(client, 1, LONG), Err(Errno::CONNREFUSED), "{family:?}");
        // And when its edge is gone.
        wall.allow(&[]);
        let magic = magic();
        nothing_arrives(&wall, client, &magic, || {
            send(&wall, &icmp_error(web, db, unreachable, &[&asked[..], &magic].concat()));
        });
        stopped_at_the_exit(&wall, &wall.denials(), Reason::NoFlow, 1);
    }
}

/// What all hear: an address, and the hardware address that goes with it.
fn for_all(family: Family) -> Vec<(IpAddr, [u8; 6])> {
    let texts = match family {
        Family::V4 => ["224.0.0.1", "239.7.7.7", "10.9.1.255", "255.255.255.255"],
        Family::V6 => ["ff02::1", "ff02::fb", "ff05::7", "ff0e::7"],
    };
    let hardware = |addr: IpAddr| match addr {
        IpAddr::V4(addr) if addr.is_multicast() => {
            let [_, b, c, d] = addr.octets();
            [1, 0, 0x5e, b & 0x7f, c, d]
        }
        IpAddr::V4(_) => [0xff; 6],
        IpAddr::V6(addr) => {
            let [.., a, b, c, d] = addr.octets();
            [0x33, 0x33, a, b, c, d]
        }
    };
    texts.map(|text| text.parse().unwrap()).map(|addr| (addr, hardware(addr))).to_vec()
}

#[test]
fn g56_what_is_for_all_needs_an_edge_to_each() {
    let Some(wall) = Wall::unguarded(GuardOptions::default()) else { return };
    let (mac, _) = wall.switch();
    for guarded in [false, true] {
        if guarded {
            wall.guard_devices();
            // Everything that workloads may be allowed.
            wall.allow(&["web -> db: any", "db -> web: any"]);
        }
        for family in FAMILIES {
            for (addr, to_all) in for_all(family) {
                let from = wall.web.at(family, 40_000);
                let magic = magic();
                let datagram = ip_udp(from, SocketAddr::new(addr, 7_000), &magic);
                // The same as IGMP.
                for packet in [datagram.clone(), with_protocol(&datagram, 2)] {
                    let mut sniffer = wall.watch(&magic);
                    assert_eq!(wall.hammer_frames(&[framed((mac, to_all), &packet)], 1, Transmit::Bypass), Ok(1));
                    assert_eq!(sniffer.arrived(), u64::from(!guarded), "{addr}");
                    let denials = wall.denials();
                    if guarded {
                        stopped_at_the_exit(&wall, &denials, Reason::NoRule, 1);
                    }
                }
            }
        }
    }
}

#[test]
fn g56_of_two_receivers_the_one_that_may_hear_gets_it() {
    let Some(wall) = Wall::unguarded(GuardOptions::default()) else { return };
    wall.guard().reattach().unwrap();
    wall.give_addresses();
    let (mac, _) = wall.switch();
    let other = wall.lab().actor(&wall.web.cgroup, &wall.db.net);
    let any = |family| if family == Family::V4 { "0.0.0.0:7001" } else { "[::]:7001" };
    for family in FAMILIES {
        let open = |actor: &tests::lab::Actor| {
            let socket = actor.socket(family, Kind::Datagram, 0).unwrap();
            actor.set_option(socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1).unwrap();
            if family == Family::V6 {
                actor.set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1).unwrap();
            }
            let addr = any(family).parse().unwrap();
            actor.call(&tests::lab::Command::Bind { socket: socket.number(), addr }).unwrap();
            socket
        };
        let (allowed, denied) = (open(&wall.db.actor), open(&other));
        // Those that every host hears.
        let all = for_all(family).into_iter().filter(|(addr, _)| match addr {
            IpAddr::V4(addr) => !addr.is_multicast() || addr.octets() == [224, 0, 0, 1],
            IpAddr::V6(addr) => addr.segments() == [0xff02, 0, 0, 0, 0, 0, 0, 1],
        });
        for (addr, to_all) in all {
            let packet = ip_udp(wall.web.at(family, 40_000), SocketAddr::new(addr, 7_001), b"to all");
            let send = || {
                assert_eq!(wall.hammer_frames(&[framed((mac, to_all), &packet)], 1, Transmit::Bypass), Ok(1));
                let _ = wall.watch(&magic()).arrived();
            };
            for (rules, gets) in [
                (&["web -> db: udp/any", "web -> web: udp/any"][..], [1, 1]),
                (&["web -> db: udp/any"], [1, 0]),
                (&[], [0, 0]),
            ] {
                wall.allow(rules);
                let _ = wall.denials();
                send();
                let got = [(&wall.db.actor, allowed), (&other, denied)];
                let got = got.map(|(actor, socket)| actor.received(socket).unwrap().len());
                assert_eq!(got, gets, "{addr} {rules:?}");
                let refused = gets.iter().filter(|&&n| n == 0).count();
                assert_eq!(wall.denials().causes(), vec![(Hook::Ingress, Reason::NoRule); refused]);
            }
        }
        wall.db.actor.close(allowed);
        other.close(denied);
    }
}

#[test]
fn g63_who_is_denied_cannot_tell_an_open_port_from_a_closed_one() {
    let Some(wall) = wall() else { return };
    for family in FAMILIES {
        let (listener, open) = wall.db.listen(family);
        let (other, closed) = wall.db.listen(family);
        wall.db.actor.close(other);
        let knock = |to| wall.web.actor.tcp_connect(to, BRIEF).map(|socket| wall.web.actor.close(socket));
        wall.open_way("tcp/any");
        assert_eq!((knock(open), knock(closed)), (Ok(()), Err(Errno::CONNREFUSED)), "{family:?}");
        assert_eq!(wall.denials().denied(), 0);
        for at_the_exit in [true, false] {
            if at_the_exit {
                wall.allow_at_the_exit(&[]);
            } else {
                wall.allow_at_the_door(&[]);
            }
            assert_eq!((knock(open), knock(closed)), (Err(Errno::TIMEDOUT), Err(Errno::TIMEDOUT)));
            let hook = if at_the_exit { Hook::TcFrom } else { Hook::TcTo };
            let causes = wall.denials().causes();
            assert!(!causes.is_empty() && causes.iter().all(|cause| *cause == (hook, Reason::NoRule)), "{causes:?}");
            // Nor by other segments, which a host answers with a reset.
            for to in [open, closed] {
                let from = wall.web.at(family, 40_000);
                let magic = magic();
                let mut sniffer = wall.watch(&magic);
                send(&wall, &ip_tcp(from, to, |tcp| tcp.ack(1), &magic));
                send(&wall, &ip_tcp(from, to, |tcp| tcp.fin(), &magic));
                assert_eq!(sniffer.arrived(), 0);
                let causes = wall.denials().causes();
                assert!(causes.iter().all(|cause| *cause == (hook, Reason::NoFlow)), "{causes:?}");
            }
        }
        wall.allow(&[]);
        wall.db.actor.close(listener);
    }
}

#[test]
fn g63_segments_that_the_kernel_sends_without_a_socket_belong_to_their_flow() {
    let Some(wall) = wall() else { return };
    // Every SYN is answered by a cookie, without a socket.
    wall.db.net.run(|| fs::write("/proc/sys/net/ipv4/tcp_syncookies", "2")).unwrap();
    for family in FAMILIES {
        let (listener, to) = wall.db.listen(family);
        wall.open_way("tcp/any");
        let open = || {
            let ours = wall.web.actor.tcp_connect(to, LONG).unwrap();
            let theirs = wall.db.actor.accept(listener).unwrap();
            wall.web.actor.send(ours, b"ask").unwrap();
            assert_eq!(wall.db.actor.receive(theirs, 1).unwrap()[0].data, b"ask");
            (ours, theirs)
        };
        // The one that ends first waits without a socket for what the other one says last.
        for web_first in [true, false] {
            let (ours, theirs) = open();
            let ends = [(&wall.web.actor, ours), (&wall.db.actor, theirs)];
            let [(a, first), (b, last)] = if web_first { ends } else { [ends[1], ends[0]] };
            a.close(first);
            assert_eq!(b.receive_for(last, 1, LONG).unwrap()[0].data, b"");
            b.close(last);
            assert_eq!(wall.denials().denied(), 0, "{family:?} {web_first}");
        }
        // A reset, because there was something left to read.
        let (ours, theirs) = open();
        wall.web.actor.send(ours, b"unread").unwrap();
        wall.db.actor.close(theirs);
        let end = std::time::Instant::now() + LONG;
        while wall.web.actor.send(ours, b"more").is_ok() {
            assert!(std::time::Instant::now() < end, "no reset comes");
        }
        assert_eq!(wall.denials().denied(), 0, "{family:?}: a reset");
        wall.web.actor.close(ours);
        // Who is denied gets no cookie.
        wall.allow(&[]);
        assert_eq!(wall.web.actor.tcp_connect(to, BRIEF), Err(Errno::TIMEDOUT));
        let causes = wall.denials().causes();
        assert!(
            !causes.is_empty() && causes.iter().all(|cause| *cause == (Hook::TcFrom, Reason::NoRule)),
            "{causes:?}"
        );
        wall.db.actor.close(listener);
    }
}

#[test]
fn g71_packets_of_any_size_are_judged_alike() {
    let Some(wall) = wall() else { return };
    let bulks = (64 / slowness()).max(8);
    let ends = [(&wall.web.net, "web0"), (&wall.host, "to-web"), (&wall.host, "to-db"), (&wall.db.net, "db0")];
    for setting in [
        "gso_max_segs 65535 gso_max_size 65536",
        "gso_max_segs 1 gso_max_size 2000 gro_max_size 2000",
        "gso_max_segs 65535 gso_max_size 180000 gro_max_size 180000",
    ] {
        for (netns, device) in ends {
            netns.ip(&format!("link set dev {device} {setting}"));
        }
        for family in FAMILIES {
            // What TCP sends again of connections before this one is not counted.
            let denied = |to: SocketAddr| {
                let denials = wall.guard().look();
                let causes = denials.causes().into_iter().zip(&denials.records);
                causes.filter(|(_, record)| record.peer_port == to.port()).map(|(cause, _)| cause).collect::<Vec<_>>()
            };
            let (listener, at) = wall.db.listen(family);
            wall.open_way("tcp/any, udp/any");
            let ours = wall.web.actor.tcp_connect(at, LONG).unwrap();
            let theirs = wall.db.actor.accept(listener).unwrap();
            let bulk = vec![b'.'; 60_000];
            wall.db.actor.begin(&theirs.drain_command(bulk.len() * bulks as usize, LONG), None);
            assert_eq!(wall.web.actor.hammer(ours, None, bulks, &bulk), Ok(bulks as usize));
            assert_eq!(wall.db.actor.end_count(), Ok(bulk.len() * bulks as usize), "{setting} {family:?}");
            assert_eq!(denied(at), [], "{setting} {family:?}");
            // One send, and ten datagrams of it.
            let (receiver, to) = wall.db.udp(family);
            let (sender, _) = connected(&wall, to);
            wall.web.actor.set_option(sender, libc::SOL_UDP, libc::UDP_SEGMENT, 500).unwrap();
            let magic = magic();
            let payload: Vec<u8> = magic.iter().copied().chain(std::iter::repeat(b'.')).take(500).collect();
            let ten = payload.repeat(10);
            wall.web.actor.send(sender, &ten).unwrap();
            assert_eq!(wall.db.actor.receive(receiver, 10).unwrap().len(), 10, "{setting} {family:?}");
            assert_eq!(denied(to), [], "{setting} {family:?}");

            wall.allow(&[]);
            nothing_arrives(&wall, receiver, &magic, || {
                wall.web.actor.send(sender, &ten).unwrap();
            });
            assert_eq!(denied(to), [(Hook::TcFrom, Reason::NoRule)], "{setting} {family:?}");
            // And the rest of a connection: as much as fits what a socket holds back, however fast this machine is.
            wall.web.actor.hammer(ours, None, 1, &bulk[..8_000]).unwrap();
            assert_eq!(wall.db.actor.receive_for(theirs, 1, BRIEF), Ok(vec![]), "{setting} {family:?}");
            assert_eq!(denied(at).first(), Some(&(Hook::TcFrom, Reason::NoRule)), "{setting} {family:?}");
            for (actor, socket) in [(&wall.web.actor, ours), (&wall.db.actor, theirs), (&wall.db.actor, listener)] {
                actor.close(socket);
            }
        }
    }
}
