//! The place of the tests, what is done there, and how it is measured.

use std::{
    fs::File,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::PathBuf,
    process::{self, Output},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use agent_common::layout::{LAYOUT_VERSION, names::program};
use eastwall::{control::wire::Tampering, datapath::open_pin};
use serde_json::{Value, json};
use tests::{
    bpf::{self, At, TCX_EGRESS, TCX_INGRESS},
    filters::{self, Shown},
    frames::{FAMILIES, framed, ip_udp},
    lab::{Agent, AgentOptions, Command, Foreign, NetNs, Routed, Witness, magic, patience, wants_tcx},
    scene::{BRIEF, LONG, is_long, policy},
};

pub const OPEN: &str = "[{ from: web, to: db, ports: [udp/any] }]";
/// `web -> db` is somebody else's edge.
pub const CLOSED: &str = "[{ from: other, to: db, ports: [udp/1] }]";
/// Promised for the time in which tampering is found and repaired: of a hundred acts, 99 times. The three of a usual run
/// say little of that, on a machine that does much else.
pub fn repair_max() -> Duration {
    patience(if is_long() { Duration::from_secs(1) } else { LONG })
}

/// `enum bpf_attach_type`
pub const CGROUP_INGRESS: u32 = 0;
pub const CGROUP_EGRESS: u32 = 1;
pub const CGROUP_SOCK_CREATE: u32 = 2;

/// Two workloads behind devices, with an agent in the host's network. Nothing refuses early, so that packets go as far
/// as they can.
pub struct Stage {
    pub agent: Agent,
    pub net: Routed,
    /// Of [`DEVICES`].
    pub indices: [u32; 2],
    /// Whether devices are guarded by TCX, and not by filters of `clsact`.
    pub tcx: bool,
}

/// The host's ends, of `web` and of `db`.
pub const DEVICES: [&str; 2] = ["to-web", "to-db"];

impl Stage {
    /// With TCX, if this kernel has it.
    pub fn open() -> Option<Self> {
        Self::open_with(true)
    }

    /// With filters of `clsact`, whether or not this kernel has TCX.
    pub fn open_with_clsact() -> Option<Self> {
        Self::open_with(false)
    }

    fn open_with(tcx: bool) -> Option<Self> {
        let net = Routed::open()?;
        let tcx = tcx && wants_tcx();
        let more = [("tcx".to_owned(), json!(tcx))].into_iter().collect();
        let options = AgentOptions { fast_refusal: false, more, ..AgentOptions::default() };
        let mut agent = Agent::prepare(&net.lab, &policy(&net.lab, OPEN, ""), &options).unwrap();
        agent.live_in(&net.host);
        agent.restart();
        agent.wait("both devices are guarded", |agent| agent.status().devices == 2);
        let indices = DEVICES.map(|name| index(&net.host, name));
        Some(Self { agent, net, indices, tcx: tcx && bpf::has_tcx() })
    }

    /// Where an object of the agent is pinned.
    pub fn pin(&self, kind: &str, name: &str) -> PathBuf {
        self.agent.path(format!("bpf/eastwall/v{LAYOUT_VERSION}/{kind}/{name}"))
    }

    pub fn link(&self, name: &str) -> PathBuf {
        self.pin("links", name)
    }

    /// Opens what is pinned.
    pub fn opened(&self, pin: &PathBuf) -> OwnedFd {
        self.agent.inside(|| open_pin(pin)).unwrap().unwrap_or_else(|| panic!("nothing is pinned at {pin:?}"))
    }

    /// The names of the programs at one of [`DEVICES`].
    pub fn at_device(&self, device: usize, attach: u32) -> Vec<String> {
        if self.tcx {
            return self.net.host.run(|| bpf::names(At::Device(self.indices[device]), attach)).unwrap();
        }
        self.shown(device, attach).into_iter().map(|filter| filter.program).collect()
    }

    fn shown(&self, device: usize, attach: u32) -> Vec<Shown> {
        self.net.host.run(|| filters::shown(DEVICES[device], attach)).unwrap()
    }

    /// Runs tc(8) in the network of the host.
    pub fn tc(&self, words: &str) -> String {
        self.net.host.run(|| filters::tc(words)).unwrap()
    }

    /// Puts a program of somebody else at one of [`DEVICES`], before all others or behind them.
    pub fn intrude(&self, program: BorrowedFd<'_>, device: usize, attach: u32, first: bool) -> anyhow::Result<Foreign> {
        Foreign::at_device(&self.net.host, program, self.indices[device], (attach, first), self.tcx)
    }

    /// The names of the programs of the guarded cgroup.
    pub fn at_cgroup(&self, attach: u32) -> Vec<String> {
        let cgroup = File::open(self.net.lab.cgroup().dir()).unwrap();
        bpf::names(At::Cgroup(cgroup.as_fd()), attach).unwrap()
    }

    pub fn tampering(&self) -> Tampering {
        self.agent.status().tampering
    }

    /// Shows that the traffic of [`Self::under_flood`] passes when it is allowed.
    pub fn control(&self) {
        for family in FAMILIES {
            let (receiver, to) = self.net.db.udp(family);
            let (sender, from) = self.net.web.udp(family);
            self.net.web.actor.send_to(sender, to, b"by a socket").unwrap();
            assert_eq!(self.net.db.actor.receive(receiver, 1).unwrap()[0].data, b"by a socket");
            self.net.web.actor.call(&frame(&self.net, from, to, b"by a frame")).unwrap();
            assert_eq!(self.net.db.actor.receive(receiver, 1).unwrap()[0].data, b"by a frame");
            self.net.web.actor.close(sender);
            self.net.db.actor.close(receiver);
        }
    }

    /// Does `work` while `web` floods `db` with what is denied, by sockets and past them, and checks that nothing of it
    /// arrives.
    pub fn under_flood(&self, what: &str, work: impl FnOnce(&Self)) {
        self.control();
        self.agent.apply(&policy(&self.net.lab, CLOSED, ""));
        flood(&self.net, what, || work(self));
    }

    /// Does one act again and again, and waits each time until the kernel shows that it was put right and the agent has
    /// counted it. Gives how long that took, sorted.
    pub fn acts(
        &self,
        act: &str,
        count: usize,
        tamper: impl Fn(usize),
        is_right: impl Fn(usize) -> bool,
    ) -> Vec<Duration> {
        self.acts_of((act, 1), count, tamper, is_right)
    }

    /// As [`Self::acts`], where one does that to several objects.
    pub fn acts_of(
        &self,
        (act, objects): (&str, u64),
        count: usize,
        tamper: impl Fn(usize),
        is_right: impl Fn(usize) -> bool,
    ) -> Vec<Duration> {
        let before = self.tampering();
        let found = |t: &Tampering| t.found.get(act).copied().unwrap_or(0);
        let mut took = Vec::new();
        for n in 0..count {
            // At several moments between two looks.
            thread::sleep(Duration::from_millis(u64::try_from(n * 37 % 230).unwrap()));
            tamper(n);
            let start = Instant::now();
            while !is_right(n) {
                assert!(start.elapsed() < LONG, "{act}: act {n} is not put right\n{}", self.agent.log());
                thread::sleep(Duration::from_millis(1));
            }
            took.push(start.elapsed());
            let end = Instant::now() + LONG;
            let done = u64::try_from(n + 1).unwrap() * objects;
            loop {
                let now = self.tampering();
                if found(&now) - found(&before) == done && now.repaired - before.repaired >= done {
                    break;
                }
                assert!(found(&now) - found(&before) <= done, "{act}: found more than was done: {now:#?}");
                assert!(Instant::now() < end, "{act}: act {n} is not counted: {now:#?}\n{}", self.agent.log());
                thread::sleep(Duration::from_millis(5));
            }
        }
        took.sort();
        took
    }
}

/// A datagram of `web` past every hook of sockets.
fn frame(net: &Routed, from: SocketAddr, to: SocketAddr, data: &[u8]) -> Command {
    let frame = framed(net.ethernet(), &ip_udp(from, to, data));
    Command::SendFrame { device: "web0".to_owned(), frame, bypass: true }
}

/// Does `work` while `web` floods `db`, by sockets and past them, and checks that nothing arrives: neither at a sniffer in
/// the namespace of `db`, nor in a socket of it.
pub fn flood(net: &Routed, what: &str, work: impl FnOnce()) {
    let denied = magic();
    let receivers = FAMILIES.map(|family| net.db.udp(family));
    let senders = FAMILIES.map(|family| net.web.udp(family));
    let floods: Vec<_> = receivers
        .iter()
        .zip(&senders)
        .map(|((_, to), (sender, from))| (*sender, vec![(*to, denied.clone()); 8], frame(net, *from, *to, &denied)))
        .collect();
    let sent = AtomicU64::new(0);
    let flood = || {
        for (sender, burst, frame) in &floods {
            // Refused, or dropped later.
            let _ = net.web.actor.send_many(*sender, burst.clone());
            net.web.actor.call(frame).unwrap();
            sent.fetch_add(9, Ordering::Relaxed);
        }
        thread::sleep(Duration::from_micros(200));
    };
    let mut witness = Witness::new(&net.db.net, &denied);
    witness.during(&[&flood], work);
    for (receiver, _) in receivers {
        let received = net.db.actor.receive_for(receiver, 1, BRIEF);
        assert_eq!(received, Ok(vec![]), "{what}: a socket got a payload");
    }
    assert_eq!(witness.arrived(), 0, "{what}: a sniffer in the receiver's namespace saw a payload");
    println!("{what}: {} denied payloads sent, 0 arrived", sent.into_inner());
}

/// Prints the figures of acts, and checks the promise.
pub fn judge(what: &str, took: &[Duration]) {
    let percentile = |p: usize| took[(took.len() * p).div_ceil(100).max(1) - 1];
    println!(
        "{} times {what}: put right after {:?} (p50), {:?} (p99), {:?} (max)",
        took.len(),
        percentile(50),
        percentile(99),
        took[took.len() - 1]
    );
    assert!(percentile(99) <= repair_max(), "{what}: {took:?}");
}

pub fn index(netns: &NetNs, device: &str) -> u32 {
    netns.ip(&format!("-o link show dev {device}")).split(':').next().unwrap().parse().unwrap()
}

/// Says whether an event is about an act of tampering with an object.
pub fn is_tampering(event: &Value, act: &str, object: &str) -> bool {
    let rest = &event["unmapped"]["eastwall"];
    event["metadata"]["event_code"] == json!("tamper") && rest["act"] == json!(act) && rest["object"] == json!(object)
}

pub fn reported(agent: &Agent, act: &str, object: &str) -> Vec<Value> {
    agent.events().into_iter().filter(|event| is_tampering(event, act, object)).collect()
}

/// Programs at devices: their names, at which device, and where.
pub const AT_DEVICES: [(&str, usize, u32); 3] =
    [(program::TC_FROM, 0, TCX_INGRESS), (program::TC_TO, 1, TCX_EGRESS), (program::TC_TO, 0, TCX_EGRESS)];
/// Programs of the guarded cgroup, and where.
pub const AT_CGROUP: [(&str, u32); 3] =
    [(program::EGRESS, CGROUP_EGRESS), (program::INGRESS, CGROUP_INGRESS), (program::SOCK_CREATE, CGROUP_SOCK_CREATE)];

impl Stage {
    /// Takes our program off a device.
    pub fn detach_at_device(&self, n: usize) {
        if self.tcx {
            return bpf::detach(self.link_at_device(n).as_fd()).unwrap();
        }
        let (name, device, attach) = AT_DEVICES[n % AT_DEVICES.len()];
        let ours = self.shown(device, attach).into_iter().find(|filter| filter.program == name).unwrap();
        let (device, side) = (DEVICES[device], filters::side(attach));
        self.tc(&format!("filter del dev {device} {side} pref 1 handle {:#x} bpf", ours.handle));
    }

    /// Puts another program in the place of ours at a device.
    pub fn replace_at_device(&self, n: usize, program: BorrowedFd<'_>) {
        if self.tcx {
            return bpf::replace(self.link_at_device(n).as_fd(), program).unwrap();
        }
        let (name, device, attach) = AT_DEVICES[n % AT_DEVICES.len()];
        let ours = self.shown(device, attach).into_iter().find(|filter| filter.program == name).unwrap();
        let replace = || filters::replace(program, self.indices[device], attach, ours.handle, name);
        self.net.host.run(replace).unwrap();
    }

    /// A link at a device, opened by its pin.
    pub fn link_at_device(&self, n: usize) -> OwnedFd {
        let (name, device, _) = AT_DEVICES[n % AT_DEVICES.len()];
        self.opened(&self.link(&format!("{name}_{}", self.indices[device])))
    }

    /// Says whether ours is the first program there.
    pub fn is_first(&self, n: usize) -> bool {
        let (name, device, attach) = AT_DEVICES[n % AT_DEVICES.len()];
        self.at_device(device, attach).first().is_some_and(|first| first == name)
    }

    pub fn link_at_cgroup(&self, n: usize) -> OwnedFd {
        self.opened(&self.link(AT_CGROUP[n % AT_CGROUP.len()].0))
    }

    pub fn is_at_cgroup(&self, n: usize) -> bool {
        let (name, attach) = AT_CGROUP[n % AT_CGROUP.len()];
        self.at_cgroup(attach).iter().any(|found| found == name)
    }

    /// Runs the command line in the network of the host.
    pub fn cli(&self, words: &[&str]) -> Output {
        let socket = self.agent.control_socket();
        let run = || process::Command::new(self.agent.binary()).args(words).arg("--socket").arg(&socket).output();
        self.net.host.run(run).unwrap()
    }

    pub fn is_well(&self) {
        assert_eq!(self.agent.status().problems, Vec::<String>::new(), "{}", self.agent.log());
    }
}
