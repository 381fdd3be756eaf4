//! Two workloads, each behind a device of a host that routes between them.
//!
//! ```text
//! web ── web0 ═ to-web ── host ── to-db ═ db0 ── db
//! ```

use std::{net::IpAddr, sync::Arc};

use super::{Cgroup, Lab, Need, NetNs, Party, VXLAN_PORT, VethEnd};

/// The host's ends, of `web` and of `db`.
pub const DEVICES: [&str; 2] = ["to-web", "to-db"];

/// Two workloads that reach each other only through the host.
#[derive(Debug)]
pub struct Routed {
    /// The caller.
    pub web: Party,
    /// The callee.
    pub db: Party,
    /// Between them.
    pub host: Arc<NetNs>,
    /// The lab around it.
    pub lab: Lab,
}

impl Routed {
    /// Builds it, or says why this machine cannot have one.
    ///
    /// # Panics
    ///
    /// If the kernel or `ip` refuses.
    #[must_use]
    pub fn open() -> Option<Self> {
        let lab = Lab::open(&[Need::Ip])?;
        let [host, web, db] = [(); 3].map(|()| Arc::new(NetNs::new()));
        join(&host, (DEVICES[0], ["10.9.0.254/24", "fd09::ff/64"]), &web, ("web0", ["10.9.0.1/24", "fd09::1/64"]));
        join(&host, (DEVICES[1], ["10.9.1.254/24", "fd09:1::ff/64"]), &db, ("db0", ["10.9.1.2/24", "fd09:1::2/64"]));
        forward(&host);
        let web = Party::new(&lab, "web", &web, ["10.9.0.1", "fd09::1"]);
        let db = Party::new(&lab, "db", &db, ["10.9.1.2", "fd09:1::2"]);
        Some(Self { web, db, host, lab })
    }

    /// The hardware addresses of `web` and of its router, for a frame that the host is to forward.
    ///
    /// # Panics
    ///
    /// If a device has none.
    #[must_use]
    pub fn ethernet(&self) -> ([u8; 6], [u8; 6]) {
        ethernet(&self.web, &self.host)
    }

    /// As [`Self::ethernet`], of `db`.
    ///
    /// # Panics
    ///
    /// As [`Self::ethernet`].
    #[must_use]
    pub fn ethernet_of_db(&self) -> ([u8; 6], [u8; 6]) {
        (hardware_address(&self.db.net, "db0"), hardware_address(&self.host, DEVICES[1]))
    }
}

/// One of two hosts: a workload behind a device of it, in a cgroup of the host.
#[derive(Debug)]
pub struct HostOf {
    /// The workload.
    pub party: Party,
    /// The host's network.
    pub net: Arc<NetNs>,
    /// What the agent of the host guards.
    pub cgroup: Cgroup,
}

impl HostOf {
    /// A host by its name and network, and its workload with its addresses.
    fn of(
        lab: &Lab,
        (name, net): (&str, &Arc<NetNs>),
        party: &'static str,
        party_net: &Arc<NetNs>,
        addrs: [&str; 2],
    ) -> Self {
        let cgroup = lab.cgroup().child(name);
        Self { party: Party::below(lab, &cgroup, party, party_net, addrs), net: Arc::clone(net), cgroup }
    }
}

/// Two hosts that route to each other, each with one workload.
///
/// ```text
/// web ── web0 ═ to-web ── near ── up0 ═ up0 ── far ── to-db ═ db0 ── db
/// ```
#[derive(Debug)]
pub struct TwoHosts {
    /// The host of `web`.
    pub near: HostOf,
    /// The host of `db`.
    pub far: HostOf,
    /// What is between them, if there is more than a cable.
    _router: Option<Arc<NetNs>>,
    /// The lab around them.
    pub lab: Lab,
}

impl TwoHosts {
    /// Builds them, or says why this machine cannot have them.
    ///
    /// # Panics
    ///
    /// If the kernel or `ip` refuses.
    #[must_use]
    pub fn open() -> Option<Self> {
        let lab = Lab::open(&[Need::Ip, Need::Agent])?;
        let [near, far, web, db] = [(); 4].map(|()| Arc::new(NetNs::new()));
        join(&near, (DEVICES[0], ["10.9.0.254/24", "fd09::ff/64"]), &web, ("web0", ["10.9.0.1/24", "fd09::1/64"]));
        join(&far, (DEVICES[1], ["10.9.1.254/24", "fd09:1::ff/64"]), &db, ("db0", ["10.9.1.2/24", "fd09:1::2/64"]));
        let end = |netns, addrs| VethEnd { netns, device: "up0", addrs };
        NetNs::veth(end(&near, &["10.8.0.1/24", "fd08::1/64"]), end(&far, &["10.8.0.2/24", "fd08::2/64"]));
        for (host, routes) in [
            (&near, ["10.9.1.0/24 via 10.8.0.2", "fd09:1::/64 via fd08::2"]),
            (&far, ["10.9.0.0/24 via 10.8.0.1", "fd09::/64 via fd08::1"]),
        ] {
            forward(host);
            let _ = routes.map(|route| host.ip(&format!("route add {route}")));
        }
        let host = |name, net, party, party_net, addrs| HostOf::of(&lab, (name, net), party, party_net, addrs);
        let near = host("near", &near, "web", &web, ["10.9.0.1", "fd09::1"]);
        let far = host("far", &far, "db", &db, ["10.9.1.2", "fd09:1::2"]);
        Some(Self { near, far, _router: None, lab })
    }

    /// As [`Self::open`], with a router between the hosts, and both workloads in one network that the hosts carry over it
    /// by VXLAN, as container networks do:
    ///
    /// ```text
    /// web ── web0 ═ to-web ┐                                          ┌ to-db ═ db0 ── db
    ///                   br0 ── vx0 ⇢ up0 ═ up0 ── router ── up1 ═ up0 ⇢ vx0 ── br0
    /// ```
    ///
    /// # Panics
    ///
    /// If the kernel or `ip` refuses.
    #[must_use]
    pub fn overlay() -> Option<Self> {
        let lab = Lab::open(&[Need::Ip, Need::Agent])?;
        let [near, far, router, web, db] = [(); 5].map(|()| Arc::new(NetNs::new()));
        for (host, up, [underlay, gateway], peer, bridge) in [
            (
                &near,
                "up0",
                [["10.8.0.1/24", "fd08::1/64"], ["10.8.0.254", "fd08::ff"]],
                "10.8.1.2",
                ["10.9.0.254/24", "fd09::fe/64"],
            ),
            (
                &far,
                "up1",
                [["10.8.1.2/24", "fd08:1::2/64"], ["10.8.1.254", "fd08:1::ff"]],
                "10.8.0.1",
                ["10.9.0.253/24", "fd09::fd/64"],
            ),
        ] {
            let [v4, v6] = [format!("{}/24", gateway[0]), format!("{}/64", gateway[1])];
            let end = |netns, device, addrs| VethEnd { netns, device, addrs };
            NetNs::veth(end(host, "up0", &underlay), end(&router, up, &[&v4, &v6]));
            gateway.iter().for_each(|gateway| drop(host.ip(&format!("route add default via {gateway}"))));
            host.ip("link add name br0 type bridge mcast_snooping 0");
            let local = underlay[0].trim_end_matches("/24");
            host.ip(&format!("link add vx0 type vxlan id 9 local {local} remote {peer} dstport {VXLAN_PORT} dev up0"));
            host.ip("link set vx0 master br0 up");
            host.ip("link set br0 up");
            // By this the host knows that the workloads' addresses are behind the bridge.
            bridge.iter().for_each(|addr| drop(host.ip(&format!("address add {addr} dev br0"))));
            forward(host);
        }
        forward(&router);
        let joined = |host: &NetNs, device: &str, workload: &NetNs, far: &str, addrs: [&str; 2]| {
            let end = |netns, device, addrs| VethEnd { netns, device, addrs };
            NetNs::veth(end(host, device, &[]), end(workload, far, &addrs));
            host.ip(&format!("link set {device} master br0"));
        };
        joined(&near, DEVICES[0], &web, "web0", ["10.9.0.1/24", "fd09::1/64"]);
        joined(&far, DEVICES[1], &db, "db0", ["10.9.0.2/24", "fd09::2/64"]);
        let host = |name, net, party, party_net, addrs| HostOf::of(&lab, (name, net), party, party_net, addrs);
        let near = host("near", &near, "web", &web, ["10.9.0.1", "fd09::1"]);
        let far = host("far", &far, "db", &db, ["10.9.0.2", "fd09::2"]);
        Some(Self { near, far, _router: Some(router), lab })
    }

    /// A workload in the network of the near host itself, and one in that of the far host.
    #[must_use]
    pub fn residents(&self) -> [Party; 2] {
        let resident = |host: &HostOf, name, addrs| Party::below(&self.lab, &host.cgroup, name, &host.net, addrs);
        [resident(&self.near, "node", ["10.8.0.1", "fd08::1"]), resident(&self.far, "peer", ["10.8.0.2", "fd08::2"])]
    }

    /// The hardware addresses of both ends of a device of the near host: between the hosts, or to `web`.
    ///
    /// # Panics
    ///
    /// If a device has none.
    #[must_use]
    pub fn ethernet(&self, device: &str) -> ([u8; 6], [u8; 6]) {
        let there = if device == DEVICES[0] {
            hardware_address(&self.near.party.net, "web0")
        } else {
            hardware_address(&self.far.net, device)
        };
        (hardware_address(&self.near.net, device), there)
    }
}

fn forward(host: &NetNs) {
    host.run(|| {
        for forwarding in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
            std::fs::write(format!("/proc/sys/net/{forwarding}"), "1").expect("forward packets");
        }
    });
}

/// Joins a host and a workload: each end is a device and its addresses. The host is the workload's router.
///
/// # Panics
///
/// As [`NetNs::veth`].
pub fn join(host: &NetNs, at: (&str, [&str; 2]), workload: &NetNs, of: (&str, [&str; 2])) {
    let end = |netns, device, addrs| VethEnd { netns, device, addrs };
    NetNs::veth(end(host, at.0, &at.1), end(workload, of.0, &of.1));
    for router in at.1 {
        let router = router.split('/').next().unwrap_or(router);
        workload.ip(&format!("route add default via {router}"));
    }
}

/// The hardware addresses of `web` and of its router.
///
/// # Panics
///
/// If a device has none.
pub fn ethernet(web: &Party, host: &NetNs) -> ([u8; 6], [u8; 6]) {
    (hardware_address(&web.net, "web0"), hardware_address(host, DEVICES[0]))
}

/// The addresses of a device that count on its link alone: neighbour discovery comes from them.
pub(super) fn link_local(netns: &NetNs, device: &str) -> Vec<IpAddr> {
    let lines = netns.ip(&format!("-o -6 addr show dev {device} scope link"));
    let address = |line: &str| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok();
    lines.lines().map(|line| address(line).expect("an address with its prefix")).collect()
}

/// The Ethernet address of a device.
pub(crate) fn hardware_address(netns: &NetNs, device: &str) -> [u8; 6] {
    let line = netns.ip(&format!("-o link show dev {device}"));
    let mut words = line.split_whitespace().skip_while(|word| *word != "link/ether");
    let text = words.nth(1).expect("a veth has an Ethernet address");
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte in hex")).collect();
    bytes.try_into().expect("six bytes")
}
