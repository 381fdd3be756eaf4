//! TCP (RFC 9293), UDP (RFC 768), UDP-Lite (RFC 3828), SCTP (RFC 9260) and ICMP headers.

use super::{Packet, ParseError, Source};
use crate::flow::proto;

/// Reads the transport header at `offset`; `end` is where the IP header says the packet ends.
#[inline(always)]
pub fn read<S: Source + ?Sized>(source: &S, offset: usize, end: usize, packet: &mut Packet) -> Result<(), ParseError> {
    match packet.proto {
        proto::TCP => {
            let mut h = [0; 14];
            load(source, offset, end, &mut h)?;
            ports(packet, [h[0], h[1], h[2], h[3]]);
            packet.tcp_flags = h[13];
            let header = usize::from(h[12] >> 4) * 4;
            if header < 20 || (end != usize::MAX && offset + header > end) {
                return Err(ParseError::Length);
            }
            packet.has_payload = payload(source, offset + header, end);
        }
        proto::UDP | proto::UDPLITE | proto::SCTP | proto::ICMP | proto::ICMPV6 => {
            let mut h = [0; 8];
            load(source, offset, end, &mut h)?;
            flow(packet, h);
            packet.has_payload = payload(source, offset + 8, end);
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

#[inline(always)]
fn load<const N: usize, S: Source + ?Sized>(
    source: &S,
    offset: usize,
    end: usize,
    out: &mut [u8; N],
) -> Result<(), ParseError> {
    if end != usize::MAX && offset + N > end {
        return Err(ParseError::Length);
    }
    if source.load(offset, out) { Ok(()) } else { Err(ParseError::Truncated) }
}

/// Returns 1 if the packet goes on at `offset`.
#[inline(always)]
fn payload<S: Source + ?Sized>(source: &S, offset: usize, end: usize) -> u8 {
    if end == usize::MAX { u8::from(source.load(offset, &mut [0; 1])) } else { u8::from(offset < end) }
}

#[inline(always)]
const fn ports(packet: &mut Packet, h: [u8; 4]) {
    packet.src_port = u16::from_be_bytes([h[0], h[1]]);
    packet.dst_port = u16::from_be_bytes([h[2], h[3]]);
}
