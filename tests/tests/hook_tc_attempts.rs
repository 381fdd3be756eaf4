//! However often it is tried past the hooks of sockets: what is denied at a device delivers nothing, and every attempt
//! is in the books. Nothing but the programs at the devices stops anything.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use agent_common::{
    layout::{DenyCounter, Hook},
    verdict::Reason,
};
use tests::{
    frames::{FAMILIES, forged_sources, fragments, framed, ip_udp, with_extensions, with_options},
    lab::{Family, GuardOptions, Kind, Socket, Transmit, Wall, magic},
    scene::repetitions,
};

/// A raw socket whose packets bring their IP header (linux/in.h).
const IPPROTO_RAW: u32 = 255;
/// Attempts between two looks at the witness: its buffer holds what passes of a batch even if all did.
const BATCH: usize = 5_000;

/// How it leaves `web`.
enum By {
    /// As frames.
    Frame(Transmit),
    /// By a raw socket.
    Raw,
    /// As the payload of a datagram to an address.
    Datagram(SocketAddr),
}

/// A way to get something to `db`.
struct Case {
    name: &'static str,
    by: By,
    /// Packets, or payloads.
    what: Vec<Vec<u8>>,
    /// Whether an edge for UDP lets it pass.
    is_allowable: bool,
    /// How often a sniffer sees one that arrives.
    seen: u64,
    /// Why it is denied.
    reasons: &'static [Reason],
}

/// Both ends of one family, and what tells the packets of a case from all others.
struct Ends {
    family: Family,
    receiver: Socket,
    to: SocketAddr,
    magic: Vec<u8>,
    /// The receiver behind the tunnel.
    inner: (Socket, SocketAddr),
    ethernet: ([u8; 6], [u8; 6]),
}

/// Bytes behind the header of a packet.
fn behind(packet: &[u8]) -> usize {
    packet.len() - if packet[0] >> 4 == 4 { 20 } else { 40 }
}

fn cases(wall: &Wall, ends: &Ends) -> Vec<Case> {
    let Ends { family, to, magic, .. } = ends;
    let from = wall.web.at(*family, 40_000);
    let plain = ip_udp(from, *to, magic);
    let forged = |source: IpAddr| ip_udp(SocketAddr::new(source, 40_000), *to, magic);
    let no_rule = &[Reason::NoRule][..];
    let case = |name, by, what| Case { name, by, what, is_allowable: true, seen: 1, reasons: no_rule };
    // A sniffer sees the bytes in each part.
    let long = ip_udp(from, *to, &[&magic[..], &[b'.'; 200], magic].concat());
    let spoofed = |case| Case { is_allowable: false, reasons: &[Reason::SpoofedSource], ..case };
    vec![
        case("AF_PACKET", By::Frame(Transmit::Queue), vec![plain.clone()]),
        case("AF_PACKET past the queue", By::Frame(Transmit::Bypass), vec![plain.clone()]),
        case("AF_PACKET by a ring", By::Frame(Transmit::Ring), vec![plain.clone()]),
        case("a header of its own", By::Raw, vec![plain.clone()]),
        Case {
            // The second passes behind the first alone.
            reasons: &[Reason::NoRule, Reason::Fragment],
            ..case("fragments", By::Frame(Transmit::Queue), fragments(&long, 0x57a1, &[0..104, 104..behind(&long)]))
        },
        case("options or extension headers", By::Frame(Transmit::Bypass), longer_headers(*family, &plain)),
        Case {
            // Outside, and again inside.
            seen: 2,
            ..case("a tunnel", By::Datagram(ends.inner.1), vec![magic.clone()])
        },
        spoofed(case(
            "another's source, as a frame",
            By::Frame(Transmit::Bypass),
            forged_sources(*family).map(forged).to_vec(),
        )),
        spoofed(case(
            "another's source, by a raw socket",
            By::Raw,
            // The kernel writes its own address where there is none.
            forged_sources(*family).into_iter().filter(|source| !source.is_unspecified()).map(forged).collect(),
        )),
    ]
}

/// The same datagram behind headers that have more to them than usual.
fn longer_headers(family: Family, plain: &[u8]) -> Vec<Vec<u8>> {
    const PADDING: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
    const ATOMIC: &[u8] = &[0, 0, 0, 0, 0, 0, 9];
    const ROUTED: &[u8] = &[0, 253, 0, 0, 0, 0, 0];
    match family {
        // No operation, again and again.
        Family::V4 => [4, 20, 40].map(|length| with_options(plain, &vec![1; length])).to_vec(),
        Family::V6 => [
            &[(0, PADDING)][..],
            &[(60, PADDING)],
            &[(44, ATOMIC)],
            &[(43, ROUTED)],
            &[(0, PADDING), (60, PADDING), (43, ROUTED), (44, ATOMIC), (60, PADDING)],
        ]
        .map(|chain| with_extensions(plain, chain))
        .to_vec(),
    }
}

/// Sends all that a case consists of, `rounds` times over. Gives how many that were.
fn attempt(wall: &Wall, ends: &Ends, case: &Case, rounds: u32) -> usize {
    let web = &wall.web.actor;
    match case.by {
        By::Frame(by) => {
            let frames: Vec<Vec<u8>> = case.what.iter().map(|packet| framed(ends.ethernet, packet)).collect();
            wall.hammer_frames(&frames, rounds, by).unwrap()
        }
        By::Raw => {
            let socket = web.socket(ends.family, Kind::Raw, IPPROTO_RAW).unwrap();
            let to = Some(SocketAddr::new(ends.to.ip(), 0));
            let sent = case.what.iter().map(|packet| web.hammer(socket, to, rounds, packet).unwrap()).sum();
            web.close(socket);
            sent
        }
        By::Datagram(to) => {
            let socket = web.socket(Family::of(to), Kind::Datagram, 0).unwrap();
            let sent = case.what.iter().map(|payload| web.hammer(socket, Some(to), rounds, payload).unwrap()).sum();
            web.close(socket);
            sent
        }
    }
}

/// The socket that would get what a case sends.
fn receiver(ends: &Ends, case: &Case) -> Socket {
    if matches!(case.by, By::Datagram(_)) { ends.inner.0 } else { ends.receiver }
}

#[test]
fn a_flow_that_is_denied_at_a_device_delivers_nothing_in_many_attempts() {
    let attempts = repetitions(10_000, 1_000_000);
    let Some(wall) = Wall::unguarded(GuardOptions::default()) else { return };
    // No IP layer stands between them, which would drop some of the forged addresses by itself.
    let ethernet = wall.switch();
    let ends = FAMILIES.map(|family| {
        let (receiver, to) = wall.db.udp(family);
        let inner = wall.db.actor.udp_bind(SocketAddr::new(wall.tunnel(family)[1], 0)).unwrap();
        Ends { family, receiver, to, magic: magic(), inner, ethernet }
    });
    let all: Vec<(&Ends, Case)> =
        ends.iter().flat_map(|ends| cases(&wall, ends).into_iter().map(move |case| (ends, case))).collect();
    for (ends, case) in &all {
        passes(&wall, ends, case, "without the programs");
    }
    wall.guard_devices();
    wall.open_way("udp/any");
    let _ = wall.denials();
    for (ends, case) in all.iter().filter(|(_, case)| case.is_allowable) {
        passes(&wall, ends, case, "allowed");
        assert_eq!(wall.denials().denied(), 0, "{}", case.name);
    }
    // Who may not forge a source may not do so with every edge open.
    for (rules, is_forged) in [(&[][..], false), (&["web -> db: any"], true)] {
        wall.allow(rules);
        for (ends, case) in all.iter().filter(|(_, case)| (case.reasons == [Reason::SpoofedSource]) == is_forged) {
            println!("{}", deny_many(&wall, ends, case, attempts));
        }
    }
}

/// The receiver gets what a case sends, and the witness sees it: nothing else stands in the way.
fn passes(wall: &Wall, ends: &Ends, case: &Case, why: &str) {
    let mut witness = wall.watch(&ends.magic);
    let sent = attempt(wall, ends, case, 10);
    assert_eq!(witness.arrived(), sent as u64 * case.seen, "{why}: {} {:?}", case.name, ends.family);
    let got = wall.db.actor.received(receiver(ends, case)).unwrap().len();
    let wanted = match case.name {
        "fragments" => sent / 2,
        // The receiver's IP layer takes some of them for what they are.
        _ if case.reasons == [Reason::SpoofedSource] => got.max(1),
        _ => sent,
    };
    assert_eq!(got, wanted, "{why}: {} {:?}", case.name, ends.family);
}

/// Gives what is to be said about it.
fn deny_many(wall: &Wall, ends: &Ends, case: &Case, attempts: usize) -> String {
    let began = Instant::now();
    let mut witness = wall.watch(&ends.magic);
    let rounds = u32::try_from(BATCH / case.what.len()).unwrap();
    let (mut made, mut denied, mut dropped) = (0, 0, 0);
    while made < attempts {
        made += attempt(wall, ends, case, rounds);
        assert_eq!(witness.arrived(), 0, "a packet passed: {} {:?}", case.name, ends.family);
        let got = wall.db.actor.received(receiver(ends, case)).unwrap();
        assert_eq!(got, vec![], "a payload was delivered: {} {:?}", case.name, ends.family);
        let denials = wall.denials();
        for cause in denials.causes() {
            assert!(cause.0 == Hook::TcFrom && case.reasons.contains(&cause.1), "{}: {cause:?}", case.name);
        }
        denied += denials.denied();
        dropped += denials.count(DenyCounter::Dropped);
    }
    assert_eq!((denied, dropped), (made as u64, made as u64), "every attempt is in the books: {}", case.name);
    format!(
        "{:?} {}: {made} attempts, 0 packets, {denied} denials at the device, {:.1} s",
        ends.family,
        case.name,
        began.elapsed().as_secs_f32()
    )
}
