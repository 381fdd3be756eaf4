//! What a test and its actor say to each other.
//!
//! Over a socket pair that keeps message bounds: one command, one reply, as JSON. A descriptor can ride
//! along with either.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr, SocketAddrV4},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
};

use anyhow::Context as _;
use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
        recvmsg, sendmsg,
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Transmit;

/// Longest message. A count of bytes; a datagram of 64 KiB takes up to four digits and commas a byte.
const MESSAGE_MAX: usize = 512 * 1024;

/// One operation of an actor. Sockets are numbers that the actor gave out.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Command {
    /// socket(2).
    Socket {
        /// IPv4 or IPv6.
        family: Family,
        /// Stream, datagram or raw.
        kind: Kind,
        /// The protocol number; 0 is the usual one of the kind.
        protocol: u32,
    },
    /// bind(2).
    Bind {
        /// The socket.
        socket: u32,
        /// Port 0 takes a free one.
        addr: SocketAddr,
    },
    /// listen(2).
    Listen {
        /// The socket.
        socket: u32,
    },
    /// accept(2); EAGAIN when time runs out.
    Accept {
        /// The listener.
        socket: u32,
        /// How long to wait.
        timeout_ms: u64,
    },
    /// connect(2); ETIMEDOUT when time runs out.
    Connect {
        /// The socket.
        socket: u32,
        /// The peer.
        addr: SocketAddr,
        /// How long to wait.
        timeout_ms: u64,
    },
    /// connect(2) with AF_UNSPEC.
    Disconnect {
        /// The socket.
        socket: u32,
    },
    /// send(2), or sendto(2) if there is an address.
    Send {
        /// The socket.
        socket: u32,
        /// The peer, if the socket has none.
        to: Option<SocketAddr>,
        /// The payload.
        data: Vec<u8>,
    },
    /// One sendmmsg(2), each message to a peer of its own. Gives the number of messages sent.
    SendMany {
        /// The socket.
        socket: u32,
        /// Peers and payloads.
        messages: Vec<(SocketAddr, Vec<u8>)>,
    },
    /// recvfrom(2) until there are `count` messages, the peer has closed, or nothing came for a while.
    Receive {
        /// The socket.
        socket: u32,
        /// Most messages.
        count: usize,
        /// How long to wait for each.
        timeout_ms: u64,
    },
    /// recvfrom(2) until there are so many bytes, the peer has closed, or nothing came for a while; gives how many
    /// there were.
    Drain {
        /// The socket.
        socket: u32,
        /// Most bytes.
        bytes: usize,
        /// How long to wait for each part.
        timeout_ms: u64,
    },
    /// getsockname(2).
    LocalAddr {
        /// The socket.
        socket: u32,
    },
    /// close(2).
    Close {
        /// The socket.
        socket: u32,
    },
    /// An ICMP or ICMPv6 echo, by a raw socket; ETIMEDOUT without an answer.
    Ping {
        /// The peer; its port is nothing.
        to: SocketAddr,
        /// The payload.
        data: Vec<u8>,
        /// How long to wait.
        timeout_ms: u64,
    },
    /// Sends a link-layer frame past every socket hook, by AF_PACKET.
    SendFrame {
        /// The name of the device.
        device: String,
        /// From the Ethernet header on.
        frame: Vec<u8>,
        /// Whether it goes past the queue of the device, and so past TC in this namespace
        /// (`PACKET_QDISC_BYPASS`).
        bypass: bool,
    },
    /// Sends frames one after another, as many times over as there are rounds; gives how many were taken.
    HammerFrames {
        /// The name of the device.
        device: String,
        /// From the Ethernet header on.
        frames: Vec<Vec<u8>>,
        /// How often.
        rounds: u32,
        /// How they leave.
        by: Transmit,
    },
    /// Sends a frame once; ENOBUFS if the kernel drops it before it has left.
    TryFrame {
        /// The name of the device.
        device: String,
        /// From the Ethernet header on.
        frame: Vec<u8>,
        /// How it leaves.
        by: Transmit,
    },
    /// Moves the actor into another cgroup.
    MoveTo {
        /// Its directory.
        cgroup: PathBuf,
    },
    /// mkdir(2) of a cgroup, and mkdir only.
    MakeCgroup {
        /// Its directory.
        cgroup: PathBuf,
    },
    /// unshare(2) of the network namespace.
    UnshareNetNs,
    /// setns(2) into the network namespace whose descriptor comes along.
    EnterNetNs,
    /// Sends a copy of a socket to the test.
    GiveFd {
        /// The socket.
        socket: u32,
    },
    /// setsockopt(2).
    SetOption {
        /// The socket.
        socket: u32,
        /// `SOL_SOCKET` or a protocol.
        level: i32,
        /// The option.
        name: i32,
        /// The value.
        value: Vec<u8>,
    },
    /// sendto(2) with an IPv4 address whose family says AF_UNSPEC.
    SendUnspec {
        /// The socket.
        socket: u32,
        /// The peer.
        to: SocketAddrV4,
        /// The payload.
        data: Vec<u8>,
    },
    /// sendmsg(2) with a source address of its own (`IP_PKTINFO`, `IPV6_PKTINFO`), of the family of the peer.
    SendFrom {
        /// The socket.
        socket: u32,
        /// The source.
        from: IpAddr,
        /// The peer.
        to: SocketAddr,
        /// The payload.
        data: Vec<u8>,
    },
    /// Sends a datagram to an abstract name of AF_UNIX.
    SendAbstract {
        /// The name, without the zero byte before it.
        name: Vec<u8>,
        /// The payload.
        data: Vec<u8>,
    },
    /// sendto(2) with `MSG_FASTOPEN`: connects by TCP, with the payload in the first segment if there is a
    /// cookie. ETIMEDOUT when time runs out.
    SendFast {
        /// The socket.
        socket: u32,
        /// The peer.
        to: SocketAddr,
        /// The payload.
        data: Vec<u8>,
        /// How long to wait.
        timeout_ms: u64,
    },
    /// One operation of io_uring; its completion gives the count or the errno.
    Uring {
        /// The socket.
        socket: u32,
        /// What to do.
        operation: UringOperation,
        /// Whether a thread of the kernel takes the submission (`IORING_SETUP_SQPOLL`).
        by_kernel_thread: bool,
    },
    /// Makes a ring for all operations of io_uring that follow, with their sockets as fixed files.
    KeepRing {
        /// Whether a thread of the kernel takes submissions.
        by_kernel_thread: bool,
    },
    /// Makes a socket by the ring that is kept.
    UringSocket {
        /// IPv4 or IPv6.
        family: Family,
        /// Stream, datagram or raw.
        kind: Kind,
    },
    /// unshare(2) of the user namespace; no user is known in the new one.
    UnshareUserNs,
    /// unshare(2) of the cgroup namespace.
    UnshareCgroupNs,
    /// Takes the descriptor that comes along as a socket.
    TakeFd,
    /// Tells the number of a socket's descriptor.
    Descriptor {
        /// The socket.
        socket: u32,
    },
    /// pidfd_getfd(2): takes a copy of a descriptor of another process, which is not asked.
    Steal {
        /// The process.
        pid: i32,
        /// Its descriptor.
        descriptor: i32,
    },
    /// Does one operation in a thread of its own, which first moves into a threaded cgroup.
    InThread {
        /// Its directory.
        cgroup: PathBuf,
        /// The operation.
        command: Box<Command>,
    },
    /// Sends one datagram to each of a row of ports; gives how many sendto(2) took.
    Flood {
        /// The socket.
        socket: u32,
        /// The first of the ports.
        to: SocketAddr,
        /// How many ports.
        ports: u16,
        /// The payload.
        data: Vec<u8>,
    },
    /// Sends the same datagram many times, to an address or to the peer; gives how many were taken.
    Hammer {
        /// The socket.
        socket: u32,
        /// Where to; none: its peer.
        to: Option<SocketAddr>,
        /// How often.
        times: u32,
        /// The payload.
        data: Vec<u8>,
    },
    /// Runs a kernel program that was taken on frames, here: in this cgroup and network namespace.
    TestRun {
        /// The program.
        program: u32,
        /// The device that the frames are on; 0 is loopback.
        ifindex: u32,
        /// From the Ethernet header on.
        frames: Vec<Vec<u8>>,
    },
}

/// What io_uring is asked for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum UringOperation {
    /// `IORING_OP_CONNECT`. Does not wait for the peer to answer for longer than the time given.
    Connect {
        /// The peer.
        to: SocketAddr,
        /// How long to wait.
        timeout_ms: u64,
    },
    /// `IORING_OP_SENDMSG` with an address.
    SendMsg {
        /// The peer.
        to: SocketAddr,
        /// The payload.
        data: Vec<u8>,
    },
    /// `IORING_OP_SEND_ZC` with an address.
    SendZc {
        /// The peer.
        to: SocketAddr,
        /// The payload.
        data: Vec<u8>,
    },
}

/// An address family.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A type of socket.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Kind {
    /// SOCK_STREAM.
    Stream,
    /// SOCK_DGRAM.
    Datagram,
    /// SOCK_RAW.
    Raw,
}

/// What an operation gave.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub enum Reply {
    /// Nothing to tell.
    Done,
    /// A new socket.
    Socket(u32),
    /// Bytes or messages sent.
    Count(usize),
    /// What arrived; an empty one on a stream is its end.
    Messages(Vec<Message>),
    /// An address.
    Addr(SocketAddr),
    /// What a program returned for each frame; below 0 is an errno.
    Codes(Vec<i32>),
    /// errno.
    Failed(i32),
}

/// One message that arrived.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Message {
    /// Who sent it, if the socket tells.
    pub from: Option<SocketAddr>,
    /// The payload; on a raw IPv4 socket from the IP header on.
    pub data: Vec<u8>,
}

impl Family {
    /// The family of an address.
    #[must_use]
    pub fn of(addr: SocketAddr) -> Self {
        if addr.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

pub(crate) fn send(to: impl AsFd, message: &impl Serialize, descriptor: Option<BorrowedFd<'_>>) -> anyhow::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: &[BorrowedFd<'_>] = descriptor.as_slice();
    if !descriptors.is_empty() {
        anyhow::ensure!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)), "no room for a descriptor");
    }
    sendmsg(to, &[IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL).context("send to the other side")?;
    Ok(())
}

/// Returns None when the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(from: impl AsFd) -> anyhow::Result<Option<(T, Option<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let len = loop {
        match recvmsg(&from, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => break message.bytes,
            Err(Errno::INTR) => {}
            // It was killed with a command in its queue.
            Err(Errno::CONNRESET) => break 0,
            Err(e) => return Err(e).context("receive from the other side"),
        }
    };
    let mut descriptor = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
            descriptor = descriptors.next();
        }
    }
    if len == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..len]).context("understand the other side")?, descriptor)))
}
