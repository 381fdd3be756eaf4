//! Sockets as the kernel lists them, and ending one: netlink `SOCK_DIAG`, inside the socket's network
//! namespace.
//!
//! Source: sock_diag(7), linux/inet_diag.h.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsFd as _,
};

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP};
use rustix::net::netlink;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::netlink::Requests;

/// One TCP or connected UDP socket.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Socket {
    /// `AF_INET` or `AF_INET6`.
    family: u8,
    /// IP protocol: 6 or 17.
    pub proto: u8,
    /// State of `include/net/tcp_states.h`; 10 = LISTEN.
    pub state: u8,
    /// This end; mapped addresses are given as IPv4.
    pub local: (IpAddr, u16),
    /// The other end; port 0 = none.
    pub peer: (IpAddr, u16),
    /// Interface of a bound socket.
    ifindex: u32,
    /// Owner.
    pub uid: u32,
    /// Cgroup v2 id; 0 = the kernel does not say.
    pub cgroup: u64,
    id: Id,
}

/// `LISTEN`.
pub const LISTEN: u8 = 10;

#[derive(Clone, Copy, Debug, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
struct Id {
    sport: [u8; 2],
    dport: [u8; 2],
    src: [u8; 16],
    dst: [u8; 16],
    ifindex: u32,
    cookie: [u32; 2],
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct Request {
    family: u8,
    proto: u8,
    ext: u8,
    pad: u8,
    states: u32,
    id: Id,
}

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct Reply {
    family: u8,
    state: u8,
    timer: u8,
    retrans: u8,
    id: Id,
    expires: u32,
    rqueue: u32,
    wqueue: u32,
    uid: u32,
    inode: u32,
}

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY`.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// Attribute `INET_DIAG_CGROUP_ID`.
const CGROUP_ID: u16 = 21;

/// A netlink socket of one network namespace.
pub struct Diag {
    requests: Requests,
}

impl Diag {
    /// Opens one in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// What socket(2) said.
    pub fn open() -> io::Result<Self> {
        Ok(Self { requests: Requests::open(Some(netlink::SOCK_DIAG))? })
    }

    /// Lists TCP and UDP sockets of both families.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn list(&mut self) -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        let any = Id { sport: [0; 2], dport: [0; 2], src: [0; 16], dst: [0; 16], ifindex: 0, cookie: [0; 2] };
        for family in [2, 10] {
            for proto in [6, 17] {
                // Those that come and go meanwhile are left to the packet hooks.
                self.requests.ask(BY_FAMILY, NLM_F_DUMP, request(family, proto, any).as_bytes(), |body| {
                    sockets.extend(socket(proto, body));
                    Ok(())
                })?;
            }
        }
        Ok(sockets)
    }

    /// Ends a socket: the local program gets ECONNABORTED, the peer of a TCP connection a reset.
    /// False: it was gone already.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn destroy(&mut self, socket: &Socket) -> io::Result<bool> {
        let request = request(socket.family, socket.proto, socket.id);
        match self.requests.ask(DESTROY, NLM_F_ACK, request.as_bytes(), |_| Ok(())) {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Runs `work` on a thread of its own inside a network namespace, and waits for it.
///
/// # Errors
///
/// What setns(2) said, or `work`.
pub fn inside<T: Send>(netns: &File, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // The thread ends with the work, so it need not find its way back.
            rustix::thread::move_into_link_name_space(netns.as_fd(), Some(rustix::thread::LinkNameSpaceType::Network))?;
            work()
        });
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
    })
}

const fn request(family: u8, proto: u8, id: Id) -> Request {
    Request { family, proto, ext: 0, pad: 0, states: u32::MAX, id }
}

fn socket(proto: u8, body: &[u8]) -> Option<Socket> {
    let (reply, mut attributes) = Reply::read_from_prefix(body).ok()?;
    let mut cgroup = 0;
    while let (Some(len), Some(kind)) = (short(attributes, 0), short(attributes, 2)) {
        let len = usize::from(len);
        if kind == CGROUP_ID {
            cgroup = attributes.get(4..12).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes);
        }
        attributes = attributes.get(len.max(4).next_multiple_of(4)..).unwrap_or_default();
    }
    let id = reply.id;
    let address = |bytes: [u8; 16]| match reply.family {
        2 => IpAddr::V4(Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3])),
        _ => Ipv6Addr::from(bytes).to_canonical(),
    };
    Some(Socket {
        family: reply.family,
        proto,
        state: reply.state,
        local: (address(id.src), u16::from_be_bytes(id.sport)),
        peer: (address(id.dst), u16::from_be_bytes(id.dport)),
        ifindex: id.ifindex,
        uid: reply.uid,
        cgroup,
        id,
    })
}

fn short(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn a_connection_of_this_process_is_listed_and_can_be_ended() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        let local = client.local_addr().unwrap();
        let mut diag = Diag::open().unwrap();
        let sockets = diag.list().unwrap();
        let found = sockets.iter().find(|s| s.local == (local.ip(), local.port())).unwrap();
        assert_eq!(found.peer.1, listener.local_addr().unwrap().port());
        assert_ne!(found.cgroup, 0);
        if !rustix::process::geteuid().is_root() {
            return;
        }
        assert!(diag.destroy(found).unwrap());
        assert!(!diag.destroy(found).unwrap(), "it is gone");
        let mut byte = [0];
        let error = std::io::Read::read(&mut server, &mut byte).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let error = std::io::Read::read(&mut client, &mut byte).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
