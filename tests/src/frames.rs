//! Packets and frames that a test builds by hand, and what a [`Wall`] must make of them.

use std::{
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use agent_common::{
    layout::{DenyCounter, Hook},
    verdict::Reason,
};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep, TcpHeader, checksum::Sum16BitWords};

use crate::lab::{Denials, Family, Socket, Wall};

/// Both families.
pub const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Sets flags of a segment.
pub type Builder<L> = fn(L) -> L;

/// A packet from its IP header on, with nothing behind that yet.
fn ip(from: SocketAddr, to: SocketAddr) -> PacketBuilderStep<IpHeaders> {
    match (from, to) {
        (SocketAddr::V4(a), SocketAddr::V4(b)) => PacketBuilder::ipv4(a.ip().octets(), b.ip().octets(), 64),
        (SocketAddr::V6(a), SocketAddr::V6(b)) => PacketBuilder::ipv6(a.ip().octets(), b.ip().octets(), 64),
        _ => panic!("one family"),
    }
}

/// A packet of UDP from the IP header on.
///
/// # Panics
///
/// If the ends are not of one family.
#[must_use]
pub fn ip_udp(from: SocketAddr, to: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    ip(from, to).udp(from.port(), to.port()).write(&mut packet, data).expect("build a packet");
    packet
}

/// A segment of TCP from the IP header on.
///
/// # Panics
///
/// If the ends are not of one family.
#[must_use]
pub fn ip_tcp(from: SocketAddr, to: SocketAddr, flags: Builder<PacketBuilderStep<TcpHeader>>, data: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    flags(ip(from, to).tcp(from.port(), to.port(), 7, 1024)).write(&mut packet, data).expect("build a packet");
    packet
}

/// An error of ICMP or ICMPv6 by type and code, or another message, and what it quotes.
///
/// # Panics
///
/// If the ends are not of one family.
#[must_use]
pub fn icmp_error(from: IpAddr, to: IpAddr, (kind, code): (u8, u8), quoted: &[u8]) -> Vec<u8> {
    // Where a next hop takes less than a packet has, this is what it takes.
    let rest = [0, 0, 5, 0];
    let mut packet = Vec::new();
    let step = ip(SocketAddr::new(from, 0), SocketAddr::new(to, 0));
    if from.is_ipv4() {
        step.icmpv4_raw(kind, code, rest).write(&mut packet, quoted)
    } else {
        step.icmpv6_raw(kind, code, rest).write(&mut packet, quoted)
    }
    .expect("build a packet");
    packet
}

/// The fragments of a packet without options or extension headers: one for each range of what is behind its header, in
/// bytes. Where the packet does not end, more are to follow.
///
/// # Panics
///
/// If a range is not within the packet, or does not begin at a multiple of 8.
#[must_use]
pub fn fragments(packet: &[u8], id: u16, ranges: &[Range<usize>]) -> Vec<Vec<u8>> {
    let is_v4 = packet[0] >> 4 == 4;
    let (header, behind) = packet.split_at(if is_v4 { 20 } else { 40 });
    let fragment = |range: &Range<usize>| {
        assert!(range.start.is_multiple_of(8), "an offset counts units of 8 bytes");
        let offset = u16::try_from(range.start).expect("a datagram");
        let more = range.end < behind.len();
        if is_v4 {
            let mut piece = header.to_vec();
            piece[4..6].copy_from_slice(&id.to_be_bytes());
            piece[6..8].copy_from_slice(&(u16::from(more) << 13 | offset >> 3).to_be_bytes());
            return sealed([&piece[..], &behind[range.clone()]].concat());
        }
        let [high, low] = (offset | u16::from(more)).to_be_bytes();
        let chained = [&[header[6], 0, high, low][..], &u32::from(id).to_be_bytes()].concat();
        sealed([&header[..6], &[44], &header[7..], &chained, &behind[range.clone()]].concat())
    };
    ranges.iter().map(fragment).collect()
}

/// An IPv4 packet with options: bytes that are a multiple of 4.
///
/// # Panics
///
/// If they are more than 40.
#[must_use]
pub fn with_options(packet: &[u8], options: &[u8]) -> Vec<u8> {
    let words = u8::try_from(options.len() / 4).expect("few words");
    sealed([&[packet[0] + words], &packet[1..20], options, &packet[20..]].concat())
}

/// An IPv6 packet with extension headers before its transport header: the number of each, and its bytes from the
/// second on.
///
/// # Panics
///
/// If it gets too long.
#[must_use]
pub fn with_extensions(packet: &[u8], chain: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out = packet[..40].to_vec();
    let mut next = 6;
    for (number, rest) in chain {
        out[next] = *number;
        next = out.len();
        out.push(0);
        out.extend_from_slice(rest);
    }
    out[next] = packet[6];
    sealed([&out, &packet[40..]].concat())
}

/// The same bytes behind the IP header, as another protocol.
#[must_use]
pub fn with_protocol(packet: &[u8], protocol: u8) -> Vec<u8> {
    let at = if packet[0] >> 4 == 4 { 9 } else { 6 };
    let mut packet = packet.to_vec();
    packet[at] = protocol;
    sealed(packet)
}

/// Makes the lengths of an IP header, and its checksum, those of the packet.
fn sealed(mut packet: Vec<u8>) -> Vec<u8> {
    let length = |bytes: usize| u16::try_from(bytes).expect("a short packet").to_be_bytes();
    if packet[0] >> 4 == 6 {
        let length = length(packet.len() - 40);
        packet[4..6].copy_from_slice(&length);
        return packet;
    }
    let length = length(packet.len());
    packet[2..4].copy_from_slice(&length);
    packet[10..12].fill(0);
    let header = usize::from(packet[0] & 15) * 4;
    let sum = Sum16BitWords::new().add_slice(&packet[..header]).ones_complement();
    packet[10..12].copy_from_slice(&sum.to_ne_bytes());
    packet
}

/// Addresses that are not of `web`: of the other workload, of a stranger beside it, of the host on either side,
/// loopback, all hosts, none, of the link, of the world.
#[must_use]
pub fn forged_sources(family: Family) -> [IpAddr; 9] {
    let texts = match family {
        Family::V4 => [
            "10.9.1.2",
            "10.9.0.2",
            "10.9.0.254",
            "10.9.1.254",
            "127.0.0.1",
            "224.0.0.1",
            "0.0.0.0",
            "169.254.7.7",
            "192.0.2.1",
        ],
        Family::V6 => {
            ["fd09:1::2", "fd09::2", "fd09::ff", "fd09:1::ff", "::1", "ff02::1", "::", "fe80::7", "2001:db8::1"]
        }
    };
    texts.map(|text| text.parse().expect("an address"))
}

/// A frame from `web` to the host around a packet.
///
/// # Panics
///
/// If a device has no hardware address.
#[must_use]
pub fn frame(wall: &Wall, packet: &[u8]) -> Vec<u8> {
    framed(wall.ethernet(), packet)
}

/// A frame around a packet, from the first hardware address to the second.
#[must_use]
pub fn framed((from, to): ([u8; 6], [u8; 6]), packet: &[u8]) -> Vec<u8> {
    let kind: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&to[..], &from, &kind, packet].concat()
}

/// Checks that nothing arrives, neither in a socket nor at a sniffer in its namespace.
///
/// # Panics
///
/// If something does.
pub fn nothing_arrives(wall: &Wall, receiver: Socket, magic: &[u8], send: impl FnOnce()) {
    let mut sniffer = wall.watch(magic);
    send();
    assert_eq!(sniffer.arrived(), 0, "a sniffer in the receiver's namespace saw a packet");
    assert_eq!(wall.db.actor.received(receiver), Ok(vec![]), "the socket got a payload");
}

/// Checks that `web` was stopped at its own device.
///
/// # Panics
///
/// If it was stopped elsewhere, or not so often.
pub fn stopped_at_the_exit(wall: &Wall, denials: &Denials, reason: Reason, count: u64) {
    assert_eq!((denials.causes(), denials.denied()), (vec![(Hook::TcFrom, reason)], count));
    assert_eq!(denials.count(DenyCounter::Dropped), count);
    let record = denials.records[0];
    assert_eq!(record.ifindex, wall.devices()[0].index);
    assert_eq!((record.local_id, record.cgroup), (wall.web.id().0, wall.web.cgroup.id()));
}
