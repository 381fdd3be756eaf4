//! Everything but plain TCP and UDP under the kernel programs: G9, G10, G12 to G14 and G19 of
//! the list of gaps.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use agent_common::{
    flow::proto,
    layout::{Hook, names::program},
    verdict::Reason,
};
use etherparse::PacketBuilder;
use tests::lab::{Command, Denials, Errno, Family, Kind, Place, Scene, Socket, UringOperation, everywhere, magic};

const LONG: Duration = Duration::from_secs(20);
const BRIEF: Duration = Duration::from_millis(200);
/// linux/in.h: a raw socket whose packets bring their IP header.
const IPPROTO_RAW: u32 = 255;
const UDPLITE: u32 = proto::UDPLITE as u32;

fn connect(family: Family) -> Hook {
    if family == Family::V4 { Hook::Connect4 } else { Hook::Connect6 }
}

fn sendmsg(family: Family) -> Hook {
    if family == Family::V4 { Hook::Sendmsg4 } else { Hook::Sendmsg6 }
}

/// Sends from a socket, connected to the peer or not.
fn send(scene: &Scene, socket: Socket, to: SocketAddr, connected: bool, data: &[u8]) -> Result<usize, Errno> {
    if !connected {
        return scene.web.actor.send_to(socket, to, data);
    }
    scene.web.actor.connect(socket, to, BRIEF)?;
    scene.web.actor.send(socket, data)
}

/// A UDP datagram from its header on. Checksum 0 is none, which IPv6 receivers refuse, so it is made.
fn udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    match (from.ip(), to.ip()) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            PacketBuilder::ipv4(src.octets(), dst.octets(), 64).udp(from.port(), to.port()).write(&mut packet, payload)
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            PacketBuilder::ipv6(src.octets(), dst.octets(), 64).udp(from.port(), to.port()).write(&mut packet, payload)
        }
        _ => panic!("both ends are of one family"),
    }
    .unwrap();
    packet.split_off(if from.is_ipv4() { 20 } else { 40 })
}

/// The same from the IPv4 header on.
fn ip_udp(from: SocketAddr, to: SocketAddr, payload: &[u8]) -> Vec<u8> {
    let (IpAddr::V4(src), IpAddr::V4(dst)) = (from.ip(), to.ip()) else { panic!("IPv4 only") };
    let mut packet = Vec::new();
    PacketBuilder::ipv4(src.octets(), dst.octets(), 64)
        .udp(from.port(), to.port())
        .write(&mut packet, payload)
        .unwrap();
    packet
}

/// On a raw socket the port is nothing.
fn host(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip(), 0)
}

#[test]
fn g9_udp_lite_is_never_taken_for_udp() {
    everywhere(|scene, family| {
        let Ok((receiver, to)) = scene.db.actor.bind(Kind::Datagram, UDPLITE, scene.db.at(family, 0)) else {
            eprintln!("SKIP: this kernel has no UDP-Lite");
            return;
        };
        let by_address = scene.place == Place::Veth;
        for connected in [false, true] {
            let socket = || scene.web.actor.socket(family, Kind::Datagram, UDPLITE).unwrap();
            scene.allow(&["web -> db: any"]);
            // Over loopback the other end of such a flow is known to nobody.
            let sent = send(scene, socket(), to, connected, b"allowed");
            assert_eq!(sent, if by_address { Ok(7) } else { Err(Errno::PERM) });
            let wanted = usize::from(by_address);
            assert_eq!(scene.db.actor.receive_for(receiver, wanted, LONG).unwrap().len(), wanted);
            let _ = scene.denials();

            scene.allow(&["web -> db: udp/any, tcp/any"]);
            let magic = magic();
            let mut witness = scene.watch(&magic);
            assert_eq!(send(scene, socket(), to, connected, &magic), Err(Errno::PERM));
            assert_eq!(witness.arrived(), 0);
            assert_eq!(scene.db.actor.received(receiver), Ok(vec![]));
            let denials = scene.denials();
            // Connecting such a socket runs no hook.
            let is_seen = by_address && !connected;
            let hook = if is_seen { scene.first_hook(sendmsg(family)) } else { Hook::Egress };
            let reason = if by_address { Reason::NoRule } else { Reason::UnknownTarget };
            assert_eq!((denials.causes(), denials.denied()), (vec![(hook, reason)], 1));
            assert_eq!(denials.records[0].proto, proto::UDPLITE);
        }
    });
}

#[test]
fn g10_a_protocol_without_a_rule_is_denied() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Veth, fast_refusal) else { return };
        for family in [Family::V4, Family::V6] {
            let to = scene.db.at(family, 0);
            // An INIT of SCTP to port 80, and a protocol for experiments (RFC 3692).
            let init = [&[0x30, 0x39, 0, 80, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 4][..], &magic()].concat();
            for (number, packet, allowed) in [(132, init, "web -> db: sctp/80"), (253, magic(), "web -> db: any")] {
                let receiver = scene.db.actor.socket(family, Kind::Raw, number).unwrap();
                let sender = scene.web.actor.socket(family, Kind::Raw, number).unwrap();
                scene.allow(&[allowed]);
                scene.web.actor.send_to(sender, to, &packet).unwrap();
                assert_eq!(scene.db.actor.receive(receiver, 1).unwrap().len(), 1);
                assert_eq!(scene.denials().denied(), 0);
                scene.allow(&["web -> db: tcp/80, udp/any, sctp/81, icmp/echo"]);
                let mut witness = scene.watch(&packet);
                assert_eq!(scene.web.actor.send_to(sender, to, &packet), Err(Errno::PERM));
                assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (0, Ok(vec![])));
                let denials = scene.denials();
                assert_eq!(denials.causes(), [(Hook::Egress, Reason::NoRule)]);
                assert_eq!(u32::from(denials.records[0].proto), number);
                // The door alone.
                scene.allow(&["exit web -> db: any", "door web -> db: tcp/any"]);
                scene.web.actor.send_to(sender, to, &packet).unwrap();
                assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (1, Ok(vec![])));
                assert_eq!(scene.denials().causes(), [(Hook::Ingress, Reason::NoRule)]);
            }
        }
    }
}

/// A way to send a UDP datagram that no hook of connect or sendmsg sees.
struct Raw {
    name: &'static str,
    family: Family,
    protocol: u32,
    packet: fn(SocketAddr, SocketAddr, &[u8]) -> Vec<u8>,
}

const RAW: [Raw; 3] = [
    Raw { name: "raw UDP", family: Family::V4, protocol: 17, packet: udp },
    Raw { name: "own IP header", family: Family::V4, protocol: IPPROTO_RAW, packet: ip_udp },
    Raw { name: "raw UDP over IPv6", family: Family::V6, protocol: 17, packet: udp },
];

#[test]
fn g12_raw_sockets_are_judged_by_what_they_send() {
    for (place, fast_refusal) in
        [(Place::Loopback, true), (Place::Loopback, false), (Place::Veth, true), (Place::Veth, false)]
    {
        let Some(scene) = Scene::open(place, fast_refusal) else { return };
        for Raw { name, family, protocol, packet } in RAW {
            for connected in [false, true] {
                let (receiver, to) = scene.db.udp(family);
                // Over loopback the door knows the caller by the socket at the source.
                let (source, from) = scene.web.udp(family);
                let sender = scene.web.actor.socket(family, Kind::Raw, protocol).unwrap();
                scene.allow(&["web -> db: udp/any"]);
                let data = packet(from, to, b"allowed");
                send(&scene, sender, host(to), connected, &data).unwrap_or_else(|e| panic!("{name}: {e}"));
                assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"allowed", "{name}");
                // A raw socket gets copies of what others send over loopback, and its door judges those.
                let at_exits = |denials: Denials| {
                    denials.records.into_iter().filter(|r| r.hook != Hook::Ingress as u8).collect::<Vec<_>>()
                };
                assert_eq!(at_exits(scene.denials()), []);
                scene.allow(&["other -> db: udp/any"]);
                let magic = magic();
                let mut witness = scene.watch(&magic);
                let sent = send(&scene, sender, host(to), connected, &packet(from, to, &magic));
                assert_eq!(sent, Err(Errno::PERM), "{name}");
                assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (0, Ok(vec![])), "{name}");
                let denied = at_exits(scene.denials());
                assert_eq!(denied.len(), 1, "{name}");
                assert_eq!((denied[0].hook, denied[0].reason), (Hook::Egress as u8, Reason::NoRule as u8));
                assert_eq!((denied[0].local_id, denied[0].peer_port), (scene.web.id().0, to.port()));
                scene.web.actor.close(source);
            }
        }
    }
}

#[test]
fn g12_the_hooks_of_connect_and_sendmsg_alone_would_miss_raw_sockets() {
    let Some(scene) = Scene::open(Place::Loopback, true) else { return };
    let (receiver, to) = scene.db.udp(Family::V4);
    let from = scene.web.at(Family::V4, 40_000);
    let sender = scene.web.actor.socket(Family::V4, Kind::Raw, 17).unwrap();
    assert_eq!(scene.web.actor.send_to(sender, host(to), &udp(from, to, b"denied")), Err(Errno::PERM));
    scene.guard().detach(&[program::EGRESS, program::INGRESS]);
    let end = Instant::now() + LONG;
    while scene.db.actor.received(receiver).unwrap().is_empty() {
        assert!(Instant::now() < end, "something else stops it: the test above proves nothing");
        let _ = scene.web.actor.send_to(sender, host(to), &udp(from, to, b"missed"));
    }
    let datagram = scene.web.actor.socket(Family::V4, Kind::Datagram, 0).unwrap();
    assert_eq!(scene.web.actor.send_to(datagram, to, b"seen"), Err(Errno::PERM));
}

#[test]
fn g12_a_forged_source_opens_no_door() {
    for place in [Place::Loopback, Place::Veth] {
        let Some(scene) = Scene::open(place, true) else { return };
        let (receiver, to) = scene.db.udp(Family::V4);
        // The address of somebody whom the door lets in, and that of nobody.
        let (_, neighbour) = scene.other.udp(Family::V4);
        let nobody = "10.9.0.77:53".parse().unwrap();
        let sender = scene.web.actor.socket(Family::V4, Kind::Raw, IPPROTO_RAW).unwrap();
        let magic = magic();
        let try_from = |source: SocketAddr| {
            let sent = scene.web.actor.send_to(sender, host(to), &ip_udp(source, to, &magic));
            assert_eq!(scene.db.actor.received(receiver), Ok(vec![]), "{place:?} from {source}");
            (sent.is_ok(), scene.denials().causes())
        };
        // The exit of the sender says no, whatever the packet says.
        scene.allow(&["other -> db: udp/any"]);
        for source in [neighbour, nobody] {
            assert_eq!(try_from(source), (false, vec![(Hook::Egress, Reason::NoRule)]));
        }
        // The exit lets it pass, and the door takes it for another's.
        scene.allow(&["web -> db: udp/any"]);
        let reason = if place == Place::Loopback { Reason::UnknownCaller } else { Reason::NoRule };
        assert_eq!(try_from(nobody), (true, vec![(Hook::Ingress, reason)]));
        if place == Place::Loopback {
            assert_eq!(try_from(neighbour), (true, vec![(Hook::Ingress, Reason::NoRule)]));
        }
    }
}

#[test]
fn g13_an_echo_by_a_ping_socket_needs_its_rule() {
    for (place, fast_refusal) in [(Place::Veth, true), (Place::Veth, false), (Place::Loopback, true)] {
        let Some(scene) = Scene::open(place, fast_refusal) else { return };
        scene.web.net.run(|| std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")).unwrap();
        for (family, protocol, request) in [(Family::V4, 1, 8), (Family::V6, 58, 128)] {
            let to = scene.db.at(family, 0);
            for connected in [false, true] {
                for size in [8, 60_000] {
                    let socket = || scene.web.actor.socket(family, Kind::Datagram, protocol).unwrap();
                    let echo = |data: &[u8]| {
                        let data = data.iter().copied().chain(std::iter::repeat(0)).take(size.max(data.len()));
                        [request, 0, 0, 0, 0, 0, 0, 1].into_iter().chain(data).collect::<Vec<u8>>()
                    };
                    if place == Place::Veth {
                        scene.allow(&["exit web -> db: icmp/echo"]);
                        let sender = socket();
                        send(&scene, sender, to, connected, &echo(b"")).unwrap();
                        assert_eq!(scene.web.actor.receive(sender, 1).unwrap().len(), 1, "{family:?} {size}");
                        assert_eq!(scene.denials().denied(), 0);
                    }
                    scene.allow(&["exit web -> db: udp/any, tcp/any"][..usize::from(place == Place::Veth)]);
                    let (magic, sender) = (magic(), socket());
                    let mut witness = scene.watch(&magic);
                    let sent = send(&scene, sender, to, connected, &echo(&magic));
                    let is_early = connected && fast_refusal && place == Place::Veth;
                    // A ping socket of IPv6 does not tell what became of a packet.
                    let is_silent = family == Family::V6 && !is_early;
                    assert_eq!(sent.map(drop), if is_silent { Ok(()) } else { Err(Errno::PERM) }, "{connected} {size}");
                    assert_eq!((witness.arrived(), scene.web.actor.received(sender)), (0, Ok(vec![])));
                    let hook = if is_early { connect(family) } else { Hook::Egress };
                    // Over loopback the host answers, and it has no identity in the lab.
                    let reason = if place == Place::Veth { Reason::NoRule } else { Reason::UnknownTarget };
                    assert_eq!(scene.denials().causes(), [(hook, reason)], "{connected} {size}");
                }
            }
        }
    }
}

#[test]
fn g14_a_frame_past_the_exit_still_meets_the_door() {
    let Some(scene) = Scene::open(Place::Veth, true) else { return };
    let link = scene.db.net.ip("-o link show dev db0");
    let mac = link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let mac: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let (receiver, to) = scene.db.udp(Family::V4);
    let frame = |from: SocketAddr, payload: &[u8]| {
        let mut frame = [&mac[..], &[2; 6], &[0x08, 0x00]].concat();
        frame.extend(ip_udp(from, to, payload));
        Command::SendFrame { device: "web0".to_owned(), frame, bypass: false }
    };
    let from = scene.web.at(Family::V4, 40_000);
    scene.allow(&["door web -> db: udp/any"]);
    scene.web.actor.call(&frame(from, b"allowed")).unwrap();
    assert_eq!(scene.db.actor.receive(receiver, 1).unwrap().len(), 1, "no exit stands in the way");
    scene.allow(&["exit web -> db: udp/any"]);
    for source in [from, "10.9.0.99:53".parse().unwrap()] {
        let magic = magic();
        let mut witness = scene.watch(&magic);
        scene.web.actor.call(&frame(source, &magic)).unwrap();
        assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (1, Ok(vec![])));
        assert_eq!(scene.denials().causes(), [(Hook::Ingress, Reason::NoRule)]);
    }
}

#[test]
fn g19_io_uring_is_judged_like_a_system_call() {
    everywhere(|scene, family| {
        let (receiver, udp) = scene.db.udp(family);
        let (listener, tcp) = scene.db.listen(family);
        let web = &scene.web.actor;
        for by_kernel_thread in [false, true] {
            let connect_to = || {
                let socket = web.socket(family, Kind::Stream, 0).unwrap();
                let result = web.uring(socket, UringOperation::Connect { to: tcp, timeout_ms: 200 }, by_kernel_thread);
                web.close(socket);
                result.map(drop)
            };
            let send = |zero_copy: bool, data: &[u8]| {
                let socket = web.socket(family, Kind::Datagram, 0).unwrap();
                let data = data.to_vec();
                let operation = if zero_copy {
                    UringOperation::SendZc { to: udp, data }
                } else {
                    UringOperation::SendMsg { to: udp, data }
                };
                let result = web.uring(socket, operation, by_kernel_thread);
                web.close(socket);
                result.map(drop)
            };
            scene.allow(&["web -> db: tcp/any, udp/any"]);
            assert_eq!((connect_to(), send(false, b"1"), send(true, b"2")), (Ok(()), Ok(()), Ok(())));
            scene.db.actor.accept(listener).map(|socket| scene.db.actor.close(socket)).unwrap();
            assert_eq!(scene.db.actor.receive(receiver, 2).unwrap().len(), 2);
            assert_eq!(scene.denials().denied(), 0);

            scene.allow(&[]);
            let magic = magic();
            let mut witness = scene.watch(&magic);
            assert_eq!(send(false, &magic), Err(Errno::PERM));
            assert_eq!(send(true, &magic), Err(Errno::PERM));
            let refused = if scene.fast_refusal { Errno::PERM } else { Errno::TIMEDOUT };
            assert_eq!(connect_to(), Err(refused), "by a kernel thread: {by_kernel_thread}");
            assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (0, Ok(vec![])));
            assert_eq!(scene.db.actor.accept_now(listener), Err(Errno::AGAIN));
            let causes = scene.denials().causes();
            let hooks = [sendmsg(family), connect(family)].map(|hook| (scene.first_hook(hook), Reason::NoRule));
            assert_eq!(causes, hooks);
        }
    });
}
