//! From files to a [`Policy`] that is known to be valid.
//!
//! All documents are merged as a set: the result does not depend on the names of the files, their
//! order, or how rules are spread over them. One error refuses the whole set.

mod parties;
mod rules;
mod select;
mod tests_section;
mod who;

use std::collections::BTreeMap;

use agent_common::verdict::Mode;

use super::{
    canonical,
    fields::Text,
    file::{self, DefaultsFile, PolicyFile},
    finding::{Code, Finding, Mark},
    model::{OnDeny, Policy, SharedPeers},
};
use crate::identity::spiffe::SpiffeId;
use who::Declared;

/// A valid policy, and what is odd about how it was written.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// The policy.
    pub policy: Policy,
    /// Findings that refuse nothing.
    pub warnings: Vec<Finding>,
}

/// Reads a set of files, each a name and a text. The trust domain must stand in one of them.
///
/// # Errors
///
/// Everything that is wrong with the set, sorted by place.
pub fn load(files: &[(&str, &str)]) -> Result<Loaded, Vec<Finding>> {
    load_in(files, None)
}

/// As [`load`], with the trust domain that the agent is configured with, if it is: documents need
/// not repeat it and may not contradict it.
///
/// # Errors
///
/// As [`load`].
pub fn load_in(files: &[(&str, &str)], trust_domain: Option<&str>) -> Result<Loaded, Vec<Finding>> {
    let mut loader = Loader::default();
    let mut documents = Vec::new();
    for (name, text) in files {
        let (found, findings) = file::parse(name, text);
        documents.extend(found);
        loader.findings.extend(findings);
    }
    if documents.is_empty() && loader.findings.is_empty() {
        loader.findings.push(
            Finding::general(Code::E06, "no file holds a policy document")
                .help("in a directory every file is read that ends in `.yaml`, and nothing below it"),
        );
    }
    documents.sort_by(|a, b| (&a.name.value, &a.name.at).cmp(&(&b.name.value, &b.name.at)));
    loader.document_names(&documents);
    loader.trust_domain(&documents, trust_domain);
    loader.defaults(&documents);
    loader.declare(&documents);
    loader.parties(&documents);
    loader.rules(&documents);
    loader.tests(&documents);
    loader.finish()
}

/// The policy under construction.
#[derive(Default)]
struct Loader {
    policy: Policy,
    /// For workloads that say nothing of it.
    default_shared_peers: SharedPeers,
    /// Every declared name.
    declared: BTreeMap<String, Declared>,
    findings: Vec<Finding>,
    warnings: Vec<Finding>,
}

impl Loader {
    fn error(&mut self, code: Code, at: &Mark, message: impl Into<String>) {
        self.findings.push(Finding::new(code, at.clone(), message));
    }

    fn document_names(&mut self, documents: &[PolicyFile]) {
        let mut seen: BTreeMap<&str, &Mark> = BTreeMap::new();
        for PolicyFile { name, .. } in documents {
            // A document without a name was reported when it was read.
            if name.value.is_empty() {
                continue;
            }
            let legal = |c: u8| c.is_ascii_alphanumeric() || b"._-".contains(&c);
            if name.value.len() > 63 || !name.value.bytes().all(legal) {
                let message = format!("`{}` is no name for a document; use 1 to 63 of `A-Z a-z 0-9 . _ -`", name.value);
                self.error(Code::E02, &name.at, message);
            }
            if let Some(first) = seen.insert(&name.value, &name.at) {
                let finding =
                    Finding::new(Code::E02, name.at.clone(), format!("two documents are called `{}`", name.value));
                self.findings.push(finding.also(first.clone(), "the other one"));
            }
        }
        let names: Vec<&str> = seen.into_keys().collect();
        self.policy.name = names.join("+");
    }

    fn trust_domain(&mut self, documents: &[PolicyFile], configured: Option<&str>) {
        let mut first: Option<(String, Option<&Mark>)> = configured.map(|td| (td.to_ascii_lowercase(), None));
        for text in documents.iter().filter_map(|document| document.trust_domain.as_ref()) {
            let written = text.value.strip_prefix("spiffe://").unwrap_or(&text.value);
            let lower = written.to_ascii_lowercase();
            if let Err(error) = SpiffeId::parse(&format!("spiffe://{lower}")) {
                self.error(Code::E04, &text.at, format!("`{}` is no trust domain: {error}", text.value));
                continue;
            }
            if lower != written {
                let finding = Finding::new(Code::W14, text.at.clone(), format!("`{written}` has upper case"));
                self.warnings.push(finding.label(format!("it is read as `{lower}`")));
            }
            match &first {
                None => first = Some((lower, Some(&text.at))),
                Some((other, _)) if *other == lower => {}
                Some((other, at)) => {
                    let message = format!("trust domain `{written}` disagrees with `{other}`");
                    let finding = Finding::new(Code::E04, text.at.clone(), message);
                    self.findings.push(match at {
                        Some(at) => finding.also((*at).clone(), "the other one"),
                        None => finding.help(format!("the agent is configured with `{other}`")),
                    });
                }
            }
        }
        match first {
            Some((trust_domain, _)) => self.policy.trust_domain = trust_domain,
            None => {
                // Names can still be compared, so the other errors are shown as well.
                self.policy.trust_domain = "unnamed".to_owned();
                if self.findings.is_empty() {
                    let finding = Finding::general(Code::E04, "no document says which trust domain names lie in");
                    self.findings.push(finding.help("write `trustDomain: example.com` under `spec` of one document"));
                }
            }
        }
    }

    fn defaults(&mut self, documents: &[PolicyFile]) {
        let mut first: Option<&Mark> = None;
        for defaults in documents.iter().filter_map(|document| document.defaults.as_ref()) {
            let DefaultsFile { at, mode, unknown_mode, on_deny, shared_peers } = defaults;
            if let Some(first) = first {
                let finding = Finding::new(Code::E12, at.clone(), "a second document has `defaults`");
                self.findings.push(finding.also(first.clone(), "the first one"));
                continue;
            }
            first = Some(at);
            self.policy.default_mode = self.mode(mode.as_ref());
            self.policy.unknown_mode = self.mode(unknown_mode.as_ref());
            self.policy.default_on_deny = self.on_deny(on_deny.as_ref()).unwrap_or_default();
            self.default_shared_peers = self.shared_peers(shared_peers.as_ref()).unwrap_or_default();
        }
    }

    fn mode(&mut self, text: Option<&Text>) -> Option<Mode> {
        self.choice(text, "mode", [Mode::Observe, Mode::Audit, Mode::Enforce], Mode::name)
    }

    fn on_deny(&mut self, text: Option<&Text>) -> Option<OnDeny> {
        self.choice(text, "`onDeny`", OnDeny::ALL, OnDeny::name)
    }

    fn shared_peers(&mut self, text: Option<&Text>) -> Option<SharedPeers> {
        self.choice(text, "`sharedPeers`", SharedPeers::ALL, SharedPeers::name)
    }

    /// The one of `all` that a text names; none if there is no text, or with a finding if it names none of them.
    fn choice<T: Copy, const N: usize>(
        &mut self,
        text: Option<&Text>,
        what: &str,
        all: [T; N],
        name: fn(T) -> &'static str,
    ) -> Option<T> {
        let text = text?;
        let chosen = all.into_iter().find(|&one| name(one) == text.value);
        if chosen.is_none() {
            let known = all.map(name);
            let message = format!("`{}` is no {what}; write {}", text.value, known.join(", "));
            let finding = Finding::new(Code::E01, text.at.clone(), message);
            self.findings.push(finding.did_you_mean(&text.value, known.iter().map(|&name| (name, None))));
        }
        chosen
    }

    fn finish(mut self) -> Result<Loaded, Vec<Finding>> {
        if !self.findings.is_empty() {
            self.findings.sort_by(|a, b| (&a.at, a.code, &a.message).cmp(&(&b.at, b.code, &b.message)));
            self.findings.dedup();
            return Err(self.findings);
        }
        self.policy.hash = canonical::hash(&self.policy);
        Ok(Loaded { policy: self.policy, warnings: self.warnings })
    }
}

#[cfg(test)]
mod tests;
