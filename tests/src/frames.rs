//! Packets and frames that a test builds by hand, and what a [`Wall`] must make of them.

use std::{net::SocketAddr, ops::Range};

use agent_common::{
    layout::{DenyCounter, Hook},
    verdict::Reason,
};
use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep, TcpHeader};

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
        let mut piece = header.to_vec();
        if is_v4 {
            let length = u16::try_from(20 + range.len()).expect("a datagram");
            piece[2..4].copy_from_slice(&length.to_be_bytes());
            piece[4..6].copy_from_slice(&id.to_be_bytes());
            piece[6..8].copy_from_slice(&(u16::from(more) << 13 | offset >> 3).to_be_bytes());
            piece[10..12].fill(0);
            let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&piece).ones_complement();
            piece[10..12].copy_from_slice(&sum.to_ne_bytes());
        } else {
            let length = u16::try_from(8 + range.len()).expect("a datagram");
            piece[4..6].copy_from_slice(&length.to_be_bytes());
            let next = std::mem::replace(&mut piece[6], 44);
            piece.extend([next, 0]);
            piece.extend((offset | u16::from(more)).to_be_bytes());
            piece.extend(u32::from(id).to_be_bytes());
        }
        piece.extend(&behind[range.clone()]);
        piece
    };
    ranges.iter().map(fragment).collect()
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
