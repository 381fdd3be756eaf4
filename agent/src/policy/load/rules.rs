//! Rules: ids, ends, ports, expiry.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::{
    Loader,
    who::{Kind, Who},
};
use crate::policy::{
    fields::Text,
    file::{PolicyFile, RuleFile},
    finding::{Code, Finding, Mark},
    model::{Action, PortRange, PortSpec, Rule},
    ports, time,
};

/// Longest rule id, in bytes.
const ID_LEN_MAX: usize = 128;

impl Loader {
    pub(super) fn rules(&mut self, documents: &[PolicyFile]) {
        let mut seen: BTreeMap<String, (Mark, bool)> = BTreeMap::new();
        for document in documents {
            for file in &document.rules {
                let Some(rule) = self.rule(&document.name.value, file) else { continue };
                let at = file.id.as_ref().map_or(&file.at, |id| &id.at);
                let place = (at.clone(), file.id.is_some());
                if let Some((first, named)) = seen.insert(rule.id.clone(), place) {
                    let same = !named && file.id.is_none();
                    let message = if same {
                        format!("the same rule stands here twice, as `{}`", rule.id)
                    } else {
                        format!("two rules have the id `{}`", rule.id)
                    };
                    let finding = Finding::new(Code::E02, at.clone(), message).also(first, "the other one");
                    self.findings.push(if same { finding.help("delete one, or give it an `id`") } else { finding });
                }
                self.policy.rules.push(rule);
            }
        }
        self.policy.rules.sort_by(|a, b| a.id.cmp(&b.id));
    }

    fn rule(&mut self, document: &str, file: &RuleFile) -> Option<Rule> {
        let RuleFile { action, at, from, to, ports, id, reason, owner, ticket, expires } = file;
        let caller = self.who(from);
        let callee = self.who(to);
        let specs = self.port_specs(ports, callee.as_ref());
        if *action == Action::Deny {
            self.check_denied(from, caller.as_ref());
            self.check_denied(to, callee.as_ref());
        }
        let id = match id {
            Some(text) => {
                self.check_id(text);
                text.value.clone()
            }
            None => default_id(document, *action, &from.value, &to.value, &specs),
        };
        let expires = match expires {
            Some(text) => Some(self.time(text)?),
            None => None,
        };
        let text = |text: &Option<Text>| text.as_ref().map(|text| text.value.clone());
        Some(Rule {
            id,
            action: *action,
            from: caller?.into_name(),
            to: callee?.into_name(),
            ports: specs,
            expires,
            reason: text(reason),
            owner: text(owner),
            ticket: text(ticket),
            place: at.place.clone(),
        })
    }

    /// Reports an end of a deny of which not every address is known.
    fn check_denied(&mut self, text: &Text, who: Option<&Who>) {
        let Some(Who::Declared(name, kind)) = who else { return };
        let group = self.policy.groups.get(name).filter(|_| *kind == Kind::Group);
        let members = group.map_or_else(|| vec![name.clone()], Clone::clone);
        let by_dns = |name: &&String| self.policy.externals.get(*name).is_some_and(|external| !external.dns.is_empty());
        let Some(external) = members.iter().find(by_dns) else { return };
        let message = if external == name {
            format!("`{name}` is known by DNS names, and a deny would not reach every address of it")
        } else {
            format!("`{external}` in `{name}` is known by DNS names, and a deny would not reach every address of it")
        };
        let mut finding = Finding::new(Code::E09, text.at.clone(), message);
        if let Some(declared) = self.declared.get(external) {
            finding = finding.also(declared.at.clone(), "declared here");
        }
        self.findings.push(finding.help("deny a range in `cidrs`, or allow less: what no rule allows is denied"));
    }

    fn check_id(&mut self, text: &Text) {
        let legal = |c: u8| c.is_ascii_alphanumeric() || b"._/-".contains(&c);
        if text.value.len() > ID_LEN_MAX || !text.value.bytes().all(legal) {
            let message = format!("`{}` is no rule id; use 1 to {ID_LEN_MAX} of `A-Z a-z 0-9 . _ / -`", text.value);
            self.error(Code::E02, &text.at, message);
        }
    }

    pub(super) fn time(&mut self, text: &Text) -> Option<i64> {
        match time::parse(&text.value) {
            Ok(seconds) => Some(seconds),
            Err(error) => {
                self.error(Code::E01, &text.at, format!("`{}` is no time: {error}", text.value));
                None
            }
        }
    }

    fn port_specs(&mut self, texts: &[Text], callee: Option<&Who>) -> Vec<PortSpec> {
        let mut specs = Vec::new();
        for text in texts {
            match ports::parse(&text.value) {
                Ok(spec) => {
                    if let (PortSpec::Named(name), Some(callee)) = (&spec, callee) {
                        self.check_port_name(text, name, callee);
                    }
                    specs.push(spec);
                }
                Err(error) => self.error(Code::E05, &text.at, error.to_string()),
            }
        }
        // Only a deny may leave them out, and it then means every port.
        if texts.is_empty() {
            specs.push(PortSpec::Range(PortRange::ANY));
        }
        specs.sort();
        specs.dedup();
        specs
    }

    /// Reports a port name that some member of `callee` does not have.
    pub(super) fn check_port_name(&mut self, text: &Text, port: &str, callee: &Who) {
        let members: Vec<String> = match callee {
            Who::Any | Who::World | Who::Derived(_) => {
                let message =
                    format!("`{}` has no port names, so `{port}` cannot be looked up", callee.clone().into_name());
                let finding = Finding::new(Code::E05, text.at.clone(), message);
                self.findings.push(finding.help("write the number: `tcp/443`"));
                return;
            }
            Who::Declared(name, Kind::Group) => self.policy.groups.get(name).cloned().unwrap_or_default(),
            Who::Declared(name, Kind::Workload | Kind::External) => vec![name.clone()],
        };
        for member in members {
            let workload = self.policy.workloads.get(&member);
            // One that could not be read is missing here and was reported there.
            if workload.is_none() && !self.policy.externals.contains_key(&member) {
                continue;
            }
            if workload.is_some_and(|workload| workload.ports.contains_key(port)) {
                continue;
            }
            let message = format!("`{member}` has no port called `{port}`");
            let mut finding = Finding::new(Code::E05, text.at.clone(), message);
            let known = workload.into_iter().flat_map(|workload| workload.ports.keys());
            finding = finding.did_you_mean(port, known.map(|name| (name.as_str(), None)));
            if let Some(declared) = self.declared.get(&member) {
                finding = finding.also(declared.at.clone(), "declared here");
            }
            self.findings.push(finding);
        }
    }
}

/// Returns the id of a rule without one: hit counters survive reordering and moving within a document.
fn default_id(document: &str, action: Action, from: &str, to: &str, ports: &[PortSpec]) -> String {
    let action = match action {
        Action::Allow | Action::OverrideAllow => "allow",
        Action::Deny | Action::OverrideDeny => "deny",
    };
    let mut ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    ports.sort();
    let mut digest = Sha256::new();
    digest.update(action);
    for part in [from, to].into_iter().chain(ports.iter().map(String::as_str)) {
        digest.update([0]);
        digest.update(part);
    }
    let hex: String = digest.finalize().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    format!("{document}/{hex}")
}
