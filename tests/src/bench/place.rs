//! The place of a measurement: a lab with a caller and a callee, and a kernel side that guards it.

use std::{
    fs,
    net::Ipv4Addr,
    os::fd::AsFd as _,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use agent_common::{id::IdentityId, layout::names::program};
use anyhow::Context as _;
use eastwall::{
    datapath::{Capacity, Datapath, DatapathConfig, Device, Pins},
    policy::map_state::MapState,
};
use rustix::mount::{MountFlags, mount};
use tempfile::TempDir;

use super::{
    synthetic::{self, CALLEE, CALLER},
    worker::Ends,
};
use crate::{
    bpf::{At, Attach, Empty, attach_empty_to_sockets, attached},
    lab::{Cgroup, Lab, Namespace, NetNs, hardware_address, join},
};

/// What all measurements share.
#[derive(Debug)]
pub struct Places {
    /// The lab: nothing is attached anywhere else.
    pub lab: Lab,
    /// The network of all workers on the loopback, and the host's between two devices.
    pub netns: NetNs,
    dir: TempDir,
}

/// Runs `work` where a private bpffs and the lab's network are.
pub fn inside<T: Send>(work: impl FnOnce(&Places) -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let lab = Lab::open(&[]).context("this machine cannot have a lab")?;
    let dir = TempDir::with_prefix("eastwall-bench-")?;
    let bpf = dir.path().join("bpf");
    fs::create_dir(&bpf)?;
    let mounts = Namespace::mount(|| {
        mount("bpf", &bpf, "bpf", MountFlags::empty(), Some(c"mode=700")).context("mount a bpffs")
    })?;
    let places = Places { lab, netns: NetNs::new(), dir };
    // A thread that is in both: packets of test runs are in the network of the thread.
    mounts.run(|| places.netns.run(|| work(&places)))
}

impl Places {
    /// Where a kernel side is kept that nothing else uses.
    pub fn config(&self, cgroup: &Cgroup) -> DatapathConfig {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        DatapathConfig {
            cgroup: cgroup.dir().to_owned(),
            pins: self.dir.path().join("bpf").join(&name),
            run: self.dir.path().join(name),
            fast_refusal: true,
            devices: true,
            host: true,
            tcx: true,
            kernel_log: false,
            capacity: Capacity { flows: 1 << 20, prefixes: 1 << 17, ..Capacity::default() },
        }
    }
}

/// A client and a server, each behind a device of the host, which routes between them.
#[derive(Debug)]
pub struct Wires {
    nets: [NetNs; 2],
    /// The host's end of each.
    pub devices: [Device; 2],
    ethernet: ([u8; 6], [u8; 6]),
}

impl Wires {
    /// The addresses of the client and of the server.
    pub const ADDRS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 9, 0, 1), Ipv4Addr::new(10, 9, 1, 1)];

    /// Makes them, with the network of `places` for the host's.
    pub fn join(places: &Places) -> anyhow::Result<Self> {
        let (host, nets) = (&places.netns, [NetNs::new(), NetNs::new()]);
        join(host, ("to-client", ["10.9.0.254/24", "fd09::ff/64"]), &nets[0], ("eth0", ["10.9.0.1/24", "fd09::1/64"]));
        join(
            host,
            ("to-server", ["10.9.1.254/24", "fd09:1::ff/64"]),
            &nets[1],
            ("eth0", ["10.9.1.1/24", "fd09:1::1/64"]),
        );
        host.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).context("forward packets")?;
        // As over loopback: else a client waits a minute for each port that it has used, and nothing else is measured.
        nets[0].run(|| fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")).context("use ports again")?;
        let ethernet = (hardware_address(&nets[0], "eth0"), hardware_address(host, "to-client"));
        let devices = [0, 1].map(|end: usize| host.device(["to-client", "to-server"][end], &nets[end], "eth0"));
        Ok(Self { nets, devices, ethernet })
    }

    /// The hardware addresses of the client and of its router.
    pub const fn ethernet(&self) -> ([u8; 6], [u8; 6]) {
        self.ethernet
    }
}

/// A caller and a callee, guarded with a policy of some size. Dropping it detaches everything.
pub struct Place<'a> {
    /// The kernel side. Loaded; attached by [`Place::attach`].
    pub datapath: Datapath,
    scope: Cgroup,
    client: Cgroup,
    server: Cgroup,
    netns: &'a NetNs,
    wires: Option<&'a Wires>,
    pins: PathBuf,
}

/// How long the kernel may take to take programs off. It is waited for, so this is no delay.
const DETACH_MAX: Duration = Duration::from_secs(10);

impl<'a> Place<'a> {
    /// Makes it, with this many edges loaded and in force. With `wires` both ends are behind devices, which are
    /// guarded as well; else they share a loopback.
    pub fn new(places: &'a Places, edges: usize, wires: Option<&'a Wires>) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bench-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let scope = places.lab.cgroup().child(&name);
        let (client, server) = (scope.child("client"), scope.child("server"));
        let config = DatapathConfig { devices: wires.is_some(), ..places.config(&scope) };
        let pins = config.pins.clone();
        fs::create_dir(&config.run)?;
        let datapath = Datapath::load(config)?;
        let mut place = Self { datapath, scope, client, server, netns: &places.netns, wires, pins };
        place.apply(edges, &[])?;
        Ok(place)
    }

    /// Puts a policy of another size in force, in which the caller may also call each of `more`.
    pub fn apply(&mut self, edges: usize, more: &[IdentityId]) -> anyhow::Result<()> {
        self.put_in_force(&synthetic::compiled(edges, more))
    }

    /// Puts a compiled policy in force.
    pub fn put_in_force(&mut self, state: &MapState) -> anyhow::Result<()> {
        let ids = synthetic::identities([(self.client.id(), CALLER), (self.server.id(), CALLEE)]);
        let prepared = self.datapath.prepare(state, synthetic::settings(), &ids)?;
        self.datapath.flip(&prepared)?;
        self.datapath.settle()?;
        Ok(())
    }

    /// Where workers run.
    pub fn ends(&self) -> Ends<'_> {
        let (client, server) = (&self.client, &self.server);
        match self.wires {
            None => Ends::on_loopback(client, server, self.netns),
            Some(wires) => Ends { client, server, nets: wires.nets.each_ref(), addrs: Wires::ADDRS },
        }
    }

    /// The cgroup of the callee.
    pub fn server(&self) -> u64 {
        self.server.id()
    }

    /// Whether its ends are behind devices.
    pub const fn has_devices(&self) -> bool {
        self.wires.is_some()
    }

    /// Attaches every program.
    pub fn attach(&mut self) -> anyhow::Result<()> {
        self.datapath.attach()?;
        self.guard_devices([self.client.id(), self.server.id()])
    }

    /// Attaches those of devices, each of a cgroup's workload.
    pub fn guard_devices(&mut self, owners: [u64; 2]) -> anyhow::Result<()> {
        let Some(wires) = self.wires else { return Ok(()) };
        for ((device, addr), cgroup) in wires.devices.iter().zip(Wires::ADDRS).zip(owners) {
            self.datapath.guard_device(device, cgroup)?;
            self.datapath.own_address(&addr.to_ipv6_mapped().octets(), cgroup)?;
        }
        Ok(())
    }

    /// Attaches empty packet programs, until what is returned is dropped.
    pub fn attach_empty(&self) -> anyhow::Result<Vec<Empty>> {
        self.points().map(|(point, attach)| Empty::attach(point, attach)).collect()
    }

    /// Attaches empty programs at all hooks where ours are, until what is returned is dropped.
    pub fn attach_empty_everywhere(&self) -> anyhow::Result<Vec<Empty>> {
        let mut programs = self.attach_empty()?;
        programs.extend(attach_empty_to_sockets(self.scope.as_fd())?);
        Ok(programs)
    }

    /// Where packet programs are attached.
    fn points(&self) -> impl Iterator<Item = (At<'_>, Attach)> {
        let devices = self.wires.into_iter().flat_map(|wires| wires.devices).map(|device| At::Device(device.index));
        let points = std::iter::once(At::Cgroup(self.scope.as_fd())).chain(devices);
        points.flat_map(|point| [(point, Attach::Egress), (point, Attach::Ingress)])
    }

    /// Takes every program off and waits until no packet program is left.
    pub fn detach(&mut self) -> anyhow::Result<()> {
        self.take_off()?;
        let end = Instant::now() + DETACH_MAX;
        // A link is taken off by a worker of the kernel after its last user is gone.
        for (point, attach) in self.points() {
            while attached(point, attach)? > 0 {
                anyhow::ensure!(Instant::now() < end, "the programs do not come off");
                thread::sleep(Duration::from_micros(200));
            }
        }
        Ok(())
    }

    fn take_off(&mut self) -> anyhow::Result<()> {
        self.datapath.detach(&program::ALL)?;
        for device in self.wires.into_iter().flat_map(|wires| wires.devices) {
            self.datapath.release_device(device.index)?;
        }
        Ok(())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // The pins are on a bpffs of this process alone: what stays is gone with it.
        let removed = self.take_off().and_then(|()| Ok(Pins::remove_all(&self.pins)?));
        if let Err(error) = removed {
            eprintln!("the kernel side of {} is left behind: {error:#}", self.scope.path());
        }
    }
}
