//! On which the kernel says what changed.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::{
    io::Errno,
    net::{RecvFlags, bind, connect, netlink::SocketAddrNetlink, recv},
};

use super::DevicesError;
use crate::netlink::{KERNEL, open, set_option};

/// Most notices that are taken at once, so that whoever floods does not hold the reader.
const NOTICES_MAX: usize = 4096;

/// What is heard: devices, addresses, routes and ids of namespaces. `RTNLGRP_*` of linux/rtnetlink.h.
const GROUPS: [u32; 6] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_NSID,
];

/// On which the kernel says what changed.
#[derive(Debug)]
pub(super) struct Notices {
    socket: OwnedFd,
}

impl Notices {
    pub(super) fn open() -> Result<Self, DevicesError> {
        let socket = open(None).map_err(|source| DevicesError::Open { source })?;
        set_option(&socket, libc::NETLINK_LISTEN_ALL_NSID).map_err(|source| DevicesError::Broadcast { source })?;
        let groups = GROUPS.iter().fold(0, |mask, group| mask | 1 << (group - 1));
        bind(&socket, &SocketAddrNetlink::new(0, groups))
            .and_then(|()| connect(&socket, &KERNEL))
            .map_err(|e| DevicesError::Open { source: e.into() })?;
        Ok(Self { socket })
    }

    /// Takes what is there; returns whether there was anything.
    pub(super) fn take(&self) -> io::Result<bool> {
        let mut any = false;
        for _ in 0..NOTICES_MAX {
            match recv(&self.socket, &mut [0_u8; 1], RecvFlags::DONTWAIT) {
                // NOBUFS: there were more than the queue holds.
                Ok(_) | Err(Errno::NOBUFS) => any = true,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(any)
    }
}

impl AsFd for Notices {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
