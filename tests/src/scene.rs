//! The scene of most tests of the agent: two workloads, a stranger, one loopback, one agent.
//!
//! ```text
//! NetNs (lo) ─┬─ web    a declared workload
//!             ├─ db     a declared workload
//!             └─ other  a declared workload that no rule names, unless the test says so
//! ```

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::Output,
    thread,
    time::{Duration, Instant},
};

use eastwall::control::wire::{Applied, Status};
use serde_json::Value;

use crate::lab::{Actor, Agent, AgentOptions, Cgroup, Errno, Family, Kind, Lab, Need, NetNs, Socket, slowness};

/// Long enough for every answer that comes.
pub const LONG: Duration = Duration::from_secs(20);

/// Where nothing comes, this long is waited for it.
pub const BRIEF: Duration = Duration::from_millis(300);

/// How long the books may take to close: a window of repeats ends after ten seconds, and the next one of the same key
/// after twice as many, up to five minutes. A test on a busy machine lasts long enough for some of them.
const BOOKS_MAX: Duration = Duration::from_secs(330);

/// The port that the policy of a scene opens, if it opens one.
pub const PORT: u16 = 5432;

/// Loopback, of either family.
pub const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Two workloads and a third, and an agent that guards them.
#[derive(Debug)]
pub struct Scene {
    /// Declared first, so dropped first: nothing is enforced while the rest is taken down.
    pub agent: Agent,
    /// The caller of most tests.
    pub web: Actor,
    /// The callee of most tests.
    pub db: Actor,
    /// A workload that no rule names.
    pub other: Actor,
    /// Where all three are.
    pub net: NetNs,
    /// Of `web`, `db` and `other`.
    pub cgroups: [Cgroup; 3],
    /// The place itself.
    pub lab: Lab,
}

impl Scene {
    /// Opens a scene with an agent that enforces `rules`: the section `allow` of a policy, in YAML flow
    /// style. None if this machine cannot have one.
    #[must_use]
    pub fn open(rules: &str, options: &AgentOptions) -> Option<Self> {
        Self::open_by(|lab| policy(lab, rules, ""), options)
    }

    /// As [`Self::open`], with any policy.
    ///
    /// # Panics
    ///
    /// If the agent does not start.
    #[must_use]
    pub fn open_by(policy: impl FnOnce(&Lab) -> String, options: &AgentOptions) -> Option<Self> {
        let lab = Lab::open(&[Need::Ip, Need::Agent])?;
        let net = NetNs::new();
        let cgroups = ["web", "db", "other"].map(|name| lab.cgroup().child(name));
        let [web, db, other] = cgroups.each_ref().map(|cgroup| lab.actor(cgroup, &net));
        let agent = Agent::start(&lab, &policy(&lab), options);
        Some(Self { agent, web, db, other, net, cgroups, lab })
    }

    /// A policy like the one of this scene, with other rules and more of its `spec`.
    #[must_use]
    pub fn policy(&self, rules: &str, more: &str) -> String {
        policy(&self.lab, rules, more)
    }

    /// Replaces the rules.
    pub fn rules(&self, rules: &str) {
        self.agent.apply(&self.policy(rules, ""));
    }

    /// A TCP connection from `web` to `db` at [`PORT`], with the listener: both ends of it, and the
    /// listener.
    ///
    /// # Panics
    ///
    /// If the flow is not allowed.
    #[must_use]
    pub fn connection(&self, addr: IpAddr) -> Connection {
        let (listener, addr) = self.db.tcp_listen(SocketAddr::new(addr, PORT)).expect("listen");
        let caller = self.web.tcp_connect(addr, LONG).expect("an allowed connection");
        let callee = self.db.accept(listener).expect("accept an allowed connection");
        Connection { caller, callee, listener, addr }
    }

    /// Checks that an open connection carries payload both ways.
    ///
    /// # Panics
    ///
    /// If it does not.
    pub fn talk(&self, connection: &Connection) {
        self.web.send(connection.caller, b"ask").expect("send on a connection that is open");
        let asked = self.db.receive(connection.callee, 1).expect("receive on a connection that is open");
        assert_eq!(asked.first().map(|m| m.data.as_slice()), Some(&b"ask"[..]));
        self.db.send(connection.callee, b"answer").expect("answer on a connection that is open");
        let answered = self.web.receive(connection.caller, 1).expect("hear the answer");
        assert_eq!(answered.first().map(|m| m.data.as_slice()), Some(&b"answer"[..]));
    }

    /// Closes a connection and its listener.
    pub fn hang_up(&self, connection: Connection) {
        self.web.close(connection.caller);
        self.db.close(connection.callee);
        self.db.close(connection.listener);
    }
}

/// An open TCP connection of a [`Scene`].
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// The end of `web`.
    pub caller: Socket,
    /// The end of `db`.
    pub callee: Socket,
    /// Of `db`.
    pub listener: Socket,
    /// Its address.
    pub addr: SocketAddr,
}

/// A policy that declares `web`, `db` and `other` in enforce, with `rules` as its `allow`.
#[must_use]
pub fn policy(lab: &Lab, rules: &str, more: &str) -> String {
    let scope = lab.cgroup().path();
    let workload = |name: &str| format!("    - {{ name: {name}, select: {{ cgroup: {scope}/{name} }} }}\n");
    format!(
        "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: scene }}\nspec:\n  trustDomain: \
         lab.example\n  defaults: {{ mode: enforce }}\n{more}  workloads:\n{}  allow: {rules}\n",
        ["web", "db", "other"].map(workload).concat()
    )
}

/// A policy with a workload whose cgroups, `late-…`, come while the agent runs, and one rule for it.
#[must_use]
pub fn with_latecomers(lab: &Lab) -> String {
    let scope = lab.cgroup().path();
    let late = format!("  workloads:\n    - {{ name: late, select: {{ cgroup: {scope}/late-* }} }}\n");
    let text = policy(lab, "[{ from: web, to: db, ports: [udp/5432] }, { from: late, to: db, ports: [udp/5432] }]", "");
    text.replace("  workloads:\n", &late)
}

/// A policy that calls the cgroup `web` by the name `is`, and lets the name `allowed` reach `db` by UDP. Of
/// `alpha` and `beta`, the other name is nobody's. `other` may reach `db` by TCP always.
#[must_use]
pub fn renamed(lab: &Lab, is: &str, allowed: &str, port: u16) -> String {
    let scope = lab.cgroup().path();
    let workload =
        |(name, cgroup): (&str, &str)| format!("    - {{ name: {name}, select: {{ cgroup: {scope}/{cgroup} }} }}\n");
    let web = |name: &'static str| (name, if name == is { "web" } else { "nobody" });
    format!(
        "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: flip }}\nspec:\n  trustDomain: \
         lab.example\n  defaults: {{ mode: enforce }}\n  workloads:\n{}  allow:\n    - {{ from: {allowed}, to: db, \
         ports: [udp/{port}] }}\n    - {{ from: other, to: db, ports: [tcp/{port}] }}\n",
        [web("alpha"), web("beta"), ("db", "db"), ("other", "other")].map(workload).concat()
    )
}

/// Sends one datagram from a new socket; gives what sendto(2) said.
///
/// # Errors
///
/// Its errno.
pub fn datagram(from: &Actor, to: SocketAddr, data: &[u8]) -> Result<usize, Errno> {
    let socket = from.socket(Family::of(to), Kind::Datagram, 0)?;
    let sent = from.send_to(socket, to, data);
    from.close(socket);
    sent
}

impl Agent {
    /// What `eastwall status` says.
    ///
    /// # Panics
    ///
    /// If it says nothing.
    #[must_use]
    pub fn status(&self) -> Status {
        let output = self.cli(&["status", "-o", "json"]);
        serde_json::from_value(document(&output)).expect("the status has its fields")
    }

    /// Waits until every denial is told, and checks that each was told exactly once:
    /// denied = reported + suppressed + lost. Gives the status.
    ///
    /// # Panics
    ///
    /// If the books do not close.
    pub fn balance(&self) -> Status {
        let end = Instant::now() + BOOKS_MAX;
        loop {
            let status = self.status();
            if status.pending == 0 && status.denied == status.reported + status.suppressed + status.lost {
                return status;
            }
            assert!(Instant::now() < end, "the books do not close: {status:#?}\n{}", self.log());
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// One line of `eastwall map stats`.
    ///
    /// # Panics
    ///
    /// If there is none of that name.
    #[must_use]
    pub fn counter(&self, name: &str) -> u64 {
        let counters = document(&self.cli(&["map", "stats", "-o", "json"]));
        counters.get(name).and_then(Value::as_u64).unwrap_or_else(|| panic!("no counter {name}: {counters:#}"))
    }

    /// Runs a command that changes what is in force, and gives what the agent says it did.
    ///
    /// # Panics
    ///
    /// If the agent refuses.
    pub fn change(&self, words: &[&str]) -> Applied {
        let output = self.cli(&[words, &["-o", "json"]].concat());
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_value(document(&output)).expect("a change has its fields")
    }
}

/// The JSON document that a command printed.
///
/// # Panics
///
/// If it is none.
#[must_use]
pub fn document(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| {
        panic!("{e}: {}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    })
}

/// How often a test repeats: `usual` times, or `long` times where [`is_long`].
#[must_use]
pub fn repetitions(usual: usize, long: usize) -> usize {
    if is_long() { long } else { usual }
}

/// As [`repetitions`], of rounds that each wait for every CPU: fewer where the machine is emulated, whose two CPUs take
/// seconds for one under load.
#[must_use]
pub fn rounds(usual: usize, long: usize) -> usize {
    const FEWEST: usize = 4;
    repetitions((usual / slowness() as usize).max(usual.min(FEWEST)), long)
}

/// Says whether `EASTWALL_LONG=1` asks for the full counts of what is promised.
#[must_use]
pub fn is_long() -> bool {
    std::env::var_os("EASTWALL_LONG").is_some_and(|v| v == "1")
}
