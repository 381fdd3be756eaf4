//! Which layer stops what, with all of them, with the hooks of sockets alone, and with the programs at devices alone:
//! G1, G4, G5, G9, G12, G14, G20, G28, G43, G46, G48, G52, G54 and G62 of the list of gaps in one table. A layer that is
//! missing in silence contradicts it.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use agent_common::{
    flow::proto,
    layout::{Hook, names::program},
    verdict::Reason,
};
use tests::{
    frames::{FAMILIES, frame, ip_tcp, ip_udp, with_extensions},
    lab::{Actor, Errno, Family, Kind, Socket, Transmit, Wall, magic},
    scene::LONG,
};

/// A raw socket whose packets bring their IP header (linux/in.h).
const IPPROTO_RAW: u32 = 255;
const UDPLITE: u32 = proto::UDPLITE as u32;
/// Where nothing comes, this long is waited for it.
const BRIEF: Duration = Duration::from_millis(50);
/// More than one packet holds.
const LONG_PAYLOAD: usize = 2_000;

/// What guards the workloads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Layers {
    All,
    Sockets,
    Devices,
}

/// What becomes of something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Fate {
    /// The socket got it.
    Delivered,
    /// It is in the receiver's namespace, where no socket takes it.
    Arrived,
    /// A hook denied it.
    Stopped(Hook, Reason),
    /// None of these.
    Lost,
}

use Fate::{Arrived, Delivered, Stopped};
use Reason::{DeviceMismatch, Malformed, NoFlow, NoRule, SpoofedSource, TaskMismatch};

/// What is allowed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Policy {
    /// Nothing, and the door of `db` denies nothing.
    Exit,
    /// Nothing, and the exit of `web` denies nothing.
    Door,
    /// Everything from `db` to `web`.
    Back,
    /// Everything from `web` to `db`.
    Open,
}

impl Policy {
    const ALL: [Self; 4] = [Self::Exit, Self::Door, Self::Back, Self::Open];

    fn apply(self, wall: &Wall) {
        match self {
            Self::Exit => wall.allow_at_the_exit(&[]),
            Self::Door => wall.allow_at_the_door(&[]),
            Self::Back => wall.allow(&["db -> web: any"]),
            Self::Open => wall.open_way("any"),
        };
    }
}

/// Where a case is tried.
struct Stage<'a> {
    wall: &'a Wall,
    /// In the network of `web`, with the label of `db`.
    stranger: &'a Actor,
    family: Family,
    to: SocketAddr,
}

impl Stage<'_> {
    fn from(&self) -> SocketAddr {
        self.wall.web.at(self.family, 40_000)
    }

    fn send_frame(&self, packet: &[u8]) {
        let sent = self.wall.hammer_frames(&[frame(self.wall, packet)], 1, Transmit::Bypass);
        assert_eq!(sent, Ok(1));
    }

    /// Sends by a socket of `web`, and forgets what becomes of that: the fate of the payload is looked at elsewhere.
    fn send(
        &self,
        (family, kind, protocol): (Family, Kind, u32),
        send: impl FnOnce(&Actor, Socket) -> Result<(), Errno>,
    ) {
        let web = &self.wall.web.actor;
        let socket = web.socket(family, kind, protocol).unwrap();
        let _ = send(web, socket);
        web.close(socket);
    }

    fn datagram(&self, to: SocketAddr, data: &[u8]) {
        let kind = (Family::of(to), Kind::Datagram, 0);
        self.send(kind, |web, socket| web.send_to(socket, to, data).map(drop));
    }
}

/// A row: how something is sent, and its fate under policies, by [`Layers`].
struct Row {
    name: &'static str,
    family: Family,
    /// The protocol of the socket that would get it.
    protocol: u32,
    send: fn(&Stage<'_>, &[u8]),
    fates: Vec<(Policy, [Fate; 3])>,
}

/// By a socket that `first` sees first.
fn by_socket(first: Hook) -> Vec<(Policy, [Fate; 3])> {
    let exit = Stopped(first, NoRule);
    vec![
        (Policy::Open, [Delivered; 3]),
        (Policy::Exit, [exit, exit, Stopped(Hook::TcFrom, NoRule)]),
        (Policy::Door, AT_THE_DOOR),
    ]
}

/// Past every socket of `web`.
fn by_frame() -> Vec<(Policy, [Fate; 3])> {
    let exit = Stopped(Hook::TcFrom, NoRule);
    vec![(Policy::Open, [Delivered; 3]), (Policy::Exit, [exit, Delivered, exit]), (Policy::Door, AT_THE_DOOR)]
}

const AT_THE_DOOR: [Fate; 3] =
    [Stopped(Hook::TcTo, NoRule), Stopped(Hook::Ingress, NoRule), Stopped(Hook::TcTo, NoRule)];

#[expect(clippy::too_many_lines, reason = "one table")]
fn rows(family: Family) -> Vec<Row> {
    let udp = |name, send, fates| Row { name, family, protocol: 0, send, fates };
    let sendmsg = family.sendmsg_hook();
    let from_device = |reason| Stopped(Hook::TcFrom, reason);
    let mut rows = vec![
        udp("g1 sendto", |stage, data| stage.datagram(stage.to, data), by_socket(sendmsg)),
        udp(
            "connect",
            |stage, data| {
                stage.send((stage.family, Kind::Datagram, 0), |web, socket| {
                    web.connect(socket, stage.to, BRIEF).and_then(|()| web.send(socket, data).map(drop))
                });
            },
            by_socket(family.connect_hook()),
        ),
        Row {
            protocol: UDPLITE,
            ..udp(
                "g9 UDP-Lite, connected",
                |stage, data| {
                    stage.send((stage.family, Kind::Datagram, UDPLITE), |web, socket| {
                        web.connect(socket, stage.to, BRIEF).and_then(|()| web.send(socket, data).map(drop))
                    });
                },
                by_socket(Hook::Egress),
            )
        },
        udp(
            "g12 a header of its own",
            |stage, data| {
                stage.send((stage.family, Kind::Raw, IPPROTO_RAW), |web, socket| {
                    let to = SocketAddr::new(stage.to.ip(), 0);
                    web.send_to(socket, to, &ip_udp(stage.from(), stage.to, data)).map(drop)
                });
            },
            by_socket(Hook::Egress),
        ),
        udp("g14 AF_PACKET", |stage, data| stage.send_frame(&ip_udp(stage.from(), stage.to, data)), by_frame()),
        udp(
            "g20 a socket handed to another",
            |stage, data| {
                let web = &stage.wall.web.actor;
                let theirs = web.socket(stage.family, Kind::Datagram, 0).unwrap();
                let given = web.give(theirs, stage.stranger);
                let _ = stage.stranger.send_to(given, stage.to, data);
                web.close(theirs);
                stage.stranger.close(given);
            },
            // The socket stays what it is; who uses it is seen where it is used.
            vec![(Policy::Open, [Stopped(sendmsg, TaskMismatch), Stopped(sendmsg, TaskMismatch), Delivered])],
        ),
        udp(
            "g20 a socket of another",
            |stage, data| {
                let web = &stage.wall.web.actor;
                let theirs = stage.stranger.socket(stage.family, Kind::Datagram, 0).unwrap();
                let given = stage.stranger.give(theirs, web);
                let _ = web.send_to(given, stage.to, data);
                web.close(given);
                stage.stranger.close(theirs);
            },
            vec![(Policy::Open, [Stopped(sendmsg, NoRule), Stopped(sendmsg, NoRule), from_device(DeviceMismatch)])],
        ),
        udp(
            "g28 in the network of another",
            |stage, data| {
                let socket = stage.stranger.socket(stage.family, Kind::Datagram, 0).unwrap();
                let _ = stage.stranger.send_to(socket, stage.to, data);
                stage.stranger.close(socket);
            },
            vec![(Policy::Open, [Stopped(sendmsg, NoRule), Stopped(sendmsg, NoRule), from_device(DeviceMismatch)])],
        ),
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
    match family {
        Family::V4 => rows.extend([
            udp(
                "g4 an address without a family",
                |stage, data| {
                    let SocketAddr::V4(to) = stage.to else { panic!("IPv4") };
                    stage.send((Family::V4, Kind::Datagram, 0), |web, socket| {
                        web.send_unspec(socket, to, data).map(drop)
                    });
                },
                by_socket(Hook::Sendmsg4),
            ),
            udp(
                "g5 by an IPv6 socket",
                |stage, data| {
                    let SocketAddr::V4(to) = stage.to else { panic!("IPv4") };
                    stage.datagram(SocketAddr::from((to.ip().to_ipv6_mapped(), to.port())), data);
                },
                by_socket(Hook::Sendmsg4),
            ),
        ]),
        Family::V6 => rows.push(udp(
            "g46 extension headers",
            |stage, data| {
                let chain: [(u8, &[u8]); 2] = [(0, &[0, 1, 4, 0, 0, 0, 0]), (60, &[0, 1, 4, 0, 0, 0, 0])];
                stage.send_frame(&with_extensions(&ip_udp(stage.from(), stage.to, data), &chain));
            },
            by_frame(),
        )),
    }
    rows
}

/// Sends once and looks what became of it.
fn fate(stage: &Stage<'_>, row: &Row, receiver: Socket) -> Fate {
    let db = &stage.wall.db.actor;
    let magic = magic();
    let mut witness = stage.wall.watch(&magic);
    (row.send)(stage, &magic);
    let arrived = witness.arrived() != 0;
    let delivered = !db.received(receiver).unwrap().is_empty();
    let first = stage.wall.denials().causes().first().copied();
    match (delivered, first, arrived) {
        (true, None, true) => Delivered,
        (false, Some((hook, reason)), arrived) if arrived == (hook == Hook::Ingress) => Stopped(hook, reason),
        (false, None, true) => Arrived,
        _ => Fate::Lost,
    }
}

/// Tries the table until it is wrong, and says where.
fn wrong(wall: &Wall, layers: Layers) -> Option<String> {
    let stranger = wall.lab().actor(&wall.db.cgroup, &wall.web.net);
    let db = &wall.db.actor;
    for policy in Policy::ALL {
        policy.apply(wall);
        let _ = wall.denials();
        for row in FAMILIES.into_iter().flat_map(rows) {
            let Some((_, fates)) = row.fates.iter().find(|(of, _)| *of == policy) else { continue };
            let Ok((receiver, to)) = db.bind(Kind::Datagram, row.protocol, wall.db.at(row.family, 0)) else {
                eprintln!("SKIP {}: this kernel has no such sockets", row.name);
                continue;
            };
            let stage = Stage { wall, stranger: &stranger, family: row.family, to };
            let (wanted, is) = (fates[layers as usize], fate(&stage, &row, receiver));
            db.close(receiver);
            if wanted != is {
                return Some(format!("{layers:?} {:?} {} {policy:?}: {is:?}, not {wanted:?}", row.family, row.name));
            }
        }
    }
    None
}

#[test]
fn g1_g4_g5_g9_g12_g14_g20_g28_g43_g46_g48_g52_g54_g62_are_stopped_by_one_layer_or_the_next() {
    use program::{CONNECT4, CONNECT6, EGRESS, INGRESS, SENDMSG4, SENDMSG6};
    let Some(wall) = Wall::open(false) else { return };
    let without_device = |layers, at: usize| {
        let device = wall.devices()[at].index;
        wall.guard().inside(|d| d.release_device(device)).unwrap();
        is_found_out(&wall, layers, ["the device of web", "the device of db"][at]);
        wall.guard_devices();
    };
    let without = |layers, names: &[&'static str]| {
        for name in names {
            wall.guard().detach(&[name]);
            is_found_out(&wall, layers, name);
            wall.guard().reattach().unwrap();
        }
    };
    is_right(&wall, Layers::Devices);
    for at in [0, 1] {
        without_device(Layers::Devices, at);
    }
    wall.guard().reattach().unwrap();
    is_right(&wall, Layers::All);
    for at in [0, 1] {
        without_device(Layers::All, at);
    }
    // The doors of devices are before that of the socket: with them nothing is left for it.
    without(Layers::All, &[EGRESS, SENDMSG4, SENDMSG6, CONNECT4, CONNECT6]);
    for device in wall.devices() {
        let index = device.index;
        wall.guard().inside(|d| d.release_device(index)).unwrap();
    }
    is_right(&wall, Layers::Sockets);
    without(Layers::Sockets, &[EGRESS, INGRESS, SENDMSG4, SENDMSG6, CONNECT4, CONNECT6]);
}

/// A program may run for a moment after it was taken away.
fn is_right(wall: &Wall, layers: Layers) {
    let end = Instant::now() + LONG;
    while let Some(wrong) = wrong(wall, layers) {
        assert!(Instant::now() < end, "{wrong}");
    }
}

/// A layer that is missing contradicts the table.
fn is_found_out(wall: &Wall, layers: Layers, missing: &str) {
    let end = Instant::now() + LONG;
    while wrong(wall, layers).is_none() {
        assert!(Instant::now() < end, "{layers:?} without {missing}: nobody notices");
    }
}
