//! The programs at the devices of two workloads, without an agent.

use std::{
    cell::{RefCell, RefMut},
    fmt::Write as _,
    net::IpAddr,
    sync::Arc,
};

use agent_common::id::Epoch;
use eastwall::datapath::Device;

use super::{
    Command, Denials, Errno, Family, Guard, GuardOptions, Lab, NetNs, Party, Reply, Routed, Transmit, Witness,
    routed::{DEVICES, ethernet, hardware_address, link_local},
    scene::TRUST_DOMAIN,
};

/// Addresses that rules can name: a service, which is nobody's own; the host, where it routes for both; where a cloud
/// tells a machine about itself.
const EXTERNALS: &str = "  externals:
    - { name: metadata, cidrs: [169.254.169.254/32] }
    - { name: vip, cidrs: [10.96.0.10/32, \"fd96::10/128\"] }
    - { name: host, cidrs: [10.9.0.254/32, \"fd09::ff/128\", 10.9.1.254/32, \"fd09:1::ff/128\"] }
";

/// Which programs guard a [`Wall`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Layers {
    /// Those of sockets and those at devices.
    All,
    /// Those of sockets alone.
    Sockets,
    /// Those at devices alone.
    Devices,
}

impl Layers {
    /// All three.
    pub const ALL: [Self; 3] = [Self::All, Self::Sockets, Self::Devices];

    /// Says whether sockets are judged.
    #[must_use]
    pub fn has_sockets(self) -> bool {
        self != Self::Devices
    }

    /// Says whether devices are guarded.
    #[must_use]
    pub fn has_devices(self) -> bool {
        self != Self::Sockets
    }
}

/// Two workloads that reach each other only through the host. Nothing is allowed until a test says so.
pub struct Wall {
    /// The caller.
    pub web: Party,
    /// The callee.
    pub db: Party,
    /// Between them.
    pub host: Arc<NetNs>,
    guard: RefCell<Guard>,
    devices: [Device; 2],
    lab: Lab,
}

impl Wall {
    /// Builds it, or says why this machine cannot have one. With `sockets` the hooks of cgroups are there as
    /// well; without, only what is at the devices stops anything.
    #[must_use]
    pub fn open(sockets: bool) -> Option<Self> {
        Self::by(if sockets { Layers::All } else { Layers::Devices }, GuardOptions::default())
    }

    /// Builds it with some layers, or says why this machine cannot have one.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    #[must_use]
    pub fn by(layers: Layers, options: GuardOptions) -> Option<Self> {
        let wall = Self::unguarded(options)?;
        if layers.has_sockets() {
            wall.guard().reattach().expect("attach the programs of the cgroup");
        }
        if layers.has_devices() {
            wall.guard_devices();
        } else {
            // Without devices, too, an agent would say whose they are.
            wall.give_addresses();
        }
        Some(wall)
    }

    /// Builds it with programs that are loaded and attached nowhere.
    #[must_use]
    pub fn unguarded(options: GuardOptions) -> Option<Self> {
        let Routed { web, db, host, lab } = Routed::open()?;
        let guard = RefCell::new(Guard::load(&lab, GuardOptions { devices: true, ..options }));
        let ends = [(DEVICES[0], &web, "web0"), (DEVICES[1], &db, "db0")];
        let devices = ends.map(|(name, party, far)| host.device(name, &party.net, far));
        let wall = Self { web, db, host, guard, devices, lab };
        wall.allow(&[]);
        Some(wall)
    }

    /// Puts the programs at both devices, and says whose their addresses are.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    pub fn guard_devices(&self) {
        // First, as an agent does: what is under way meanwhile comes from them.
        self.give_addresses();
        for (device, party) in self.devices.iter().zip([&self.web, &self.db]) {
            self.guard_device(device, party.cgroup.id());
        }
    }

    /// Puts the programs at a device of the workload of a cgroup; 0 is several.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    pub fn guard_device(&self, device: &Device, cgroup: u64) {
        let host = &self.host;
        let guarded = self.guard().inside(|d| host.run(|| d.guard_device(device, cgroup)));
        guarded.expect("put programs at a device");
    }

    /// Says whose the addresses of both workloads are.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    pub fn give_addresses(&self) {
        for (party, device) in [(&self.web, "web0"), (&self.db, "db0")] {
            let addrs = party.addrs.into_iter().chain(link_local(&party.net, device));
            addrs.for_each(|addr| self.give_address(addr, party.cgroup.id()));
        }
    }

    /// Says that the device of `web` is several workloads', and so are its addresses.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    pub fn share_device_of_web(&self) {
        self.guard_device(&self.devices[0], 0);
        let addrs = self.web.addrs.into_iter().chain(link_local(&self.web.net, "web0"));
        addrs.for_each(|addr| self.give_address(addr, 0));
    }

    /// The host's end of `web` and of `db`.
    #[must_use]
    pub fn devices(&self) -> &[Device; 2] {
        &self.devices
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

    /// Allows what the rules say and nothing else, from the moment this returns. A rule is `web -> db: udp/53`, or
    /// `deny web -> db: any`.
    ///
    /// # Panics
    ///
    /// If a rule is none.
    pub fn allow(&self, rules: &[&str]) -> Epoch {
        self.apply("mode: enforce", ["", ""], rules)
    }

    /// As [`Self::allow`], and denies nothing at the door of `db`.
    ///
    /// # Panics
    ///
    /// As [`Self::allow`].
    pub fn allow_at_the_exit(&self, rules: &[&str]) -> Epoch {
        self.apply("mode: enforce", ["", "ingressMode: observe"], rules)
    }

    /// As [`Self::allow`], and denies nothing at the exit of `web`.
    ///
    /// # Panics
    ///
    /// As [`Self::allow`].
    pub fn allow_at_the_door(&self, rules: &[&str]) -> Epoch {
        self.apply("mode: enforce", ["egressMode: observe", ""], rules)
    }

    /// As [`Self::allow`], and denies nothing at the exit of `db`.
    ///
    /// # Panics
    ///
    /// As [`Self::allow`].
    pub fn allow_at_the_door_of_web(&self, rules: &[&str]) -> Epoch {
        self.apply("mode: enforce", ["", "egressMode: observe"], rules)
    }

    /// As [`Self::allow`], and only reports what it would deny.
    ///
    /// # Panics
    ///
    /// As [`Self::allow`].
    pub fn audit(&self, rules: &[&str]) -> Epoch {
        self.apply("mode: audit", ["", ""], rules)
    }

    fn apply(&self, defaults: &str, of: [&str; 2], rules: &[&str]) -> Epoch {
        let mut text = format!(
            "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: wall }}\nspec:\n  trustDomain: \
             {TRUST_DOMAIN}\n  defaults: {{ {defaults} }}\n  workloads:\n",
        );
        // Writing to a String cannot fail.
        for (party, more) in [&self.web, &self.db].into_iter().zip(of) {
            let (name, path) = (party.name, party.cgroup.path());
            let _ = writeln!(text, "    - {{ name: {name}, select: {{ cgroup: {path} }}, {more} }}");
        }
        text.push_str(EXTERNALS);
        let (deny, allow): (Vec<&str>, Vec<&str>) = rules.iter().partition(|rule| rule.starts_with("deny "));
        for (section, rules) in [("allow", allow), ("deny", deny)] {
            if !rules.is_empty() {
                let _ = writeln!(text, "  {section}:");
            }
            for rule in rules {
                let (ends, ports) = rule.split_once(": ").expect("a rule is `a -> b: ports`");
                let ends = ends.strip_prefix("deny ").unwrap_or(ends);
                let (from, to) = ends.split_once(" -> ").expect("a rule is `a -> b: ports`");
                let _ = writeln!(text, "    - {{ from: {from}, to: {to}, ports: [{ports}] }}");
            }
        }
        self.guard().apply(&text)
    }

    /// Allows `web` to call `db`.
    ///
    /// # Panics
    ///
    /// If these are no ports.
    pub fn open_way(&self, ports: &str) -> Epoch {
        self.allow(&[&format!("web -> db: {ports}")])
    }

    /// Says whose an address is: of the workload of a cgroup, and of nobody else from the moment this returns. 0 is
    /// several.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    pub fn give_address(&self, addr: IpAddr, cgroup: u64) {
        let mut guard = self.guard();
        guard.inside(|d| {
            d.own_address(&mapped(addr), cgroup).expect("say whose an address is");
            d.ask_again().expect("begin an epoch");
        });
    }

    /// Watches for bytes in the namespace of `db`, as a sniffer there would.
    #[must_use]
    pub fn watch(&self, magic: &[u8]) -> Witness<'_> {
        self.db.watch(magic)
    }

    /// What was denied since the last look. Packets that are under way are waited for.
    ///
    /// # Panics
    ///
    /// If the books do not balance.
    pub fn denials(&self) -> Denials {
        self.guard().denials_up_to(&self.db)
    }

    /// An Ethernet header from `web` to the host, for what the host is to forward.
    ///
    /// # Panics
    ///
    /// If a device has no address.
    #[must_use]
    pub fn ethernet(&self) -> ([u8; 6], [u8; 6]) {
        ethernet(&self.web, &self.host)
    }

    /// As [`Self::ethernet`], from `db`.
    ///
    /// # Panics
    ///
    /// As [`Self::ethernet`].
    #[must_use]
    pub fn ethernet_of_db(&self) -> ([u8; 6], [u8; 6]) {
        (hardware_address(&self.db.net, "db0"), hardware_address(&self.host, DEVICES[1]))
    }

    /// Lets `web` send a frame past every socket hook.
    ///
    /// # Errors
    ///
    /// Of sendto(2).
    pub fn send_frame(&self, frame: &[u8], bypass: bool) -> Result<(), Errno> {
        let command = Command::SendFrame { device: "web0".to_owned(), frame: frame.to_vec(), bypass };
        self.web.actor.call(&command).map(drop)
    }

    /// Lets `web` send frames past every socket hook, one after another and as many times over as there are rounds.
    /// Gives how many were taken.
    ///
    /// # Errors
    ///
    /// Of sendto(2).
    pub fn hammer_frames(&self, frames: &[Vec<u8>], rounds: u32, by: Transmit) -> Result<usize, Errno> {
        let command = Command::HammerFrames { device: "web0".to_owned(), frames: frames.to_vec(), rounds, by };
        match self.web.actor.call(&command)? {
            Reply::Count(count) => Ok(count),
            other => panic!("an actor counts frames: {other:?}"),
        }
    }

    /// Keeps the kernels of both workloads from asking whether a neighbour is there still, which they do some seconds after
    /// a packet was sent to it.
    ///
    /// # Panics
    ///
    /// If the kernel refuses.
    pub fn ask_no_neighbour_again(&self) {
        const LATER: &str = "3600";
        for (party, device) in [(&self.web, "web0"), (&self.db, "db0")] {
            for family in ["ipv4", "ipv6"] {
                let path = format!("/proc/sys/net/{family}/neigh/{device}/delay_first_probe_time");
                party.net.run(|| std::fs::write(&path, LATER).expect("put off when a neighbour is asked for"));
            }
        }
    }

    /// Makes a switch of the host: it looks at no IP address, so that a frame of any arrives. Gives the hardware
    /// addresses of `web` and of `db`.
    ///
    /// # Panics
    ///
    /// If the kernel or `ip` refuses.
    #[must_use]
    pub fn switch(&self) -> ([u8; 6], [u8; 6]) {
        self.host.ip("link add name sw0 type bridge mcast_snooping 0");
        self.host.run(|| without_ipv6("sw0"));
        for device in DEVICES {
            self.host.ip(&format!("link set {device} master sw0"));
        }
        self.host.ip("link set sw0 up");
        let ends = [(&self.web, "web0"), (&self.db, "db0")];
        let macs = ends.map(|(party, device)| hardware_address(&party.net, device));
        for ((from, device), (to, mac)) in ends.into_iter().zip([(&self.db, macs[1]), (&self.web, macs[0])]) {
            for addr in to.addrs {
                from.net.ip(&format!("route add {addr} dev {device}"));
                neighbour(&from.net, addr, device, mac);
            }
        }
        (macs[0], macs[1])
    }

    /// Builds a tunnel by VXLAN between the workloads, over IPv4 or IPv6. Gives both inner addresses; nobody has to
    /// ask for a neighbour.
    ///
    /// # Panics
    ///
    /// If the kernel or `ip` refuses.
    #[must_use]
    pub fn tunnel(&self, over: Family) -> [IpAddr; 2] {
        let (n, device) = if over == Family::V4 { (4, "vx4") } else { (6, "vx6") };
        let inner = [1, 2].map(|host| IpAddr::from([10, 7, n, host]));
        let ends = [&self.web, &self.db];
        let macs = [1, 2].map(|host| [2, 7, 7, 7, n, host]);
        for (at, party) in ends.into_iter().enumerate() {
            let (local, remote) = (party.addr(over), ends[1 - at].addr(over));
            let [a, b, c, d, e, f] = macs[at];
            let net = &party.net;
            net.ip(&format!(
                "link add {device} address {a:x}:{b:x}:{c:x}:{d:x}:{e:x}:{f:x} type vxlan id {n} local {local} remote \
                 {remote} dstport {VXLAN_PORT} nolearning"
            ));
            net.run(|| without_ipv6(device));
            net.ip(&format!("address add {}/24 dev {device}", inner[at]));
            net.ip(&format!("link set {device} up"));
            neighbour(net, inner[1 - at], device, macs[1 - at]);
        }
        inner
    }
}

/// Where VXLAN listens (RFC 7348).
pub const VXLAN_PORT: u16 = 4789;

/// Makes known where an address is, for good.
fn neighbour(netns: &NetNs, addr: IpAddr, device: &str, mac: [u8; 6]) {
    let [a, b, c, d, e, f] = mac;
    netns
        .ip(&format!("neighbour replace {addr} dev {device} nud permanent lladdr {a:x}:{b:x}:{c:x}:{d:x}:{e:x}:{f:x}"));
}

/// Keeps a device from saying anything by itself, inside its namespace.
fn without_ipv6(device: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "1").expect("do without IPv6");
}

/// As maps hold an address.
fn mapped(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
        IpAddr::V6(addr) => addr.octets(),
    }
}
