//! Places, actors and witnesses for tests with real sockets.
//!
//! ```text
//! Lab ── Cgroup "/eastwall-lab-…"            everything is attached here, never at the real root
//!         ├─ Cgroup "web" ── Actor ─┐        an actor is a process in one cgroup and one namespace
//!         └─ Cgroup "db"  ── Actor ─┤
//! NetNs ──────────────────────────────       joined by veth pairs
//! Witness                                    counts packets with magic bytes, with no part of eastwall
//! Guard                                      the kernel programs alone, guarding the lab's cgroup
//! Scene                                      three workloads under a Guard, and policy in a line
//! Routed                                     two workloads behind devices of a host
//! Wall                                       the same under a Guard
//! TwoHosts                                   two hosts that route to each other, a workload behind each
//! Foreign                                    kernel programs of somebody else, in the way of ours
//! Tun                                        a device whose other end is the test
//! Agent                                      the agent under test, guarding the lab's cgroup
//! ```
//!
//! - Everything cleans up when it is dropped; what a killed test run left behind, the next one removes.
//! - The lab panics when the lab itself is broken. What an operation of the test gives, good or bad, is
//!   a value.

mod actor;
mod agent;
mod cgroup;
mod denials;
pub(crate) mod foreign;
mod guard;
mod namespace;
mod netns;
pub(crate) mod packet;
mod require;
mod routed;
mod scene;
mod spawn;
pub(crate) mod transmit;
mod tun;
mod wall;
pub(crate) mod wire;
mod witness;

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

pub use actor::{Actor, Socket};
pub use agent::{Agent, AgentOptions};
use anyhow::Context as _;
pub use cgroup::Cgroup;
pub use denials::Denials;
pub use foreign::Foreign;
pub use guard::{Guard, GuardOptions};
pub use namespace::Namespace;
pub use netns::{NetNs, VethEnd};
pub use require::{Need, require_or_skip};
pub(crate) use routed::hardware_address;
pub use routed::{HostOf, Routed, TwoHosts, join};
pub use rustix::io::Errno;
pub use scene::{Party, Place, Scene, everywhere};
pub use spawn::{Exit, Process, Program};
pub use transmit::Transmit;
pub use tun::Tun;
pub use wall::{Layers, VXLAN_PORT, Wall};
pub use wire::{Command, Family, Kind, Message, Reply, UringOperation};
pub use witness::Witness;

/// The agent with kernel programs that have a log, as `cargo xtask test` names it.
pub const WITH_KERNEL_LOG: &str = "eastwall-kernel-log";

/// A laboratory of one test: a cgroup of its own, and the actor to put into places.
#[derive(Debug)]
pub struct Lab {
    cgroup: Cgroup,
    labd: PathBuf,
}

impl Lab {
    /// Opens a lab, or says why this machine cannot have one and returns None.
    ///
    /// # Panics
    ///
    /// If something is missing and `EASTWALL_REQUIRE_ALL=1`.
    #[must_use]
    pub fn open(needs: &[Need]) -> Option<Self> {
        require_or_skip(&[&[Need::Root, Need::Cgroup2, Need::CloneIntoCgroup][..], needs].concat())?;
        let lab = Cgroup::of_lab().and_then(|cgroup| Ok(Self { cgroup, labd: binary("labd")? }));
        Some(lab.expect("open a lab"))
    }

    /// The cgroup around everything of this lab: the scope of an agent.
    #[must_use]
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Starts an actor.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn actor(&self, cgroup: &Cgroup, netns: &NetNs) -> Actor {
        Actor::start(&Program::new(&self.labd), cgroup, netns).expect("start an actor")
    }

    /// Starts an actor with a number that no process has.
    ///
    /// # Panics
    ///
    /// If it does not start.
    #[must_use]
    pub fn actor_numbered(&self, cgroup: &Cgroup, netns: &NetNs, pid: i32) -> Actor {
        Actor::start(&Program::new(&self.labd).numbered(pid), cgroup, netns).expect("start an actor with a number")
    }

    /// Returns an actor that does one thing, at once, and exits with the errno; 0 is success.
    ///
    /// # Panics
    ///
    /// If `command` cannot be written down, which no command is.
    #[must_use]
    pub fn once(&self, command: &Command) -> Program {
        let command = serde_json::to_string(command).expect("write a command down");
        Program::new(&self.labd).arg("once").arg(command)
    }
}

/// Returns a bound on time as it is on this machine: `EASTWALL_SLOW` times as long where that is set, because the machine
/// is emulated. What is checked stays the same.
///
/// # Panics
///
/// If `EASTWALL_SLOW` is no number.
#[must_use]
pub fn patience(bound: Duration) -> Duration {
    bound * slowness()
}

/// Says how many times slower this machine is than a usual one: `EASTWALL_SLOW`.
///
/// # Panics
///
/// If `EASTWALL_SLOW` is no number.
#[must_use]
pub fn slowness() -> u32 {
    std::env::var("EASTWALL_SLOW").map_or(1, |times| times.parse().expect("EASTWALL_SLOW is a number"))
}

/// Says whether devices are guarded by TCX where the kernel has it; with `EASTWALL_TCX=0` they are not, as on older kernels.
#[must_use]
pub fn wants_tcx() -> bool {
    std::env::var_os("EASTWALL_TCX").is_none_or(|value| value != "0")
}

/// Returns bytes that no other packet on this machine carries.
#[must_use]
pub fn magic() -> Vec<u8> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    let now = std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos());
    format!("<eastwall lab {} {n} {now:x}>", std::process::id()).into_bytes()
}

/// Finds a binary of this workspace: beside the running program, or where `EASTWALL_BIN_DIR` points.
fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let dir = match std::env::var_os("EASTWALL_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => {
            let ours = std::env::current_exe().context("find the running program")?;
            let beside = ours.parent().context("find the target directory")?;
            // Tests are in `deps`, binaries one directory above.
            let above = beside.ends_with("deps").then(|| beside.parent()).flatten();
            above.unwrap_or(beside).to_owned()
        }
    };
    let path = dir.join(name);
    anyhow::ensure!(path.exists(), "{} is not there; build it, or set EASTWALL_BIN_DIR", path.display());
    Ok(path)
}
