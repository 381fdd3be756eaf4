//! Names: who declares them, and whom a written name means.

use std::collections::BTreeMap;

use super::Loader;
use crate::{
    identity::derived,
    policy::{
        fields::Text,
        file::PolicyFile,
        finding::{Code, Finding, Mark},
        names::{self, Form},
    },
};

/// A name that some document declares.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) kind: Kind,
    pub(super) at: Mark,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kind {
    Workload,
    External,
    Group,
}

/// Whom a written name means.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Who {
    Any,
    World,
    Declared(String, Kind),
    Derived(String),
}

impl Who {
    /// The name in its compared form.
    pub(super) fn into_name(self) -> String {
        match self {
            Self::Any => names::ANY.to_owned(),
            Self::World => names::WORLD.to_owned(),
            Self::Declared(name, _) | Self::Derived(name) => name,
        }
    }
}

impl Loader {
    /// Collects every declared name, so that rules may use it whichever document declares it.
    pub(super) fn declare(&mut self, documents: &[PolicyFile]) {
        for document in documents {
            let workloads = document.workloads.iter().map(|workload| (&workload.name, Kind::Workload));
            let externals = document.externals.iter().map(|external| (&external.name, Kind::External));
            let groups = document.groups.iter().map(|group| (&group.name, Kind::Group));
            for (text, kind) in workloads.chain(externals).chain(groups) {
                self.declare_one(text, kind);
            }
        }
    }

    fn declare_one(&mut self, text: &Text, kind: Kind) {
        let Some(name) = self.canonical(text) else { return };
        if Form::of(&name) != Form::Plain {
            self.error(Code::E02, &text.at, format!("`{name}` is a reserved name"));
            return;
        }
        if let Some(first) = self.declared.get(&name) {
            let message = format!("the name `{name}` is declared twice");
            let finding = Finding::new(Code::E02, text.at.clone(), message);
            self.findings.push(finding.also(first.at.clone(), "the other one"));
            return;
        }
        self.declared.insert(name, Declared { kind, at: text.at.clone() });
    }

    /// Returns the compared form of a name.
    pub(super) fn canonical(&mut self, text: &Text) -> Option<String> {
        match names::canonical(&self.policy.trust_domain, &text.value) {
            Ok((name, _)) => Some(name),
            Err(error) => {
                let mut finding =
                    Finding::new(Code::E04, text.at.clone(), format!("`{}` is no name: {error}", text.value));
                if let Some(unit) = text.value.strip_prefix("unit/").filter(|unit| unit.contains('@')) {
                    finding = finding.label(format!("write `{}`", derived::unit(unit)));
                }
                self.findings.push(finding);
                None
            }
        }
    }

    /// Returns whom a name in a rule means.
    pub(super) fn who(&mut self, text: &Text) -> Option<Who> {
        let name = self.canonical(text)?;
        match Form::of(&name) {
            Form::Any => Some(Who::Any),
            Form::World => Some(Who::World),
            Form::Unknown => {
                let message = "`unknown` carries no name, so no rule can match it";
                self.error(Code::E03, &text.at, message);
                None
            }
            Form::Unsupported => {
                self.error(Code::E01, &text.at, format!("`{name}` is not supported by this version"));
                None
            }
            Form::Address(_) => {
                let finding = Finding::new(Code::E03, text.at.clone(), "an address may be named in tests only");
                self.findings.push(finding.help("declare an external with `cidrs` and name that"));
                None
            }
            Form::Derived => self.derived(text, name).map(Who::Derived),
            Form::Plain => match self.declared.get(&name) {
                Some(declared) => Some(Who::Declared(name, declared.kind)),
                None => {
                    self.unknown_name(text, &name);
                    None
                }
            },
        }
    }

    /// Checks what can be checked about a name that nobody declares.
    fn derived(&mut self, text: &Text, name: String) -> Option<String> {
        let rest: Vec<&str> = name.split('/').skip(1).collect();
        let wrong = match (name.split('/').next(), rest.as_slice()) {
            (Some("user"), [uid]) if uid.parse::<u32>().is_ok_and(|n| n.to_string() == *uid) => None,
            (Some("user"), _) => Some("`user/` is followed by a number: `user/1000`"),
            (Some("unit"), [_] | [_, _]) | (Some("container" | "node"), [_]) => None,
            (Some("unit"), _) => Some("`unit/` is followed by a unit, and its instance if it has one"),
            _ => Some("one name follows the `/`"),
        };
        if let Some(wrong) = wrong {
            self.error(Code::E03, &text.at, format!("`{name}` is nobody's name: {wrong}"));
            return None;
        }
        match rest.as_slice() {
            // The long form of a container id is the short one to everybody who carries it.
            [id] if name.starts_with("container/") => Some(derived::container(id)),
            _ => Some(name),
        }
    }

    fn unknown_name(&mut self, text: &Text, name: &str) {
        let declared: BTreeMap<&str, &Mark> = self.declared.iter().map(|(name, d)| (name.as_str(), &d.at)).collect();
        let reserved = [names::ANY, names::WORLD].map(|name| (name, None));
        let names = declared.into_iter().map(|(name, at)| (name, Some(at.clone()))).chain(reserved);
        let message = format!("no workload, external or group is called `{name}`");
        let mut finding = Finding::new(Code::E03, text.at.clone(), message).did_you_mean(name, names);
        if finding.label.is_none() {
            finding = finding.help("declare it, or name a unit as `unit/nginx.service`");
        }
        self.findings.push(finding);
    }
}
