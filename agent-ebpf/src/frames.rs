//! The headers of a frame at a device, which begins at its Ethernet header.

use agent_common::{
    addr::Addr,
    layout,
    parse::{
        Packet, ParseError, Piece,
        frame::{self, Frame, FrameError, HEADER_BYTES, ethertype},
        plain::{self, Plain, TCP_MORE_OFFSET, V4_BYTES, V6_BYTES},
        quote,
    },
};
use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};

use crate::headers::{self, Skb};

/// What [`ew_read_frame`] returns for a frame that is read: a packet, ARP, neighbour discovery, a first
/// fragment. An error of the frame follows, and from [`ERROR`] on one of its packet.
pub const PACKET: u32 = 0;
/// See [`PACKET`].
pub const ARP: u32 = 1;
/// See [`PACKET`].
pub const NEIGHBOUR: u32 = 2;
/// See [`PACKET`].
pub const FIRST_FRAGMENT: u32 = 3;
/// See [`PACKET`]: the error of a fragment that is not the first.
pub const LATER_FRAGMENT: u32 = ERROR + headers::code(ParseError::Fragment);
/// Where the target of neighbour discovery is: behind Ethernet, IPv6, and eight bytes of ICMPv6.
const TARGET: u32 = 14 + 40 + 8;
const SHORT: u32 = 4;
const VLAN: u32 = 5;
const ETHER_TYPE: u32 = 6;
const ERROR: u32 = 16;

/// Reads the headers of an ordinary packet without a call of a helper; `None` says that the frame is to be
/// read by [`ew_read_frame`].
#[inline(always)]
pub fn plain(skb: *mut __sk_buff) -> Option<Plain> {
    // SAFETY: the context; what is read below has been compared with the end, which the verifier checks.
    unsafe {
        if (*skb).vlan_present != 0 {
            return None;
        }
        let (start, end) = ((*skb).data as usize, (*skb).data_end as usize);
        if start + HEADER_BYTES + V4_BYTES > end {
            return None;
        }
        let kind = *((start + HEADER_BYTES - 2) as *const u16);
        let ip = start + HEADER_BYTES;
        let length = || ((*skb).len as usize).saturating_sub(HEADER_BYTES);
        if kind == ethertype::IPV4.to_be() {
            let head = &*(ip as *const [u32; V4_BYTES / 4]);
            return plain::v4(head, length, || headers::word(ip, 20 + TCP_MORE_OFFSET, end));
        }
        if kind != ethertype::IPV6.to_be() || ip + V6_BYTES > end {
            return None;
        }
        plain::v6(&*(ip as *const [u32; V6_BYTES / 4]), length, || headers::word(ip, 40 + TCP_MORE_OFFSET, end))
    }
}

/// Says whether a frame comes from an Ethernet address, as `agent_common::layout::hardware` has it.
#[inline(always)]
pub fn comes_from(skb: *mut __sk_buff, hardware: u64) -> bool {
    // SAFETY: the context; what is read below has been compared with the end, which the verifier checks.
    unsafe {
        let (start, end) = ((*skb).data as usize, (*skb).data_end as usize);
        start + HEADER_BYTES <= end && layout::hardware(*((start + 6) as *const [u8; 6])) == hardware
    }
}

/// Reads which address an advertisement of neighbour discovery is about. RFC 4861, section 4.4: it has no extension
/// headers.
#[inline(always)]
pub fn target(skb: *mut __sk_buff, out: &mut Addr) -> bool {
    // SAFETY: the helper writes 16 bytes or fails.
    unsafe { bpf_skb_load_bytes(skb.cast(), TARGET, out.as_mut_ptr().cast(), 16) == 0 }
}

/// Reads any frame; the result is [`PACKET`] and the like, or an error for [`error`].
///
/// Global, so that the verifier checks it once and not for every state of every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_read_frame(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(packet) = (unsafe { packet.as_mut() }) else {
        return SHORT;
    };
    // A device takes one tag off before the hook sees the frame.
    // SAFETY: the context.
    if unsafe { (*skb).vlan_present } != 0 {
        return VLAN;
    }
    code(&frame::read(&Skb { skb }, packet, &mut Piece::default()))
}

/// What was read, as a number.
#[inline(always)]
pub const fn code(read: &Result<Frame, FrameError>) -> u32 {
    match *read {
        Ok(Frame::Packet) => PACKET,
        Ok(Frame::Arp) => ARP,
        Ok(Frame::Neighbour) => NEIGHBOUR,
        Ok(Frame::FirstFragment) => FIRST_FRAGMENT,
        Err(FrameError::Short) => SHORT,
        Err(FrameError::Vlan) => VLAN,
        Err(FrameError::EtherType) => ETHER_TYPE,
        Err(FrameError::Packet(error)) => ERROR + headers::code(error),
    }
}

/// The same of a packet without a frame, of which [`headers::ew_read_packet`] says this. Those in pieces are not read.
#[inline(always)]
pub const fn code_of_packet(failed: u32) -> u32 {
    match failed {
        0 => PACKET,
        failed if failed == headers::code(ParseError::Fragment) => SHORT,
        failed => ERROR + failed,
    }
}

/// Reads which part of a datagram a frame is, if [`ew_read_frame`] has said that it is one; 0 is none.
///
/// Global for the same reason.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_read_piece(skb: *mut __sk_buff, piece: *mut Piece) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(piece) = (unsafe { piece.as_mut() }) else {
        return 0;
    };
    let read = frame::read(&Skb { skb }, &mut Packet::default(), piece);
    u32::from(matches!(read, Ok(Frame::FirstFragment) | Err(FrameError::Packet(ParseError::Fragment))))
}

/// Reads the packet that an ICMP error quotes; the result is [`PACKET`], or an error for [`error`].
///
/// Global, as [`ew_read_frame`] is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_read_quote(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(packet) = (unsafe { packet.as_mut() }) else {
        return SHORT;
    };
    match quote::read(&Skb { skb }, packet) {
        Ok(()) => PACKET,
        Err(error) => ERROR + headers::code(error),
    }
}

/// See [`ew_read_frame`].
#[inline(always)]
pub const fn error(code: u32) -> FrameError {
    match code {
        VLAN => FrameError::Vlan,
        ETHER_TYPE => FrameError::EtherType,
        ERROR.. => FrameError::Packet(headers::error(code - ERROR)),
        _ => FrameError::Short,
    }
}
