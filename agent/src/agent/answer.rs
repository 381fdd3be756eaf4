//! Answers of the reconcile thread to requests of the control socket.

use std::{collections::BTreeMap, net::IpAddr};

use agent_common::{
    flow::proto,
    id::{IdentityId, RuleNumber},
    layout::{DenyCounter, EdgeEntry, Range, ident_flags, level},
    verdict::Mode,
};
use anyhow::Result;
use serde_json::json;

use super::{
    checking::{self, Belief},
    core::Core,
    in_force::{Candidate, Refusal},
    overrides::{InvalidOverride, override_data},
    recent::Sums,
    surroundings::Surroundings,
    swap::identities,
};
use crate::{
    clock,
    control::{
        access::{self, Caller},
        wire::{Applied, EdgeRow, Endpoint, Override, Reply, Request, Status},
    },
    datapath::DatapathError,
    events::{
        escape::{PATH_CHARS_MAX, escape},
        record::PolicyChange,
    },
    policy::{
        ask::{self, Asked},
        explain::explain,
        map_state::MapState,
        model::Party,
        names, time,
    },
};

/// Exit codes of policy.md, section 16, as the agent gives them to the command line.
mod code {
    pub const NO: u8 = 1;
    pub const USAGE: u8 = 2;
    pub const INVALID: u8 = 3;
    pub const NOT_PERMITTED: u8 = 5;
    pub const PARTLY: u8 = 6;
}

impl Core {
    pub(super) fn answer(&mut self, request: Request, caller: Caller) -> Reply {
        if let Some(why) = access::refusal(caller, &request) {
            return Reply::Refused { message: why.to_owned(), code: code::NOT_PERMITTED };
        }
        let answer = match request {
            Request::Status => self.status().map(|s| Reply::Status(Box::new(s))),
            Request::Identities => Ok(Reply::Identities { endpoints: self.endpoints() }),
            Request::Devices => Ok(Reply::Devices { devices: self.guarded() }),
            Request::Programs => self.programs_of_others().map(|programs| Reply::Programs { programs }),
            Request::Policy => Ok(Reply::Policy {
                files: self.candidate.files.clone(),
                trust_domain: self.candidate.policy.trust_domain.clone(),
            }),
            Request::Apply { files } => self.install(files).map(Reply::Applied),
            Request::Reload => self.reload().map(Reply::Applied),
            Request::Explain { from, to } => return self.explained(&from, &to),
            Request::Edges => self.edges().map(|edges| Reply::Edges { edges }),
            Request::Stats => self.stats().map(|counters| Reply::Stats { counters }),
            Request::Raw => self.raw(),
            Request::Check => self.checked(),
            Request::Revoke(asked) => self.overridden("revoke", &asked).map(Reply::Applied),
            Request::BreakGlass(asked) => self.overridden("break-glass", &asked).map(Reply::Applied),
            Request::Overrides => Ok(Reply::Overrides { overrides: self.overrides.rows().to_vec() }),
            Request::Undo { id } => self.undone(&id).map(Reply::Applied),
            // The server answers these without this thread.
            Request::Recent | Request::Follow { .. } => Ok(Reply::Missed { count: 0 }),
        };
        answer.unwrap_or_else(|e| {
            let code = match e.downcast_ref::<Refusal>() {
                Some(Refusal::Tests(_)) => code::NO,
                Some(_) => code::INVALID,
                None if e.is::<InvalidOverride>() => code::USAGE,
                None if is_too_large(&e) => code::INVALID,
                None => code::PARTLY,
            };
            Reply::Refused { message: format!("{e:#}"), code }
        })
    }

    fn install(&mut self, files: Vec<(String, String)>) -> Result<Applied> {
        let candidate = Candidate::read(files, self.config.trust_domain.as_deref())?;
        candidate.test(clock::unix_seconds())?;
        // Compiled and resolved before the directory is touched, so that a refusal leaves it as it is.
        let state = self.compiled(&candidate)?;
        let labels = self.roster.labels(&candidate.resolver(&self.host)?);
        self.datapath.check_capacity(&state, &identities(&labels))?;
        let files = self.store.install(&self.config, &candidate.files)?;
        self.apply(Candidate { files, ..candidate })
    }

    fn compiled(&self, candidate: &Candidate) -> Result<MapState> {
        Ok(candidate.compile(&self.overrides.rules(), clock::boot_to_unix(), &Surroundings::of(&self.state))?)
    }

    fn overridden(&mut self, kind: &str, asked: &Override) -> Result<Applied> {
        let policy = &self.candidate.policy;
        may_stand_in_a_rule(ask::party(policy, &asked.from).map(drop))?;
        may_stand_in_a_rule(match asked.ports.first() {
            Some(port) => ask::target(policy, &format!("{}:{port}", asked.to)).map(drop),
            None => ask::party(policy, &asked.to).map(drop),
        })?;
        let (overrides, row) = self.overrides.with(kind, asked, clock::unix_seconds())?;
        let change = PolicyChange::OverrideStarted(override_data(&row));
        let applied = self.with_overrides(overrides, change)?;
        Ok(Applied { id: Some(row.id), ..applied })
    }

    fn undone(&mut self, id: &str) -> Result<Applied> {
        let (overrides, row) = self.overrides.without(id)?;
        self.with_overrides(overrides, PolicyChange::OverrideEnded(override_data(&row)))
    }

    fn status(&mut self) -> Result<Status> {
        let now = clock::now().boot_ns;
        // The books before the counters: whatever is told by then was counted before, so the difference is
        // what is still to be told, and never less than nothing.
        let (accounting, base) = {
            let ledger = self.pipeline.ledger().lock();
            (ledger.accounting(clock::now().wall), ledger.sums().base)
        };
        let counts = self.datapath.deny_counts()?;
        let count = |c: DenyCounter| base[c as usize] + counts[c as usize];
        let (suppressed, lost) =
            (accounting.repeated + accounting.folded + accounting.settled, accounting.lost.total());
        let denied = count(DenyCounter::Denied);
        let (devices, host_devices) = self.watch.owners().devices_of_each();
        let policy = &self.candidate.policy;
        let modes = |i: Mode, e: Mode| format!("{}/{}", i.name(), e.name());
        let missing = self.datapath.missing_links();
        let mut problems: Vec<String> = self.problems.values().cloned().collect();
        if !missing.is_empty() {
            problems.push(format!("NOT enforcing: {missing:?} are not attached"));
        }
        for a in &self.labels.ambiguous {
            problems.push(format!(
                "AMBIGUOUS_IDENTITY: {} is claimed by {}",
                path_text(&a.path),
                a.workloads.join(", ")
            ));
        }
        Ok(Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            host: self.host.clone(),
            scope: self.config.scope.clone(),
            pid: std::process::id(),
            uptime_seconds: now.saturating_sub(self.started_ns) / 1_000_000_000,
            adopted: self.adopted,
            policy: policy.name.clone(),
            policy_hash: policy.hash.clone(),
            epoch: self.datapath.in_force().0,
            documents: self.candidate.files.len(),
            rules: self.state.rule_ids.len(),
            edges: self.state.edges.len(),
            applied_seconds_ago: now.saturating_sub(self.applied_ns) / 1_000_000_000,
            modes: policy.workloads.values().map(|w| (w.name.clone(), modes(w.ingress_mode, w.egress_mode))).collect(),
            unknown_mode: self.state.unknown_mode.unwrap_or(Mode::Observe).name().to_owned(),
            dns_names: self.state.dns_names.len(),
            dns_addresses: self.dns.live,
            resolvers: self.state.resolvers.addresses().to_vec(),
            devices,
            host_devices,
            addresses: self.watch.owners().of_workloads().count(),
            peers: self.state.peers.len(),
            labelled: self.labels.cgroups.values().filter(|s| s.flags & ident_flags::LABELLED != 0).count(),
            ambiguous: self.labels.ambiguous.len(),
            overrides: self.overrides.rows().len(),
            denied,
            would_deny: count(DenyCounter::WouldDeny),
            reported: accounting.listed,
            suppressed,
            settled: accounting.settled,
            lost,
            pending: denied.saturating_sub(accounting.listed + suppressed + lost),
            recent: self.history.until(now, Sums { denied, would_deny: count(DenyCounter::WouldDeny), lost }),
            tampering: self.upkeep.shown(now),
            problems,
        })
    }

    fn endpoints(&self) -> Vec<Endpoint> {
        let mut endpoints: Vec<Endpoint> = self
            .roster
            .nodes()
            .filter_map(|node| {
                let slot = self.labels.cgroups.get(&node.id)?;
                let name = self.labels.names.get(&slot.id);
                Some(Endpoint {
                    path: path_text(&node.path),
                    cgroup: node.id,
                    name: name.map_or_else(|| "unknown".to_owned(), |n| n.short.clone()),
                    spiffe_id: name.map_or_else(String::new, |n| n.id.to_string()),
                    declared: slot.flags & ident_flags::DECLARED != 0,
                    ingress_mode: Mode::from_u8(slot.ingress_mode).name().to_owned(),
                    egress_mode: Mode::from_u8(slot.egress_mode).name().to_owned(),
                })
            })
            .collect();
        endpoints.sort_by(|a, b| a.path.cmp(&b.path));
        endpoints
    }

    fn explained(&self, from: &str, to: &str) -> Reply {
        let policy = &self.candidate.policy;
        let usage = |e: ask::InvalidQuestion| Reply::Refused { message: e.to_string(), code: code::USAGE };
        let from = match ask::party(policy, from) {
            Ok(from) => from,
            Err(e) => return usage(e),
        };
        let (to, ports) = match ask::target(policy, to) {
            Ok(to) => to,
            Err(e) => return usage(e),
        };
        let overrides = self.overrides.rules();
        let now = clock::boot_seconds();
        let addresses = [&from, &to].into_iter().filter_map(|party| match party {
            Party::Address(address) => Some(*address),
            Party::Name(_) => None,
        });
        let addresses: Vec<IpAddr> = addresses.collect();
        let here = match (!addresses.is_empty()).then(|| self.state_here(&addresses)).transpose() {
            Ok(here) => here,
            Err(e) => return Reply::Refused { message: format!("{e:#}"), code: code::PARTLY },
        };
        let asked = Asked { policy, map: here.as_ref().unwrap_or(&self.state), overrides: &overrides, now };
        let answers = explain(&asked, &from, &to, &ports);
        let text: Vec<String> = answers.iter().map(ToString::to_string).collect();
        Reply::Explained {
            allowed: answers.iter().all(|a| a.decision.allow),
            explanations: json!(answers.iter().map(crate::policy::explain::Explanation::to_json).collect::<Vec<_>>()),
            text: text.join("\n"),
        }
    }

    fn edges(&self) -> Result<Vec<EdgeRow>> {
        let hits = self.datapath.hits()?;
        let now = clock::hit_ns();
        let offset = self.wall_offset;
        let name = |id: IdentityId| match self.state.names.get(&id) {
            _ if id == IdentityId::ANY => names::ANY.to_owned(),
            Some(name) => name.clone(),
            None => format!("{:#x}", id.0),
        };
        let mut rows = Vec::new();
        for (key, entry) in &self.state.edges {
            for range in self.ranges(entry) {
                let rule = usize::try_from(range.rule).unwrap_or(0).checked_sub(1);
                rows.push(EdgeRow {
                    from: name(key.from),
                    to: name(key.to),
                    action: action(range).to_owned(),
                    ports: ports(range),
                    rule: rule.and_then(|r| self.state.rule_ids.get(r)).cloned().unwrap_or_default(),
                    expires: (range.expires != 0).then(|| time::format(offset + i64::from(range.expires))),
                    hits: hits.get(&RuleNumber(range.rule)).map_or(0, |s| s.decisions),
                    last_seconds_ago: hits
                        .get(&RuleNumber(range.rule))
                        .map(|s| now.saturating_sub(s.last_ns) / 1_000_000_000),
                });
            }
        }
        rows.sort_by(|a, b| (&a.from, &a.to, &a.ports).cmp(&(&b.from, &b.to, &b.ports)));
        Ok(rows)
    }

    fn ranges<'a>(&'a self, entry: &'a EdgeEntry) -> impl Iterator<Item = &'a Range> {
        let spill = usize::try_from(entry.spill).ok().and_then(|i| self.state.spill.get(i));
        let rest = spill.map(|s| s.ranges.as_slice()).unwrap_or_default();
        entry.ranges.iter().chain(rest).take(usize::from(entry.count))
    }

    fn raw(&self) -> Result<Reply> {
        let held = self.datapath.held(self.state.spill.len())?;
        let elements = held.raw().into_iter().map(|(map, key, value)| (map.to_owned(), key, value));
        Ok(Reply::Raw { elements: elements.collect() })
    }

    fn checked(&self) -> Result<Reply> {
        let (held, identities) = (self.datapath.held(self.state.spill.len())?, identities(&self.labels));
        let settings = self.settings(&self.state);
        let epoch = u64::from(self.datapath.in_force().0);
        let belief = Belief { epoch, state: &self.state, settings, identities: &identities };
        let mut differences = checking::differences(&belief, &held);
        differences.extend(self.datapath.missing_links().into_iter().map(|name| format!("{name} is not attached")));
        let compared = [
            ("edges", belief.state.edges.len()),
            ("prefixes", belief.state.prefixes.len()),
            ("dns-names", belief.state.dns_names.len()),
            ("cgroups", identities.cgroups.len()),
            ("spills", belief.state.spill.len()),
            ("uids", identities.uids.len()),
        ];
        let compared = compared.map(|(name, n)| (name.to_owned(), n)).into();
        Ok(Reply::Checked { compared, differences })
    }

    fn stats(&self) -> Result<BTreeMap<String, u64>> {
        let counts = self.datapath.deny_counts()?;
        let count = |c: DenyCounter| counts[c as usize];
        let size = |n: usize| u64::try_from(n).unwrap_or(u64::MAX);
        Ok([
            ("denials.denied", count(DenyCounter::Denied)),
            ("denials.emitted", count(DenyCounter::Emitted)),
            ("denials.repeated", count(DenyCounter::Repeated)),
            ("denials.folded", count(DenyCounter::Folded)),
            ("denials.ring", count(DenyCounter::Ring)),
            ("denials.dropped", count(DenyCounter::Dropped)),
            ("denials.would-deny", count(DenyCounter::WouldDeny)),
            ("edges.used", size(self.state.edges.len())),
            ("edges.capacity", u64::from(self.config.capacity.edges)),
            ("cgroups.used", size(self.labels.cgroups.len())),
            ("cgroups.capacity", u64::from(self.config.capacity.cgroups)),
            ("flows.used", size(self.datapath.flow_count()?)),
            ("flows.capacity", u64::from(self.config.capacity.flows)),
            ("prefixes.used", size(self.state.prefixes.len())),
            ("dns.names", size(self.state.dns_names.len())),
            ("dns.addresses", size(self.dns.live)),
            ("dns.addresses-stale", size(self.dns.stale)),
            ("dns.answers", count(DenyCounter::DnsRead)),
            ("dns.answers-unread", count(DenyCounter::DnsUnread)),
            ("dns.no-room", count(DenyCounter::DnsFull)),
            ("rules.used", size(self.state.rule_ids.len())),
        ]
        .map(|(name, n)| (name.to_owned(), n))
        .into())
    }
}

/// An override is a rule: what it names must be known, and may be `any` or `nodes`, which answer no question.
fn may_stand_in_a_rule(asked: Result<(), ask::InvalidQuestion>) -> Result<(), InvalidOverride> {
    match asked {
        Ok(()) | Err(ask::InvalidQuestion::Nobody(_)) => Ok(()),
        Err(e) => Err(InvalidOverride::Names(e)),
    }
}

/// Says whether a policy did not fit: its size is wrong, not an operation.
pub(super) fn is_too_large(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(DatapathError::TooLarge(_))))
}

/// A path that a workload may have chosen, harmless.
fn path_text(path: &str) -> String {
    escape(path.as_bytes(), PATH_CHARS_MAX).text
}

fn action(range: &Range) -> &'static str {
    match range.level() {
        level::OVERRIDE_DENY => "override-deny",
        level::OVERRIDE_ALLOW => "override-allow",
        level::ALLOW => "allow",
        _ => "deny",
    }
}

fn ports(range: &Range) -> String {
    let name = match range.proto {
        0 => return "any".to_owned(),
        proto::TCP => "tcp".to_owned(),
        proto::UDP => "udp".to_owned(),
        proto::SCTP => "sctp".to_owned(),
        proto::ICMP => return if range.lo == 8 { "icmp/echo".to_owned() } else { format!("icmp/{}", range.lo) },
        other => format!("proto-{other}"),
    };
    match (range.lo, range.hi) {
        (0, u16::MAX) => format!("{name}/any"),
        (lo, hi) if lo == hi => format!("{name}/{lo}"),
        (lo, hi) => format!("{name}/{lo}-{hi}"),
    }
}
