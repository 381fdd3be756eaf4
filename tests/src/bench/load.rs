//! The load generators: a client and a server for each pattern of traffic, each a process of its own.
//!
//! `bench load KIND server CPU ADDRESS` prints where it listens and serves until it is killed. `bench
//! load KIND client CPU ADDRESS SERVER` reads `go MILLISECONDS` and answers `done UNITS`. Both talk on standard input,
//! which is a socket. Between two slices everything that was sent has been received: what one slice
//! began is not paid for by the next.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::{
    net::{AddressFamily, SocketFlags, SocketType, connect, listen, socket_with},
    thread::{CpuSet, sched_setaffinity},
};
use serde::Serialize;

/// A pattern of traffic. A unit is what one step of the client is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub enum Kind {
    /// A request and a response of one byte on a connection that stays: netperf's TCP_RR.
    TcpRr,
    /// Connect, request, response, close: netperf's TCP_CRR.
    TcpCrr,
    /// A request from a connected socket, a response from an unconnected one: netperf's UDP_RR.
    UdpRr,
    /// Datagrams of 64 bytes in bursts, all of them received, each burst acknowledged by one more.
    UdpSmall,
    /// As [`Self::UdpSmall`], with no socket connected.
    UdpSmallOpen,
    /// Bytes on one connection, in units of 1 MiB.
    TcpBulk,
    /// A SYN from a new socket to a listener whose queue is full: each is one first packet at the exit
    /// and one at the door, and nothing else.
    TcpFirst,
    /// A datagram from a new unconnected socket: likewise.
    UdpFirst,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::TcpRr,
        Self::TcpCrr,
        Self::UdpRr,
        Self::UdpSmall,
        Self::UdpSmallOpen,
        Self::TcpBulk,
        Self::TcpFirst,
        Self::UdpFirst,
    ];

    /// The word on the command line.
    pub const fn word(self) -> &'static str {
        match self {
            Self::TcpRr => "tcp-rr",
            Self::TcpCrr => "tcp-crr",
            Self::UdpRr => "udp-rr",
            Self::UdpSmall => "udp-small",
            Self::UdpSmallOpen => "udp-small-open",
            Self::TcpBulk => "tcp-bulk",
            Self::TcpFirst => "tcp-first",
            Self::UdpFirst => "udp-first",
        }
    }
}

/// Datagrams between two acknowledgements: they fit the receive buffer of a socket.
const BURST: u64 = 64;
/// Bytes of a small datagram.
const SMALL: usize = 64;
/// Units between two acknowledgements of bulk traffic.
const BLOCK_UNITS: u64 = 8;
const UNIT_BYTES: usize = 1 << 20;
/// Bytes of one write: netperf's default is the size of the send buffer, this is of that order.
const CHUNK: usize = 1 << 17;
/// A datagram that is lost after this time is sent again, so that a run does not hang.
const LOST_AFTER: Duration = Duration::from_millis(200);

/// See the module.
pub fn main(args: &[String]) -> anyhow::Result<()> {
    let [kind, role, cpu, own, rest @ ..] = args else {
        anyhow::bail!("usage: bench load KIND ROLE CPU ADDRESS [SERVER]")
    };
    let own = own.parse().context("read an address")?;
    let kind = Kind::ALL.into_iter().find(|k| k.word() == kind).context("no such kind of load")?;
    let mut cpus = CpuSet::new();
    cpus.set(cpu.parse().context("read the number of a CPU")?);
    sched_setaffinity(None, &cpus).context("stay on one CPU")?;
    let control = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    match (role.as_str(), rest) {
        ("server", []) => serve(kind, own, control),
        ("client", [server]) => call(kind, own, server.parse().context("read an address")?, control),
        _ => anyhow::bail!("a role is `server`, or `client` with a server"),
    }
}

fn ready(mut control: UnixStream, addr: SocketAddr) -> anyhow::Result<UnixStream> {
    writeln!(control, "{addr}").context("say where the server is")?;
    Ok(control)
}

fn serve(kind: Kind, own: Ipv4Addr, control: UnixStream) -> anyhow::Result<()> {
    let any = (own, 0);
    match kind {
        Kind::TcpRr | Kind::TcpCrr | Kind::TcpBulk => {
            let listener = TcpListener::bind(any)?;
            let _control = ready(control, listener.local_addr()?)?;
            for stream in listener.incoming() {
                let stream = stream?;
                stream.set_nodelay(true)?;
                if kind == Kind::TcpBulk { swallow(stream)? } else { echo(stream)? }
            }
            Ok(())
        }
        Kind::UdpRr => {
            let socket = UdpSocket::bind(any)?;
            let _control = ready(control, socket.local_addr()?)?;
            let mut byte = [0; 1];
            loop {
                let (_, from) = socket.recv_from(&mut byte)?;
                socket.send_to(&byte, from)?;
            }
        }
        Kind::UdpSmall | Kind::UdpSmallOpen | Kind::UdpFirst => {
            let socket = UdpSocket::bind(any)?;
            let _control = ready(control, socket.local_addr()?)?;
            let mut bytes = [0; SMALL];
            loop {
                let (len, from) = socket.recv_from(&mut bytes)?;
                // The last of a burst is longer by nothing; it says so in its first byte.
                if len == SMALL && bytes[0] != 0 {
                    socket.send_to(&bytes[..1], from)?;
                }
            }
        }
        Kind::TcpFirst => {
            let listener = TcpListener::bind(any)?;
            listen(&listener, 0)?;
            let addr = listener.local_addr()?;
            let _control = ready(control, addr)?;
            // Connections that nobody accepts: the queue is full for good. A server calls nobody, so the
            // client makes them.
            loop {
                std::thread::park();
            }
        }
    }
}

fn echo(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut byte = [0; 1];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) => stream.write_all(&byte)?,
            Err(e) if e.kind() == ErrorKind::ConnectionReset => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

fn swallow(mut stream: TcpStream) -> anyhow::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let block = UNIT_BYTES * usize::try_from(BLOCK_UNITS)?;
    loop {
        let mut left = block;
        while left > 0 {
            let want = left.min(CHUNK);
            match stream.read(&mut buffer[..want])? {
                0 => return Ok(()),
                n => left -= n,
            }
        }
        stream.write_all(&[1])?;
    }
}

fn call(kind: Kind, own: Ipv4Addr, server: SocketAddr, control: UnixStream) -> anyhow::Result<()> {
    let mut client = Client::open(kind, own, server)?;
    let mut answers = control.try_clone()?;
    for line in BufReader::new(control).lines() {
        let line = line.context("hear what to do")?;
        let ms: u64 = line.strip_prefix("go ").and_then(|ms| ms.parse().ok()).context("`go MILLISECONDS`")?;
        let (mut units, end) = (0, Instant::now() + Duration::from_millis(ms));
        while Instant::now() < end {
            units += client.step().with_context(|| format!("{} to {server}", kind.word()))?;
        }
        writeln!(answers, "done {units}").context("say what was done")?;
    }
    Ok(())
}

/// What a client keeps between its steps.
struct Client {
    kind: Kind,
    own: Ipv4Addr,
    server: SocketAddr,
    tcp: Option<TcpStream>,
    udp: UdpSocket,
    /// Connections that fill the queue of a listener.
    _queued: Vec<OwnedFd>,
    chunk: Vec<u8>,
}

impl Client {
    fn open(kind: Kind, own: Ipv4Addr, server: SocketAddr) -> anyhow::Result<Self> {
        let stays = matches!(kind, Kind::TcpRr | Kind::TcpBulk);
        let tcp = stays.then(|| TcpStream::connect(server)).transpose().context("connect")?;
        if let Some(tcp) = &tcp {
            tcp.set_nodelay(true)?;
        }
        let udp = UdpSocket::bind((own, 0))?;
        udp.set_read_timeout(Some(LOST_AFTER))?;
        if matches!(kind, Kind::UdpRr | Kind::UdpSmall) {
            udp.connect(server)?;
        }
        let mut queued = Vec::new();
        if kind == Kind::TcpFirst {
            for _ in 0..4 {
                queued.push(begin_connecting(server)?);
            }
        }
        Ok(Self { kind, own, server, tcp, udp, _queued: queued, chunk: vec![0; CHUNK] })
    }

    /// Does a little and returns how many units that were.
    fn step(&mut self) -> anyhow::Result<u64> {
        match self.kind {
            Kind::TcpRr => {
                let stream = self.tcp.as_mut().context("no connection")?;
                exchange(stream)?;
                Ok(1)
            }
            Kind::TcpCrr => {
                let mut stream = TcpStream::connect(self.server)?;
                exchange(&mut stream)?;
                Ok(1)
            }
            Kind::UdpRr => {
                self.udp.send(&[1])?;
                self.heard().map(u64::from)
            }
            Kind::UdpSmall | Kind::UdpSmallOpen => {
                let mut bytes = [0; SMALL];
                for i in 1..=BURST {
                    bytes[0] = u8::from(i == BURST);
                    if self.kind == Kind::UdpSmall {
                        self.udp.send(&bytes)?;
                    } else {
                        self.udp.send_to(&bytes, self.server)?;
                    }
                }
                Ok(if self.heard()? { BURST } else { 0 })
            }
            Kind::TcpBulk => {
                let stream = self.tcp.as_mut().context("no connection")?;
                for _ in 0..BLOCK_UNITS * (UNIT_BYTES / CHUNK) as u64 {
                    stream.write_all(&self.chunk)?;
                }
                stream.read_exact(&mut self.chunk[..1])?;
                Ok(BLOCK_UNITS)
            }
            Kind::TcpFirst => begin_connecting(self.server).map(|_| 1),
            Kind::UdpFirst => {
                UdpSocket::bind((self.own, 0))?.send_to(&[0], self.server)?;
                Ok(1)
            }
        }
    }

    /// Waits for a response; false if it was lost.
    fn heard(&self) -> anyhow::Result<bool> {
        match self.udp.recv(&mut [0; 1]) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

fn exchange(stream: &mut TcpStream) -> anyhow::Result<()> {
    stream.write_all(&[1])?;
    stream.read_exact(&mut [0; 1])?;
    Ok(())
}

/// Sends a SYN and waits for nothing. Closing the socket in that state sends nothing more.
fn begin_connecting(server: SocketAddr) -> anyhow::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    match connect(&socket, &server) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e).context("connect"),
    }
}
