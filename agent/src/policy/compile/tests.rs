//! Compiled = specification, and the planted bugs that this comparison must find.

use agent_common::{
    decide::decide,
    flow::{Direction, Flow},
    id::{BootSeconds, RuleNumber},
    verdict::Decision,
};

use super::*;
use crate::{
    identity::spiffe::SpiffeId,
    policy::{
        ask::octets,
        load::load,
        random::{self, Case, Sample},
        spec::End,
    },
};

const CASES: u64 = 600;
const SAMPLES: usize = 150;

/// Seeds of the day would make a failure hard to repeat; these are the same everywhere, and the
/// count is what makes them many.
fn cases() -> impl Iterator<Item = Case> {
    (0..CASES).map(|seed| Case::new(seed, SAMPLES))
}

fn actual(map: &MapState, sample: &Sample) -> Decision {
    answer(map, sample, &sample.flow)
}

/// The numbers that answers of resolvers add to the other end.
fn named(sample: &Sample) -> Vec<IdentityId> {
    sample.attempt.named.iter().map(|name| SpiffeId::new("random.example", name).unwrap().number()).collect()
}

/// As [`actual`], for another flow; the rest is the sample's.
fn answer(map: &MapState, sample: &Sample, flow: &Flow) -> Decision {
    at(map, sample, flow, sample.now)
}

fn at(map: &MapState, sample: &Sample, flow: &Flow, now: BootSeconds) -> Decision {
    match sample.attempt.asked {
        Some(asked) => map.decide_at(flow, &named(sample), asked, sample.attempt.here, &now),
        None => map.decide_named(flow, &named(sample), &now),
    }
}

#[test]
fn g85_the_compiled_policy_decides_as_the_specification_does() {
    let (mut allowed, mut spilled, mut sets, mut expired, mut dns) = (0, 0, 0, 0, 0);
    let (mut elsewhere, mut nobody) = (0, 0);
    for case in cases() {
        for sample in &case.samples {
            let found = actual(&case.map, sample);
            assert_eq!(
                found, sample.expected,
                "seed {}: {:?}\nrules {:?}\n{}\n{:#?}",
                case.seed, sample.attempt, case.map.rule_ids, case.text, case.overrides
            );
            allowed += usize::from(found.allow);
            expired += usize::from(found.reason == agent_common::verdict::Reason::Expired);
            dns += usize::from(found.rule == RuleNumber::BUILTIN_DNS);
            for end in [&sample.attempt.from, &sample.attempt.to] {
                if let End::Address(address) = end {
                    elsewhere += usize::from(case.peers.names(address.to_canonical()).is_some());
                    nobody += usize::from(case.peers.is_in_range(address.to_canonical()));
                }
            }
            sets += usize::from(sample.flow.from.is_set() || sample.flow.to.is_set());
        }
        spilled += case.map.spill.len();
    }
    // The comparison is worth nothing if the cases are all alike.
    let all = usize::try_from(CASES).unwrap() * SAMPLES;
    assert!(allowed > all / 10 && allowed < all * 9 / 10, "{allowed} of {all} allowed");
    assert!(dns > 200, "{dns} allowed by the built-in");
    assert!(elsewhere > 1_000 && nobody > 1_000, "{elsewhere} on other hosts, {nobody} in ranges of workloads");
    assert!(spilled > 1_000 && sets > 1_000 && expired > 500, "{spilled} spilled, {sets} sets, {expired} expired");
}

/// A wrong `decide`: what it is wrong about, and how.
type Mutant = (&'static str, fn(&Case, &Sample) -> Decision);

fn with_ranges(case: &Case, change: impl Fn(&mut Range)) -> MapState {
    let mut map = case.map.clone();
    map.edges.values_mut().flat_map(|entry| &mut entry.ranges).for_each(&change);
    map.spill.iter_mut().flat_map(|entry| &mut entry.ranges).for_each(&change);
    map
}

/// Makes ranges of a level match nothing.
fn without_level(case: &Case, level: u8) -> MapState {
    with_ranges(case, |range| {
        if range.level() == level {
            (range.lo, range.hi) = (1, 0);
        }
    })
}

fn with_flow(case: &Case, sample: &Sample, change: impl Fn(&mut Flow)) -> Decision {
    let mut flow = sample.flow;
    change(&mut flow);
    answer(&case.map, sample, &flow)
}

const MUTANTS: &[Mutant] = &[
    ("allow and deny swapped", |case, sample| {
        let decision = actual(&case.map, sample);
        Decision { allow: !decision.allow, ..decision }
    }),
    ("the last port left out", |case, sample| actual(&with_ranges(case, |r| r.hi = r.hi.saturating_sub(1)), sample)),
    ("one port too many", |case, sample| actual(&with_ranges(case, |r| r.hi = r.hi.saturating_add(1)), sample)),
    ("the first port left out", |case, sample| actual(&with_ranges(case, |r| r.lo = r.lo.saturating_add(1)), sample)),
    ("expiry ignored", |case, sample| actual(&with_ranges(case, |r| r.expires = 0), sample)),
    ("expiry a second late", |case, sample| {
        actual(&with_ranges(case, |r| r.expires += u32::from(r.expires != 0)), sample)
    }),
    ("the clock a second fast", |case, sample| at(&case.map, sample, &sample.flow, BootSeconds(sample.now.0 + 1))),
    ("deny rules ignored", |case, sample| actual(&without_level(case, level::DENY), sample)),
    ("revocations ignored", |case, sample| actual(&without_level(case, level::OVERRIDE_DENY), sample)),
    ("break-glass ignored", |case, sample| actual(&without_level(case, level::OVERRIDE_ALLOW), sample)),
    ("protocol ignored", |case, sample| actual(&with_ranges(case, |r| r.proto = 0), sample)),
    ("levels ignored", |case, sample| {
        let mut map = case.map.clone();
        for entry in map.edges.values_mut().filter(|entry| entry.count <= 3) {
            entry.ranges[..usize::from(entry.count)].sort_by_key(|range| range.rule);
        }
        actual(&map, sample)
    }),
    ("spill ignored", |case, sample| {
        let mut map = case.map.clone();
        map.edges.values_mut().for_each(|entry| entry.count = entry.count.min(3));
        actual(&map, sample)
    }),
    ("one range of the spill left out", |case, sample| {
        let mut map = case.map.clone();
        map.edges.values_mut().filter(|entry| entry.count > 4).for_each(|entry| entry.count -= 1);
        actual(&map, sample)
    }),
    ("wildcards ignored", |case, sample| {
        let mut map = case.map.clone();
        map.edges.retain(|key, _| key.from != IdentityId::ANY && key.to != IdentityId::ANY);
        actual(&map, sample)
    }),
    ("exact keys ignored", |case, sample| {
        let mut map = case.map.clone();
        map.edges.retain(|key, _| key.from == IdentityId::ANY || key.to == IdentityId::ANY);
        actual(&map, sample)
    }),
    ("ends swapped", |case, sample| with_flow(case, sample, |flow| std::mem::swap(&mut flow.from, &mut flow.to))),
    ("unknown taken for the world", |case, sample| {
        with_flow(case, sample, |flow| {
            for end in [&mut flow.from, &mut flow.to] {
                *end = if end.is_unknown() { IdentityId::WORLD } else { *end };
            }
        })
    }),
    ("externals taken for the world", |case, sample| {
        let map = MapState { prefixes: BTreeMap::new(), ..case.map.clone() };
        answer(&map, sample, &random::flow(&case.policy, &map, &sample.attempt))
    }),
    ("exceptions of externals ignored", |case, sample| {
        let mut map = case.map.clone();
        map.prefixes.retain(|_, id| *id != IdentityId::WORLD);
        answer(&map, sample, &random::flow(&case.policy, &map, &sample.attempt))
    }),
    ("workloads of other hosts taken for externals", |case, sample| {
        let input = CompileInput { peers: None, ..case.input() };
        let map = compile(&case.policy, &input).unwrap_or_default();
        answer(&map, sample, &random::flow(&case.policy, &map, &sample.attempt))
    }),
    ("ranges of workloads ignored", |case, sample| {
        let mut map = case.map.clone();
        map.prefixes.retain(|prefix, id| prefix.bits == 128 || !id.is_unknown());
        answer(&map, sample, &random::flow(&case.policy, &map, &sample.attempt))
    }),
    ("doors that take no shared callers open by a wildcard", |case, sample| {
        let mut map = case.map.clone();
        map.edges.retain(|_, entry| entry.count != 0);
        actual(&map, sample)
    }),
    ("rule numbers from 0", |case, sample| actual(&with_ranges(case, |r| r.rule -= u32::from(r.rule > 1)), sample)),
    ("the end of the verdict forgotten", |case, sample| Decision {
        valid_until: BootSeconds(0),
        ..actual(&case.map, sample)
    }),
    ("resolvers ignored", |case, sample| case.map.decide_named(&sample.flow, &named(sample), &sample.now)),
    ("the first resolver forgotten", |case, sample| {
        let rest = case.resolvers.addresses().iter().skip(1).copied().collect::<Vec<_>>();
        actual(&MapState { resolvers: rest.try_into().unwrap_or_default(), ..case.map.clone() }, sample)
    }),
    ("resolvers above deny rules", |case, sample| {
        let open = actual(&MapState { edges: BTreeMap::new(), ..case.map.clone() }, sample);
        if open.allow { open } else { actual(&case.map, sample) }
    }),
    ("resolvers opened to every address", |case, sample| {
        let asked = sample.attempt.asked.unwrap_or(std::net::Ipv4Addr::UNSPECIFIED.into());
        case.map.decide_at(&sample.flow, &named(sample), asked, true, &sample.now)
    }),
    ("names by DNS ignored", |case, sample| match sample.attempt.asked {
        Some(asked) => case.map.decide_at(&sample.flow, &[], asked, sample.attempt.here, &sample.now),
        None => decide(&case.map, &sample.flow, &sample.now),
    }),
    ("names by DNS beat deny rules", |case, sample| {
        let names = named(sample);
        let alone = names.iter().map(|&name| match sample.flow.direction {
            Direction::Egress => with_flow(case, sample, |flow| flow.to = name),
            Direction::Ingress => with_flow(case, sample, |flow| flow.from = name),
        });
        alone.into_iter().find(|found| found.allow).unwrap_or_else(|| actual(&case.map, sample))
    }),
    ("only the first name by DNS taken", |case, sample| {
        let names = named(sample);
        let first = &names[..names.len().min(1)];
        match sample.attempt.asked {
            Some(asked) => case.map.decide_at(&sample.flow, first, asked, sample.attempt.here, &sample.now),
            None => case.map.decide_named(&sample.flow, first, &sample.now),
        }
    }),
];

#[test]
fn every_planted_bug_is_caught_by_the_comparison() {
    let mut alive: Vec<&Mutant> = MUTANTS.iter().collect();
    for case in (0..CASES).map(|seed| Case::new(seed, 40)) {
        alive.retain(|(_, decide)| case.samples.iter().all(|sample| decide(&case, sample) == sample.expected));
        if alive.is_empty() {
            return;
        }
    }
    panic!("not caught: {:?}", alive.iter().map(|(name, _)| name).collect::<Vec<_>>());
}

fn compiled(spec: &str) -> Result<MapState, Vec<Finding>> {
    let text = format!(
        "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: d }}\nspec:\n  trustDomain: t\n  workloads:\n    \
         - {{ name: a, select: {{ cgroup: /a }}, ports: {{ p: tcp/80 }} }}\n    - {{ name: b, select: {{ cgroup: /b }} }}\n{spec}"
    );
    compile(&load(&[("f", &text)]).expect(&text).policy, &CompileInput::default())
}

#[test]
fn an_edge_over_its_limit_is_refused_with_the_rules_that_fill_it() {
    let ports = |n: u32| (0..n).map(|i| format!("tcp/{}", 1 + 2 * i)).collect::<Vec<_>>().join(", ");
    let rule = |n: u32| format!("  allow:\n    - {{ id: r, from: a, to: b, ports: [{}] }}\n", ports(n));
    assert_eq!(compiled(&rule(19)).unwrap().spill.len(), 1);
    let findings = compiled(&rule(20)).unwrap_err();
    assert_eq!(findings[0].code, Code::E15);
    assert_eq!(findings[0].at.as_ref().unwrap().place.line, 10);
}

#[test]
fn a_rule_that_opens_too_many_edges_is_refused() {
    let workloads: String = (0..400).map(|n| format!("    - {{ name: w{n}, select: {{ cgroup: /w }} }}\n")).collect();
    let members: Vec<String> = (0..400).map(|n| format!("w{n}")).collect();
    let groups = format!("  groups: [{{ name: g, members: [{}] }}]\n", members.join(", "));
    let spec = format!("{workloads}{groups}  allow: [{{ from: g, to: g, ports: [tcp/1] }}]\n");
    assert_eq!(compiled(&spec).unwrap_err()[0].code, Code::E15);
}

#[test]
fn an_override_that_no_longer_fits_is_refused_and_never_dropped() {
    let text = "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: { name: d }\nspec:\n  trustDomain: t\n  deny: [{ id: x, from: world, to: any }]\n";
    let policy = load(&[("f", text)]).unwrap().policy;
    let revoke = |id: &str, from: &str| {
        vec![Rule { id: id.to_owned(), from: from.to_owned(), action: Action::OverrideDeny, ..policy.rules[0].clone() }]
    };
    let code = |overrides: Vec<Rule>| {
        compile(&policy, &CompileInput { overrides: &overrides, ..CompileInput::default() }).unwrap_err()[0].code
    };
    assert_eq!(code(revoke("ov-1", "gone")), Code::E03);
    assert_eq!(code(revoke("x", "world")), Code::E02);
}

#[test]
fn expiry_on_the_boot_clock_is_never_later_than_written() {
    assert_eq!(boot_expiry(None, 7), 0);
    assert_eq!(boot_expiry(Some(1_000), 900), 100);
    assert_eq!(boot_expiry(Some(1_000), 2_000), 1, "before the boot: over, not eternal");
    assert_eq!(boot_expiry(Some(i64::MAX), i64::MIN), u32::MAX);
    assert_eq!(boot_expiry(Some(i64::MIN), i64::MAX), 1);
}

#[test]
fn a_permission_that_ran_out_is_named_behind_a_denial_that_ran_out() {
    let ends = "expires: 2033-05-18T03:30:00Z";
    let map = compiled(&format!(
        "  allow: [{{ from: a, to: b, ports: [tcp/1], {ends} }}]\n  deny: [{{ from: a, to: b, {ends} }}]\n"
    ))
    .unwrap();
    let key = map.edges.keys().next().unwrap();
    let flow = Flow { from: key.from, to: key.to, proto: 6, port: 1, direction: agent_common::flow::Direction::Egress };
    assert_eq!(decide(&map, &flow, &BootSeconds(u32::MAX)).reason, agent_common::verdict::Reason::Expired);
    let other = Flow { port: 2, ..flow };
    assert_eq!(decide(&map, &other, &BootSeconds(u32::MAX)).reason, agent_common::verdict::Reason::NoRule);
}

#[test]
fn everyone_who_occurs_has_a_name_for_people() {
    let map = compiled(
        "  externals: [{ name: e, cidrs: [10.0.0.0/8] }, { name: f, cidrs: [10.1.0.0/16] }]\n  \
         allow: [{ from: unit/x.service, to: a, ports: [p] }]\n",
    )
    .unwrap();
    let names: std::collections::BTreeSet<&str> = map.names.values().map(String::as_str).collect();
    assert_eq!(names, ["a", "b", "e", "e+f", "f", "unit/x.service", "world"].into());
    assert!(map.edges.keys().flat_map(|key| [key.from, key.to]).all(|id| map.names.contains_key(&id)));
}

#[test]
fn a_door_that_takes_no_shared_callers_opens_for_each_by_its_own_address_alone() {
    let text = |shared: &str, more: &str| {
        format!(
            "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: d }}\nspec:\n  trustDomain: t\n  \
             workloads:\n    - {{ name: web, select: {{ cgroup: /a }} }}\n    - {{ name: log, select: {{ cgroup: /b }} \
             }}\n    - {{ name: db, select: {{ cgroup: /c }}, sharedPeers: {shared} }}\n    - {{ name: open, select: {{ \
             cgroup: /d }} }}\n  groups:\n    - {{ name: both, members: [web, log] }}\n  allow:\n    - {{ from: both, \
             to: db, ports: [tcp/1] }}\n    - {{ from: web, to: open, ports: [tcp/1] }}\n{more}"
        )
    };
    let peers = "peers:\n  - { workload: web, addresses: [10.0.0.1, 10.0.0.9] }\n  - { workload: log, addresses: \
                 [10.0.0.2, 10.0.0.9] }\n";
    let peers = Peers::parse("peers.yaml", peers).unwrap();
    let allowed = |shared: &str, more: &str| -> Vec<bool> {
        let text = text(shared, more);
        let policy = load(&[("d.yaml", &text)]).unwrap().policy;
        let map = compile(&policy, &CompileInput { peers: Some(&peers), ..CompileInput::default() }).unwrap();
        let address = |text: &str| map.peer_of(&octets(text.parse().unwrap()));
        let asked = [("10.0.0.1", "db"), ("10.0.0.2", "db"), ("10.0.0.9", "db"), ("10.0.0.9", "open")];
        let decide = |(from, to): (&str, &str)| {
            let (from, to) = (address(from), policy.identity_of(to).unwrap());
            decide(&map, &Flow { from, to, proto: 6, port: 1, direction: Direction::Ingress }, &BootSeconds(5)).allow
        };
        asked.map(decide).to_vec()
    };
    assert_eq!(allowed("any-member", ""), [true, true, true, true]);
    assert_eq!(allowed("deny", ""), [true, true, false, true]);
    assert_eq!(allowed("deny", "    - { from: any, to: db, ports: [tcp/1] }\n"), [true; 4], "an address has that name");
    let with_deny = "    - { from: any, to: db, ports: [tcp/1] }\n  deny:\n    - { from: log, to: db }\n";
    assert_eq!(allowed("deny", with_deny), [true, false, false, true], "what one may not, all may not");
    let to_any = "    - { from: web, to: any, ports: [tcp/1] }\n";
    assert_eq!(allowed("any-member", to_any), [true; 4]);
    assert_eq!(allowed("deny", to_any), [true, true, false, true], "a rule to `any` is one to this door as well");
}

#[test]
fn a_port_name_means_at_a_shared_address_what_each_workload_there_calls_by_it() {
    let text = "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: { name: d }\nspec:\n  trustDomain: t\n  \
                workloads:\n    - { name: web, select: { cgroup: /a }, ports: { main: tcp/1 } }\n    - { name: log, select: \
                { cgroup: /b }, ports: { main: tcp/2 } }\n    - { name: db, select: { cgroup: /c } }\n  groups:\n    - { name: \
                both, members: [web, log] }\n  allow: [{ from: db, to: both, ports: [any] }]\n  deny: [{ from: db, to: both, \
                ports: [main] }]\n";
    let policy = load(&[("d.yaml", text)]).unwrap().policy;
    let peers = "peers: [{ workload: web, addresses: [10.0.0.9] }, { workload: log, addresses: [10.0.0.9] }]";
    let peers = Peers::parse("peers.yaml", peers).unwrap();
    let map = compile(&policy, &CompileInput { peers: Some(&peers), ..CompileInput::default() }).unwrap();
    let (from, to) = (policy.identity_of("db").unwrap(), map.peer_of(&octets("10.0.0.9".parse().unwrap())));
    let allowed = [1, 2, 3].map(|port| {
        decide(&map, &Flow { from, to, proto: 6, port, direction: Direction::Egress }, &BootSeconds(5)).allow
    });
    assert_eq!(allowed, [false, false, true]);
}

#[test]
fn an_address_in_a_range_of_workloads_is_one_of_them_or_nobody() {
    let text = "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: { name: d }\nspec:\n  trustDomain: t\n  \
                workloads: [{ name: web, select: { cgroup: /a } }]\n  externals:\n    - { name: around, cidrs: [10.0.0.0/8] \
                }\n    - { name: within, cidrs: [10.9.1.0/24, 10.9.0.7/32] }\n    - { name: same, cidrs: [10.9.0.0/16] }\n";
    let policy = load(&[("d.yaml", text)]).unwrap().policy;
    let peers = "peers: [{ workload: web, addresses: [10.9.1.1, 10.1.1.1] }]\nranges: [10.9.0.0/16, \"fd09::/48\"]\n";
    let peers = Peers::parse("peers.yaml", peers).unwrap();
    let map = compile(&policy, &CompileInput { peers: Some(&peers), ..CompileInput::default() }).unwrap();
    let of = |text: &str| {
        let id = map.peer_of(&octets(text.parse().unwrap()));
        if id.is_unknown() { "unknown".to_owned() } else { map.names[&id].clone() }
    };
    let asked = ["10.9.1.1", "10.1.1.1", "10.9.1.2", "10.9.0.7", "10.9.255.1", "10.8.0.1", "fd09::1", "fd09:1::1"];
    let found = ["web", "web", "unknown", "unknown", "unknown", "around", "unknown", "world"];
    assert_eq!(asked.map(of), found);
}

#[test]
fn g90_a_step_of_the_wall_clock_moves_the_ends_that_are_written_in_it_and_nothing_else() {
    let text = "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: { name: d }\nspec:\n  trustDomain: t\n  workloads:\n    \
                - { name: a, select: { cgroup: /a } }\n    - { name: b, select: { cgroup: /b } }\n    - { name: c, select: { \
                cgroup: /c } }\n  allow:\n    - { from: a, to: b, ports: [any], expires: 2036-01-01T00:00:00Z }\n    - { from: a, \
                to: c, ports: [any] }\n";
    let policy = load(&[("d.yaml", text)]).unwrap().policy;
    let end = policy.rules.iter().find_map(|rule| rule.expires).unwrap();
    let flow = |to: &str| {
        let (from, to) = (policy.identity_of("a").unwrap(), policy.identity_of(to).unwrap());
        Flow { from, to, proto: 6, port: 1, direction: Direction::Egress }
    };
    // A machine that has been up for days when the rule ends, by a clock that was right; then it is set.
    let up = 200_000;
    for step in [-7_200, -1, 0, 1, 7_200, 80_000] {
        let boot_to_unix = end - up + step;
        let map = compile(&policy, &CompileInput { boot_to_unix, ..CompileInput::default() }).unwrap();
        for around in [-7_201, -1, 0, 1, 7_201] {
            let boot = up - step + around;
            let now = BootSeconds(u32::try_from(boot).unwrap());
            let by_rule = decide(&map, &flow("b"), &now);
            assert_eq!(by_rule.allow, boot + boot_to_unix < end, "step {step}, {around} s from the end");
            let for_ever = decide(&map, &flow("c"), &now);
            assert!(for_ever.allow && for_ever.valid_until == BootSeconds(0), "step {step}");
        }
    }
}
