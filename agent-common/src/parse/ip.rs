//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers.

use super::{Packet, ParseError, Piece, Source, transport};
use crate::addr;

/// The headers between IPv6 and the transport (IANA "IPv6 Extension Header Types").
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const DESTINATION_OPTIONS: u8 = 60;

/// Most IPv6 extension headers that are followed before a packet is given up.
///
/// RFC 8200, section 4.1: six kinds, each at most once, destination options twice.
pub const EXTENSION_HEADERS_MAX: usize = 7;

/// Reads a packet from its IP header to its transport header.
///
/// # Errors
///
/// See [`ParseError`]; the packet must then be denied, since it may be any packet at all.
#[inline]
pub fn packet<S: Source + ?Sized>(source: &S) -> Result<Packet, ParseError> {
    let mut packet = Packet::default();
    read(source, &mut packet, &mut Piece::default()).map(|()| packet)
}

/// As [`packet`], into a packet and a piece that are all zero.
///
/// # Errors
///
/// See [`ParseError`]; packet and piece are then partly filled.
#[inline(always)]
pub fn read<S: Source + ?Sized>(source: &S, packet: &mut Packet, piece: &mut Piece) -> Result<(), ParseError> {
    let (offset, end) = headers(source, packet, piece)?;
    transport::read(source, offset, end, packet, piece.more != 0)
}

/// Reads what is before the transport header. Returns where that begins, and where the packet ends, which is within what
/// is there.
#[inline(always)]
pub(super) fn headers<S: Source + ?Sized>(
    source: &S,
    packet: &mut Packet,
    piece: &mut Piece,
) -> Result<(usize, usize), ParseError> {
    let mut first = [0; 1];
    if !source.load(0, &mut first) {
        return Err(ParseError::Truncated);
    }
    match first[0] >> 4 {
        4 => v4(source, packet, piece),
        6 => v6(source, packet, piece),
        _ => Err(ParseError::Version),
    }
}

/// Returns where the transport header begins, and where the packet ends.
#[inline(always)]
fn v4<S: Source + ?Sized>(source: &S, packet: &mut Packet, piece: &mut Piece) -> Result<(usize, usize), ParseError> {
    let mut h = [0; 10];
    let (mut src, mut dst) = ([0; 4], [0; 4]);
    if !source.load(0, &mut h) || !source.load(12, &mut src) || !source.load(16, &mut dst) {
        return Err(ParseError::Truncated);
    }
    let header = usize::from(h[0] & 0xf) * 4;
    // A length of 0 is how the kernel marks a segmentation-offload packet above 64 KiB.
    let end = match usize::from(u16::from_be_bytes([h[2], h[3]])) {
        0 if source.is_offload() => source.length(),
        total => total,
    };
    if header < 20 || end < header {
        return Err(ParseError::Length);
    }
    if end > source.length() {
        return Err(ParseError::Truncated);
    }
    packet.proto = h[9];
    packet.src = mapped(src);
    packet.dst = mapped(dst);
    let field = u16::from_be_bytes([h[6], h[7]]);
    if field & 0x3fff != 0 {
        let id = u32::from(u16::from_be_bytes([h[4], h[5]]));
        *piece = Piece::new(id, usize::from(field & 0x1fff) * 8, end - header, field & 0x2000 != 0)?;
        if piece.begin != 0 {
            return Err(ParseError::Fragment);
        }
    }
    Ok((header, end))
}

/// RFC 4291, section 2.5.5.2.
#[inline(always)]
pub(super) const fn mapped(a: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]]
}

/// As [`v4`].
#[inline(always)]
fn v6<S: Source + ?Sized>(source: &S, packet: &mut Packet, piece: &mut Piece) -> Result<(usize, usize), ParseError> {
    let mut h = [0; 8];
    packet.v6 = 1;
    if !source.load(0, &mut h) || !source.load(8, &mut packet.src) || !source.load(24, &mut packet.dst) {
        return Err(ParseError::Truncated);
    }
    if addr::v4(&addr::of_octets(packet.src)).is_some() || addr::v4(&addr::of_octets(packet.dst)).is_some() {
        return Err(ParseError::Mapped);
    }
    // A payload length of 0 is a jumbogram, which begins with hop-by-hop options (RFC 2675, section 3), a
    // segmentation-offload packet above 64 KiB, or has nothing behind the header but padding of the link.
    let end = match usize::from(u16::from_be_bytes([h[4], h[5]])) {
        0 if h[6] == HOP_BY_HOP || source.is_offload() => source.length(),
        payload => 40 + payload,
    };
    if end > source.length() {
        return Err(ParseError::Truncated);
    }
    let mut offset = 40_usize;
    let mut next = h[6];
    let mut is_fragment = false;
    for _ in 0..=EXTENSION_HEADERS_MAX {
        match next {
            // RFC 8200, section 4.1: hop-by-hop options come first or not at all. Two fragment headers would be
            // fragments of a fragment.
            HOP_BY_HOP if offset != 40 => return Err(ParseError::Headers),
            FRAGMENT if is_fragment => return Err(ParseError::Headers),
            // Sections 4.3, 4.4, 4.6. Fragment: section 4.5. An atomic or first fragment is read on; others hide
            // their ports.
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS => {
                let mut e = [0; 8];
                if offset + 8 > end {
                    return Err(ParseError::Length);
                }
                if !source.load(offset, &mut e) {
                    return Err(ParseError::Truncated);
                }
                offset += if next == FRAGMENT { 8 } else { (usize::from(e[1]) + 1) * 8 };
                if offset > end {
                    return Err(ParseError::Length);
                }
                if next == FRAGMENT {
                    is_fragment = true;
                    let field = u16::from_be_bytes([e[2], e[3]]);
                    // RFC 6946: an atomic fragment is a packet of its own.
                    if field & 0xfff9 != 0 {
                        packet.proto = e[0];
                        let id = u32::from_be_bytes([e[4], e[5], e[6], e[7]]);
                        *piece = Piece::new(id, usize::from(field & 0xfff8), end - offset, field & 1 != 0)?;
                        if piece.begin != 0 {
                            return Err(ParseError::Fragment);
                        }
                    }
                }
                next = e[0];
            }
            // Authentication header, no next header, mobility, HIP, shim6: judged as protocols of
            // their own, never looked behind.
            _ => {
                packet.proto = next;
                return Ok((offset, end));
            }
        }
    }
    Err(ParseError::Headers)
}
