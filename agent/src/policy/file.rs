//! What a human wrote: the documents of a file, field by field, each with its place. May be nonsense:
//! [`super::load`] says what it means.

use super::{
    fields::{Fields, Reader, Text},
    finding::{Code, Finding, Mark},
    model::Action,
    yaml::{self, At, Node},
};

/// Largest file, in bytes. A larger one is refused before it is parsed.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// The one version of the language.
const API_VERSION: &str = "eastwall.dev/v1alpha1";

/// One document.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyFile {
    /// `metadata.name`.
    pub name: Text,
    /// `spec.trustDomain`.
    pub trust_domain: Option<Text>,
    /// `spec.defaults`.
    pub defaults: Option<DefaultsFile>,
    /// `spec.workloads`.
    pub workloads: Vec<WorkloadFile>,
    /// `spec.externals`.
    pub externals: Vec<ExternalFile>,
    /// `spec.groups`.
    pub groups: Vec<GroupFile>,
    /// `spec.allow` and `spec.deny`.
    pub rules: Vec<RuleFile>,
    /// `spec.tests`.
    pub tests: Vec<TestFile>,
}

/// `spec.defaults`.
#[derive(Clone, Debug, PartialEq)]
pub struct DefaultsFile {
    /// Where.
    pub at: Mark,
    /// `mode`.
    pub mode: Option<Text>,
    /// `unknownMode`.
    pub unknown_mode: Option<Text>,
    /// `onDeny`.
    pub on_deny: Option<Text>,
    /// `sharedPeers`.
    pub shared_peers: Option<Text>,
}

/// An item of `spec.workloads`.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadFile {
    /// `name`.
    pub name: Text,
    /// `select`; each entry of `anyOf` beside the keys around it.
    pub select: SelectFile,
    /// `ports`.
    pub ports: Vec<(Text, Text)>,
    /// `mode`.
    pub mode: Option<Text>,
    /// `ingressMode`.
    pub ingress_mode: Option<Text>,
    /// `egressMode`.
    pub egress_mode: Option<Text>,
    /// `onDeny`.
    pub on_deny: Option<Text>,
    /// `sharedPeers`.
    pub shared_peers: Option<Text>,
    /// `labels`.
    pub labels: Vec<(Text, Text)>,
    /// `owner`.
    pub owner: Option<Text>,
}

/// A selector.
#[derive(Clone, Debug, PartialEq)]
pub struct SelectFile {
    /// Where.
    pub at: Mark,
    /// `systemd.unit`.
    pub systemd_unit: Option<Text>,
    /// `cgroup`.
    pub cgroup: Option<Text>,
    /// `container.id`.
    pub container_id: Option<Text>,
    /// `host`.
    pub host: Option<Text>,
    /// `uid`.
    pub uids: Option<Vec<Text>>,
    /// `anyOf`.
    pub any_of: Vec<SelectFile>,
    /// Something in it was refused, so what is missing here may not be missing in the file.
    pub refused: bool,
}

/// An item of `spec.externals`.
#[derive(Clone, Debug, PartialEq)]
pub struct ExternalFile {
    /// `name`.
    pub name: Text,
    /// `cidrs`.
    pub cidrs: Vec<Text>,
    /// `except`.
    pub except: Vec<Text>,
    /// `dns`.
    pub dns: Vec<Text>,
}

/// An item of `spec.groups`.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupFile {
    /// `name`.
    pub name: Text,
    /// `members`.
    pub members: Vec<Text>,
    /// `labels`.
    pub labels: Vec<(Text, Text)>,
}

/// An item of `spec.allow` or `spec.deny`.
#[derive(Clone, Debug, PartialEq)]
pub struct RuleFile {
    /// Which list it stood in.
    pub action: Action,
    /// Where.
    pub at: Mark,
    /// `from`.
    pub from: Text,
    /// `to`.
    pub to: Text,
    /// `ports`; none for a deny that leaves them out.
    pub ports: Vec<Text>,
    /// `id`.
    pub id: Option<Text>,
    /// `reason`.
    pub reason: Option<Text>,
    /// `owner`.
    pub owner: Option<Text>,
    /// `ticket`.
    pub ticket: Option<Text>,
    /// `expires`.
    pub expires: Option<Text>,
}

/// An item of `spec.tests`.
#[derive(Clone, Debug, PartialEq)]
pub struct TestFile {
    /// Where.
    pub at: Mark,
    /// `name`.
    pub name: Option<Text>,
    /// `from`.
    pub from: Option<Text>,
    /// `to`.
    pub to: Option<Text>,
    /// `allow`.
    pub allow: Vec<Text>,
    /// `deny`.
    pub deny: Vec<Text>,
    /// `only`, with the place of the list.
    pub only: Option<(Mark, Vec<Text>)>,
    /// `at`.
    pub time: Option<Text>,
}

/// Reads the documents of one file. What can be read is returned even if something else is wrong, so
/// that one run shows all findings; the caller must refuse the set if there is any.
#[must_use]
pub fn parse(file: &str, text: &str) -> (Vec<PolicyFile>, Vec<Finding>) {
    let mut reader = Reader { file, findings: Vec::new() };
    if text.len() > FILE_BYTES_MAX {
        let message = format!("the file has {} bytes, and {FILE_BYTES_MAX} are the most", text.len());
        reader.error(Code::E01, At::default(), message);
        return (Vec::new(), reader.findings);
    }
    match yaml::parse(text) {
        Ok(nodes) => {
            let documents = nodes.iter().filter_map(|node| document(&mut reader, node)).collect();
            (documents, reader.findings)
        }
        Err(yaml::InvalidYaml { at, message }) => {
            reader.error(Code::E01, at, message);
            (Vec::new(), reader.findings)
        }
    }
}

fn document(reader: &mut Reader<'_>, node: &Node) -> Option<PolicyFile> {
    let mut fields = reader.fields(node, "the document")?;
    if let Some(version) = fields.required_text(reader, "apiVersion").filter(|text| text.value != API_VERSION) {
        let message = format!("`{}` is not a version that is known", version.value);
        reader.findings.push(Finding::new(Code::E01, version.at, message).label(format!("write `{API_VERSION}`")));
    }
    match fields.required_text(reader, "kind") {
        Some(kind) if kind.value == "Override" => {
            let finding = Finding::new(Code::E01, kind.at, "overrides do not stand in policy files");
            reader.findings.push(finding.help("they are written by `eastwall revoke` and `eastwall break-glass`"));
        }
        Some(kind) if kind.value != "Policy" => {
            let message = format!("there is no kind `{}`", kind.value);
            reader.findings.push(Finding::new(Code::E01, kind.at, message).label("write `Policy`"));
        }
        _ => {}
    }
    let name = fields.required(reader, "metadata").and_then(|node| metadata(reader, node));
    let spec = fields.required(reader, "spec");
    fields.finish(reader, &["apiVersion", "kind", "metadata", "spec"], &["status"]);
    // Without its name the document is still read, so that its other errors are shown.
    let at = reader.mark(node.at);
    let unnamed = Text { value: String::new(), at };
    self::spec(reader, spec?, name.unwrap_or(unnamed))
}

fn metadata(reader: &mut Reader<'_>, node: &Node) -> Option<Text> {
    let mut fields = reader.fields(node, "`metadata`")?;
    let name = fields.required_text(reader, "name");
    fields.finish(reader, &["name"], &["namespace", "labels", "annotations"]);
    name
}

fn spec(reader: &mut Reader<'_>, node: &Node, name: Text) -> Option<PolicyFile> {
    let mut fields = reader.fields(node, "`spec`")?;
    let trust_domain = fields.text(reader, "trustDomain");
    let defaults = fields.take("defaults").and_then(|node| defaults(reader, node));
    let workloads = items(reader, &mut fields, "workloads", workload);
    let externals = items(reader, &mut fields, "externals", external);
    let groups = items(reader, &mut fields, "groups", group);
    let mut rules = items(reader, &mut fields, "allow", |reader, node| rule(reader, node, Action::Allow));
    rules.extend(items(reader, &mut fields, "deny", |reader, node| rule(reader, node, Action::Deny)));
    let tests = items(reader, &mut fields, "tests", test);
    let known = ["trustDomain", "defaults", "workloads", "externals", "groups", "allow", "deny", "tests"];
    fields.finish(reader, &known, &["imports", "inventory"]);
    Some(PolicyFile { name, trust_domain, defaults, workloads, externals, groups, rules, tests })
}

fn items<T>(
    reader: &mut Reader<'_>,
    fields: &mut Fields<'_>,
    name: &str,
    mut read: impl FnMut(&mut Reader<'_>, &Node) -> Option<T>,
) -> Vec<T> {
    let Some(node) = fields.take(name) else { return Vec::new() };
    let items = reader.list(node, &format!("`{name}`")).unwrap_or_default();
    items.iter().filter_map(|item| read(reader, item)).collect()
}

fn defaults(reader: &mut Reader<'_>, node: &Node) -> Option<DefaultsFile> {
    let mut fields = reader.fields(node, "`defaults`")?;
    let at = reader.mark(fields.at());
    let mode = fields.text(reader, "mode");
    let unknown_mode = fields.text(reader, "unknownMode");
    let on_deny = fields.text(reader, "onDeny");
    let shared_peers = fields.text(reader, "sharedPeers");
    fields.finish(reader, &["mode", "unknownMode", "onDeny", "sharedPeers"], &[]);
    Some(DefaultsFile { at, mode, unknown_mode, on_deny, shared_peers })
}

fn workload(reader: &mut Reader<'_>, node: &Node) -> Option<WorkloadFile> {
    let mut fields = reader.fields(node, "a workload")?;
    let name = fields.required_text(reader, "name");
    let select = fields.required(reader, "select").and_then(|node| select(reader, node, "`select`", true));
    let ports = fields.take("ports").map(|node| reader.text_map(node, "`ports`")).unwrap_or_default();
    let mode = fields.text(reader, "mode");
    let ingress_mode = fields.text(reader, "ingressMode");
    let egress_mode = fields.text(reader, "egressMode");
    let on_deny = fields.text(reader, "onDeny");
    let shared_peers = fields.text(reader, "sharedPeers");
    let labels = fields.take("labels").map(|node| reader.text_map(node, "`labels`")).unwrap_or_default();
    let owner = fields.text(reader, "owner");
    let known =
        ["name", "select", "ports", "mode", "ingressMode", "egressMode", "onDeny", "sharedPeers", "labels", "owner"];
    fields.finish(reader, &known, &[]);
    // A workload whose selector cannot be read still lends its name, or every rule about it would be
    // reported as well.
    let select = select.unwrap_or_else(|| SelectFile::empty(reader.mark(node.at)));
    Some(WorkloadFile {
        name: name?,
        select,
        ports,
        mode,
        ingress_mode,
        egress_mode,
        on_deny,
        shared_peers,
        labels,
        owner,
    })
}

impl SelectFile {
    fn empty(at: Mark) -> Self {
        Self {
            at,
            systemd_unit: None,
            cgroup: None,
            container_id: None,
            host: None,
            uids: None,
            any_of: Vec::new(),
            refused: true,
        }
    }
}

fn select(reader: &mut Reader<'_>, node: &Node, what: &str, outermost: bool) -> Option<SelectFile> {
    let refused_before = reader.findings.len();
    let mut fields = reader.fields(node, what)?;
    let mut select = SelectFile::empty(reader.mark(fields.at()));
    select.systemd_unit = fields.take("systemd").and_then(|node| {
        let mut fields = reader.fields(node, "`systemd`")?;
        let unit = fields.required_text(reader, "unit");
        fields.finish(reader, &["unit"], &[]);
        unit
    });
    select.container_id = fields.take("container").and_then(|node| {
        let mut fields = reader.fields(node, "`container`")?;
        let id = fields.text(reader, "id");
        fields.finish(reader, &["id"], &["name", "image", "labels"]);
        id
    });
    select.cgroup = fields.text(reader, "cgroup");
    select.host = fields.text(reader, "host");
    select.uids = fields.texts(reader, "uid");
    if let Some(node) = fields.take("anyOf") {
        if outermost {
            let items = reader.list(node, "`anyOf`").unwrap_or_default();
            select.any_of =
                items.iter().filter_map(|item| self::select(reader, item, "an item of `anyOf`", false)).collect();
        } else {
            reader.error(Code::E01, node.at, "`anyOf` cannot stand inside `anyOf`");
        }
    }
    fields.finish(reader, &["systemd", "container", "cgroup", "host", "uid", "anyOf"], &["k8s", "exe"]);
    select.refused = reader.findings.len() > refused_before;
    Some(select)
}

fn external(reader: &mut Reader<'_>, node: &Node) -> Option<ExternalFile> {
    let mut fields = reader.fields(node, "an external")?;
    let name = fields.required_text(reader, "name");
    let dns = fields.take("dns").map(|node| reader.texts(node, "`dns`"));
    let cidrs = if dns.is_some() { fields.take("cidrs") } else { fields.required(reader, "cidrs") };
    let cidrs = cidrs.map(|node| reader.texts(node, "`cidrs`")).unwrap_or_default();
    let except = fields.texts(reader, "except").unwrap_or_default();
    fields.finish(reader, &["name", "cidrs", "except", "dns"], &[]);
    Some(ExternalFile { name: name?, cidrs, except, dns: dns.unwrap_or_default() })
}

fn group(reader: &mut Reader<'_>, node: &Node) -> Option<GroupFile> {
    let mut fields = reader.fields(node, "a group")?;
    let name = fields.required_text(reader, "name");
    let labels = fields.take("labels").map(|node| reader.text_map(node, "`labels`"));
    let members = if labels.is_some() { fields.take("members") } else { fields.required(reader, "members") };
    if let (Some(node), true) = (members, labels.is_some()) {
        reader.error(Code::E01, node.at, "a group has `members` or `labels`, not both");
    }
    let members = members.map(|node| reader.texts(node, "`members`")).unwrap_or_default();
    fields.finish(reader, &["name", "members", "labels"], &[]);
    Some(GroupFile { name: name?, members, labels: labels.unwrap_or_default() })
}

fn rule(reader: &mut Reader<'_>, node: &Node, action: Action) -> Option<RuleFile> {
    let mut fields = reader.fields(node, "a rule")?;
    let at = reader.mark(fields.at());
    let from = fields.required_text(reader, "from");
    let to = fields.required_text(reader, "to");
    let ports = if action == Action::Deny { fields.take("ports") } else { fields.required(reader, "ports") };
    let ports = ports.map(|node| reader.texts(node, "`ports`")).unwrap_or_default();
    let id = fields.text(reader, "id");
    let reason = fields.text(reader, "reason");
    let owner = fields.text(reader, "owner");
    let ticket = fields.text(reader, "ticket");
    let expires = fields.text(reader, "expires");
    fields.finish(reader, &["from", "to", "ports", "id", "reason", "owner", "ticket", "expires"], &[]);
    Some(RuleFile { action, at, from: from?, to: to?, ports, id, reason, owner, ticket, expires })
}

fn test(reader: &mut Reader<'_>, node: &Node) -> Option<TestFile> {
    let mut fields = reader.fields(node, "a test")?;
    let at = reader.mark(fields.at());
    let name = fields.text(reader, "name");
    let from = fields.text(reader, "from");
    let to = fields.text(reader, "to");
    let allow = fields.texts(reader, "allow").unwrap_or_default();
    let deny = fields.texts(reader, "deny").unwrap_or_default();
    let only = fields.take("only").map(|node| (reader.mark(node.at), reader.texts(node, "`only`")));
    let time = fields.text(reader, "at");
    fields.finish(reader, &["from", "to", "allow", "deny", "only", "at", "name"], &[]);
    Some(TestFile { at, name, from, to, allow, deny, only, time })
}
