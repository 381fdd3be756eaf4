//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers.

use super::{Packet, ParseError, Source, transport};
use crate::addr;

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
    read(source, &mut packet).map(|()| packet)
}

/// As [`packet`], into a packet that is all zero.
///
/// # Errors
///
/// See [`ParseError`]; the packet is then partly filled.
#[inline(always)]
pub fn read<S: Source + ?Sized>(source: &S, packet: &mut Packet) -> Result<(), ParseError> {
    let (offset, end) = headers(source, packet)?;
    transport::read(source, offset, end, packet)
}

/// Reads what is before the transport header. Returns where that begins, and where the packet ends.
#[inline(always)]
pub(super) fn headers<S: Source + ?Sized>(source: &S, packet: &mut Packet) -> Result<(usize, usize), ParseError> {
    let mut first = [0; 1];
    if !source.load(0, &mut first) {
        return Err(ParseError::Truncated);
    }
    match first[0] >> 4 {
        4 => v4(source, packet),
        6 => v6(source, packet),
        _ => Err(ParseError::Version),
    }
}

/// Returns where the transport header begins, and where the packet ends.
#[inline(always)]
fn v4<S: Source + ?Sized>(source: &S, packet: &mut Packet) -> Result<(usize, usize), ParseError> {
    let mut h = [0; 10];
    let (mut src, mut dst) = ([0; 4], [0; 4]);
    if !source.load(0, &mut h) || !source.load(12, &mut src) || !source.load(16, &mut dst) {
        return Err(ParseError::Truncated);
    }
    let header = usize::from(h[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([h[2], h[3]]));
    // A total length of 0 is how the kernel marks a segmentation-offload packet above 64 KiB.
    if header < 20 || (total != 0 && total < header) {
        return Err(ParseError::Length);
    }
    if u16::from_be_bytes([h[6], h[7]]) & 0x1fff != 0 {
        return Err(ParseError::Fragment);
    }
    packet.proto = h[9];
    packet.src = mapped(src);
    packet.dst = mapped(dst);
    Ok((header, if total == 0 { usize::MAX } else { total }))
}

/// RFC 4291, section 2.5.5.2.
#[inline(always)]
const fn mapped(a: [u8; 4]) -> [u8; 16] {
    [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]]
}

/// As [`v4`].
#[inline(always)]
fn v6<S: Source + ?Sized>(source: &S, packet: &mut Packet) -> Result<(usize, usize), ParseError> {
    let mut h = [0; 8];
    packet.v6 = 1;
    if !source.load(0, &mut h) || !source.load(8, &mut packet.src) || !source.load(24, &mut packet.dst) {
        return Err(ParseError::Truncated);
    }
    if addr::v4(&addr::of_octets(packet.src)).is_some() || addr::v4(&addr::of_octets(packet.dst)).is_some() {
        return Err(ParseError::Mapped);
    }
    let payload = usize::from(u16::from_be_bytes([h[4], h[5]]));
    // A payload length of 0 is a jumbogram or a packet with nothing behind the header; the transport
    // header is then looked for in the bytes that are there.
    let end = if payload == 0 { usize::MAX } else { 40 + payload };
    let mut offset = 40_usize;
    let mut next = h[6];
    for _ in 0..=EXTENSION_HEADERS_MAX {
        match next {
            // Hop-by-hop options, routing, destination options: RFC 8200, sections 4.3, 4.4, 4.6.
            // Fragment: section 4.5. An atomic or first fragment is read on; others hide their ports.
            0 | 43 | 44 | 60 => {
                let mut e = [0; 4];
                if !source.load(offset, &mut e) {
                    return Err(ParseError::Truncated);
                }
                if next == 44 {
                    if u16::from_be_bytes([e[2], e[3]]) & 0xfff8 != 0 {
                        return Err(ParseError::Fragment);
                    }
                    offset += 8;
                } else {
                    offset += (usize::from(e[1]) + 1) * 8;
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
        if offset > end {
            return Err(ParseError::Length);
        }
    }
    Err(ParseError::Headers)
}
