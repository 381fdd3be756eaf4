//! Three workloads under the kernel programs, and a policy in a line: what the tests of hooks begin with.

use std::{
    cell::{Cell, RefCell, RefMut},
    fmt::Write as _,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use agent_common::{
    id::{Epoch, IdentityId},
    layout::Hook,
};
use eastwall::identity::spiffe::SpiffeId;

use super::{Actor, Cgroup, Denials, Errno, Family, Guard, GuardOptions, Lab, Need, NetNs, Socket, VethEnd, Witness};

pub(super) const TRUST_DOMAIN: &str = "lab.example";

/// How the workloads are joined.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Place {
    /// All in one network namespace: each end knows the other by its socket.
    Loopback,
    /// `db` in a namespace of its own, behind a veth pair: each end knows the other by its address.
    Veth,
}

/// A workload: a cgroup and an actor in it.
#[derive(Debug)]
pub struct Party {
    /// Its name in the policy.
    pub name: &'static str,
    /// Its actor.
    pub actor: Actor,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Where it is.
    pub net: Arc<NetNs>,
    pub(super) addrs: [IpAddr; 2],
}

/// `web` calls `db`; `other` is in the namespace of `web`. Nothing is allowed until a test says so.
pub struct Scene {
    /// The caller.
    pub web: Party,
    /// The callee.
    pub db: Party,
    /// Somebody else.
    pub other: Party,
    /// Outlives the actors, so that nothing of a test is ever unguarded.
    guard: RefCell<Guard>,
    /// How they are joined.
    pub place: Place,
    mode: Cell<&'static str>,
    /// Whether connect and sendmsg refuse as well.
    pub fast_refusal: bool,
    lab: Lab,
}

impl Party {
    /// A workload in a cgroup of its own, with its addresses, IPv4 and IPv6.
    pub(super) fn new(lab: &Lab, name: &'static str, net: &Arc<NetNs>, addrs: [&str; 2]) -> Self {
        Self::below(lab, lab.cgroup(), name, net, addrs)
    }

    /// As [`Self::new`], in a cgroup below another.
    pub(super) fn below(lab: &Lab, parent: &Cgroup, name: &'static str, net: &Arc<NetNs>, addrs: [&str; 2]) -> Self {
        let cgroup = parent.child(name);
        let addrs = addrs.map(|addr| addr.parse().expect("an address"));
        Self { name, actor: lab.actor(&cgroup, net), cgroup, net: Arc::clone(net), addrs }
    }

    /// Watches for bytes in its namespace, as a sniffer there would.
    #[must_use]
    pub fn watch(&self, magic: &[u8]) -> Witness<'_> {
        Witness::new(&self.net, magic)
    }

    /// An address of this workload.
    #[must_use]
    pub fn addr(&self, family: Family) -> IpAddr {
        self.addrs[usize::from(family == Family::V6)]
    }

    /// Its address with a port; 0 takes a free one when bound.
    #[must_use]
    pub fn at(&self, family: Family, port: u16) -> SocketAddr {
        SocketAddr::new(self.addr(family), port)
    }

    /// The number of its identity.
    ///
    /// # Panics
    ///
    /// Never: the names here are good names.
    #[must_use]
    pub fn id(&self) -> IdentityId {
        SpiffeId::new(TRUST_DOMAIN, self.name).expect("a name of the lab is a path").number()
    }

    /// Opens a UDP socket on its address.
    ///
    /// # Panics
    ///
    /// If there can be none.
    #[must_use]
    pub fn udp(&self, family: Family) -> (Socket, SocketAddr) {
        self.actor.udp_bind(self.at(family, 0)).expect("open a UDP socket")
    }

    /// Listens for TCP on its address.
    ///
    /// # Panics
    ///
    /// If that cannot be.
    #[must_use]
    pub fn listen(&self, family: Family) -> (Socket, SocketAddr) {
        self.actor.tcp_listen(self.at(family, 0)).expect("listen for TCP")
    }
}

impl Scene {
    /// Sets a scene, or says why this machine cannot have one.
    #[must_use]
    pub fn open(place: Place, fast_refusal: bool) -> Option<Self> {
        Self::with(place, GuardOptions { fast_refusal, ..GuardOptions::default() })
    }

    /// As [`Self::open`], with other sizes.
    #[must_use]
    pub fn with(place: Place, options: GuardOptions) -> Option<Self> {
        let scene = Self::unguarded(place, options)?;
        scene.guard().reattach().expect("attach the programs");
        Some(scene)
    }

    /// As [`Self::with`], but nothing is attached until a test does that.
    #[must_use]
    pub fn unguarded(place: Place, options: GuardOptions) -> Option<Self> {
        let lab = Lab::open(&[Need::Ip])?;
        let here = Arc::new(NetNs::new());
        let there = match place {
            Place::Loopback => Arc::clone(&here),
            Place::Veth => {
                let there = Arc::new(NetNs::new());
                NetNs::veth(
                    VethEnd { netns: &here, device: "web0", addrs: &["10.9.0.1/24", "fd09::1/64"] },
                    VethEnd { netns: &there, device: "db0", addrs: &["10.9.0.2/24", "fd09::2/64"] },
                );
                there
            }
        };
        let fast_refusal = options.fast_refusal;
        let guard = Guard::load(&lab, options);
        let [a, b] = match place {
            Place::Loopback => [["127.0.0.1", "::1"]; 2],
            Place::Veth => [["10.9.0.1", "fd09::1"], ["10.9.0.2", "fd09::2"]],
        };
        let party = |name, net, addrs| Party::new(&lab, name, net, addrs);
        let (web, db, other) = (party("web", &here, a), party("db", &there, b), party("other", &here, a));
        let (guard, mode) = (RefCell::new(guard), Cell::new("enforce"));
        let scene = Self { web, db, other, guard, place, mode, fast_refusal, lab };
        scene.allow(&[]);
        Some(scene)
    }

    /// The lab around it.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The kernel programs. One look at a time.
    ///
    /// # Panics
    ///
    /// If it is being looked at.
    pub fn guard(&self) -> RefMut<'_, Guard> {
        self.guard.borrow_mut()
    }

    /// Sets the mode of all three, for policies to come.
    pub fn mode(&self, mode: &'static str) {
        self.mode.set(mode);
    }

    /// Allows what the edges say and nothing else, from the moment this returns.
    ///
    /// An edge is `web -> db: udp/53, tcp/any`, with every port form of the policy. Behind a veth pair
    /// it becomes two rules, because each end knows the other by its address; `exit web -> db: …` and
    /// `door web -> db: …` are one of them.
    ///
    /// # Panics
    ///
    /// If an edge is none.
    pub fn allow(&self, edges: &[&str]) -> Epoch {
        self.guard().apply(&self.policy(edges))
    }

    /// The text of a policy with these edges.
    ///
    /// # Panics
    ///
    /// If an edge is none.
    #[must_use]
    pub fn policy(&self, edges: &[&str]) -> String {
        let mut text = format!(
            "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: lab }}\nspec:\n  trustDomain: \
             {TRUST_DOMAIN}\n  defaults: {{ mode: {} }}\n  workloads:\n",
            self.mode.get()
        );
        let mut line = |line: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{line}");
        };
        for party in [&self.web, &self.db, &self.other] {
            line(format!("    - {{ name: {}, select: {{ cgroup: {} }} }}", party.name, party.cgroup.path()));
        }
        line("  externals:".to_owned());
        line("    - { name: at-web, cidrs: [10.9.0.1/32, \"fd09::1/128\"] }".to_owned());
        line("    - { name: at-db, cidrs: [10.9.0.2/32, \"fd09::2/128\"] }".to_owned());
        let rules: Vec<String> = edges.iter().flat_map(|edge| self.rules(edge)).collect();
        if !rules.is_empty() {
            line("  allow:".to_owned());
        }
        rules.into_iter().for_each(line);
        text
    }

    fn rules(&self, edge: &str) -> Vec<String> {
        let (ends, ports) = edge.split_once(": ").expect("an edge is `a -> b: ports`");
        let (side, ends) = match ends.split_once(' ') {
            Some((side @ ("exit" | "door"), ends)) => (Some(side), ends),
            _ => (None, ends),
        };
        let (from, to) = ends.split_once(" -> ").expect("an edge is `a -> b: ports`");
        let rule = |from: &str, to: &str| format!("    - {{ from: {from}, to: {to}, ports: [{ports}] }}");
        let is_near = |name: &str| name == "web" || name == "other";
        if self.place == Place::Loopback || is_near(from) == is_near(to) {
            assert_eq!(side, None, "`{edge}`: both ends ask for the same edge here");
            return vec![rule(from, to)];
        }
        let address_of = |name: &str| if is_near(name) { "at-web" } else { "at-db" };
        let mut rules = Vec::new();
        if side != Some("door") {
            rules.push(rule(from, address_of(to)));
        }
        if side != Some("exit") {
            rules.push(rule(address_of(from), to));
        }
        rules
    }

    /// Watches for bytes in the namespace of `db`.
    #[must_use]
    pub fn watch(&self, magic: &[u8]) -> Witness<'_> {
        self.db.watch(magic)
    }

    /// What was denied since the last look. Packets that are under way to `db` are waited for.
    ///
    /// # Panics
    ///
    /// If the books do not balance.
    pub fn denials(&self) -> Denials {
        self.guard().denials_up_to(&self.db)
    }

    /// What a caller gets from connect(2) when its exit says no: at once, or silence.
    #[must_use]
    pub fn refused(&self) -> Errno {
        if self.fast_refusal { Errno::PERM } else { Errno::TIMEDOUT }
    }

    /// The hook that says no first, if one of connect and sendmsg can.
    #[must_use]
    pub fn first_hook(&self, fast: Hook) -> Hook {
        if self.fast_refusal { fast } else { Hook::Egress }
    }
}

impl Family {
    /// The hook that refuses to connect.
    #[must_use]
    pub fn connect_hook(self) -> Hook {
        if self == Self::V4 { Hook::Connect4 } else { Hook::Connect6 }
    }

    /// The hook that refuses a datagram with an address.
    #[must_use]
    pub fn sendmsg_hook(self) -> Hook {
        if self == Self::V4 { Hook::Sendmsg4 } else { Hook::Sendmsg6 }
    }
}

/// Runs a test in every place, with and without the fast refusal, for IPv4 and IPv6.
pub fn everywhere(test: impl Fn(&Scene, Family)) {
    for (place, fast_refusal) in
        [(Place::Loopback, true), (Place::Loopback, false), (Place::Veth, true), (Place::Veth, false)]
    {
        let Some(scene) = Scene::open(place, fast_refusal) else { return };
        for family in [Family::V4, Family::V6] {
            // The harness shows this if the test fails.
            eprintln!("{place:?}, fast refusal {fast_refusal}, {family:?}");
            scene.mode("enforce");
            scene.allow(&[]);
            let _ = scene.denials();
            test(&scene, family);
        }
    }
}
