//! Somebody with rights of their own tampers with what the agent has in the kernel, under a denied flood: it is seen,
//! put back within a second and reported, and meanwhile the other layer holds.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by the one and shows figures by the other")]

mod stage;
mod who_dropped;

use std::{
    fs,
    os::fd::AsFd as _,
    process,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use agent_common::layout::{
    EdgeEntry, EdgeKey,
    names::{map, program},
};
use eastwall::datapath::{Device, Look, MapKind, Table, open_pin};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    time::{ClockId, clock_gettime},
};
use serde_json::{Value, json};
use stage::{AT_DEVICES, CGROUP_EGRESS, CLOSED, DEVICES, Stage, flood, is_tampering, judge, reported};
use tests::{
    bpf::{self, At, Kind, TCX_EGRESS, TCX_INGRESS},
    filters::{self, Filter, Place},
    lab::{Errno, Foreign, Guard, GuardOptions, Lab, Need, NetNs, patience},
    scene::{BRIEF, LONG, document, policy, repetitions},
};

#[test]
fn g77_links_that_are_detached_are_attached_again_and_the_other_layer_holds() {
    let Some(stage) = Stage::open() else { return };
    detached(&stage);
}

#[test]
fn g77_filters_of_clsact_that_are_deleted_are_added_again_and_the_other_layer_holds() {
    let Some(stage) = Stage::open_with_clsact() else { return };
    detached(&stage);
}

fn detached(stage: &Stage) {
    let count = repetitions(3, 100);
    stage.under_flood("programs are detached", |stage| {
        let detach = |n: usize| stage.detach_at_device(n);
        judge("a program of a device is detached", &stage.acts("detached", count, detach, |n| stage.is_first(n)));
        let detach = |n: usize| bpf::detach(stage.link_at_cgroup(n).as_fd()).unwrap();
        judge("a link of the cgroup is detached", &stage.acts("detached", count, detach, |n| stage.is_at_cgroup(n)));
    });
    let events = reported(&stage.agent, "detached", program::TC_FROM);
    let event = events.first().unwrap_or_else(|| panic!("no event\n{}", stage.agent.log()));
    assert_eq!((&event["class_uid"], &event["status"]), (&json!(2004), &json!("Resolved")), "{event:#}");
    let rest = &event["unmapped"]["eastwall"];
    assert_eq!((&rest["device"], &rest["repaired"]), (&json!("to-web"), &json!(true)), "{event:#}");
    assert!(!reported(&stage.agent, "detached", program::EGRESS).is_empty());
    stage.is_well();
}

#[test]
fn g77_a_qdisc_that_is_deleted_takes_no_link_of_ours_along() {
    let Some(stage) = Stage::open() else { return };
    if !stage.tcx {
        eprintln!("SKIP: this kernel has no TCX");
        return;
    }
    stage.under_flood("clsact is added and deleted", |stage| {
        for n in 0..repetitions(10, 100) {
            let device = DEVICES[n % 2];
            stage.tc(&format!("qdisc add dev {device} clsact"));
            assert!(stage.tc(&format!("qdisc show dev {device}")).contains("clsact"));
            stage.tc(&format!("qdisc del dev {device} clsact"));
            assert!(stage.is_first(n), "it took our program along");
        }
    });
    assert_eq!(stage.tampering().found.len(), 0, "nothing of ours was touched");
}

#[test]
fn g77_a_qdisc_that_is_deleted_with_our_filters_comes_back_with_them() {
    let Some(stage) = Stage::open_with_clsact() else { return };
    stage.under_flood("clsact is deleted", |stage| {
        let delete = |n: usize| drop(stage.tc(&format!("qdisc del dev {} clsact", DEVICES[n % 2])));
        let first = |n: usize, attach| stage.at_device(n % 2, attach).into_iter().next();
        let is_right = |n: usize| {
            first(n, TCX_INGRESS).is_some_and(|name| name == program::TC_FROM)
                && first(n, TCX_EGRESS).is_some_and(|name| name == program::TC_TO)
        };
        let took = stage.acts_of(("detached", 2), repetitions(4, 100), delete, is_right);
        judge("the discipline is deleted", &took);
    });
    stage.is_well();
}

#[test]
fn g76_ours_runs_before_a_program_that_was_put_in_front_and_in_place_of_one_that_was_put_under_its_link() {
    let Some(stage) = Stage::open() else { return };
    overtaken(&stage);
}

#[test]
fn g76_our_filter_of_clsact_comes_before_one_that_was_put_in_front_and_is_put_right_where_it_was_replaced() {
    let Some(stage) = Stage::open_with_clsact() else { return };
    overtaken(&stage);
}

fn overtaken(stage: &Stage) {
    let count = repetitions(3, 100);
    // They let everything pass, and at a device nobody behind them is asked.
    let at_device = bpf::load(Kind::SchedCls, 0, 0, "intruder").unwrap();
    let at_egress = bpf::load(Kind::CgroupSkb, CGROUP_EGRESS, 1, "intruder").unwrap();
    let foreign: Mutex<Option<Foreign>> = Mutex::new(None);
    stage.under_flood("others take our place", |stage| {
        let overtake = |n: usize| {
            let (_, device, attach) = AT_DEVICES[n % AT_DEVICES.len()];
            let mut link = foreign.lock().unwrap();
            // It cannot be there twice.
            drop(link.take());
            *link = Some(stage.intrude(at_device.as_fd(), device, attach, true).unwrap());
        };
        judge("another program is put in front", &stage.acts("overtaken", count, overtake, |n| stage.is_first(n)));
        let replace = |n: usize| stage.replace_at_device(n, at_device.as_fd());
        foreign.lock().unwrap().take();
        let took = stage.acts("replaced", count, replace, |n| stage.is_first(n));
        judge("another program is put in the place of ours at a device", &took);
        let replace = |_| bpf::replace(stage.link_at_cgroup(0).as_fd(), at_egress.as_fd()).unwrap();
        let took = stage.acts("replaced", count, replace, |_| stage.is_at_cgroup(0));
        judge("another program is put under a link of the cgroup", &took);
    });
    for (act, object) in [("overtaken", program::TC_FROM), ("replaced", program::TC_TO), ("replaced", program::EGRESS)]
    {
        let events = reported(&stage.agent, act, object);
        let event = events.first().unwrap_or_else(|| panic!("no event: {act} {object}\n{}", stage.agent.log()));
        let culprit = &event["unmapped"]["eastwall"]["programs"][0];
        assert_eq!((&culprit["name"], &culprit["loaded_by"]), (&json!("intruder"), &json!(0)), "{event:#}");
    }
    // Whoever stays is named, with who holds it.
    let _foreign = stage.intrude(at_device.as_fd(), 0, TCX_INGRESS, false).unwrap();
    let findings = document(&stage.cli(&["doctor", "-o", "json"]));
    let named = findings["findings"].as_array().unwrap().iter().find(|finding| finding["check"] == json!("programs"));
    let found = named.and_then(|finding| finding["found"].as_str()).unwrap_or_default();
    assert!(found.starts_with("to-web ingress: ") && found.contains(" intruder, behind eastwall's"), "{findings:#}");
    assert!(found.contains(&format!("held by {}", process::id())), "{findings:#}");
    stage.is_well();
}

#[test]
fn g76_what_cannot_be_put_back_is_a_problem_until_it_is() {
    let Some(stage) = Stage::open() else { return };
    if !stage.tcx {
        return cannot_be_put_back_by_clsact(&stage);
    }
    // A program can be at a place once only, so ours cannot be attached while somebody else has it there.
    let link = stage.link_at_device(0);
    let ours = bpf::program_of(link.as_fd()).unwrap();
    bpf::detach(link.as_fd()).unwrap();
    // Or the agent was faster.
    let Ok(taken) = stage.intrude(ours.as_fd(), 0, TCX_INGRESS, true) else { return };
    is_a_problem_until(&stage, || drop(taken));
}

#[test]
fn g76_what_cannot_be_put_back_by_clsact_is_a_problem_until_it_can() {
    let Some(stage) = Stage::open_with_clsact() else { return };
    cannot_be_put_back_by_clsact(&stage);
}

fn cannot_be_put_back_by_clsact(stage: &Stage) {
    let program = bpf::load(Kind::SchedCls, 0, -1, "intruder").unwrap();
    let add = || Filter::add(program.as_fd(), stage.indices[0], TCX_INGRESS, Place::FirstForIpv4);
    // Filters of one priority are about one protocol.
    stage.detach_at_device(0);
    let Ok(filter) = stage.net.host.run(add) else {
        // The agent was faster.
        assert!(stage.is_first(0));
        return;
    };
    is_a_problem_until(stage, || drop(filter));
}

fn is_a_problem_until(stage: &Stage, freed: impl FnOnce()) {
    let is_broken = |stage: &Stage| {
        let problems = stage.agent.status().problems;
        problems.iter().any(|p| p.contains("NOT as it should be: ew_tc_from is detached, and cannot be put back"))
    };
    let end = Instant::now() + LONG;
    while !is_broken(stage) {
        assert!(Instant::now() < end, "{:#?}\n{}", stage.agent.status(), stage.agent.log());
    }
    assert_eq!(stage.cli(&["status"]).status.code(), Some(1));
    thread::sleep(BRIEF);
    assert!(stage.tampering().verified_ms_ago >= 300, "nobody says that all is well");
    freed();
    let end = Instant::now() + LONG;
    while !stage.agent.status().problems.is_empty() {
        assert!(Instant::now() < end, "{:#?}\n{}", stage.agent.status(), stage.agent.log());
    }
    assert!(stage.is_first(0));
    let tampering = stage.tampering();
    assert_eq!((tampering.found.values().sum::<u64>(), tampering.repaired), (1, 1), "{tampering:#?}");
    let said: Vec<Value> = reported(&stage.agent, "detached", program::TC_FROM);
    let said: Vec<(&Value, &Value)> = said.iter().map(|event| (&event["status"], &event["severity"])).collect();
    assert_eq!(said, [(&json!("New"), &json!("Critical")), (&json!("Resolved"), &json!("High"))]);
}

#[test]
fn an_agent_that_is_told_to_do_without_tcx_or_with_it_leaves_no_gap() {
    let Some(mut stage) = Stage::open() else { return };
    if !stage.tcx {
        eprintln!("SKIP: this kernel has no TCX");
        return;
    }
    stage.control();
    stage.agent.apply(&policy(&stage.net.lab, CLOSED, ""));
    let settings = stage.agent.path("agent.yaml");
    let index = stage.indices[0];
    let ours = vec![program::TC_FROM.to_owned()];
    for (tcx, wanted) in [(false, (vec![], ours.clone())), (true, (ours, vec![]))] {
        let mut config: Value = serde_json::from_slice(&fs::read(&settings).unwrap()).unwrap();
        config["tcx"] = json!(tcx);
        fs::write(&settings, config.to_string()).unwrap();
        flood(&stage.net, "an agent is told to attach in another way", || {
            stage.agent.kill();
            stage.agent.restart();
        });
        let links = stage.net.host.run(|| bpf::names(At::Device(index), TCX_INGRESS)).unwrap();
        let filters = stage.net.host.run(|| filters::shown(DEVICES[0], TCX_INGRESS)).unwrap();
        let filters: Vec<String> = filters.into_iter().map(|filter| filter.program).collect();
        assert_eq!((links, filters), wanted);
        stage.is_well();
    }
}

#[test]
fn g79_pins_that_are_removed_come_back_and_nothing_was_detached_meanwhile() {
    let Some(mut stage) = Stage::open() else { return };
    let count = repetitions(3, 100);
    stage.under_flood("pins are removed", |stage| {
        let pins = [stage.link(program::EGRESS), stage.pin("maps", map::EPOCH), stage.link(program::CGROUP_MKDIR)];
        let is_pinned = |n: usize| stage.agent.inside(|| open_pin(&pins[n % 3])).unwrap().is_some();
        let remove = |n: usize| stage.agent.inside(|| fs::remove_file(&pins[n % 3])).unwrap();
        judge("a pin is removed", &stage.acts("unpinned", count, remove, is_pinned));
        let bpffs = stage.agent.path("bpf");
        let umount = |_| stage.agent.inside(|| unmount(&bpffs, UnmountFlags::DETACH)).unwrap();
        judge("the bpffs is unmounted", &stage.acts("unmounted", count, umount, is_pinned));
        let places = 0..AT_DEVICES.len();
        assert!(places.clone().all(|n| stage.is_first(n)) && places.clone().all(|n| stage.is_at_cgroup(n)));
    });
    assert!(!reported(&stage.agent, "unpinned", map::EPOCH).is_empty());
    assert!(!reported(&stage.agent, "unmounted", "bpffs").is_empty());
    stage.is_well();

    // While no agent runs, a program goes with its pin. The next one says so.
    stage.agent.kill();
    let pin = stage.link(program::EGRESS);
    stage.agent.inside(|| fs::remove_file(&pin)).unwrap();
    stage.agent.restart();
    assert!(stage.is_at_cgroup(0));
    stage.agent.event("a pin was removed while no agent ran", |e| is_tampering(e, "unpinned", program::EGRESS));
    stage.agent.kill();
    let bpffs = stage.agent.path("bpf");
    stage.agent.inside(|| unmount(&bpffs, UnmountFlags::DETACH)).unwrap();
    let mode = Some(c"mode=700");
    stage.agent.inside(|| mount("bpf", &bpffs, "bpf", MountFlags::empty(), mode)).unwrap();
    stage.agent.restart();
    assert!(stage.is_at_cgroup(0));
    stage.agent.event("all pins were removed while no agent ran", |e| is_tampering(e, "unpinned", "bpffs"));
}

#[test]
fn g79_without_pins_and_agent_nothing_is_denied() {
    let Some(mut stage) = Stage::open() else { return };
    stage.agent.apply(&policy(&stage.net.lab, CLOSED, ""));
    stage.agent.kill();
    let links = stage.pin("links", "");
    stage.agent.inside(|| {
        fs::read_dir(&links).unwrap().flatten().for_each(|link| fs::remove_file(link.path()).unwrap());
    });
    // A filter needs no pin.
    for device in DEVICES.into_iter().filter(|_| !stage.tcx) {
        stage.tc(&format!("qdisc del dev {device} clsact"));
    }
    // A link that has lost its last holder goes a moment later.
    thread::sleep(BRIEF);
    // Nothing but what is tampered with in the tests above stops the flood there.
    stage.control();
}

#[test]
fn what_says_which_policy_is_in_force_is_written_again_and_edges_cannot_be_written() {
    let Some(stage) = Stage::open() else { return };
    let pin = stage.pin("maps", map::EPOCH);
    let epoch: Table<u32, u64> = stage.agent.inside(|| Table::open(&pin, map::EPOCH)).unwrap();
    let right = epoch.get(&0).unwrap().unwrap();
    let write = |n: usize| epoch.put(&0, &(right + 1 + u64::try_from(n).unwrap())).unwrap();
    let took = stage.acts("changed", repetitions(3, 100), write, |_| epoch.get(&0).unwrap() == Some(right));
    judge("the epoch is written", &took);
    let pin = stage.pin("maps", map::EDGES);
    let edges: Table<u32, u32> = stage.agent.inside(|| Table::open(&pin, map::EDGES)).unwrap();
    let side = u32::try_from(right & 1).unwrap();
    let inner: Table<EdgeKey, EdgeEntry> = edges.inner(&side, map::EDGES).unwrap().unwrap();
    let (key, entry) = inner.all().unwrap().pop_first().unwrap();
    let error = inner.put(&key, &entry).unwrap_err();
    assert_eq!(error.source.raw_os_error(), Some(Errno::PERM.raw_os_error()), "not even root may");
    // Another map in its place is another policy; 1 is BPF_F_NO_PREALLOC, as ours are.
    let other: Table<EdgeKey, EdgeEntry> = Table::create(MapKind::Hash, 64, 1, map::EDGES).unwrap();
    let id = edges.get(&side).unwrap();
    let took =
        stage.acts("changed", 1, |_| edges.put(&side, &other.raw()).unwrap(), |_| edges.get(&side).unwrap() == id);
    judge("another map is put in place of the edges", &took);
    stage.is_well();
}

#[test]
fn a_look_at_a_hundred_devices_costs_next_to_nothing() {
    const DEVICES: u32 = 100;
    const LOOKS: u32 = 50;
    let Some(lab) = Lab::open(&[Need::Ip]) else { return };
    let host = NetNs::new();
    let mut guard = Guard::load(&lab, GuardOptions { devices: true, ..GuardOptions::default() });
    guard.reattach().unwrap();
    for n in 0..DEVICES {
        host.ip(&format!("link add v{n} index {} type veth peer name p{n} index {}", 5000 + n, 7000 + n));
        let device = Device { index: 5000 + n, netns: 0, hardware: 0 };
        guard.inside(|datapath| host.run(|| datapath.guard_device(&device, 1))).unwrap();
    }
    let cpu = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let (took, look) = guard.inside(|datapath| {
        host.run(|| {
            let before = cpu();
            let looks: Vec<Look> = (0..LOOKS).map(|_| datapath.look()).collect();
            ((cpu() - before) / LOOKS, looks.into_iter().next_back().unwrap())
        })
    });
    assert_eq!((look.findings, look.blind), (vec![], vec![]));
    println!(
        "a look at {DEVICES} devices takes {took:?} of CPU time; with five looks a second, {:.2} % of a CPU",
        took.as_secs_f64() * 500.0
    );
    assert!(took < patience(Duration::from_millis(20)), "more than a tenth of a CPU: {took:?}");
}
