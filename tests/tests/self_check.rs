//! What was written to the maps is compared with what was compiled before it comes into force.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use agent_common::{
    decide::decide,
    id::{BootSeconds, IdentityId},
    layout::{AddrEntry, EdgeEntry, EdgeKey, IdentSlot, LAYOUT_VERSION, Settings, SpillEntry, names::map},
};
use eastwall::{
    datapath::{Datapath, DatapathError, Identities, Prepared, Questions, Table, open_pin},
    policy::{map_state::MapState, random::Case, sample},
};
use tests::{
    lab::{AgentOptions, Guard, GuardOptions, Lab, Need},
    scene::{LOOPBACK, Scene},
};

const OPEN: &str = "[{ from: web, to: db, ports: [tcp/5432] }]";

/// Spoils a side that was filled.
type Spoil = fn(&Prepared, &Case, &Datapath, &Identities);

fn check(
    datapath: &Datapath,
    prepared: &Prepared,
    case: &Case,
    identities: &Identities,
) -> Result<usize, DatapathError> {
    let (state, now) = (&case.map, BootSeconds(1));
    let (flows, addresses) = (sample::flows(state, 500, 7), sample::addresses(state, 500, 7));
    datapath.check(prepared, &Questions { state, identities, flows: &flows, addresses: &addresses, now })
}

/// An edge without a wildcard that leaves ports below its only range.
fn exact(case: &Case) -> Option<EdgeKey> {
    let is_exact = |key: &EdgeKey| key.from != IdentityId::ANY && key.to != IdentityId::ANY;
    case.map.edges.iter().find(|(key, e)| is_exact(key) && e.count == 1 && e.ranges[0].lo > 0).map(|(key, _)| *key)
}

/// Says whether a flow that is asked about is decided by a range beyond the third of its edge.
fn spill_decides(state: &MapState) -> bool {
    let lost = MapState { spill: vec![SpillEntry::default(); state.spill.len()], ..state.clone() };
    let decide = |state, flow| decide(state, flow, &BootSeconds(1));
    sample::flows(state, 500, 7).iter().any(|flow| decide(state, flow) != decide(&lost, flow))
}

#[test]
fn a_side_that_does_not_say_what_was_written_is_found_before_the_flip() {
    let Some(lab) = Lab::open(&[Need::Agent]) else { return };
    let mut guard = Guard::load(&lab, GuardOptions::default());
    let mut cases = (0..1000).map(|seed| Case::new(seed, 0));
    // In a side that is not full, so that an edge can be added.
    let has_room = |case: &Case| (11..64).contains(&case.map.edges.len());
    let case = cases.find(|case| has_room(case) && spill_decides(&case.map) && exact(case).is_some()).unwrap();
    assert!(case.map.prefixes.len() > 2);
    let mut identities = Identities::default();
    let mut slot = IdentSlot { id: IdentityId(500), ..Default::default() };
    identities.cgroups.insert(77, slot);
    slot.id = IdentityId(501);
    identities.cgroups.insert(78, slot);
    let spoils: [(&str, &str, Spoil); 8] = [
        ("an edge that allows what it denied, or the reverse", "proto-", |p, case, _, _| {
            let key = exact(case).unwrap();
            let mut entry = case.map.edges[&key];
            entry.ranges[0].flags ^= 1;
            p.edges.put(&key, &entry).unwrap();
        }),
        ("an edge that opens another port", "proto-", |p, case, _, _| {
            let key = exact(case).unwrap();
            let mut entry = case.map.edges[&key];
            entry.ranges[0].lo = 0;
            entry.ranges[0].hi = u16::MAX;
            p.edges.put(&key, &entry).unwrap();
        }),
        ("edges that are lost", "proto-", |p, case, _, _| {
            for key in case.map.edges.keys() {
                assert!(p.edges.remove(key).unwrap());
            }
        }),
        ("an edge of nobody with nobody, which opens everything", "proto-", |p, case, _, _| {
            let any = EdgeKey { from: IdentityId::ANY, to: IdentityId::ANY };
            let mut entry = EdgeEntry { count: 1, ..EdgeEntry::default() };
            entry.ranges[0].hi = u16::MAX;
            entry.ranges[0].flags = 1;
            entry.ranges[0].rule = u32::try_from(case.map.rule_ids.len()).unwrap();
            p.edges.put(&any, &entry).unwrap();
        }),
        ("a spill that is lost", "proto-", |p, case, _, _| {
            for index in 0..case.map.spill.len() {
                p.spill.put(&u32::try_from(index).unwrap(), &Default::default()).unwrap();
            }
        }),
        ("an address that is somebody else", "the address", |p, case, _, _| {
            for prefix in case.map.prefixes.keys() {
                p.prefixes.put(prefix, &AddrEntry { id: IdentityId(499), flags: 0 }).unwrap();
            }
        }),
        ("a cgroup that is somebody else", "the cgroup 78", |_, _, datapath, identities| {
            datapath.label(78, identities.cgroups[&77]).unwrap();
        }),
        ("a cgroup that is nobody", "the cgroup 77", |_, _, datapath, _| {
            datapath.label(77, Default::default()).unwrap();
        }),
    ];
    for (what, says, spoil) in spoils {
        guard.inside(|datapath| {
            let before = datapath.in_force();
            let prepared = datapath.prepare(&case.map, Settings::default(), &identities).unwrap();
            // Positive control.
            let agreed = check(datapath, &prepared, &case, &identities).unwrap();
            assert!(agreed > 100, "{agreed}");
            spoil(&prepared, &case, datapath, &identities);
            let error = check(datapath, &prepared, &case, &identities).expect_err(what);
            let text = error.to_string();
            assert!(matches!(error, DatapathError::Differs { .. }) && text.contains(says), "{what}: {text}");
            assert!(text.contains("the policy before stays in force"), "{text}");
            println!("{what}: {text}");
            assert_eq!(datapath.in_force(), before);
        });
    }
    guard.inside(|datapath| {
        // The side of another policy in the place of this one's.
        let prepared = datapath.prepare(&case.map, Settings::default(), &identities).unwrap();
        let _other = datapath.prepare(&case.map, Settings::default(), &identities).unwrap();
        let error = check(datapath, &prepared, &case, &identities).unwrap_err().to_string();
        assert!(error.contains("of `EDGES`") || error.contains("of `edges`"), "{error}");
    });
}

/// Takes every edge out of a side that is not one of `known`, again and again.
fn tamper(outer: &Table<u32, u32>, known: &[Option<u32>], stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        for side in 0..2 {
            if known.contains(&outer.get(&side).expect("read a map of maps")) {
                continue;
            }
            let inner = outer.inner::<EdgeKey, EdgeEntry>(&side, map::EDGES).expect("open a side");
            for inner in inner.iter() {
                for key in inner.keys().expect("list a side") {
                    let _ = inner.remove(&key);
                }
            }
        }
    }
}

#[test]
fn a_policy_whose_side_somebody_changes_is_refused_and_the_one_before_goes_on() {
    let Some(scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let pin = scene.agent.path("bpf/eastwall").join(format!("v{LAYOUT_VERSION}")).join("maps").join(map::EDGES);
    let pin = scene.agent.inside(|| open_pin(&pin).expect("open a pin").expect("a map is pinned"));
    let outer: Table<u32, u32> = Table::new(pin, map::EDGES);
    let next = scene.policy("[{ from: web, to: db, ports: [tcp/5432] }, { from: other, to: db, ports: [tcp/1] }]", "");
    // Whoever changes a map that fast is seldom too late, but a machine under load may see to it.
    for _ in 0..20 {
        // Positive control: the policies are good.
        scene.rules(OPEN);
        let connection = scene.connection(LOOPBACK[0]);
        let before = scene.agent.status();
        let known = [0, 1].map(|side| outer.get(&side).expect("read a map of maps"));
        let stop = AtomicBool::new(false);
        let output = thread::scope(|threads| {
            threads.spawn(|| tamper(&outer, &known, &stop));
            let output = scene.agent.try_apply(&next);
            stop.store(true, Ordering::Relaxed);
            output
        });
        if output.status.success() {
            scene.agent.apply(&next);
            scene.hang_up(connection);
            continue;
        }
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("do not hold what was written") && said.contains("denied by default"), "{said}");
        let after = scene.agent.status();
        assert_eq!((&after.policy_hash, after.epoch), (&before.policy_hash, before.epoch));
        assert!(after.problems.iter().any(|p| p.contains("do not hold what was written")), "{after:#?}");
        scene.talk(&connection);
        scene.hang_up(connection);
        scene.agent.apply(&next);
        assert_eq!(scene.agent.status().problems, Vec::<String>::new());
        return;
    }
    panic!("the changed map was never noticed\n{}", scene.agent.log());
}
