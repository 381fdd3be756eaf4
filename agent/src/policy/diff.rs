//! What one policy decides otherwise than another.
//!
//! Compared are decisions, not texts: a rule that is written differently and opens the same is no
//! difference, and one that no line of a file shows, such as a port name that means another number, is.

use std::collections::{BTreeMap, BTreeSet};

use agent_common::{id::IdentityId, layout::EdgeKey, verdict::Decision};
use serde_json::{Map, Value, json};

use super::{
    ask::{Asked, PROTOCOLS, Stretch},
    canonical,
    model::{PortRange, PortSpec},
    names, time,
};

/// What becomes of the ports of a pair.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Change {
    /// Denied before, allowed after.
    Opened,
    /// Allowed before, denied after.
    Closed,
    /// Decided alike, by another rule or until another time.
    Changed,
}

impl Change {
    /// The word used on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Closed => "closed",
            Self::Changed => "changed",
        }
    }
}

/// How one policy decides.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Side {
    /// Whether it lets the flow pass.
    pub allow: bool,
    /// Id of the rule; none = by default.
    pub rule: Option<String>,
    /// Unix seconds until which it does; none = as long as the policy.
    pub until: Option<i64>,
}

/// Ports of a pair that change alike.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct EdgeChange {
    /// What becomes of them.
    pub change: Change,
    /// The caller.
    pub from: String,
    /// The callee.
    pub to: String,
    /// The ports, by the callee's names where it has some.
    pub ports: Vec<String>,
    /// How they were decided.
    pub before: Side,
    /// How they are decided.
    pub after: Side,
}

/// A setting of a workload, an external or the defaults that differs.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct SettingChange {
    /// `workload web`, `external partners`, `defaults`.
    pub what: String,
    /// The field; empty if the whole thing came or went.
    pub field: String,
    /// As it was; null = it was not there.
    pub before: Value,
    /// As it is; null = it is not there.
    pub after: Value,
}

/// All differences, in a stable order.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Differences {
    /// By caller and callee.
    pub edges: Vec<EdgeChange>,
    /// By kind and name.
    pub settings: Vec<SettingChange>,
}

impl Differences {
    /// Says whether both policies mean the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.edges.is_empty() && self.settings.is_empty()
    }

    /// Returns how many edges are opened, closed and changed.
    #[must_use]
    pub fn counts(&self) -> [usize; 3] {
        [Change::Opened, Change::Closed, Change::Changed]
            .map(|change| self.edges.iter().filter(|edge| edge.change == change).count())
    }
}

/// Compares two policies at one moment. Both are compiled on the same clock.
///
/// Every pair that either compiled form names is asked; `any` stands for whoever no other pair names. An
/// address with several names is left out, because each of the names is asked alone.
#[must_use]
pub fn diff(old: &Asked<'_>, new: &Asked<'_>) -> Differences {
    let pairs: BTreeSet<EdgeKey> = old.map.edges.keys().chain(new.map.edges.keys()).copied().collect();
    let mut edges: Vec<EdgeChange> = pairs
        .into_iter()
        .filter(|pair| !pair.from.is_set() && !pair.to.is_set())
        .flat_map(|pair| edge(old, new, pair))
        .collect();
    edges.sort_by(|a, b| (&a.from, &a.to, a.change, &a.ports).cmp(&(&b.from, &b.to, b.change, &b.ports)));
    Differences { edges, settings: settings(&canonical::value(old.policy), &canonical::value(new.policy)) }
}

fn edge(old: &Asked<'_>, new: &Asked<'_>, pair: EdgeKey) -> Vec<EdgeChange> {
    let to = name(old, new, pair.to);
    let mut ports: BTreeMap<(Side, Side), Vec<PortRange>> = BTreeMap::new();
    let (before, after) = (all_ports(old, pair), all_ports(new, pair));
    for (a, b) in before.iter().flat_map(|a| after.iter().map(move |b| (a, b))) {
        let Some(range) = common(a.range, b.range) else { continue };
        let sides = (side(old, &a.decision), side(new, &b.decision));
        if sides.0 != sides.1 {
            ports.entry(sides).or_default().push(range);
        }
    }
    let row = |((before, after), ranges): ((Side, Side), Vec<PortRange>)| EdgeChange {
        change: match (before.allow, after.allow) {
            (false, true) => Change::Opened,
            (true, false) => Change::Closed,
            (true, true) | (false, false) => Change::Changed,
        },
        from: name(old, new, pair.from),
        ports: words(&ranges, |range| port_name(new, &to, range).or_else(|| port_name(old, &to, range))),
        to: to.clone(),
        before,
        after,
    };
    ports.into_iter().map(row).collect()
}

/// The decisions for every port, by protocol.
fn all_ports(asked: &Asked<'_>, pair: EdgeKey) -> Vec<Stretch> {
    let every = PortRange { proto: 0, lo: 0, hi: u16::MAX };
    let alike = |stretch: Stretch| PROTOCOLS.map(|proto| Stretch { range: PortRange { proto, ..every }, ..stretch });
    let stretches = asked.stretches(pair.from, pair.to, every);
    match stretches.as_slice() {
        [one] if one.range.proto == 0 => alike(*one).to_vec(),
        _ => stretches,
    }
}

fn common(a: PortRange, b: PortRange) -> Option<PortRange> {
    let (lo, hi) = (a.lo.max(b.lo), a.hi.min(b.hi));
    (a.proto == b.proto && lo <= hi).then_some(PortRange { proto: a.proto, lo, hi })
}

fn side(asked: &Asked<'_>, decision: &Decision) -> Side {
    let index = usize::try_from(decision.rule.0).ok().and_then(|n| n.checked_sub(1));
    let until = decision.valid_until.0;
    Side {
        allow: decision.allow,
        rule: index.and_then(|index| asked.map.rule_ids.get(index)).cloned(),
        until: (until != 0).then_some(i64::from(until)),
    }
}

fn name(old: &Asked<'_>, new: &Asked<'_>, id: IdentityId) -> String {
    if id == IdentityId::ANY {
        return names::ANY.to_owned();
    }
    new.map.names.get(&id).or_else(|| old.map.names.get(&id)).cloned().unwrap_or_default()
}

/// Ports as people write them; the protocol that no rule can name is left out beside others.
fn words(ranges: &[PortRange], named: impl Fn(&PortRange) -> Option<String>) -> Vec<String> {
    let is_whole = |proto| ranges.contains(&PortRange { proto, lo: 0, hi: u16::MAX });
    if PROTOCOLS.into_iter().all(is_whole) {
        return vec![PortSpec::Range(PortRange { proto: 0, lo: 0, hi: u16::MAX }).to_string()];
    }
    let nameless = PROTOCOLS[PROTOCOLS.len() - 1];
    let shown = ranges.iter().filter(|range| range.proto != nameless || ranges.len() == 1);
    shown.map(|range| named(range).unwrap_or_else(|| range.to_string())).collect()
}

fn port_name(asked: &Asked<'_>, to: &str, range: &PortRange) -> Option<String> {
    let ports = &asked.policy.workloads.get(to)?.ports;
    ports.iter().find(|(_, port)| *port == range).map(|(name, _)| name.clone())
}

/// Compares what is no rule: who is who, in which mode. Groups show in the edges that they make.
fn settings(old: &Value, new: &Value) -> Vec<SettingChange> {
    let mut changes = Vec::new();
    fields("defaults", &old["defaults"], &new["defaults"], &mut changes);
    for (list, kind) in [("workloads", "workload"), ("externals", "external")] {
        let (old, new) = (by_name(&old[list]), by_name(&new[list]));
        let all: BTreeSet<&str> = old.keys().chain(new.keys()).copied().collect();
        for name in all {
            let what = format!("{kind} {name}");
            match (old.get(name), new.get(name)) {
                (Some(old), Some(new)) => fields(&what, old, new, &mut changes),
                (old, new) => changes.push(SettingChange {
                    what,
                    field: String::new(),
                    before: old.copied().cloned().unwrap_or_default(),
                    after: new.copied().cloned().unwrap_or_default(),
                }),
            }
        }
    }
    changes
}

fn by_name(list: &Value) -> BTreeMap<&str, &Value> {
    list.as_array().into_iter().flatten().filter_map(|item| Some((item["name"].as_str()?, item))).collect()
}

fn fields(what: &str, old: &Value, new: &Value, changes: &mut Vec<SettingChange>) {
    let nothing = Map::new();
    let (old, new) = (old.as_object().unwrap_or(&nothing), new.as_object().unwrap_or(&nothing));
    let all: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for field in all {
        let of = |side: &Map<String, Value>| side.get(field).cloned().unwrap_or_default();
        let (before, after) = (of(old), of(new));
        if before != after {
            changes.push(SettingChange { what: what.to_owned(), field: field.clone(), before, after });
        }
    }
}

impl EdgeChange {
    /// The machine form.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let side = |side: &Side| {
            json!({
                "action": if side.allow { "allow" } else { "deny" },
                "rule": side.rule,
                "until": side.until.map(time::format),
            })
        };
        json!({
            "change": self.change.name(),
            "from": self.from,
            "to": self.to,
            "ports": self.ports,
            "before": side(&self.before),
            "after": side(&self.after),
        })
    }
}

impl SettingChange {
    /// The machine form.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let Self { what, field, before, after } = self;
        json!({"what": what, "field": field, "before": before, "after": after})
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        ask::unix_moment,
        compile::{CompileInput, compile},
        load::load,
        map_state::MapState,
        model::Policy,
    };

    const NOW: i64 = 2_000_000_000;

    fn read(rules: &str) -> (Policy, MapState) {
        let text = format!(
            "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: d }}\nspec:\n  trustDomain: t.example\n  \
             workloads:\n    - {{ name: web, select: {{ cgroup: /w }} }}\n    - {{ name: app, select: {{ cgroup: /a }} }}\n    \
             - {{ name: db, select: {{ cgroup: /d }}, ports: {{ pg: tcp/5432 }} }}\n{rules}"
        );
        let policy = load(&[("d.yaml", &text)]).unwrap().policy;
        let map = compile(&policy, &CompileInput::default()).unwrap();
        (policy, map)
    }

    fn compare(old: &str, new: &str) -> Vec<String> {
        let (old, new) = (read(old), read(new));
        let now = unix_moment(NOW);
        let old = Asked { policy: &old.0, map: &old.1, overrides: &[], now };
        let new = Asked { policy: &new.0, map: &new.1, overrides: &[], now };
        let differences = diff(&old, &new);
        let edge = |e: &EdgeChange| format!("{} {} -> {}:{}", e.change.name(), e.from, e.to, e.ports.join(","));
        let setting = |s: &SettingChange| format!("{} {} {} {}", s.what, s.field, s.before, s.after);
        differences.edges.iter().map(edge).chain(differences.settings.iter().map(setting)).collect()
    }

    #[test]
    fn the_same_said_otherwise_is_no_difference() {
        let one = "  allow:\n    - { id: a, from: web, to: db, ports: [pg] }\n";
        let same = "  allow:\n    - { id: a, from: web, to: db, ports: [tcp/5432] }\n";
        assert_eq!(compare(one, one), Vec::<String>::new());
        assert_eq!(compare(one, same), Vec::<String>::new());
    }

    #[test]
    fn opened_closed_and_changed_edges_are_told_apart() {
        let old = "  allow:\n    - { id: a, from: web, to: db, ports: [pg] }\n    - { id: b, from: app, to: db, ports: [pg] }\n";
        let new = "  allow:\n    - { id: c, from: web, to: db, ports: [pg, tcp/80-81] }\n";
        assert_eq!(compare(old, new), ["closed app -> db:pg", "opened web -> db:tcp/80-81", "changed web -> db:pg"]);
        assert_eq!(compare(new, old), ["opened app -> db:pg", "closed web -> db:tcp/80-81", "changed web -> db:pg"]);
    }

    #[test]
    fn a_guard_rail_closes_what_it_covers_and_a_wildcard_is_an_edge_of_its_own() {
        let old = "  allow:\n    - { id: a, from: any, to: db, ports: [any] }\n";
        let new = &format!("{old}  deny:\n    - {{ id: no, from: web, to: db, ports: [pg] }}\n");
        assert_eq!(compare(old, new), ["closed web -> db:pg"]);
        assert_eq!(compare("", old), ["opened any -> db:any"]);
        assert_eq!(
            compare(new, ""),
            [
                "closed any -> db:any",
                "closed web -> db:tcp/0-5431,tcp/5433-65535,udp/any,sctp/any,icmp/any",
                "changed web -> db:pg"
            ]
        );
    }

    #[test]
    fn an_end_and_a_mode_are_differences_too() {
        let forever = "  allow:\n    - { id: a, from: web, to: db, ports: [pg] }\n";
        let ends = "  allow:\n    - { id: a, from: web, to: db, ports: [pg], expires: 2036-01-01T00:00:00Z }\n";
        assert_eq!(compare(forever, ends), ["changed web -> db:pg"]);
        assert_eq!(
            compare("  defaults: { mode: audit }\n", "  defaults: { mode: enforce }\n")[..2],
            ["defaults mode \"audit\" \"enforce\"", "defaults unknownMode \"audit\" \"enforce\""]
        );
        assert_eq!(
            compare("  externals:\n    - { name: x, cidrs: [192.0.2.0/24] }\n", "")[0]
                .split(' ')
                .take(2)
                .collect::<Vec<_>>(),
            ["external", "x"]
        );
    }
}
