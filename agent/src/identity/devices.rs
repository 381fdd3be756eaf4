//! Devices and addresses -> the one workload each belongs to.
//!
//! A workload with a network of its own is reached by a device of the host. Who lives in that network owns the
//! device and the addresses there. A workload may configure what it likes in its own network, so an address counts
//! only if the host itself sends what is for it to that device; and since whoever has an address gives it their own
//! identity, claiming one never lends the identity of another. Two that claim the same: the first keeps it.
//!
//! The other devices are the host's, and so are its addresses, whoever else claims one.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use agent_common::layout::{HOST_OWNER, IdentSlot, ident_flags};

use crate::policy::ask::octets;

/// The host's end of a link into another network namespace.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// The namespace at the other end, by its id in the host's.
    pub netns: i32,
    /// The bridge that it is a port of, by index.
    pub controller: Option<u32>,
    /// The Ethernet address at the other end, as [`agent_common::layout::hardware`] has it; 0 = not known.
    pub hardware: u64,
}

/// The host's own network.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Host {
    /// All its devices, those that lead to workloads too; each with its own Ethernet address, and no other end.
    pub devices: Vec<Device>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// A network namespace that some device leads to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Network {
    /// Cgroups of the processes that live in it.
    pub cgroups: BTreeSet<u64>,
    /// Its addresses, with the device by which the host would send to them; none if it would not.
    pub addresses: Vec<(IpAddr, Option<u32>)>,
    /// What [`ways_out`] says of its devices.
    pub ways_out: Vec<String>,
}

/// A device in a network namespace of others.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Inside {
    /// Its index there.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What the kernel calls its kind; none = a device of a driver.
    pub kind: Option<String>,
    /// It is the loopback device.
    pub is_loopback: bool,
    /// Another device that it is on, or that is its other end, is in another namespace.
    pub leads_elsewhere: bool,
}

/// Names the devices of a network by which frames leave it past the programs of the host's devices, with their kinds.
/// `guarded` are those that are the other ends of these, by index.
#[must_use]
pub fn ways_out(devices: &[Inside], guarded: &BTreeSet<u32>) -> Vec<String> {
    let leads_out = |device: &&Inside| {
        let is_way = device.kind.is_none() || device.leads_elsewhere;
        is_way && !device.is_loopback && !guarded.contains(&device.index)
    };
    let said = |device: &Inside| format!("`{}` ({})", device.name, device.kind.as_deref().unwrap_or("hardware"));
    devices.iter().filter(leads_out).map(said).collect()
}

/// Who owns what. Cgroups stand for their workload; 0 is no one workload, which is `unknown`; [`HOST_OWNER`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Owners {
    /// By index.
    pub devices: BTreeMap<u32, Owned>,
    /// By address, IPv4 mapped, in network order.
    pub addresses: BTreeMap<[u8; 16], u64>,
    /// How many devices nobody is known behind: somebody may come.
    pub unclaimed: usize,
    /// Declared workloads whose networks have [`ways_out`]: a cgroup of each, or 0 for several, and the devices.
    pub open: Vec<(u64, Vec<String>)>,
    /// What somebody should know, sorted.
    pub problems: Vec<String>,
}

/// A device with its owner.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Owned {
    /// The device.
    pub device: Device,
    /// A cgroup of the workload, or 0; [`HOST_OWNER`].
    pub cgroup: u64,
}

impl Owners {
    /// How many devices lead to workloads, and how many are the host's.
    #[must_use]
    pub fn devices_of_each(&self) -> (usize, usize) {
        let of_host = self.devices.values().filter(|owned| owned.cgroup == HOST_OWNER).count();
        (self.devices.len() - of_host, of_host)
    }

    /// The addresses of workloads, with a cgroup of each.
    pub fn of_workloads(&self) -> impl Iterator<Item = (&[u8; 16], u64)> {
        self.addresses.iter().map(|(address, cgroup)| (address, *cgroup)).filter(|(_, cgroup)| *cgroup != HOST_OWNER)
    }
}

/// What is known about the cgroups of the host.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Their labels.
    pub labels: &'a BTreeMap<u64, IdentSlot>,
    /// Whether they are all there are. If not, a device that none of them is behind belongs to nobody here.
    pub whole_host: bool,
}

/// Says who owns each device and address. `before` settles who was first.
#[must_use]
pub fn owners(devices: &[Device], networks: &BTreeMap<i32, Network>, known: Known<'_>, before: &Owners) -> Owners {
    let mut owners = Owners::default();
    let nobody = Network::default();
    for (&netns, behind) in &by_netns(devices) {
        let network = networks.get(&netns).unwrap_or(&nobody);
        if !known.whole_host && !network.cgroups.iter().any(|id| known.labels.contains_key(id)) {
            owners.unclaimed += behind.len();
            continue;
        }
        let held =
            behind.iter().filter_map(|device| before.devices.get(&device.index)).map(|owned| owned.cgroup).next();
        let owner = owner_of(network, known.labels, held);
        if owner == Owner::Several {
            let names: Vec<&str> = behind.iter().map(|device| device.name.as_str()).collect();
            owners.problems.push(format!(
                "several workloads share the network behind `{}`: what passes there by no socket of theirs is `unknown`",
                names.join("`, `")
            ));
        }
        let cgroup = owner.cgroup();
        owners.unclaimed += if owner == Owner::Nobody { behind.len() } else { 0 };
        for &device in behind {
            owners.devices.insert(device.index, Owned { device: device.clone(), cgroup });
        }
        for &(address, way) in &network.addresses {
            let is_sent_here = behind.iter().any(|d| way == Some(d.index) || way.is_some() && way == d.controller);
            if is_sent_here || is_link_local(address) {
                claim(&mut owners, address, cgroup, before);
            }
        }
    }
    for network in networks.values().filter(|network| !network.ways_out.is_empty()) {
        let is_declared = |id| known.labels.get(id).is_some_and(|slot| slot.flags & ident_flags::DECLARED != 0);
        if network.cgroups.iter().any(is_declared) {
            let owner = owner_of(network, known.labels, None).cgroup();
            owners.open.push((owner, network.ways_out.clone()));
        }
    }
    owners.problems.sort();
    owners
}

/// Adds what is the host's: devices that lead to no workload, and addresses.
pub fn own_by_host(owners: &mut Owners, host: &Host) {
    for device in &host.devices {
        owners.devices.entry(device.index).or_insert_with(|| Owned { device: device.clone(), cgroup: HOST_OWNER });
    }
    // Those of loopback are any host's, and count by themselves where they are used.
    for address in host.addresses.iter().filter(|address| !address.is_loopback()) {
        owners.addresses.insert(octets(*address), HOST_OWNER);
    }
}

fn claim(owners: &mut Owners, address: IpAddr, cgroup: u64, before: &Owners) {
    let key = octets(address);
    match owners.addresses.get(&key) {
        Some(&other) if other != cgroup => {
            let first = before.addresses.get(&key).copied().filter(|&first| first == other || first == cgroup);
            owners.addresses.insert(key, first.unwrap_or(0));
            // Each link may have the same ones.
            if !is_link_local(address) {
                let who = if first.is_some() { "the first one has it" } else { "it is nobody's" };
                owners.problems.push(format!("several workloads have the address {address}: {who}"));
            }
        }
        _ => drop(owners.addresses.insert(key, cgroup)),
    }
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Owner {
    One(u64),
    Several,
    Nobody,
}

impl Owner {
    const fn cgroup(self) -> u64 {
        match self {
            Self::One(cgroup) => cgroup,
            Self::Several | Self::Nobody => 0,
        }
    }
}

/// Whoever policy declares counts before the rest: somebody who looks into a network does not take it over.
fn owner_of(network: &Network, labels: &BTreeMap<u64, IdentSlot>, held: Option<u64>) -> Owner {
    for flag in [ident_flags::DECLARED, ident_flags::LABELLED] {
        let here = network.cgroups.iter().filter_map(|id| labels.get(id).map(|slot| (*id, slot)));
        let here: Vec<_> = here.filter(|(_, slot)| slot.flags & flag != 0 && !slot.id.is_unknown()).collect();
        let mut ids: Vec<u64> = here.iter().map(|(_, slot)| slot.id.0).collect();
        ids.sort_unstable();
        ids.dedup();
        match (ids.as_slice(), here.as_slice()) {
            ([], _) | (_, []) => {}
            // As long as it can stay, so that flows go on.
            ([_], [(first, _), ..]) => {
                let stays = held.filter(|held| here.iter().any(|(id, _)| id == held));
                return Owner::One(stays.unwrap_or(*first));
            }
            _ => return Owner::Several,
        }
    }
    Owner::Nobody
}

fn by_netns(devices: &[Device]) -> BTreeMap<i32, Vec<&Device>> {
    let mut by_netns: BTreeMap<i32, Vec<&Device>> = BTreeMap::new();
    for device in devices {
        by_netns.entry(device.netns).or_default().push(device);
    }
    by_netns
}

/// fe80::/10 and 169.254.0.0/16: of one link, so that no route leads there.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use agent_common::id::IdentityId;

    use super::*;

    const WEB: u64 = 10;
    const WEB_CHILD: u64 = 11;
    const DB: u64 = 20;
    const SHELL: u64 = 30;

    fn labels() -> BTreeMap<u64, IdentSlot> {
        let slot = |id, flags| IdentSlot { id: IdentityId(id), flags, ..IdentSlot::default() };
        let declared = ident_flags::LABELLED | ident_flags::DECLARED;
        [
            (WEB, slot(1000, declared)),
            (WEB_CHILD, slot(1000, declared)),
            (DB, slot(2000, declared)),
            (SHELL, slot(3000, ident_flags::LABELLED)),
        ]
        .into()
    }

    fn device(index: u32, netns: i32) -> Device {
        Device { index, name: format!("veth{index}"), netns, controller: None, hardware: 0 }
    }

    fn network(cgroups: &[u64], addresses: &[(&str, Option<u32>)]) -> Network {
        let addresses = addresses.iter().map(|&(address, way)| (address.parse().unwrap(), way)).collect();
        Network { cgroups: cgroups.iter().copied().collect(), addresses, ways_out: Vec::new() }
    }

    fn decide(devices: &[Device], networks: &[(i32, Network)], before: &Owners) -> Owners {
        let labels = labels();
        owners(devices, &networks.iter().cloned().collect(), Known { labels: &labels, whole_host: true }, before)
    }

    fn cgroup_of(owners: &Owners, index: u32) -> Option<u64> {
        owners.devices.get(&index).map(|owned| owned.cgroup)
    }

    fn address(owners: &Owners, address: &str) -> Option<u64> {
        owners.addresses.get(&octets(address.parse().unwrap())).copied()
    }

    #[test]
    fn a_device_and_its_addresses_are_those_of_who_lives_behind_it() {
        let devices = [device(1, 0), device(2, 1), device(3, 2)];
        let networks = [
            (0, network(&[WEB], &[("10.0.0.1", Some(1)), ("fd00::1", Some(1)), ("fe80::1", None)])),
            (1, network(&[DB], &[("10.0.0.2", Some(2))])),
        ];
        let owners = decide(&devices, &networks, &Owners::default());
        assert_eq!([1, 2, 3].map(|index| cgroup_of(&owners, index)), [Some(WEB), Some(DB), Some(0)]);
        for (text, owner) in [("10.0.0.1", WEB), ("fd00::1", WEB), ("fe80::1", WEB), ("10.0.0.2", DB)] {
            assert_eq!(address(&owners, text), Some(owner), "{text}");
        }
        assert_eq!((owners.unclaimed, owners.problems.len()), (1, 0));
    }

    #[test]
    fn an_address_counts_only_if_the_host_sends_it_to_that_device() {
        let bridged = Device { controller: Some(9), ..device(1, 0) };
        let claimed = [
            ("10.0.0.1", Some(9)),
            // Another device, the host itself, nowhere.
            ("192.0.2.1", Some(4)),
            ("10.0.0.254", Some(1_000)),
            ("203.0.113.1", None),
        ];
        let owners = decide(&[bridged], &[(0, network(&[WEB], &claimed))], &Owners::default());
        assert_eq!(owners.addresses.len(), 1);
        assert_eq!(address(&owners, "10.0.0.1"), Some(WEB));
    }

    #[test]
    fn the_first_one_keeps_an_address_that_another_claims() {
        let devices = [1, 2].map(|n| Device { controller: Some(9), ..device(n, n.cast_signed()) });
        let of = |web: &[_], db: &[_]| [(1, network(&[WEB], web)), (2, network(&[DB], db))];
        let claimed = ("10.0.0.7", Some(9));
        let alone = decide(&devices, &of(&[], &[claimed]), &Owners::default());
        assert_eq!((address(&alone, "10.0.0.7"), alone.problems.len()), (Some(DB), 0));
        let both = decide(&devices, &of(&[claimed], &[claimed]), &alone);
        assert_eq!((address(&both, "10.0.0.7"), both.problems.len()), (Some(DB), 1));
        // Nobody was first.
        let unclear = decide(&devices, &of(&[claimed], &[claimed]), &Owners::default());
        assert_eq!((address(&unclear, "10.0.0.7"), unclear.problems.len()), (Some(0), 1));
        // Whoever is left has it.
        let moved = decide(&devices, &of(&[claimed], &[]), &both);
        assert_eq!((address(&moved, "10.0.0.7"), moved.problems.len()), (Some(WEB), 0));
    }

    #[test]
    fn who_only_looks_into_a_network_does_not_own_it() {
        let devices = [device(1, 0)];
        let of = |cgroups: &[u64], before: &Owners| {
            cgroup_of(&decide(&devices, &[(0, network(cgroups, &[]))], before), 1).unwrap()
        };
        let none = Owners::default();
        assert_eq!(of(&[SHELL], &none), SHELL);
        assert_eq!(of(&[SHELL, WEB], &none), WEB);
        assert_eq!(of(&[777], &none), 0, "no label");
        assert_eq!(of(&[WEB, DB], &none), 0, "several");
        let shared = decide(&devices, &[(0, network(&[WEB, DB], &[("10.0.0.1", Some(1))]))], &none);
        assert_eq!((address(&shared, "10.0.0.1"), shared.problems.len()), (Some(0), 1));
        // Several cgroups of one workload: the same stays for as long as it is there.
        let child = decide(&devices, &[(0, network(&[WEB_CHILD], &[]))], &none);
        assert_eq!(of(&[WEB, WEB_CHILD], &none), WEB);
        assert_eq!(of(&[WEB, WEB_CHILD], &child), WEB_CHILD);
        assert_eq!(of(&[WEB], &child), WEB);
    }

    #[test]
    fn a_way_out_of_a_network_is_a_device_that_leads_elsewhere_past_those_that_are_guarded() {
        let inside = |index, name: &str, kind: Option<&str>, leads_elsewhere| Inside {
            index,
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
            is_loopback: index == 1,
            leads_elsewhere,
        };
        let devices = [
            inside(1, "lo", None, false),
            inside(2, "eth0", Some("veth"), true),
            // On eth0, and between two of its own.
            inside(3, "mine", Some("macvlan"), false),
            inside(4, "pair", Some("veth"), false),
            inside(5, "share", Some("macvlan"), true),
            // To a third network.
            inside(6, "side", Some("veth"), true),
            inside(7, "vf", None, false),
        ];
        let ways = ways_out(&devices, &[2].into());
        assert_eq!(ways, ["`share` (macvlan)", "`side` (veth)", "`vf` (hardware)"]);

        let network = |cgroups: &[u64]| Network { ways_out: ways.clone(), ..network(cgroups, &[]) };
        let networks = [(0, network(&[WEB])), (1, network(&[SHELL])), (2, network(&[777])), (3, network(&[WEB, DB]))];
        let owners = decide(&[], &networks, &Owners::default());
        assert_eq!(owners.open, [(WEB, ways.clone()), (0, ways.clone())], "of who is declared");
    }

    #[test]
    fn a_device_of_nobody_in_the_scope_is_left_alone() {
        let labels = labels();
        let networks = [(0, network(&[WEB], &[])), (1, network(&[777], &[("10.0.0.1", Some(2))]))].into();
        let devices = [device(1, 0), device(2, 1), device(3, 2)];
        let known = Known { labels: &labels, whole_host: false };
        let owners = owners(&devices, &networks, known, &Owners::default());
        assert_eq!((owners.devices.keys().copied().collect::<Vec<_>>(), owners.addresses.len()), (vec![1], 0));
        assert_eq!(owners.unclaimed, 2);
    }

    #[test]
    fn what_leads_to_no_workload_is_the_hosts_and_so_are_its_addresses() {
        let networks = [(1, network(&[WEB], &[("10.0.0.2", Some(7)), ("fe80::1", None)]))];
        let mut owners = decide(&[device(7, 1)], &networks, &Owners::default());
        let addresses = ["192.0.2.1", "127.0.0.1", "::1", "fe80::1"].map(|address| address.parse().unwrap());
        let host = Host { devices: vec![device(1, 0), device(7, 0)], addresses: addresses.to_vec() };
        own_by_host(&mut owners, &host);
        assert_eq!((cgroup_of(&owners, 1), cgroup_of(&owners, 7)), (Some(HOST_OWNER), Some(WEB)));
        assert_eq!(owners.devices_of_each(), (1, 1));
        assert_eq!((address(&owners, "192.0.2.1"), address(&owners, "10.0.0.2")), (Some(HOST_OWNER), Some(WEB)));
        assert_eq!(
            address(&owners, "fe80::1"),
            Some(HOST_OWNER),
            "a workload that claims one of the host's has it not"
        );
        assert_eq!((address(&owners, "127.0.0.1"), address(&owners, "::1")), (None, None));
        assert_eq!(owners.of_workloads().count(), 1);
    }
}
