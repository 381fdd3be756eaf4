//! AF_PACKET: sees every packet of a namespace.
#![expect(unsafe_code, reason = "no library has safe wrappers for AF_PACKET addresses and statistics")]

use std::{
    io,
    os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

/// linux/if_ether.h: every protocol, in both directions.
const ETH_P_ALL: u16 = 0x0003;

/// A packet as a tap sees it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Tapped {
    pub len: usize,
    /// It leaves this namespace by a device; else it comes in by one.
    pub is_outgoing: bool,
}

/// Opens a tap on every device of the caller's network namespace.
pub(crate) fn tap() -> io::Result<OwnedFd> {
    open(ETH_P_ALL)
}

/// Reads the next packet without waiting; None if there is none.
pub(crate) fn read(tap: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<Tapped>> {
    let mut from = address(0);
    let mut from_len: libc::socklen_t = socklen::<libc::sockaddr_ll>();
    // SAFETY: `buffer` and `from` are writable for the lengths given, and live across the call.
    let len = unsafe {
        libc::recvfrom(
            tap.as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_DONTWAIT,
            (&raw mut from).cast(),
            &raw mut from_len,
        )
    };
    match usize::try_from(len) {
        Ok(len) => Ok(Some(Tapped { len, is_outgoing: from.sll_pkttype == libc::PACKET_OUTGOING })),
        Err(_) => match io::Error::last_os_error() {
            e if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
            e => Err(e),
        },
    }
}

/// Returns how many packets did not fit the tap's buffer since the last call.
pub(crate) fn lost(tap: BorrowedFd<'_>) -> io::Result<u32> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut len = socklen::<libc::tpacket_stats>();
    // SAFETY: `stats` is writable for `len` bytes and lives across the call.
    let result = unsafe {
        libc::getsockopt(
            tap.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut stats).cast(),
            &raw mut len,
        )
    };
    if result == 0 { Ok(stats.tp_drops) } else { Err(io::Error::last_os_error()) }
}

/// A socket of AF_PACKET; of protocol 0 it sees nothing.
pub(super) fn open(protocol: u16) -> io::Result<OwnedFd> {
    let protocol = libc::c_int::from(protocol.to_be());
    // SAFETY: takes numbers only.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just returned this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The constant of the C library is an `int`.
const FAMILY: u16 = {
    assert!(libc::AF_PACKET == 17);
    17
};

/// The device of an index.
pub(super) fn address(index: i32) -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: FAMILY,
        sll_protocol: ETH_P_ALL.to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    }
}

#[expect(clippy::cast_possible_truncation, reason = "both types are a few bytes long")]
pub(super) const fn socklen<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}
