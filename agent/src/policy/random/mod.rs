//! Random policies with the flows that find a mistake in them, and what the specification says about
//! each: for the host tests, and for comparing the loaded kernel programs with the same cases.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use agent_common::{
    flow::{Direction, Flow, proto},
    id::{BootSeconds, IdentityId, RuleNumber},
    verdict::Decision,
};

use super::{
    ask::octets,
    compile::{CompileInput, RANGES_PER_EDGE_MAX, compile},
    load::load,
    map_state::MapState,
    model::{Action, Place, Policy, PortRange, PortSpec, Rule},
    resolvers::Resolvers,
    spec::{Answer, Attempt, BUILTIN_DNS, End, decide_naively},
};

/// Unix seconds around which rules expire and flows are tried.
const NOON: i64 = 2_000_000_000;
const WORKLOADS: [&str; 6] = ["web", "cart", "db", "pay/api", "log", "probe"];
const DERIVED: [&str; 3] = ["unit/cron.service", "user/1000", "node/h1"];
/// Nested and overlapping, so that addresses carry several names.
const CIDRS: [&str; 12] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.2.0/24",
    "10.1.2.3/32",
    "198.51.100.0/24",
    "198.51.100.128/25",
    "::/0",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::7/128",
    "fd00::/8",
];
const ADDRESSES: [&str; 11] = [
    "10.1.2.3",
    "10.1.2.4",
    "10.1.3.1",
    "10.9.9.9",
    "11.0.0.1",
    "198.51.100.127",
    "198.51.100.128",
    "2001:db8:1::7",
    "2001:db8:2::1",
    "2002::1",
    "::ffff:10.1.2.3",
];
const PORTS: [&str; 13] = [
    "any",
    "tcp/any",
    "udp/any",
    "tcp/80",
    "tcp/80-90",
    "tcp/91",
    "tcp/92",
    "tcp/8080",
    "udp/53",
    "icmp/echo",
    "tcp/1-65535",
    "sctp/7",
    "tcp/65535",
];
/// Every workload has these names; what they mean differs.
const NAMED: [&str; 2] = ["main", "side"];

/// SplitMix64: small, and the same everywhere, so that a seed names one case for ever.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// Returns the generator of a seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.number() % end).unwrap_or_default()
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of several.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }
}

/// One flow, and what the specification says about it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// As people see it.
    pub attempt: Attempt,
    /// As the maps see it.
    pub flow: Flow,
    /// When, on the boot clock.
    pub now: BootSeconds,
    /// What must come out.
    pub expected: Decision,
}

/// A random policy, compiled, with flows.
#[derive(Clone, Debug)]
pub struct Case {
    /// Names the case for ever.
    pub seed: u64,
    /// What a human would have written.
    pub text: String,
    /// The policy.
    pub policy: Policy,
    /// Overrides in force.
    pub overrides: Vec<Rule>,
    /// What must be added to the boot clock to get Unix time, in seconds.
    pub boot_to_unix: i64,
    /// Whom the built-in `dns` lets every workload ask.
    pub resolvers: Resolvers,
    /// Externals that live answers of resolvers name with an address.
    pub answers: BTreeMap<IpAddr, BTreeSet<String>>,
    /// The compiled form.
    pub map: MapState,
    /// Flows with their expected decision.
    pub samples: Vec<Sample>,
}

impl Case {
    /// Returns the case of a seed, with `samples` flows.
    ///
    /// # Panics
    ///
    /// If the policy written here cannot be loaded or compiled: then that is what the case has found.
    #[must_use]
    pub fn new(seed: u64, samples: usize) -> Self {
        let mut random = Random::new(seed);
        // Whole hours and odd seconds alike.
        let boot_to_unix = NOON - 5_000 - i64::try_from(random.below(10_000)).unwrap_or_default();
        // Half of the policies have more rules than one edge can hold, and most of those fit all the same.
        let budget = if random.one_in(2) { RANGES_PER_EDGE_MAX } else { 60 };
        let resolvers = resolvers(&mut random);
        let (text, policy, overrides, map) = loop {
            let text = policy_text(&mut random, budget);
            let policy = load(&[("random.yaml", &text)]).map(|loaded| loaded.policy);
            let policy = policy.unwrap_or_else(|findings| panic!("seed {seed}: {findings:#?}\n{text}"));
            let overrides = overrides(&mut random);
            let input = CompileInput {
                boot_to_unix,
                overrides: &overrides,
                resolvers: Some(&resolvers),
                ..CompileInput::default()
            };
            match compile(&policy, &input) {
                Ok(map) => break (text, policy, overrides, map),
                Err(findings) => {
                    let only_limits = findings.iter().all(|finding| finding.code == super::finding::Code::E15);
                    assert!(only_limits, "seed {seed}: {findings:#?}\n{text}");
                }
            }
        };
        let answers = answers(&mut random, &policy);
        let mut case =
            Self { seed, text, policy, overrides, boot_to_unix, resolvers, answers, map, samples: Vec::new() };
        case.samples = (0..samples).map(|_| case.sample(&mut random)).collect();
        case
    }

    fn sample(&self, random: &mut Random) -> Sample {
        let attempt = self.attempt(random);
        let flow = flow(&self.policy, &self.map, &attempt);
        let boot = u32::try_from(attempt.now - self.boot_to_unix).unwrap_or(1);
        let answer = decide_naively(&self.policy, &self.overrides, self.resolvers.addresses(), &attempt);
        Sample { flow, now: BootSeconds(boot), expected: self.decision(&answer), attempt }
    }

    /// A flow to try, mostly near a rule.
    pub fn attempt(&self, random: &mut Random) -> Attempt {
        let rules: Vec<&Rule> = self.policy.rules.iter().chain(&self.overrides).collect();
        // Mostly near a rule: flows far from every rule are all alike.
        let near = if rules.is_empty() || random.one_in(6) { None } else { Some(*random.pick(&rules)) };
        let from = self.end(random, near.map(|rule| rule.from.as_str()));
        let to = self.end(random, near.map(|rule| rule.to.as_str()));
        let range = near.filter(|_| !random.one_in(5)).and_then(|rule| self.range(random, rule, &to));
        let (proto, port) = match range {
            Some(range) => {
                let proto = if range.proto == 0 { any_proto(random) } else { range.proto };
                let ports = [range.lo, range.hi, range.lo.wrapping_sub(1), range.hi.wrapping_add(1)];
                (if random.one_in(8) { any_proto(random) } else { proto }, *random.pick(&ports))
            }
            None => (any_proto(random), u16::try_from(random.number() & 0xffff).unwrap_or_default()),
        };
        let end = near.and_then(|rule| rule.expires).unwrap_or(NOON);
        let now = end + [-1, 0, 1, -500, 500, 3_000][random.below(6)];
        let direction = *random.pick(&[Direction::Egress, Direction::Ingress]);
        let here = !matches!(from, End::Address(_));
        let now = now.max(self.boot_to_unix + 1);
        let named = BTreeSet::new();
        let mut attempt = Attempt { from, to, proto, port, direction, asked: None, here, named, now };
        if random.one_in(10) {
            self.ask_resolver(random, &mut attempt);
        }
        if let End::Address(address) = attempt.to {
            attempt.asked = Some(address);
        }
        let other = if direction == Direction::Egress { &attempt.to } else { &attempt.from };
        if let End::Address(address) = other {
            attempt.named = self.names_at(*address);
        }
        attempt
    }

    /// The externals that answers name with an address.
    #[must_use]
    pub fn names_at(&self, address: IpAddr) -> BTreeSet<String> {
        self.answers.get(&address.to_canonical()).cloned().unwrap_or_default()
    }

    /// The numbers of the externals that answers name with the other end of an attempt.
    #[must_use]
    pub fn named(&self, attempt: &Attempt) -> Vec<IdentityId> {
        attempt.named.iter().filter_map(|name| self.policy.identity_of(name)).collect()
    }

    /// Makes a flow to a resolver of it, or nearly.
    fn ask_resolver(&self, random: &mut Random, attempt: &mut Attempt) {
        let Some(&resolver) = self.resolvers.addresses().get(random.below(3)) else { return };
        attempt.asked = Some(if random.one_in(8) { address(random) } else { resolver });
        attempt.port = *random.pick(&[53, 53, 53, 53, 54]);
        attempt.proto = *random.pick(&[proto::TCP, proto::UDP, proto::UDP, proto::UDP, proto::UDPLITE]);
        if attempt.direction == Direction::Egress && !random.one_in(4) {
            attempt.to = End::Address(resolver);
        }
    }

    /// Returns an end that carries `name`, or another one now and then.
    fn end(&self, random: &mut Random, name: Option<&str>) -> End {
        if random.one_in(25) {
            return End::Unknown;
        }
        let name = name.filter(|_| !random.one_in(6));
        let name = match name.and_then(|name| self.policy.groups.get(name)) {
            Some(members) => Some(random.pick(members).as_str()),
            None => name.filter(|name| *name != "any"),
        };
        match name {
            Some(name) if name != "world" && !(self.policy.externals.contains_key(name) && random.one_in(2)) => {
                End::Named(name.to_owned())
            }
            Some(_) => End::Address(address(random)),
            None => match random.below(6) {
                0 | 1 => End::Address(address(random)),
                2 => End::Named((*random.pick(&DERIVED)).to_owned()),
                3 => End::Named("world".to_owned()),
                _ => {
                    let names: Vec<&String> =
                        self.policy.workloads.keys().chain(self.policy.externals.keys()).collect();
                    End::Named((*random.pick(&names)).clone())
                }
            },
        }
    }

    fn range(&self, random: &mut Random, rule: &Rule, to: &End) -> Option<PortRange> {
        match (random.pick(&rule.ports), to) {
            (PortSpec::Range(range), _) => Some(*range),
            (PortSpec::Named(port), End::Named(name)) => self.policy.workloads.get(name)?.ports.get(port).copied(),
            (PortSpec::Named(_), _) => None,
        }
    }

    fn decision(&self, answer: &Answer) -> Decision {
        let Answer { allow, reason, rule, expires } = answer;
        if rule.as_deref() == Some(BUILTIN_DNS) {
            return Decision::builtin(RuleNumber::BUILTIN_DNS);
        }
        let number = rule.as_ref().and_then(|id| self.map.rule_ids.iter().position(|other| other == id));
        let number = number.and_then(|index| u32::try_from(index + 1).ok()).unwrap_or(0);
        let until = expires.map_or(0, |unix| u32::try_from(unix - self.boot_to_unix).unwrap_or(1));
        Decision { allow: *allow, reason: *reason, rule: RuleNumber(number), valid_until: BootSeconds(until) }
    }
}

/// Returns the flow that an attempt becomes under the prefixes of `map`.
#[must_use]
pub fn flow(policy: &Policy, map: &MapState, attempt: &Attempt) -> Flow {
    let id = |end: &End| match end {
        End::Unknown => IdentityId::UNKNOWN,
        End::Named(name) => policy.identity_of(name).unwrap_or(IdentityId::UNKNOWN),
        End::Address(address) => map.peer_of(&octets(*address)),
    };
    let Attempt { from, to, proto, port, direction, asked: _, here: _, named: _, now: _ } = attempt;
    Flow { from: id(from), to: id(to), proto: *proto, port: *port, direction: *direction }
}

fn address(random: &mut Random) -> IpAddr {
    match random.below(8) {
        0 => Ipv4Addr::from_bits(u32::try_from(random.number() >> 32).unwrap_or_default()).into(),
        1 => Ipv6Addr::from_bits(u128::from(random.number()) << 64 | u128::from(random.number())).into(),
        _ => {
            let text = random.pick(&ADDRESSES);
            text.parse().unwrap_or_else(|_| panic!("`{text}` is an address"))
        }
    }
}

/// Names for some of the addresses that are tried most.
fn answers(random: &mut Random, policy: &Policy) -> BTreeMap<IpAddr, BTreeSet<String>> {
    let by_dns: Vec<&String> =
        policy.externals.values().filter(|external| !external.dns.is_empty()).map(|external| &external.name).collect();
    let mut answers: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
    for text in ADDRESSES.iter().filter(|_| !by_dns.is_empty()) {
        let address: IpAddr = text.parse().unwrap_or_else(|_| panic!("`{text}` is an address"));
        for _ in 0..random.below(3) {
            answers.entry(address.to_canonical()).or_default().insert((*random.pick(&by_dns)).clone());
        }
    }
    answers
}

/// None, or up to three.
fn resolvers(random: &mut Random) -> Resolvers {
    let addresses: Vec<IpAddr> = (0..random.below(4)).map(|_| address(random)).collect();
    // What cannot be one leaves the case without any, as an empty list does.
    Resolvers::try_from(addresses).unwrap_or_default()
}

fn any_proto(random: &mut Random) -> u8 {
    *random.pick(&[proto::TCP, proto::TCP, proto::UDP, proto::ICMP, proto::SCTP, proto::UDPLITE, 47])
}

/// Writes a policy whose rules have about `budget` port ranges in all.
fn policy_text(random: &mut Random, budget: usize) -> String {
    let mut text = "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: { name: random }\nspec:\n  trustDomain: random.example\n".to_owned();
    let mut line = |line: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{line}");
    };
    let workloads = &WORKLOADS[..2 + random.below(WORKLOADS.len() - 1)];
    line("  workloads:".to_owned());
    for name in workloads {
        let main = random.pick(&["tcp/80", "tcp/8080", "tcp/80-90", "udp/53"]);
        let side = random.pick(&["tcp/9090", "tcp/91", "sctp/7"]);
        line(format!(
            "    - {{ name: {name}, select: {{ cgroup: /{name} }}, ports: {{ main: {main}, side: {side} }} }}"
        ));
    }
    let externals: Vec<String> = (0..random.below(5)).map(|n| format!("ext{n}")).collect();
    if !externals.is_empty() {
        line("  externals:".to_owned());
    }
    let mut by_dns: Vec<&str> = Vec::new();
    for name in &externals {
        let cidrs: Vec<&str> = (0..=random.below(3)).map(|_| *random.pick(&CIDRS)).collect();
        let inside = |text: &&&str| cidrs.iter().any(|outer| covers(outer, text));
        let except: Vec<&str> = CIDRS.iter().filter(inside).filter(|_| random.one_in(5)).copied().collect();
        let except = if except.is_empty() { String::new() } else { format!(", except: [{}]", quoted(&except)) };
        let dns = if random.one_in(2) { format!(", dns: [{name}.example]") } else { String::new() };
        if !dns.is_empty() {
            by_dns.push(name.as_str());
        }
        line(format!("    - {{ name: {name}, cidrs: [{}]{except}{dns} }}", quoted(&cidrs)));
    }
    let plain: Vec<&str> = workloads.iter().copied().chain(externals.iter().map(String::as_str)).collect();
    line("  groups:".to_owned());
    line(format!("    - {{ name: servers, members: [{}, {}] }}", random.pick(workloads), random.pick(workloads)));
    let member = *random.pick(&plain);
    line(format!("    - {{ name: mixed, members: [servers, {member}] }}"));
    if by_dns.contains(&member) {
        by_dns.push("mixed");
    }
    let mut names = plain;
    names.extend(["servers", "mixed", "any", "any", "world"]);
    names.extend(DERIVED);
    for (action, share) in [("allow", 2), ("deny", 3)] {
        line(format!("  {action}:"));
        let mut ranges = 0;
        let mut number = 0;
        while ranges < budget / share || number == 0 {
            let (from, to) = (*random.pick(&names), *random.pick(&names));
            // Of a name not every address is known, so none is denied.
            if action == "deny" && (by_dns.contains(&from) || by_dns.contains(&to)) {
                number += 1;
                continue;
            }
            let mut ports: Vec<&str> = (0..=random.below(2)).map(|_| *random.pick(&PORTS)).collect();
            if (workloads.contains(&to) || to == "servers") && random.one_in(2) {
                ports.push(*random.pick(&NAMED));
            }
            ranges += ports.len();
            let expires = if random.one_in(3) { expiry(random) } else { String::new() };
            // Ids sort across the actions, so that numbers and levels disagree.
            let id = format!("r{:02}-{action}-{number}", random.below(100));
            line(format!("    - {{ id: {id}, from: {from}, to: {to}, ports: [{}]{expires} }}", ports.join(", ")));
            number += 1;
        }
    }
    text
}

fn expiry(random: &mut Random) -> String {
    let unix = NOON - 1_000 + i64::try_from(random.below(2_000)).unwrap_or_default();
    // Now and then before the boot, or after the clock of the kernel ends.
    let unix = match random.below(12) {
        0 => 1_000_000,
        _ => unix,
    };
    format!(", expires: {}", super::time::format(unix))
}

fn quoted(texts: &[&str]) -> String {
    texts.iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(", ")
}

fn covers(outer: &str, inner: &str) -> bool {
    use super::model::Cidr;
    match (Cidr::parse(outer), Cidr::parse(inner)) {
        (Ok(outer), Ok(inner)) => outer.covers(&inner),
        _ => false,
    }
}

fn overrides(random: &mut Random) -> Vec<Rule> {
    let names: Vec<&str> = WORKLOADS[..2].iter().copied().chain(["any", "world", "servers"]).collect();
    let mut rules = Vec::new();
    for number in 0..random.below(4) {
        let action = *random.pick(&[Action::OverrideDeny, Action::OverrideAllow]);
        let port = *random.pick(&[PortRange::ANY, PortRange { proto: proto::TCP, lo: 80, hi: 90 }]);
        rules.push(Rule {
            id: format!("{}-{number}", random.pick(&["ov", "zz"])),
            action,
            from: (*random.pick(&names)).to_owned(),
            to: (*random.pick(&names)).to_owned(),
            ports: vec![PortSpec::Range(port)],
            expires: Some(NOON - 500 + i64::try_from(random.below(1_000)).unwrap_or_default()),
            reason: None,
            owner: None,
            ticket: None,
            place: Place::default(),
        });
    }
    rules
}
