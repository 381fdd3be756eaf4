//! The sockets of an actor, and what it does with them.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, IoSlice},
    net::SocketAddr,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd},
    path::Path,
    slice, thread,
    time::Duration,
};

use io_uring::IoUring;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{
        self, AddressFamily, MMsgHdr, RecvFlags, SendAncillaryBuffer, SendFlags, SocketAddrAny, SocketFlags,
        SocketType,
        sockopt::{Timeout, set_socket_timeout},
    },
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::{icmp, odd, uring};
use crate::lab::{Command, Family, Kind, Message, Reply, Transmit, transmit};

/// Longest message that is received whole.
const DATAGRAM_MAX: usize = 65_536;

#[derive(Default)]
pub(super) struct Sockets {
    ring: Option<IoUring>,
    open: BTreeMap<u32, OwnedFd>,
    last: u32,
}

impl Sockets {
    /// Does one command.
    pub fn act(&mut self, command: &Command, descriptor: Option<OwnedFd>) -> Result<(Reply, Option<OwnedFd>), Errno> {
        let done = match command {
            Command::Socket { family, kind, protocol } => self.keep(socket(*family, *kind, *protocol)?),
            Command::Bind { socket, addr } => net::bind(self.get(*socket)?, addr).map(|()| Reply::Done)?,
            Command::Listen { socket } => net::listen(self.get(*socket)?, 128).map(|()| Reply::Done)?,
            Command::Accept { socket, timeout_ms } => {
                let listener = self.get(*socket)?;
                wait_for_input(listener, *timeout_ms)?;
                let accepted = net::accept_with(listener, SocketFlags::CLOEXEC)?;
                self.keep(accepted)
            }
            Command::Connect { socket, addr, timeout_ms } => {
                connect(self.get(*socket)?, *addr, *timeout_ms).map(|()| Reply::Done)?
            }
            Command::Disconnect { socket } => net::connect_unspec(self.get(*socket)?).map(|()| Reply::Done)?,
            Command::Send { socket, to, data } => Reply::Count(send(self.get(*socket)?, *to, data)?),
            Command::SendMany { socket, messages } => Reply::Count(send_many(self.get(*socket)?, messages)?),
            Command::Receive { socket, count, timeout_ms } => {
                Reply::Messages(receive(self.get(*socket)?, *count, *timeout_ms)?)
            }
            Command::Drain { socket, bytes, timeout_ms } => {
                Reply::Count(drain(self.get(*socket)?, *bytes, *timeout_ms)?)
            }
            Command::LocalAddr { socket } => {
                Reply::Addr(net::getsockname(self.get(*socket)?)?.try_into().map_err(|_| Errno::AFNOSUPPORT)?)
            }
            Command::Close { socket } => self.open.remove(socket).map(|_| Reply::Done).ok_or(Errno::BADF)?,
            Command::Ping { to, data, timeout_ms } => {
                icmp::ping(to.ip(), data, Duration::from_millis(*timeout_ms)).map(|()| Reply::Done)?
            }
            Command::SendFrame { device, frame, bypass } => {
                let by = if *bypass { Transmit::Bypass } else { Transmit::Queue };
                transmit::send(device, slice::from_ref(frame), 1, by, true)
                    .map(|_| Reply::Done)
                    .map_err(|e| errno(&e))?
            }
            Command::TryFrame { device, frame, by } => transmit::send(device, slice::from_ref(frame), 1, *by, false)
                .map(|_| Reply::Done)
                .map_err(|e| errno(&e))?,
            Command::HammerFrames { device, frames, rounds, by } => {
                transmit::send(device, frames, *rounds, *by, true).map(Reply::Count).map_err(|e| errno(&e))?
            }
            Command::MoveTo { cgroup } => {
                let pid = std::process::id().to_string();
                fs::write(cgroup.join("cgroup.procs"), pid).map(|()| Reply::Done).map_err(|e| errno(&e))?
            }
            Command::MakeCgroup { cgroup } => fs::create_dir(cgroup).map(|()| Reply::Done).map_err(|e| errno(&e))?,
            Command::UnshareNetNs => odd::unshare_net().map(|()| Reply::Done)?,
            Command::EnterNetNs => {
                let netns = descriptor.ok_or(Errno::BADF)?;
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).map(|()| Reply::Done)?
            }
            Command::GiveFd { socket } => {
                let copy = self.get(*socket)?.try_clone_to_owned().map_err(|e| errno(&e))?;
                return Ok((Reply::Done, Some(copy)));
            }
            Command::SetOption { socket, level, name, value } => {
                odd::set_option(self.get(*socket)?, *level, *name, value).map(|()| Reply::Done)?
            }
            Command::SendUnspec { socket, to, data } => Reply::Count(odd::send_unspec(self.get(*socket)?, *to, data)?),
            Command::SendFrom { socket, from, to, data } => {
                Reply::Count(odd::send_from(self.get(*socket)?, *from, *to, data)?)
            }
            Command::SendAbstract { name, data } => {
                let socket = net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
                let to = net::SocketAddrUnix::new_abstract_name(name)?;
                Reply::Count(net::sendto(&socket, data, SendFlags::NOSIGNAL, &to)?)
            }
            Command::SendFast { socket, to, data, timeout_ms } => {
                Reply::Count(send_fast(self.get(*socket)?, *to, data, *timeout_ms)?)
            }
            Command::Uring { socket, operation, by_kernel_thread } => {
                let socket = self.open.get(socket).ok_or(Errno::BADF)?.as_fd();
                Reply::Count(match &mut self.ring {
                    Some(ring) => uring::act_on_fixed(ring, socket, operation)?,
                    None => uring::act(&mut uring::ring(*by_kernel_thread)?, socket, operation)?,
                })
            }
            Command::KeepRing { by_kernel_thread } => {
                self.ring = Some(uring::ring(*by_kernel_thread)?);
                Reply::Done
            }
            Command::UringSocket { family, kind } => {
                let made = uring::socket(self.ring.as_mut().ok_or(Errno::BADF)?, *family, *kind)?;
                self.keep(made)
            }
            Command::UnshareUserNs => odd::unshare_user().map(|()| Reply::Done)?,
            Command::UnshareCgroupNs => odd::unshare_cgroup().map(|()| Reply::Done)?,
            Command::TakeFd => self.keep(descriptor.ok_or(Errno::BADF)?),
            Command::Descriptor { socket } => {
                Reply::Count(usize::try_from(self.get(*socket)?.as_raw_fd()).map_err(|_| Errno::BADF)?)
            }
            Command::Steal { pid, descriptor } => {
                let process = pidfd_open(Pid::from_raw(*pid).ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
                self.keep(pidfd_getfd(process, *descriptor, PidfdGetfdFlags::empty())?)
            }
            Command::InThread { cgroup, command } => return self.in_thread(cgroup, command),
            Command::Flood { socket, to, ports, data } => {
                let socket = self.get(*socket)?;
                let to = |n| SocketAddr::new(to.ip(), to.port().wrapping_add(n));
                Reply::Count((0..*ports).filter(|&n| send(socket, Some(to(n)), data).is_ok()).count())
            }
            Command::Hammer { socket, to, times, data } => {
                let socket = self.get(*socket)?;
                Reply::Count((0..*times).filter(|_| send(socket, *to, data).is_ok()).count())
            }
            Command::TestRun { program, ifindex, frames } => {
                let program = self.get(*program)?;
                Reply::Codes(frames.iter().map(|frame| test_run(program, frame, *ifindex)).collect())
            }
        };
        Ok((done, None))
    }

    /// Takes standard input as socket 1, if it is one.
    pub fn inherit(&mut self) {
        if let Ok(inherited) = io::stdin().as_fd().try_clone_to_owned()
            && net::getsockname(&inherited).is_ok()
        {
            self.keep(inherited);
        }
    }

    fn in_thread(&mut self, cgroup: &Path, command: &Command) -> Result<(Reply, Option<OwnedFd>), Errno> {
        let work = || {
            fs::write(cgroup.join("cgroup.threads"), "0").map_err(|e| errno(&e))?;
            self.act(command, None)
        };
        thread::scope(|threads| threads.spawn(work).join().map_err(|_| Errno::IO)?)
    }

    /// Makes a TCP socket and connects it.
    pub fn connect_once(&mut self, addr: SocketAddr, timeout_ms: u64) -> Result<(), Errno> {
        connect(socket(Family::of(addr), Kind::Stream, 0)?.as_fd(), addr, timeout_ms)
    }

    /// Makes a UDP socket and sends one datagram.
    pub fn send_once(&mut self, to: SocketAddr, data: &[u8]) -> Result<usize, Errno> {
        send(socket(Family::of(to), Kind::Datagram, 0)?.as_fd(), Some(to), data)
    }

    fn keep(&mut self, socket: OwnedFd) -> Reply {
        self.last += 1;
        self.open.insert(self.last, socket);
        Reply::Socket(self.last)
    }

    fn get(&self, socket: u32) -> Result<BorrowedFd<'_>, Errno> {
        self.open.get(&socket).map(|fd| fd.as_fd()).ok_or(Errno::BADF)
    }
}

pub(super) fn socket(family: Family, kind: Kind, protocol: u32) -> Result<OwnedFd, Errno> {
    let family = match family {
        Family::V4 => AddressFamily::INET,
        Family::V6 => AddressFamily::INET6,
    };
    let kind = match kind {
        Kind::Stream => SocketType::STREAM,
        Kind::Datagram => SocketType::DGRAM,
        Kind::Raw => SocketType::RAW,
    };
    let protocol = std::num::NonZero::new(protocol).map(net::Protocol::from_raw);
    net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol)
}

pub(super) fn send(socket: BorrowedFd<'_>, to: Option<SocketAddr>, data: &[u8]) -> Result<usize, Errno> {
    match to {
        Some(to) => net::sendto(socket, data, SendFlags::NOSIGNAL, &to),
        None => net::send(socket, data, SendFlags::NOSIGNAL),
    }
}

pub(super) fn receive(socket: BorrowedFd<'_>, count: usize, timeout_ms: u64) -> Result<Vec<Message>, Errno> {
    let mut messages = Vec::new();
    let mut buffer = vec![0; DATAGRAM_MAX];
    let flags = if timeout_ms == 0 { RecvFlags::DONTWAIT } else { RecvFlags::empty() };
    wait_at_most(socket, Timeout::Recv, timeout_ms)?;
    while messages.len() < count {
        match net::recvfrom(socket, &mut buffer[..], flags) {
            Ok((len, _, from)) => {
                let is_end = len == 0 && from.is_none();
                let from = from.and_then(|from: SocketAddrAny| SocketAddr::try_from(from).ok());
                messages.push(Message { from, data: buffer[..len].to_vec() });
                if is_end {
                    break;
                }
            }
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            // What came before the error is told first; the error comes with the next call.
            Err(errno) if messages.is_empty() => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(messages)
}

fn drain(socket: BorrowedFd<'_>, bytes: usize, timeout_ms: u64) -> Result<usize, Errno> {
    let mut got = 0;
    while got < bytes {
        let parts = receive(socket, 1, timeout_ms)?;
        match parts.first() {
            Some(part) if !part.data.is_empty() => got += part.data.len(),
            _ => break,
        }
    }
    Ok(got)
}

fn connect(socket: BorrowedFd<'_>, addr: SocketAddr, timeout_ms: u64) -> Result<(), Errno> {
    wait_at_most(socket, Timeout::Send, timeout_ms)?;
    let connected = match net::connect(socket, &addr) {
        // What a blocking connect says when SO_SNDTIMEO runs out.
        Err(Errno::INPROGRESS) => Err(Errno::TIMEDOUT),
        other => other,
    };
    wait_at_most(socket, Timeout::Send, 0)?;
    connected
}

fn send_fast(socket: BorrowedFd<'_>, to: SocketAddr, data: &[u8], timeout_ms: u64) -> Result<usize, Errno> {
    wait_at_most(socket, Timeout::Send, timeout_ms)?;
    let flags = SendFlags::NOSIGNAL | SendFlags::from_bits_retain(libc::MSG_FASTOPEN.cast_unsigned());
    let sent = match net::sendto(socket, data, flags, &to) {
        Err(Errno::INPROGRESS) => Err(Errno::TIMEDOUT),
        other => other,
    };
    wait_at_most(socket, Timeout::Send, 0)?;
    sent
}

fn send_many(socket: BorrowedFd<'_>, messages: &[(SocketAddr, Vec<u8>)]) -> Result<usize, Errno> {
    let peers: Vec<SocketAddrAny> = messages.iter().map(|(to, _)| (*to).into()).collect();
    let slices: Vec<[IoSlice<'_>; 1]> = messages.iter().map(|(_, data)| [IoSlice::new(data)]).collect();
    let mut ancillary: Vec<SendAncillaryBuffer<'_, '_, '_>> =
        messages.iter().map(|_| SendAncillaryBuffer::default()).collect();
    let mut headers: Vec<MMsgHdr<'_>> = peers
        .iter()
        .zip(&slices)
        .zip(&mut ancillary)
        .map(|((to, data), none)| MMsgHdr::new_with_addr(to, data, none))
        .collect();
    net::sendmmsg(socket, &mut headers, SendFlags::NOSIGNAL)
}

fn test_run(program: BorrowedFd<'_>, frame: &[u8], ifindex: u32) -> i32 {
    match eastwall::datapath::test_run(program, frame, ifindex, 1) {
        Ok(run) => i32::try_from(run.code).unwrap_or(i32::MAX),
        Err(e) => -errno(&e).raw_os_error(),
    }
}

/// EAGAIN when time runs out. The listener of MPTCP knows no timeout of its own.
fn wait_for_input(socket: BorrowedFd<'_>, timeout_ms: u64) -> Result<(), Errno> {
    let timeout = Timespec::try_from(Duration::from_millis(timeout_ms)).map_err(|_| Errno::INVAL)?;
    match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout))? {
        0 => Err(Errno::AGAIN),
        _ => Ok(()),
    }
}

/// 0 is without end.
fn wait_at_most(socket: BorrowedFd<'_>, side: Timeout, timeout_ms: u64) -> Result<(), Errno> {
    let timeout = (timeout_ms != 0).then(|| Duration::from_millis(timeout_ms));
    set_socket_timeout(socket, side, timeout)
}

fn errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
