//! TCP (RFC 9293), UDP (RFC 768), UDP-Lite (RFC 3828), SCTP (RFC 9260) and ICMP headers.

use super::{Packet, ParseError, Source};
use crate::flow::proto;

/// Reads the transport header at `offset`; `end` is where the packet ends, by its IP header, and that much is there;
/// `goes_on` says that the rest of the datagram is in other fragments.
#[inline(always)]
pub fn read<S: Source + ?Sized>(
    source: &S,
    offset: usize,
    end: usize,
    packet: &mut Packet,
    goes_on: bool,
) -> Result<(), ParseError> {
    match packet.proto {
        proto::TCP => {
            let mut h = [0; 14];
            load(source, offset, end, &mut h)?;
            ports(packet, [h[0], h[1], h[2], h[3]]);
            packet.tcp_flags = h[13];
            let header = usize::from(h[12] >> 4) * 4;
            if header < 20 || offset + header > end {
                return Err(ParseError::Length);
            }
            packet.has_payload = u8::from(offset + header < end);
        }
        proto::UDP | proto::UDPLITE | proto::SCTP | proto::ICMP | proto::ICMPV6 => {
            let mut h = [0; 8];
            load(source, offset, end, &mut h)?;
            flow(packet, h);
            let length = end - offset;
            let fits = match packet.proto {
                // RFC 792, page 16: a timestamp message has 20 bytes.
                proto::ICMP if matches!(packet.icmp, [13 | 14, 0]) => length == 20,
                proto::UDP => is_udp_length([h[4], h[5]], length, packet.v6 != 0 || source.is_offload(), goes_on),
                _ => true,
            };
            if !fits {
                return Err(ParseError::Length);
            }
            packet.has_payload = u8::from(offset + 8 < end);
        }
        _ => packet.has_payload = 1,
    }
    Ok(())
}

/// Takes what tells flows apart from the first eight bytes of a transport header.
#[inline(always)]
pub fn flow(packet: &mut Packet, h: [u8; 8]) {
    match packet.proto {
        proto::ICMP | proto::ICMPV6 => {
            packet.icmp = [h[0], h[1]];
            if packet.echo().is_some() {
                packet.icmp_id = u16::from_be_bytes([h[4], h[5]]);
            }
        }
        proto::TCP | proto::UDP | proto::UDPLITE | proto::SCTP => ports(packet, [h[0], h[1], h[2], h[3]]),
        _ => {}
    }
}

/// Says whether a length that UDP gives itself fits what is there of the datagram.
#[inline(always)]
fn is_udp_length(field: [u8; 2], there: usize, may_be_0: bool, goes_on: bool) -> bool {
    match usize::from(u16::from_be_bytes(field)) {
        // RFC 2675, section 4: a jumbogram.
        0 => may_be_0,
        length if goes_on => length > there,
        length => (8..=there).contains(&length),
    }
}

#[inline(always)]
fn load<const N: usize, S: Source + ?Sized>(
    source: &S,
    offset: usize,
    end: usize,
    out: &mut [u8; N],
) -> Result<(), ParseError> {
    if offset + N > end {
        return Err(ParseError::Length);
    }
    if source.load(offset, out) { Ok(()) } else { Err(ParseError::Truncated) }
}

#[inline(always)]
const fn ports(packet: &mut Packet, h: [u8; 4]) {
    packet.src_port = u16::from_be_bytes([h[0], h[1]]);
    packet.dst_port = u16::from_be_bytes([h[2], h[3]]);
}
