//! What a packet can look like, and ways past the sockets of a workload.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
};

use agent_common::{layout::Hook, verdict::Reason};
use tests::{
    frames::{FAMILIES, fragments, ip_tcp, ip_udp, with_extensions, with_options},
    lab::{Family, Kind, Wall},
};

use crate::stage::{AT_THE_DOOR, BRIEF, Ends, Fate, Opens, Policy, Receiver, Row, Stage, by_frame, from_device};

use Fate::{Arrived, Delivered, Stopped};
use Reason::{Fragment, Malformed, NoFlow, NoRule, SpoofedSource};

/// More than one packet holds.
const LONG_PAYLOAD: usize = 2_000;
/// IPv4, IPv6 and GRE in IP (linux/in.h).
const IPPROTO_IPIP: u32 = 4;
const IPPROTO_IPV6: u32 = 41;
const IPPROTO_GRE: u32 = 47;

/// The inner addresses of the tunnel over a family: of `web` and of `db`.
fn inside(over: Family) -> [IpAddr; 2] {
    let n = if over == Family::V4 { 4 } else { 6 };
    [1, 2].map(|host| IpAddr::from([10, 7, n, host]))
}

pub fn prepare(wall: &Wall) {
    for over in FAMILIES {
        assert_eq!(wall.tunnel(over), inside(over));
        for (addr, party) in inside(over).into_iter().zip([&wall.web, &wall.db]) {
            wall.give_address(addr, party.cgroup.id());
        }
    }
    // Pieces of what is never whole are forgotten with the network, and nobody is told of them.
    wall.db.net.run(|| {
        for time in ["ipv4/ipfrag_time", "ipv6/ip6frag_time"] {
            std::fs::write(format!("/proc/sys/net/{time}"), "3600").unwrap();
        }
    });
}

/// A message of a protocol that carries packets.
fn carried(stage: &Stage<'_>, protocol: u32, data: &[u8]) {
    stage.send((stage.family, Kind::Raw, protocol), |web, socket| {
        let packet = ip_udp(stage.from(), stage.to, data);
        web.send_to(socket, SocketAddr::new(stage.to.ip(), 0), &packet).map(drop)
    });
}

#[expect(clippy::too_many_lines, reason = "one table")]
pub fn rows(family: Family) -> Vec<Row> {
    let udp = |name, send, fates| Row::udp(family, name, send, fates);
    let sendmsg = family.sendmsg_hook();
    let by_protocol = || {
        let egress = Stopped(Hook::Egress, NoRule);
        vec![
            (Policy::Open, [Arrived; 3]),
            // Rules for ports are no rules for it.
            (Policy::Ports, [egress, egress, from_device(NoRule)]),
            // No socket takes it.
            (Policy::Door, [Stopped(Hook::TcTo, NoRule), Arrived, Stopped(Hook::TcTo, NoRule)]),
        ]
    };
    let mut rows = vec![
        udp("g14 AF_PACKET", |stage, data| stage.send_frame(&ip_udp(stage.from(), stage.to, data)), by_frame()),
        udp(
            "g43 fragments",
            |stage, data| {
                // What is looked for is in the last one.
                stage.datagram(stage.to, &[&[b'.'; LONG_PAYLOAD][..], data].concat());
            },
            vec![
                // Behind the first one, which may pass.
                (Policy::Open, [Delivered; 3]),
                (Policy::Exit, [Stopped(sendmsg, NoRule), Stopped(sendmsg, NoRule), from_device(NoRule)]),
                (Policy::Door, AT_THE_DOOR),
            ],
        ),
        udp(
            "g44 a first piece without its whole header",
            |stage, data| {
                let segment = ip_tcp(stage.from(), stage.to, |tcp| tcp.syn(), data);
                let end = 20 + data.len();
                fragments(&segment, next_id(), &[0..16, 16..end]).iter().for_each(|piece| stage.send_frame(piece));
            },
            // Where it is put together it is a call of TCP, and nobody is there.
            vec![(Policy::Open, [from_device(Malformed), Arrived, from_device(Malformed)])],
        ),
        udp(
            "g44 an overlap",
            |stage, data| {
                let whole = ip_udp(stage.from(), stage.to, &[&[b'.'; 64][..], data].concat());
                let end = 8 + 64 + data.len();
                let ranges = [0..72, 64..end];
                fragments(&whole, next_id(), &ranges).iter().for_each(|piece| stage.send_frame(piece));
            },
            // The receiver's network puts together no such thing either.
            vec![(Policy::Open, [from_device(Fragment), Arrived, from_device(Fragment)])],
        ),
        udp(
            "g48 a header that is too short",
            |stage, data| {
                let mut packet = ip_tcp(stage.from(), stage.to, |tcp| tcp.syn(), data);
                let header = if stage.family == Family::V4 { 20 } else { 40 };
                packet[header + 12] = 4 << 4;
                stage.send_frame(&packet);
            },
            // TCP of the receiver drops it before it looks for a socket.
            vec![
                (Policy::Open, [from_device(Malformed), Arrived, from_device(Malformed)]),
                (Policy::Door, [Stopped(Hook::TcTo, Malformed), Arrived, Stopped(Hook::TcTo, Malformed)]),
            ],
        ),
        udp("g50 GRE", |stage, data| carried(stage, IPPROTO_GRE, data), by_protocol()),
        udp(
            "g50 a packet in a packet",
            |stage, data| {
                let protocol = if stage.family == Family::V4 { IPPROTO_IPIP } else { IPPROTO_IPV6 };
                carried(stage, protocol, data);
            },
            by_protocol(),
        ),
        Row {
            opens: Opens::By(|wall, _, over| {
                let (socket, to) = wall.db.actor.udp_bind(SocketAddr::new(inside(over)[1], 0)).unwrap();
                Ends { receiver: Receiver::Messages(socket), to, sockets: [None; 2] }
            }),
            ..udp(
                "g50 VXLAN",
                |stage, data| stage.datagram(stage.to, data),
                // Devices see the tunnel, and sockets what is in it.
                vec![
                    (Policy::Open, [Delivered; 3]),
                    (Policy::Ports, [from_device(NoRule), Delivered, from_device(NoRule)]),
                    (Policy::Tunnel, [Stopped(Hook::Sendmsg4, NoRule), Stopped(Hook::Sendmsg4, NoRule), Delivered]),
                ],
            )
        },
        udp(
            "g52 another's source",
            |stage, data| {
                let source = if stage.family == Family::V4 { "10.9.0.2:40000" } else { "[fd09::2]:40000" };
                stage.send_frame(&ip_udp(source.parse().unwrap(), stage.to, data));
            },
            // The door knows nobody by that address.
            vec![(
                Policy::Open,
                [from_device(SpoofedSource), Stopped(Hook::Ingress, NoRule), from_device(SpoofedSource)],
            )],
        ),
        udp(
            "g54 an echo",
            |stage, data| {
                let _ = stage.wall.web.actor.ping(stage.to.ip(), data, BRIEF);
            },
            vec![
                (Policy::Open, [Arrived; 3]),
                (Policy::Back, [Stopped(Hook::Egress, NoRule), Stopped(Hook::Egress, NoRule), from_device(NoRule)]),
                // The kernel answers without a socket.
                (Policy::Door, [Stopped(Hook::TcTo, NoRule), Arrived, Stopped(Hook::TcTo, NoRule)]),
            ],
        ),
        udp(
            "g62 an answer to nothing",
            |stage, data| stage.datagram(stage.to, data),
            vec![(Policy::Back, [Stopped(sendmsg, NoRule), Stopped(sendmsg, NoRule), from_device(NoRule)])],
        ),
        udp(
            "g62 a segment of no connection",
            |stage, data| stage.send_frame(&ip_tcp(stage.from(), stage.to, |tcp| tcp.ack(1), data)),
            vec![(Policy::Open, [from_device(NoFlow), Arrived, from_device(NoFlow)])],
        ),
    ];
    rows.push(match family {
        Family::V4 => udp(
            "g47 options that look like ports",
            |stage, data| {
                // Where a header without options ends: the port that is allowed, twice.
                stage.send_frame(&with_options(&ip_udp(stage.from(), stage.to, data), &[1; 4]));
            },
            by_frame(),
        ),
        Family::V6 => udp(
            "g46 extension headers",
            |stage, data| {
                let chain: [(u8, &[u8]); 2] = [(0, &[0, 1, 4, 0, 0, 0, 0]), (60, &[0, 1, 4, 0, 0, 0, 0])];
                stage.send_frame(&with_extensions(&ip_udp(stage.from(), stage.to, data), &chain));
            },
            by_frame(),
        ),
    });
    rows
}

/// A number of a datagram in pieces that no other has.
fn next_id() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
