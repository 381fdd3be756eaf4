//! Two hosts with a router's link between them, as network namespaces; each workload is behind a device of its host.
//!
//! ```text
//! web-app ═ to-web-app ─┐
//!                       near ── up0 ═ up0 ── far ── to-cart ═ cart
//! debug   ═ to-debug ───┘
//! ```

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result};

use super::{
    agent::Agent,
    cgroup,
    events::Events,
    place::Place,
    steps::{number, until},
};
use crate::{run::run, workspace::Workspace};

/// The hosts, and the names of their network namespaces.
pub const NAMES: [(&str, &str); 2] = [("near", "eastwall-demo-near"), ("far", "eastwall-demo-far")];

/// A workload with a network of its own.
#[derive(Clone, Copy)]
pub struct Workload {
    /// Its name, and that of its cgroup.
    pub name: &'static str,
    /// Its network namespace.
    pub network: &'static str,
    /// Its host: an index of [`NAMES`].
    host: usize,
    /// Its IPv4 address, and its IPv6 address.
    pub addresses: [&'static str; 2],
    /// Those of the host's end of its device.
    routers: [&'static str; 2],
}

/// A caller that policy allows.
pub const WEB_APP: Workload = Workload {
    name: "web-app",
    network: "eastwall-demo-web-app",
    host: 0,
    addresses: ["10.99.1.2", "fd99:1::2"],
    routers: ["10.99.1.1", "fd99:1::1"],
};
/// One that it does not.
pub const DEBUG: Workload = Workload {
    name: "debug",
    network: "eastwall-demo-debug",
    host: 0,
    addresses: ["10.99.2.2", "fd99:2::2"],
    routers: ["10.99.2.1", "fd99:2::1"],
};
/// The service, on the other host.
pub const CART: Workload = Workload {
    name: "cart",
    network: "eastwall-demo-cart",
    host: 1,
    addresses: ["10.99.3.2", "fd99:3::2"],
    routers: ["10.99.3.1", "fd99:3::1"],
};

const WORKLOADS: [Workload; 3] = [WEB_APP, DEBUG, CART];
const UPLINKS: [[&str; 2]; 2] = [["10.99.0.1", "fd99::1"], ["10.99.0.2", "fd99::2"]];
const PREFIXES: [&str; 2] = ["24", "64"];

/// The two hosts with their agents, and redis on the far one.
pub struct Hosts {
    /// The agent of `web-app` and `debug`.
    pub near: Agent,
    /// The agent of `cart`.
    pub far: Agent,
    /// What the far one reports.
    pub far_events: Events,
    place: [PathBuf; 3],
}

impl Hosts {
    /// Makes the networks, starts an agent on each host and then redis, and returns when all of them answer.
    ///
    /// # Errors
    ///
    /// One does not; the system refuses something.
    pub fn open(workspace: &Workspace, place: &Place) -> Result<Self> {
        make_networks()?;
        let policy = workspace.root.join("policies/two-hosts/hosts.yaml");
        let cgroups = WORKLOADS.map(|w| place.make_cgroup(&format!("{}/{}", NAMES[w.host].0, w.name)));
        let [web_app, debug, cart] = cgroups;
        let cgroups = [web_app?, debug?, cart?];
        let start = |index: usize| {
            let host = place.host(NAMES[index].0, NAMES[index].1);
            let policies = host.dir.join("policy.d");
            fs::create_dir_all(&policies).context("make a policy directory")?;
            fs::copy(&policy, policies.join("hosts.yaml")).with_context(|| format!("copy {}", policy.display()))?;
            fs::write(host.peers(), peers_of(index)).context("write peers.yaml")?;
            Agent::start(workspace, place, host)
        };
        let far = place.host(NAMES[1].0, NAMES[1].1);
        let hosts = Self { near: start(0)?, far: start(1)?, far_events: Events::of(&far), place: cgroups };
        // A container has a process that stays. By it the agent learns whose the network behind a device is.
        for workload in [WEB_APP, DEBUG] {
            hosts.start(place, workload, "sleep", &["infinity"])?;
        }
        let dir = far.dir.display().to_string();
        let redis =
            ["--bind", "*", "-::*", "--protected-mode", "no", "--save", "", "--appendonly", "no", "--dir", &dir];
        hosts.start(place, CART, "redis-server", &redis)?;
        until("redis answers on the far host", || {
            let mut redis = hosts.command(CART, CART.network, "redis-cli");
            let status = redis.args(["-h", CART.addresses[0], "set", "cart:7", "2 apples"]).stdout(Stdio::null());
            Ok(status.stderr(Stdio::null()).status()?.success())
        })?;
        for (agent, devices, peers) in [(&hosts.near, 2, 2), (&hosts.far, 1, 4)] {
            until("the devices are guarded", || {
                let status = agent.status()?;
                Ok(number(&status, "devices")? == devices && number(&status, "peers")? == peers)
            })?;
        }
        Ok(hosts)
    }

    /// Returns a program in the cgroup of a workload and in a network, which need not be its own.
    pub fn command(&self, workload: Workload, network: &str, program: &str) -> Command {
        let index = WORKLOADS.iter().position(|w| w.name == workload.name).unwrap_or_default();
        let mut command = cgroup::command(&self.place[index], "nsenter");
        command.arg(net_option(network)).arg(program);
        command
    }

    /// Returns the call that `from` makes to `cart`, by one of its addresses, from the network `network`.
    pub fn call(&self, from: Workload, network: &str, address: &str) -> Command {
        let mut command = self.command(from, network, "timeout");
        command.args(["2", "redis-cli", "-h", address, "get", "cart:7"]);
        command
    }

    /// Starts a program of a workload, which stays.
    fn start(&self, place: &Place, workload: Workload, program: &str, arguments: &[&str]) -> Result<()> {
        let name = format!("{}-{}", NAMES[workload.host].0, workload.name);
        let log = File::create(place.dir.join(format!("{name}.log"))).context("make a log")?;
        let mut command = self.command(workload, workload.network, program);
        command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().context("share a log")?).stderr(log);
        let child = command.spawn().with_context(|| format!("start {program} as {name}"))?;
        place.record(&name, child.id())
    }
}

/// Returns `program` so that it runs in a network namespace, if one is named.
pub fn in_network(network: Option<&str>, program: &str) -> Command {
    let Some(network) = network else { return Command::new(program) };
    let mut command = Command::new("nsenter");
    command.arg(net_option(network)).arg(program);
    command
}

/// Removes the network namespaces of the demo, and with them every device of theirs.
///
/// # Errors
///
/// `ip` refuses.
pub fn remove_networks() -> Result<()> {
    let networks = NAMES.iter().map(|(_, network)| *network).chain(WORKLOADS.iter().map(|w| w.network));
    for network in networks.filter(|network| path_of(network).exists()) {
        run(Command::new("ip").args(["netns", "delete", network]))?;
    }
    Ok(())
}

fn path_of(network: &str) -> PathBuf {
    Path::new("/run/netns").join(network)
}

/// Unlike `ip netns exec`, nsenter leaves the mounts as they are: the agent needs the cgroup hierarchy.
fn net_option(network: &str) -> String {
    format!("--net={}", path_of(network).display())
}

/// What a host is told: where the workloads of the other one are.
fn peers_of(host: usize) -> String {
    let mut text = "peers:\n".to_owned();
    for Workload { name, addresses: [v4, v6], .. } in WORKLOADS.iter().filter(|w| w.host != host) {
        text += &format!("  - {{ workload: {name}, addresses: [{v4}, \"{v6}\"] }}\n");
    }
    text
}

fn make_networks() -> Result<()> {
    for network in NAMES.iter().map(|(_, network)| *network).chain(WORKLOADS.iter().map(|w| w.network)) {
        run(Command::new("ip").args(["netns", "add", network]))?;
        ip(network, "link set lo up")?;
    }
    let [(_, near), (_, far)] = NAMES;
    ip(near, &format!("link add up0 type veth peer name up0 netns {far}"))?;
    for ((_, network), addresses) in NAMES.iter().zip(UPLINKS) {
        own(network, "up0", addresses)?;
        forward(network)?;
    }
    for workload in WORKLOADS {
        let (_, host) = NAMES[workload.host];
        let device = format!("to-{}", workload.name);
        ip(host, &format!("link add {device} type veth peer name eth0 netns {}", workload.network))?;
        own(host, &device, workload.routers)?;
        own(workload.network, "eth0", workload.addresses)?;
        for router in workload.routers {
            ip(workload.network, &format!("route add default via {router}"))?;
        }
        let (_, other) = NAMES[1 - workload.host];
        for (address, via) in workload.addresses.iter().zip(UPLINKS[workload.host]) {
            ip(other, &format!("route add {address} via {via}"))?;
        }
    }
    Ok(())
}

fn own(network: &str, device: &str, addresses: [&str; 2]) -> Result<()> {
    for (address, prefix) in addresses.iter().zip(PREFIXES) {
        // `nodad`: an IPv6 address can be used at once.
        let nodad = if address.contains(':') { " nodad" } else { "" };
        ip(network, &format!("address add {address}/{prefix} dev {device}{nodad}"))?;
    }
    ip(network, &format!("link set {device} up"))
}

fn forward(network: &str) -> Result<()> {
    let script = "echo 1 > /proc/sys/net/ipv4/ip_forward && echo 1 > /proc/sys/net/ipv6/conf/all/forwarding";
    // /proc/sys/net is that of the reader's network.
    run(in_network(Some(network), "sh").args(["-c", script]))
}

fn ip(network: &str, words: &str) -> Result<()> {
    run(Command::new("ip").args(["-n", network]).args(words.split(' ')))
}
