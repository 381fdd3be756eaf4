//! TCP (RFC 9293), UDP (RFC 768), UDP-Lite (RFC 3828), SCTP (RFC 9260) and ICMP headers.

use super::{Packet, ParseError, Source};
use crate::flow::proto;

/// Reads the transport header at `offset`; `end` is where the IP header says the packet ends.
#[inline(always)]
pub fn read<S: Source + ?Sized>(source: &S, offset: usize, end: usize, packet: &mut Packet) -> Result<(), ParseError> {
    match packet.proto {
        proto::TCP => {
            let h = load::<14, S>(source, offset, end)?;
            ports(packet, &[h[0], h[1], h[2], h[3]]);
            packet.tcp_flags = h[13];
            let header = usize::from(h[12] >> 4) * 4;
            if header < 20 || (end != usize::MAX && offset + header > end) {
                return Err(ParseError::Length);
            }
            packet.has_payload = u8::from(payload(source, offset + header, end));
        }
        proto::UDP | proto::UDPLITE => {
            let h = load::<8, S>(source, offset, end)?;
            ports(packet, &[h[0], h[1], h[2], h[3]]);
            packet.has_payload = u8::from(payload(source, offset + 8, end));
        }
        proto::SCTP => {
            let h = load::<12, S>(source, offset, end)?;
            ports(packet, &[h[0], h[1], h[2], h[3]]);
            packet.has_payload = 1;
        }
        proto::ICMP | proto::ICMPV6 => {
            let h = load::<8, S>(source, offset, end)?;
            packet.icmp = [h[0], h[1]];
            packet.icmp_id = if packet.echo().is_some() { u16::from_be_bytes([h[4], h[5]]) } else { 0 };
            packet.has_payload = u8::from(payload(source, offset + 8, end));
        }
        _ => packet.has_payload = 1,
    }
    Ok(())
}

#[inline(always)]
fn load<const N: usize, S: Source + ?Sized>(source: &S, offset: usize, end: usize) -> Result<[u8; N], ParseError> {
    if end != usize::MAX && offset + N > end {
        return Err(ParseError::Length);
    }
    source.load::<N>(offset).ok_or(ParseError::Truncated)
}

#[inline(always)]
fn payload<S: Source + ?Sized>(source: &S, offset: usize, end: usize) -> bool {
    if end == usize::MAX { source.load::<1>(offset).is_some() } else { offset < end }
}

#[inline(always)]
fn ports(packet: &mut Packet, h: &[u8; 4]) {
    packet.src_port = u16::from_be_bytes([h[0], h[1]]);
    packet.dst_port = u16::from_be_bytes([h[2], h[3]]);
}
