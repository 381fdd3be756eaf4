//! The programs at the devices of two workloads, without an agent.

use std::{
    cell::{RefCell, RefMut},
    fmt::Write as _,
    net::IpAddr,
    sync::Arc,
};

use agent_common::{id::Epoch, layout::hardware};
use eastwall::datapath::Device;

use super::{
    Command, Denials, Errno, Guard, GuardOptions, Lab, NetNs, Party, Routed, Witness,
    routed::{DEVICES, ethernet, hardware_address, link_local},
    scene::TRUST_DOMAIN,
};

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
        let wall = Self::unguarded(GuardOptions::default())?;
        if sockets {
            wall.guard().reattach().expect("attach the programs of the cgroup");
        }
        wall.guard_devices();
        Some(wall)
    }

    /// Builds it with programs that are loaded and attached nowhere.
    #[must_use]
    pub fn unguarded(options: GuardOptions) -> Option<Self> {
        let Routed { web, db, host, lab } = Routed::open()?;
        let guard = RefCell::new(Guard::load(&lab, GuardOptions { devices: true, ..options }));
        let devices = DEVICES.map(|name| {
            let line = host.ip(&format!("-o link show dev {name}"));
            let index = line.split(':').next().and_then(|n| n.parse().ok()).expect("a link has an index");
            let mut words = line.split_whitespace().skip_while(|word| *word != "link-netnsid");
            let netns = words.nth(1).and_then(|n| n.parse().ok()).expect("its other end is in another namespace");
            (index, netns)
        });
        let [(to_web, web_id), (to_db, db_id)] = devices;
        let devices = [
            Device { index: to_web, netns: web_id, hardware: hardware(hardware_address(&web.net, "web0")) },
            Device { index: to_db, netns: db_id, hardware: hardware(hardware_address(&db.net, "db0")) },
        ];
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
        for (device, party) in self.devices.iter().zip([&self.web, &self.db]) {
            self.guard_device(device, party.cgroup.id());
        }
        self.give_addresses();
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

    /// Allows what the rules say and nothing else, from the moment this returns. A rule is `web -> db: udp/53`.
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
        if !rules.is_empty() {
            text.push_str("  allow:\n");
        }
        for rule in rules {
            let (ends, ports) = rule.split_once(": ").expect("a rule is `a -> b: ports`");
            let (from, to) = ends.split_once(" -> ").expect("a rule is `a -> b: ports`");
            let _ = writeln!(text, "    - {{ from: {from}, to: {to}, ports: [{ports}] }}");
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
}

/// As maps hold an address.
fn mapped(addr: IpAddr) -> [u8; 16] {
    match addr {
        IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
        IpAddr::V6(addr) => addr.octets(),
    }
}
