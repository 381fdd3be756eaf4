//! The running kernel side: loads the programs on the maps that are pinned, and adopts what an earlier
//! agent left running.

pub(super) mod attach;
mod check;
mod config;
pub(super) mod devices;
mod dns;
mod fill;
mod held;
mod links;
mod neighbours;
mod others;
mod read;

use agent_common::{
    cached::Keys,
    id::{Epoch, IdentityId},
    layout::{
        AddrNames, DenyCounter, DenyKey, DenyStat, DeviceEntry, FlowKey, FlowState, IdentEntry, RuleStat, Settings,
        UidKey, names::map,
    },
};
use std::{collections::BTreeMap, os::fd::OwnedFd};

use aya::{Ebpf, EbpfLoader, maps::MapData};

pub use self::{
    check::Questions,
    config::{DatapathConfig, DatapathError, Identities, Prepared, Runs},
    devices::Device,
    held::{Held, RawElement},
    links::{Act, Finding, Look, Object, Place},
    neighbours::Neighbour,
    read::forget_idle,
};
use super::{
    btf::Btf,
    log, object,
    pins::{self, Pins},
    release,
    table::Table,
};
use crate::policy::plan::{Capacity, UID_ENTRIES};

/// The running kernel side.
pub struct Datapath {
    config: DatapathConfig,
    ebpf: Ebpf,
    pins: Pins,
    cpus: usize,
    edges: Table<u32, u32>,
    spill: Table<u32, u32>,
    addr_ext: Table<u32, u32>,
    dns_names: Table<u32, u32>,
    dns_addrs: Table<[u8; 16], AddrNames>,
    dns_used: Table<IdentityId, u64>,
    cgrp_ident: Table<u64, IdentEntry>,
    uid_ident: Table<UidKey, IdentEntry>,
    dev_owner: Table<u32, DeviceEntry>,
    addr_owner: Table<[u8; 16], u64>,
    epoch: Table<u32, u64>,
    settings: Table<u32, Settings>,
    flows: Table<FlowKey, FlowState>,
    flow_quota: Table<u64, u64>,
    recent_turn: Table<u32, u32>,
    rule_stats: Table<u32, RuleStat>,
    deny_counts: Table<u32, u64>,
    deny_seen: Table<DenyKey, DenyStat>,
    deny_folded: Table<[u64; 2], DenyStat>,
    in_force: Epoch,
    /// Whether devices are guarded by TCX, and not by `clsact`.
    has_tcx: bool,
    /// What the maps of maps and the settings hold of the policy in force; none before this agent's first.
    side: Option<Side>,
    /// The numbers of the programs.
    numbers: BTreeMap<&'static str, u32>,
    /// What is attached.
    links: BTreeMap<Place, links::Link>,
    /// Every map, and its pin.
    maps: BTreeMap<&'static str, pins::Held>,
    /// The directories of the pins as they were when all pins were there.
    pins_seen: Option<pins::State>,
    /// How often all of it was looked at.
    looks: u32,
}

/// The policy in force as the kernel holds it.
struct Side {
    settings: Settings,
    /// Map of maps, number of the map in it, and that map.
    inner: [(&'static str, u32, OwnedFd); 4],
}

impl Datapath {
    /// Loads the programs on the pinned maps, making those that are missing. Attaches nothing yet:
    /// what an earlier agent attached goes on with its own programs.
    ///
    /// # Errors
    ///
    /// [`DatapathError`]. What was pinned before is untouched.
    pub fn load(config: DatapathConfig) -> Result<Self, DatapathError> {
        let bytes = object::bytes().ok_or(DatapathError::NoPrograms)?;
        if let Some(why) = release::refusal() {
            return Err(DatapathError::OldKernel(why));
        }
        let pins = Pins::open(&config.pins, &config.run)?;
        let btf = Btf::of_kernel()?;
        // Without them every function is checked as a part of its callers: that takes minutes, and then fails.
        if !aya::features().btf().is_some_and(|btf| btf.btf_func_global()) {
            return Err(DatapathError::NoFunctionTypes);
        }
        let (kn, id) = (btf.offset("cgroup", "kn")?, btf.offset("kernfs_node", "id")?);
        let parent = btf.offset("cgroup", "self")? + btf.offset("cgroup_subsys_state", "parent")?;
        let mut secret = [0; size_of::<Keys>()];
        rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| DatapathError::Secret(e.into()))?;
        let secret = secret.as_chunks().0.iter().map(|key| u64::from_ne_bytes(*key)).collect::<Vec<_>>();

        let guard_host = u32::from(config.host);
        others::share_sockets(&pins)?;
        let mut loader = EbpfLoader::new();
        loader
            .override_global("KEYS", secret.as_slice(), true)
            .override_global("OFF_CGROUP_KN", &kn, true)
            .override_global("OFF_KN_ID", &id, true)
            .override_global("OFF_PARENT", &parent, true)
            .override_global("GUARD_HOST", &guard_host, true)
            .override_global(log::LEVEL, log::level(config.kernel_log), log::BUILT_IN)
            .map_max_entries(log::RING, log::room(config.kernel_log))
            .map_max_entries(map::CGRP_IDENT, config.capacity.cgroups)
            .map_max_entries(map::FLOWS, config.capacity.flows);
        for name in map::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader.load(bytes).map_err(DatapathError::Load)?;
        check_shapes(&pins, &config.capacity)?;
        let numbers = attach::load_programs(&mut ebpf, &config)?;
        let mut maps = BTreeMap::new();
        for name in map::ALL {
            let held = pins::Held::open(pins.map(name));
            maps.extend(held.map_err(|e| DatapathError::Map(name, e.into()))?.map(|held| (name, held)));
        }

        let has_tcx = config.tcx && (!config.devices || devices::has_tcx(&ebpf)?);

        let cpus = aya::util::nr_cpus().map_err(|(_, e)| DatapathError::Secret(e))?;
        let mut datapath = Self {
            edges: Table::open(&pins.map(map::EDGES), map::EDGES)?,
            spill: Table::open(&pins.map(map::SPILL), map::SPILL)?,
            addr_ext: Table::open(&pins.map(map::ADDR_EXT), map::ADDR_EXT)?,
            dns_names: Table::open(&pins.map(map::DNS_NAMES), map::DNS_NAMES)?,
            dns_addrs: Table::open(&pins.map(map::DNS_ADDRS), map::DNS_ADDRS)?,
            dns_used: Table::open(&pins.map(map::DNS_USED), map::DNS_USED)?,
            cgrp_ident: Table::open(&pins.map(map::CGRP_IDENT), map::CGRP_IDENT)?,
            uid_ident: Table::open(&pins.map(map::UID_IDENT), map::UID_IDENT)?,
            dev_owner: Table::open(&pins.map(map::DEV_OWNER), map::DEV_OWNER)?,
            addr_owner: Table::open(&pins.map(map::ADDR_OWNER), map::ADDR_OWNER)?,
            epoch: Table::open(&pins.map(map::EPOCH), map::EPOCH)?,
            settings: Table::open(&pins.map(map::SETTINGS), map::SETTINGS)?,
            flows: Table::open(&pins.map(map::FLOWS), map::FLOWS)?,
            flow_quota: Table::open(&pins.map(map::FLOW_QUOTA), map::FLOW_QUOTA)?,
            recent_turn: Table::of_object(&ebpf, map::RECENT_TURN)?,
            rule_stats: Table::open(&pins.map(map::RULE_STATS), map::RULE_STATS)?,
            deny_counts: Table::open(&pins.map(map::DENY_COUNTS), map::DENY_COUNTS)?,
            deny_seen: Table::open(&pins.map(map::DENY_SEEN), map::DENY_SEEN)?,
            deny_folded: Table::open(&pins.map(map::DENY_FOLDED), map::DENY_FOLDED)?,
            in_force: Epoch(0),
            has_tcx,
            side: None,
            numbers,
            links: BTreeMap::new(),
            maps,
            pins_seen: None,
            looks: 0,
            config,
            ebpf,
            pins,
            cpus,
        };
        let epoch = datapath.epoch.get(&0)?.unwrap_or(0);
        datapath.in_force = Epoch(u32::try_from(epoch).unwrap_or(0));
        Ok(datapath)
    }

    /// The epoch in force; 0 = no policy was ever applied.
    #[must_use]
    pub const fn in_force(&self) -> Epoch {
        self.in_force
    }
}

/// aya takes a pinned map as it is, so what is pinned is compared here.
fn check_shapes(pins: &Pins, capacity: &Capacity) -> Result<(), DatapathError> {
    let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    for (name, key, value, entries) in [
        (map::CGRP_IDENT, 8, size(size_of::<IdentEntry>()), capacity.cgroups),
        (map::UID_IDENT, size(size_of::<UidKey>()), size(size_of::<IdentEntry>()), UID_ENTRIES),
        (map::FLOWS, size(size_of::<FlowKey>()), size(size_of::<FlowState>()), capacity.flows),
        (map::DEV_OWNER, 4, size(size_of::<DeviceEntry>()), 4_096),
        (map::ADDR_OWNER, 16, 8, 16_384),
        (map::SETTINGS, 4, size(size_of::<Settings>()), 2),
        (map::EDGES, 4, 4, 2),
        (map::DNS_ADDRS, 16, size(size_of::<AddrNames>()), 65_536),
        (map::DNS_USED, 8, 8, 4_096),
        (map::RULE_STATS, 4, size(size_of::<RuleStat>()), 32_768),
        (map::DENY_SEEN, size(size_of::<DenyKey>()), size(size_of::<DenyStat>()), 65_536),
        (map::DENY_COUNTS, 4, 8, DenyCounter::COUNT),
    ] {
        let info = MapData::from_pin(pins.map(name)).and_then(|m| m.info());
        let info = info.map_err(|e| DatapathError::Map(name, e))?;
        for (what, found, wanted) in [
            ("a key size of", info.key_size(), key),
            ("a value size of", info.value_size(), value),
            ("a capacity of", info.max_entries(), entries),
        ] {
            if found != wanted {
                return Err(DatapathError::Shape { map: name, what, found, wanted });
            }
        }
    }
    Ok(())
}
