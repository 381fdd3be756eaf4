//! `tests:`, one assertion for each thing promised.

use super::{Loader, who::Who};
use crate::policy::{
    fields::Text,
    file::{PolicyFile, TestFile},
    finding::{Code, Finding},
    model::{Expect, Party, PortSpec, Test},
    names::Form,
    ports,
};

impl Loader {
    pub(super) fn tests(&mut self, documents: &[PolicyFile]) {
        for file in documents.iter().flat_map(|document| &document.tests) {
            self.test(file);
        }
    }

    fn test(&mut self, file: &TestFile) {
        let TestFile { at, name, from, to, allow, deny, only, time } = file;
        let time = match time {
            Some(text) => match self.time(text) {
                Some(seconds) => Some(seconds),
                None => return,
            },
            None => None,
        };
        if allow.is_empty() && deny.is_empty() && only.is_none() {
            self.error(Code::E06, at, "the test promises nothing; add `allow`, `deny` or `only`");
            return;
        }
        let name = name.as_ref().map(|text| text.value.clone());
        let mut promises = Vec::new();
        match (from, to) {
            (Some(from), None) => {
                if let Some((mark, _)) = only {
                    self.error(Code::E01, mark, "`only` lists callers, so it stands beside `to`");
                }
                let from = self.party(from);
                for (text, allowed) in lines(allow, deny) {
                    if let (Some((to, port)), Some(from)) = (self.target(text), from.clone()) {
                        promises.push((Expect::new(allowed, from, to, port), text.at.place.clone()));
                    }
                }
            }
            (None, Some(target)) => {
                let Some((to, port)) = self.target(target) else { return };
                for (text, allowed) in lines(allow, deny) {
                    if let Some(from) = self.party(text) {
                        promises.push((Expect::new(allowed, from, to.clone(), port.clone()), text.at.place.clone()));
                    }
                }
                if let Some((mark, texts)) = only {
                    let callers = texts.iter().filter_map(|text| self.party(text)).collect();
                    promises.push((Expect::Only { to, port, callers }, mark.place.clone()));
                }
            }
            _ => self.error(Code::E01, at, "a test has `from` or `to`, and not both"),
        }
        let tests = promises.into_iter().map(|(expect, place)| Test { expect, at: time, name: name.clone(), place });
        self.policy.tests.extend(tests);
    }

    /// Reads `<name>:<port>`, split at the last colon.
    fn target(&mut self, text: &Text) -> Option<(Party, PortSpec)> {
        let Some((name, port)) = text.value.rsplit_once(':') else {
            let finding = Finding::new(Code::E05, text.at.clone(), format!("`{}` names no port", text.value));
            self.findings.push(finding.label("write `name:port`"));
            return None;
        };
        let name = Text { value: name.to_owned(), at: text.at.clone() };
        let party = self.party(&name)?;
        match ports::parse(port) {
            Ok(spec) => {
                if let PortSpec::Named(port) = &spec {
                    let who = match &party {
                        Party::Name(_) => self.who(&name)?,
                        // An address has no port names, as the world has none.
                        Party::Address(_) => Who::World,
                    };
                    self.check_port_name(text, port, &who);
                }
                Some((party, spec))
            }
            Err(error) => {
                self.error(Code::E05, &text.at, error.to_string());
                None
            }
        }
    }

    fn party(&mut self, text: &Text) -> Option<Party> {
        match Form::of(&text.value) {
            Form::Address(Some(address)) => Some(Party::Address(address)),
            Form::Address(None) => {
                self.error(Code::E03, &text.at, format!("`{}` holds no address", text.value));
                None
            }
            Form::Any => {
                self.error(Code::E03, &text.at, "`any` is nobody in particular; name someone, or `world`");
                None
            }
            Form::World | Form::Unknown | Form::Derived | Form::Unsupported | Form::Plain => {
                self.who(text).map(|who| Party::Name(who.into_name()))
            }
        }
    }
}

/// The lines of `allow` and `deny`, each with what it promises.
fn lines<'t>(allow: &'t [Text], deny: &'t [Text]) -> impl Iterator<Item = (&'t Text, bool)> {
    allow.iter().map(|text| (text, true)).chain(deny.iter().map(|text| (text, false)))
}
