//! Random policies with the flows that find a mistake in them, and what the specification says about
//! each: for the host tests, and for comparing the loaded kernel programs with the same cases.

mod write;

use std::{
    collections::{BTreeMap, BTreeSet},
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
    model::{Policy, PortRange, PortSpec, Rule},
    peers::Peers,
    resolvers::Resolvers,
    spec::{Answer, Attempt, BUILTIN_DNS, End, Known, decide_naively},
};

/// Unix seconds around which rules expire and flows are tried.
const NOON: i64 = 2_000_000_000;
const DERIVED: [&str; 3] = ["unit/cron.service", "user/1000", "node/h1"];
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
    /// Who is where on other hosts.
    pub peers: Peers,
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
        let peers = if random.one_in(2) { Peers::default() } else { peers(&mut random) };
        let (text, policy, overrides, map) = loop {
            let text = write::policy(&mut random, budget);
            let policy = load(&[("random.yaml", &text)]).map(|loaded| loaded.policy);
            let policy = policy.unwrap_or_else(|findings| panic!("seed {seed}: {findings:#?}\n{text}"));
            let overrides = write::overrides(&mut random);
            let input = CompileInput {
                boot_to_unix,
                overrides: &overrides,
                resolvers: Some(&resolvers),
                peers: Some(&peers),
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
            Self { seed, text, policy, overrides, boot_to_unix, resolvers, peers, answers, map, samples: Vec::new() };
        case.samples = (0..samples).map(|_| case.sample(&mut random)).collect();
        case
    }

    /// What the case was compiled with.
    #[must_use]
    pub const fn input(&self) -> CompileInput<'_> {
        CompileInput {
            boot_to_unix: self.boot_to_unix,
            overrides: self.overrides.as_slice(),
            resolvers: Some(&self.resolvers),
            answers: None,
            peers: Some(&self.peers),
        }
    }

    fn sample(&self, random: &mut Random) -> Sample {
        let attempt = self.attempt(random);
        let flow = flow(&self.policy, &self.map, &attempt);
        let boot = u32::try_from(attempt.now - self.boot_to_unix).unwrap_or(1);
        let known = Known { resolvers: self.resolvers.addresses(), peers: &self.peers };
        let answer = decide_naively(&self.policy, &self.overrides, &known, &attempt);
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

    /// The externals that answers name with an address. Whoever is there says more than they do.
    #[must_use]
    pub fn names_at(&self, address: IpAddr) -> BTreeSet<String> {
        let address = address.to_canonical();
        match self.peers.names(address) {
            Some(_) => BTreeSet::new(),
            None => self.answers.get(&address).cloned().unwrap_or_default(),
        }
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
        let is_there = |(address, there): (IpAddr, &BTreeSet<String>)| there.contains(name?).then_some(address);
        let elsewhere: Vec<IpAddr> = self.peers.iter().filter_map(is_there).collect();
        match name {
            Some(_) if !elsewhere.is_empty() && random.one_in(2) => End::Address(*random.pick(&elsewhere)),
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
            (PortSpec::Named(port), End::Address(address)) => {
                let there: Vec<&String> = self.peers.names(address.to_canonical())?.iter().collect();
                self.policy.workloads.get(*random.pick(&there))?.ports.get(port).copied()
            }
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

fn peers(random: &mut Random) -> Peers {
    let text = write::peers(random);
    Peers::parse("random.peers", &text).unwrap_or_else(|error| panic!("{error}\n{text}"))
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
