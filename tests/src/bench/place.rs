//! The place of a measurement: a lab with a caller and a callee, and a kernel side that guards it.

use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use agent_common::{id::IdentityId, layout::LAYOUT_VERSION};
use anyhow::Context as _;
use eastwall::datapath::{Capacity, Datapath, DatapathConfig, Pins};
use rustix::mount::{MountFlags, mount};
use tempfile::TempDir;

use super::{
    synthetic::{self, CALLEE, CALLER},
    worker::Ends,
};
use crate::{
    bpf::{Attach, Empty, attached},
    lab::{Cgroup, Lab, Namespace, NetNs},
};

/// What all measurements share.
#[derive(Debug)]
pub struct Places {
    /// The lab: nothing is attached anywhere else.
    pub lab: Lab,
    /// The network of all workers; its `lo` is up.
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
            devices: false,
            kernel_log: false,
            capacity: Capacity { flows: 1 << 20, ..Capacity::default() },
        }
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
    pins: PathBuf,
}

/// How long the kernel may take to take programs off. It is waited for, so this is no delay.
const DETACH_MAX: Duration = Duration::from_secs(10);

impl<'a> Place<'a> {
    /// Makes it, with this many edges loaded and in force.
    pub fn new(places: &'a Places, edges: usize) -> anyhow::Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("bench-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let scope = places.lab.cgroup().child(&name);
        let (client, server) = (scope.child("client"), scope.child("server"));
        let config = places.config(&scope);
        let pins = config.pins.clone();
        fs::create_dir(&config.run)?;
        let datapath = Datapath::load(config)?;
        let mut place = Self { datapath, scope, client, server, netns: &places.netns, pins };
        place.apply(edges, &[])?;
        Ok(place)
    }

    /// Puts a policy of another size in force, in which the caller may also call each of `more`.
    pub fn apply(&mut self, edges: usize, more: &[IdentityId]) -> anyhow::Result<()> {
        let state = synthetic::compiled(edges, more);
        let ids = synthetic::identities([(self.client.id(), CALLER), (self.server.id(), CALLEE)]);
        let prepared = self.datapath.prepare(&state, synthetic::settings(), &ids)?;
        self.datapath.flip(&prepared)?;
        self.datapath.settle()?;
        Ok(())
    }

    /// Where workers run.
    pub fn ends(&self) -> Ends<'_> {
        Ends { client: &self.client, server: &self.server, netns: self.netns }
    }

    /// Attaches every program.
    pub fn attach(&mut self) -> anyhow::Result<()> {
        Ok(self.datapath.attach()?)
    }

    /// Attaches empty packet programs, until what is returned is dropped.
    pub fn attach_empty(&self) -> anyhow::Result<[Empty; 2]> {
        Ok([Empty::attach(&self.scope, Attach::Egress)?, Empty::attach(&self.scope, Attach::Ingress)?])
    }

    /// Takes every program off and waits until the packet programs are gone.
    pub fn detach(&mut self) -> anyhow::Result<()> {
        let links = self.pins.join(format!("v{LAYOUT_VERSION}")).join("links");
        for link in fs::read_dir(&links).with_context(|| format!("list {}", links.display()))? {
            fs::remove_file(link?.path())?;
        }
        let end = Instant::now() + DETACH_MAX;
        // A link is taken off by a worker of the kernel after its last user is gone.
        while attached(&self.scope, Attach::Ingress)? + attached(&self.scope, Attach::Egress)? > 0 {
            anyhow::ensure!(Instant::now() < end, "the programs do not come off");
            thread::sleep(Duration::from_micros(200));
        }
        Ok(())
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // The pins are on a bpffs of this process alone: what stays is gone with it.
        let removed = self.detach().and_then(|()| Ok(Pins::remove_all(&self.pins)?));
        if let Err(error) = removed {
            eprintln!("the kernel side of {} is left behind: {error:#}", self.scope.path());
        }
    }
}
