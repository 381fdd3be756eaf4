//! Puts a policy in force: compile, fill the idle side, check it, flip, cut.

use std::{collections::BTreeMap, sync::Arc};

use agent_common::{layout::Settings, verdict::Mode};
use anyhow::Result;
use tracing::{debug, info};

use super::{
    core::Core,
    cutting::{self, Ended, Outcome},
    in_force::{Candidate, snapshot},
    overrides::Overrides,
    roster::changed,
};
use crate::{
    clock,
    control::wire::Applied,
    datapath::{Identities, Prepared, Questions},
    events::{
        enrich::CutFlow,
        record::{PolicyChange, PolicyEvent, Record, RuleRef, new_uid},
    },
    identity::resolver::Labels,
    policy::{
        changes::{Changes, changes},
        map_state::MapState,
        model::Rule,
        sample,
    },
    reconcile::cut_list::Who,
};

/// Edges, and prefixes, that are read back before a policy comes into force.
const CHECKED_MAX: usize = 500;

/// Addresses that one external may have by DNS.
pub(super) const DNS_ADDRESSES: u32 = 1_000;

/// What a change did to live flows.
pub(super) struct CutResult {
    /// Sockets that were ended.
    cut: usize,
    /// Sockets that should have been and could not.
    uncut: usize,
    /// Why not.
    problem: Option<String>,
}

impl Core {
    pub(super) fn refused(&mut self, e: anyhow::Error) -> anyhow::Error {
        self.problems.insert("policy", format!("the last complete policy stays in force: {e:#}"));
        let change = PolicyChange::Refused {
            name: self.config.policy_directory.display().to_string(),
            error: format!("{e:#}").lines().next().unwrap_or_default().to_owned(),
        };
        self.policy_event(change, &Applied::default());
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
                self.policy_event(PolicyChange::Applied { name }, &applied);
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
        self.policy_event(change, &applied);
        Ok(applied)
    }

    /// Compiles, fills the idle side, flips, cuts. An error before the flip leaves no trace.
    pub(super) fn swap(&mut self, candidate: Candidate, overrides: &[Rule]) -> Result<Applied> {
        let started = clock::now().boot_ns;
        let offset = clock::boot_to_unix();
        let state = Arc::new(candidate.compile(overrides, offset, &self.read_surroundings(&candidate.policy))?);
        let resolver = candidate.resolver(&self.host)?;
        self.roster.walk()?;
        let mut labels = self.roster.labels(&resolver);
        let settings = self.settings(&state);
        let prepared = self.datapath.prepare(&state, settings, &identities(&labels))?;
        // Cgroups made while the side was filled took their parent's entry from before, or were labelled on both
        // sides by the policy that still is in force: look again.
        let learned = self.learn_cgroups();
        if self.roster.walk()? > 0 || learned || self.roster.nodes().any(|n| !labels.cgroups.contains_key(&n.id)) {
            labels = self.roster.labels(&resolver);
            self.datapath.refill(&prepared, &identities(&labels))?;
        }
        self.check(&prepared, &state, &identities(&labels))?;
        self.datapath.flip(&prepared)?;
        let relabelled = changed(&self.labels.cgroups, &labels.cgroups);
        let (before, before_ns) = (Arc::clone(&self.state), self.applied_ns);
        self.applied_ns = clock::now().boot_ns;
        self.wall_offset = offset;
        (self.candidate, self.resolver, self.state, self.labels) = (candidate, resolver, state, labels);
        self.shared.set(&self.labels.cgroups);
        let rules = overrides.to_vec();
        let snapshot = snapshot(prepared.epoch, &self.candidate, &rules, &self.state, &self.labels);
        self.snapshots.install(Arc::new(snapshot));
        self.snapshots.set_places(self.roster.places());
        self.watch.look_soon();
        let CutResult { cut, uncut, problem } = self.cut();
        // The new policy is in force whether or not the old one's memory is free.
        self.problems.remove("settle");
        if let Err(e) = self.datapath.settle() {
            self.problems.insert("settle", format!("free the policy before: {e}"));
        }
        let (before_s, after_s) = (clock::seconds_of(before_ns), clock::seconds_of(self.applied_ns));
        let Changes { opened, closed } = changes((&before, before_s), (&self.state, after_s));
        let edges = self.state.edges.len();
        info!(epoch = prepared.epoch.0, edges, opened, closed, cut, uncut, relabelled, "policy in force");
        Ok(Applied {
            epoch: prepared.epoch.0,
            unchanged: false,
            opened,
            closed,
            cut,
            uncut,
            cut_problem: problem,
            edges,
            id: None,
            millis: clock::now().boot_ns.saturating_sub(started) / 1_000_000,
            warnings: String::new(),
        })
    }

    /// Compares what was compiled with what the maps say. A side that differs is emptied.
    fn check(&mut self, prepared: &Prepared, state: &MapState, identities: &Identities) -> Result<()> {
        let now = clock::now().boot_ns;
        let (flows, addresses) = (sample::flows(state, CHECKED_MAX, now), sample::addresses(state, CHECKED_MAX, now));
        let now = clock::seconds_of(now);
        let asked = Questions { state, identities, flows: &flows, addresses: &addresses, now };
        match self.datapath.check(prepared, &asked) {
            Ok(count) => debug!(count, "the maps say what was compiled"),
            Err(e) => {
                // Nobody looks at it; it only holds memory.
                let _ = self.datapath.settle();
                return Err(e.into());
            }
        }
        Ok(())
    }

    pub(super) fn settings(&self, state: &MapState) -> Settings {
        Settings {
            unknown_mode: state.unknown_mode.unwrap_or(Mode::Observe) as u8,
            event_burst: self.config.event_burst,
            event_per_second: self.config.event_per_second,
            flow_quota: self.config.flow_quota,
            resolvers: state.resolvers.table(),
            host_netns: self.host_netns,
            dns_resolvers: if state.dns_names.is_empty() { Default::default() } else { state.answers.table() },
            dns_quota: if state.dns_names.is_empty() { 0 } else { DNS_ADDRESSES },
            ..Settings::default()
        }
    }

    /// Ends flows that lost their rule. What could not be ended is a problem of `status`, and tried again.
    pub(super) fn cut(&mut self) -> CutResult {
        let now = clock::now();
        let addresses = self.named_addresses();
        // Without it, what only an answer allows would be ended; it is cut when the table can be read again.
        let dns = if self.state.dns_names.is_empty() { Ok(BTreeMap::new()) } else { self.datapath.dns_addresses() };
        let dns = match dns {
            Ok(dns) => dns,
            Err(e) => return self.cut_later(&format!("read what answers of resolvers said: {e}")),
        };
        let who = Who { cgroups: &self.labels.cgroups, uids: &self.labels.uids, addresses: &addresses, dns: &dns };
        let Outcome { ended, failed, problems } = cutting::cut_all(who, &self.state, clock::seconds_of(now.boot_ns));
        let problem = (!problems.is_empty()).then(|| {
            let problems = problems.join("; ");
            format!(
                "flows that lost their rule could not be cut: {problems}. New flows are refused and packets of these \
                 are dropped all the same; it is tried again every second"
            )
        });
        self.tell("cut", problem.clone());
        for one in &ended {
            self.pipeline.on_cut(&self.cut_flow(one), &now, &self.snapshots);
        }
        CutResult { cut: ended.len(), uncut: failed, problem }
    }

    /// Leaves the cutting to the next second.
    fn cut_later(&mut self, why: &str) -> CutResult {
        let problem = Some(format!("no flow that lost its rule could be cut: {why}; it is tried again every second"));
        self.tell("cut", problem.clone());
        CutResult { cut: 0, uncut: 0, problem }
    }

    /// Cuts again what could not be cut before.
    pub(super) fn cut_again(&mut self) {
        if self.problems.contains_key("cut") {
            self.cut();
        }
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

    fn policy_event(&self, change: PolicyChange, applied: &Applied) {
        let count = |n| u64::try_from(n).unwrap_or(u64::MAX);
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
            edges_opened: count(applied.opened),
            edges_closed: count(applied.closed),
            flows_cut: count(applied.cut),
        };
        self.pipeline.submit(&now, Record::Policy(event));
    }
}

/// As the maps hold them.
pub(super) fn identities(labels: &Labels) -> Identities {
    Identities { cgroups: labels.cgroups.clone(), uids: labels.uids.clone() }
}
