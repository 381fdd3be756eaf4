//! System calls that no library wraps, or not in this way.
#![expect(unsafe_code, reason = "no library has safe wrappers for these")]

use std::{
    net::SocketAddrV4,
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
};

use rustix::{io::Errno, thread::UnshareFlags};

/// setsockopt(2) with a number.
pub(super) fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> Result<(), Errno> {
    // SAFETY: `value` is readable for the length given, and lives across the call.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, ptr::from_ref(&value).cast(), LENGTH_OF_NUMBER) };
    if result == 0 { Ok(()) } else { Err(last()) }
}

const LENGTH_OF_NUMBER: libc::socklen_t = 4;
const LENGTH_OF_V4: libc::socklen_t = 16;

/// sendto(2) with an address of family 0, which the kernel takes for IPv4.
pub(super) fn send_unspec(socket: BorrowedFd<'_>, to: SocketAddrV4, data: &[u8]) -> Result<usize, Errno> {
    const { assert!(size_of::<libc::sockaddr_in>() == LENGTH_OF_V4 as usize) };
    let address = libc::sockaddr_in {
        sin_family: 0,
        sin_port: to.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.ip().octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: `data` and `address` are readable for the lengths given, and live across the call.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            0,
            ptr::from_ref(&address).cast(),
            LENGTH_OF_V4,
        )
    };
    usize::try_from(sent).map_err(|_| last())
}

/// Leaves the network namespace for a new one.
pub(super) fn unshare_net() -> Result<(), Errno> {
    // SAFETY: only the network namespace is left; descriptors stay shared. This process has one thread.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }
}

/// Leaves the user namespace for a new one, in which this process may do everything.
pub(super) fn unshare_user() -> Result<(), Errno> {
    // SAFETY: as above.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER) }
}

/// Leaves the cgroup namespace for a new one, whose root is this cgroup.
pub(super) fn unshare_cgroup() -> Result<(), Errno> {
    // SAFETY: as above.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWCGROUP) }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
