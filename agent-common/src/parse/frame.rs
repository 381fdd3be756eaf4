//! Ethernet frames: what a workload's device carries, past every socket as well.
//!
//! IPv4, IPv6 and ARP are read; whatever else is an error, and so is a frame that ends too early. A frame
//! that is not understood may be any traffic at all, so the caller drops it.

use super::{Packet, ParseError, Piece, Source, ip};
use crate::flow::proto;

/// Bytes of an Ethernet header without a VLAN tag: two addresses, one type.
pub const HEADER_BYTES: usize = 14;

/// Ethernet II types (IEEE 802 Numbers of IANA).
pub mod ethertype {
    /// IPv4.
    pub const IPV4: u16 = 0x0800;
    /// ARP.
    pub const ARP: u16 = 0x0806;
    /// IPv6.
    pub const IPV6: u16 = 0x86dd;
    /// IEEE 802.1Q: a VLAN tag.
    pub const VLAN: u16 = 0x8100;
    /// IEEE 802.1ad: the outer of two tags.
    pub const SERVICE_VLAN: u16 = 0x88a8;
    /// An older number for the outer of two tags.
    pub const OLD_QINQ: u16 = 0x9100;
}

/// What a frame is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Frame {
    /// ARP for IPv4 over Ethernet (RFC 826), with nothing behind it but padding, from who sent the frame. The packet
    /// says whose address it is about (source) and which one it asks for or answers (destination).
    Arp,
    /// IPv6 neighbour discovery or multicast listener discovery that has crossed no router, and that no
    /// router will forward: its hop limit says so. Neighbour discovery has no extension headers.
    Neighbour,
    /// Any other packet of IPv4 or IPv6.
    Packet,
    /// The first fragment of one, with its transport header.
    FirstFragment,
}

/// Why a frame could not be read. Each is a denial.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FrameError {
    /// It ends before its Ethernet header, or its ARP message, does.
    Short,
    /// It has a VLAN tag.
    Vlan,
    /// A type that is none of those read, an IEEE 802.3 length, or an ARP message of another shape or about another
    /// sender than that of the frame.
    EtherType,
    /// It says IPv4 or IPv6, and is not to be read as that.
    Packet(ParseError),
}

/// Where a packet of a frame begins: the sources of the packet parser count from the IP header.
pub(super) struct Behind<'a, S: ?Sized> {
    pub frame: &'a S,
    pub offset: usize,
}

impl<S: Source + ?Sized> Source for Behind<'_, S> {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize, out: &mut [u8; N]) -> bool {
        self.frame.load(self.offset + offset, out)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.frame.length().saturating_sub(self.offset)
    }

    #[inline(always)]
    fn is_offload(&self) -> bool {
        self.frame.is_offload()
    }
}

/// Reads a frame from its Ethernet header on, into a packet and a piece that are all zero.
///
/// # Errors
///
/// See [`FrameError`]; packet and piece are then partly filled.
#[inline(always)]
pub fn read<S: Source + ?Sized>(frame: &S, packet: &mut Packet, piece: &mut Piece) -> Result<Frame, FrameError> {
    let mut kind = [0; 2];
    if !frame.load(HEADER_BYTES - 2, &mut kind) {
        return Err(FrameError::Short);
    }
    let version = match u16::from_be_bytes(kind) {
        ethertype::IPV4 => 4,
        ethertype::IPV6 => 6,
        ethertype::ARP => return arp(frame, packet),
        ethertype::VLAN | ethertype::SERVICE_VLAN | ethertype::OLD_QINQ => return Err(FrameError::Vlan),
        _ => return Err(FrameError::EtherType),
    };
    let source = Behind { frame, offset: HEADER_BYTES };
    let mut first = [0; 1];
    if !source.load(0, &mut first) {
        return Err(FrameError::Packet(ParseError::Truncated));
    }
    // The receiver goes by the type, the parser of packets by the version.
    if first[0] >> 4 != version {
        return Err(FrameError::Packet(ParseError::Version));
    }
    match ip::read(&source, packet, piece) {
        // RFC 6980: neighbour discovery comes in one piece.
        Ok(()) if piece.more != 0 => Ok(Frame::FirstFragment),
        Ok(()) if is_neighbour(&source, packet) => Ok(Frame::Neighbour),
        Ok(()) => Ok(Frame::Packet),
        Err(error) => Err(FrameError::Packet(error)),
    }
}

/// The longest ARP frame: an Ethernet frame is padded to 60 bytes.
const ARP_FRAME_MAX: usize = 60;

/// RFC 826: hardware Ethernet, protocol IPv4, lengths 6 and 4, a request or a reply; addresses of the sender, hardware
/// and protocol, then of the target.
#[inline(always)]
fn arp<S: Source + ?Sized>(frame: &S, packet: &mut Packet) -> Result<Frame, FrameError> {
    let (mut head, mut from, mut about) = ([0; 8], [0; 6], [0; 6]);
    let (mut src, mut dst) = ([0; 4], [0; 4]);
    if !frame.load(HEADER_BYTES, &mut head)
        || !frame.load(6, &mut from)
        || !frame.load(HEADER_BYTES + 8, &mut about)
        || !frame.load(HEADER_BYTES + 14, &mut src)
        || !frame.load(HEADER_BYTES + 24, &mut dst)
    {
        return Err(FrameError::Short);
    }
    packet.src = ip::mapped(src);
    packet.dst = ip::mapped(dst);
    // What follows the padding would be a message that nobody reads but the one it is meant for.
    match head {
        [0, 1, 8, 0, 6, 4, 0, 1 | 2] if from == about && frame.length() <= ARP_FRAME_MAX => Ok(Frame::Arp),
        _ => Err(FrameError::EtherType),
    }
}

/// RFC 4861, section 6.1.1 and the like: hop limit 255. RFC 2710, section 3, and RFC 3810, section 5: 1.
#[inline(always)]
fn is_neighbour<S: Source + ?Sized>(packet: &S, said: &Packet) -> bool {
    let mut h = [0; 2];
    if said.v6 == 0 || !said.is_neighbour_discovery() || !packet.load(6, &mut h) {
        return false;
    }
    match (said.icmp[0], h) {
        (133..=137, [next, hop_limit]) => next == proto::ICMPV6 && hop_limit == 255,
        (_, [_, hop_limit]) => hop_limit == 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> Result<Frame, FrameError> {
        read(bytes, &mut Packet::default(), &mut Piece::default())
    }

    fn frame(kind: u16, behind: &[u8]) -> Vec<u8> {
        [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2][..], &kind.to_be_bytes(), behind].concat()
    }

    fn arp_message() -> Vec<u8> {
        [&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 2][..], &[7; 14]].concat()
    }

    /// An ICMPv6 message in a packet with a hop limit.
    fn icmpv6(kind: u8, hop_limit: u8) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 8, 58, hop_limit];
        packet.extend([0xfe; 32]);
        packet.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        frame(ethertype::IPV6, &packet)
    }

    #[test]
    fn arp_is_arp_and_carries_nothing() {
        let whole = frame(ethertype::ARP, &arp_message());
        assert_eq!(parse(&whole), Ok(Frame::Arp));
        for length in 0..whole.len() {
            assert_eq!(parse(&whole[..length]), Err(FrameError::Short), "{length}");
        }
        let padded = |length: usize| whole.iter().copied().chain([0; 30]).take(length).collect::<Vec<u8>>();
        assert_eq!(parse(&padded(60)), Ok(Frame::Arp));
        assert_eq!(parse(&padded(61)), Err(FrameError::EtherType));
        for at in 0..14 {
            let mut other = whole.clone();
            other[HEADER_BYTES + at] ^= 0x40;
            assert_eq!(parse(&other), Err(FrameError::EtherType), "byte {at}");
        }
    }

    #[test]
    fn other_types_and_tags_have_errors_of_their_own() {
        for kind in [ethertype::VLAN, ethertype::SERVICE_VLAN, ethertype::OLD_QINQ] {
            assert_eq!(parse(&frame(kind, &[0, 7, 8, 0, 0x45])), Err(FrameError::Vlan));
        }
        // A length, IPX, MPLS, PPPoE, LLDP, MACsec, nothing.
        for kind in [46, 0x05ff, 0x8137, 0x8847, 0x8864, 0x88cc, 0x88e5, 0xffff] {
            assert_eq!(parse(&frame(kind, &[0x45; 60])), Err(FrameError::EtherType), "{kind:#x}");
        }
    }

    #[test]
    fn the_type_and_the_version_must_agree() {
        for (kind, first) in [(ethertype::IPV4, 0x60), (ethertype::IPV6, 0x45), (ethertype::IPV4, 0)] {
            let bytes = frame(kind, &[&[first][..], &[0; 60]].concat());
            assert_eq!(parse(&bytes), Err(FrameError::Packet(ParseError::Version)));
        }
        assert_eq!(parse(&frame(ethertype::IPV4, &[])), Err(FrameError::Packet(ParseError::Truncated)));
    }

    #[test]
    fn neighbour_discovery_is_that_only_if_no_router_takes_part() {
        for kind in 133..=137 {
            assert_eq!(parse(&icmpv6(kind, 255)), Ok(Frame::Neighbour), "{kind}");
            assert_eq!(parse(&icmpv6(kind, 254)), Ok(Frame::Packet), "{kind}: forwarded");
        }
        for kind in [130, 131, 132, 143] {
            assert_eq!(parse(&icmpv6(kind, 1)), Ok(Frame::Neighbour), "{kind}");
            assert_eq!(parse(&icmpv6(kind, 64)), Ok(Frame::Packet), "{kind}: would be forwarded");
        }
        assert_eq!(parse(&icmpv6(128, 255)), Ok(Frame::Packet), "an echo");
    }
}
