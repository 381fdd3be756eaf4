//! What was written to the maps is compared with what was compiled before it comes into force.

use agent_common::{
    id::{BootSeconds, IdentityId},
    layout::{EdgeEntry, EdgeKey, IdentSlot, Settings},
};
use eastwall::{
    datapath::{Datapath, DatapathError, Identities, Prepared, Questions},
    policy::{random::Case, sample},
};
use tests::lab::{Guard, GuardOptions, Lab, Need};

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

fn exact(case: &Case) -> EdgeKey {
    *case
        .map
        .edges
        .keys()
        .find(|k| k.from != IdentityId::ANY && k.to != IdentityId::ANY)
        .expect("a random policy has one")
}

#[test]
fn a_side_that_does_not_say_what_was_written_is_found_before_the_flip() {
    let Some(lab) = Lab::open(&[Need::Agent]) else { return };
    let mut guard = Guard::load(&lab, GuardOptions::default());
    let case = (0..100).map(|seed| Case::new(seed, 0)).find(|case| !case.map.spill.is_empty()).unwrap();
    assert!(case.map.prefixes.len() > 2 && case.map.edges.len() > 10);
    let mut identities = Identities::default();
    let mut slot = IdentSlot { id: IdentityId(500), ..Default::default() };
    identities.cgroups.insert(77, slot);
    slot.id = IdentityId(501);
    identities.cgroups.insert(78, slot);
    let spoils: [(&str, &str, Spoil); 8] = [
        ("an edge that allows what it denied, or the reverse", "proto-", |p, case, _, _| {
            let key = exact(case);
            let mut entry = case.map.edges[&key];
            entry.ranges[0].flags ^= 1;
            p.edges.put(&key, &entry).unwrap();
        }),
        ("an edge that opens another port", "proto-", |p, case, _, _| {
            let key = exact(case);
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
                p.prefixes.put(prefix, &IdentityId(499)).unwrap();
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
