//! The reconcile thread: the only one that writes maps. It waits for orders, for the rings of the
//! kernel, and for the next tick.

use std::{
    collections::{BTreeMap, HashSet},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use agent_common::{
    id::BootSeconds,
    layout::{IdentSlot, Settings, ident_flags},
    verdict::Mode,
};
use anyhow::{Context as _, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tracing::{debug, error, info, warn};

use super::{
    cutting::{self, Ended},
    in_force::{Candidate, snapshot},
    inbox::{Inbox, Input},
    overrides::{Overrides, override_data},
    roster::{Roster, changed},
    store::Store,
};
use crate::{
    clock,
    config::Config,
    control::wire::Applied,
    datapath::{Datapath, DatapathError, Identities, log::KernelLog, ring::Ring},
    events::{
        enrich::CutFlow,
        pipeline::{Pipeline, Tick},
        record::{LifecycleEvent, Phase, PolicyChange, PolicyEvent, Record, RuleRef, new_uid},
        snapshot::Snapshots,
        windows::FoldedRow,
    },
    identity::resolver::{Labels, Resolver},
    policy::map_state::MapState,
    reconcile::cut_list::Who,
};

/// How often windows end, counters are read and the directory is looked at.
const TICK: Duration = Duration::from_secs(1);

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
    pub(super) kernel_log: Option<KernelLog>,
    pub(super) started_ns: u64,
    pub(super) applied_ns: u64,
    pub(super) adopted: bool,
    pub(super) problems: BTreeMap<&'static str, String>,
    pub(super) wall_offset: i64,
    /// Cgroups that the kernel told of and that could not be found yet, with the number of looks.
    pub(super) unresolved: BTreeMap<u64, u32>,
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

    fn set(&self, labels: &BTreeMap<u64, IdentSlot>) {
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
            self.learn_cgroups();
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
        let left = next_tick.saturating_sub(clock::now().boot_ns).min(longest);
        let nanos = i64::try_from(left).unwrap_or(0);
        let timeout = Timespec { tv_sec: nanos / 1_000_000_000, tv_nsec: nanos % 1_000_000_000 };
        let (inbox, events, cgroups) = (inbox.as_fd(), self.events.as_fd(), self.cgroups.as_fd());
        let fds = [inbox, events, cgroups].into_iter().chain(self.kernel_log.iter().map(AsFd::as_fd));
        let mut fds: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(e).context("wait for the kernel"),
        }
    }

    fn drain_events(&mut self) -> usize {
        self.kernel_log.iter_mut().for_each(KernelLog::flush);
        let now = clock::now();
        let (pipeline, snapshots) = (&self.pipeline, &self.snapshots);
        self.events.drain(|bytes| {
            if let Err(e) = pipeline.on_ring_bytes(bytes, &now, snapshots) {
                error!("a record of the kernel cannot be read: {e}");
            }
        })
    }

    /// Labels cgroups that the kernel says are new, and forgets those it has released.
    fn learn_cgroups(&mut self) {
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
            return;
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

    fn refused(&mut self, e: anyhow::Error) -> anyhow::Error {
        self.problems.insert("policy", format!("the last complete policy stays in force: {e:#}"));
        let change = PolicyChange::Refused {
            name: self.config.policy_directory.display().to_string(),
            error: format!("{e:#}").lines().next().unwrap_or_default().to_owned(),
        };
        self.policy_event(change, 0);
        e
    }

    /// Makes a candidate the policy in force.
    pub(super) fn apply(&mut self, candidate: Candidate) -> Result<Applied> {
        let name = candidate.policy.name.clone();
        let warnings = candidate.warnings.clone();
        let files = candidate.files.clone();
        let overrides = self.overrides.rules();
        match self.swap(candidate, &overrides) {
            Ok(mut applied) => {
                applied.warnings = warnings;
                self.problems.remove("policy");
                if let Err(e) = self.store.keep(&files) {
                    self.problems.insert("store", format!("keep the policy for a restart: {e:#}"));
                }
                self.policy_event(PolicyChange::Applied { name }, applied.cut);
                Ok(applied)
            }
            Err(e) => Err(self.refused(e)),
        }
    }

    /// Takes an override in or out.
    pub(super) fn with_overrides(&mut self, overrides: Overrides, change: PolicyChange) -> Result<Applied> {
        let rules = overrides.rules();
        let applied = self.swap(self.candidate.clone(), &rules)?;
        self.overrides = overrides;
        self.install_names();
        if let Err(e) = self.overrides.save() {
            self.problems.insert("overrides", format!("they would not survive a restart: {e}"));
        }
        self.policy_event(change, applied.cut);
        Ok(applied)
    }

    /// Compiles, fills the idle side, flips, cuts. An error before the flip leaves no trace.
    fn swap(&mut self, candidate: Candidate, overrides: &[crate::policy::model::Rule]) -> Result<Applied> {
        let started = clock::now().boot_ns;
        let offset = clock::boot_to_unix();
        let state = Arc::new(candidate.compile(overrides, offset)?);
        let resolver = candidate.resolver(&self.host)?;
        self.roster.walk()?;
        let mut labels = self.roster.labels(&resolver);
        let settings = self.settings(&state);
        let prepared = self.datapath.prepare(&state, settings, &identities(&labels))?;
        // Cgroups made while the side was filled took their parent's entry from before: look again.
        self.learn_cgroups();
        if self.roster.walk()? > 0 || self.roster.nodes().any(|n| !labels.cgroups.contains_key(&n.id)) {
            labels = self.roster.labels(&resolver);
            self.datapath.refill(&prepared, &identities(&labels))?;
        }
        self.datapath.flip(&prepared)?;
        let relabelled = changed(&self.labels.cgroups, &labels.cgroups);
        self.applied_ns = clock::now().boot_ns;
        self.wall_offset = offset;
        (self.candidate, self.resolver, self.state, self.labels) = (candidate, resolver, state, labels);
        self.shared.set(&self.labels.cgroups);
        let rules = overrides.to_vec();
        let snapshot = snapshot(prepared.epoch, &self.candidate, &rules, &self.state, &self.labels);
        self.snapshots.install(Arc::new(snapshot));
        self.snapshots.set_places(self.roster.places());
        let cut = self.cut();
        self.datapath.settle()?;
        info!(epoch = prepared.epoch.0, edges = self.state.edges.len(), cut, relabelled, "policy in force");
        Ok(Applied {
            epoch: prepared.epoch.0,
            unchanged: false,
            cut,
            edges: self.state.edges.len(),
            id: None,
            millis: clock::now().boot_ns.saturating_sub(started) / 1_000_000,
            warnings: String::new(),
        })
    }

    fn settings(&self, state: &MapState) -> Settings {
        Settings {
            unknown_mode: state.unknown_mode.unwrap_or(Mode::Observe) as u8,
            event_burst: self.config.event_burst,
            event_per_second: self.config.event_per_second,
            flow_quota: self.config.flow_quota,
            ..Settings::default()
        }
    }

    /// Ends flows that lost their rule; returns how many sockets.
    pub(super) fn cut(&mut self) -> usize {
        let now = clock::now();
        let boot = BootSeconds(u32::try_from(now.boot_ns / 1_000_000_000).unwrap_or(u32::MAX));
        let who = Who { cgroups: &self.labels.cgroups, uids: &self.labels.uids };
        let (ended, problems) = cutting::cut_all(who, &self.state, boot);
        match problems.is_empty() {
            true => drop(self.problems.remove("cut")),
            false => drop(self.problems.insert("cut", problems.join("; "))),
        }
        for one in &ended {
            self.pipeline.on_cut(&self.cut_flow(one), &now, &self.snapshots);
        }
        ended.len()
    }

    fn cut_flow(&self, ended: &Ended) -> CutFlow {
        let Ended { socket, cut } = ended;
        let peer_id = if cut.flow.from == cut.local { cut.flow.to } else { cut.flow.from };
        let rule: Option<RuleRef> = self.snapshots.newest().and_then(|s| s.rule(cut.decision.rule)).cloned();
        CutFlow {
            direction: cut.flow.direction,
            epoch: self.datapath.in_force(),
            cause: rule,
            proto: socket.proto,
            local_id: cut.local,
            peer_id,
            local: socket.local,
            peer: socket.peer,
            cgroup: Some(socket.cgroup),
            cookie: None,
            netns: None,
            mode: Some(cut.mode),
        }
    }

    fn tick(&mut self) {
        if let Err(e) = self.try_tick() {
            self.problems.insert("tick", format!("{e:#}"));
        } else {
            self.problems.remove("tick");
        }
    }

    fn try_tick(&mut self) -> Result<(), DatapathError> {
        self.events_tick()?;
        self.datapath.sweep_flows(clock::flow_tick())?;
        let missing = self.datapath.missing_links();
        if !missing.is_empty() {
            warn!(?missing, "links were removed; attaching again");
            self.problems.insert("links", format!("were removed by somebody and attached again: {missing:?}"));
            self.datapath.attach()?;
        }
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
        if self.store.directory_changed(&self.config) {
            // The refusal is a problem of `status` and an event already.
            if let Err(e) = self.reload() {
                warn!("{e:#}");
            }
        }
        Ok(())
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

    fn policy_event(&self, change: PolicyChange, cut: usize) {
        let now = clock::now();
        let event = PolicyEvent {
            uid: new_uid(now.wall),
            time: now.wall,
            change,
            comment: None,
            actor: None,
            set: self.candidate.policy.hash.clone(),
            epoch_before: None,
            epoch: Some(self.datapath.in_force()),
            edges_opened: 0,
            edges_closed: 0,
            flows_cut: u64::try_from(cut).unwrap_or(u64::MAX),
        };
        self.pipeline.submit(&now, Record::Policy(event));
    }
}

/// As the maps hold them.
pub(super) fn identities(labels: &Labels) -> Identities {
    Identities { cgroups: labels.cgroups.clone(), uids: labels.uids.clone() }
}
