//! Workloads, externals and groups.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::verdict::Mode;

use super::{
    Loader,
    who::{Kind, Who},
};
use crate::policy::{
    cidr::InvalidCidr,
    dns_name::DnsName,
    fields::Text,
    file::{ExternalFile, GroupFile, PolicyFile, WorkloadFile},
    finding::{Code, Finding, Mark},
    model::{Cidr, External, PortRange, Workload},
    names, ports,
};

/// How deep groups may stand in groups. A person loses track long before.
const GROUP_DEPTH_MAX: usize = 16;

/// The labels of a workload, for groups that are chosen by them.
type Labels = BTreeMap<String, BTreeMap<String, String>>;

impl Loader {
    pub(super) fn parties(&mut self, documents: &[PolicyFile]) {
        let mut labels = Labels::new();
        for workload in documents.iter().flat_map(|document| &document.workloads) {
            self.workload(workload, &mut labels);
        }
        for external in documents.iter().flat_map(|document| &document.externals) {
            self.external(external);
        }
        self.groups(documents, &labels);
    }

    /// Returns the name under which this place declares something, unless another place does.
    fn declared_here(&self, text: &Text) -> Option<String> {
        let (name, _) = names::canonical(&self.policy.trust_domain, &text.value).ok()?;
        self.declared.get(&name).is_some_and(|declared| declared.at == text.at).then_some(name)
    }

    fn workload(&mut self, file: &WorkloadFile, labels: &mut Labels) {
        let Some(name) = self.declared_here(&file.name) else { return };
        let Ok((_, id)) = names::canonical(&self.policy.trust_domain, &file.name.value) else { return };
        let WorkloadFile {
            name: text,
            select,
            ports,
            mode,
            ingress_mode,
            egress_mode,
            on_deny,
            shared_peers,
            labels: own,
            owner,
        } = file;
        let select = self.selectors(select);
        let ports = self.port_names(ports);
        let mode = self.mode(mode.as_ref()).or(self.policy.default_mode).unwrap_or(Mode::Observe);
        let ingress_mode = self.mode(ingress_mode.as_ref()).unwrap_or(mode);
        let egress_mode = self.mode(egress_mode.as_ref()).unwrap_or(mode);
        let on_deny = self.on_deny(on_deny.as_ref()).unwrap_or(self.policy.default_on_deny);
        let shared_peers = self.shared_peers(shared_peers.as_ref()).unwrap_or(self.default_shared_peers);
        let own = own.iter().map(|(key, value)| (key.value.clone(), value.value.clone())).collect();
        labels.insert(name.clone(), own);
        let owner = owner.as_ref().map(|text| text.value.clone());
        let place = text.at.place.clone();
        let workload = Workload {
            name: name.clone(),
            id,
            select,
            ports,
            ingress_mode,
            egress_mode,
            on_deny,
            shared_peers,
            owner,
            place,
        };
        self.policy.workloads.insert(name, workload);
    }

    fn port_names(&mut self, pairs: &[(Text, Text)]) -> BTreeMap<String, PortRange> {
        let mut ranges = BTreeMap::new();
        for (name, port) in pairs {
            if let Err(error) = ports::check_name(&name.value) {
                self.error(Code::E05, &name.at, error.to_string());
            }
            match ports::parse_range(&port.value) {
                Ok(range) => {
                    ranges.insert(name.value.clone(), range);
                }
                Err(error) => {
                    self.error(Code::E05, &port.at, error.to_string());
                    // It still lends its name, or every rule about it would be reported as well.
                    ranges.insert(name.value.clone(), PortRange { proto: 0, lo: 0, hi: u16::MAX });
                }
            }
        }
        ranges
    }

    fn external(&mut self, file: &ExternalFile) {
        let Some(name) = self.declared_here(&file.name) else { return };
        let Ok((_, id)) = names::canonical(&self.policy.trust_domain, &file.name.value) else { return };
        let cidrs = self.cidrs(&file.cidrs);
        let except = self.cidrs(&file.except);
        for (cidr, text) in &except {
            if !cidrs.iter().any(|(outer, _)| outer.covers(cidr)) {
                self.error(Code::E17, &text.at, format!("`{cidr}` does not lie in any range of `cidrs`"));
            }
        }
        let ranges = |list: Vec<(Cidr, &Text)>| {
            let set: BTreeSet<Cidr> = list.into_iter().map(|(cidr, _)| cidr).collect();
            set.into_iter().collect()
        };
        let place = file.name.at.place.clone();
        let dns = self.dns_names(&file.dns);
        let external = External { name: name.clone(), id, cidrs: ranges(cidrs), except: ranges(except), dns, place };
        self.policy.externals.insert(name, external);
    }

    fn dns_names(&mut self, texts: &[Text]) -> Vec<DnsName> {
        let mut names = BTreeSet::new();
        for text in texts {
            match DnsName::parse(&text.value) {
                Ok(name) => {
                    names.insert(name);
                }
                Err(error) => self.error(Code::E18, &text.at, error.to_string()),
            }
        }
        names.into_iter().collect()
    }

    fn cidrs<'t>(&mut self, texts: &'t [Text]) -> Vec<(Cidr, &'t Text)> {
        let mut cidrs = Vec::new();
        for text in texts {
            match Cidr::parse(&text.value) {
                Ok(cidr) => cidrs.push((cidr, text)),
                Err(error) => {
                    let mut finding = Finding::new(Code::E17, text.at.clone(), error.to_string());
                    if let InvalidCidr::HostBits { meant, .. } = error {
                        finding.suggestion = Some(meant.to_string());
                    }
                    self.findings.push(finding);
                }
            }
        }
        cidrs
    }

    fn groups(&mut self, documents: &[PolicyFile], labels: &Labels) {
        let mut members: BTreeMap<String, Vec<(String, Kind, Mark)>> = BTreeMap::new();
        for file in documents.iter().flat_map(|document| &document.groups) {
            let Some(name) = self.declared_here(&file.name) else { continue };
            let direct = self.direct_members(file, labels);
            members.insert(name, direct);
        }
        for name in members.keys() {
            let mut path = Vec::new();
            let mut expanded = BTreeSet::new();
            let mut visited = BTreeSet::new();
            if let Err(finding) = expand(name, &members, &mut path, &mut visited, &mut expanded) {
                self.findings.push(*finding);
            }
            self.policy.groups.insert(name.clone(), expanded.into_iter().collect());
        }
    }

    fn direct_members(&mut self, file: &GroupFile, labels: &Labels) -> Vec<(String, Kind, Mark)> {
        let mut direct = Vec::new();
        for text in &file.members {
            match self.who(text) {
                Some(Who::Declared(name, kind)) => direct.push((name, kind, text.at.clone())),
                Some(Who::Any | Who::World | Who::Derived(_)) => {
                    let message = format!("`{}` cannot be a member of a group", text.value);
                    let finding = Finding::new(Code::E03, text.at.clone(), message);
                    self.findings.push(finding.help("members are workloads, externals and groups"));
                }
                None => {}
            }
        }
        if !file.labels.is_empty() {
            let wanted: Vec<_> = file.labels.iter().map(|(key, value)| (&key.value, &value.value)).collect();
            let carries =
                |own: &BTreeMap<String, String>| wanted.iter().all(|&(key, value)| own.get(key) == Some(value));
            let chosen = labels.iter().filter(|(_, own)| carries(own));
            direct.extend(chosen.map(|(name, _)| (name.clone(), Kind::Workload, file.name.at.clone())));
            if direct.is_empty() {
                let message = format!("no workload carries all labels of group `{}`", file.name.value);
                self.error(Code::E06, &file.name.at, message);
            }
        }
        direct
    }
}

/// Adds the workloads and externals of a group to `expanded`, following groups in groups.
fn expand<'m>(
    name: &'m str,
    members: &'m BTreeMap<String, Vec<(String, Kind, Mark)>>,
    path: &mut Vec<&'m str>,
    visited: &mut BTreeSet<&'m str>,
    expanded: &mut BTreeSet<String>,
) -> Result<(), Box<Finding>> {
    path.push(name);
    for (member, kind, at) in members.get(name).into_iter().flatten() {
        if *kind != Kind::Group {
            expanded.insert(member.clone());
            continue;
        }
        if path.contains(&member.as_str()) {
            let message = format!("group `{member}` contains itself: {} -> {member}", path.join(" -> "));
            return Err(Box::new(Finding::new(Code::E07, at.clone(), message)));
        }
        if path.len() >= GROUP_DEPTH_MAX {
            let message = format!("groups stand in groups more than {GROUP_DEPTH_MAX} deep");
            return Err(Box::new(Finding::new(Code::E07, at.clone(), message)));
        }
        if visited.insert(member) {
            expand(member, members, path, visited, expanded)?;
        }
    }
    path.pop();
    Ok(())
}
