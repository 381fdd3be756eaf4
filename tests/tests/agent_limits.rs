//! An agent that runs short of something, or is told late: G32, G89, G92 and G93 of the list of gaps.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    fs,
    io::Read as _,
    net::SocketAddr,
    os::unix::net::UnixStream,
    process::Command as Program,
    thread,
    time::{Duration, Instant},
};

use eastwall::sources::cgroup::Hierarchy;
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::Signal,
};
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use tests::{
    lab::{Actor, Agent, AgentOptions, Command, Errno, Exit, Lab, Need, NetNs, Witness, magic},
    scene::{BRIEF, LONG, LOOPBACK, PORT, Scene, datagram, policy, repetitions, with_latecomers},
};

const OPEN: &str = "[{ from: web, to: db, ports: [udp/5432, tcp/5432] }]";
/// What a label may take, ten times over.
const LATE_MAX: Duration = Duration::from_millis(2_500);

/// Runs prlimit(1) on the agent.
fn limit(agent: &Agent, words: &[&str]) {
    let pid = agent.pid().unwrap().to_string();
    let output = Program::new("prlimit").args(["--pid", &pid]).args(words).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// `web` may reach `db`, and `other` may not, whatever state the agent is in.
fn still_judged(scene: &Scene) {
    for addr in LOOPBACK {
        let (receiver, to) = scene.db.udp_bind(SocketAddr::new(addr, PORT)).unwrap();
        assert_eq!(datagram(&scene.web, to, b"allowed"), Ok(7));
        assert_eq!(scene.db.receive(receiver, 1).unwrap()[0].data, b"allowed");
        let magic = magic();
        let mut witness = Witness::new(&scene.net, &magic);
        assert_eq!(datagram(&scene.other, to, &magic), Err(Errno::PERM));
        assert_eq!((witness.arrived(), scene.db.received(receiver)), (0, Ok(vec![])));
        scene.db.close(receiver);
    }
}

/// Seconds of a CPU that the agent has used.
fn cpu(agent: &Agent) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid().unwrap())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[test]
fn g92_an_agent_without_descriptors_keeps_its_policy_and_comes_back() {
    let Some(mut scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    still_judged(&scene);
    // Nothing more can be opened: no connection of the command line, no file of a policy, nothing of /proc.
    limit(&scene.agent, &["--nofile=1:4096"]);
    still_judged(&scene);
    let mut asking = UnixStream::connect(scene.agent.control_socket()).unwrap();
    asking.set_read_timeout(Some(BRIEF)).unwrap();
    assert!(asking.read(&mut [0; 1]).is_err(), "it has no descriptor to answer with");
    drop(asking);
    // Who is new meanwhile is a stranger.
    let late = scene.lab.cgroup().child("stranger");
    let (receiver, to) = scene.db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    let once = scene.lab.once(&Command::Send { socket: 0, to: Some(to), data: b"new".to_vec() });
    assert_eq!(once.spawn(&late, &scene.net, None).unwrap().wait(), Exit::Status(Errno::PERM.raw_os_error()));
    scene.db.close(receiver);
    let before = cpu(&scene.agent);
    thread::sleep(Duration::from_secs(1));
    let used = cpu(&scene.agent) - before;
    assert!(used < 0.5, "it spins: {used} s of a second");
    limit(&scene.agent, &["--nofile=4096:4096"]);
    scene.agent.wait("the agent answers again", |agent| !agent.cli(&["status", "-o", "json"]).stdout.is_empty());
    still_judged(&scene);
    scene.agent.balance();
}

#[test]
fn g92_an_agent_without_memory_takes_no_verdict_along() {
    let Some(mut scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    limit(&scene.agent, &["--as=1:unlimited"]);
    // It may take this with what it has, refuse it, or end: the same flows pass in each case.
    let more = "[{ from: web, to: db, ports: [udp/5432, tcp/5432] }, { from: web, to: other, ports: [tcp/1] }]";
    let _ = scene.agent.try_apply(&scene.policy(more, ""));
    still_judged(&scene);
    scene.agent.kill();
    still_judged(&scene);
    scene.agent.restart();
    still_judged(&scene);
}

#[test]
fn g92_a_full_disk_loses_records_and_no_verdict() {
    let disk = TempDir::with_prefix("eastwall-lab-disk-").unwrap();
    let more = Map::from_iter([("eventsFile".to_owned(), json!(disk.path().join("events.jsonl")))]);
    let Some(lab) = Lab::open(&[Need::Ip, Need::Agent]) else { return };
    let net = NetNs::new();
    let cgroups = ["web", "db", "other"].map(|name| lab.cgroup().child(name));
    let [web, db, other] = cgroups.each_ref().map(|cgroup| lab.actor(cgroup, &net));
    let options = AgentOptions { more, ..AgentOptions::default() };
    let mut agent = Agent::prepare(&lab, &policy(&lab, OPEN, ""), &options).unwrap();
    agent.inside(|| mount("none", disk.path(), "tmpfs", MountFlags::empty(), Some(c"size=128k")).unwrap());
    agent.restart();
    let scene = Scene { agent, web, db, other, net, cgroups, lab };
    still_judged(&scene);
    let filler = disk.path().join("filler");
    scene.agent.inside(|| {
        // Until nothing more fits.
        let _ = fs::write(&filler, vec![0; 1 << 20]);
    });
    for port in 1..200 {
        assert_eq!(datagram(&scene.other, SocketAddr::new(LOOPBACK[0], port), b"denied"), Err(Errno::PERM));
    }
    still_judged(&scene);
    let status = scene.agent.status();
    assert!(status.denied >= 199, "{status:#?}");
    scene.agent.inside(|| fs::remove_file(&filler).unwrap());
    // What could not be written is counted as lost, so the books close.
    let status = scene.agent.balance();
    println!("of {} denials {} were reported, {} lost", status.denied, status.reported, status.lost);
    still_judged(&scene);
}

#[test]
fn g93_without_its_hierarchy_the_agent_refuses_to_run() {
    let Some(lab) = Lab::open(&[Need::Ip, Need::Agent]) else { return };
    let mut agent = Agent::prepare(&lab, &policy(&lab, OPEN, ""), &AgentOptions::default()).unwrap();
    agent.restart();
    agent.stop();
    let root = Hierarchy::find().unwrap().mount().to_owned();
    agent.inside(|| unmount(&root, UnmountFlags::DETACH).unwrap());
    let (code, log) = agent.refuses_to_start();
    assert!(code.is_some_and(|code| code != 0), "{code:?}");
    assert!(log.contains("cgroup"), "{log}");
    let doctor = agent.cli(&["doctor", "-o", "json"]);
    assert_eq!(doctor.status.code(), Some(1));
    let said = tests::scene::document(&doctor);
    let rows = said["findings"].as_array().unwrap();
    let row = rows.iter().find(|row| row["check"] == json!("cgroup v2")).unwrap();
    assert_eq!(row["outcome"], json!("fail"), "{row:#}");
}

#[test]
fn g93_without_ipv6_the_agent_enforces_what_there_is() {
    let Some(scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    for conf in ["all", "default", "lo"] {
        scene.net.run(|| fs::write(format!("/proc/sys/net/ipv6/conf/{conf}/disable_ipv6"), "1").unwrap());
    }
    let (receiver, to) = scene.db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    assert_eq!(datagram(&scene.web, to, b"allowed"), Ok(7));
    assert_eq!(scene.db.receive(receiver, 1).unwrap().len(), 1);
    assert_eq!(datagram(&scene.other, to, b"denied"), Err(Errno::PERM));
    assert_eq!(scene.db.receive_for(receiver, 1, BRIEF), Ok(vec![]));
    scene.agent.balance();
}

#[test]
fn g89_cgroups_made_while_nobody_reads_are_strangers_and_get_their_label_afterwards() {
    let cgroups = repetitions(300, 50_000);
    let Some(scene) = Scene::open_by(with_latecomers, &AgentOptions::default()) else { return };
    let (receiver, to) = scene.db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    let once = |data: &[u8]| scene.lab.once(&Command::Send { socket: 0, to: Some(to), data: data.to_vec() });
    assert_eq!(once(b"control").spawn(&scene.cgroups[0], &scene.net, None).unwrap().wait(), Exit::Status(0));
    assert_eq!(scene.db.receive(receiver, 1).unwrap()[0].data, b"control");
    scene.agent.signal(Signal::STOP);
    let magic = magic();
    let mut witness = Witness::new(&scene.net, &magic);
    let program = once(&magic);
    let made: Vec<_> = (0..cgroups)
        .map(|n| {
            let cgroup = scene.lab.cgroup().child(&format!("late-{n}"));
            // A process in each would take its time.
            if n % 10 == 0 {
                let exit = program.spawn(&cgroup, &scene.net, None).unwrap().wait();
                assert_eq!(exit, Exit::Status(Errno::PERM.raw_os_error()), "late-{n} has no label");
            }
            cgroup
        })
        .collect();
    assert_eq!((witness.arrived(), scene.db.received(receiver)), (0, Ok(vec![])));
    scene.agent.signal(Signal::CONT);
    let start = Instant::now();
    let labelled = once(b"late");
    for cgroup in made.iter().step_by(10) {
        while labelled.spawn(cgroup, &scene.net, None).unwrap().wait() != Exit::Status(0) {
            assert!(start.elapsed() < LONG, "{} is not labelled", cgroup.path());
        }
        let _ = scene.db.received(receiver);
    }
    let first = start.elapsed();
    println!("{cgroups} cgroups made unseen; {} of them asked, all labelled after {first:?}", made.len().div_ceil(10));
    assert!(first < LATE_MAX + Duration::from_millis(20) * u32::try_from(made.len().div_ceil(10)).unwrap());
    scene.agent.balance();
}

/// The number of a process that has just ended, for the next one.
fn denied(scene: &Scene, actor: &Actor, port: u16) -> Value {
    assert_eq!(datagram(actor, SocketAddr::new(LOOPBACK[0], port), b"denied"), Err(Errno::PERM));
    scene
        .agent
        .event("a denial", |event| event["action"] == json!("Denied") && event["dst_endpoint"]["port"] == json!(port))
}

#[test]
fn g32_a_number_of_a_process_that_comes_back_is_another_process() {
    let Some(scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let said = |event: &Value, pointer: &str| {
        event.pointer(pointer).cloned().unwrap_or_else(|| panic!("{pointer}: {event:#}"))
    };
    let first = denied(&scene, &scene.other, 7001);
    let pid = scene.other.process().pid();
    let Scene { agent, web, db, other, net, cgroups, lab } = scene;
    drop(other);
    // In the place of `web`, which may do what `other` may not.
    let heir = lab.actor_numbered(&cgroups[0], &net, pid);
    assert_eq!(heir.process().pid(), pid);
    let scene = Scene { agent, web, db, other: heir, net, cgroups, lab };
    let (receiver, to) = scene.db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    assert_eq!(datagram(&scene.other, to, b"as web"), Ok(6), "no verdict goes by the number");
    assert_eq!(scene.db.receive(receiver, 1).unwrap().len(), 1);
    let second = denied(&scene, &scene.other, 7002);
    for event in [&first, &second] {
        assert_eq!(said(event, "/actor/process/pid"), json!(pid));
    }
    let began = |event: &Value| said(event, "/actor/process/created_time").as_u64().unwrap();
    assert!(began(&second) > began(&first), "{first:#} {second:#}");
    let cgroup = |event: &Value| said(event, "/unmapped/eastwall/cgroup_id");
    assert_eq!(cgroup(&first), json!(format!("{:#x}", scene.cgroups[2].id())));
    assert_eq!(cgroup(&second), json!(format!("{:#x}", scene.cgroups[0].id())));
}
