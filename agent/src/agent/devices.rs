//! Devices of workloads: found, guarded, followed.
//!
//! Something has changed: look at everything again, decide who owns what, and bring the kernel side there. What a
//! look costs grows with the host, so looks are some time apart.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd},
};

use agent_common::{
    id::IdentityId,
    layout::{HOST_OWNER, PrefixKey, hardware, ident_flags},
};
use anyhow::{Context as _, Result};
use tracing::info;

use super::{core::Core, roster::Roster};
use crate::{
    clock,
    control::wire::GuardedDevice,
    datapath::{self, DatapathError},
    events::escape::{KERNEL_NAME_CHARS_MAX, escape},
    identity::devices::{Device, Host, Inside, Known, Network, Owned, Owners, own_by_host, owners, ways_out},
    policy::{ask::octets, map_state::MapState, names},
    sources::{
        devices::{Devices, DevicesError, Link},
        netns,
    },
};

/// Problem of `status`.
const PROBLEM: &str = "devices";
/// Between two looks: a storm of devices is looked at together, and a new one is guarded before anybody notices.
const APART_NS: u64 = 20_000_000;
/// As long as every look finds changes, it is twice as long each time, up to [`AGAIN_NS`]: whoever may configure a
/// network of its own can do so without end.
const CALM_NS: u64 = 2_000_000_000;
/// A process can enter a network without a word from the kernel: how often to look while nobody is known behind a
/// device, or something failed, and how often otherwise.
const AGAIN_NS: u64 = 1_000_000_000;
const QUIET_NS: u64 = 10_000_000_000;
/// How often to look again at what changes while it is looked at.
const LOOKS_MAX: usize = 3;
/// In the place of a workload.
const HOST: &str = "(host)";
/// Kinds of devices that have another end.
const KINDS: [&str; 2] = ["veth", "netkit"];

/// What is watched, and how far the kernel side is.
pub(super) struct Watch {
    source: Option<Devices>,
    owners: Owners,
    stale: bool,
    failed: bool,
    apart_ns: u64,
    looked_ns: u64,
}

impl Watch {
    /// Begins to listen in the network namespace of the calling thread; `None` is not to.
    pub(super) fn new(source: Option<Devices>) -> Self {
        Self { source, owners: Owners::default(), stale: true, failed: false, apart_ns: APART_NS, looked_ns: 0 }
    }

    /// Who owns what, as the kernel side has it.
    pub(super) const fn owners(&self) -> &Owners {
        &self.owners
    }

    /// To wait on.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.source.as_ref().map(|source| source.as_fd())
    }

    /// Says whether something could not be brought into the kernel at the last look.
    pub(super) const fn has_failed(&self) -> bool {
        self.failed
    }

    /// Lets the next look come soon.
    pub(super) const fn look_soon(&mut self) {
        self.stale = true;
    }

    /// How long until the next look, if nothing happens before; `None` is never.
    pub(super) fn wait_ns(&self, now: u64) -> Option<u64> {
        self.source.as_ref()?;
        let apart = match (self.stale, self.failed || self.owners.unclaimed > 0) {
            (true, _) => self.apart_ns,
            (false, true) => AGAIN_NS,
            (false, false) => QUIET_NS,
        };
        Some((self.looked_ns + apart).saturating_sub(now))
    }

    /// Notes that a look is over, and whether it found anything new.
    fn looked(&mut self, now: u64, changes: bool) {
        let calm = now.saturating_sub(self.looked_ns) > CALM_NS;
        self.apart_ns = if calm || !changes { APART_NS } else { (self.apart_ns * 2).min(AGAIN_NS) };
        self.looked_ns = now;
    }

    fn hear(&mut self) -> Result<(), DevicesError> {
        if let Some(source) = &self.source {
            while source.changed()? {
                self.stale = true;
            }
        }
        Ok(())
    }
}

impl Core {
    /// Takes over what an earlier agent left: before the first policy, which cuts by what addresses stand for.
    pub(super) fn adopt_devices(&mut self) -> Result<(), DatapathError> {
        let owned = self.datapath.guarded_devices()?.into_iter().map(|(index, entry)| {
            // Without a name, so that its programs are put there anew.
            let device = Device {
                index,
                name: String::new(),
                netns: entry.netns.cast_signed(),
                controller: None,
                hardware: entry.hardware,
            };
            (index, Owned { device, cgroup: entry.cgroup })
        });
        self.watch.owners.devices = owned.collect();
        self.watch.owners.addresses = self.datapath.owned_addresses()?;
        Ok(())
    }

    /// Says whether something has changed that was not looked at yet.
    pub(super) fn devices_changed(&mut self) -> bool {
        if let Err(e) = self.watch.hear() {
            self.tell(PROBLEM, Some(format!("{:#}", anyhow::Error::from(e))));
        }
        self.watch.stale
    }

    /// Looks at devices if something has changed, or if it is time.
    pub(super) fn follow_devices(&mut self) {
        self.devices_changed();
        if self.watch.wait_ns(clock::now().boot_ns) == Some(0) {
            self.look_at_devices();
        }
    }

    /// Looks at devices now.
    pub(super) fn look_at_devices(&mut self) {
        let epoch = self.datapath.in_force();
        let problems = self.try_look_at_devices().unwrap_or_else(|e| {
            self.watch.failed = true;
            vec![format!("look at the devices of workloads: {e:#}; what is guarded stays so")]
        });
        self.watch.looked(clock::now().boot_ns, self.datapath.in_force() != epoch);
        self.tell(PROBLEM, (!problems.is_empty()).then(|| problems.join("; ")));
    }

    fn try_look_at_devices(&mut self) -> Result<Vec<String>> {
        let Some(source) = &self.watch.source else {
            return self.own(Owners::default());
        };
        let mut tries = 0;
        let View { devices, networks, host, unread } = loop {
            self.watch.stale = false;
            let found = look(source, &self.roster, self.config.guards_host())?;
            tries += 1;
            // Numbers of namespaces are given again: what changed meanwhile may be a mixture.
            while source.changed()? {
                self.watch.stale = true;
            }
            if !self.watch.stale || tries == LOOKS_MAX {
                break found;
            }
        };
        let known = Known { labels: &self.labels.cgroups, whole_host: self.config.scope == "/" };
        let mut owners = owners(&devices, &networks, known, &self.watch.owners);
        own_by_host(&mut owners, &host);
        owners.problems.extend(unread);
        self.own(owners)
    }

    /// Brings the kernel side there; returns what went wrong, which is tried again.
    fn own(&mut self, wanted: Owners) -> Result<Vec<String>> {
        let Owners { devices, addresses, unclaimed, open, mut problems } = wanted;
        problems.extend(open.iter().map(|(cgroup, devices)| {
            format!(
                "{} also has {} in its network, where no program of eastwall's is: what leaves or enters there by no \
                 socket is judged by nobody",
                self.who_lives_there(*cgroup),
                devices.join(", ")
            )
        }));
        let (known, mut changes) = (problems.len(), 0);
        let Self { datapath, watch, .. } = self;
        let mut did = |result: Result<(), DatapathError>, what: &str, name: &str| {
            let done = result.is_ok();
            match result {
                Ok(()) => changes += 1,
                Err(e) => problems.push(format!("{what} {name}: {:#}", anyhow::Error::from(e))),
            }
            done
        };
        let now = &mut watch.owners;
        // Addresses first: a device drops what comes from an address that is not its workload's.
        for (&address, &cgroup) in &addresses {
            if now.addresses.get(&address) != Some(&cgroup)
                && did(
                    datapath.own_address(&address, cgroup),
                    "say whose an address is:",
                    &address_of(&address).to_string(),
                )
            {
                now.addresses.insert(address, cgroup);
            }
        }
        now.addresses.retain(|address, _| {
            addresses.contains_key(address)
                || !did(
                    datapath.disown_address(address),
                    "forget whose an address was:",
                    &address_of(address).to_string(),
                )
        });
        for (index, owned) in &devices {
            if now.devices.get(index) == Some(owned) {
                continue;
            }
            let Owned { device: Device { name, netns, hardware, .. }, cgroup } = owned;
            let device = datapath::Device { index: *index, netns: *netns, hardware: *hardware };
            if did(datapath.guard_device(&device, *cgroup), "guard the device", name) {
                now.devices.insert(*index, owned.clone());
            } else {
                // Whatever is there now, it is not what was.
                now.devices.remove(index);
            }
        }
        now.devices.retain(|index, owned| {
            devices.contains_key(index)
                || !did(datapath.release_device(*index), "release the device", &owned.device.name)
        });
        let (devices, addresses) = (now.devices.len(), now.addresses.len());
        now.unclaimed = unclaimed;
        watch.failed = problems.len() > known;
        if changes > 0 {
            info!(devices, addresses, "who owns which device and address has changed");
            self.datapath.ask_again().context("let every flow be decided again")?;
            self.install_names();
            self.cut();
        }
        Ok(problems)
    }

    /// What is guarded, for `devices`.
    pub(super) fn guarded(&self) -> Vec<GuardedDevice> {
        let owners = self.watch.owners();
        let row = |owned: &Owned| {
            let is_host = owned.cgroup == HOST_OWNER;
            let name = self.labels.cgroups.get(&owned.cgroup).and_then(|slot| self.labels.names.get(&slot.id));
            let of_it = owners.of_workloads().filter(|(_, cgroup)| owned.cgroup != 0 && *cgroup == owned.cgroup);
            GuardedDevice {
                device: escape(owned.device.name.as_bytes(), KERNEL_NAME_CHARS_MAX).text,
                index: owned.device.index,
                workload: match name {
                    _ if is_host => HOST.to_owned(),
                    Some(name) => name.short.clone(),
                    None => names::UNKNOWN.to_owned(),
                },
                cgroup: if is_host { 0 } else { owned.cgroup },
                addresses: of_it.map(|(address, _)| address_of(address)).collect(),
            }
        };
        let mut rows: Vec<GuardedDevice> = owners.devices.values().map(row).collect();
        rows.sort_by(|a, b| a.device.cmp(&b.device));
        rows
    }

    /// The policy in force, in which the addresses of workloads here stand for them, and those that are asked about have
    /// the names that answers of resolvers gave them: for questions about addresses.
    pub(super) fn state_here(&self, asked: &[IpAddr]) -> Result<MapState> {
        let mut state = (*self.state).clone();
        let now = clock::boot_seconds();
        for address in asked {
            let addr = octets(*address);
            if self.watch.owners.addresses.get(&addr).is_some_and(|&owner| owner != HOST_OWNER)
                || state.peers.names(address.to_canonical()).is_some()
            {
                continue;
            }
            if let Some(names) = self.datapath.dns_names(&addr)? {
                state.named.insert(addr, names.live(now.0, false).collect());
            }
        }
        for (addr, id) in self.named_addresses() {
            state.prefixes.insert(PrefixKey { bits: 128, addr }, id);
            let name = self.labels.names.get(&id).map(|name| name.short.clone());
            state.names.entry(id).or_insert_with(|| name.unwrap_or_else(|| names::UNKNOWN.to_owned()));
        }
        Ok(state)
    }

    fn who_lives_there(&self, cgroup: u64) -> String {
        let id = self.labels.cgroups.get(&cgroup).map(|slot| slot.id);
        match id.and_then(|id| self.labels.names.get(&id)) {
            Some(name) => format!("`{}`", name.short),
            None => "a network of several workloads".to_owned(),
        }
    }

    /// Who has which address, for what is decided outside of the kernel.
    pub(super) fn named_addresses(&self) -> BTreeMap<[u8; 16], IdentityId> {
        let id = |cgroup: u64| {
            let slot = self.labels.cgroups.get(&cgroup).filter(|slot| slot.flags & ident_flags::LABELLED != 0);
            slot.map_or(IdentityId::UNKNOWN, |slot| slot.id)
        };
        self.watch.owners.of_workloads().map(|(address, cgroup)| (*address, id(cgroup))).collect()
    }
}

/// What a look found.
struct View {
    devices: Vec<Device>,
    networks: BTreeMap<i32, Network>,
    host: Host,
    /// What could not be read of single namespaces. A workload can bring that about, and harms none but itself.
    unread: Vec<String>,
}

fn look(source: &Devices, roster: &Roster, with_host: bool) -> Result<View> {
    let links = source.links()?;
    let (mut host, mut unread) = (Host::default(), Vec::new());
    if with_host {
        host.devices = links.iter().map(device_of_host).collect();
        host.addresses = source.own_addresses().unwrap_or_else(|e| {
            unread.push(format!("no address counts as the host's: {:#}", anyhow::Error::from(e)));
            Vec::new()
        });
    }
    let peers: HashMap<u32, u32> = links.iter().filter_map(|link| Some((link.index, link.peer?))).collect();
    let mut devices: Vec<Device> = links.into_iter().filter_map(device).collect();
    let wanted: BTreeSet<i32> = devices.iter().map(|device| device.netns).collect();
    let mut networks: BTreeMap<i32, Network> = BTreeMap::new();
    // Of several of one path, all but the last are removed.
    let ids: HashMap<&str, u64> = roster.nodes().map(|node| (node.path.as_str(), node.id)).collect();
    for inhabited in netns::others().context("list the network namespaces")? {
        let here = inhabited.cgroups.iter().filter_map(|path| ids.get(path.as_str())).copied();
        let here: Vec<u64> = here.collect();
        let mut id = source.nsid(inhabited.netns.as_fd())?;
        if id.is_none() && !here.is_empty() {
            // No device of the host leads there.
            id = source.give_nsid(inhabited.netns.as_fd()).unwrap_or_else(|e| {
                unread.push(not_looked_at(e));
                None
            });
        }
        let Some(netns) = id.filter(|id| wanted.contains(id) || !here.is_empty()) else { continue };
        networks.entry(netns).or_default().cgroups.extend(here);
    }
    for netns in wanted.iter().chain(networks.keys()).copied().collect::<BTreeSet<i32>>() {
        // Where no device of the host leads, no address is sent to.
        let addresses = || if wanted.contains(&netns) { addresses(source, netns) } else { Ok(Vec::new()) };
        match source.links_in(netns).and_then(|links| Ok((links, addresses()?))) {
            Ok((links, addresses)) => {
                let mut guarded = BTreeSet::new();
                for device in devices.iter_mut().filter(|device| device.netns == netns) {
                    let there = peers.get(&device.index).and_then(|peer| links.iter().find(|link| link.index == *peer));
                    device.hardware = there.and_then(|link| link.address).map_or(0, hardware);
                    guarded.extend(there.map(|link| link.index));
                }
                let network = networks.entry(netns).or_default();
                network.addresses = addresses;
                network.ways_out = ways_out(&links.into_iter().map(inside).collect::<Vec<_>>(), &guarded);
            }
            // It is gone, and so are its devices.
            Err(DevicesError::NoNamespace { .. }) => {}
            Err(e) if !wanted.contains(&netns) => unread.push(not_looked_at(e)),
            Err(e) => {
                let names = devices.iter().filter(|device| device.netns == netns).map(|device| device.name.as_str());
                let names = names.collect::<Vec<_>>().join("`, `");
                unread.push(format!("no address behind `{names}` counts: {:#}", anyhow::Error::from(e)));
            }
        }
    }
    Ok(View { devices, networks, host, unread })
}

fn addresses(source: &Devices, netns: i32) -> Result<Vec<(IpAddr, Option<u32>)>, DevicesError> {
    source.addresses(netns)?.into_iter().map(|address| Ok((address, source.way_to(address)?))).collect()
}

fn device(link: Link) -> Option<Device> {
    let Link { index, name, kind, peer_netns, controller, .. } = link;
    KINDS.contains(&kind?.as_str()).then_some(())?;
    Some(Device { index, name: name.to_string_lossy().into_owned(), netns: peer_netns?, controller, hardware: 0 })
}

fn device_of_host(link: &Link) -> Device {
    Device {
        index: link.index,
        name: link.name.to_string_lossy().into_owned(),
        netns: 0,
        controller: None,
        hardware: link.address.map_or(0, hardware),
    }
}

fn not_looked_at(e: DevicesError) -> String {
    format!("the network of a workload is not looked at: {:#}", anyhow::Error::from(e))
}

fn inside(link: Link) -> Inside {
    Inside {
        index: link.index,
        // A workload may name it.
        name: escape(link.name.as_encoded_bytes(), KERNEL_NAME_CHARS_MAX).text,
        kind: link.kind.map(|kind| escape(kind.as_bytes(), KERNEL_NAME_CHARS_MAX).text),
        is_loopback: link.is_loopback,
        leads_elsewhere: link.peer_netns.is_some(),
    }
}

/// The reverse of [`crate::policy::ask::octets`].
fn address_of(octets: &[u8; 16]) -> IpAddr {
    IpAddr::from(*octets).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::ask::octets;

    #[test]
    fn an_address_is_found_again() {
        for text in ["10.0.0.1", "fd00::1", "::1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(address_of(&octets(address)), address);
        }
    }
}
