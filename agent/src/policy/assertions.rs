//! `tests:` of a policy, run against its compiled form. Modes and overrides play no part.

use agent_common::verdict::Decision;

use super::{
    ask::{Asked, Single, unix_moment},
    map_state::MapState,
    model::{Expect, Party, Policy, PortRange, PortSpec, Test},
};

/// How one promise came out.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome<'a> {
    /// The promise.
    pub test: &'a Test,
    /// What is wrong; empty if it holds.
    pub failures: Vec<Failure>,
}

/// One flow that is not what was promised.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The caller.
    pub from: String,
    /// The callee.
    pub to: String,
    /// The ports.
    pub range: PortRange,
    /// What the policy says instead.
    pub decision: Decision,
}

/// Runs every test. `map` is compiled without overrides and with an offset of 0; `now` is in Unix
/// seconds, for tests that name no moment.
#[must_use]
pub fn run<'a>(policy: &'a Policy, map: &MapState, now: i64) -> Vec<Outcome<'a>> {
    let run = |test: &'a Test| {
        let asked = Asked { policy, map, overrides: &[], now: unix_moment(test.at.unwrap_or(now)) };
        Outcome { test, failures: failures(&asked, &test.expect) }
    };
    policy.tests.iter().map(run).collect()
}

fn failures(asked: &Asked<'_>, expect: &Expect) -> Vec<Failure> {
    match expect {
        Expect::Allow { from, to, port } => each(asked, &asked.singles(from), to, port, true),
        Expect::Deny { from, to, port } => each(asked, &asked.singles(from), to, port, false),
        Expect::Only { to, port, callers } => {
            let allowed: Vec<Single> = callers.iter().flat_map(|party| asked.singles(party)).collect();
            let is_listed = |caller: &Single| allowed.iter().any(|single| single.id == caller.id);
            let others: Vec<Single> = asked.everyone().into_iter().filter(|caller| !is_listed(caller)).collect();
            let mut failures = each(asked, &allowed, to, port, true);
            failures.extend(each(asked, &others, to, port, false));
            // An endpoint may always call itself, so no rule and no test is about that.
            failures.retain(|failure| failure.from != failure.to);
            failures
        }
    }
}

/// Returns the flows from any of `callers` that are not decided as wanted.
fn each(asked: &Asked<'_>, callers: &[Single], to: &Party, port: &PortSpec, wanted: bool) -> Vec<Failure> {
    let mut failures = Vec::new();
    for callee in asked.singles(to) {
        // Loading saw to it that every member has the port.
        let Some(range) = asked.range(&callee, port) else { continue };
        for caller in callers {
            let stretches = asked.stretches(caller.id, callee.id, range);
            failures.extend(stretches.into_iter().filter(|stretch| stretch.decision.allow != wanted).map(|stretch| {
                let (from, to) = (caller.shown.clone(), callee.shown.clone());
                Failure { from, to, range: stretch.range, decision: stretch.decision }
            }));
        }
    }
    failures
}

/// Returns a promise as a line: `payments:grpc only [checkout]`.
#[must_use]
pub fn describe(expect: &Expect) -> String {
    match expect {
        Expect::Allow { from, to, port } => format!("{from} -> {to}:{port} allow"),
        Expect::Deny { from, to, port } => format!("{from} -> {to}:{port} deny"),
        Expect::Only { to, port, callers } => {
            let callers: Vec<String> = callers.iter().map(ToString::to_string).collect();
            format!("{to}:{port} only [{}]", callers.join(", "))
        }
    }
}

/// Returns a failure as a line: who, and by which rule.
#[must_use]
pub fn describe_failure(asked: &Asked<'_>, expect: &Expect, failure: &Failure) -> String {
    let Failure { from, to, range, decision } = failure;
    let why = match asked.rule(decision) {
        Some(rule) => format!("by rule {} ({})", rule.id, rule.place),
        None if decision.reason == agent_common::verdict::Reason::Expired => "its rule has expired".to_owned(),
        None => "by default: no rule allows it".to_owned(),
    };
    match (expect, decision.allow) {
        (Expect::Only { .. }, true) => format!("also allowed: {from}{}, {why}", partly(asked, expect, failure)),
        (Expect::Only { .. }, false) => format!("not allowed: {from} -> {to} {range}, {why}"),
        (_, true) => format!("allowed: {from} -> {to} {range}, {why}"),
        (_, false) => format!("denied: {from} -> {to} {range}, {why}"),
    }
}

/// Names the ports if they are fewer than those the test is about.
fn partly(asked: &Asked<'_>, expect: &Expect, failure: &Failure) -> String {
    let Expect::Only { to, port, .. } = expect else { return String::new() };
    let targets = asked.singles(to);
    let whole = targets.len() == 1 && asked.range(&targets[0], port) == Some(failure.range);
    if whole { String::new() } else { format!(" -> {} {}", failure.to, failure.range) }
}

impl std::fmt::Display for Party {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(address) => write!(f, "ip/{address}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::{
        compile::{CompileInput, compile},
        load::load,
    };

    /// Runs one test against a small policy and returns the lines of its failures.
    fn lines(test: &str) -> Vec<String> {
        let text = format!(
            "apiVersion: eastwall.dev/v1alpha1
kind: Policy
metadata: {{ name: d }}
spec:
  trustDomain: t
  workloads:
    - {{ name: web, select: {{ cgroup: /a }}, ports: {{ http: tcp/8000-8010 }} }}
    - {{ name: db, select: {{ cgroup: /b }}, ports: {{ pg: tcp/5432 }} }}
    - {{ name: debug, select: {{ cgroup: /c }} }}
  externals: [{{ name: lan, cidrs: [10.0.0.0/8], except: [10.1.0.0/16] }}]
  groups: [{{ name: callers, members: [web, debug] }}]
  allow:
    - {{ id: web-db, from: web, to: db, ports: [pg] }}
    - {{ id: window, from: debug, to: db, ports: [pg], expires: 2035-12-01T18:00:00Z }}
    - {{ id: lan-web, from: lan, to: web, ports: [tcp/8000-8005] }}
  deny:
    - {{ id: no-8003, from: any, to: web, ports: [tcp/8003] }}
  tests:
    - {test}
"
        );
        let policy = load(&[("f", &text)]).unwrap_or_else(|e| panic!("{e:#?}\n{text}")).policy;
        let map = compile(&policy, &CompileInput::default()).unwrap();
        let at = policy.tests[0].at.unwrap_or(1_000);
        let asked = Asked { policy: &policy, map: &map, overrides: &[], now: unix_moment(at) };
        let outcomes = run(&policy, &map, 1_000);
        let describe = |outcome: &Outcome<'_>| -> Vec<String> {
            outcome.failures.iter().map(|failure| describe_failure(&asked, &outcome.test.expect, failure)).collect()
        };
        outcomes.iter().flat_map(describe).collect()
    }

    #[test]
    fn promises_that_hold_say_nothing() {
        for test in [
            "{ from: web, allow: [db:pg], deny: [db:tcp/22, debug:any] }",
            "{ to: db:pg, only: [callers] }",
            "{ to: db:pg, only: [web], at: 2035-12-01T18:00:00Z }",
            "{ to: db:pg, only: [web, debug], at: 2035-12-01T17:59:59Z }",
            "{ from: ip/10.2.0.1, allow: [web:tcp/8005], deny: [web:tcp/8006] }",
            "{ from: ip/10.1.0.1, deny: [web:tcp/8005] }",
            "{ from: world, deny: [web:any] }",
            "{ from: callers, allow: [db:pg] }",
        ] {
            assert_eq!(lines(test), Vec::<String>::new(), "{test}");
        }
    }

    #[test]
    fn promises_that_fail_name_the_caller_the_rule_and_its_place() {
        for (test, expected) in [
            ("{ to: db:pg, only: [web] }", vec!["also allowed: debug, by rule window (f:14:7)"]),
            (
                "{ to: db:pg, only: [callers, lan] }",
                vec!["not allowed: lan -> db tcp/5432, by default: no rule allows it"],
            ),
            (
                "{ from: debug, allow: [db:pg], at: 2036-01-01T00:00:00Z }",
                vec!["denied: debug -> db tcp/5432, its rule has expired"],
            ),
            (
                "{ from: lan, allow: [web:http] }",
                vec![
                    "denied: lan -> web tcp/8003, by rule no-8003 (f:17:7)",
                    "denied: lan -> web tcp/8006-8010, by default: no rule allows it",
                ],
            ),
            ("{ from: web, deny: [db:any] }", vec!["allowed: web -> db tcp/5432, by rule web-db (f:13:7)"]),
            (
                "{ to: web:tcp/8000-8004, only: [web] }",
                vec![
                    "also allowed: lan -> web tcp/8000-8002, by rule lan-web (f:15:7)",
                    "also allowed: lan -> web tcp/8004, by rule lan-web (f:15:7)",
                ],
            ),
            (
                "{ from: callers, deny: [db:pg], at: 2036-01-01T00:00:00Z }",
                vec!["allowed: web -> db tcp/5432, by rule web-db (f:13:7)"],
            ),
        ] {
            assert_eq!(lines(test), expected, "{test}");
        }
    }
}
