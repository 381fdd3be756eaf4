//! Header bytes -> addresses, protocol, ports. Parses fully or says why not; never panics.

pub mod dns;
pub mod frame;
mod ip;
pub mod plain;
pub mod quote;
mod transport;

pub use ip::{EXTENSION_HEADERS_MAX, packet, read};

/// Where header bytes come from: a slice, or `bpf_skb_load_bytes`.
pub trait Source {
    /// Writes the `N` bytes at `offset` from the IP header into `out`; false if the packet ends before.
    ///
    /// Into a place of the caller's, because the stack of a kernel program holds 512 bytes in all.
    fn load<const N: usize>(&self, offset: usize, out: &mut [u8; N]) -> bool;

    /// How many bytes there are from the IP header on, those that padding or a lying header left behind it
    /// included.
    fn length(&self) -> usize;

    /// Whether the kernel has yet to cut this packet into segments, or has merged it from some: only then may it be
    /// longer than a length field can say.
    fn is_offload(&self) -> bool;
}

impl Source for [u8] {
    #[inline]
    fn load<const N: usize>(&self, offset: usize, out: &mut [u8; N]) -> bool {
        let bytes = offset.checked_add(N).and_then(|end| self.get(offset..end));
        bytes.is_some_and(|bytes| {
            out.copy_from_slice(bytes);
            true
        })
    }

    #[inline]
    fn length(&self) -> usize {
        self.len()
    }

    #[inline]
    fn is_offload(&self) -> bool {
        false
    }
}

/// Which part of a datagram a fragment is; all zero for a packet that is none.
///
/// Offsets count bytes of what was cut into pieces: behind the header of IPv4, or the fragment header of IPv6.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Piece {
    /// What all fragments of a datagram have in common, besides addresses and, for IPv4, the protocol.
    pub id: u32,
    /// Where it begins: 0 for the first one.
    pub begin: u32,
    /// Where the next one has to begin.
    pub end: u32,
    /// 1 = there is a next one.
    pub more: u32,
}

impl Piece {
    /// Of a packet that is no fragment.
    pub const WHOLE: Self = Self { id: 0, begin: 0, end: 0, more: 0 };

    /// The longest datagram, in bytes: both length fields of IP have 16 bits.
    const END_MAX: usize = 0xffff;

    /// RFC 791, section 3.2; RFC 8200, section 4.5: every fragment but the last is a multiple of 8 bytes, and none is
    /// empty.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "both are at most the longest datagram")]
    pub(crate) const fn new(id: u32, begin: usize, length: usize, more: bool) -> Result<Self, ParseError> {
        let end = begin + length;
        if length == 0 || (more && !length.is_multiple_of(8)) || end > Self::END_MAX {
            return Err(ParseError::Length);
        }
        Ok(Self { id, begin: begin as u32, end: end as u32, more: more as u32 })
    }
}

/// What a packet says about itself.
///
/// Shape: addresses 16 bytes in network order, IPv4 mapped; ports in host order, 0 where the protocol
/// has none.
///
/// Aligned, so that kernel programs, which may not read across word borders, move addresses by words.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(8))]
pub struct Packet {
    /// Source address.
    pub src: [u8; 16],
    /// Destination address.
    pub dst: [u8; 16],
    /// Source port.
    pub src_port: u16,
    /// Destination port.
    pub dst_port: u16,
    /// Protocol number of the transport header.
    pub proto: u8,
    /// TCP flags, else 0.
    pub tcp_flags: u8,
    /// ICMP or ICMPv6 type and code, else 0.
    pub icmp: [u8; 2],
    /// ICMP echo identifier, else 0.
    pub icmp_id: u16,
    /// 1 if the transport header carries bytes behind it.
    pub has_payload: u8,
    /// 1 = IPv6.
    pub v6: u8,
}

impl Packet {
    /// Returns the type in its IPv4 form if this is an ICMP or ICMPv6 echo request or reply:
    /// 8 or 0. RFC 4443, section 4: 128 and 129.
    #[inline(always)]
    #[must_use]
    pub const fn echo(&self) -> Option<u8> {
        match (self.proto, self.icmp[0]) {
            (crate::flow::proto::ICMP, 8) | (crate::flow::proto::ICMPV6, 128) => Some(8),
            (crate::flow::proto::ICMP, 0) | (crate::flow::proto::ICMPV6, 129) => Some(0),
            _ => None,
        }
    }

    /// Says whether this is an ICMP or ICMPv6 error: it quotes a packet of a flow.
    /// RFC 792; RFC 4443, section 2.1: types below 128.
    #[inline(always)]
    #[must_use]
    pub const fn is_icmp_error(&self) -> bool {
        match self.proto {
            crate::flow::proto::ICMP => matches!(self.icmp[0], 3 | 4 | 11 | 12),
            crate::flow::proto::ICMPV6 => self.icmp[0] < 128,
            _ => false,
        }
    }

    /// Says whether only a router has reason to send this: a redirect, or an advertisement of itself.
    /// RFC 792; RFC 1256; RFC 4861, section 4.
    #[inline(always)]
    #[must_use]
    pub const fn is_of_router(&self) -> bool {
        match self.proto {
            crate::flow::proto::ICMP => matches!(self.icmp[0], 5 | 9),
            crate::flow::proto::ICMPV6 => matches!(self.icmp[0], 134 | 137),
            _ => false,
        }
    }

    /// Says whether this is neighbour discovery or multicast listener discovery.
    /// RFC 4861, section 4: 133 to 137; RFC 2710, 3810: 130 to 132 and 143.
    #[inline(always)]
    #[must_use]
    pub const fn is_neighbour_discovery(&self) -> bool {
        self.proto == crate::flow::proto::ICMPV6 && matches!(self.icmp[0], 130..=137 | 143)
    }
}

/// Bits of [`Packet::tcp_flags`].
pub mod tcp {
    /// FIN
    pub const FIN: u8 = 1;
    /// SYN
    pub const SYN: u8 = 2;
    /// RST
    pub const RST: u8 = 4;
    /// ACK
    pub const ACK: u8 = 16;
}

/// Why a packet could not be read to its end. Each is a denial.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ParseError {
    /// Neither IPv4 nor IPv6.
    Version,
    /// It ends before a header does.
    Truncated,
    /// A length in a header contradicts another, or the packet.
    Length,
    /// More extension headers than a sender has reason for, one where it may not be, or one that hides what follows.
    Headers,
    /// A fragment that is not the first: what it belongs to is said there. Addresses and protocol (of IPv6 what this
    /// fragment says about it) are read, and the [`Piece`].
    Fragment,
    /// An IPv6 packet with an IPv4-mapped address: it would pass for one of the IPv4 address, which no sender
    /// puts on a wire as IPv6. RFC 4291, section 2.5.5.2.
    Mapped,
}
