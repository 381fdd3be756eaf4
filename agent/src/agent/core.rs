//! The reconcile thread: the only one that writes maps. It waits for orders, for the rings of the
//! kernel, and for the next tick.

use std::{
    cell::LazyCell,
    collections::{BTreeMap, HashSet},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use agent_common::layout::{IdentSlot, ident_flags};
use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{debug, error, info, warn};

use super::{
    devices::Watch,
    in_force::{Candidate, snapshot},
    inbox::{Inbox, Input},
    overrides::{Overrides, override_data},
    recent::History,
    resets::Sockets,
    roster::Roster,
    settled,
    store::Store,
    surroundings::Surroundings,
    swap::DNS_ADDRESSES,
    tamper::Upkeep,
};
use crate::{
    clock,
    config::Config,
    control::wire::Applied,
    datapath::{Datapath, DatapathError, log::KernelLog, ring::Ring},
    events::{
        pipeline::{Pipeline, Tick},
        record::{LifecycleEvent, Phase, PolicyChange, Record, new_uid},
        snapshot::Snapshots,
        windows::FoldedRow,
    },
    identity::resolver::{Labels, Resolver},
    policy::map_state::MapState,
    reconcile::dns_names::{Left, forget},
};

/// How often windows end, counters are read and the directory is looked at.
const TICK: Duration = Duration::from_secs(1);

/// Seconds between two looks at what answers of resolvers said.
const DNS_SWEEP: u32 = 5;

/// Between two looks while nothing can be heard.
const DEAF: Duration = Duration::from_millis(50);

/// How often a cgroup is looked for that the kernel has told of and that cannot be found.
const RESOLVE_TRIES: u32 = 200;
/// How long to wait between two looks, ns: well below what a first packet notices.
const RESOLVE_WAIT_NS: u64 = 2_000_000;

/// What the thread holds.
pub struct Core {
    pub(super) config: Config,
    pub(super) host: String,
    pub(super) datapath: Datapath,
    pub(super) roster: Roster,
    pub(super) store: Store,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) candidate: Candidate,
    pub(super) resolver: Resolver,
    pub(super) state: Arc<MapState>,
    pub(super) labels: Labels,
    pub(super) overrides: Overrides,
    pub(super) snapshots: Snapshots,
    pub(super) shared: Arc<Shared>,
    pub(super) events: Ring,
    pub(super) cgroups: Ring,
    pub(super) resets_due: Ring,
    pub(super) answers: Option<Sockets>,
    pub(super) kernel_log: Option<KernelLog>,
    pub(super) started_ns: u64,
    pub(super) applied_ns: u64,
    pub(super) adopted: bool,
    /// Whether another version's programs are attached.
    pub(super) has_others: bool,
    pub(super) problems: BTreeMap<&'static str, String>,
    pub(super) wall_offset: i64,
    pub(super) history: History,
    /// Cgroups that the kernel told of and that could not be found yet, with the number of looks.
    pub(super) unresolved: BTreeMap<u64, u32>,
    /// Cookie of the network namespace that the agent is in: the host's.
    pub(super) host_netns: u64,
    /// What the last sweep left of the names by DNS.
    pub(super) dns: Left,
    /// Boot second of that sweep.
    pub(super) dns_swept: u32,
    /// Devices of workloads.
    pub(super) watch: Watch,
    /// The surroundings of the last tick, if they are not those in force.
    pub(super) surroundings_seen: Option<Surroundings>,
    /// Whether what is in the kernel stays as it was left.
    pub(super) upkeep: Upkeep,
}

/// What other threads may look at.
#[derive(Debug, Default)]
pub struct Shared {
    declared: Mutex<HashSet<u64>>,
}

impl Shared {
    /// Says whether a cgroup belongs to a workload that policy declares.
    #[must_use]
    pub fn is_declared(&self, cgroup: u64) -> bool {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).contains(&cgroup)
    }

    pub(super) fn set(&self, labels: &BTreeMap<u64, IdentSlot>) {
        let declared = labels.iter().filter(|(_, s)| s.flags & ident_flags::DECLARED != 0).map(|(&id, _)| id);
        *self.declared.lock().unwrap_or_else(PoisonError::into_inner) = declared.collect();
    }
}

impl Core {
    /// Runs until it is told to stop. What is attached stays attached.
    ///
    /// # Errors
    ///
    /// If the kernel side cannot be waited for; everything else is a problem that `status` shows.
    pub fn run(&mut self, inbox: &Inbox) -> Result<()> {
        let mut next_tick = clock::now().boot_ns;
        loop {
            self.wait(inbox, next_tick)?;
            self.drain_events();
            self.answer_calls();
            if self.learn_cgroups() {
                self.watch.look_soon();
            }
            self.follow_devices();
            self.keep_up();
            for input in inbox.take() {
                match input {
                    Input::Request(request, caller, reply) => {
                        let answer = self.answer(request, caller);
                        // Whoever asked may have hung up; the change is made all the same.
                        let _ = reply.send(answer);
                    }
                    Input::Reload => {
                        if let Err(e) = self.reload() {
                            warn!("{e:#}");
                        }
                    }
                    Input::Stop => {
                        self.tick();
                        self.pipeline.on_stop(&clock::now());
                        self.lifecycle(Phase::Stopped);
                        return Ok(());
                    }
                }
            }
            let now = clock::now().boot_ns;
            if now >= next_tick {
                self.tick();
                next_tick = now + u64::try_from(TICK.as_nanos()).unwrap_or(u64::MAX);
            }
        }
    }

    fn wait(&self, inbox: &Inbox, next_tick: u64) -> Result<()> {
        let longest = if self.unresolved.is_empty() { 1_000_000_000 } else { RESOLVE_WAIT_NS };
        let now = clock::now().boot_ns;
        let left = next_tick.saturating_sub(now).min(longest).min(self.watch.wait_ns(now).unwrap_or(longest));
        let left = left.min(self.upkeep.wait_ns(now));
        let nanos = i64::try_from(left).unwrap_or(0);
        let timeout = Timespec { tv_sec: nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 };
        let rings = [&self.events, &self.cgroups, &self.resets_due].map(AsFd::as_fd);
        let fds = rings.into_iter().chain([inbox.as_fd()]).chain(self.kernel_log.iter().map(AsFd::as_fd));
        let fds = fds.chain(self.watch.fd());
        let mut fds: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            // More descriptors than the limit for them, which somebody has lowered: nothing is heard, so all is looked at.
            Err(rustix::io::Errno::INVAL) => {
                thread::sleep(DEAF);
                Ok(())
            }
            Err(e) => Err(e).context("wait for the kernel"),
        }
    }

    fn drain_events(&mut self) -> usize {
        self.kernel_log.iter_mut().for_each(KernelLog::flush);
        let now = clock::now();
        let (pipeline, snapshots, peers) = (&self.pipeline, &self.snapshots, &self.state.peers);
        self.events.drain(|bytes| {
            if let Err(e) = pipeline.on_ring_bytes(bytes, &now, snapshots, |address| peers.is_in_range(address)) {
                error!("a record of the kernel cannot be read: {e}");
            }
        })
    }

    /// Labels cgroups that the kernel says are new, and forgets those it has released. Says whether there
    /// was any.
    pub(super) fn learn_cgroups(&mut self) -> bool {
        let mut new = Vec::new();
        let mut gone = Vec::new();
        self.cgroups.drain(|bytes| {
            let mut words = bytes.chunks_exact(8).filter_map(|c| c.try_into().ok().map(u64::from_ne_bytes));
            match (words.next(), words.next()) {
                (Some(1), Some(id)) => new.push(id),
                (Some(2), Some(id)) => gone.push(id),
                other => error!("an unknown cgroup event: {other:?}"),
            }
        });
        // The kernel tells of a cgroup a moment before its directory can be opened.
        let again = std::mem::take(&mut self.unresolved);
        new.extend(again.keys());
        if new.is_empty() && gone.is_empty() {
            return false;
        }
        for id in &gone {
            self.roster.forget(*id);
            self.labels.cgroups.remove(id);
        }
        for id in new {
            match self.label(id) {
                Ok(true) => {}
                Ok(false) => {
                    let tries = again.get(&id).map_or(1, |tries| tries + 1);
                    if tries < RESOLVE_TRIES && !gone.contains(&id) {
                        self.unresolved.insert(id, tries);
                    }
                }
                Err(e) => drop(self.problems.insert("label", format!("cgroup {id} stays unknown: {e:#}"))),
            }
        }
        self.snapshots.set_places(self.roster.places());
        self.shared.set(&self.labels.cgroups);
        true
    }

    /// Says whether the cgroup could be found; it may be gone, or not be there yet.
    fn label(&mut self, id: u64) -> Result<bool> {
        let Some(chain) = self.roster.learn(id)? else {
            return Ok(false);
        };
        let labels = self.resolver.resolve(&chain);
        let Some(&slot) = labels.cgroups.get(&id) else {
            return Ok(false);
        };
        self.datapath.label(id, slot)?;
        self.labels.cgroups.insert(id, slot);
        for (key, &slot) in labels.uids.iter().filter(|(key, _)| key.cgroup == id) {
            self.datapath.label_uid(key, slot)?;
            self.labels.uids.insert(*key, slot);
        }
        let new_names = labels.names.keys().any(|n| !self.labels.names.contains_key(n));
        self.labels.names.extend(labels.names);
        self.labels.ambiguous.extend(labels.ambiguous);
        if new_names {
            self.install_names();
        }
        debug!(cgroup = id, identity = slot.id.0, "labelled");
        Ok(true)
    }

    pub(super) fn install_names(&mut self) {
        let epoch = self.datapath.in_force();
        let rules = self.overrides.rules();
        let snapshot = snapshot(epoch, &self.candidate, &rules, &self.state, &self.labels);
        self.snapshots.install(Arc::new(snapshot));
    }

    /// Reads the directory again and applies it, if it says something else.
    pub(super) fn reload(&mut self) -> Result<Applied> {
        let candidate = self.store.read_policy(&self.config);
        let candidate = match candidate {
            Ok(candidate) => candidate,
            Err(e) => return Err(self.refused(e)),
        };
        if candidate.files == self.candidate.files {
            self.problems.remove("policy");
            return Ok(self.unchanged());
        }
        self.apply(candidate)
    }

    pub(super) fn unchanged(&self) -> Applied {
        Applied {
            epoch: self.datapath.in_force().0,
            unchanged: true,
            edges: self.state.edges.len(),
            ..Applied::default()
        }
    }

    fn tick(&mut self) {
        if let Err(e) = self.try_tick() {
            self.problems.insert("tick", format!("{e:#}"));
        } else {
            self.problems.remove("tick");
        }
    }

    /// Takes off what another version of eastwall has attached, once this one judges wherever that does: two that differ
    /// both deny.
    pub(super) fn retire_others(&mut self) {
        if !self.has_others {
            return;
        }
        let problem = if self.watch.has_failed() {
            Some("devices are not guarded yet".to_owned())
        } else {
            match self.datapath.retire_others() {
                Ok(links) => {
                    info!(links, "programs of another version of eastwall are taken off");
                    self.has_others = false;
                    None
                }
                Err(e) => Some(format!("{:#}", anyhow::Error::from(e))),
            }
        };
        let said = |why| format!("programs of another version of eastwall go on under its last policy: {why}");
        self.tell("versions", problem.map(said));
    }

    fn try_tick(&mut self) -> Result<(), DatapathError> {
        self.events_tick()?;
        self.retire_others();
        self.datapath.sweep_flows(clock::flow_tick())?;
        self.sweep_dns()?;
        self.cut_again();
        self.look_at_sums()?;
        let now = clock::unix_seconds();
        for id in self.overrides.ended(now) {
            if let Ok((rest, row)) = self.overrides.without(&id) {
                let change = PolicyChange::OverrideEnded(override_data(&row));
                if let Err(e) = self.with_overrides(rest, change) {
                    self.problems.insert("overrides", format!("end `{id}`: {e:#}"));
                }
            }
        }
        // A stepped wall clock moves every end that was written in wall time.
        if (clock::boot_to_unix() - self.wall_offset).abs() > 2 {
            let rules = self.overrides.rules();
            if let Err(e) = self.swap(self.candidate.clone(), &rules) {
                self.problems.insert("clock", format!("set the ends of rules right after a step: {e:#}"));
            }
        }
        self.follow_surroundings();
        if self.store.directory_changed(&self.config) {
            // The refusal is a problem of `status` and an event already.
            if let Err(e) = self.reload() {
                warn!("{e:#}");
            }
        }
        Ok(())
    }

    /// Forgets what answers said long ago. Without a name in the policy nothing is read.
    fn sweep_dns(&mut self) -> Result<(), DatapathError> {
        let now = clock::boot_seconds().0;
        let is_none = self.state.dns_names.is_empty() && self.dns.used.is_empty();
        if is_none || now < self.dns_swept.saturating_add(DNS_SWEEP) {
            return Ok(());
        }
        let known = self.datapath.dns_addresses()?;
        self.dns = forget(&known, now, DNS_ADDRESSES);
        self.datapath.forget_dns(&known, &self.dns)?;
        self.dns_swept = now;
        let full = self.dns.used.iter().filter(|(_, used)| **used >= u64::from(DNS_ADDRESSES));
        let full: Vec<String> =
            full.filter_map(|(id, _)| self.state.names.get(id)).map(|name| format!("`{name}`")).collect();
        let problem = format!(
            "{} has all the {DNS_ADDRESSES} addresses by DNS that an external may have: until some run out, others \
             that answers name stay unknown",
            full.join(", ")
        );
        self.tell("dns-room", (!full.is_empty()).then_some(problem));
        Ok(())
    }

    /// Says what is wrong about something, or that nothing is any more. What is new is logged.
    pub(super) fn tell(&mut self, about: &'static str, problem: Option<String>) {
        let Some(problem) = problem else {
            self.problems.remove(about);
            return;
        };
        if self.problems.get(about) != Some(&problem) {
            warn!("{problem}");
            self.problems.insert(about, problem);
        }
    }

    fn events_tick(&mut self) -> Result<(), DatapathError> {
        let now = clock::now();
        let seen = self.datapath.deny_seen();
        let mut rows = Vec::new();
        for key in seen.keys()? {
            rows.extend(seen.get(&key)?.map(|stat| (key, stat)));
        }
        let due = self.pipeline.due(&now, &rows);
        let mut taken = Vec::new();
        for key in due.seen {
            taken.extend(seen.take(&key)?.map(|stat| (key, stat)));
        }
        let folded = if due.folded { Some(self.take_folded()?) } else { None };
        let kernel = self.datapath.deny_counts()?;
        let ring_empty = self.drain_events() == 0 || self.drain_events() == 0;
        let tick = Tick { kernel, seen: &taken, folded: folded.as_deref(), ring_empty };
        let addresses = LazyCell::new(|| self.named_addresses());
        let here = |addr: &[u8; 16]| addresses.get(addr).copied();
        self.pipeline.on_wait(&now, |event| settled::settles(event, here, &self.state, &now));
        self.pipeline.on_tick(&now, &tick, &self.snapshots);
        Ok(())
    }

    fn take_folded(&self) -> Result<Vec<FoldedRow>, DatapathError> {
        let table = self.datapath.deny_folded();
        let mut rows = Vec::new();
        for key in table.keys()? {
            if let Some(stat) = table.take(&key)? {
                rows.push(FoldedRow::from_kernel(key, stat));
            }
        }
        Ok(rows)
    }

    pub(super) fn lifecycle(&self, phase: Phase) {
        let now = clock::now();
        let event = LifecycleEvent {
            uid: new_uid(now.wall),
            time: now.wall,
            phase,
            epoch: Some(self.datapath.in_force()),
            links: self.datapath.links(),
        };
        self.pipeline.submit(&now, Record::Lifecycle(event));
    }
}
