//! The headers of a packet of a socket hook, which begins at its IP header.

use agent_common::{
    flow::proto,
    parse::{
        self, Packet, ParseError, Piece,
        plain::{self, Plain, TCP_MORE_BYTES, TCP_MORE_OFFSET, V4_BYTES, V6_BYTES},
    },
};
use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_load_bytes};

use crate::sockets::{Addr, mapped, pair};

/// Reads the headers of an ordinary packet without a call of a helper; `None` says that the packet is to
/// be read by [`ew_read_packet`].
#[inline(always)]
pub fn plain(skb: *mut __sk_buff) -> Option<Plain> {
    // SAFETY: the context; what is read below has been compared with the end, which the verifier checks.
    // Words of four bytes: the kernel puts IP headers at such a border, or reads across it.
    unsafe {
        let (start, end) = ((*skb).data as usize, (*skb).data_end as usize);
        if start + V4_BYTES > end {
            return None;
        }
        let v4 = &*(start as *const [u32; V4_BYTES / 4]);
        if v4[0].to_ne_bytes()[0] >> 4 == 4 {
            return plain::v4(v4, || (*skb).len as usize, || word(start, 20 + TCP_MORE_OFFSET, end));
        }
        if start + V6_BYTES > end {
            return None;
        }
        plain::v6(
            &*(start as *const [u32; V6_BYTES / 4]),
            || (*skb).len as usize,
            || word(start, 40 + TCP_MORE_OFFSET, end),
        )
    }
}

/// Says whether a packet of a TCP socket goes to this address and port; false also if it is no ordinary one. A packet
/// that is to be cut into segments says nothing of its length, so that is not looked at.
#[inline(always)]
pub fn goes_to(skb: *mut __sk_buff, addr: &Addr, port: u16) -> bool {
    // SAFETY: as in `plain`.
    unsafe {
        let (start, end) = ((*skb).data as usize, (*skb).data_end as usize);
        if start + V4_BYTES > end {
            return false;
        }
        let v4 = &*(start as *const [u32; V4_BYTES / 4]);
        let version = v4[0].to_ne_bytes()[0];
        if version == 0x45 {
            let dst = mapped(v4[4]);
            return dst[0] == addr[0] && dst[1] == addr[1] && second_port(v4[5]) == port;
        }
        if version >> 4 != 6 || start + V6_BYTES > end {
            return false;
        }
        let v6 = &*(start as *const [u32; V6_BYTES / 4]);
        let ports = match v6[1].to_ne_bytes()[2] {
            proto::TCP => Some(v6[10]),
            // Before one of more than 64 KiB there is an option of eight bytes with its length.
            HOP_BY_HOP if v6[10].to_ne_bytes()[..2] == [proto::TCP, 0] => word(start, V6_BYTES, end),
            _ => None,
        };
        let dst = [pair(v6[6], v6[7]), pair(v6[8], v6[9])];
        dst[0] == addr[0] && dst[1] == addr[1] && ports.is_some_and(|ports| second_port(ports) == port)
    }
}

/// linux/in.h: the first of the headers that may stand before that of TCP.
const HOP_BY_HOP: u8 = 0;

/// The destination of the word with both ports, in host order.
#[inline(always)]
const fn second_port(ports: u32) -> u16 {
    let [_, _, high, low] = ports.to_ne_bytes();
    u16::from_be_bytes([high, low])
}

/// Reads four bytes at an offset, if they are there.
///
/// # Safety
///
/// `start` is where the packet begins, `end` where it ends.
#[inline(always)]
pub unsafe fn word(start: usize, offset: usize, end: usize) -> Option<u32> {
    if start + offset + TCP_MORE_BYTES > end {
        return None;
    }
    // SAFETY: compared with the end.
    Some(unsafe { *((start + offset) as *const u32) })
}

/// Reads any packet; the result is 0, or an error for [`error`].
///
/// Global, so that the verifier checks it once and not for every state of every caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_read_packet(skb: *mut __sk_buff, packet: *mut Packet) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(packet) = (unsafe { packet.as_mut() }) else {
        return 1;
    };
    match parse::read(&Skb { skb }, packet, &mut Piece::default()) {
        Ok(()) => 0,
        Err(error) => code(error),
    }
}

/// An error as a number above 0: see [`ew_read_packet`].
#[inline(always)]
pub const fn code(error: ParseError) -> u32 {
    match error {
        ParseError::Truncated => 1,
        ParseError::Version => 2,
        ParseError::Length => 3,
        ParseError::Headers => 4,
        ParseError::Mapped => 6,
        ParseError::Fragment => 5,
    }
}

/// See [`ew_read_packet`].
#[inline(always)]
pub const fn error(code: u32) -> ParseError {
    match code {
        6 => ParseError::Mapped,
        5 => ParseError::Fragment,
        4 => ParseError::Headers,
        3 => ParseError::Length,
        2 => ParseError::Version,
        _ => ParseError::Truncated,
    }
}

/// The bytes of a packet from where its hook sees it: the IP header, or at a device the Ethernet header.
pub struct Skb {
    /// The context.
    pub skb: *mut __sk_buff,
}

impl parse::Source for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: usize, out: &mut [u8; N]) -> bool {
        // SAFETY: the helper writes N bytes or fails.
        unsafe { bpf_skb_load_bytes(self.skb.cast(), offset as u32, out.as_mut_ptr().cast(), N as u32) == 0 }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: the context.
        unsafe { (*self.skb).len as usize }
    }

    #[inline(always)]
    fn is_offload(&self) -> bool {
        // SAFETY: the context.
        unsafe { (*self.skb).gso_size != 0 }
    }
}
