// tidy: long because one type owns the programs, links and maps, and these are its verbs.
//! Loads, attaches and fills the kernel side; adopts one that an earlier agent left running.

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io,
    os::fd::{AsFd as _, BorrowedFd},
    path::PathBuf,
    time::Duration,
};

use agent_common::{
    id::{Epoch, RuleNumber},
    layout::{
        DenyCounter, DenyKey, DenyStat, EdgeEntry, EdgeKey, FlowKey, FlowState, IdentEntry, IdentSlot, RuleStat,
        Settings, UidKey,
        names::{map, program},
    },
};
use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, RingBuf},
    programs::{CgroupAttachMode, Program, links::FdLink},
};

use super::{
    btf::{Btf, BtfError},
    log::{self, KernelLog},
    object,
    pins::{Pins, PinsError},
    ring::Ring,
    sys::{self, MapKind},
    table::{Table, TableError},
};
use crate::policy::map_state::MapState;

/// Where and how to attach.
#[derive(Clone, Debug)]
pub struct DatapathConfig {
    /// Directory of the cgroup to attach to: the root of the hierarchy, or of a scope below it.
    pub cgroup: PathBuf,
    /// Directory of the pins, on bpffs.
    pub pins: PathBuf,
    /// Directory of the lock.
    pub run: PathBuf,
    /// Whether connect and sendmsg refuse early; the packet hooks judge in either case.
    pub fast_refusal: bool,
    /// Whether the programs say what they do ([`Datapath::take_log`]).
    pub kernel_log: bool,
    /// Sizes.
    pub capacity: Capacity,
}

/// How much the maps hold. Compared with the need before the first write.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Capacity {
    /// Edges of one side.
    pub edges: u32,
    /// Cgroups.
    pub cgroups: u32,
    /// Prefixes of one side.
    pub prefixes: u32,
    /// Edges with more than three ranges, of one side.
    pub spills: u32,
    /// Rules of one policy.
    pub rules: u32,
    /// Entries of the flow table.
    pub flows: u32,
}

impl Default for Capacity {
    fn default() -> Self {
        Self { edges: 1 << 20, cgroups: 1 << 16, prefixes: 1 << 16, spills: 4_096, rules: 16_383, flows: 1 << 16 }
    }
}

/// Who is who, as one side of the maps will say it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Identities {
    /// Cgroup id -> slot.
    pub cgroups: BTreeMap<u64, IdentSlot>,
    /// Narrowing by owner of the socket.
    pub uids: BTreeMap<UidKey, IdentSlot>,
}

/// An idle side that is filled and waits for the flip.
#[must_use = "a side that is filled and never used keeps its memory"]
#[derive(Debug)]
pub struct Prepared {
    /// The epoch that will use it.
    pub epoch: Epoch,
}

/// The runs of one program since it was loaded, as far as they were counted.
#[derive(Clone, Copy, Debug)]
pub struct Runs {
    /// How many.
    pub count: u64,
    /// How long all of them took.
    pub time: Duration,
}

/// Why the kernel side could not be set up or changed.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// A build for host tests.
    #[error("this binary was built without the kernel programs; build it without AYA_BUILD_SKIP")]
    NoPrograms,
    /// See there.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// See there.
    #[error(transparent)]
    Btf(#[from] BtfError),
    /// See there.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The kernel refused the object or its maps.
    #[error("load the kernel programs")]
    Load(#[source] aya::EbpfError),
    /// The kernel refused one program.
    #[error("{verb} the program `{program}`")]
    Program {
        /// What was tried.
        verb: &'static str,
        /// Which.
        program: &'static str,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A pinned map has another shape than this version's.
    #[error("the pinned map `{map}` has {what} {found}, this version needs {wanted}; run `eastwall detach` first")]
    Shape {
        /// Which.
        map: &'static str,
        /// Which number of it.
        what: &'static str,
        /// As pinned.
        found: u32,
        /// As needed.
        wanted: u32,
    },
    /// A map could not be made.
    #[error("make a map for {0}")]
    Map(&'static str, #[source] aya::maps::MapError),
    /// The cgroup directory.
    #[error("open the cgroup `{}`", .0.display())]
    Cgroup(PathBuf, #[source] io::Error),
    /// The policy does not fit.
    #[error("E16: the policy needs {needed} {what}, the maps hold {holds}; nothing was changed")]
    Capacity {
        /// Of what.
        what: &'static str,
        /// How many.
        needed: usize,
        /// How many there is room for.
        holds: u32,
    },
    /// Randomness.
    #[error("draw a secret from the kernel")]
    Secret(#[source] io::Error),
}

/// The running kernel side.
pub struct Datapath {
    config: DatapathConfig,
    ebpf: Ebpf,
    pins: Pins,
    cpus: usize,
    edges: Table<u32, u32>,
    spill: Table<u32, u32>,
    addr_ext: Table<u32, u32>,
    cgrp_ident: Table<u64, IdentEntry>,
    uid_ident: Table<UidKey, IdentEntry>,
    epoch: Table<u32, u64>,
    settings: Table<u32, Settings>,
    flows: Table<FlowKey, FlowState>,
    flow_quota: Table<u64, u64>,
    rule_stats: Table<u32, RuleStat>,
    deny_counts: Table<u32, u64>,
    deny_seen: Table<DenyKey, DenyStat>,
    deny_folded: Table<[u64; 2], DenyStat>,
    in_force: Epoch,
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
        let pins = Pins::open(&config.pins, &config.run)?;
        let btf = Btf::of_kernel()?;
        let (kn, id) = (btf.offset("cgroup", "kn")?, btf.offset("kernfs_node", "id")?);
        let parent = btf.offset("cgroup", "self")? + btf.offset("cgroup_subsys_state", "parent")?;
        let mut secret = [0; 8];
        rustix::rand::getrandom(&mut secret, rustix::rand::GetRandomFlags::empty())
            .map_err(|e| DatapathError::Secret(e.into()))?;
        let secret = u64::from_ne_bytes(secret);

        let mut loader = EbpfLoader::new();
        loader
            .override_global("SECRET", &secret, true)
            .override_global("OFF_CGROUP_KN", &kn, true)
            .override_global("OFF_KN_ID", &id, true)
            .override_global("OFF_PARENT", &parent, true)
            .override_global(log::LEVEL, log::level(config.kernel_log), log::BUILT_IN)
            .map_max_entries(log::RING, log::room(config.kernel_log))
            .map_max_entries(map::CGRP_IDENT, config.capacity.cgroups)
            .map_max_entries(map::FLOWS, config.capacity.flows);
        for name in map::ALL {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader.load(bytes).map_err(DatapathError::Load)?;
        check_shapes(&pins, &config.capacity)?;
        load_programs(&mut ebpf)?;

        let cpus = aya::util::nr_cpus().map_err(|(_, e)| DatapathError::Secret(e))?;
        let mut datapath = Self {
            edges: open(&pins, map::EDGES)?,
            spill: open(&pins, map::SPILL)?,
            addr_ext: open(&pins, map::ADDR_EXT)?,
            cgrp_ident: open(&pins, map::CGRP_IDENT)?,
            uid_ident: open(&pins, map::UID_IDENT)?,
            epoch: open(&pins, map::EPOCH)?,
            settings: open(&pins, map::SETTINGS)?,
            flows: open(&pins, map::FLOWS)?,
            flow_quota: open(&pins, map::FLOW_QUOTA)?,
            rule_stats: open(&pins, map::RULE_STATS)?,
            deny_counts: open(&pins, map::DENY_COUNTS)?,
            deny_seen: open(&pins, map::DENY_SEEN)?,
            deny_folded: open(&pins, map::DENY_FOLDED)?,
            in_force: Epoch(0),
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

    /// Says whether an earlier agent's programs are attached.
    #[must_use]
    pub fn was_attached(&self) -> bool {
        program::ALL.iter().any(|name| self.pins.link(name).exists())
    }

    /// Attaches every program, or puts it under the link that is there already.
    ///
    /// # Errors
    ///
    /// [`DatapathError`] with the first program that failed; those before it stay attached, and the
    /// caller must not say "enforcing".
    pub fn attach(&mut self) -> Result<(), DatapathError> {
        let cgroup =
            File::open(&self.config.cgroup).map_err(|e| DatapathError::Cgroup(self.config.cgroup.clone(), e))?;
        for name in program::ALL {
            let pin = self.pins.link(name);
            let failed = |verb, source| DatapathError::Program { verb, program: name, source };
            if !self.config.fast_refusal && is_fast_refusal(name) {
                if pin.exists() {
                    std::fs::remove_file(&pin).map_err(|e| failed("detach", Box::new(e)))?;
                }
                continue;
            }
            let program =
                self.ebpf.program_mut(name).ok_or_else(|| failed("find", "it is not in the object".into()))?;
            if matches!(program, Program::BtfTracePoint(_)) {
                // A tracing link takes no other program: the new one is attached beside the old, and
                // its pin renamed over the old pin. For a moment both run, which changes nothing.
                let link = attach_new(program, &cgroup).map_err(|e| failed("attach", e))?;
                let aside = self.pins.link(&format!("{name}_new"));
                // Left by an agent that died here.
                let _ = std::fs::remove_file(&aside);
                drop(link.pin(&aside).map_err(|e| failed("pin the link of", Box::new(e)))?);
                std::fs::rename(&aside, &pin).map_err(|e| failed("rename the pin of", Box::new(e)))?;
                continue;
            }
            if let Some(link) = sys::open_pin(&pin).map_err(|e| failed("open the link of", Box::new(e)))? {
                let new = program.fd().map_err(|e| failed("find", Box::new(e)))?.as_fd();
                sys::link_update(link.as_fd(), new).map_err(|e| failed("replace", Box::new(e)))?;
                continue;
            }
            let link = attach_new(program, &cgroup).map_err(|e| failed("attach", e))?;
            drop(link.pin(&pin).map_err(|e| failed("pin the link of", Box::new(e)))?);
        }
        Ok(())
    }

    /// Returns the programs that should be attached and are not.
    #[must_use]
    pub fn missing_links(&self) -> Vec<&'static str> {
        program::ALL
            .into_iter()
            .filter(|name| self.config.fast_refusal || !is_fast_refusal(name))
            .filter(|name| !self.pins.link(name).exists())
            .collect()
    }

    /// Fills the idle side. Until [`Datapath::flip`] no packet notices.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Capacity`] before anything is written; else what the kernel refused. The side
    /// in force is untouched in either case.
    pub fn prepare(
        &mut self,
        state: &MapState,
        mut settings: Settings,
        identities: &Identities,
    ) -> Result<Prepared, DatapathError> {
        self.check_capacity(state, identities)?;
        let epoch = self.in_force.next();
        let side = epoch.side();
        settings.stats_base = side * (self.config.capacity.rules + 1);
        settings.rules = u32::try_from(state.rule_ids.len()).unwrap_or(u32::MAX);
        self.clear_hits(side)?;

        let room = |needed: usize| u32::try_from(needed.max(64)).unwrap_or(u32::MAX);
        let edges = Table::create(MapKind::Hash, room(state.edges.len()), NO_PREALLOC, map::EDGES)?;
        edges.put_all(&state.edges)?;
        self.edges.put(&side, &edges.raw())?;

        let spill = Table::create(MapKind::Array, self.config.capacity.spills, 0, map::SPILL)?;
        for (index, entry) in (0_u32..).zip(&state.spill) {
            spill.put(&index, entry)?;
        }
        self.spill.put(&side, &spill.raw())?;

        let prefixes = Table::create(MapKind::Trie, room(state.prefixes.len()), NO_PREALLOC, map::ADDR_EXT)?;
        for (prefix, id) in &state.prefixes {
            prefixes.put(prefix, id)?;
        }
        self.addr_ext.put(&side, &prefixes.raw())?;

        self.settings.put(&side, &settings)?;
        self.fill_identities(side, identities)?;
        Ok(Prepared { epoch })
    }

    /// Fills the identities of a prepared side again: cgroups came while it was filled.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn refill(&self, prepared: &Prepared, identities: &Identities) -> Result<(), TableError> {
        self.fill_identities(prepared.epoch.side(), identities)
    }

    /// Switches to a prepared side: one store, after which every new verdict is of the new policy.
    ///
    /// # Errors
    ///
    /// [`TableError`]; then nothing has changed.
    pub fn flip(&mut self, prepared: &Prepared) -> Result<Epoch, TableError> {
        self.epoch.put(&0, &u64::from(prepared.epoch.0))?;
        self.in_force = prepared.epoch;
        Ok(prepared.epoch)
    }

    /// Waits until no program runs under the old epoch and frees the old side's edges.
    ///
    /// # Errors
    ///
    /// [`DatapathError`]; the new side is in force all the same.
    pub fn settle(&mut self) -> Result<(), DatapathError> {
        let idle = self.in_force.side() ^ 1;
        let empty: Table<EdgeKey, EdgeEntry> = Table::create(MapKind::Hash, 64, NO_PREALLOC, map::EDGES)?;
        // Replacing an inner map returns after a grace period.
        self.edges.put(&idle, &empty.raw())?;
        Ok(())
    }

    /// Labels a cgroup that came after the policy, on both sides.
    ///
    /// # Errors
    ///
    /// [`TableError`]; a full map leaves the cgroup `unknown`.
    pub fn label(&self, cgroup: u64, slot: IdentSlot) -> Result<(), TableError> {
        self.cgrp_ident.put(&cgroup, &IdentEntry { slots: [slot; 2] })
    }

    /// As [`Datapath::label`], for a cgroup narrowed by owner.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn label_uid(&self, key: &UidKey, slot: IdentSlot) -> Result<(), TableError> {
        self.uid_ident.put(key, &IdentEntry { slots: [slot; 2] })
    }

    /// Returns what the side in force says about a cgroup.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn label_of(&self, cgroup: u64) -> Result<Option<IdentSlot>, TableError> {
        let side = self.in_force.side() as usize;
        Ok(self.cgrp_ident.get(&cgroup)?.map(|e| e.slots[side]))
    }

    /// Returns every cgroup that has an entry.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn labelled_cgroups(&self) -> Result<Vec<u64>, TableError> {
        self.cgrp_ident.keys()
    }

    /// Returns the sums of the denials, indexed by [`DenyCounter`].
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn deny_counts(&self) -> Result<[u64; DenyCounter::COUNT as usize], TableError> {
        let mut sums = [0; DenyCounter::COUNT as usize];
        for (index, sum) in (0_u32..).zip(&mut sums) {
            *sum = self.deny_counts.get_per_cpu(&index, self.cpus)?.iter().sum();
        }
        Ok(sums)
    }

    /// Returns the hits of the policy in force, by rule number.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn hits(&self) -> Result<BTreeMap<RuleNumber, RuleStat>, TableError> {
        let side = self.in_force.side();
        let Some(settings) = self.settings.get(&side)? else {
            return Ok(BTreeMap::new());
        };
        let mut hits = BTreeMap::new();
        for rule in 0..=settings.rules {
            let shares = self.rule_stats.get_per_cpu(&(settings.stats_base + rule), self.cpus)?;
            let stat = shares.iter().fold(RuleStat::default(), |sum, share| RuleStat {
                decisions: sum.decisions + share.decisions,
                last_ns: sum.last_ns.max(share.last_ns),
            });
            if stat.decisions != 0 {
                hits.insert(RuleNumber(rule), stat);
            }
        }
        Ok(hits)
    }

    /// The table of repeats, for the windows of the event pipeline.
    #[must_use]
    pub const fn deny_seen(&self) -> &Table<DenyKey, DenyStat> {
        &self.deny_seen
    }

    /// The table of denials beyond the budget.
    #[must_use]
    pub const fn deny_folded(&self) -> &Table<[u64; 2], DenyStat> {
        &self.deny_folded
    }

    /// Forgets flows that are idle and sets every owner's count right; returns how many are left.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn sweep_flows(&self, now_tick: u32) -> Result<usize, TableError> {
        let mut owners: HashMap<u64, u64> = HashMap::new();
        let mut left = 0;
        for key in self.flows.keys()? {
            let Some(state) = self.flows.get(&key)? else { continue };
            // One tick more than the programs allow, so that none is deleted that they would still use.
            let limit = if state.both_ways != 0 { 169 } else { 29 };
            if now_tick.wrapping_sub(state.last_seen) > limit {
                self.flows.remove(&key)?;
            } else {
                *owners.entry(key.owner).or_default() += 1;
                left += 1;
            }
        }
        for owner in self.flow_quota.keys()? {
            match owners.get(&owner) {
                Some(count) => self.flow_quota.put(&owner, count)?,
                None => drop(self.flow_quota.remove(&owner)?),
            }
        }
        Ok(left)
    }

    /// Returns how many flows the table holds.
    ///
    /// # Errors
    ///
    /// [`TableError`].
    pub fn flow_count(&self) -> Result<usize, TableError> {
        Ok(self.flows.keys()?.len())
    }

    /// Returns how many programs are attached.
    #[must_use]
    pub fn links(&self) -> u64 {
        program::ALL.iter().map(|name| u64::from(self.pins.link(name).exists())).sum()
    }

    /// Takes the ring of denials; once.
    #[must_use]
    pub fn take_events(&mut self) -> Option<Ring> {
        self.take_ring(map::EVENTS)
    }

    /// Takes the ring of cgroups made and released; once.
    #[must_use]
    pub fn take_cgroup_events(&mut self) -> Option<Ring> {
        self.take_ring(map::CGROUP_EVENTS)
    }

    /// Takes what the programs say; once, and only if they were loaded to say something.
    #[must_use]
    pub fn take_log(&mut self) -> Option<KernelLog> {
        if self.config.kernel_log { KernelLog::of(&mut self.ebpf) } else { None }
    }

    /// A loaded program, to be run on packets without traffic ([`super::test_run`]).
    ///
    /// # Errors
    ///
    /// [`DatapathError::Program`].
    pub fn program(&self, name: &'static str) -> Result<BorrowedFd<'_>, DatapathError> {
        let failed = |source| DatapathError::Program { verb: "find", program: name, source };
        let program = self.ebpf.program(name).ok_or_else(|| failed("it is not in the object".into()))?;
        Ok(program.fd().map_err(|e| failed(Box::new(e)))?.as_fd())
    }

    /// Runs a program on a packet over loopback, without traffic; returns (code, ns).
    ///
    /// # Errors
    ///
    /// [`DatapathError::Program`].
    pub fn test_run(&self, name: &'static str, frame: &[u8], repeat: u32) -> Result<(u32, u32), DatapathError> {
        let failed = |source| DatapathError::Program { verb: "run", program: name, source };
        let run = sys::test_run(self.program(name)?, frame, 0, repeat).map_err(|e| failed(Box::new(e)))?;
        Ok((run.code, run.duration_ns))
    }

    /// Returns how often and how long a program ran while the kernel kept statistics about programs.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Program`].
    pub fn runs(&self, name: &'static str) -> Result<Runs, DatapathError> {
        let failed = |source| DatapathError::Program { verb: "ask about", program: name, source };
        let program = self.ebpf.program(name).ok_or_else(|| failed("it is not in the object".into()))?;
        let info = program.info().map_err(|e| failed(Box::new(e)))?;
        Ok(Runs { count: info.run_count(), time: info.run_time() })
    }

    fn take_ring(&mut self, name: &str) -> Option<Ring> {
        let map = self.ebpf.take_map(name)?;
        Some(Ring(RingBuf::try_from(map).ok()?))
    }

    /// Says whether a policy and its labels fit, without writing anything.
    ///
    /// # Errors
    ///
    /// [`DatapathError::Capacity`].
    pub fn check_capacity(&self, state: &MapState, identities: &Identities) -> Result<(), DatapathError> {
        let c = &self.config.capacity;
        for (what, needed, holds) in [
            ("edges", state.edges.len(), c.edges),
            ("spilled ranges", state.spill.len(), c.spills),
            ("prefixes", state.prefixes.len(), c.prefixes),
            ("rules", state.rule_ids.len(), c.rules),
            ("cgroups", identities.cgroups.len(), c.cgroups),
            ("entries by uid", identities.uids.len(), UID_ENTRIES),
        ] {
            if needed > holds as usize {
                return Err(DatapathError::Capacity { what, needed, holds });
            }
        }
        Ok(())
    }

    /// Parents come before children in the order of the ids only by accident; a cgroup made meanwhile
    /// takes what its parent's entry says, and the caller drains the ring of cgroups before the flip.
    fn fill_identities(&self, side: u32, identities: &Identities) -> Result<(), TableError> {
        let side = side as usize;
        for (&cgroup, &slot) in &identities.cgroups {
            let mut entry = self.cgrp_ident.get(&cgroup)?.unwrap_or_default();
            entry.slots[side] = slot;
            self.cgrp_ident.put(&cgroup, &entry)?;
        }
        // A cgroup that is gone but for its sockets keeps what it was.
        for cgroup in self.cgrp_ident.keys()? {
            if !identities.cgroups.contains_key(&cgroup)
                && let Some(mut entry) = self.cgrp_ident.get(&cgroup)?
            {
                entry.slots[side] = entry.slots[side ^ 1];
                self.cgrp_ident.put(&cgroup, &entry)?;
            }
        }
        for key in self.uid_ident.keys()? {
            if !identities.uids.contains_key(&key)
                && let Some(mut entry) = self.uid_ident.get(&key)?
            {
                entry.slots[side] = IdentSlot::default();
                self.uid_ident.put(&key, &entry)?;
            }
        }
        for (key, &slot) in &identities.uids {
            let mut entry = self.uid_ident.get(key)?.unwrap_or_default();
            entry.slots[side] = slot;
            self.uid_ident.put(key, &entry)?;
        }
        Ok(())
    }

    fn clear_hits(&self, side: u32) -> Result<(), TableError> {
        let old = self.settings.get(&side)?.map_or(0, |s| s.rules);
        let base = side * (self.config.capacity.rules + 1);
        let zero = vec![0; size_of::<RuleStat>() * self.cpus];
        for rule in 0..=old.min(self.config.capacity.rules) {
            let index = base + rule;
            sys::update(self.rule_stats.fd().as_fd(), &index.to_ne_bytes(), &zero).map_err(|source| TableError {
                map: map::RULE_STATS,
                verb: "clear",
                source,
            })?;
        }
        Ok(())
    }
}

const NO_PREALLOC: u32 = 1;
/// Room in `uid_ident`.
const UID_ENTRIES: u32 = 16_384;

const fn is_fast_refusal(name: &str) -> bool {
    matches!(name.as_bytes(), b"ew_connect4" | b"ew_connect6" | b"ew_sendmsg4" | b"ew_sendmsg6")
}

fn open<K, V>(pins: &Pins, name: &'static str) -> Result<Table<K, V>, TableError>
where
    K: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable,
    V: zerocopy::FromBytes + zerocopy::IntoBytes + zerocopy::Immutable,
{
    let failed = |source| TableError { map: name, verb: "open the pin of", source };
    let fd = sys::open_pin(&pins.map(name)).map_err(failed)?;
    Ok(Table::new(fd.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?, name))
}

/// aya takes a pinned map as it is, so what is pinned is compared here.
fn check_shapes(pins: &Pins, capacity: &Capacity) -> Result<(), DatapathError> {
    let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    for (name, key, value, entries) in [
        (map::CGRP_IDENT, 8, size(size_of::<IdentEntry>()), capacity.cgroups),
        (map::UID_IDENT, size(size_of::<UidKey>()), size(size_of::<IdentEntry>()), UID_ENTRIES),
        (map::FLOWS, size(size_of::<FlowKey>()), size(size_of::<FlowState>()), capacity.flows),
        (map::SETTINGS, 4, size(size_of::<Settings>()), 2),
        (map::EDGES, 4, 4, 2),
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

fn load_programs(ebpf: &mut Ebpf) -> Result<(), DatapathError> {
    let btf = aya::Btf::from_sys_fs().map_err(|e| DatapathError::Load(e.into()))?;
    for name in program::ALL {
        let failed = |source: Box<dyn std::error::Error + Send + Sync>| DatapathError::Program {
            verb: "load",
            program: name,
            source,
        };
        let program = ebpf.program_mut(name).ok_or_else(|| failed("it is not in the object".into()))?;
        match program {
            Program::CgroupSkb(p) => p.load(),
            Program::CgroupSock(p) => p.load(),
            Program::CgroupSockAddr(p) => p.load(),
            Program::BtfTracePoint(p) => {
                p.load(if name == program::CGROUP_MKDIR { "cgroup_mkdir" } else { "cgroup_release" }, &btf)
            }
            _ => return Err(failed("it is of another type".into())),
        }
        .map_err(|e| failed(Box::new(e)))?;
    }
    Ok(())
}

fn attach_new(program: &mut Program, cgroup: &File) -> Result<FdLink, Box<dyn std::error::Error + Send + Sync>> {
    let mode = CgroupAttachMode::Single;
    Ok(match program {
        Program::CgroupSkb(p) => {
            let direction = p.expected_attach_type().ok_or("its section names no direction")?;
            let id = p.attach(cgroup, direction, mode)?;
            p.take_link(id)?.try_into()?
        }
        Program::CgroupSock(p) => {
            let id = p.attach(cgroup, mode)?;
            p.take_link(id)?.try_into()?
        }
        Program::CgroupSockAddr(p) => {
            let id = p.attach(cgroup, mode)?;
            p.take_link(id)?.try_into()?
        }
        Program::BtfTracePoint(p) => {
            let id = p.attach()?;
            p.take_link(id)?.into()
        }
        _ => return Err("it is of another type".into()),
    })
}
