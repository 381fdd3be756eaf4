//! Tables that are full, flooded or aimed at: G66 to G69, G73 and G74 of the list of gaps.

use std::{
    fs,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use agent_common::{
    layout::{DenyCounter, FlowKey, FlowState, Hook, names::map},
    verdict::Reason,
};
use eastwall::{
    datapath::{Capacity, DatapathError, Identities, MapKind, Table, forget_idle},
    policy::plan::TooLarge,
};
use tests::lab::{Command, Errno, Exit, Family, GuardOptions, Kind, Need, Place, Scene, magic, require_or_skip};

/// Long enough for every answer that comes.
const LONG: Duration = Duration::from_secs(20);
/// A row of ports that nobody listens at.
const PORTS_FROM: u16 = 20_000;

#[test]
fn g66_a_flood_of_flows_takes_its_own_share_and_nothing_of_anybody_else() {
    const FLOWS: u32 = 1_024;
    const QUOTA: u32 = 256;
    for fast_refusal in [true, false] {
        let capacity = Capacity { flows: FLOWS, ..Capacity::default() };
        let options = GuardOptions { fast_refusal, capacity, flow_quota: QUOTA, ..GuardOptions::default() };
        let Some(scene) = Scene::with(Place::Veth, options) else { return };
        let (web, db, other) = (&scene.web.actor, &scene.db.actor, &scene.other.actor);
        for family in [Family::V4, Family::V6] {
            scene.allow(&["web -> db: tcp/any, udp/any"]);
            let (listener, tcp) = scene.db.listen(family);
            let (receiver, udp) = scene.db.udp(family);
            let caller = web.tcp_connect(tcp, LONG).unwrap();
            let callee = db.accept(listener).unwrap();
            let (asking, _) = scene.web.udp(family);
            let ask = |text: &[u8]| {
                web.send_to(asking, udp, text).unwrap();
                let request = db.receive(receiver, 1).unwrap();
                assert_eq!(request[0].data, text);
                db.send_to(receiver, request[0].from.unwrap(), b"reply").unwrap();
                assert_eq!(web.receive(asking, 1).unwrap()[0].data, b"reply");
                web.send(caller, text).unwrap();
                assert_eq!(db.receive(callee, 1).unwrap()[0].data, text);
            };
            ask(b"before");
            let to = SocketAddr::new(scene.db.addr(family), PORTS_FROM);
            let flood = other.socket(family, Kind::Datagram, 0).unwrap();
            assert_eq!(other.flood(flood, to, 100, b"x"), Ok(0), "what is denied takes no room");
            // The exit of the flooding one lets it pass; there is nobody at those ports.
            scene.allow(&["web -> db: tcp/any, udp/any", "other -> web: tcp/any", "exit other -> db: udp/any"]);
            ask(b"under the new policy");
            let _ = scene.denials();
            let passed = other.flood(flood, to, 5_000, b"x").unwrap();
            let quota = usize::try_from(QUOTA).unwrap();
            assert!(passed > 0 && passed <= quota, "{passed} flows, and the share is {quota}");
            let denials = scene.denials();
            assert_eq!(denials.count(DenyCounter::Dropped), 5_000 - u64::try_from(passed).unwrap());
            assert!(denials.causes().iter().all(|cause| *cause == (Hook::Egress, Reason::Internal)));
            // Running flows of others go on, new ones begin, and denied ones stay denied.
            ask(b"after");
            let (another, _) = scene.web.udp(family);
            web.send_to(another, udp, b"new").unwrap();
            assert_eq!(db.receive(receiver, 1).unwrap()[0].data, b"new");
            let new = web.tcp_connect(tcp, LONG).unwrap();
            let accepted = db.accept(listener).unwrap();
            assert_eq!(scene.denials().calls(), []);
            scene.allow(&["web -> other: udp/any"]);
            let magic = magic();
            let mut witness = scene.watch(&magic);
            assert_eq!(web.send_to(another, udp, &magic), Err(Errno::PERM));
            assert_eq!(witness.arrived(), 0);
            for socket in [caller, new, asking, another] {
                web.close(socket);
            }
            for socket in [callee, accepted] {
                db.close(socket);
            }
            // The next family begins with an empty table.
            scene.guard().forget_flows();
        }
    }
}

#[test]
fn g69_a_flow_that_begins_anew_while_idle_ones_are_forgotten_stays() {
    const ROUNDS: u32 = 20_000;
    const NOW: u32 = 1_000_000;
    if require_or_skip(&[Need::Root]).is_none() {
        return;
    }
    let flows: Table<FlowKey, FlowState> = Table::create(MapKind::Hash, 8, 0, map::FLOWS).unwrap();
    let key = FlowKey { owner: 7, ..FlowKey::default() };
    let seen = |last_seen| FlowState { last_seen, ..FlowState::default() };
    let (idle, new) = (seen(0), seen(NOW));
    flows.put(&key, &idle).unwrap();
    assert_eq!((forget_idle(&flows, NOW).unwrap().len(), flows.get(&key).unwrap()), (0, None));
    // It was seen after the time was looked at.
    flows.put(&key, &seen(NOW + 1)).unwrap();
    assert_eq!(forget_idle(&flows, NOW).unwrap().get(&7), Some(&1));

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                forget_idle(&flows, NOW).unwrap();
            }
        });
        let is_there = || {
            let end = Instant::now() + LONG;
            // It may be away for a moment.
            while flows.get(&key).unwrap() != Some(new) {
                if Instant::now() > end {
                    return false;
                }
            }
            true
        };
        let lost = (0..ROUNDS).find(|_| {
            flows.put(&key, &idle).unwrap();
            flows.put(&key, &new).unwrap();
            !is_there()
        });
        stop.store(true, Ordering::Relaxed);
        assert_eq!(lost, None, "of {ROUNDS} flows");
    });
}

#[test]
fn g67_no_hash_table_has_a_seed_that_is_known() {
    /// linux/bpf.h.
    const HASHES: [u64; 5] = [1, 5, 9, 10, 13];
    const ZERO_SEED: u64 = 1 << 6;
    let Some(scene) = Scene::open(Place::Loopback, true) else { return };
    scene.allow(&["web -> db: udp/any"]);
    let mut hashes = 0;
    for entry in fs::read_dir("/proc/self/fdinfo").unwrap().flatten() {
        // One that is closed meanwhile is no map of this guard.
        let Ok(info) = fs::read_to_string(entry.path()) else { continue };
        let field = |name: &str| {
            let value = info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)?;
            u64::from_str_radix(value.trim_start_matches("0x"), if value.starts_with("0x") { 16 } else { 10 }).ok()
        };
        if field("map_type:").is_some_and(|kind| HASHES.contains(&kind)) {
            assert_eq!(field("map_flags:").unwrap() & ZERO_SEED, 0, "{info}");
            hashes += 1;
        }
    }
    assert!(hashes >= 6, "{hashes} hash tables seen: this looks at the wrong place");
}

#[test]
fn g68_a_cgroup_that_finds_no_room_for_its_label_is_denied() {
    // The lab itself, three workloads, and four more.
    const ROOM: u32 = 8;
    for fast_refusal in [true, false] {
        let capacity = Capacity { cgroups: ROOM, ..Capacity::default() };
        let options = GuardOptions { fast_refusal, capacity, ..GuardOptions::default() };
        let Some(scene) = Scene::with(Place::Loopback, options) else { return };
        for family in [Family::V4, Family::V6] {
            let (receiver, to) = scene.db.udp(family);
            scene.allow(&["web -> db: udp/any"]);
            let _ = scene.denials();
            let mut below = Vec::new();
            let (mut passed, mut refused) = (0, 0);
            let magic = magic();
            for n in 0..8 {
                let cgroup = scene.web.cgroup.child(&format!("{family:?}-{n}"));
                let labelled = scene.guard().datapath().label_of(cgroup.id()).unwrap().is_some();
                let data = if labelled { b"labelled".to_vec() } else { magic.clone() };
                let mut witness = scene.watch(&magic);
                let command = Command::Send { socket: 0, to: Some(to), data };
                match scene.lab().once(&command).spawn(&cgroup, &scene.web.net, None).unwrap().wait() {
                    Exit::Status(0) => passed += 1,
                    exit => {
                        assert_eq!((exit, labelled), (Exit::Status(Errno::PERM.raw_os_error()), false));
                        refused += 1;
                    }
                }
                assert_eq!(witness.arrived(), 0);
                below.push(cgroup);
            }
            assert_eq!((passed, refused), (4, 4));
            assert_eq!(scene.db.actor.received(receiver).unwrap().len(), 4);
            let denials = scene.denials();
            assert!(denials.causes().iter().all(|cause| cause.1 == Reason::UnknownSelf), "{:?}", denials.causes());
            assert_eq!(denials.denied(), 4);
            // A policy that would label all of them is refused before anything is written.
            let (epoch, identities) = {
                let guard = scene.guard();
                let labels = below.iter().chain([&scene.web.cgroup]).map(|c| (c.id(), Default::default()));
                (guard.datapath().in_force(), Identities { cgroups: labels.collect(), ..Identities::default() })
            };
            let refusal = scene.guard().put_in_force(&Default::default(), &identities).unwrap_err();
            assert!(
                matches!(refusal, DatapathError::TooLarge(TooLarge { what: "cgroups", needed: 9, holds: ROOM })),
                "{refusal}"
            );
            assert_eq!(scene.guard().datapath().in_force(), epoch);
            let socket = scene.web.actor.socket(family, Kind::Datagram, 0).unwrap();
            assert_eq!(scene.web.actor.send_to(socket, to, b"as before"), Ok(9));
            assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"as before");
            // Room comes back with cgroups that go.
            let gone: Vec<u64> = below.iter().map(tests::lab::Cgroup::id).collect();
            drop(below);
            let end = std::time::Instant::now() + Duration::from_secs(30);
            while gone.iter().any(|id| scene.guard().datapath().label_of(*id).unwrap().is_some()) {
                assert!(std::time::Instant::now() < end, "labels of cgroups that are gone stay");
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

#[test]
fn g73_with_a_full_ring_and_a_dead_reader_verdicts_and_counts_stay_right() {
    /// More first denials than the ring has room for: each port is a key of its own.
    const PORTS: u16 = 12_000;
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Veth, fast_refusal) else { return };
        let (web, family) = (&scene.web.actor, Family::V4);
        let (receiver, udp) = scene.db.udp(family);
        scene.allow(&["web -> db: udp/any"]);
        let (sender, _) = scene.web.udp(family);
        web.send_to(sender, udp, b"allowed").unwrap();
        assert_eq!(scene.db.actor.receive(receiver, 1).unwrap().len(), 1);
        scene.allow(&["web -> other: udp/any"]);
        let _ = scene.denials();
        let magic = magic();
        let mut witness = scene.watch(&magic);
        // Nobody reads from here on.
        let to = SocketAddr::new(udp.ip(), PORTS_FROM);
        for _ in 0..2 {
            assert_eq!(web.flood(sender, to, PORTS, &magic), Ok(0), "nothing passes");
        }
        assert_eq!(web.send_to(sender, udp, &magic), Err(Errno::PERM));
        assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (0, Ok(vec![])));
        // What is allowed passes all the same.
        scene.allow(&["web -> db: udp/any"]);
        web.send_to(sender, udp, b"allowed").unwrap();
        assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"allowed");
        // This looks, and checks that each denial has exactly one fate.
        let denials = scene.denials();
        assert_eq!(denials.denied(), 2 * u64::from(PORTS) + 1);
        assert!(denials.count(DenyCounter::Ring) > 0, "the ring was full: {denials:?}", denials = denials.counts);
        assert!(denials.count(DenyCounter::Repeated) > 0);
        // With a reader again, the next first denial is told.
        scene.allow(&["web -> other: udp/any"]);
        assert_eq!(web.send_to(sender, udp, &magic), Err(Errno::PERM));
        let denials = scene.denials();
        assert_eq!((denials.records.len(), denials.denied()), (1, 1));
    }
}

#[test]
fn g73_a_noisy_workload_uses_up_its_own_budget_of_events_and_a_quiet_one_is_heard() {
    for (place, fast_refusal) in [(Place::Loopback, true), (Place::Veth, false)] {
        let options = GuardOptions { fast_refusal, event_burst: 16, ..GuardOptions::default() };
        let Some(scene) = Scene::with(place, options) else { return };
        let family = Family::V4;
        let (receiver, udp) = scene.db.udp(family);
        scene.allow(&["web -> db: udp/any"]);
        let (sender, _) = scene.web.udp(family);
        scene.web.actor.send_to(sender, udp, b"allowed").unwrap();
        assert_eq!(scene.db.actor.receive(receiver, 1).unwrap().len(), 1);
        scene.allow(&[]);
        let _ = scene.denials();
        let to = SocketAddr::new(udp.ip(), PORTS_FROM);
        assert_eq!(scene.web.actor.flood(sender, to, 3_000, b"noise"), Ok(0));
        let (quiet, _) = scene.other.udp(family);
        assert_eq!(scene.other.actor.send_to(quiet, udp, b"one"), Err(Errno::PERM));
        let denials = scene.denials();
        let of = |party: &tests::lab::Party| denials.records.iter().filter(|r| r.local_id == party.id().0).count();
        assert_eq!((of(&scene.web), of(&scene.other)), (16, 1));
        assert_eq!((denials.denied(), denials.folded), (3_001, 3_000 - 16));
    }
}

#[test]
fn g74_no_program_jumps_through_a_table_whose_slot_could_be_empty() {
    /// linux/bpf.h.
    const PROG_ARRAY: &str = "3";
    let Some(_scene) = Scene::open(Place::Loopback, true) else { return };
    let mut maps = 0;
    for entry in fs::read_dir("/proc/self/fdinfo").unwrap().flatten() {
        let Ok(info) = fs::read_to_string(entry.path()) else { continue };
        let kind = info.lines().find_map(|line| line.strip_prefix("map_type:")).map(str::trim);
        assert_ne!(kind, Some(PROG_ARRAY), "a table of programs to jump to");
        maps += usize::from(kind.is_some());
    }
    assert!(maps >= 10, "{maps} maps seen: this looks at the wrong place");
}
