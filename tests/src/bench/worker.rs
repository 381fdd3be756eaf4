//! A client and a server at work, and the CPU time that both take.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    net::{Ipv4Addr, SocketAddr},
    os::{fd::AsFd as _, unix::net::UnixStream},
    time::{Duration, Instant},
};

use anyhow::Context as _;

use super::load::Kind;
use crate::lab::{Cgroup, NetNs, Process, Program};

/// A client and its server.
#[derive(Debug)]
pub struct Pair {
    client: Worker,
    server: Server,
    /// The kernel's own threads that finish what the two have begun.
    helpers: Vec<i32>,
}

/// What was done in one slice.
#[derive(Clone, Copy, Debug)]
pub struct Slice {
    /// Units of the [`Kind`].
    pub units: f64,
    /// CPU time of client, server and the kernel's network threads, ns.
    pub cpu_ns: f64,
    /// Time on the wall, ns.
    pub wall_ns: f64,
}

impl Slice {
    /// CPU time of a unit.
    pub fn cost(&self) -> f64 {
        self.cpu_ns / self.units
    }
}

/// A server.
#[derive(Debug)]
pub struct Server {
    worker: Worker,
    addr: SocketAddr,
}

#[derive(Debug)]
struct Worker {
    process: Process,
    control: UnixStream,
    answers: BufReader<UnixStream>,
}

/// Where the two ends run.
#[derive(Clone, Copy, Debug)]
pub struct Ends<'a> {
    /// The client's cgroup.
    pub client: &'a Cgroup,
    /// The server's.
    pub server: &'a Cgroup,
    /// The network namespaces of the client and of the server.
    pub nets: [&'a NetNs; 2],
    /// Their addresses there.
    pub addrs: [Ipv4Addr; 2],
}

impl<'a> Ends<'a> {
    /// Both on the loopback of one network namespace.
    pub const fn on_loopback(client: &'a Cgroup, server: &'a Cgroup, netns: &'a NetNs) -> Self {
        Self { client, server, nets: [netns; 2], addrs: [Ipv4Addr::LOCALHOST; 2] }
    }
}

/// A worker that is silent for longer than this has failed.
const SILENCE_MAX: Duration = Duration::from_secs(30);

impl Pair {
    /// Starts both, the server first, on these CPUs.
    pub fn start(kind: Kind, ends: Ends<'_>, cpus: [usize; 2]) -> anyhow::Result<Self> {
        let server = Server::start(kind, cpus[1], ends.server, ends.nets[1], ends.addrs[1])?;
        let args = ["client", &cpus[0].to_string(), &ends.addrs[0].to_string(), &server.addr.to_string()];
        let client = Worker::start(kind, &args, ends.client, ends.nets[0])?;
        let helpers = kernel_threads("ksoftirqd/")?;
        Ok(Self { client, server, helpers })
    }

    /// Lets the client work for this long.
    pub fn slice(&mut self, ms: u32) -> anyhow::Result<Slice> {
        let (before, start) = (self.cpu_ns()?, Instant::now());
        writeln!(self.client.control, "go {ms}")?;
        let answer = self.client.hear()?;
        let wall = start.elapsed();
        let cpu_ns = self.cpu_ns()? - before;
        let units = answer.strip_prefix("done ").and_then(|n| n.parse().ok());
        let units: f64 = units.with_context(|| format!("a client answers `{answer}`"))?;
        anyhow::ensure!(units > 0.0, "nothing got through in {ms} ms");
        Ok(Slice { units, cpu_ns, wall_ns: wall.as_secs_f64() * 1e9 })
    }

    fn cpu_ns(&self) -> anyhow::Result<f64> {
        let ours = [self.client.process.pid(), self.server.worker.process.pid()];
        ours.iter().chain(&self.helpers).map(|&pid| cpu_ns(pid)).sum()
    }
}

impl Server {
    /// Starts it; when this returns, it can be called.
    pub fn start(kind: Kind, cpu: usize, cgroup: &Cgroup, netns: &NetNs, addr: Ipv4Addr) -> anyhow::Result<Self> {
        let args = ["server", &cpu.to_string(), &addr.to_string()];
        let mut worker = Worker::start(kind, &args, cgroup, netns)?;
        let addr = worker.hear().with_context(|| format!("start a server of {}", kind.word()))?;
        let addr = addr.parse().with_context(|| format!("a server says `{addr}`"))?;
        Ok(Self { worker, addr })
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.addr.port()
    }
}

impl Worker {
    fn start(kind: Kind, args: &[&str], cgroup: &Cgroup, netns: &NetNs) -> anyhow::Result<Self> {
        let (control, theirs) = UnixStream::pair()?;
        control.set_read_timeout(Some(SILENCE_MAX))?;
        let program = Program::new(&std::env::current_exe()?).arg("load").arg(kind.word());
        let program = args.iter().fold(program, |program, arg| program.arg(arg));
        let process = program.spawn(cgroup, netns, Some(theirs.as_fd()))?;
        Ok(Self { process, answers: BufReader::new(control.try_clone()?), control })
    }

    fn hear(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        let len = self.answers.read_line(&mut line).context("hear a worker")?;
        anyhow::ensure!(len > 0, "a worker has ended");
        Ok(line.trim_end().to_owned())
    }
}

/// Time that a thread was on a CPU. Exact while it waits: the kernel adds up when it is switched off.
fn cpu_ns(pid: i32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.split(' ').next().and_then(|ns| ns.parse().ok()).with_context(|| format!("{path} holds no number"))
}

fn kernel_threads(prefix: &str) -> anyhow::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end meanwhile.
        let name = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        if name.starts_with(prefix) && fs::read(entry.path().join("cmdline")).is_ok_and(|line| line.is_empty()) {
            found.push(pid);
        }
    }
    Ok(found)
}
