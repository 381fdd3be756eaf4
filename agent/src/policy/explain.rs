//! Why a flow gets its decision: at both ends, by which rule, and what would have to differ.

use std::fmt;

use agent_common::{
    id::RuleNumber,
    verdict::{Decision, Mode, Reason, Verdict},
};
use serde_json::{Value, json};

use super::{
    ask::{Asked, Single},
    model::{Action, Party, Policy, PortRange, PortSpec, Rule, SharedPeers},
    names, ports, time,
};

/// The answer for ports that are decided alike.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation<'a> {
    /// The caller.
    pub from: Single,
    /// The callee.
    pub to: Single,
    /// The ports.
    pub range: PortRange,
    /// The decision. Both ends ask the same rules, so it is one.
    pub decision: Decision,
    /// Mode of the caller's exit; none if no agent stands there.
    pub exit: Option<Mode>,
    /// Mode of the callee's door; none if no agent stands there.
    pub door: Option<Mode>,
    /// The rule that decided.
    pub rule: Option<&'a Rule>,
    /// The rule that would have allowed it but for one thing.
    pub nearest: Option<Nearest<'a>>,
}

/// A rule that nearly matches.
#[derive(Clone, Debug, PartialEq)]
pub struct Nearest<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// The one thing.
    pub differs: Difference,
}

/// What keeps a rule from matching.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Difference {
    /// It has expired.
    Expired,
    /// Others have the caller's address as well, and the callee lets nobody in by it.
    SharedPeers,
    /// Other ports.
    Ports,
    /// Another caller.
    From,
    /// Another callee.
    To,
}

/// Explains the flows from one party to another: one answer for each pair of identities and each
/// stretch of ports that is decided alike.
#[must_use]
pub fn explain<'a>(asked: &Asked<'a>, from: &Party, to: &Party, ports: &PortSpec) -> Vec<Explanation<'a>> {
    let mut explanations = Vec::new();
    let address = if let Party::Address(address) = to { Some(*address) } else { None };
    for from in asked.singles(from) {
        for to in asked.singles(to) {
            let Some(range) = asked.range(&to, ports) else { continue };
            // The built-in `dns` is for workloads, and knows whom they ask by the address.
            let workload = mode(asked.policy, &from.name, |workload| workload.egress_mode).is_some();
            let address = address.filter(|_| workload);
            for stretch in asked.stretches_at(&from, &to, range, address) {
                explanations.push(one(asked, &from, &to, stretch.range, stretch.decision));
            }
        }
    }
    explanations
}

fn one<'a>(asked: &Asked<'a>, from: &Single, to: &Single, range: PortRange, decision: Decision) -> Explanation<'a> {
    let default = matches!(decision.reason, Reason::NoRule | Reason::Expired);
    Explanation {
        from: from.clone(),
        to: to.clone(),
        range,
        decision,
        exit: mode(asked.policy, &from.name, |workload| workload.egress_mode),
        door: mode(asked.policy, &to.name, |workload| workload.ingress_mode),
        rule: asked.rule(&decision),
        nearest: if default { nearest(asked, from, to, range, decision.reason) } else { None },
    }
}

fn mode(policy: &Policy, name: &str, of: impl Fn(&super::model::Workload) -> Mode) -> Option<Mode> {
    match (policy.workloads.get(name), names::Form::of(name)) {
        (Some(workload), _) => Some(of(workload)),
        (None, names::Form::Derived) => Some(policy.mode_of_derived()),
        (None, _) => None,
    }
}

/// Says whether a rule that names `term` means an end called `name`; a set carries all its names.
fn carries(policy: &Policy, name: &str, term: &str) -> bool {
    name.split('+').any(|name| {
        term == names::ANY
            || term == name
            || (term == names::WORLD && policy.externals.contains_key(name))
            || policy.groups.get(term).is_some_and(|members| members.iter().any(|member| member == name))
    })
}

fn nearest<'a>(asked: &Asked<'a>, from: &Single, to: &Single, range: PortRange, reason: Reason) -> Option<Nearest<'a>> {
    let policy = asked.policy;
    let is_closed = policy.workloads.get(&to.name).is_some_and(|to| to.shared_peers == SharedPeers::Deny);
    let is_shared = is_closed && from.id.is_set();
    let one_difference = |rule: &'a Rule| {
        let same_to = carries(policy, &to.name, &rule.to);
        // A port name means what the callee of the rule calls by it.
        let callee = if same_to { &to.name } else { first_member(policy, &rule.to) };
        let mut ranges = rule.ports.iter().filter_map(|spec| policy.ports_on(callee, spec));
        let same_ports = ranges.any(|ports| ports.covers(&range));
        let same_from = carries(policy, &from.name, &rule.from);
        // Only an expired rule differs in nothing else, and only then was one there.
        let expired = reason == Reason::Expired && same_from && same_to && same_ports;
        let differs = [(!same_from, Difference::From), (!same_to, Difference::To), (!same_ports, Difference::Ports)];
        let mut differs = differs.into_iter().filter(|(differs, _)| *differs).map(|(_, what)| what);
        match (differs.next(), differs.next()) {
            (None, _) if expired => Some(Nearest { rule, differs: Difference::Expired }),
            (None, _) if is_shared => Some(Nearest { rule, differs: Difference::SharedPeers }),
            (Some(differs), None) => Some(Nearest { rule, differs }),
            _ => None,
        }
    };
    let allows = policy.rules.iter().filter(|rule| rule.action == Action::Allow);
    allows.filter_map(one_difference).min_by(|a, b| (a.differs, &a.rule.id).cmp(&(b.differs, &b.rule.id)))
}

fn first_member<'p>(policy: &'p Policy, name: &'p String) -> &'p String {
    policy.groups.get(name).and_then(|members| members.first()).unwrap_or(name)
}

impl Explanation<'_> {
    /// Says whether the packet gets through, whatever the rules say: an end that only audits drops
    /// nothing, and an end without an agent has no check.
    #[must_use]
    pub fn passes(&self) -> bool {
        [self.exit, self.door].into_iter().flatten().all(|mode| mode.apply(&self.decision) == Verdict::Allow)
    }

    /// The machine form.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let Self { from, to, range, decision, exit, door, rule, nearest } = self;
        let cite = |rule: &Rule| {
            json!({
                "id": rule.id,
                "action": rule.action.name(),
                "edge": edge(rule),
                "place": rule.place.to_string(),
                "owner": rule.owner,
                "reason": rule.reason,
                "ticket": rule.ticket,
                "expires": rule.expires.map(time::format),
            })
        };
        json!({
            "from": from.shown,
            "to": to.shown,
            "ports": range.to_string(),
            "decision": if decision.allow { "allow" } else { "deny" },
            "reason": decision.reason.name(),
            "passes": self.passes(),
            "exitMode": exit.map(Mode::name),
            "doorMode": door.map(Mode::name),
            "rule": rule.map(cite),
            "builtIn": self.is_dns().then_some("dns"),
            "nearest": nearest.as_ref().map(|nearest| json!({"rule": cite(nearest.rule), "differs": nearest.differs.name()})),
        })
    }

    fn is_dns(&self) -> bool {
        self.decision.rule == RuleNumber::BUILTIN_DNS
    }

    fn side(&self, f: &mut fmt::Formatter<'_>, what: &str, who: &str, mode: Option<Mode>, why: &str) -> fmt::Result {
        let Some(mode) = mode else {
            return writeln!(f, "  {what}  {:<28} no check: outside any agent", who);
        };
        let drops = if mode.apply(&self.decision) == Verdict::Deny { "   <- this one drops" } else { "" };
        writeln!(f, "  {what}  {:<28} {why}{drops}", format!("{who} ({})", mode.name()))
    }
}

impl Difference {
    /// The field of the rule.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Expired => "expires",
            Self::SharedPeers => "sharedPeers",
            Self::Ports => "ports",
            Self::From => "from",
            Self::To => "to",
        }
    }
}

fn edge(rule: &Rule) -> String {
    let ports: Vec<String> = rule.ports.iter().map(ToString::to_string).collect();
    format!("{} -> {}:{}", rule.from, rule.to, ports.join(","))
}

impl fmt::Display for Explanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { from, to, range, decision, exit, door, rule, nearest } = self;
        let word = if decision.allow { "ALLOW" } else { "DENY" };
        let ends = match (exit, door) {
            (Some(_), Some(_)) => "at both ends",
            (Some(_), None) => "at the exit",
            (None, Some(_)) => "at the door",
            (None, None) => "and nobody checks",
        };
        writeln!(f, "{word}  {} -> {} {range}    {ends}", from.shown, to.shown)?;
        let why = match (rule, decision.reason) {
            (Some(rule), _) => format!("rule {} ({})", rule.id, rule.action.name()),
            (None, _) if self.is_dns() => {
                "built-in dns: no rule matches, and every workload may ask a resolver".to_owned()
            }
            (None, Reason::Expired) => "default: the rule that allowed it has expired".to_owned(),
            (None, _) => format!("default: no allow rule from `{}` to `{}`", from.name, to.name),
        };
        self.side(f, "exit", &from.shown, *exit, &why)?;
        self.side(f, "door", &to.shown, *door, &why)?;
        if let Some(rule) = rule {
            writeln!(f, "  rule  {}: {}    {}", rule.id, edge(rule), rule.place)?;
            let texts = [("owner", &rule.owner), ("reason", &rule.reason), ("ticket", &rule.ticket)];
            for (what, text) in texts {
                if let Some(text) = text {
                    writeln!(f, "        {what} {}", text.escape_debug())?;
                }
            }
            if let Some(expires) = rule.expires {
                writeln!(f, "        expires {}", time::format(expires))?;
            }
        }
        if let Some(Nearest { rule, differs }) = nearest {
            writeln!(f, "  near  {}: {}    {}", rule.id, edge(rule), rule.place)?;
            match differs {
                Difference::Expired => {
                    let end = rule.expires.map(time::format).unwrap_or_default();
                    writeln!(f, "        it expired at {end}")?;
                }
                Difference::SharedPeers => writeln!(
                    f,
                    "        it means one of those who share the address, and `sharedPeers: deny` of `{}` lets in none of them",
                    to.name
                )?,
                Difference::Ports => writeln!(f, "        it differs in `ports`: {range} is not among them")?,
                Difference::From => writeln!(f, "        it differs in `from`: `{}`, not `{}`", rule.from, from.name)?,
                Difference::To => writeln!(f, "        it differs in `to`: `{}`, not `{}`", rule.to, to.name)?,
            }
        }
        if self.is_dns() {
            writeln!(
                f,
                "  dns   the address is a resolver of this node; a `deny` rule or a revocation beats the built-in"
            )?;
        }
        if !decision.allow && self.passes() {
            writeln!(f, "  the packet passes all the same: no end enforces")?;
        }
        if from.id == to.id {
            writeln!(f, "  this is about two endpoints of `{}`: one always reaches itself", from.name)?;
        }
        // Not every stretch of ports can be written, and a set of names is no name.
        let writable = ports::parse(&range.to_string()).is_ok() && !from.id.is_set() && !to.id.is_set();
        if rule.is_none() && !decision.allow && writable {
            writeln!(f, "  to open it: - {{ from: {}, to: {}, ports: [{range}] }}", from.name, to.name)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        ask::unix_moment,
        compile::{CompileInput, compile},
        load::load,
        peers::Peers,
    };

    const TEXT: &str = "apiVersion: eastwall.dev/v1alpha1
kind: Policy
metadata: { name: shop }
spec:
  trustDomain: t
  defaults: { mode: audit }
  workloads:
    - { name: web, select: { cgroup: /a } }
    - { name: checkout, select: { cgroup: /b } }
    - { name: payments, select: { cgroup: /c }, ports: { grpc: tcp/8443 }, ingressMode: enforce }
  externals: [{ name: lan, cidrs: [10.0.0.0/8] }]
  allow:
    - { id: pay, from: checkout, to: payments, ports: [grpc], owner: team-payments }
    - { id: window, from: checkout, to: web, ports: [tcp/22], expires: 2035-12-01T18:00:00Z }
  deny:
    - { id: guard, from: world, to: payments, ports: [tcp/22] }
";

    fn shown(from: &str, to: &str, port: &str, now: i64) -> String {
        let policy = load(&[("shop.yaml", TEXT)]).unwrap().policy;
        let map = compile(&policy, &CompileInput::default()).unwrap();
        let asked = Asked { policy: &policy, map: &map, overrides: &[], now: unix_moment(now) };
        let party = |name: &str| match names::Form::of(name) {
            names::Form::Address(Some(address)) => Party::Address(address),
            _ => Party::Name(name.to_owned()),
        };
        let found = explain(&asked, &party(from), &party(to), &ports::parse(port).unwrap());
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_denial_by_default_names_both_ends_and_the_one_field_that_differs() {
        assert_eq!(
            shown("web", "payments", "grpc", 1_000),
            "DENY  web -> payments tcp/8443    at both ends
  exit  web (audit)                  default: no allow rule from `web` to `payments`
  door  payments (enforce)           default: no allow rule from `web` to `payments`   <- this one drops
  near  pay: checkout -> payments:grpc    shop.yaml:13:7
        it differs in `from`: `checkout`, not `web`
  to open it: - { from: web, to: payments, ports: [tcp/8443] }
"
        );
    }

    #[test]
    fn an_allow_names_its_rule_and_its_owner() {
        let shown = shown("checkout", "payments", "grpc", 1_000);
        assert!(shown.starts_with("ALLOW  checkout -> payments tcp/8443"), "{shown}");
        assert!(shown.contains("rule  pay: checkout -> payments:grpc    shop.yaml:13:7\n        owner team-payments"));
    }

    #[test]
    fn other_ports_other_callee_and_an_end_are_each_told_apart() {
        assert!(shown("checkout", "payments", "tcp/1", 1_000).contains("differs in `ports`"));
        assert!(shown("checkout", "checkout", "tcp/22", 1_000).contains("differs in `to`: `web`, not `checkout`"));
        let late = shown("checkout", "web", "tcp/22", 2_090_000_000);
        assert!(late.contains("expired at 2035-12-01T18:00:00Z") && late.contains("no end enforces"), "{late}");
        assert!(!shown("web", "web", "udp/1", 1_000).contains("near"));
        assert!(
            shown("web", "web", "tcp/any", 1_000).contains("to open it: - { from: web, to: web, ports: [tcp/any] }")
        );
        assert!(!shown("checkout", "payments", "tcp/any", 1_000).contains("tcp/0-8442] }"), "0 cannot be written");
    }

    #[test]
    fn an_address_is_shown_with_whom_it_is_taken_for() {
        let shown = shown("ip/10.0.0.1", "payments", "tcp/22", 1_000);
        assert!(shown.contains("DENY  ip/10.0.0.1 (lan) -> payments tcp/22    at the door"), "{shown}");
        assert!(shown.contains("no check: outside any agent") && shown.contains("rule guard (deny)"), "{shown}");
    }

    #[test]
    fn the_built_in_is_named_where_a_workload_asks_a_resolver_and_no_rule_matches() {
        let policy = load(&[("shop.yaml", TEXT)]).unwrap().policy;
        let resolvers = vec!["10.0.0.53".parse().unwrap()].try_into().unwrap();
        let map = compile(&policy, &CompileInput { resolvers: Some(&resolvers), ..CompileInput::default() }).unwrap();
        let asked = Asked { policy: &policy, map: &map, overrides: &[], now: unix_moment(1_000) };
        let shown = |from: &str, to: Party, ports: &str| -> Vec<String> {
            let found = explain(&asked, &Party::Name(from.to_owned()), &to, &ports::parse(ports).unwrap());
            found.iter().map(ToString::to_string).collect()
        };
        let resolver = Party::Address("10.0.0.53".parse().unwrap());
        let found = shown("web", resolver.clone(), "udp/53");
        assert!(found[0].starts_with("ALLOW  web -> ip/10.0.0.53 (lan) udp/53    at the exit"), "{found:?}");
        assert!(found[0].contains("built-in dns: no rule matches"), "{found:?}");
        assert!(!found[0].contains("to open it"), "{found:?}");
        let ports = shown("web", resolver.clone(), "tcp/50-60");
        assert_eq!(ports.iter().map(|text| text.starts_with("ALLOW")).collect::<Vec<_>>(), [false, true, false]);
        // Neither an address nor the world is a workload, and another address no resolver.
        for (from, to) in [("lan", resolver.clone()), ("world", resolver), ("web", Party::Name("lan".to_owned()))] {
            assert!(shown(from, to, "udp/53")[0].starts_with("DENY"), "{from}");
        }
    }

    #[test]
    fn a_door_without_shared_peers_is_named_as_what_keeps_a_rule_from_matching() {
        let text = TEXT.replace("ports: { grpc: tcp/8443 },", "ports: { grpc: tcp/8443 }, sharedPeers: deny,");
        let policy = load(&[("shop.yaml", &text)]).unwrap().policy;
        let peers = "peers: [{ workload: web, addresses: [10.1.0.1] }, { workload: checkout, addresses: [10.1.0.1, 10.1.0.2] }]";
        let peers = Peers::parse("peers.yaml", peers).unwrap();
        let map = compile(&policy, &CompileInput { peers: Some(&peers), ..CompileInput::default() }).unwrap();
        let asked = Asked { policy: &policy, map: &map, overrides: &[], now: unix_moment(1_000) };
        let shown = |from: &str| {
            let from = Party::Address(from.parse().unwrap());
            explain(&asked, &from, &Party::Name("payments".to_owned()), &ports::parse("grpc").unwrap())[0].to_string()
        };
        let shared = shown("10.1.0.1");
        assert!(shared.starts_with("DENY  ip/10.1.0.1 (checkout+web) -> payments"), "{shared}");
        assert!(shared.contains("near  pay: checkout -> payments:grpc"), "{shared}");
        assert!(shared.contains("`sharedPeers: deny` of `payments` lets in none of them"), "{shared}");
        assert!(shown("10.1.0.2").starts_with("ALLOW"));
    }

    #[test]
    fn the_machine_form_says_the_same() {
        let policy = load(&[("shop.yaml", TEXT)]).unwrap().policy;
        let map = compile(&policy, &CompileInput::default()).unwrap();
        let asked = Asked { policy: &policy, map: &map, overrides: &[], now: unix_moment(1_000) };
        let party = |name: &str| Party::Name(name.to_owned());
        let json = explain(&asked, &party("web"), &party("payments"), &ports::parse("grpc").unwrap())[0].to_json();
        assert_eq!(json["decision"], "deny");
        assert_eq!(json["reason"], "no-rule");
        assert_eq!(json["passes"], false);
        assert_eq!(json["nearest"]["differs"], "from");
        assert_eq!(json["nearest"]["rule"]["place"], "shop.yaml:13:7");
    }
}
