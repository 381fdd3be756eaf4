//! Sockets as the kernel lists them, and ending one: netlink `SOCK_DIAG`, inside the socket's network
//! namespace.
//!
//! Source: sock_diag(7), linux/inet_diag.h.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd as _, OwnedFd},
};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

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
    len: u32,
    kind: u16,
    flags: u16,
    seq: u32,
    pid: u32,
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

#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    seq: u32,
    pid: u32,
}

/// `SOCK_DIAG_BY_FAMILY` and `SOCK_DESTROY`.
const BY_FAMILY: u16 = 20;
const DESTROY: u16 = 21;
/// Flags of netlink(7).
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// Replies of netlink(7).
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Attribute `INET_DIAG_CGROUP_ID`.
const CGROUP_ID: u16 = 21;

/// A netlink socket of one network namespace.
pub struct Diag {
    socket: OwnedFd,
}

impl Diag {
    /// Opens one in the namespace of the calling thread.
    ///
    /// # Errors
    ///
    /// What socket(2) said.
    pub fn open() -> io::Result<Self> {
        let socket =
            socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::SOCK_DIAG))?;
        Ok(Self { socket })
    }

    /// Lists TCP and UDP sockets of both families.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn list(&self) -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        for family in [2, 10] {
            for proto in [6, 17] {
                self.dump(family, proto, &mut sockets)?;
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
    pub fn destroy(&self, socket: &Socket) -> io::Result<bool> {
        self.send(&request(DESTROY, REQUEST | ACK, socket.family, socket.proto, socket.id))?;
        let mut gone = false;
        self.receive(|header, body| {
            if header.kind == ERROR {
                let errno = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
                match -errno {
                    0 => {}
                    libc::ENOENT => gone = true,
                    errno => return Err(io::Error::from_raw_os_error(errno)),
                }
                return Ok(true);
            }
            Ok(false)
        })?;
        Ok(!gone)
    }

    fn dump(&self, family: u8, proto: u8, out: &mut Vec<Socket>) -> io::Result<()> {
        let any = Id { sport: [0; 2], dport: [0; 2], src: [0; 16], dst: [0; 16], ifindex: 0, cookie: [0; 2] };
        self.send(&request(BY_FAMILY, REQUEST | DUMP, family, proto, any))?;
        self.receive(|header, body| match header.kind {
            DONE => Ok(true),
            ERROR => {
                let errno = body.get(..4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes);
                Err(io::Error::from_raw_os_error(-errno))
            }
            BY_FAMILY => {
                out.extend(socket(proto, body));
                Ok(false)
            }
            _ => Ok(false),
        })
    }

    fn send(&self, request: &Request) -> io::Result<()> {
        send(self.socket.as_fd(), request.as_bytes(), SendFlags::empty())?;
        Ok(())
    }

    /// Hands every message to `take` until it says that the answer is complete.
    fn receive(&self, mut take: impl FnMut(&Header, &[u8]) -> io::Result<bool>) -> io::Result<()> {
        let mut buffer = vec![0; 65_536];
        loop {
            let (len, _) = recv(self.socket.as_fd(), &mut buffer[..], RecvFlags::empty())?;
            let mut rest = &buffer[..len];
            while let Ok((header, _)) = Header::read_from_prefix(rest) {
                let len = header.len as usize;
                let Some(body) = rest.get(size_of::<Header>()..len) else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                if take(&header, body)? {
                    return Ok(());
                }
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
            }
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

fn request(kind: u16, flags: u16, family: u8, proto: u8, id: Id) -> Request {
    Request {
        len: u32::try_from(size_of::<Request>()).unwrap_or(0),
        kind,
        flags,
        seq: 1,
        pid: 0,
        family,
        proto,
        ext: 0,
        pad: 0,
        states: u32::MAX,
        id,
    }
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
        let diag = Diag::open().unwrap();
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
