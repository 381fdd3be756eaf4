//! The policy in force: documents, compiled form, names.

use std::{collections::BTreeMap, sync::Arc};

use agent_common::{
    flow::Flow,
    id::{BootSeconds, Epoch},
};

use super::surroundings::Surroundings;
use crate::{
    events::{
        record::{PolicyRef, RuleKind, RuleRef},
        snapshot::{Name, Snapshot},
    },
    identity::resolver::{Labels, Resolver, ResolverError},
    policy::{
        ask::{Asked, unix_moment},
        compile::{CompileInput, compile},
        explain::{Difference, explain},
        finding::{Finding, Sources, render},
        load::load_in,
        map_state::MapState,
        model::{Action, Party, Policy, PortRange, PortSpec, Rule},
    },
};

/// Documents that were read, checked and compiled.
#[derive(Clone)]
pub struct Candidate {
    /// File name and text.
    pub files: Vec<(String, String)>,
    /// Their meaning.
    pub policy: Arc<Policy>,
    /// Warnings, rendered.
    pub warnings: String,
}

/// Why documents do not become the policy.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Something is wrong with them, rendered for people.
    #[error("{0}")]
    Invalid(String),
    /// Their tests failed.
    #[error("{0}")]
    Tests(String),
    /// Their selectors.
    #[error(transparent)]
    Selectors(#[from] ResolverError),
}

impl Candidate {
    /// Reads documents.
    ///
    /// # Errors
    ///
    /// [`Refusal::Invalid`] with every finding.
    pub fn read(files: Vec<(String, String)>, trust_domain: Option<&str>) -> Result<Self, Refusal> {
        let borrowed: Vec<(&str, &str)> = files.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
        let loaded = load_in(&borrowed, trust_domain).map_err(|f| Refusal::Invalid(text(&f, &borrowed)))?;
        let warnings = text(&loaded.warnings, &borrowed);
        Ok(Self { policy: Arc::new(loaded.policy), warnings, files })
    }

    /// Compiles them with the overrides in force and the surroundings of this node, for the boot clock.
    ///
    /// # Errors
    ///
    /// [`Refusal::Invalid`].
    pub fn compile(
        &self,
        overrides: &[Rule],
        boot_to_unix: i64,
        Surroundings { resolvers, built_in, peers }: &Surroundings,
    ) -> Result<MapState, Refusal> {
        let borrowed: Vec<(&str, &str)> = self.files.iter().map(|(n, t)| (n.as_str(), t.as_str())).collect();
        let asked = built_in.then_some(resolvers);
        let input =
            CompileInput { boot_to_unix, overrides, resolvers: asked, answers: Some(resolvers), peers: Some(peers) };
        compile(&self.policy, &input).map_err(|f| Refusal::Invalid(text(&f, &borrowed)))
    }

    /// Runs the tests in the documents. Overrides and built-ins are left out.
    ///
    /// # Errors
    ///
    /// [`Refusal::Tests`] with those that failed.
    pub fn test(&self, now_unix: i64) -> Result<usize, Refusal> {
        use crate::policy::assertions;
        let map = self.compile(&[], 0, &Surroundings::default())?;
        let asked = Asked { policy: &self.policy, map: &map, overrides: &[], now: unix_moment(now_unix) };
        let outcomes = assertions::run(&self.policy, &map, now_unix);
        let failed: Vec<String> = outcomes
            .iter()
            .flat_map(|o| o.failures.iter().map(|f| assertions::describe_failure(&asked, &o.test.expect, f)))
            .collect();
        if failed.is_empty() { Ok(outcomes.len()) } else { Err(Refusal::Tests(failed.join("\n"))) }
    }

    /// The resolver of its selectors.
    ///
    /// # Errors
    ///
    /// [`Refusal::Selectors`].
    pub fn resolver(&self, host: &str) -> Result<Resolver, Refusal> {
        Ok(Resolver::new(&self.policy, host)?)
    }
}

fn text(findings: &[Finding], files: &[(&str, &str)]) -> String {
    if findings.is_empty() {
        return String::new();
    }
    let sources: Sources<'_> = files.iter().copied().collect();
    render(findings, &sources, false)
}

/// What events call things under an epoch.
#[must_use]
pub fn snapshot(
    epoch: Epoch,
    candidate: &Candidate,
    overrides: &[Rule],
    state: &Arc<MapState>,
    labels: &Labels,
) -> Snapshot {
    let policy = Arc::clone(&candidate.policy);
    let mut names: BTreeMap<_, _> = state
        .names
        .iter()
        .map(|(&id, short)| {
            let external = policy.externals.get(short);
            let spiffe =
                policy.workloads.get(short).map(|w| w.id.to_string()).or_else(|| external.map(|e| e.id.to_string()));
            (id, Name { short: short.clone(), spiffe, is_external: external.is_some() || id.is_set() })
        })
        .collect();
    for (&id, name) in &labels.names {
        names.insert(id, Name { short: name.short.clone(), spiffe: Some(name.id.to_string()), is_external: false });
    }
    let by_id: BTreeMap<&str, &Rule> = policy.rules.iter().chain(overrides).map(|r| (r.id.as_str(), r)).collect();
    let rules = state.rule_ids.iter().map(|id| rule_ref(id, by_id.get(id.as_str()).copied())).collect();
    let nearest = {
        let (policy, state, overrides) = (Arc::clone(&policy), Arc::clone(state), overrides.to_vec());
        let nearest = move |flow: &Flow| {
            let asked = Asked { policy: &policy, map: &state, overrides: &overrides, now: BootSeconds(0) };
            nearest_rule(&asked, flow)
        };
        Arc::new(nearest) as crate::events::snapshot::NearestRule
    };
    Snapshot {
        epoch,
        policy: Some(PolicyRef { name: policy.name.clone(), hash: policy.hash.clone() }),
        names,
        rules,
        nearest: Some(nearest),
    }
}

/// Says which allow rule came nearest to a flow, and the one thing that differs.
fn nearest_rule(asked: &Asked<'_>, flow: &Flow) -> Option<String> {
    let name = |id| asked.map.names.get(&id).cloned().map(Party::Name);
    let (from, to) = (name(flow.from)?, name(flow.to)?);
    let ports = PortSpec::Range(PortRange { proto: flow.proto, lo: flow.port, hi: flow.port });
    let explanations = explain(asked, &from, &to, &ports);
    let nearest = explanations.first()?.nearest.as_ref()?;
    let rule = nearest.rule;
    let differs = match nearest.differs {
        Difference::From => "another caller",
        Difference::To => "another callee",
        Difference::Ports => "other ports",
        Difference::Expired => "it has expired",
        Difference::SharedPeers => "others share the address, and `sharedPeers: deny`",
    };
    Some(format!("nearest rule {}: {} -> {}, but {differs}", rule.id, rule.from, rule.to))
}

fn rule_ref(id: &str, rule: Option<&Rule>) -> RuleRef {
    let kind = match rule.map(|r| r.action) {
        Some(Action::OverrideDeny) => RuleKind::OverrideDeny,
        Some(Action::OverrideAllow) => RuleKind::OverrideAllow,
        Some(Action::Deny) => RuleKind::Deny,
        Some(Action::Allow) | None => RuleKind::Allow,
    };
    RuleRef { id: id.to_owned(), title: rule.and_then(|r| r.reason.clone()), kind }
}
