//! Somebody with rights of their own tampers with what the agent has in the kernel, under a denied flood: it is seen,
//! put back within a second and reported, and meanwhile the other layer holds.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by the one and shows figures by the other")]

use std::{
    fs::{self, File},
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    process::{self, Output},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use agent_common::layout::{
    EdgeEntry, EdgeKey, LAYOUT_VERSION,
    names::{map, program},
};
use eastwall::{
    control::wire::Tampering,
    datapath::{Device, Look, MapKind, Table, open_pin},
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::{Value, json};
use tests::{
    bpf::{self, At, Kind as ProgramKind},
    frames::{framed, ip_udp},
    lab::{Agent, AgentOptions, Command, Errno, Family, Guard, GuardOptions, Lab, Need, NetNs, Routed, Witness, magic},
    scene::{BRIEF, LONG, document, policy, repetitions},
};

const OPEN: &str = "[{ from: web, to: db, ports: [udp/any] }]";
/// `web -> db` is somebody else's edge.
const CLOSED: &str = "[{ from: other, to: db, ports: [udp/1] }]";
/// Promised for the time in which tampering is found and repaired.
const REPAIR_MAX: Duration = Duration::from_secs(1);

/// `enum bpf_attach_type`
const TCX_INGRESS: u32 = 46;
const TCX_EGRESS: u32 = 47;
const CGROUP_INGRESS: u32 = 0;
const CGROUP_EGRESS: u32 = 1;
const CGROUP_SOCK_CREATE: u32 = 2;

/// Two workloads behind devices, with an agent in the host's network. Nothing refuses early, so that packets go as far
/// as they can.
struct Stage {
    agent: Agent,
    net: Routed,
    /// Of the host's ends, of `web` and of `db`.
    indices: [u32; 2],
}

impl Stage {
    fn open() -> Option<Self> {
        let net = Routed::open()?;
        let options = AgentOptions { fast_refusal: false, ..AgentOptions::default() };
        let mut agent = Agent::prepare(&net.lab, &policy(&net.lab, OPEN, ""), &options).unwrap();
        agent.live_in(&net.host);
        agent.restart();
        agent.wait("both devices are guarded", |agent| agent.status().devices == 2);
        let indices = ["to-web", "to-db"].map(|name| index(&net.host, name));
        Some(Self { agent, net, indices })
    }

    /// Where an object of the agent is pinned.
    fn pin(&self, kind: &str, name: &str) -> PathBuf {
        self.agent.path(format!("bpf/eastwall/v{LAYOUT_VERSION}/{kind}/{name}"))
    }

    fn link(&self, name: &str) -> PathBuf {
        self.pin("links", name)
    }

    /// Opens what is pinned.
    fn opened(&self, pin: &PathBuf) -> OwnedFd {
        self.agent.inside(|| open_pin(pin)).unwrap().unwrap_or_else(|| panic!("nothing is pinned at {pin:?}"))
    }

    /// The names of the programs at a device.
    fn at_device(&self, index: u32, attach: u32) -> Vec<String> {
        self.net.host.run(|| bpf::names(At::Device(index), attach)).unwrap()
    }

    /// The names of the programs of the guarded cgroup.
    fn at_cgroup(&self, attach: u32) -> Vec<String> {
        let cgroup = File::open(self.net.lab.cgroup().dir()).unwrap();
        bpf::names(At::Cgroup(cgroup.as_fd()), attach).unwrap()
    }

    fn tampering(&self) -> Tampering {
        self.agent.status().tampering
    }

    /// Shows that the traffic of [`Self::under_flood`] passes when it is allowed.
    fn control(&self) {
        let (receiver, to) = self.net.db.udp(Family::V4);
        let (sender, from) = self.net.web.udp(Family::V4);
        self.net.web.actor.send_to(sender, to, b"by a socket").unwrap();
        assert_eq!(self.net.db.actor.receive(receiver, 1).unwrap()[0].data, b"by a socket");
        let frame = framed(self.net.ethernet(), &ip_udp(from, to, b"by a frame"));
        self.net.web.actor.call(&Command::SendFrame { device: "web0".to_owned(), frame, bypass: true }).unwrap();
        assert_eq!(self.net.db.actor.receive(receiver, 1).unwrap()[0].data, b"by a frame");
        self.net.web.actor.close(sender);
        self.net.db.actor.close(receiver);
    }

    /// Does `work` while `web` floods `db` with what is denied, by sockets and past them, and checks that nothing of it
    /// arrives: neither at a sniffer in the namespace of `db`, nor in its socket.
    fn under_flood(&self, what: &str, work: impl FnOnce(&Self)) {
        self.control();
        self.agent.apply(&policy(&self.net.lab, CLOSED, ""));
        let denied = magic();
        let (receiver, to) = self.net.db.udp(Family::V4);
        let (sender, from) = self.net.web.udp(Family::V4);
        let frame = framed(self.net.ethernet(), &ip_udp(from, to, &denied));
        let frame = Command::SendFrame { device: "web0".to_owned(), frame, bypass: true };
        let burst = vec![(to, denied.clone()); 8];
        let sent = AtomicU64::new(0);
        let flood = || {
            // Refused, or dropped later.
            let _ = self.net.web.actor.send_many(sender, burst.clone());
            self.net.web.actor.call(&frame).unwrap();
            sent.fetch_add(9, Ordering::Relaxed);
            thread::sleep(Duration::from_micros(200));
        };
        let mut witness = Witness::new(&self.net.db.net, &denied);
        witness.during(&[&flood], || work(self));
        assert_eq!(self.net.db.actor.receive_for(receiver, 1, BRIEF), Ok(vec![]), "{what}: a socket got a payload");
        assert_eq!(witness.arrived(), 0, "{what}: a sniffer in the receiver's namespace saw a payload");
        println!("{what}: {} denied payloads sent, 0 arrived", sent.into_inner());
    }

    /// Does one act again and again, and waits each time until the kernel shows that it was put right and the agent has
    /// counted it. Gives how long that took, sorted.
    fn acts(&self, act: &str, count: usize, tamper: impl Fn(usize), is_right: impl Fn(usize) -> bool) -> Vec<Duration> {
        let before = self.tampering();
        let found = |t: &Tampering| t.found.get(act).copied().unwrap_or(0);
        let mut took = Vec::new();
        for n in 0..count {
            // At several moments between two looks.
            thread::sleep(Duration::from_millis(u64::try_from(n * 37 % 230).unwrap()));
            tamper(n);
            let start = Instant::now();
            while !is_right(n) {
                assert!(start.elapsed() < LONG, "{act}: act {n} is not put right\n{}", self.agent.log());
                thread::sleep(Duration::from_millis(1));
            }
            took.push(start.elapsed());
            let end = Instant::now() + LONG;
            let done = u64::try_from(n + 1).unwrap();
            loop {
                let now = self.tampering();
                if found(&now) - found(&before) == done && now.repaired - before.repaired >= done {
                    break;
                }
                assert!(found(&now) - found(&before) <= done, "{act}: found more than was done: {now:#?}");
                assert!(Instant::now() < end, "{act}: act {n} is not counted: {now:#?}\n{}", self.agent.log());
                thread::sleep(Duration::from_millis(5));
            }
        }
        took.sort();
        took
    }
}

/// Prints the figures of acts, and checks the promise.
fn judge(what: &str, took: &[Duration]) {
    let percentile = |p: usize| took[(took.len() * p).div_ceil(100).max(1) - 1];
    println!(
        "{} times {what}: put right after {:?} (p50), {:?} (p99), {:?} (max)",
        took.len(),
        percentile(50),
        percentile(99),
        took[took.len() - 1]
    );
    assert!(percentile(99) <= REPAIR_MAX, "{what}: {took:?}");
}

fn index(netns: &NetNs, device: &str) -> u32 {
    netns.ip(&format!("-o link show dev {device}")).split(':').next().unwrap().parse().unwrap()
}

/// Says whether an event is about an act of tampering with an object.
fn is_tampering(event: &Value, act: &str, object: &str) -> bool {
    let rest = &event["unmapped"]["eastwall"];
    event["metadata"]["event_code"] == json!("tamper") && rest["act"] == json!(act) && rest["object"] == json!(object)
}

fn reported(agent: &Agent, act: &str, object: &str) -> Vec<Value> {
    agent.events().into_iter().filter(|event| is_tampering(event, act, object)).collect()
}

/// Programs at devices: their names, at which device, and where.
const AT_DEVICES: [(&str, usize, u32); 3] =
    [(program::TC_FROM, 0, TCX_INGRESS), (program::TC_TO, 1, TCX_EGRESS), (program::TC_TO, 0, TCX_EGRESS)];
/// Programs of the guarded cgroup, and where.
const AT_CGROUP: [(&str, u32); 3] =
    [(program::EGRESS, CGROUP_EGRESS), (program::INGRESS, CGROUP_INGRESS), (program::SOCK_CREATE, CGROUP_SOCK_CREATE)];

impl Stage {
    /// A link at a device, opened by its pin.
    fn link_at_device(&self, n: usize) -> OwnedFd {
        let (name, device, _) = AT_DEVICES[n % AT_DEVICES.len()];
        self.opened(&self.link(&format!("{name}_{}", self.indices[device])))
    }

    /// Says whether ours is the first program there.
    fn is_first(&self, n: usize) -> bool {
        let (name, device, attach) = AT_DEVICES[n % AT_DEVICES.len()];
        self.at_device(self.indices[device], attach).first().is_some_and(|first| first == name)
    }

    fn link_at_cgroup(&self, n: usize) -> OwnedFd {
        self.opened(&self.link(AT_CGROUP[n % AT_CGROUP.len()].0))
    }

    fn is_at_cgroup(&self, n: usize) -> bool {
        let (name, attach) = AT_CGROUP[n % AT_CGROUP.len()];
        self.at_cgroup(attach).iter().any(|found| found == name)
    }

    /// Runs the command line in the network of the host.
    fn cli(&self, words: &[&str]) -> Output {
        let socket = self.agent.control_socket();
        let run = || process::Command::new(self.agent.binary()).args(words).arg("--socket").arg(&socket).output();
        self.net.host.run(run).unwrap()
    }

    fn is_well(&self) {
        assert_eq!(self.agent.status().problems, Vec::<String>::new(), "{}", self.agent.log());
    }
}

#[test]
fn g77_links_that_are_detached_are_attached_again_and_the_other_layer_holds() {
    let Some(stage) = Stage::open() else { return };
    let count = repetitions(4, 100);
    stage.under_flood("links are detached", |stage| {
        let detach = |n: usize| bpf::detach(stage.link_at_device(n).as_fd()).unwrap();
        judge("a link of a device is detached", &stage.acts("detached", count, detach, |n| stage.is_first(n)));
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
fn g77_a_qdisc_that_is_deleted_takes_nothing_of_ours_along() {
    let Some(stage) = Stage::open() else { return };
    stage.under_flood("clsact is added and deleted", |stage| {
        let tc = |words: &str| {
            let output = stage.net.host.run(|| process::Command::new("tc").args(words.split(' ')).output()).unwrap();
            assert!(output.status.success(), "tc {words}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        for n in 0..repetitions(10, 100) {
            let device = ["to-web", "to-db"][n % 2];
            tc(&format!("qdisc add dev {device} clsact"));
            assert!(tc(&format!("qdisc show dev {device}")).contains("clsact"));
            tc(&format!("qdisc del dev {device} clsact"));
            assert!(stage.is_first(n), "it took our program along");
        }
    });
    assert_eq!(stage.tampering().found.len(), 0, "nothing of ours was touched");
}

#[test]
fn g76_ours_runs_before_a_program_that_was_put_in_front_and_in_place_of_one_that_was_put_under_its_link() {
    let Some(stage) = Stage::open() else { return };
    let count = repetitions(4, 100);
    // They let everything pass, and at a device nobody behind them is asked.
    let at_device = bpf::load(ProgramKind::SchedCls, 0, 0, "intruder").unwrap();
    let at_egress = bpf::load(ProgramKind::CgroupSkb, CGROUP_EGRESS, 1, "intruder").unwrap();
    let foreign: Mutex<Option<OwnedFd>> = Mutex::new(None);
    stage.under_flood("others take our place", |stage| {
        let overtake = |n: usize| {
            let (_, device, attach) = AT_DEVICES[n % AT_DEVICES.len()];
            let mut link = foreign.lock().unwrap();
            // It cannot be there twice.
            drop(link.take());
            let index = stage.indices[device];
            *link = Some(stage.net.host.run(|| bpf::attach_to_device(at_device.as_fd(), index, attach, true)).unwrap());
        };
        judge("another program is put in front", &stage.acts("overtaken", count, overtake, |n| stage.is_first(n)));
        let replace = |n: usize| bpf::replace(stage.link_at_device(n).as_fd(), at_device.as_fd()).unwrap();
        foreign.lock().unwrap().take();
        let took = stage.acts("replaced", count, replace, |n| stage.is_first(n));
        judge("another program is put under a link of a device", &took);
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
    let (index, attach) = (stage.indices[0], TCX_INGRESS);
    let _link = stage.net.host.run(|| bpf::attach_to_device(at_device.as_fd(), index, attach, false)).unwrap();
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
    // A program can be at a place once only, so ours cannot be attached while somebody else has it there.
    let link = stage.link_at_device(0);
    let ours = bpf::program_of(link.as_fd()).unwrap();
    bpf::detach(link.as_fd()).unwrap();
    let index = stage.indices[0];
    let taken = stage.net.host.run(|| bpf::attach_to_device(ours.as_fd(), index, TCX_INGRESS, true));
    // Or the agent was faster.
    let Ok(taken) = taken else { return };
    let is_broken = |stage: &Stage| {
        let problems = stage.agent.status().problems;
        problems.iter().any(|p| p.contains("NOT as it should be: ew_tc_from is detached, and cannot be put back"))
    };
    let end = Instant::now() + LONG;
    while !is_broken(&stage) {
        assert!(Instant::now() < end, "{:#?}\n{}", stage.agent.status(), stage.agent.log());
    }
    assert_eq!(stage.cli(&["status"]).status.code(), Some(1));
    thread::sleep(BRIEF);
    assert!(stage.tampering().verified_ms_ago >= 300, "nobody says that all is well");
    drop(taken);
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
        let device = Device { index: 5000 + n, netns: 0 };
        guard.inside(|datapath| host.run(|| datapath.guard_device(&device, 1))).unwrap();
    }
    let (took, look) = guard.inside(|datapath| {
        host.run(|| {
            let start = Instant::now();
            let looks: Vec<Look> = (0..LOOKS).map(|_| datapath.look()).collect();
            (start.elapsed() / LOOKS, looks.into_iter().next_back().unwrap())
        })
    });
    assert_eq!((look.findings, look.blind), (vec![], vec![]));
    println!(
        "a look at {DEVICES} devices takes {took:?}; with five looks a second, {:.2} % of a CPU",
        took.as_secs_f64() * 500.0
    );
    assert!(took < Duration::from_millis(20), "more than a tenth of a CPU: {took:?}");
}

#[test]
fn who_dropped_a_flow_is_told_from_who_might_have() {
    let Some(stage) = Stage::open() else { return };
    let (_receiver, to) = stage.net.db.udp(Family::V4);
    let ask = |to: &str| {
        let output = stage.cli(&["doctor", "-o", "json", "--who-dropped", "10.9.0.1", to]);
        let clues = document(&output)["clues"].as_array().unwrap().clone();
        let of = |weight: &str| -> Vec<String> {
            let of = clues.iter().filter(|clue| clue["weight"] == json!(weight));
            of.map(|clue| format!("{}: {}", clue["layer"].as_str().unwrap(), clue["found"].as_str().unwrap())).collect()
        };
        (of("evidence"), of("suspect"), output.status.code())
    };
    let target = format!("10.9.1.2:udp/{}", to.port());
    let has = |clues: &[String], layer: &str, text: &str| {
        assert!(clues.iter().any(|c| c.starts_with(layer) && c.contains(text)), "no `{layer}: {text}` in {clues:#?}");
    };
    let (evidence, _, code) = ask(&target);
    assert_eq!((evidence, code), (vec![], Some(0)), "it is allowed, routed and heard");

    // A program behind ours, a route, a switch of the kernel, nobody who listens: each is found by itself.
    let drops = bpf::load(ProgramKind::SchedCls, 0, 2, "intruder").unwrap();
    let index = stage.indices[1];
    let link = stage.net.host.run(|| bpf::attach_to_device(drops.as_fd(), index, TCX_EGRESS, false)).unwrap();
    let (evidence, suspects, _) = ask(&target);
    assert_eq!(evidence, Vec::<String>::new(), "what a program does is not known");
    has(&suspects, "programs", "to-db egress: ");
    has(&suspects, "programs", "intruder, behind");
    drop(link);
    for (kind, said) in [("unreachable", "`unreachable`"), ("prohibit", "`prohibit`"), ("blackhole", "`blackhole`")] {
        stage.net.host.ip(&format!("route add {kind} 10.9.1.2/32"));
        let (evidence, _, code) = ask(&target);
        has(&evidence, "routing", said);
        assert_eq!(code, Some(1));
        stage.net.host.ip(&format!("route del {kind} 10.9.1.2/32"));
    }
    stage.net.host.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "0")).unwrap();
    has(&ask(&target).0, "routing", "forwards no IPv4");
    stage.net.host.run(|| fs::write("/proc/sys/net/ipv4/ip_forward", "1")).unwrap();
    has(&ask("10.9.1.2:tcp/9").0, "socket", "no socket listens at 10.9.1.2 tcp/9");

    // Our own denial, by its record.
    stage.agent.apply(&policy(&stage.net.lab, CLOSED, ""));
    let (_, suspects, _) = ask(&target);
    has(&suspects, "eastwall", "DENY");
    let (sender, _) = stage.net.web.udp(Family::V4);
    let _ = stage.net.web.actor.send_to(sender, to, b"denied");
    stage.agent.event("a denial", |e| e["metadata"]["event_code"] == json!("deny"));
    let (evidence, _, code) = ask(&target);
    has(&evidence, "eastwall", "no-rule");
    assert_eq!(code, Some(1));
    let wrong = stage.cli(&["doctor", "--who-dropped", "web", &target]);
    assert_eq!(wrong.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("`web` is no address"), "{wrong:?}");
}
