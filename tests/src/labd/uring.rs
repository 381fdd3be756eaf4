//! Socket operations by io_uring.
#![expect(unsafe_code, reason = "a submission refers to memory that must outlive it")]

use std::os::fd::{AsRawFd as _, BorrowedFd};

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::{io::Errno, net::SocketAddrAny};

use crate::lab::UringOperation;

/// Does one operation and gives the result of its completion.
pub(super) fn act(socket: BorrowedFd<'_>, operation: &UringOperation, by_kernel_thread: bool) -> Result<usize, Errno> {
    let mut builder = IoUring::builder();
    if by_kernel_thread {
        builder.setup_sqpoll(1_000);
    }
    let mut ring = builder.build(8).map_err(|e| errno(&e))?;
    let fd = types::Fd(socket.as_raw_fd());
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
            let entries = [connect.flags(squeue::Flags::IO_LINK).user_data(WANTED), timeout];
            match submit(&mut ring, &entries, 2) {
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
            submit(&mut ring, &[opcode::SendMsg::new(fd, &raw const message).build().user_data(WANTED)], 1)
        }
        UringOperation::SendZc { data, .. } => {
            let len = u32::try_from(data.len()).map_err(|_| Errno::MSGSIZE)?;
            let send =
                opcode::SendZc::new(fd, data.as_ptr(), len).dest_addr(to.as_ptr().cast()).dest_addr_len(to.addr_len());
            submit(&mut ring, &[send.build().user_data(WANTED)], 1)
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
