//! What a workload can put before the ports of a packet, or instead of them: G46, G47 and G50 of the list of gaps, at the
//! programs of devices.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::net::{IpAddr, SocketAddr};

use agent_common::{layout::Hook, verdict::Reason};
use tests::{
    frames::{
        FAMILIES, framed, ip_udp, nothing_arrives, stopped_at_the_exit, with_extensions, with_options, with_protocol,
    },
    lab::{Command, Family, GuardOptions, Socket, Transmit, VXLAN_PORT, Wall, magic},
    scene::repetitions,
};

/// Frames that one command of an actor holds.
const BATCH: usize = 250;

/// A packet that the generator of chains made.
struct Chained {
    packet: Vec<u8>,
    payload: Vec<u8>,
}

/// Numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }
}

/// A datagram behind a chain of extension headers, most of them good ones, filled with what looks like `decoy`: the
/// ports of a datagram that would be allowed.
fn chained(random: &mut Random, from: SocketAddr, to: SocketAddr, decoy: [u8; 4], payload: Vec<u8>) -> Chained {
    let mut chain: Vec<(u8, Vec<u8>)> = Vec::new();
    for _ in 0..random.below(10) {
        let kind = [0, 60, 60, 60, 43, 43, 44, 44, 51, 59, 135][random.below(11)];
        let words = random.below(3);
        // An option that is skipped by who does not know it, and holds anything.
        let mut rest = match kind {
            44 => vec![0, 0, 0, 0, 0, 0, 9],
            43 => [&[u8::try_from(words).unwrap(), 253, 0][..], &decoy, &vec![decoy[1]; words * 8]].concat(),
            _ => {
                let length = u8::try_from(words * 8 + 4).unwrap();
                [&[u8::try_from(words).unwrap(), 0x1e, length][..], &decoy.repeat(words * 2 + 1)].concat()
            }
        };
        if kind == 44 && random.below(8) == 0 {
            rest[2] = 1;
        }
        chain.push((kind, rest));
    }
    if random.below(2) == 0 {
        // As hosts do.
        chain.sort_by_key(|(kind, _)| *kind != 0);
        chain.dedup_by_key(|(kind, _)| *kind == 0);
    }
    let chain: Vec<(u8, &[u8])> = chain.iter().map(|(kind, rest)| (*kind, rest.as_slice())).collect();
    let mut packet = with_extensions(&ip_udp(from, to, &payload), &chain);
    if random.below(3) == 0 {
        let at = [4, 5, 6, 40, 41, 42, 43, 48, 49][random.below(9)];
        packet[at] = u8::try_from(random.below(256)).unwrap();
    }
    Chained { packet, payload }
}

/// Sends packets as frames, and says which of them a socket got, each once.
fn delivered(wall: &Wall, ethernet: ([u8; 6], [u8; 6]), all: &[Chained], receiver: Socket) -> Vec<bool> {
    let mut got = Vec::new();
    for batch in all.chunks(BATCH) {
        let frames: Vec<Vec<u8>> = batch.iter().map(|chained| framed(ethernet, &chained.packet)).collect();
        wall.hammer_frames(&frames, 1, Transmit::Bypass).unwrap();
        let _ = wall.watch(&batch[0].payload).arrived();
        got.extend(wall.db.actor.received(receiver).unwrap().into_iter().map(|message| message.data));
        let _ = wall.denials();
    }
    let got: std::collections::HashSet<Vec<u8>> = got.into_iter().collect();
    all.iter().map(|chained| got.contains(&chained.payload)).collect()
}

#[test]
fn g46_no_chain_of_extension_headers_hides_a_port_from_a_device() {
    let Some(wall) = Wall::unguarded(GuardOptions::default()) else { return };
    let ethernet = wall.switch();
    let (receiver, to) = wall.db.udp(Family::V6);
    let (_, allowed) = wall.db.udp(Family::V6);
    let from = wall.web.at(Family::V6, 40_000);
    let [[a, b], [c, d]] = [from.port(), allowed.port()].map(u16::to_be_bytes);
    let (mut random, magic) = (Random(0x9e37_79b9_7f4a_7c15), magic());
    let count = repetitions(2_000, 100_000);
    let mut taken = [0; 3];
    for round in 0..count.div_ceil(2_000) {
        let all: Vec<Chained> = (0..2_000)
            .map(|n| {
                let payload = [&magic[..], format!(" {round} {n}").as_bytes()].concat();
                chained(&mut random, from, to, [a, b, c, d], payload)
            })
            .collect();
        for device in wall.devices() {
            let index = device.index;
            wall.guard().inside(|d| d.release_device(index)).unwrap();
        }
        let by_linux = delivered(&wall, ethernet, &all, receiver);
        wall.guard_devices();
        // Every port but that one, and then that one alone.
        let port = to.port();
        let others = [format!("udp/1-{}", port - 1), format!("udp/{}-65535", port + 1)];
        wall.open_way(&format!("tcp/any, icmp/echo, {}", others.join(", ")));
        assert!(!delivered(&wall, ethernet, &all, receiver).contains(&true), "a chain hides the port");
        wall.open_way(&format!("udp/{port}"));
        let by_both = delivered(&wall, ethernet, &all, receiver);
        assert!(by_both.iter().zip(&by_linux).all(|(both, linux)| !both || *linux), "from nowhere");
        for (sum, all) in taken.iter_mut().zip([vec![true; all.len()], by_linux, by_both]) {
            *sum += all.into_iter().filter(|yes| *yes).count();
        }
    }
    println!(
        "of {} chains the receiver takes {}, and a device with that port open lets pass {} of these",
        taken[0], taken[1], taken[2]
    );
    assert!(taken[1] > taken[0] / 10 && taken[2] > taken[1] / 2, "hardly anything was tried: {taken:?}");
}

#[test]
fn g47_options_are_no_ports() {
    /// What two no-operation options are, if they are taken for a port.
    const DECOY: u16 = 0x0101;
    let Some(wall) = Wall::open(false) else { return };
    let (receiver, to) = wall.db.udp(Family::V4);
    let from = wall.web.at(Family::V4, 40_000);
    for length in (4..=40).step_by(4) {
        let mut options = vec![0; length];
        options[..4].fill(1);
        let magic = magic();
        let with = framed(wall.ethernet(), &with_options(&ip_udp(from, to, &magic), &options));
        let send = || assert_eq!(wall.hammer_frames(std::slice::from_ref(&with), 1, Transmit::Bypass), Ok(1));
        wall.open_way(&format!("udp/{}", to.port()));
        send();
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, magic, "{length} bytes");
        assert_eq!(wall.denials().denied(), 0);
        wall.open_way(&format!("udp/{DECOY}"));
        nothing_arrives(&wall, receiver, &magic, send);
        let denials = wall.denials();
        stopped_at_the_exit(&wall, &denials, Reason::NoRule, 1);
        assert_eq!((denials.records[0].peer_port, denials.records[0].local_port), (to.port(), from.port()));
    }
}

#[test]
fn g50_protocols_of_tunnels_need_a_rule_for_everything() {
    let Some(wall) = Wall::open(false) else { return };
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        let from = wall.web.at(family, 40_000);
        for protocol in [4, 41, 47, 50, 51, 97, 115] {
            let magic = magic();
            // What is inside is allowed, and nobody looks.
            let packet = with_protocol(&ip_udp(from, to, &ip_udp(from, to, &magic)), protocol);
            let send = || {
                let frame = framed(wall.ethernet(), &packet);
                assert_eq!(wall.hammer_frames(&[frame], 1, Transmit::Bypass), Ok(1));
            };
            wall.open_way("any");
            let mut sniffer = wall.watch(&magic);
            send();
            assert_eq!(sniffer.arrived(), 1, "{family:?} {protocol}");
            assert_eq!(wall.denials().denied(), 0);
            wall.open_way("tcp/any, udp/any, sctp/any, icmp/echo");
            nothing_arrives(&wall, receiver, &magic, send);
            let denials = wall.denials();
            stopped_at_the_exit(&wall, &denials, Reason::NoRule, 1);
            assert_eq!(denials.records[0].proto, protocol);
        }
    }
}

#[test]
fn g50_a_tunnel_and_what_is_in_it_are_both_judged() {
    for sockets in [false, true] {
        let Some(wall) = Wall::open(sockets) else { return };
        for over in FAMILIES {
            let inner = wall.tunnel(over);
            for (addr, party) in inner.into_iter().zip([&wall.web, &wall.db]) {
                wall.give_address(addr, party.cgroup.id());
            }
            let (receiver, to) = wall.db.actor.udp_bind(SocketAddr::new(inner[1], 0)).unwrap();
            let (outside, inside) = (format!("udp/{VXLAN_PORT}"), format!("udp/{}", to.port()));
            let send = |data: &[u8]| {
                let socket = wall.web.actor.udp_bind(SocketAddr::new(inner[0], 0)).unwrap().0;
                let _ = wall.web.actor.send_to(socket, to, data);
                wall.web.actor.close(socket);
            };
            wall.open_way(&format!("{outside}, {inside}"));
            send(b"both");
            assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, b"both", "{over:?}");
            assert_eq!(wall.denials().denied(), 0);
            // The tunnel is denied.
            wall.open_way(&inside);
            let magic = magic();
            nothing_arrives(&wall, receiver, &magic, || send(&magic));
            let denials = wall.denials();
            assert_eq!((denials.causes(), denials.denied()), (vec![(Hook::TcFrom, Reason::NoRule)], 1));
            assert_eq!(denials.records[0].peer_port, VXLAN_PORT);
            // What is in it is denied: only sockets see that.
            wall.open_way(&outside);
            if !sockets {
                send(b"inside");
                assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, b"inside");
                assert_eq!(wall.denials().denied(), 0);
                continue;
            }
            nothing_arrives(&wall, receiver, &magic, || send(&magic));
            let hook = Family::V4.sendmsg_hook();
            assert_eq!(wall.denials().causes(), [(hook, Reason::NoRule)]);
            // Past the sockets of `web` as well: then the door of `db` is left.
            let from = SocketAddr::new(inner[0], 40_000);
            let [IpAddr::V4(a), IpAddr::V4(b)] = inner else { panic!("IPv4 inside") };
            let mac = |addr: std::net::Ipv4Addr| [2, 7, 7, 7, addr.octets()[2], addr.octets()[3]];
            let frame = framed((mac(a), mac(b)), &ip_udp(from, to, &magic));
            let device = if over == Family::V4 { "vx4" } else { "vx6" }.to_owned();
            wall.web.actor.call(&Command::SendFrame { device, frame, bypass: true }).unwrap();
            assert_eq!(wall.denials().causes(), [(Hook::Ingress, Reason::NoRule)]);
            assert_eq!(wall.db.actor.received(receiver), Ok(vec![]));
        }
    }
}
