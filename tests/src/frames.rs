//! Packets and frames that a test builds by hand, and what a [`Wall`] must make of them.

use std::net::SocketAddr;

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
