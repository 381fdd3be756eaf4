//! Socket operations by io_uring.
#![expect(unsafe_code, reason = "a submission refers to memory that must outlive it")]

use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::{io::Errno, net::SocketAddrAny};

use crate::lab::{Family, Kind, UringOperation};

/// Makes a ring.
pub(super) fn ring(by_kernel_thread: bool) -> Result<IoUring, Errno> {
    let mut builder = IoUring::builder();
    if by_kernel_thread {
        builder.setup_sqpoll(1_000);
    }
    builder.build(8).map_err(|e| errno(&e))
}

/// Makes a socket by `IORING_OP_SOCKET`.
pub(super) fn socket(ring: &mut IoUring, family: Family, kind: Kind) -> Result<OwnedFd, Errno> {
    let domain = if family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
    let kind = match kind {
        Kind::Stream => libc::SOCK_STREAM,
        Kind::Datagram => libc::SOCK_DGRAM,
        Kind::Raw => libc::SOCK_RAW,
    };
    let made = submit(ring, &[opcode::Socket::new(domain, kind, 0).build().user_data(WANTED)], 1)?;
    // SAFETY: the completion gives a new descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(made).map_err(|_| Errno::IO)?) })
}

/// As [`act`], with the socket in the ring's own table: no descriptor is looked at.
pub(super) fn act_on_fixed(
    ring: &mut IoUring,
    socket: BorrowedFd<'_>,
    operation: &UringOperation,
) -> Result<usize, Errno> {
    ring.submitter().register_files(&[socket.as_raw_fd()]).map_err(|e| errno(&e))?;
    let result = act_by(ring, (types::Fd(0), squeue::Flags::FIXED_FILE), operation);
    ring.submitter().unregister_files().map_err(|e| errno(&e))?;
    result
}

/// Does one operation and gives the result of its completion.
pub(super) fn act(ring: &mut IoUring, socket: BorrowedFd<'_>, operation: &UringOperation) -> Result<usize, Errno> {
    act_by(ring, (types::Fd(socket.as_raw_fd()), squeue::Flags::empty()), operation)
}

fn act_by(
    ring: &mut IoUring,
    (fd, flags): (types::Fd, squeue::Flags),
    operation: &UringOperation,
) -> Result<usize, Errno> {
    let to = match operation {
        UringOperation::Connect { to, .. } | UringOperation::SendMsg { to, .. } | UringOperation::SendZc { to, .. } => {
            SocketAddrAny::from(*to)
        }
    };
    match operation {
        UringOperation::Connect { timeout_ms, .. } => {
            let connect = opcode::Connect::new(fd, to.as_ptr().cast(), to.addr_len()).build();
            let limit = types::Timespec::from(std::time::Duration::from_millis(*timeout_ms));
            let timeout = opcode::LinkTimeout::new(&raw const limit).build();
            let entries = [connect.flags(flags | squeue::Flags::IO_LINK).user_data(WANTED), timeout];
            match submit(ring, &entries, 2) {
                Err(Errno::CANCELED) => Err(Errno::TIMEDOUT),
                other => other,
            }
        }
        UringOperation::SendMsg { data, .. } => {
            let mut part = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
            // SAFETY: all zero is a message without anything.
            let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
            message.msg_name = to.as_ptr().cast_mut().cast();
            message.msg_namelen = to.addr_len();
            message.msg_iov = &raw mut part;
            message.msg_iovlen = 1;
            let send = opcode::SendMsg::new(fd, &raw const message).build();
            submit(ring, &[send.flags(flags).user_data(WANTED)], 1)
        }
        UringOperation::SendZc { data, .. } => {
            let len = u32::try_from(data.len()).map_err(|_| Errno::MSGSIZE)?;
            let send =
                opcode::SendZc::new(fd, data.as_ptr(), len).dest_addr(to.as_ptr().cast()).dest_addr_len(to.addr_len());
            submit(ring, &[send.build().flags(flags).user_data(WANTED)], 1)
        }
    }
}

/// Marks the completion that counts.
const WANTED: u64 = 1;

/// Submits and waits for `completions`. All that the entries refer to lives in the caller.
fn submit(ring: &mut IoUring, entries: &[squeue::Entry], completions: usize) -> Result<usize, Errno> {
    // SAFETY: the caller keeps what the entries refer to until this returns, and by then they have
    // completed: nothing is submitted later, and every completion is waited for.
    unsafe { ring.submission().push_multiple(entries) }.map_err(|_| Errno::AGAIN)?;
    let mut left = completions;
    let mut result = Err(Errno::IO);
    while left != 0 {
        ring.submit_and_wait(1).map_err(|e| errno(&e))?;
        for completion in ring.completion() {
            // A second completion of a zero-copy send says that its memory is free again.
            left -= usize::from(!cqueue::more(completion.flags()));
            if completion.user_data() == WANTED && !cqueue::notif(completion.flags()) {
                let code = completion.result();
                result = usize::try_from(code).map_err(|_| Errno::from_raw_os_error(-code));
            }
        }
    }
    result
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
