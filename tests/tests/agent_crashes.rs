//! The agent is killed under load: the kernel goes on alone, and the next agent takes over what is there.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test fails by the one and shows figures by the other")]

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use tests::{
    lab::{Agent, AgentOptions, Errno, Witness, magic},
    scene::{BRIEF, LONG, LOOPBACK, PORT, Scene, datagram, is_long, repetitions},
};

const OPEN: &str = "[{ from: web, to: db, ports: [tcp/5432] }]";
/// Nothing for `web`; a policy without any rule is not valid.
const CLOSED: &str = "[{ from: db, to: other, ports: [tcp/1] }]";

/// Between two rounds of load: the agent must get its turn on a machine of two CPUs.
const PAUSE: Duration = Duration::from_millis(1);

/// Every pin of an agent, sorted.
fn pins(agent: &Agent) -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            match entry.file_type().unwrap().is_dir() {
                true => walk(&entry.path(), found),
                false => found.push(entry.path()),
            }
        }
    }
    let mut found = Vec::new();
    agent.inside(|| walk(&agent.path("bpf"), &mut found));
    // The kernel's own: lists of everything that is loaded.
    found.retain(|path| path.extension().is_none_or(|e| e != "debug"));
    found.sort();
    found
}

/// How many programs, maps and links the agent holds open. With its pins, that is all it can leak.
fn held(agent: &Agent) -> usize {
    let dir = format!("/proc/{}/fdinfo", agent.pid().unwrap());
    let infos = fs::read_dir(dir).unwrap().flatten().filter_map(|e| fs::read_to_string(e.path()).ok());
    infos.filter(|info| ["prog_id:", "map_id:", "link_id:"].iter().any(|field| info.contains(field))).count()
}

#[test]
fn g82_killing_the_agent_under_load_lets_no_denied_payload_pass_and_cuts_no_allowed_connection() {
    kill_under_load(true, repetitions(20, 100));
}

#[test]
fn g82_killing_the_agent_under_load_lets_no_denied_payload_pass_the_boundary_alone() {
    kill_under_load(false, repetitions(5, 100));
}

fn kill_under_load(fast_refusal: bool, kills: usize) {
    let options = AgentOptions { fast_refusal, ..AgentOptions::default() };
    let Some(mut scene) = Scene::open(OPEN, &options) else { return };
    let addr = SocketAddr::new(LOOPBACK[0], PORT);
    let connection = scene.connection(LOOPBACK[0]);
    let denied_bytes = magic();
    let (pins_before, held_before) = (pins(&scene.agent), held(&scene.agent));
    assert!(!pins_before.is_empty() && held_before > 0);
    let (answers, connects, refusals) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let Scene { agent, web, db, other, net, .. } = &mut scene;
    let mut witness = Witness::new(net, &denied_bytes);
    let mut restarts = Vec::new();
    let allowed = || {
        web.send(connection.caller, b"ask").expect("the allowed connection lives");
        let asked = db.receive(connection.callee, 1).expect("the allowed connection lives");
        assert_eq!(asked.len(), 1, "the allowed connection carries payload");
        answers.fetch_add(1, Ordering::Relaxed);
        let new = web.tcp_connect(addr, LONG).expect("a new allowed connection");
        let accepted = db.accept(connection.listener).expect("a new allowed connection");
        web.close(new);
        db.close(accepted);
        connects.fetch_add(1, Ordering::Relaxed);
        thread::sleep(PAUSE);
    };
    let refused = || {
        assert_eq!(datagram(other, addr, &denied_bytes), Err(Errno::PERM));
        match other.tcp_connect(addr, if fast_refusal { LONG } else { BRIEF }) {
            Err(Errno::PERM) if fast_refusal => {}
            // A call into silence, and one that a successor found on its way and ended.
            Err(Errno::TIMEDOUT | Errno::CONNABORTED) if !fast_refusal => {}
            called => panic!("a denied call: {called:?}"),
        }
        refusals.fetch_add(2, Ordering::Relaxed);
        thread::sleep(PAUSE);
    };
    witness.during(&[&allowed, &refused], || {
        for kill in 0..kills {
            // At several ages, all of them after the agent was ready: a kill during a start is not tried here.
            thread::sleep(Duration::from_millis(u64::try_from(kill % 7).unwrap() * 20));
            agent.kill();
            thread::sleep(Duration::from_millis(50));
            let start = Instant::now();
            agent.restart();
            restarts.push(start.elapsed());
            assert!(agent.status().adopted, "restart {kill} adopts");
        }
    });
    restarts.sort();
    println!(
        "{kills} kills: {} answers and {} new connections, none lost; {} refusals, none missed; a restart takes {:?} \
         (median) to {:?}",
        answers.into_inner(),
        connects.into_inner(),
        refusals.into_inner(),
        restarts[restarts.len() / 2],
        restarts[restarts.len() - 1],
    );
    assert_eq!(witness.arrived(), 0, "denied payloads");
    scene.talk(&connection);
    assert_eq!(pins(&scene.agent), pins_before, "no pin is left behind or lost");
    assert_eq!(held(&scene.agent), held_before, "no program, map or link is held twice");
    let status = scene.agent.balance();
    println!("books after {kills} kills: {} denied, of them {} lost as records", status.denied, status.lost);
}

#[test]
fn g82_a_denial_that_is_told_as_the_agent_is_killed_is_told_once() {
    let Some(mut scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let spool = scene.agent.path("events.jsonl");
    let length = || fs::metadata(&spool).map_or(0, |file| file.len());
    let rounds = u16::try_from(repetitions(10, 200)).unwrap();
    for port in 1..=rounds {
        scene.agent.balance();
        let before = length();
        // A port of its own: none of them repeats another.
        assert_eq!(datagram(&scene.other, SocketAddr::new(LOOPBACK[0], port), b"x"), Err(Errno::PERM));
        let end = Instant::now() + LONG;
        while length() == before {
            assert!(Instant::now() < end, "the denial is told");
        }
        scene.agent.kill();
        scene.agent.restart();
    }
    let status = scene.agent.balance();
    let of_port = |port: u16| {
        move |event: &&serde_json::Value| event["dst_endpoint"]["port"] == port && event["type_uid"].is_number()
    };
    let events = scene.agent.events();
    for port in 1..=rounds {
        assert_eq!(events.iter().filter(of_port(port)).count(), 1, "records about port {port}");
    }
    assert_eq!((status.denied, status.lost), (u64::from(rounds), 0), "{status:#?}");
}

#[test]
fn g82_an_agent_that_is_gone_leaves_verdicts_as_they_are_and_its_successor_applies_what_changed() {
    let Some(mut scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let connection = scene.connection(LOOPBACK[0]);
    scene.agent.stop();
    scene.talk(&connection);
    assert_eq!(scene.other.tcp_connect(connection.addr, LONG), Err(Errno::PERM));
    assert!(scene.web.tcp_connect(connection.addr, LONG).is_ok());
    // What starts meanwhile is unknown, and the unknown is denied.
    let newcomer = scene.lab.cgroup().child("newcomer");
    let stranger = scene.lab.actor(&newcomer, &scene.net);
    assert_eq!(stranger.tcp_connect(connection.addr, LONG), Err(Errno::PERM));
    fs::write(scene.agent.policy_file(), scene.policy(CLOSED, "")).unwrap();
    scene.agent.restart();
    assert!(scene.web.send(connection.caller, b"x").is_err(), "the successor cuts what lost its rule");
    assert_eq!(scene.web.tcp_connect(connection.addr, LONG), Err(Errno::PERM));
    let status = scene.agent.balance();
    assert_eq!(status.lost, 0, "a stop in order loses no record");
}

#[test]
fn g82_an_agent_that_is_stopped_in_its_tracks_changes_no_verdict_and_newcomers_wait_for_it() {
    let stopped_for = Duration::from_secs(u64::try_from(repetitions(2, 60)).unwrap());
    let named = |lab: &tests::lab::Lab| {
        let late =
            format!("  workloads:\n    - {{ name: late, select: {{ cgroup: {}/late }} }}\n", lab.cgroup().path());
        let rules = "[{ from: web, to: db, ports: [tcp/5432] }, { from: late, to: db, ports: [tcp/5432] }]";
        tests::scene::policy(lab, rules, "").replace("  workloads:\n", &late)
    };
    let Some(scene) = Scene::open_by(named, &AgentOptions::default()) else { return };
    let connection = scene.connection(LOOPBACK[0]);
    scene.agent.signal(rustix::process::Signal::STOP);
    wait_until_stopped(scene.agent.pid().unwrap());
    if is_long() {
        let said = scene.agent.cli(&["status"]);
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.status.code() == Some(7) && text.contains("has not answered for 30 s: it is stopped"), "{text}");
    }
    let late = scene.lab.cgroup().child("late");
    let newcomer = scene.lab.actor(&late, &scene.net);
    let end = Instant::now() + stopped_for;
    while Instant::now() < end {
        scene.talk(&connection);
        assert_eq!(scene.other.tcp_connect(connection.addr, LONG), Err(Errno::PERM));
        assert_eq!(newcomer.tcp_connect(connection.addr, LONG), Err(Errno::PERM), "nobody has labelled it");
        thread::sleep(Duration::from_millis(10));
    }
    scene.agent.signal(rustix::process::Signal::CONT);
    let end = Instant::now() + LONG;
    while newcomer.tcp_connect(connection.addr, LONG).is_err() {
        assert!(Instant::now() < end, "the newcomer is labelled once the agent goes on");
    }
    scene.agent.balance();
}

/// A stop reaches each thread when it next leaves the kernel, which may be after the signal was sent.
fn wait_until_stopped(pid: u32) {
    let end = Instant::now() + LONG;
    let stopped = |stat: &str| stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'));
    let threads = || fs::read_dir(format!("/proc/{pid}/task")).unwrap().map(|task| task.unwrap().path().join("stat"));
    while !threads().all(|stat| fs::read_to_string(stat).is_ok_and(|stat| stopped(&stat))) {
        assert!(Instant::now() < end, "process {pid} does not stop");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_detach_takes_everything_off_and_a_second_agent_is_refused() {
    let Some(mut scene) = Scene::open(CLOSED, &AgentOptions::default()) else { return };
    let (_listener, addr) = scene.db.tcp_listen(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    assert_eq!(scene.web.tcp_connect(addr, LONG), Err(Errno::PERM));
    let config = scene.agent.path("agent.yaml").display().to_string();
    let second = scene.agent.cli(&["agent", "--config", &config]);
    assert!(!second.status.success());
    assert!(String::from_utf8_lossy(&second.stderr).contains("another agent"), "{second:?}");
    let running = scene.agent.cli(&["detach", "--config", &config, "--yes"]);
    assert!(!running.status.success(), "not under a running agent: {running:?}");
    assert_eq!(scene.web.tcp_connect(addr, LONG), Err(Errno::PERM));
    scene.agent.balance();
    scene.agent.stop();
    assert!(!scene.agent.cli(&["detach", "--config", &config]).status.success(), "not without being sure");
    let output = scene.agent.cli(&["detach", "--config", &config, "--yes"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(pins(&scene.agent), Vec::<PathBuf>::new());
    assert!(scene.web.tcp_connect(addr, LONG).is_ok(), "nothing is enforced");
}
