//! IPv4 (RFC 791) and IPv6 (RFC 8200) headers.

use super::{Packet, ParseError, Source, transport};

/// Most IPv6 extension headers that are followed before a packet is given up.
///
/// RFC 8200, section 4.1: six kinds, each at most once, destination options twice.
pub const EXTENSION_HEADERS_MAX: usize = 7;

/// Reads a packet from its IP header to its transport header.
///
/// # Errors
///
/// See [`ParseError`]; the packet must then be denied, since it may be any packet at all.
#[inline(always)]
pub fn packet<S: Source + ?Sized>(source: &S) -> Result<Packet, ParseError> {
    let [first] = source.load::<1>(0).ok_or(ParseError::Truncated)?;
    match first >> 4 {
        4 => v4(source),
        6 => v6(source),
        _ => Err(ParseError::Version),
    }
}

#[inline(always)]
fn v4<S: Source + ?Sized>(source: &S) -> Result<Packet, ParseError> {
    let h = source.load::<20>(0).ok_or(ParseError::Truncated)?;
    let header = usize::from(h[0] & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([h[2], h[3]]));
    // A total length of 0 is how the kernel marks a segmentation-offload packet above 64 KiB.
    if header < 20 || (total != 0 && total < header) {
        return Err(ParseError::Length);
    }
    let fragment = u16::from_be_bytes([h[6], h[7]]);
    if fragment & 0x1fff != 0 {
        return Err(ParseError::Fragment);
    }
    let mut packet = Packet { proto: h[9], ..Packet::default() };
    packet.src[10] = 0xff;
    packet.src[11] = 0xff;
    packet.dst[10] = 0xff;
    packet.dst[11] = 0xff;
    packet.src[12] = h[12];
    packet.src[13] = h[13];
    packet.src[14] = h[14];
    packet.src[15] = h[15];
    packet.dst[12] = h[16];
    packet.dst[13] = h[17];
    packet.dst[14] = h[18];
    packet.dst[15] = h[19];
    let end = if total == 0 { usize::MAX } else { total };
    transport::read(source, header, end, &mut packet)?;
    Ok(packet)
}

#[inline(always)]
fn v6<S: Source + ?Sized>(source: &S) -> Result<Packet, ParseError> {
    let h = source.load::<8>(0).ok_or(ParseError::Truncated)?;
    let payload = usize::from(u16::from_be_bytes([h[4], h[5]]));
    let src = source.load::<16>(8).ok_or(ParseError::Truncated)?;
    let dst = source.load::<16>(24).ok_or(ParseError::Truncated)?;
    let mut packet = Packet { src, dst, v6: 1, ..Packet::default() };
    // A payload length of 0 is a jumbogram or a packet with nothing behind the header; the transport
    // header is then looked for in the bytes that are there.
    let end = if payload == 0 { usize::MAX } else { 40 + payload };
    let mut offset = 40_usize;
    let mut next = h[6];
    for _ in 0..=EXTENSION_HEADERS_MAX {
        match next {
            // Hop-by-hop options, routing, destination options: RFC 8200, sections 4.3, 4.4, 4.6.
            0 | 43 | 60 => {
                let [following, length] = source.load::<2>(offset).ok_or(ParseError::Truncated)?;
                next = following;
                offset += (usize::from(length) + 1) * 8;
            }
            // Fragment: section 4.5. An atomic or first fragment is read on; others hide their ports.
            44 => {
                let f = source.load::<8>(offset).ok_or(ParseError::Truncated)?;
                if u16::from_be_bytes([f[2], f[3]]) & 0xfff8 != 0 {
                    return Err(ParseError::Fragment);
                }
                next = f[0];
                offset += 8;
            }
            // Authentication header, no next header, mobility, HIP, shim6: judged as protocols of
            // their own, never looked behind.
            _ => {
                packet.proto = next;
                transport::read(source, offset, end, &mut packet)?;
                return Ok(packet);
            }
        }
        if offset > end {
            return Err(ParseError::Length);
        }
    }
    Err(ParseError::Headers)
}
