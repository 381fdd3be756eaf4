//! The loaded programs against the specification: random policies, random packets, no traffic.
//!
//! Three answers must agree for every packet: the specification, which reads every rule; the compiled
//! entries, looked up on the host; and the verdict of the program that the kernel runs. Beside the
//! verdicts, the hits of each rule, the number of denials and the key of each denial must come out.
//!
//! A test run has a socket of no protocol in the cgroup of the caller. So the programs run inside an
//! actor, whose cgroup is labelled as the local end of each packet. The other end is
//!
//! - an address, with the packet on a device other than loopback, or at the programs of a device of the local end;
//! - a socket of a second actor, or the host itself, with the packet on loopback.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod frames;
mod runs;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant, SystemTime},
};

use agent_common::{
    flow::Direction,
    id::{BootSeconds, IdentityId, RuleNumber},
    layout::{AddrNames, DenyCounter, DenyKey, IdentSlot, hardware, ident_flags, names::program},
    verdict::{Mode, Reason},
};
use eastwall::{
    datapath::{Capacity, Device, Identities},
    policy::{
        ask::octets,
        compile::{CompileInput, compile},
        random::{self, Case, Random},
        spec::{Attempt, BUILTIN_DNS, Known, decide_naively},
    },
};
use runs::{Group, Run, Way};
use rustix::time::{ClockId, clock_gettime};
use tests::lab::{Actor, Cgroup, Guard, GuardOptions, Lab, Need, NetNs, Socket, VethEnd};

/// Pairs of a policy and a packet in one run of the test.
const PAIRS_MIN: usize = 100_000;
/// Packets for one policy.
const PACKETS: usize = 800;
/// No rule may expire while a policy is tried, or the three would answer at different times.
const CASE_MAX: Duration = Duration::from_secs(30);
/// The index of the loopback device.
const LOOPBACK: u32 = 1;
/// The cgroup at the root of the hierarchy.
const ROOT_CGROUP: u64 = 1;

struct Bench {
    local: Actor,
    egress: Socket,
    ingress: Socket,
    from: Socket,
    to: Socket,
    ifindex: u32,
    guard: Guard,
    local_cgroup: Cgroup,
    peer_cgroup: Cgroup,
    /// Holds the sockets of the other end.
    _peer: Actor,
    _nets: [NetNs; 2],
    _lab: Lab,
}

impl Bench {
    fn open() -> Option<Self> {
        let lab = Lab::open(&[Need::Ip])?;
        let capacity = Capacity { flows: 1 << 20, ..Capacity::default() };
        let mut guard = Guard::load(&lab, GuardOptions { capacity, devices: true, ..GuardOptions::default() });
        let nets = [NetNs::new(), NetNs::new()];
        NetNs::veth(
            VethEnd { netns: &nets[0], device: "near0", addrs: &["10.200.0.1/24"] },
            VethEnd { netns: &nets[1], device: "far0", addrs: &["10.200.0.2/24"] },
        );
        // "1000: near0@if1001: ..."
        let ifindex = nets[0].ip("-o link show dev near0").split(':').next().unwrap().parse().unwrap();
        let (local_cgroup, peer_cgroup) = (lab.cgroup().child("local"), lab.cgroup().child("peer"));
        let (local, peer) = (lab.actor(&local_cgroup, &nets[0]), lab.actor(&peer_cgroup, &nets[0]));
        for port in runs::PEER_PORTS {
            let addr = format!("[::]:{port}").parse().unwrap();
            peer.udp_bind(addr).unwrap();
            peer.tcp_listen(addr).unwrap();
        }
        let [egress, ingress, from, to] = [program::EGRESS, program::INGRESS, program::TC_FROM, program::TC_TO]
            .map(|name| local.take(guard.datapath().program(name).unwrap()));
        // A device that carries nothing else.
        let device = Device { index: LOOPBACK, netns: 0, hardware: hardware(frames::HARDWARE_ADDRESS) };
        let guarded = guard.inside(|kernel| nets[0].run(|| kernel.guard_device(&device, local_cgroup.id())));
        guarded.unwrap();
        for address in runs::local_addresses(u32::try_from(PACKETS).unwrap()) {
            guard.datapath().own_address(&octets(address), local_cgroup.id()).unwrap();
        }
        Some(Self {
            local,
            egress,
            ingress,
            from,
            to,
            ifindex,
            guard,
            local_cgroup,
            peer_cgroup,
            _peer: peer,
            _nets: nets,
            _lab: lab,
        })
    }

    /// Labels both ends as a group has them, and gives the verdicts on its packets.
    fn verdicts(&self, group: &Group, mode: Mode, runs: &[Run]) -> Vec<i32> {
        let slot = |id| {
            let mode = mode as u8;
            let flags = ident_flags::LABELLED;
            IdentSlot { id, ingress_mode: mode, egress_mode: mode, flags, ..IdentSlot::default() }
        };
        let label = |cgroup, id: agent_common::id::IdentityId| {
            self.guard.label(cgroup, (!id.is_unknown()).then(|| slot(id)));
        };
        label(self.local_cgroup.id(), group.local);
        let ifindex = match group.way {
            Way::Address => self.ifindex,
            Way::Device => LOOPBACK,
            Way::Socket | Way::Nobody => {
                label(self.peer_cgroup.id(), group.peer);
                0
            }
            Way::Host => {
                label(ROOT_CGROUP, group.peer);
                0
            }
        };
        let program = match (group.way, group.leaves) {
            (Way::Device, true) => self.from,
            (Way::Device, false) => self.to,
            (_, true) => self.egress,
            (_, false) => self.ingress,
        };
        self.local.test_run(program, ifindex, runs.iter().map(|run| run.frame.clone()).collect())
    }
}

/// What a program returns about a packet.
fn code(group: &Group, passes: bool) -> i32 {
    /// linux/bpf.h, `TCX_NEXT`, which a test run has as a number without a sign that is too large, and `TCX_DROP`.
    const AT_A_DEVICE: (i32, i32) = (i32::MAX, 2);
    match group.way {
        Way::Device if passes => AT_A_DEVICE.0,
        Way::Device => AT_A_DEVICE.1,
        _ => i32::from(passes),
    }
}

/// What the kernel side must have counted when a policy has been tried.
#[derive(Default)]
struct Books {
    hits: BTreeMap<RuleNumber, u64>,
    denied: u64,
    keys: BTreeSet<Vec<u8>>,
}

#[test]
fn the_kernel_programs_decide_as_the_specification_and_the_compiled_policy_do() {
    let Some(mut bench) = Bench::open() else { return };
    let seed = match std::env::var("EASTWALL_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() & u128::from(u64::MAX)).unwrap(),
    };
    let (mut pairs, mut policies, mut passed, mut reasons) = (0, 0, 0, BTreeMap::<&str, usize>::new());
    let (mut by_dns, mut by_name) = (BTreeMap::<_, usize>::new(), BTreeMap::<_, usize>::new());
    let (mut elsewhere, mut ways) = (BTreeMap::<_, usize>::new(), BTreeMap::<_, usize>::new());
    let begin = Instant::now();
    while pairs < PAIRS_MIN {
        let case = Case::new(seed.wrapping_add(policies), 0);
        for (way, run) in try_case(&mut bench, &case) {
            pairs += 1;
            passed += usize::from(run.passes);
            *by_dns.entry((run.attempt.direction, run.attempt.here)).or_default() += usize::from(run.by_dns);
            *by_name.entry(run.attempt.direction).or_default() += usize::from(run.by_name);
            *ways.entry((way, run.attempt.direction, run.passes)).or_default() += 1;
            if run.is_elsewhere {
                *elsewhere.entry((run.attempt.direction, run.reason.name())).or_default() += 1;
            }
            *reasons.entry(run.reason.name()).or_default() += 1;
        }
        policies += 1;
    }
    println!(
        "seed {seed}: {pairs} packets under {policies} policies in {:.1?}, {passed} passed; {reasons:?}; by dns {by_dns:?}; by name {by_name:?}; workloads of other hosts {elsewhere:?}; ways {ways:?}",
        begin.elapsed()
    );
    // The comparison is worth nothing if the packets are all alike.
    assert!(passed > pairs / 10 && passed < pairs * 9 / 10, "{passed} of {pairs} passed");
    for way in [(Direction::Egress, false), (Direction::Egress, true), (Direction::Ingress, true)] {
        assert!(by_dns.get(&way).is_some_and(|&n| n > 10), "the built-in is rare: {by_dns:?}");
    }
    for direction in [Direction::Egress, Direction::Ingress] {
        assert!(by_name.get(&direction).is_some_and(|&n| n > 10), "names by DNS decide little: {by_name:?}");
    }
    for (direction, nobody) in [(Direction::Egress, Reason::UnknownTarget), (Direction::Ingress, Reason::UnknownCaller)]
    {
        for reason in [Reason::Allowed, Reason::NoRule, Reason::DenyRule, nobody] {
            let n = elsewhere.get(&(direction, reason.name()));
            assert!(n.is_some_and(|&n| n > 50), "{direction:?} {reason:?} is rare: {elsewhere:?}");
        }
    }
    let every = [
        Reason::NoRule,
        Reason::DenyRule,
        Reason::OverrideDeny,
        Reason::Expired,
        Reason::UnknownSelf,
        Reason::UnknownCaller,
        Reason::UnknownTarget,
        Reason::NoFlow,
        Reason::Fragment,
        Reason::Malformed,
    ];
    for reason in every {
        assert!(reasons.get(reason.name()).is_some_and(|&n| n > 50), "{reason:?} is rare: {reasons:?}");
    }
}

/// Puts the policy of a case in force and compares every answer. Returns the packets, and the way of each.
fn try_case(bench: &mut Bench, case: &Case) -> Vec<(Way, Run)> {
    let mut random = Random::new(case.seed ^ 0x6b65_726e_656c);
    let mode = *random.pick(&[Mode::Enforce, Mode::Enforce, Mode::Enforce, Mode::Enforce, Mode::Audit, Mode::Observe]);
    let unix = a_quiet_time(case, &mut random);
    let boot = clock_gettime(ClockId::Boottime).tv_sec;
    let resolvers = runs::resolvers(case, &mut random);
    let input = CompileInput { boot_to_unix: unix - boot, resolvers: Some(&resolvers), ..case.input() };
    let known = Known { resolvers: resolvers.addresses(), peers: &case.peers };
    let mut map = compile(&case.policy, &input).unwrap();
    map.unknown_mode = Some(mode);
    let begin = Instant::now();
    // A flow of an earlier case would still be running, for which names that have run out count on.
    bench.guard.forget_flows();
    bench.guard.put_in_force(&map, &Identities::default()).unwrap();
    note_answers(bench, case, u32::try_from(boot).unwrap());
    bench.guard.look();

    let mut groups: BTreeMap<Group, Vec<Run>> = BTreeMap::new();
    let mut books = Books::default();
    for n in 0..PACKETS {
        let mut attempt = case.attempt(&mut random);
        attempt.now = unix;
        let (group, mut run) = runs::run(case, &map, attempt, u32::try_from(n).unwrap(), &mut random);
        if run.reason == Reason::Allowed {
            let spec = decide_naively(&case.policy, &case.overrides, &known, &run.attempt);
            let flow = random::flow(&case.policy, &map, &run.attempt);
            let now = BootSeconds(u32::try_from(boot).unwrap());
            let compiled =
                map.decide_at(&flow, &case.named(&run.attempt), run.attempt.asked.unwrap(), run.attempt.here, &now);
            let by_dns = spec.rule.as_deref() == Some(BUILTIN_DNS);
            let rule = spec.rule.as_ref().filter(|_| !by_dns);
            let rule = rule.map(|id| map.rule_ids.iter().position(|other| other == id).unwrap() + 1);
            let hit = RuleNumber(u32::try_from(rule.unwrap_or(0)).unwrap());
            let rule = if by_dns { RuleNumber::BUILTIN_DNS } else { hit };
            assert_eq!(
                (compiled.allow, compiled.reason, compiled.rule),
                (spec.allow, spec.reason, rule),
                "seed {}, compiled against specified: {run:?}\n{}\n{:#?}",
                case.seed,
                case.text,
                case.overrides
            );
            let is_self = !group.way.is_by_address() && group.local == group.peer && !group.local.is_unknown();
            if !is_self {
                run.reason = spec.reason;
                // What no rule matched is a hit of the default, whatever a built-in makes of it.
                *books.hits.entry(hit).or_default() += 1;
                run.by_dns = by_dns;
                let nameless = Attempt { named: BTreeSet::new(), ..run.attempt.clone() };
                let nameless = decide_naively(&case.policy, &case.overrides, &known, &nameless);
                run.by_name = nameless.allow != spec.allow;
            }
        }
        let binds = mode == Mode::Enforce || run.reason == Reason::OverrideDeny;
        run.passes = run.reason == Reason::Allowed || !binds;
        if run.reason != Reason::Allowed && (mode != Mode::Observe || binds) {
            books.denied += 1;
            if let Some(key) = runs::deny_key(&group, &run, bench.local_cgroup.id()) {
                books.keys.insert(zerocopy::IntoBytes::as_bytes(&key).to_vec());
            }
        }
        groups.entry(group).or_default().push(run);
    }
    for (group, runs) in &groups {
        let verdicts = bench.verdicts(group, mode, runs);
        for (run, verdict) in runs.iter().zip(verdicts) {
            assert_eq!(
                verdict,
                code(group, run.passes),
                "seed {}, the kernel under {mode:?}: {group:?} {run:?}\nrules {:?}\n{}\n{:#?}\nit says {:#?}",
                case.seed,
                map.rule_ids,
                case.text,
                case.overrides,
                bench.guard.look()
            );
        }
    }
    compare_books(bench, case, &books);
    assert!(begin.elapsed() < CASE_MAX, "seed {}: a rule may have expired meanwhile", case.seed);
    groups.into_iter().flat_map(|(group, runs)| runs.into_iter().map(move |run| (group.way, run))).collect()
}

/// Gives addresses the names that answers of resolvers would have given them, and one that has run out.
fn note_answers(bench: &mut Bench, case: &Case, now: u32) {
    let kernel = bench.guard.datapath();
    for address in kernel.dns_addresses().unwrap().into_keys() {
        kernel.note_dns(address, &AddrNames::default()).unwrap();
    }
    let by_dns = case.policy.externals.values().find(|external| !external.dns.is_empty());
    for (address, names) in &case.answers {
        let mut entry = AddrNames::default();
        for ((place, until), name) in entry.names.iter_mut().zip(&mut entry.until).zip(names) {
            (*place, *until) = (case.policy.identity_of(name).unwrap(), now + 1_000);
        }
        let over = by_dns.filter(|external| !names.contains(&external.name));
        (entry.names[3], entry.until[3]) = (over.map_or(IdentityId(0), |external| external.id.number()), now - 1);
        kernel.note_dns(octets(*address), &entry).unwrap();
    }
}

fn compare_books(bench: &mut Bench, case: &Case, books: &Books) {
    let hits = bench.guard.datapath().hits().unwrap();
    let hits: BTreeMap<RuleNumber, u64> = hits.into_iter().map(|(rule, stat)| (rule, stat.decisions)).collect();
    assert_eq!(hits, books.hits, "seed {}: hits by rule", case.seed);
    let named = |key: &DenyKey| {
        !matches!(Reason::from_u8(key.reason), Some(Reason::NoFlow | Reason::Fragment | Reason::Malformed))
    };
    let repeats = bench.guard.repeats();
    let keys = repeats.iter().map(|(key, _)| *key).filter(named);
    let keys: BTreeSet<Vec<u8>> = keys.map(|key| zerocopy::IntoBytes::as_bytes(&key).to_vec()).collect();
    let read = |keys: Vec<&Vec<u8>>| -> Vec<DenyKey> {
        keys.into_iter().map(|key| zerocopy::FromBytes::read_from_bytes(key).unwrap()).collect()
    };
    assert!(
        keys == books.keys,
        "seed {}: denied only in the kernel {:#?}, only by the specification {:#?}",
        case.seed,
        read(keys.difference(&books.keys).collect()),
        read(books.keys.difference(&keys).collect())
    );
    let mut denials = bench.guard.look();
    denials.repeats = repeats.iter().map(|(_, stat)| stat.count).sum();
    denials.balance().unwrap();
    assert_eq!(denials.count(DenyCounter::Denied), books.denied, "seed {}: denials", case.seed);
}

/// A time near the end of a rule, at which for a while no rule ends.
fn a_quiet_time(case: &Case, random: &mut Random) -> i64 {
    let ends: Vec<i64> = case.policy.rules.iter().chain(&case.overrides).filter_map(|rule| rule.expires).collect();
    let quiet = i64::try_from(CASE_MAX.as_secs()).unwrap() + 1;
    loop {
        let near = if ends.is_empty() { 2_000_000_000 } else { *random.pick(&ends) };
        let unix = near + i64::try_from(random.below(1_200)).unwrap() - 600;
        if !ends.iter().any(|end| (unix - 1..=unix + quiet).contains(end)) {
            return unix;
        }
    }
}
