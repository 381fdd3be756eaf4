//! The test's end of an actor.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    time::Duration,
};

use anyhow::Context as _;
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SocketFlags, SocketType, socketpair,
        sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_send_buffer_size_force, set_socket_timeout},
    },
};

use super::{
    Cgroup, Command, Family, Kind, Message, NetNs, Process, Program, Reply, UringOperation, patience,
    wire::{receive, send},
};

/// How long an operation waits for what must come. It is long because it ends a test that has failed.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long an actor may take to answer at all.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// A process in a cgroup and a network namespace that does what the test says.
///
/// Its methods give the errno of the operation. They panic when the actor itself is gone.
#[derive(Debug)]
pub struct Actor {
    control: OwnedFd,
    process: Process,
}

/// A socket of one actor.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Socket(u32);

impl Socket {
    /// Its number in a [`Command`].
    #[must_use]
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl Actor {
    pub(super) fn start(labd: &Program, cgroup: &Cgroup, netns: &NetNs) -> anyhow::Result<Self> {
        let (control, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).context("socketpair")?;
        for end in [&control, &theirs] {
            set_socket_send_buffer_size_force(end, 1 << 20)?;
            set_socket_recv_buffer_size_force(end, 1 << 20)?;
        }
        set_socket_timeout(&control, Timeout::Recv, Some(patience(SILENCE_MAX)))?;
        let process = labd.clone().arg("serve").spawn(cgroup, netns, Some(theirs.as_fd()))?;
        Ok(Self { control, process })
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Does any operation.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn call(&self, command: &Command) -> Result<Reply, Errno> {
        self.begin(command, None);
        self.end()
    }

    /// Begins an operation and does not wait for it. A descriptor can go along.
    pub fn begin(&self, command: &Command, descriptor: Option<BorrowedFd<'_>>) {
        send(&self.control, command, descriptor).expect("tell an actor what to do");
    }

    /// Waits for the operation that was begun.
    ///
    /// # Errors
    ///
    /// Its errno.
    pub fn end(&self) -> Result<Reply, Errno> {
        self.end_with_fd().map(|(reply, _)| reply)
    }

    /// As [`Self::end`], of one that counts.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn end_count(&self) -> Result<usize, Errno> {
        self.end().map(count)
    }

    fn end_with_fd(&self) -> Result<(Reply, Option<OwnedFd>), Errno> {
        let (reply, descriptor) = receive(&self.control).expect("hear an actor").expect("an actor that lives answers");
        match reply {
            Reply::Failed(errno) => Err(Errno::from_raw_os_error(errno)),
            reply => Ok((reply, descriptor)),
        }
    }

    /// Makes a socket. Protocol 0 is the usual one of the kind.
    ///
    /// # Errors
    ///
    /// Of socket(2).
    pub fn socket(&self, family: Family, kind: Kind, protocol: u32) -> Result<Socket, Errno> {
        self.call(&Command::Socket { family, kind, protocol }).map(socket)
    }

    /// Makes a socket and binds it; port 0 takes a free one. Gives the address that it has.
    ///
    /// # Errors
    ///
    /// Of socket(2) and bind(2).
    pub fn bind(&self, kind: Kind, protocol: u32, addr: SocketAddr) -> Result<(Socket, SocketAddr), Errno> {
        let socket = self.socket(Family::of(addr), kind, protocol)?;
        self.call(&Command::Bind { socket: socket.0, addr })?;
        Ok((socket, self.local_addr(socket)?))
    }

    /// Listens for TCP.
    ///
    /// # Errors
    ///
    /// Of socket(2), bind(2) and listen(2).
    pub fn tcp_listen(&self, addr: SocketAddr) -> Result<(Socket, SocketAddr), Errno> {
        let (socket, addr) = self.bind(Kind::Stream, 0, addr)?;
        self.call(&Command::Listen { socket: socket.0 })?;
        Ok((socket, addr))
    }

    /// Connects by TCP.
    ///
    /// # Errors
    ///
    /// Of socket(2) and connect(2); ETIMEDOUT if there was no answer in `timeout`.
    pub fn tcp_connect(&self, addr: SocketAddr, timeout: Duration) -> Result<Socket, Errno> {
        let socket = self.socket(Family::of(addr), Kind::Stream, 0)?;
        self.connect(socket, addr, timeout).inspect_err(|_| self.close(socket))?;
        Ok(socket)
    }

    /// Opens a UDP socket.
    ///
    /// # Errors
    ///
    /// Of socket(2) and bind(2).
    pub fn udp_bind(&self, addr: SocketAddr) -> Result<(Socket, SocketAddr), Errno> {
        self.bind(Kind::Datagram, 0, addr)
    }

    /// Connects a socket.
    ///
    /// # Errors
    ///
    /// Of connect(2); ETIMEDOUT if there was no answer in `timeout`.
    pub fn connect(&self, socket: Socket, addr: SocketAddr, timeout: Duration) -> Result<(), Errno> {
        let timeout_ms = millis(timeout);
        self.call(&Command::Connect { socket: socket.0, addr, timeout_ms }).map(done)
    }

    /// Ends the association of a socket with its peer.
    ///
    /// # Errors
    ///
    /// Of connect(2).
    pub fn disconnect(&self, socket: Socket) -> Result<(), Errno> {
        self.call(&Command::Disconnect { socket: socket.0 }).map(done)
    }

    /// Sets an option of a socket that is a number.
    ///
    /// # Errors
    ///
    /// Of setsockopt(2).
    pub fn set_option(&self, socket: Socket, level: i32, name: i32, value: i32) -> Result<(), Errno> {
        self.set_bytes(socket, level, name, value.to_ne_bytes().to_vec())
    }

    /// Sets an option of a socket to any bytes.
    ///
    /// # Errors
    ///
    /// Of setsockopt(2).
    pub fn set_bytes(&self, socket: Socket, level: i32, name: i32, value: Vec<u8>) -> Result<(), Errno> {
        self.call(&Command::SetOption { socket: socket.0, level, name, value }).map(done)
    }

    /// Listens on a socket that is bound, or takes a port by that.
    ///
    /// # Errors
    ///
    /// Of listen(2).
    pub fn listen(&self, socket: Socket) -> Result<(), Errno> {
        self.call(&Command::Listen { socket: socket.0 }).map(done)
    }

    /// Accepts a connection that is there already.
    ///
    /// # Errors
    ///
    /// Of accept(2); EAGAIN if there is none.
    pub fn accept_now(&self, listener: Socket) -> Result<Socket, Errno> {
        self.call(&Command::Accept { socket: listener.0, timeout_ms: 0 }).map(socket)
    }

    /// Accepts a connection.
    ///
    /// # Errors
    ///
    /// Of accept(2); EAGAIN if none came.
    pub fn accept(&self, listener: Socket) -> Result<Socket, Errno> {
        self.call(&Command::Accept { socket: listener.0, timeout_ms: millis(PATIENCE) }).map(socket)
    }

    /// Sends to the peer of a socket.
    ///
    /// # Errors
    ///
    /// Of send(2).
    pub fn send(&self, socket: Socket, data: &[u8]) -> Result<usize, Errno> {
        self.call(&Command::Send { socket: socket.0, to: None, data: data.to_vec() }).map(count)
    }

    /// Sends to an address. On a raw socket its port is nothing.
    ///
    /// # Errors
    ///
    /// Of sendto(2).
    pub fn send_to(&self, socket: Socket, to: SocketAddr, data: &[u8]) -> Result<usize, Errno> {
        self.call(&Command::Send { socket: socket.0, to: Some(to), data: data.to_vec() }).map(count)
    }

    /// Sends several messages with one sendmmsg(2); gives how many were sent.
    ///
    /// # Errors
    ///
    /// Of sendmmsg(2), if not even the first was sent.
    pub fn send_many(&self, socket: Socket, messages: Vec<(SocketAddr, Vec<u8>)>) -> Result<usize, Errno> {
        self.call(&Command::SendMany { socket: socket.0, messages }).map(count)
    }

    /// Sends to an IPv4 address whose family says AF_UNSPEC.
    ///
    /// # Errors
    ///
    /// Of sendto(2).
    pub fn send_unspec(&self, socket: Socket, to: SocketAddrV4, data: &[u8]) -> Result<usize, Errno> {
        self.call(&Command::SendUnspec { socket: socket.0, to, data: data.to_vec() }).map(count)
    }

    /// Sends to an address, from one of this host's that the message names itself.
    ///
    /// # Errors
    ///
    /// Of sendmsg(2).
    pub fn send_from(&self, socket: Socket, from: IpAddr, to: SocketAddr, data: &[u8]) -> Result<usize, Errno> {
        self.call(&Command::SendFrom { socket: socket.0, from, to, data: data.to_vec() }).map(count)
    }

    /// Connects by TCP Fast Open and sends.
    ///
    /// # Errors
    ///
    /// Of sendto(2); ETIMEDOUT if there was no answer in `timeout`.
    pub fn send_fast(&self, socket: Socket, to: SocketAddr, data: &[u8], timeout: Duration) -> Result<usize, Errno> {
        let timeout_ms = millis(timeout);
        self.call(&Command::SendFast { socket: socket.0, to, data: data.to_vec(), timeout_ms }).map(count)
    }

    /// Does an operation by io_uring.
    ///
    /// # Errors
    ///
    /// Of its completion.
    pub fn uring(&self, socket: Socket, operation: UringOperation, by_kernel_thread: bool) -> Result<usize, Errno> {
        self.call(&Command::Uring { socket: socket.0, operation, by_kernel_thread }).map(count)
    }

    /// Makes a socket by the ring that is kept.
    ///
    /// # Errors
    ///
    /// Of its completion; EBADF if no ring is kept.
    pub fn uring_socket(&self, family: Family, kind: Kind) -> Result<Socket, Errno> {
        self.call(&Command::UringSocket { family, kind }).map(socket)
    }

    /// Waits for `wanted` messages; gives fewer if they do not come, or the stream ends.
    ///
    /// # Errors
    ///
    /// Of recvfrom(2).
    pub fn receive(&self, socket: Socket, wanted: usize) -> Result<Vec<Message>, Errno> {
        self.receive_for(socket, wanted, PATIENCE)
    }

    /// Returns what is already there, without waiting.
    ///
    /// # Errors
    ///
    /// Of recvfrom(2).
    pub fn received(&self, socket: Socket) -> Result<Vec<Message>, Errno> {
        self.receive_for(socket, usize::MAX, Duration::ZERO)
    }

    /// As [`Self::receive`], waiting `timeout` for each message.
    ///
    /// # Errors
    ///
    /// Of recvfrom(2).
    pub fn receive_for(&self, socket: Socket, wanted: usize, timeout: Duration) -> Result<Vec<Message>, Errno> {
        let timeout_ms = millis(timeout);
        match self.call(&Command::Receive { socket: socket.0, count: wanted, timeout_ms })? {
            Reply::Messages(messages) => Ok(messages),
            other => unexpected(&other),
        }
    }

    /// The address of a socket.
    ///
    /// # Errors
    ///
    /// Of getsockname(2).
    pub fn local_addr(&self, socket: Socket) -> Result<SocketAddr, Errno> {
        match self.call(&Command::LocalAddr { socket: socket.0 })? {
            Reply::Addr(addr) => Ok(addr),
            other => unexpected(&other),
        }
    }

    /// Closes a socket.
    pub fn close(&self, socket: Socket) {
        self.call(&Command::Close { socket: socket.0 }).map(done).expect("close a socket that is open");
    }

    /// Sends an echo request and waits for the answer.
    ///
    /// # Errors
    ///
    /// Of sendto(2); ETIMEDOUT without an answer in `timeout`.
    pub fn ping(&self, to: IpAddr, data: &[u8], timeout: Duration) -> Result<(), Errno> {
        let to = SocketAddr::new(to, 0);
        self.call(&Command::Ping { to, data: data.to_vec(), timeout_ms: millis(timeout) }).map(done)
    }

    /// Moves into another cgroup. Sockets that are open stay what they are.
    pub fn move_to(&self, cgroup: &Cgroup) {
        self.call(&Command::MoveTo { cgroup: cgroup.dir().to_owned() }).map(done).expect("move to another cgroup");
    }

    /// Enters another network namespace.
    pub fn enter(&self, netns: &NetNs) {
        self.begin(&Command::EnterNetNs, Some(netns.as_fd()));
        self.end().map(done).expect("enter a network namespace");
    }

    /// Gives another actor a socket: both have it from now on.
    pub fn give(&self, socket: Socket, to: &Self) -> Socket {
        to.take(self.copy(socket).as_fd())
    }

    /// Gives the test a copy of a socket, by SCM_RIGHTS.
    ///
    /// # Panics
    ///
    /// If it is not open.
    #[must_use]
    pub fn copy(&self, socket: Socket) -> OwnedFd {
        self.begin(&Command::GiveFd { socket: socket.0 }, None);
        let (_, descriptor) = self.end_with_fd().expect("give a socket that is open");
        descriptor.expect("a descriptor comes with the answer")
    }

    /// Takes a copy of another actor's socket, without asking it.
    ///
    /// # Errors
    ///
    /// Of pidfd_open(2) and pidfd_getfd(2).
    pub fn steal(&self, from: &Self, theirs: Socket) -> Result<Socket, Errno> {
        let descriptor = from.call(&Command::Descriptor { socket: theirs.0 }).map(count)?;
        let descriptor = i32::try_from(descriptor).map_err(|_| Errno::BADF)?;
        self.call(&Command::Steal { pid: from.process.pid(), descriptor }).map(socket)
    }

    /// Connects a new TCP socket in a thread of its own, which is in a threaded cgroup below this actor's.
    ///
    /// # Errors
    ///
    /// Of the move, socket(2) and connect(2).
    pub fn connect_in_thread(&self, cgroup: &Cgroup, addr: SocketAddr, timeout: Duration) -> Result<Socket, Errno> {
        let inside = |command| {
            let command = Box::new(command);
            self.call(&Command::InThread { cgroup: cgroup.dir().to_owned(), command })
        };
        let made = inside(Command::Socket { family: Family::of(addr), kind: Kind::Stream, protocol: 0 }).map(socket)?;
        let connect = Command::Connect { socket: made.0, addr, timeout_ms: millis(timeout) };
        inside(connect).map(done).inspect_err(|_| self.close(made))?;
        Ok(made)
    }

    /// Sends one datagram to each of `ports` ports from that of `to` on; gives how many were taken.
    ///
    /// # Errors
    ///
    /// Never of the sending: a datagram that is refused is not counted.
    pub fn flood(&self, socket: Socket, to: SocketAddr, ports: u16, data: &[u8]) -> Result<usize, Errno> {
        self.call(&Command::Flood { socket: socket.0, to, ports, data: data.to_vec() }).map(count)
    }

    /// Sends the same datagram many times, to an address or to the peer; gives how many were taken.
    ///
    /// # Errors
    ///
    /// Never of the sending: a datagram that is refused is not counted.
    pub fn hammer(&self, socket: Socket, to: Option<SocketAddr>, times: u32, data: &[u8]) -> Result<usize, Errno> {
        self.call(&Command::Hammer { socket: socket.0, to, times, data: data.to_vec() }).map(count)
    }

    /// Takes a copy of any descriptor.
    pub fn take(&self, descriptor: BorrowedFd<'_>) -> Socket {
        self.begin(&Command::TakeFd, Some(descriptor));
        self.end().map(self::socket).expect("take a descriptor")
    }

    /// Runs a kernel program that was taken on frames, in the actor's cgroup and network namespace;
    /// `ifindex` 0 is loopback. Gives what the program returned, or a negative errno.
    pub fn test_run(&self, program: Socket, ifindex: u32, frames: Vec<Vec<u8>>) -> Vec<i32> {
        match self.call(&Command::TestRun { program: program.0, ifindex, frames }) {
            Ok(Reply::Codes(codes)) => codes,
            other => panic!("a test run gives codes: {other:?}"),
        }
    }
}

impl Socket {
    /// The command of [`Actor::receive_for`], to begin and end it by hand.
    #[must_use]
    pub fn receive_command(self, wanted: usize, timeout: Duration) -> Command {
        Command::Receive { socket: self.0, count: wanted, timeout_ms: millis(timeout) }
    }

    /// Waits for so many bytes, and only counts them; to be ended by [`Actor::end_count`].
    #[must_use]
    pub fn drain_command(self, bytes: usize, timeout: Duration) -> Command {
        Command::Drain { socket: self.0, bytes, timeout_ms: millis(timeout) }
    }
}

fn socket(reply: Reply) -> Socket {
    match reply {
        Reply::Socket(n) => Socket(n),
        other => unexpected(&other),
    }
}

fn count(reply: Reply) -> usize {
    match reply {
        Reply::Count(n) => n,
        other => unexpected(&other),
    }
}

fn done(reply: Reply) {
    match reply {
        Reply::Done => {}
        other => unexpected(&other),
    }
}

fn unexpected(reply: &Reply) -> ! {
    panic!("an actor gave an answer to another question: {reply:?}")
}

/// What an actor is told to wait, for an answer as for silence.
fn millis(duration: Duration) -> u64 {
    u64::try_from(patience(duration).as_millis()).unwrap_or(u64::MAX)
}
