//! Packets by construction: bytes, and beside them what a reader must find there.
//!
//! The bytes are laid by hand after the RFCs and share no code with the parser.

use agent_common::{
    flow::proto,
    parse::{Packet, Piece, Source},
};
use proptest::{collection::vec, prelude::*, sample::select};

/// A packet, and what a reader must find in it.
#[derive(Clone, Debug)]
pub struct Built {
    /// From the IP header on.
    pub bytes: Vec<u8>,
    /// What the packet says, `None` if it is a fragment without the transport header.
    pub expected: Option<Packet>,
    /// Which part of a datagram it is.
    pub piece: Piece,
    /// The kernel has yet to cut it into segments.
    pub is_offload: bool,
}

/// Bytes as the kernel has them.
pub struct Bytes<'a> {
    /// From where the reader begins.
    pub bytes: &'a [u8],
    /// See [`Built::is_offload`].
    pub is_offload: bool,
}

impl Source for Bytes<'_> {
    fn load<const N: usize>(&self, offset: usize, out: &mut [u8; N]) -> bool {
        self.bytes.load(offset, out)
    }

    fn length(&self) -> usize {
        self.bytes.len()
    }

    fn is_offload(&self) -> bool {
        self.is_offload
    }
}

/// The transport header and what is behind it.
#[derive(Clone, Debug)]
struct Transport {
    proto: u8,
    bytes: Vec<u8>,
    src_port: u16,
    dst_port: u16,
    tcp_flags: u8,
    icmp: [u8; 2],
    icmp_id: u16,
    has_payload: bool,
}

impl Transport {
    /// A header of `proto` that says nothing about ports.
    fn plain(proto: u8, bytes: Vec<u8>) -> Self {
        Self { proto, bytes, src_port: 0, dst_port: 0, tcp_flags: 0, icmp: [0; 2], icmp_id: 0, has_payload: true }
    }

    /// What a fragment holds of it: every one but the last is a multiple of 8 bytes, and none is empty.
    fn in_part(mut self, part: Part) -> Self {
        let length = match part {
            Part::Whole => return self,
            Part::First => self.bytes.len().max(8).next_multiple_of(8),
            Part::Later(_) => self.bytes.len().max(1),
        };
        self.has_payload |= length > self.bytes.len();
        self.bytes.resize(length, 0);
        if self.proto == proto::UDP {
            // It says how long the whole datagram is.
            self.bytes[4..6].copy_from_slice(&(self::length(length) + 8).to_be_bytes());
        }
        self
    }
}

/// Any packet that a host may send: IPv4 with options, IPv6 with extension headers, fragments.
pub fn built() -> impl Strategy<Value = Built> {
    prop_oneof![v4(), v6()]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..40)
}

fn transport() -> impl Strategy<Value = Transport> {
    let ports = (any::<u16>(), any::<u16>());
    prop_oneof![
        4 => (ports, any::<u8>(), 0_u8..=10, payload()).prop_map(|(p, flags, words, data)| tcp(p, flags, words, &data)),
        3 => (ports, select(vec![proto::UDP, proto::UDPLITE]), payload()).prop_map(|(p, kind, data)| udp(kind, p, &data)),
        1 => (ports, payload()).prop_map(|(p, data)| sctp(p, &data)),
        2 => (select(vec![proto::ICMP, proto::ICMPV6]), any::<[u8; 8]>(), payload()).prop_map(|(kind, h, data)| icmp(kind, h, &data)),
        // IGMP, GRE, ESP, AH, OSPF, mobility, HIP, shim6, no next header, and one without a meaning.
        1 => (select(vec![2_u8, 47, 50, 51, 59, 89, 135, 139, 140, 200]), payload()).prop_map(|(kind, data)| Transport::plain(kind, data)),
    ]
}

/// RFC 9293, section 3.1, with `words` words of options.
fn tcp((src_port, dst_port): (u16, u16), tcp_flags: u8, words: u8, data: &[u8]) -> Transport {
    let mut bytes = ports(src_port, dst_port);
    bytes.extend([1; 8]);
    bytes.extend([(5 + words) << 4, tcp_flags, 2, 0, 0, 0, 0, 0]);
    bytes.extend(vec![1; usize::from(words) * 4]);
    bytes.extend(data);
    Transport { src_port, dst_port, tcp_flags, has_payload: !data.is_empty(), ..Transport::plain(proto::TCP, bytes) }
}

/// RFC 768; RFC 3828, where the length is a checksum coverage and 0 means all of it.
fn udp(kind: u8, (src_port, dst_port): (u16, u16), data: &[u8]) -> Transport {
    let mut bytes = ports(src_port, dst_port);
    let covered = if kind == proto::UDP { length(8 + data.len()) } else { 0 };
    bytes.extend(covered.to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(data);
    Transport { src_port, dst_port, has_payload: !data.is_empty(), ..Transport::plain(kind, bytes) }
}

/// RFC 9260, section 3.1.
fn sctp((src_port, dst_port): (u16, u16), data: &[u8]) -> Transport {
    let mut bytes = ports(src_port, dst_port);
    bytes.extend([7; 8]);
    bytes.extend(data);
    Transport { src_port, dst_port, ..Transport::plain(proto::SCTP, bytes) }
}

/// RFC 792; RFC 4443, section 2.1. Bytes 4 and 5 are an identifier in an echo alone.
fn icmp(kind: u8, mut header: [u8; 8], data: &[u8]) -> Transport {
    // A timestamp message has a length of its own.
    if kind == proto::ICMP && matches!(header[0], 13 | 14) {
        header[1] |= 1;
    }
    let is_echo = match kind {
        proto::ICMP => matches!(header[0], 0 | 8),
        _ => matches!(header[0], 128 | 129),
    };
    let mut bytes = header.to_vec();
    bytes.extend(data);
    Transport {
        icmp: [header[0], header[1]],
        icmp_id: if is_echo { u16::from_be_bytes([header[4], header[5]]) } else { 0 },
        has_payload: !data.is_empty(),
        ..Transport::plain(kind, bytes)
    }
}

/// A length field of two bytes; the generated packets are far shorter than what it holds.
fn length(bytes: usize) -> u16 {
    u16::try_from(bytes).expect("a short packet")
}

fn ports(src: u16, dst: u16) -> Vec<u8> {
    [src.to_be_bytes(), dst.to_be_bytes()].concat()
}

/// Which part of a packet this is.
#[derive(Clone, Copy, Debug)]
enum Part {
    Whole,
    /// The first fragment, more behind it.
    First,
    /// A later one, in units of 8 bytes.
    Later(u16),
}

fn part() -> impl Strategy<Value = Part> {
    // Each bit of the offset by itself as well: a mask that misses one is found.
    let offset = prop_oneof![1_u16..0x1fe0, (0_u16..13).prop_map(|bit| 1 << bit)];
    prop_oneof![6 => Just(Part::Whole), 2 => Just(Part::First), 2 => offset.prop_map(Part::Later)]
}

/// RFC 791, section 3.1, with `words` words of options.
fn v4() -> impl Strategy<Value = Built> {
    (any::<[u8; 4]>(), any::<[u8; 4]>(), transport(), 0_u8..=10, part(), any::<bool>()).prop_map(
        |(src, dst, transport, words, part, is_offload)| {
            let transport = transport.in_part(part);
            let total = 20 + usize::from(words) * 4 + transport.bytes.len();
            // How the kernel marks a segmentation-offload packet above 64 KiB.
            let total = if is_offload { 0 } else { length(total) };
            let fragment = match part {
                Part::Whole => 0x4000_u16,
                Part::First => 0x2000,
                Part::Later(offset) => offset,
            };
            let mut bytes = vec![0x45 + words, 0];
            bytes.extend(total.to_be_bytes());
            bytes.extend([0, 1]);
            bytes.extend(fragment.to_be_bytes());
            bytes.extend([64, transport.proto, 0, 0]);
            bytes.extend(src);
            bytes.extend(dst);
            // No operation: RFC 791, section 3.1, option 1.
            bytes.extend(vec![1; usize::from(words) * 4]);
            bytes.extend(&transport.bytes);
            let piece = piece(part, 1, transport.bytes.len());
            finish(bytes, &transport, piece, (mapped(src), mapped(dst), 0), is_offload)
        },
    )
}

fn mapped(addr: [u8; 4]) -> [u8; 16] {
    let mut all = [0; 16];
    all[10..12].fill(0xff);
    all[12..].copy_from_slice(&addr);
    all
}

/// RFC 8200, section 4.1: extension headers in the order it recommends, each or not.
fn v6() -> impl Strategy<Value = Built> {
    let options = || proptest::option::weighted(0.2, 0_u8..4);
    (
        any::<[u8; 16]>(),
        any::<[u8; 16]>(),
        transport(),
        (options(), options(), options(), options()),
        proptest::option::weighted(0.3, part()),
        any::<bool>(),
    )
        .prop_map(
            |(src, dst, transport, (hop_by_hop, first_options, routing, last_options), fragment, is_long)| {
                let part = fragment.unwrap_or(Part::Whole);
                let transport = transport.in_part(part);
                let mut chain: Vec<(u8, Vec<u8>)> = Vec::new();
                for (kind, length) in [(0, hop_by_hop), (60, first_options), (43, routing)] {
                    chain.extend(length.map(|length| (kind, options_header(length))));
                }
                if let Some(part) = fragment {
                    chain.push((44, fragment_header(part)));
                }
                chain.extend(last_options.map(|length| (60, options_header(length))));

                // From the last header to the first, since each names the one behind it.
                let (mut next, mut bytes) = (transport.proto, transport.bytes.clone());
                for (kind, mut header) in chain.into_iter().rev() {
                    header[0] = next;
                    header.extend(&bytes);
                    (next, bytes) = (kind, header);
                }
                // A jumbogram has no length here: RFC 2675, section 3. Nor has a packet that is still to be cut.
                let payload = if is_long { 0 } else { length(bytes.len()) };
                let behind = transport.bytes.len() + last_options.map_or(0, |length| 8 + usize::from(length) * 8);
                let mut packet = vec![0x60, 0, 0, 0];
                packet.extend(payload.to_be_bytes());
                packet.extend([next, 64]);
                packet.extend(src);
                packet.extend(dst);
                packet.extend(bytes);
                finish(packet, &transport, piece(part, 9, behind), (src, dst, 1), is_long && hop_by_hop.is_none())
            },
        )
}

/// RFC 8200, section 4.2: `length` units of 8 bytes behind the first, filled with padding.
fn options_header(length: u8) -> Vec<u8> {
    let mut header = vec![0; 8 + usize::from(length) * 8];
    header[1] = length;
    header
}

/// RFC 8200, section 4.5: 13 bits of offset, two reserved, one for more.
fn fragment_header(part: Part) -> Vec<u8> {
    let field = match part {
        Part::Whole => 0_u16,
        Part::First => 1,
        Part::Later(offset) => offset << 3,
    };
    let [high, low] = field.to_be_bytes();
    vec![0, 0, high, low, 0, 0, 0, 9]
}

/// `length` is that of what was cut into pieces.
fn piece(part: Part, id: u32, length: usize) -> Piece {
    let length = u32::try_from(length).expect("a short packet");
    match part {
        Part::Whole => Piece::WHOLE,
        Part::First => Piece { id, begin: 0, end: length, more: 1 },
        Part::Later(offset) => {
            let begin = u32::from(offset) * 8;
            Piece { id, begin, end: begin + length, more: 0 }
        }
    }
}

fn finish(
    bytes: Vec<u8>,
    transport: &Transport,
    piece: Piece,
    (src, dst, v6): ([u8; 16], [u8; 16], u8),
    is_offload: bool,
) -> Built {
    let &Transport { proto, bytes: _, src_port, dst_port, tcp_flags, icmp, icmp_id, has_payload } = transport;
    let has_payload = u8::from(has_payload);
    let packet = Packet { src, dst, src_port, dst_port, proto, tcp_flags, icmp, icmp_id, has_payload, v6 };
    Built { bytes, expected: (piece.begin == 0).then_some(packet), piece, is_offload }
}
