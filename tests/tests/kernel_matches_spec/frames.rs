//! Packets as bytes, built by a library that shares nothing with the parser under test.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use agent_common::flow::proto;
use eastwall::policy::random::Random;
use etherparse::{IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, TcpHeader, UdpHeader};

/// A packet in words.
#[derive(Clone, Debug)]
pub struct Packet {
    /// From local to peer, or the other way.
    pub leaves: bool,
    /// This end.
    pub local: IpAddr,
    /// The other end, of the same family.
    pub peer: IpAddr,
    /// As policy sees it: 1 is ICMPv6 as well.
    pub proto: u8,
    /// For protocols with ports.
    pub local_port: u16,
    /// For protocols with ports.
    pub peer_port: u16,
    /// As on the wire.
    pub icmp_type: u8,
}

/// What is wrong with a packet.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Damage {
    /// Neither IPv4 nor IPv6 inside.
    Version,
    /// The transport header ends too early.
    Cut,
    /// A header says it is shorter than its fixed part.
    Length,
    /// More extension headers than there are kinds.
    Headers,
    /// Not the first fragment.
    Fragment,
    /// An echo reply to no request.
    EchoReply,
    /// TCP that begins nothing, from no TCP socket.
    NoSyn,
}

impl Damage {
    /// Something that can be wrong with this packet.
    pub fn any(packet: &Packet, random: &mut Random) -> Option<Self> {
        let damage = *random.pick(&[
            Self::Version,
            Self::Cut,
            Self::Length,
            Self::Headers,
            Self::Fragment,
            Self::EchoReply,
            Self::NoSyn,
        ]);
        let is_v6 = packet.local.is_ipv6();
        let fits = match damage {
            Self::Version | Self::Fragment => true,
            Self::Cut => packet.proto != 47,
            Self::Length => !is_v6 || packet.proto == proto::TCP,
            Self::Headers => is_v6,
            Self::EchoReply => packet.proto == proto::ICMP,
            Self::NoSyn => packet.proto == proto::TCP && packet.leaves,
        };
        fits.then_some(damage)
    }
}

/// From where and to where all frames are.
pub const HARDWARE_ADDRESS: [u8; 6] = [2; 6];
const PAYLOAD: &[u8] = b"payload";
const ETHERNET: usize = 14;

/// The bytes, from the Ethernet header on.
pub fn frame(packet: &Packet, damage: Option<Damage>) -> Vec<u8> {
    let mut transport = transport(packet, damage);
    if damage == Some(Damage::Cut) {
        transport.truncate(7);
    }
    let (src, dst) = if packet.leaves { (packet.local, packet.peer) } else { (packet.peer, packet.local) };
    let mut bytes = [HARDWARE_ADDRESS; 2].concat();
    match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => v4(&mut bytes, src, dst, packet, &transport, damage),
        (IpAddr::V6(src), IpAddr::V6(dst)) => v6(&mut bytes, src, dst, packet, &transport, damage),
        _ => panic!("both ends are of one family"),
    }
    if damage == Some(Damage::Version) {
        bytes[ETHERNET] = 0x50 | bytes[ETHERNET] & 0xf;
    }
    bytes
}

fn transport(packet: &Packet, damage: Option<Damage>) -> Vec<u8> {
    let (src, dst) =
        if packet.leaves { (packet.local_port, packet.peer_port) } else { (packet.peer_port, packet.local_port) };
    let mut bytes = match packet.proto {
        proto::TCP => {
            let mut header = TcpHeader::new(src, dst, 1, 1024);
            header.syn = damage != Some(Damage::NoSyn);
            header.ack = !header.syn;
            let mut bytes = header.to_bytes().to_vec();
            if damage == Some(Damage::Length) && packet.local.is_ipv6() {
                bytes[12] = 0x40;
            }
            bytes
        }
        proto::UDP | proto::UDPLITE => {
            UdpHeader { source_port: src, destination_port: dst, length: 15, checksum: 0 }.to_bytes().to_vec()
        }
        proto::SCTP => [&src.to_be_bytes()[..], &dst.to_be_bytes(), &[0; 8]].concat(),
        proto::ICMP => {
            let reply = if packet.local.is_ipv6() { 129 } else { 0 };
            let kind = if damage == Some(Damage::EchoReply) { reply } else { packet.icmp_type };
            vec![kind, 0, 0, 0, 0x12, 0x34, 0, 1]
        }
        _ => Vec::new(),
    };
    bytes.extend(PAYLOAD);
    bytes
}

fn v4(bytes: &mut Vec<u8>, src: Ipv4Addr, dst: Ipv4Addr, packet: &Packet, transport: &[u8], damage: Option<Damage>) {
    let len = u16::try_from(transport.len()).unwrap();
    let mut header = Ipv4Header::new(len, 64, IpNumber(packet.proto), src.octets(), dst.octets()).unwrap();
    if damage == Some(Damage::Fragment) {
        header.fragment_offset = 3.try_into().unwrap();
    }
    bytes.extend([0x08, 0x00]);
    bytes.extend(header.to_bytes());
    if damage == Some(Damage::Length) {
        bytes[ETHERNET] = 0x44;
    }
    bytes.extend(transport);
}

fn v6(bytes: &mut Vec<u8>, src: Ipv6Addr, dst: Ipv6Addr, packet: &Packet, transport: &[u8], damage: Option<Damage>) {
    let proto = if packet.proto == proto::ICMP { proto::ICMPV6 } else { packet.proto };
    let (first, extensions) = match damage {
        // Offset 3 in units of 8 bytes.
        Some(Damage::Fragment) => (44, vec![proto, 0, 0, 24, 0, 0, 0, 1]),
        Some(Damage::Headers) => {
            let mut chain: Vec<u8> = [60, 0, 1, 4, 0, 0, 0, 0].repeat(8);
            chain.extend([proto, 0, 1, 4, 0, 0, 0, 0]);
            (60, chain)
        }
        _ => (proto, Vec::new()),
    };
    let header = Ipv6Header {
        traffic_class: 0,
        flow_label: Ipv6FlowLabel::ZERO,
        payload_length: u16::try_from(extensions.len() + transport.len()).unwrap(),
        next_header: IpNumber(first),
        hop_limit: 64,
        source: src.octets(),
        destination: dst.octets(),
    };
    bytes.extend([0x86, 0xdd]);
    bytes.extend(header.to_bytes());
    bytes.extend(extensions);
    bytes.extend(transport);
}
