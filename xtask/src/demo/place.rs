//! Where the demo keeps its things, and how all of them go away again.

use std::{
    fs::{self, DirBuilder},
    io::{self, Write as _},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Signal, kill_process},
};

use super::{cgroup, hosts};
use crate::setup::machine;

/// The cgroup of the demo, from the root of the hierarchy; each host has one below it.
const CGROUP: &str = "/eastwall-demo";

/// The cgroups of the shop, services first.
const SHOP: [&str; 6] = ["web", "cart", "orders-db", "clients/shopper", "clients/web-app", "clients/debug"];

/// A host: what its agent guards, and where that keeps its things.
#[derive(Clone)]
pub struct Host {
    /// Its name.
    pub name: &'static str,
    /// Everything that is a file.
    pub dir: PathBuf,
    /// The cgroup that is guarded, from the root of the hierarchy.
    pub scope: String,
    /// Pins of the agent, on bpffs.
    pub pins: PathBuf,
    /// Its network namespace, by name; none for that of this machine.
    pub network: Option<&'static str>,
}

impl Host {
    /// The control socket of the agent.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("run/agent.sock")
    }

    /// The settings of the agent.
    pub fn config(&self) -> PathBuf {
        self.dir.join("agent.yaml")
    }

    /// What the agent says.
    pub fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// The events file.
    pub fn events(&self) -> PathBuf {
        self.dir.join("events/events.ndjson")
    }

    /// The file with the workloads of other hosts.
    pub fn peers(&self) -> PathBuf {
        self.dir.join("peers.yaml")
    }
}

/// Directories and files of the demo.
pub struct Place {
    /// Everything that is a file; gone after a reboot, as the processes are.
    pub dir: PathBuf,
    /// The cgroup of the demo.
    cgroup: PathBuf,
    /// Pins of the agents, on bpffs.
    pins: PathBuf,
    /// The bpffs of the demo, where the host has none: systemd mounts one, others may not.
    own_bpffs: PathBuf,
}

impl Place {
    /// Finds the mounts.
    ///
    /// # Errors
    ///
    /// cgroup2 is not mounted.
    pub fn find() -> Result<Self> {
        let dir = PathBuf::from("/run/eastwall-demo");
        let own_bpffs = dir.join("bpf");
        let bpffs = machine::mounts("bpf")?.into_iter().next().map_or_else(|| own_bpffs.clone(), PathBuf::from);
        let cgroup = cgroup::mount()?.join(CGROUP.trim_start_matches('/'));
        Ok(Self { dir, cgroup, pins: bpffs.join("eastwall-demo"), own_bpffs })
    }

    /// Makes the directories and the cgroups.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn make(&self) -> Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("make {}", self.dir.display()))?;
        self.record("demo", std::process::id())?;
        if self.pins.starts_with(&self.own_bpffs) && !is_mounted(&self.own_bpffs)? {
            fs::create_dir_all(&self.own_bpffs).with_context(|| format!("make {}", self.own_bpffs.display()))?;
            mount("bpf", &self.own_bpffs, "bpf", MountFlags::empty(), Some(c"mode=700")).context("mount a bpffs")?;
        }
        // The agent makes its own directory there, but none above it.
        DirBuilder::new().recursive(true).mode(0o700).create(&self.pins).context("make a directory for pins")?;
        SHOP.iter().try_for_each(|name| self.make_cgroup(&format!("shop/{name}")).map(drop))
    }

    /// Makes a cgroup below that of the demo, and returns its directory.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn make_cgroup(&self, name: &str) -> Result<PathBuf> {
        let dir = self.cgroup.join(name);
        fs::create_dir_all(&dir).with_context(|| format!("make the cgroup {CGROUP}/{name}"))?;
        Ok(dir)
    }

    /// The cgroup of a service or a client of the shop.
    pub fn cgroup_of(&self, name: &str) -> PathBuf {
        let shop = self.cgroup.join("shop");
        let service = shop.join(name);
        if service.exists() { service } else { shop.join("clients").join(name) }
    }

    /// This machine, with the shop.
    pub fn shop(&self) -> Host {
        let scope = format!("{CGROUP}/shop");
        Host { name: "shop", dir: self.dir.clone(), scope, pins: self.pins.join("shop"), network: None }
    }

    /// A host of the second act, in a network of its own.
    pub fn host(&self, name: &'static str, network: &'static str) -> Host {
        let (dir, scope) = (self.dir.join(name), format!("{CGROUP}/{name}"));
        Host { name, dir, scope, pins: self.pins.join(name), network: Some(network) }
    }

    /// All of them.
    pub fn hosts(&self) -> [Host; 3] {
        let [near, far] = hosts::NAMES.map(|(name, network)| self.host(name, network));
        [self.shop(), near, far]
    }

    /// Writes a process down, so that a later run can end it and no other.
    ///
    /// # Errors
    ///
    /// It is gone, or the file cannot be written.
    pub fn record(&self, name: &str, pid: u32) -> Result<()> {
        let start = start_time(pid).with_context(|| format!("{name} has ended at once"))?;
        let mut file =
            fs::File::options().create(true).append(true).open(self.dir.join("pids")).context("write pids")?;
        writeln!(file, "{pid} {start} {name}").context("write pids")
    }

    /// Refuses to disturb a demo that is being told at this moment.
    ///
    /// # Errors
    ///
    /// There is one.
    pub fn refuse_if_running(&self) -> Result<()> {
        match self.recorded()?.into_iter().find(|(_, name)| name == "demo") {
            Some((pid, _)) => bail!("another demo is running, process {pid}: wait for its end"),
            None => Ok(()),
        }
    }

    /// Removes every trace of a demo; says whether there was one.
    ///
    /// # Errors
    ///
    /// What could not be removed.
    pub fn clean(&self) -> Result<bool> {
        let found = [&self.dir, &self.cgroup, &self.pins].iter().any(|path| path.exists());
        // The agent first: it would attach again what is taken off.
        for (pid, name) in self.recorded()? {
            if pid != std::process::id() {
                end(pid).with_context(|| format!("end {name}, process {pid}"))?;
            }
        }
        cgroup::remove(&self.cgroup)?;
        hosts::remove_networks()?;
        for dir in [&self.pins, &self.dir] {
            if dir == &self.dir && is_mounted(&self.own_bpffs)? {
                unmount(&self.own_bpffs, UnmountFlags::DETACH).context("unmount the bpffs of the demo")?;
            }
            match fs::remove_dir_all(dir) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(e).with_context(|| format!("remove {}", dir.display()));
                }
                _ => {}
            }
        }
        Ok(found)
    }

    /// Returns the recorded processes that still run.
    fn recorded(&self) -> Result<Vec<(u32, String)>> {
        let text = match fs::read_to_string(self.dir.join("pids")) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e).context("read which processes the demo started"),
        };
        let running = text.lines().filter_map(|line| {
            let mut words = line.splitn(3, ' ');
            let (pid, start, name) = (words.next()?.parse().ok()?, words.next()?, words.next()?);
            // A number is given out again; the moment of the start tells two processes apart.
            (start_time(pid)? == start).then(|| (pid, name.to_owned()))
        });
        Ok(running.collect())
    }
}

fn is_mounted(bpffs: &Path) -> Result<bool> {
    Ok(machine::mounts("bpf")?.iter().any(|mounted| Path::new(mounted) == bpffs))
}

/// Returns when a process started, in ticks since boot: field 22 of proc_pid_stat(5). None if it ended.
fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in brackets, may have anything in it.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?;
    (state != "Z").then(|| fields.nth(18).map(str::to_owned)).flatten()
}

fn end(pid: u32) -> Result<()> {
    let Some(id) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    // It may have ended by itself.
    let _ = kill_process(id, Signal::KILL);
    let patience = Instant::now() + Duration::from_secs(5);
    while start_time(pid).is_some() {
        if Instant::now() > patience {
            bail!("it does not end");
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}
