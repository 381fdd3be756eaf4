//! The parser beside an independent dissector, `etherparse`.
//!
//! - What ours reads, the dissector reads as well, and says the same: addresses, protocol, ports, flags, type and code
//!   and echo identifier of ICMP, which part of a datagram a fragment is.
//! - What the dissector cannot read, ours does not let pass.
//! - What the dissector reads and ours refuses, is refused for a reason of [`on_purpose`].
//!
//! In two places the dissector reads more than a rule can speak of, and is asked no further: what is behind an
//! authentication header, and the messages of IGMP. Ours takes both for protocols of their own.

use agent_common::{
    flow::proto,
    parse::{
        EXTENSION_HEADERS_MAX, Packet, ParseError, Piece,
        frame::{self, Frame, FrameError, ethertype},
    },
};
use etherparse::{
    EtherType, Ethernet2Slice, Icmpv4Slice, Icmpv6Slice, Ipv4HeaderSlice, Ipv4Slice, Ipv6ExtensionSlice,
    Ipv6HeaderSlice, Ipv6Slice, TcpSlice, UdpSlice,
};

/// IANA "Assigned Internet Protocol Numbers".
const AUTHENTICATION: u8 = 51;

/// What became of a frame.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Outcome {
    /// Both read it, and say the same.
    Same,
    /// The same, about the first fragment of a datagram.
    FirstFragment,
    /// Both say which part of a datagram it is; the ports are elsewhere.
    LaterFragment,
    /// ARP.
    Arp,
    /// Neither reads it.
    Neither,
    /// Ours refuses what the dissector reads, for the reason given.
    Stricter(&'static str),
}

/// Reads a frame in both ways.
///
/// # Panics
///
/// If they disagree.
pub fn compare(bytes: &[u8]) -> Outcome {
    let (mut packet, mut piece) = (Packet::default(), Piece::default());
    let ours = frame::read(bytes, &mut packet, &mut piece);
    match compare_with(bytes, ours, &packet, &piece) {
        Ok(outcome) => outcome,
        Err(difference) => panic!("{difference}: {bytes:02x?}"),
    }
}

/// As [`compare`], with what some reader of ours has made of the frame.
///
/// # Errors
///
/// How that and the dissector disagree.
pub fn compare_with(
    bytes: &[u8],
    ours: Result<Frame, FrameError>,
    packet: &Packet,
    piece: &Piece,
) -> Result<Outcome, String> {
    let theirs = dissect(bytes);
    let same = match (&ours, &theirs) {
        (Ok(Frame::Arp), Some(Dissected::Arp)) => Some(Outcome::Arp),
        (Ok(Frame::Packet | Frame::Neighbour | Frame::FirstFragment), _) if packet.proto == AUTHENTICATION => {
            let same = addresses(&bytes[frame::HEADER_BYTES..]) == Some((packet.src, packet.dst));
            same.then_some(Outcome::Same)
        }
        (
            Ok(Frame::Packet | Frame::Neighbour | Frame::FirstFragment),
            Some(Dissected::Ip { said, piece: part, read: true, .. }),
        ) => {
            // How much is behind the header is said by lengths, which both have read.
            let same = Packet { has_payload: 0, ..*packet } == *said && piece == part;
            same.then_some(if *piece == Piece::WHOLE { Outcome::Same } else { Outcome::FirstFragment })
        }
        (Err(FrameError::Packet(ParseError::Fragment)), Some(Dissected::Ip { said, piece: part, .. })) => {
            let same = (packet.src, packet.dst, packet.v6) == (said.src, said.dst, said.v6)
                && piece == part
                && piece.begin != 0
                // Of IPv6 it is what the fragment says, and the dissector looks behind that.
                && (packet.v6 == 1 || packet.proto == said.proto);
            same.then_some(Outcome::LaterFragment)
        }
        (Err(_), None | Some(Dissected::Ip { read: false, .. })) => Some(Outcome::Neither),
        (Err(_), Some(theirs)) => on_purpose(bytes, theirs).map(Outcome::Stricter),
        (Ok(_), _) => None,
    };
    same.ok_or_else(|| format!("ours says {ours:?} {packet:?} {piece:?}, the dissector {theirs:?}"))
}

/// What the dissector says.
#[derive(Debug)]
enum Dissected {
    Arp,
    Ip {
        /// In our words.
        said: Packet,
        piece: Piece,
        /// Whether it can read the transport header, or there is none that it or ours knows.
        read: bool,
        /// Extension headers of IPv6, and those of them that are about fragments.
        headers: [usize; 2],
        /// Bytes behind the last header of IP.
        behind: usize,
    },
    /// A frame with something else in it, or with tags.
    Other,
}

fn addresses(packet: &[u8]) -> Option<([u8; 16], [u8; 16])> {
    if packet.first()? >> 4 == 4 {
        let header = Ipv4HeaderSlice::from_slice(packet).ok()?;
        let mapped = [header.source_addr(), header.destination_addr()].map(|addr| addr.to_ipv6_mapped().octets());
        return Some((mapped[0], mapped[1]));
    }
    let header = Ipv6HeaderSlice::from_slice(packet).ok()?;
    Some((header.source(), header.destination()))
}

fn dissect(bytes: &[u8]) -> Option<Dissected> {
    let ethernet = Ethernet2Slice::from_slice_without_fcs(bytes).ok()?;
    let packet = ethernet.payload_slice();
    match ethernet.ether_type() {
        EtherType::IPV4 => v4(packet),
        EtherType::IPV6 => v6(packet),
        EtherType::ARP => etherparse::ArpPacketSlice::from_slice(packet).ok().map(|_| Dissected::Arp),
        _ => Some(Dissected::Other),
    }
}

fn v4(packet: &[u8]) -> Option<Dissected> {
    let ip = Ipv4Slice::from_slice(packet).ok()?;
    let header = ip.header();
    let (src, dst) = addresses(packet)?;
    let payload = ip.payload().payload;
    let begin = u32::from(header.fragments_offset().value()) * 8;
    let piece = Piece {
        id: header.identification().into(),
        begin,
        end: begin + u32::from(header.payload_len().ok()?),
        more: header.more_fragments().into(),
    };
    let piece = if header.is_fragmenting_payload() { piece } else { Piece::WHOLE };
    let mut said = Packet { src, dst, proto: header.protocol().0, ..Packet::default() };
    let read = said.proto == AUTHENTICATION || transport(payload, &mut said, &piece).is_some();
    Some(Dissected::Ip { said, piece, read, headers: [0; 2], behind: payload.len() })
}

fn v6(packet: &[u8]) -> Option<Dissected> {
    let ip = Ipv6Slice::from_slice(packet).ok()?;
    let (src, dst) = addresses(packet)?;
    let payload = ip.payload();
    let mut said = Packet { src, dst, proto: payload.ip_number.0, v6: 1, ..Packet::default() };
    let (mut headers, mut piece) = ([0; 2], Piece::WHOLE);
    // From the first of them to the end of the packet.
    let mut left = ip.extensions().slice().len() + payload.payload.len();
    for header in ip.extensions().clone() {
        headers[0] += 1;
        left -= match &header {
            Ipv6ExtensionSlice::HopByHop(raw)
            | Ipv6ExtensionSlice::Routing(raw)
            | Ipv6ExtensionSlice::DestinationOptions(raw) => raw.slice().len(),
            Ipv6ExtensionSlice::Fragment(fragment) => fragment.slice().len(),
            Ipv6ExtensionSlice::Authentication(auth) => auth.slice().len(),
        };
        if let Ipv6ExtensionSlice::Fragment(fragment) = header {
            headers[1] += 1;
            if headers[1] == 1 && fragment.is_fragmenting_payload() {
                let begin = u32::from(fragment.fragment_offset().value()) * 8;
                let end = begin + u32::try_from(left).ok()?;
                piece = Piece { id: fragment.identification(), begin, end, more: fragment.more_fragments().into() };
            }
        }
    }
    let read = transport(payload.payload, &mut said, &piece).is_some();
    Some(Dissected::Ip { said, piece, read, headers, behind: payload.payload.len() })
}

/// Reads the transport header, and says it in our words. None: it cannot be read.
fn transport(bytes: &[u8], said: &mut Packet, piece: &Piece) -> Option<()> {
    match said.proto {
        proto::TCP => {
            let tcp = TcpSlice::from_slice(bytes).ok()?;
            (said.src_port, said.dst_port) = (tcp.source_port(), tcp.destination_port());
            let flags = [tcp.fin(), tcp.syn(), tcp.rst(), tcp.psh(), tcp.ack(), tcp.urg(), tcp.ece(), tcp.cwr()];
            said.tcp_flags = flags.iter().enumerate().map(|(bit, &flag)| u8::from(flag) << bit).sum();
        }
        proto::UDP => {
            // Of a datagram in pieces, the length is not here.
            let read = if piece.more == 1 { UdpSlice::from_slice_lax(bytes) } else { UdpSlice::from_slice(bytes) };
            let udp = read.ok()?;
            (said.src_port, said.dst_port) = (udp.source_port(), udp.destination_port());
        }
        // The dissector has no reader for these; both begin with ports, in a header of at least 8 bytes.
        proto::UDPLITE | proto::SCTP => {
            let Some(&[a, b, c, d, ..]) = bytes.first_chunk::<8>().map(|header| header.as_slice()) else {
                return Some(());
            };
            (said.src_port, said.dst_port) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        }
        proto::ICMP => {
            let icmp = Icmpv4Slice::from_slice(bytes).ok()?;
            said.icmp = [icmp.type_u8(), icmp.code_u8()];
            if matches!(icmp.type_u8(), 0 | 8) {
                said.icmp_id = u16::from_be_bytes([icmp.bytes5to8()[0], icmp.bytes5to8()[1]]);
            }
        }
        proto::ICMPV6 => {
            let icmp = Icmpv6Slice::from_slice(bytes).ok()?;
            said.icmp = [icmp.type_u8(), icmp.code_u8()];
            if matches!(icmp.type_u8(), 128 | 129) {
                said.icmp_id = u16::from_be_bytes([icmp.bytes5to8()[0], icmp.bytes5to8()[1]]);
            }
        }
        _ => {}
    }
    Some(())
}

/// Why ours refuses what the dissector reads.
fn on_purpose(bytes: &[u8], theirs: &Dissected) -> Option<&'static str> {
    let packet = &bytes[frame::HEADER_BYTES..];
    let kind = u16::from_be_bytes([bytes[12], bytes[13]]);
    match theirs {
        Dissected::Other if matches!(kind, ethertype::VLAN | ethertype::SERVICE_VLAN | ethertype::OLD_QINQ) => {
            Some("a tag: no rule speaks of what is in it")
        }
        Dissected::Other => Some("a type that no rule speaks of"),
        Dissected::Arp => {
            (!matches!(packet[..8], [0, 1, 8, 0, 6, 4, 0, 1 | 2]) || packet[8..14] != bytes[6..12] || bytes.len() > 60)
                .then_some("ARP for something else than IPv4 over Ethernet, of another sender, or with bytes behind it")
        }
        Dissected::Ip { said, piece, headers: [all, of_fragments], behind, .. } => {
            let length = piece.end - piece.begin;
            let is_v6 = said.v6 == 1;
            let is_mapped = |addr: &[u8; 16]| addr[..12] == [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
            let reasons = [
                (is_v6 && (is_mapped(&said.src) || is_mapped(&said.dst)), "IPv6 with an address of IPv4"),
                (*all > EXTENSION_HEADERS_MAX, "more extension headers than there are kinds"),
                (*of_fragments > 1, "a fragment of a fragment"),
                (
                    *piece != Piece::WHOLE
                        && (length == 0 || piece.more == 1 && !length.is_multiple_of(8) || piece.end > 0xffff),
                    "a fragment of no length, of a length that is no multiple of 8, or beyond the longest datagram",
                ),
                (is_v6 && packet[4..6] == [0, 0] && packet[6] != 0, "a length of 0 without hop-by-hop options"),
                (
                    matches!(said.proto, proto::SCTP | proto::UDPLITE) && *behind < 8,
                    "SCTP or UDP-Lite without a whole header, which the dissector does not read",
                ),
                (
                    said.proto == proto::UDP && is_udp_length_wrong(packet, *behind, piece),
                    "a length in UDP that is 0 over IPv4, or less than what is in the first fragment",
                ),
            ];
            reasons.into_iter().find_map(|(applies, reason)| applies.then_some(reason))
        }
    }
}

/// `behind` bytes are behind the last header of IP; padding of the link may follow them.
fn is_udp_length_wrong(packet: &[u8], behind: usize, piece: &Piece) -> bool {
    let is_v6 = packet[0] >> 4 == 6;
    let header = if is_v6 {
        let Ok(ip) = Ipv6Slice::from_slice(packet) else { return false };
        ip.payload().payload.to_vec()
    } else {
        let Ok(ip) = Ipv4Slice::from_slice(packet) else { return false };
        ip.payload().payload.to_vec()
    };
    let Some(field) = header.get(4..6) else { return false };
    let length = usize::from(u16::from_be_bytes([field[0], field[1]]));
    if length == 0 { !is_v6 } else { piece.more == 1 && length <= behind }
}
