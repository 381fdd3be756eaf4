//! The headers that nearly all packets have, in a few reads: TCP or UDP right behind an IP header without
//! options or extensions, not a fragment.
//!
//! A packet that is not plain is no worse: [`super::read`] reads it. Where both read a packet, they say the
//! same, which a test holds them to.

use crate::{
    addr::{self, Addr, mapped, pair},
    flow::proto,
};

/// Bytes of an IPv4 header without options and the first eight of its transport header.
pub const V4_BYTES: usize = 28;
/// The same for IPv6.
pub const V6_BYTES: usize = 48;
/// Where the bytes begin that only TCP has, from its header, and how many are read.
pub const TCP_MORE_OFFSET: usize = 12;
/// See [`TCP_MORE_OFFSET`].
pub const TCP_MORE_BYTES: usize = 4;

/// What a plain packet says about itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Plain {
    /// Source address.
    pub src: Addr,
    /// Destination address.
    pub dst: Addr,
    /// Source port, host order.
    pub src_port: u16,
    /// Destination port, host order.
    pub dst_port: u16,
    /// TCP or UDP.
    pub proto: u8,
    /// TCP flags, else 0.
    pub tcp_flags: u8,
    /// 1 = the transport header carries bytes behind it.
    pub has_payload: u8,
}

/// Reads a packet that says it is IPv4.
///
/// Shape: `head` is the first [`V4_BYTES`] as they lie in memory; `length` counts the bytes that are there, as
/// [`super::Source::length`] does; `more` fetches the four bytes from [`TCP_MORE_OFFSET`] of a TCP header, and is called
/// for TCP only.
#[inline(always)]
pub fn v4(
    head: &[u32; V4_BYTES / 4],
    length: impl FnOnce() -> usize,
    more: impl FnOnce() -> Option<u32>,
) -> Option<Plain> {
    let [version, _, high, low] = head[0].to_ne_bytes();
    let [_, _, fragment, fragment_low] = head[1].to_ne_bytes();
    let [_, protocol, _, _] = head[2].to_ne_bytes();
    // Neither an offset nor more fragments to come.
    if version != 0x45 || fragment & 0x3f != 0 || fragment_low != 0 {
        return None;
    }
    let total = u16::from_be_bytes([high, low]) as usize;
    let plain = transport(protocol, mapped(head[3]), mapped(head[4]), [head[5], head[6]], 20, total, more)?;
    if total <= length() { Some(plain) } else { None }
}

/// Reads a packet that says it is IPv6; see [`v4`].
#[inline(always)]
pub fn v6(
    head: &[u32; V6_BYTES / 4],
    length: impl FnOnce() -> usize,
    more: impl FnOnce() -> Option<u32>,
) -> Option<Plain> {
    let [version, _, _, _] = head[0].to_ne_bytes();
    let [high, low, protocol, _] = head[1].to_ne_bytes();
    let payload = u16::from_be_bytes([high, low]) as usize;
    // A payload length of 0 marks a jumbogram.
    if version >> 4 != 6 || payload == 0 {
        return None;
    }
    let src = [pair(head[2], head[3]), pair(head[4], head[5])];
    let dst = [pair(head[6], head[7]), pair(head[8], head[9])];
    if addr::v4(&src).is_some() || addr::v4(&dst).is_some() {
        return None;
    }
    let plain = transport(protocol, src, dst, [head[10], head[11]], 40, 40 + payload, more)?;
    if 40 + payload <= length() { Some(plain) } else { None }
}

/// `first` is where the transport header begins; `total` is the length of the packet by its IP header, whose size is
/// `header`.
#[inline(always)]
fn transport(
    protocol: u8,
    src: Addr,
    dst: Addr,
    first: [u32; 2],
    header: usize,
    total: usize,
    more: impl FnOnce() -> Option<u32>,
) -> Option<Plain> {
    let (begins, tcp_flags) = match protocol {
        proto::UDP => {
            let [high, low, _, _] = first[1].to_ne_bytes();
            let length = u16::from_be_bytes([high, low]) as usize;
            if length < 8 || header + length > total {
                return None;
            }
            (header + 8, 0)
        }
        proto::TCP => {
            let [offset, flags, _, _] = more()?.to_ne_bytes();
            let size = (offset >> 4) as usize * 4;
            if size < 20 {
                return None;
            }
            (header + size, flags)
        }
        _ => return None,
    };
    // A total length of 0 marks a segmentation-offload packet above 64 KiB: it is not plain either.
    if total < begins {
        return None;
    }
    let [a, b, c, d] = first[0].to_ne_bytes();
    Some(Plain {
        src,
        dst,
        src_port: u16::from_be_bytes([a, b]),
        dst_port: u16::from_be_bytes([c, d]),
        proto: protocol,
        tcp_flags,
        has_payload: (begins < total) as u8,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::parse::{self, Packet};

    /// Reads as a kernel program does: no byte that is not there.
    fn plain(bytes: &[u8]) -> Option<Plain> {
        let word = |offset: usize| Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?));
        match bytes.first()? >> 4 {
            4 => {
                let mut head = [0; V4_BYTES / 4];
                for (n, h) in head.iter_mut().enumerate() {
                    *h = word(n * 4)?;
                }
                v4(&head, || bytes.len(), || word(20 + TCP_MORE_OFFSET))
            }
            _ => {
                let mut head = [0; V6_BYTES / 4];
                for (n, h) in head.iter_mut().enumerate() {
                    *h = word(n * 4)?;
                }
                v6(&head, || bytes.len(), || word(40 + TCP_MORE_OFFSET))
            }
        }
    }

    fn bytes_of(addr: Addr) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&addr[0].to_ne_bytes());
        bytes[8..].copy_from_slice(&addr[1].to_ne_bytes());
        bytes
    }

    fn as_packet(plain: &Plain, v6: u8) -> Packet {
        Packet {
            src: bytes_of(plain.src),
            dst: bytes_of(plain.dst),
            src_port: plain.src_port,
            dst_port: plain.dst_port,
            proto: plain.proto,
            tcp_flags: plain.tcp_flags,
            icmp: [0; 2],
            icmp_id: 0,
            has_payload: plain.has_payload,
            v6,
        }
    }

    /// A packet with nothing special, made by hand.
    fn packet(v6: bool, protocol: u8, payload: usize) -> Vec<u8> {
        let mut transport = vec![0x9c, 0x40, 0x15, 0x38];
        transport.extend(u16::try_from(8 + payload).unwrap().to_be_bytes());
        transport.extend([3, 4]);
        if protocol == proto::TCP {
            transport.extend([5, 6, 7, 8, 0x50, 0x18, 0, 9, 0, 0, 0, 0]);
        }
        transport.extend(vec![7; payload]);
        let len = u16::try_from(transport.len()).unwrap();
        let mut bytes = Vec::new();
        if v6 {
            bytes.extend([0x60, 0, 0, 0]);
            bytes.extend(len.to_be_bytes());
            bytes.extend([protocol, 64]);
            bytes.extend((0..32).collect::<Vec<u8>>());
        } else {
            bytes.extend([0x45, 0]);
            bytes.extend((len + 20).to_be_bytes());
            bytes.extend([0, 0, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        }
        bytes.extend(transport);
        bytes
    }

    #[test]
    fn ordinary_packets_are_plain() {
        for v6 in [false, true] {
            for protocol in [proto::TCP, proto::UDP] {
                for payload in [0, 1, 1000] {
                    let plain = plain(&packet(v6, protocol, payload)).unwrap();
                    assert_eq!((plain.src_port, plain.dst_port), (40_000, 5432));
                    assert_eq!(plain.has_payload, u8::from(payload > 0));
                    assert_eq!(plain.tcp_flags, if protocol == proto::TCP { 0x18 } else { 0 });
                }
            }
        }
        assert_eq!(plain(&packet(false, proto::ICMP, 8)), None);
    }

    #[test]
    fn no_ipv6_packet_passes_for_one_of_an_ipv4_address() {
        let mapped = std::net::Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
        for at in [8, 24] {
            let mut bytes = packet(true, proto::UDP, 4);
            assert!(plain(&bytes).is_some() && parse::packet(bytes.as_slice()).is_ok());
            bytes[at..at + 16].copy_from_slice(&mapped);
            assert_eq!(plain(&bytes), None);
            assert_eq!(parse::packet(bytes.as_slice()), Err(parse::ParseError::Mapped));
            // One bit off, and it is an address like any other.
            bytes[at + 9] = 1;
            assert!(plain(&bytes).is_some() && parse::packet(bytes.as_slice()).is_ok());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn what_is_plain_is_read_as_by_the_whole_parser(
            v6: bool,
            udp: bool,
            payload in 0_usize..64,
            // Most of these hit a header.
            changes in proptest::collection::vec((0_usize..64, any::<u8>()), 0..4),
            cut in 0_usize..128,
        ) {
            let mut bytes = packet(v6, if udp { proto::UDP } else { proto::TCP }, payload);
            for (at, value) in changes {
                let at = at % bytes.len();
                bytes[at] = value;
            }
            bytes.truncate(cut.max(1));
            if let Some(plain) = plain(&bytes) {
                let whole = parse::packet(bytes.as_slice()).unwrap();
                prop_assert_eq!(as_packet(&plain, whole.v6), whole);
            }
        }
    }
}
