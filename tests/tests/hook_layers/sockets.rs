//! How a workload sends by a socket of its own.

use std::net::{IpAddr, SocketAddr};

use agent_common::{flow::proto, layout::Hook};
use tests::{
    frames::ip_udp,
    lab::{Actor, Errno, Family, Kind, Socket, UringOperation, Wall},
};

use crate::stage::{BRIEF, Fate, Opens, Policy, Row, Stage, by_socket};

/// linux/in.h.
const IPPROTO_RAW: u32 = 255;
const IPPROTO_MPTCP: u32 = 262;
const UDPLITE: u32 = proto::UDPLITE as u32;
/// linux/udp.h, linux/tcp.h.
const SOL_UDP: i32 = 17;
const UDP_SEGMENT: i32 = 103;
const SOL_TCP: i32 = 6;
const TCP_FASTOPEN_CONNECT: i32 = 30;
/// Client and server of TCP Fast Open, for every listener and without a cookie (`tcp_fastopen`).
const FAST_OPEN: &str = "1543";

/// Another address of `web`.
fn second(family: Family) -> IpAddr {
    if family == Family::V4 { IpAddr::from([10, 9, 0, 3]) } else { "fd09::3".parse().unwrap() }
}

pub fn prepare(wall: &Wall) {
    for family in [Family::V4, Family::V6] {
        // Nobody takes it by himself.
        let rest = if family == Family::V4 { "24" } else { "128 nodad preferred_lft 0" };
        wall.web.net.ip(&format!("address add {}/{rest} dev web0", second(family)));
        wall.give_address(second(family), wall.web.cgroup.id());
    }
    for net in [&wall.web.net, &wall.db.net] {
        net.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", FAST_OPEN)).unwrap();
    }
}

#[expect(clippy::too_many_lines, reason = "one table")]
pub fn rows(family: Family) -> Vec<Row> {
    let udp = |name, send, fates| Row::udp(family, name, send, fates);
    let tcp = |name, send, fates| Row { opens: Opens::Connections(0), ..udp(name, send, fates) };
    let (connect, sendmsg) = (family.connect_hook(), family.sendmsg_hook());
    let mut rows = vec![
        udp("g1 sendto", |stage, data| stage.datagram(stage.to, data), by_socket(sendmsg)),
        udp(
            "connect",
            |stage, data| {
                stage.send_udp(|web, socket| {
                    web.connect(socket, stage.to, BRIEF).and_then(|()| web.send(socket, data).map(drop))
                });
            },
            by_socket(connect),
        ),
        udp("g2 one of many messages", of_many, by_socket(sendmsg)),
        udp(
            "g2 segments",
            |stage, data| {
                stage.send_udp(|web, socket| {
                    web.set_option(socket, SOL_UDP, UDP_SEGMENT, 500)?;
                    let more = [0; 2_000];
                    web.send_to(socket, stage.to, &[data, &more[..]].concat()).map(drop)
                });
            },
            by_socket(sendmsg),
        ),
        udp(
            "g2 another source",
            |stage, data| {
                stage.send_udp(|web, socket| web.send_from(socket, second(stage.family), stage.to, data).map(drop));
            },
            by_socket(sendmsg),
        ),
        udp(
            "g3 connected again",
            |stage, data| {
                after_one_that_is_allowed(stage, |web, socket| {
                    web.connect(socket, stage.to, BRIEF)?;
                    web.send(socket, data).map(drop)
                });
            },
            by_socket(connect),
        ),
        udp(
            "g3 past the peer",
            |stage, data| {
                after_one_that_is_allowed(stage, |web, socket| web.send_to(socket, stage.to, data).map(drop));
            },
            by_socket(sendmsg),
        ),
        tcp(
            "g6 Fast Open",
            |stage, data| {
                stage.send((stage.family, Kind::Stream, 0), |web, socket| {
                    web.send_fast(socket, stage.to, data, stage.patience).map(drop)
                });
            },
            by_socket(connect),
        ),
        tcp(
            "g6 Fast Open by connect",
            |stage, data| {
                stage.send((stage.family, Kind::Stream, 0), |web, socket| {
                    web.set_option(socket, SOL_TCP, TCP_FASTOPEN_CONNECT, 1)?;
                    web.connect(socket, stage.to, stage.patience)?;
                    // It only begins with the first payload.
                    web.send_fast(socket, stage.to, data, stage.patience).map(drop)
                });
            },
            by_socket(connect),
        ),
        Row {
            calls: true,
            opens: Opens::Connections(IPPROTO_MPTCP),
            // The kernel makes the socket of a subflow, and connect does not know whose it is.
            ..udp("g7 MPTCP", by_mptcp, by_socket(Hook::Egress))
        },
        Row {
            opens: Opens::Datagrams(UDPLITE),
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
        udp(
            "g19 sendmsg by a thread of the kernel",
            |stage, data| {
                stage.send_udp(|web, socket| {
                    let operation = UringOperation::SendMsg { to: stage.to, data: data.to_vec() };
                    web.uring(socket, operation, true).map(drop)
                });
            },
            by_socket(sendmsg),
        ),
        udp(
            "g19 without a copy",
            |stage, data| {
                stage.send_udp(|web, socket| {
                    let operation = UringOperation::SendZc { to: stage.to, data: data.to_vec() };
                    web.uring(socket, operation, false).map(drop)
                });
            },
            by_socket(sendmsg),
        ),
        udp(
            "g19 connect by a ring",
            |stage, data| {
                stage.send_udp(|web, socket| {
                    web.uring(socket, UringOperation::Connect { to: stage.to, timeout_ms: 50 }, false)?;
                    web.send(socket, data).map(drop)
                });
            },
            by_socket(connect),
        ),
    ];
    if family == Family::V4 {
        rows.extend(of_v4());
    }
    rows
}

fn of_v4() -> [Row; 2] {
    let udp = |name, send, fates: Vec<(Policy, [Fate; 3])>| Row::udp(Family::V4, name, send, fates);
    [
        udp(
            "g4 an address without a family",
            |stage, data| {
                let SocketAddr::V4(to) = stage.to else { panic!("IPv4") };
                stage.send_udp(|web, socket| web.send_unspec(socket, to, data).map(drop));
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
    ]
}

/// Between two that are allowed.
fn of_many(stage: &Stage<'_>, data: &[u8]) {
    let (db, good) = (&stage.wall.db.actor, stage.allowed());
    let (receiver, _) = db.udp_bind(good).unwrap();
    let messages = vec![(good, b"first".to_vec()), (stage.to, data.to_vec()), (good, b"last".to_vec())];
    stage.send_udp(|web, socket| {
        // sendmmsg(2) ends at the first that fails.
        if web.send_many(socket, messages.clone())? == 1 {
            assert!(web.send_many(socket, messages[1..].to_vec()).is_err());
            assert_eq!(web.send_many(socket, messages[2..].to_vec()), Ok(1));
        }
        Ok(())
    });
    let got: Vec<Vec<u8>> = db.receive(receiver, 2).unwrap().into_iter().map(|message| message.data).collect();
    assert_eq!(got, [b"first".to_vec(), b"last".to_vec()]);
    db.close(receiver);
}

/// By a socket whose peer it may call.
fn after_one_that_is_allowed(stage: &Stage<'_>, send: impl FnOnce(&Actor, Socket) -> Result<(), Errno>) {
    let db = &stage.wall.db.actor;
    let (receiver, good) = db.udp_bind(stage.allowed()).unwrap();
    stage.send_udp(|web, socket| {
        web.connect(socket, good, BRIEF).unwrap();
        web.send(socket, b"allowed").unwrap();
        assert_eq!(db.receive(receiver, 1).unwrap()[0].data, b"allowed");
        send(web, socket)
    });
    db.close(receiver);
}

fn by_mptcp(stage: &Stage<'_>, data: &[u8]) {
    stage.send((stage.family, Kind::Stream, IPPROTO_MPTCP), |web, socket| {
        web.connect(socket, stage.to, stage.patience).and_then(|()| web.send(socket, data).map(drop))
    });
}
