//! System calls that no library wraps, or not in this way.
#![expect(unsafe_code, reason = "no library has safe wrappers for these")]

use std::{
    mem,
    net::{IpAddr, SocketAddr, SocketAddrV4},
    os::fd::{AsRawFd as _, BorrowedFd},
    ptr,
};

use rustix::{io::Errno, net::SocketAddrAny, thread::UnshareFlags};

/// setsockopt(2).
pub(super) fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let length = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::INVAL)?;
    // SAFETY: `value` is readable for the length given, and lives across the call.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, value.as_ptr().cast(), length) };
    if result == 0 { Ok(()) } else { Err(last()) }
}

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

/// sendmsg(2) with a control message that names the source.
pub(super) fn send_from(socket: BorrowedFd<'_>, from: IpAddr, to: SocketAddr, data: &[u8]) -> Result<usize, Errno> {
    match from {
        IpAddr::V4(from) => {
            let source = libc::in_addr { s_addr: u32::from_ne_bytes(from.octets()) };
            let info = libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: source, ipi_addr: libc::in_addr { s_addr: 0 } };
            send_with(socket, (libc::IPPROTO_IP, libc::IP_PKTINFO), info, to, data)
        }
        IpAddr::V6(from) => {
            let info = libc::in6_pktinfo { ipi6_addr: libc::in6_addr { s6_addr: from.octets() }, ipi6_ifindex: 0 };
            send_with(socket, (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO), info, to, data)
        }
    }
}

/// A control message as the kernel reads it.
#[repr(C)]
struct Control<T> {
    header: libc::cmsghdr,
    value: T,
}

fn send_with<T>(
    socket: BorrowedFd<'_>,
    (level, name): (i32, i32),
    value: T,
    to: SocketAddr,
    data: &[u8],
) -> Result<usize, Errno> {
    // Nothing is between the two: the value begins where the kernel looks for it.
    const { assert!(mem::offset_of!(Control<T>, value) == size_of::<libc::cmsghdr>()) };
    let to = SocketAddrAny::from(to);
    // SAFETY: zero is a value of every field of these.
    let (mut header, mut message): (libc::cmsghdr, libc::msghdr) = unsafe { mem::zeroed() };
    header.cmsg_len = size_of::<libc::cmsghdr>() + size_of::<T>();
    (header.cmsg_level, header.cmsg_type) = (level, name);
    let mut control = Control { header, value };
    let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    message.msg_name = to.as_ptr().cast_mut().cast();
    message.msg_namelen = to.addr_len();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of::<Control<T>>();
    // SAFETY: all that the message refers to is readable for the lengths given, and lives across the call.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) };
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
