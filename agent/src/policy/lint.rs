//! What is probably wrong with a valid policy, and what `check` refuses that the agent does not.
//!
//! The agent does not lint: a rule that has expired must not keep a machine from starting.

use std::collections::BTreeMap;

use agent_common::verdict::Mode;

use super::{
    finding::{Code, Finding, Mark},
    model::{Action, Cidr, Expect, Party, Place, Policy, PortRange, PortSpec, Rule, Selector, Workload},
    names, time,
};

/// How long before its end a rule is warned about.
const SOON_S: i64 = 14 * 24 * 60 * 60;
/// Names shown in a finding about many.
const SHOWN_MAX: usize = 5;
/// Compared pairs of rules above which W01 and W02 are left out: they take time in the square.
const PAIRS_MAX: usize = 25_000_000;

/// What `check` was asked to insist on.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Options {
    /// Unix seconds.
    pub now: i64,
    /// Rules may have expired.
    pub allow_expired: bool,
    /// Fields that every rule must have.
    pub require: Vec<RuleField>,
}

/// A field of a rule that can be insisted on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RuleField {
    /// `owner`.
    Owner,
    /// `reason`.
    Reason,
    /// `ticket`.
    Ticket,
}

impl RuleField {
    /// The name in the file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Reason => "reason",
            Self::Ticket => "ticket",
        }
    }

    fn of(self, rule: &Rule) -> Option<&String> {
        match self {
            Self::Owner => rule.owner.as_ref(),
            Self::Reason => rule.reason.as_ref(),
            Self::Ticket => rule.ticket.as_ref(),
        }
    }
}

/// A finding, and whether it refuses the set although its code may be a warning's.
#[derive(Clone, Debug, PartialEq)]
pub struct Lint {
    /// What was found.
    pub finding: Finding,
    /// Whether the set is refused.
    pub refuses: bool,
}

/// Returns everything odd about a policy, sorted by place.
#[must_use]
pub fn lint(policy: &Policy, options: &Options) -> Vec<Lint> {
    let mut findings = Vec::new();
    expiry(policy, options, &mut findings);
    same_selectors(policy, &mut findings);
    covered_rules(policy, &mut findings);
    broad(policy, &mut findings);
    unused_workloads(policy, &mut findings);
    untested(policy, &mut findings);
    unknown_mode(policy, &mut findings);
    let mut lints: Vec<Lint> =
        findings.into_iter().map(|finding| Lint { refuses: finding.code.is_error(), finding }).collect();
    lints.extend(unexplained(policy, options));
    lints.sort_by(|a, b| (&a.finding.at, a.finding.code).cmp(&(&b.finding.at, b.finding.code)));
    lints
}

fn mark(place: &Place) -> Mark {
    Mark { place: place.clone(), width: 1 }
}

fn expiry(policy: &Policy, options: &Options, findings: &mut Vec<Finding>) {
    for rule in &policy.rules {
        let Some(end) = rule.expires else { continue };
        let at = mark(&rule.place);
        if end <= options.now {
            if !options.allow_expired {
                let message = format!("rule `{}` expired at {}", rule.id, time::format(end));
                findings.push(Finding::new(Code::E10, at, message).label("delete it, or move `expires`"));
            }
        } else if end - options.now <= SOON_S {
            let message = format!("rule `{}` expires at {}", rule.id, time::format(end));
            findings.push(Finding::new(Code::W07, at, message));
        }
    }
}

/// Two workloads with one selector match the same endpoints wherever there are any.
fn same_selectors(policy: &Policy, findings: &mut Vec<Finding>) {
    let mut seen: BTreeMap<String, &Workload> = BTreeMap::new();
    for workload in policy.workloads.values() {
        for selector in &workload.select {
            let Selector { systemd_unit, cgroup, container_id, host, uids } = selector;
            let key = format!("{systemd_unit:?} {cgroup:?} {container_id:?} {host:?} {uids:?}");
            match seen.get(&key) {
                Some(other) if other.name != workload.name => {
                    let message = format!("`{}` and `{}` select the same endpoints", other.name, workload.name);
                    let finding = Finding::new(Code::E08, mark(&workload.place), message);
                    findings.push(finding.also(mark(&other.place), "the other one"));
                }
                Some(_) => {}
                None => {
                    seen.insert(key, workload);
                }
            }
        }
    }
}

/// Says whether everyone whom `inner` means is meant by `outer` as well.
fn covers_name(policy: &Policy, outer: &str, inner: &str) -> bool {
    if outer == names::ANY || outer == inner {
        return true;
    }
    if let Some(members) = policy.groups.get(inner) {
        return members.iter().all(|member| covers_name(policy, outer, member));
    }
    match policy.groups.get(outer) {
        Some(members) => members.iter().any(|member| member == inner),
        None => outer == names::WORLD && policy.externals.contains_key(inner),
    }
}

/// Says whether `outer` matches whatever `inner` matches, for as long.
fn covers_rule(policy: &Policy, outer: &Rule, inner: &Rule) -> bool {
    let lasts = match (outer.expires, inner.expires) {
        (None, _) => true,
        (Some(outer), Some(inner)) => outer >= inner,
        (Some(_), None) => false,
    };
    lasts
        && covers_name(policy, &outer.from, &inner.from)
        && covers_name(policy, &outer.to, &inner.to)
        && members(policy, &inner.to).iter().all(|to| {
            let outer: Vec<PortRange> = outer.ports.iter().filter_map(|spec| policy.ports_on(to, spec)).collect();
            let mut inner = inner.ports.iter().filter_map(|spec| policy.ports_on(to, spec));
            inner.all(|inner| outer.iter().any(|outer| outer.covers(&inner)))
        })
}

fn members<'p>(policy: &'p Policy, name: &'p str) -> Vec<&'p str> {
    policy.groups.get(name).map_or_else(|| vec![name], |members| members.iter().map(String::as_str).collect())
}

fn covered_rules(policy: &Policy, findings: &mut Vec<Finding>) {
    let allows: Vec<&Rule> = policy.rules.iter().filter(|rule| rule.action == Action::Allow).collect();
    if allows.len().saturating_mul(policy.rules.len()) > PAIRS_MAX {
        return;
    }
    for rule in &allows {
        let covering = |action: Action| {
            let others = policy.rules.iter().filter(move |other| other.action == action && other.id != rule.id);
            others.filter(|other| covers_rule(policy, other, rule))
        };
        if let Some(deny) = covering(Action::Deny).next() {
            let message = format!("rule `{}` never allows anything: a deny covers it", rule.id);
            let finding = Finding::new(Code::W01, mark(&rule.place), message);
            findings.push(finding.also(mark(&deny.place), format!("`{}` beats it", deny.id)));
        }
        // Of two rules that are equal the later is reported, and only that.
        let reported = |other: &&Rule| other.id < rule.id || !covers_rule(policy, rule, other);
        if let Some(other) = covering(Action::Allow).find(reported) {
            let message = format!("rule `{}` opens nothing that is not open already", rule.id);
            let finding = Finding::new(Code::W02, mark(&rule.place), message);
            findings.push(finding.also(mark(&other.place), format!("opened by `{}`", other.id)));
        }
    }
}

fn broad(policy: &Policy, findings: &mut Vec<Finding>) {
    for rule in policy.rules.iter().filter(|rule| rule.action == Action::Allow) {
        let enforced = members(policy, &rule.to)
            .into_iter()
            .find(|name| policy.workloads.get(*name).is_some_and(|workload| workload.ingress_mode == Mode::Enforce));
        if let (Some(to), names::ANY | names::WORLD) = (enforced, rule.from.as_str()) {
            let message = format!("rule `{}` opens the enforced door of `{to}` to `{}`", rule.id, rule.from);
            findings.push(Finding::new(Code::W04, mark(&rule.place), message));
        }
        if rule.ports.contains(&PortSpec::Range(PortRange::ANY)) {
            let message = format!("rule `{}` opens every port", rule.id);
            findings.push(Finding::new(Code::W05, mark(&rule.place), message).label("name the ports that are used"));
        }
    }
    for external in policy.externals.values() {
        let short = |cidr: &&Cidr| cidr.prefix < if cidr.addr.is_ipv4() { 16 } else { 48 };
        if let Some(cidr) = external.cidrs.iter().find(short) {
            let message = format!("external `{}` is as broad as `{cidr}`", external.name);
            findings.push(Finding::new(Code::W08, mark(&external.place), message));
        }
    }
}

fn unused_workloads(policy: &Policy, findings: &mut Vec<Finding>) {
    let names_it = |term: &str, name: &str| {
        term == name || policy.groups.get(term).is_some_and(|members| members.iter().any(|member| member == name))
    };
    for workload in policy.workloads.values() {
        let used =
            policy.rules.iter().any(|rule| names_it(&rule.from, &workload.name) || names_it(&rule.to, &workload.name));
        if !used {
            let message = format!("no rule names workload `{}`", workload.name);
            findings.push(Finding::new(Code::W06, mark(&workload.place), message));
        }
    }
}

/// One finding for all of them: a policy without tests would drown the others.
fn untested(policy: &Policy, findings: &mut Vec<Finding>) {
    let tested = |name: &str| {
        policy.tests.iter().any(|test| match &test.expect {
            Expect::Only { to: Party::Name(to), .. } => members(policy, to).contains(&name),
            Expect::Only { .. } | Expect::Allow { .. } | Expect::Deny { .. } => false,
        })
    };
    let is_callee = |name: &str| {
        let rules = policy.rules.iter().filter(|rule| rule.action == Action::Allow);
        rules.into_iter().any(|rule| members(policy, &rule.to).contains(&name))
    };
    let untested: Vec<&Workload> =
        policy.workloads.values().filter(|w| is_callee(&w.name) && !tested(&w.name)).collect();
    if let Some(first) = untested.first() {
        let names = list(untested.iter().map(|workload| workload.name.as_str()));
        let message = format!("no `only` test says who may call {names}");
        findings.push(Finding::new(Code::W10, mark(&first.place), message));
    }
}

fn unknown_mode(policy: &Policy, findings: &mut Vec<Finding>) {
    if policy.mode_of_unknown() == Mode::Enforce {
        return;
    }
    let enforces = |w: &&Workload| w.ingress_mode == Mode::Enforce || w.egress_mode == Mode::Enforce;
    if let Some(workload) = policy.workloads.values().find(enforces) {
        let mode = policy.mode_of_unknown().name();
        let message = format!("`{}` enforces, while sockets without a label are in mode `{mode}`", workload.name);
        let finding = Finding::new(Code::W13, mark(&workload.place), message);
        findings.push(finding.help("once everything is labelled, write `defaults: { unknownMode: enforce }`"));
    }
}

/// Rules that nobody will dare to delete.
fn unexplained(policy: &Policy, options: &Options) -> Vec<Lint> {
    if !options.require.is_empty() {
        let missing = |rule: &Rule| {
            let fields = options.require.iter().filter(|field| field.of(rule).is_none());
            let names: Vec<&str> = fields.map(|field| field.name()).collect();
            (!names.is_empty()).then(|| {
                let message = format!("rule `{}` lacks {}", rule.id, names.join(" and "));
                Lint { finding: Finding::new(Code::W03, mark(&rule.place), message), refuses: true }
            })
        };
        return policy.rules.iter().filter_map(missing).collect();
    }
    let silent = |rule: &&Rule| rule.owner.is_none() && rule.reason.is_none() && rule.ticket.is_none();
    let silent: Vec<&Rule> = policy.rules.iter().filter(silent).collect();
    let Some(first) = silent.iter().min_by_key(|rule| &rule.place) else { return Vec::new() };
    let of = policy.rules.len();
    let message = format!("{} of {of} rules have neither owner nor reason nor ticket", silent.len());
    vec![Lint { finding: Finding::new(Code::W03, mark(&first.place), message).label("the first"), refuses: false }]
}

fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    match names.len().checked_sub(SHOWN_MAX) {
        None | Some(0) => names.join(", "),
        Some(more) => format!("{} and {more} more", names[..SHOWN_MAX].join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::load::load;

    const NOW: i64 = 2_000_000_000;

    /// The codes found in a spec beside W03 and W10, which are about every small policy.
    fn codes(spec: &str) -> Vec<&'static str> {
        let lints = lint(&policy(spec), &Options { now: NOW, ..Options::default() });
        let codes = lints.iter().map(|lint| lint.finding.code).filter(|code| !matches!(code, Code::W03 | Code::W10));
        codes.map(Code::name).collect()
    }

    fn policy(spec: &str) -> Policy {
        let text = format!(
            "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: d }}\nspec:\n  trustDomain: t\n  workloads:\n    \
             - {{ name: a, select: {{ cgroup: /a }}, ports: {{ p: tcp/80 }} }}\n    \
             - {{ name: b, select: {{ cgroup: /b }}, ports: {{ p: tcp/81 }} }}\n{spec}"
        );
        load(&[("f", &text)]).unwrap_or_else(|findings| panic!("{findings:#?}\n{text}")).policy
    }

    const USED: &str = "  allow:\n    - { id: u, from: a, to: b, ports: [p] }\n";

    #[test]
    fn a_sound_policy_has_nothing_odd() {
        assert_eq!(codes(USED), Vec::<&str>::new());
    }

    #[test]
    fn rules_are_compared_with_their_end() {
        let ends =
            |at: i64| format!("{USED}    - {{ id: e, from: b, to: a, ports: [p], expires: {} }}\n", time::format(at));
        assert_eq!(codes(&ends(NOW)), ["E10"]);
        assert_eq!(codes(&ends(NOW + 1)), ["W07"]);
        assert_eq!(codes(&ends(NOW + SOON_S)), ["W07"]);
        assert_eq!(codes(&ends(NOW + SOON_S + 1)), Vec::<&str>::new());
        let options = Options { now: NOW, allow_expired: true, ..Options::default() };
        assert!(lint(&policy(&ends(NOW)), &options).iter().all(|lint| !lint.refuses));
    }

    #[test]
    fn covered_rules_are_found_and_others_are_not() {
        let groups = "  groups: [{ name: g, members: [a, b] }]\n";
        let deny = |deny: &str| format!("{groups}{USED}  deny: [{{ id: d, {deny} }}]\n");
        assert_eq!(codes(&deny("from: any, to: b")), ["W01"]);
        assert_eq!(codes(&deny("from: g, to: g, ports: [tcp/80-81]")), ["W01"]);
        assert_eq!(codes(&deny("from: g, to: g, ports: [p]")), ["W01"]);
        assert_eq!(codes(&deny("from: a, to: b, ports: [tcp/80]")), Vec::<&str>::new());
        assert_eq!(codes(&deny("from: b, to: b")), Vec::<&str>::new());
        assert_eq!(codes(&deny("from: a, to: b, expires: 2040-01-01T00:00:00Z")), Vec::<&str>::new());
        let second = |rule: &str| format!("{groups}{USED}    - {{ id: v, {rule} }}\n");
        assert_eq!(codes(&second("from: g, to: b, ports: [tcp/1-100]")), ["W02"], "u, since v opens more");
        assert_eq!(codes(&second("from: a, to: b, ports: [tcp/81]")), ["W02"], "equal ones are reported once");
        assert_eq!(codes(&second("from: a, to: b, ports: [tcp/82]")), Vec::<&str>::new());
    }

    #[test]
    fn broad_rules_and_ranges_are_found() {
        let enforced = "    - { name: c, select: { cgroup: /c }, ingressMode: enforce }\n";
        assert_eq!(codes(&format!("{enforced}{USED}    - {{ from: world, to: c, ports: [tcp/1] }}\n")), ["W13", "W04"]);
        assert_eq!(codes(&format!("{USED}    - {{ from: world, to: a, ports: [any] }}\n")), ["W05"]);
        let external = |cidr: &str| format!("  externals: [{{ name: e, cidrs: [\"{cidr}\"] }}]\n{USED}");
        assert_eq!(codes(&external("10.0.0.0/15")), ["W08"]);
        assert_eq!(codes(&external("10.0.0.0/16")), Vec::<&str>::new());
        assert_eq!(codes(&external("2001:db8::/47")), ["W08"]);
        assert_eq!(codes(&external("2001:db8::/48")), Vec::<&str>::new());
    }

    #[test]
    fn workloads_without_rules_or_of_equal_selectors_are_found() {
        assert_eq!(codes(&format!("    - {{ name: c, select: {{ cgroup: /c }} }}\n{USED}")), ["W06"]);
        assert_eq!(codes(&format!("    - {{ name: c, select: {{ cgroup: /a }} }}\n{USED}")), ["E08", "W06"]);
        let enforced = "    - { name: c, select: { cgroup: /c }, egressMode: enforce }\n";
        let closed = format!("  defaults: {{ unknownMode: enforce }}\n{USED}");
        assert_eq!(codes(&format!("{enforced}{closed}    - {{ from: c, to: a, ports: [p] }}\n")), Vec::<&str>::new());
    }

    #[test]
    fn rules_without_owner_are_counted_or_refused_on_demand() {
        let policy = policy(USED);
        let lints = lint(&policy, &Options { now: NOW, ..Options::default() });
        let found = lints.iter().find(|lint| lint.finding.code == Code::W03).unwrap();
        assert!(found.finding.message.starts_with("1 of 1 rules") && !found.refuses);
        assert!(lints.iter().any(|lint| lint.finding.message == "no `only` test says who may call `b`"));
        let require = vec![RuleField::Owner, RuleField::Ticket];
        let lints = lint(&policy, &Options { now: NOW, require, ..Options::default() });
        let found = lints.iter().find(|lint| lint.finding.code == Code::W03).unwrap();
        assert!(found.finding.message.ends_with("lacks owner and ticket") && found.refuses);
    }
}
