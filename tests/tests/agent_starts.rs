//! The agent starts where something fails, or where it is not where it thinks it is: G75, G91, G96 and G98 of
//! the list of gaps.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{fs, net::SocketAddr, time::Duration};

use eastwall::sources::cgroup::Hierarchy;
use serde_json::{Value, json};
use tests::{
    lab::{Actor, Agent, AgentOptions, Errno, Lab, Need, NetNs, require_or_skip},
    scene::{BRIEF, Connection, LONG, LOOPBACK, PORT, Scene, datagram, policy, repetitions},
};

const OPEN: &str = "[{ from: web, to: db, ports: [tcp/5432, udp/5432] }]";

/// A script that moves into the cgroup `$0` and becomes the rest of its arguments.
const MOVE_AND_BECOME: &str = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;

/// Lets the `n`th call of bpf(2) of each thread fail, and every later one as well if asked to.
fn failing(n: usize, and_later: bool) -> Vec<String> {
    let when = if and_later { format!("{n}+") } else { n.to_string() };
    let inject = format!("inject=bpf:error=ENOMEM:when={when}");
    // -D: the agent is our child, and strace its companion.
    ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=bpf", "-e", &inject].map(str::to_owned).to_vec()
}

/// Tries to start an agent; says whether it became ready.
fn becomes_ready(agent: &mut Agent, words: &[String]) -> bool {
    agent.start_by(&words.iter().map(String::as_str).collect::<Vec<_>>());
    let ready = agent.try_restart();
    agent.start_by(&[]);
    ready
}

/// Checks that the policy is in force, all of it.
fn in_force(scene: &Scene, connection: &Connection, when: &str) {
    scene.talk(connection);
    assert_eq!(datagram(&scene.other, connection.addr, b"x"), Err(Errno::PERM), "{when}");
    let refused = scene.other.tcp_connect(connection.addr, LONG);
    assert_eq!(refused, Err(Errno::PERM), "{when}");
    let caller = scene.web.tcp_connect(connection.addr, LONG).unwrap_or_else(|e| panic!("{when}: {e}"));
    let callee = scene.db.accept(connection.listener).unwrap();
    scene.web.close(caller);
    scene.db.close(callee);
}

#[test]
fn g75_a_failure_while_an_agent_takes_over_leaves_what_is_in_force() {
    if require_or_skip(&[Need::Strace]).is_none() {
        return;
    }
    let Some(mut scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let connection = scene.connection(LOOPBACK[0]);
    in_force(&scene, &connection, "before");
    let (mut ready, mut ended) = (0, 0);
    for (n, and_later) in positions() {
        scene.agent.kill();
        let words = failing(n, and_later);
        if becomes_ready(&mut scene.agent, &words) {
            ready += 1;
        } else {
            ended += 1;
        }
        in_force(&scene, &connection, &format!("call {n} fails"));
    }
    println!("{ended} starts ended with an error, {ready} were not hurt; enforcement never stopped");
    assert!(ended > 0, "something was made to fail");
    scene.agent.kill();
    scene.agent.restart();
    in_force(&scene, &connection, "after");
    assert!(scene.agent.status().adopted);
}

#[test]
fn g91_an_agent_that_looks_at_nothing_any_more_ends_and_says_why() {
    if require_or_skip(&[Need::Strace]).is_none() {
        return;
    }
    let Some(mut scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let connection = scene.connection(LOOPBACK[0]);
    scene.agent.kill();
    // The thread that looks after the kernel waits by ppoll(2), and nothing else does as often.
    let words = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=ppoll", "-e"];
    scene.agent.start_by(&[&words[..], &["inject=ppoll:error=ENOMEM:when=30+"]].concat());
    scene.agent.restart();
    scene.agent.start_by(&[]);
    let status = scene.agent.ends();
    assert_eq!(status.code(), Some(6), "{}", scene.agent.log());
    assert!(scene.agent.log().contains("wait for the kernel"), "{}", scene.agent.log());
    in_force(&scene, &connection, "without an agent");
    scene.agent.restart();
    in_force(&scene, &connection, "with the next one");
}

/// Which calls are made to fail, and whether all after them fail as well.
fn positions() -> impl Iterator<Item = (usize, bool)> {
    let step = repetitions(24, 1);
    (1..=120).step_by(step).flat_map(|n| [(n, false), (n + 12, true)])
}

#[test]
fn g75_an_agent_that_is_ready_enforces_all_of_it_whatever_failed_before() {
    if require_or_skip(&[Need::Strace]).is_none() {
        return;
    }
    let (mut ready, mut ended) = (0, 0);
    for (n, and_later) in positions().map(|(n, and_later)| (n + 5, and_later)) {
        let Some(lab) = Lab::open(&[Need::Ip, Need::Agent]) else { return };
        let net = NetNs::new();
        let cgroups = ["web", "db", "other"].map(|name| lab.cgroup().child(name));
        let [web, db, other] = cgroups.each_ref().map(|cgroup| lab.actor(cgroup, &net));
        let mut agent = Agent::prepare(&lab, &policy(&lab, OPEN, ""), &AgentOptions::default()).unwrap();
        let judged = |when: &str| {
            let (listener, addr) = db.tcp_listen(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
            assert_eq!(other.tcp_connect(addr, LONG), Err(Errno::PERM), "{when}");
            let caller = web.tcp_connect(addr, LONG).unwrap_or_else(|e| panic!("{when}: {e}"));
            let callee = db.accept(listener).unwrap();
            web.close(caller);
            db.close(callee);
            db.close(listener);
        };
        if becomes_ready(&mut agent, &failing(n, and_later)) {
            ready += 1;
            judged(&format!("ready although call {n} failed"));
        } else {
            ended += 1;
            assert!(agent.cli(&["status"]).status.code() != Some(0), "nobody says that all is well");
            // What it left is no hindrance, and what it attached lets nothing pass that is denied.
            agent.restart();
            judged(&format!("after a start whose call {n} failed"));
            assert_eq!(agent.status().problems, [""; 0]);
        }
    }
    println!("{ended} starts ended with an error, {ready} were not hurt");
    assert!(ended > 0, "something was made to fail");
}

/// Reads the configuration of an agent, lets `change` change it and writes it back.
fn configure(agent: &Agent, change: impl FnOnce(&mut Value)) {
    let path = agent.path("agent.yaml");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

#[test]
fn g96_an_agent_that_sees_a_part_of_the_hierarchy_refuses_to_guard_it_as_the_whole() {
    let Some(lab) = Lab::open(&[Need::Ip, Need::Agent]) else { return };
    let mount = Hierarchy::find().unwrap().mount().display().to_string();
    let inner = lab.cgroup().child("container");
    let mut agent = Agent::prepare(&lab, &policy(&lab, OPEN, ""), &AgentOptions::default()).unwrap();
    configure(&agent, |config| config["scope"] = json!("/"));
    // A namespace as a container has one: its own cgroup is the root of all it sees. A script that still
    // sees the real one must not go on, or this test would guard the machine.
    let script = r#"
        umount -l "$0" && mount -t cgroup2 none "$0" || exit 98
        for seen in $(awk '$3 == "cgroup2" { print $2 }' /proc/self/mounts); do
            [ "$(stat -c %i "$seen")" != 1 ] || exit 99
        done
        exec "$@""#;
    let dir = inner.dir().display().to_string();
    let unshare = ["unshare", "--cgroup", "--mount", "sh", "-c", script, &mount];
    agent.start_by(&[&["sh", "-c", MOVE_AND_BECOME, &dir][..], &unshare].concat());
    let (code, log) = agent.refuses_to_start();
    assert!(log.contains("not the root of the hierarchy"), "{code:?} {log}");
    assert!(code.is_some_and(|code| code != 0 && code < 98), "{code:?} {log}");
    // The same agent, in the same place, told to guard that part only.
    configure(&agent, |config| config["scope"] = json!("/part"));
    let _part = inner.child("part");
    agent.restart();
    assert_eq!(agent.status().scope, "/part");
}

#[test]
fn g96_an_agent_in_a_cgroup_namespace_that_sees_the_real_root_guards_what_it_should() {
    let Some(lab) = Lab::open(&[Need::Ip, Need::Agent]) else { return };
    let net = NetNs::new();
    let cgroups = ["web", "db", "other", "agent", "canary"].map(|name| lab.cgroup().child(name));
    let [web, db, other, _, canary] = cgroups.each_ref().map(|cgroup| lab.actor(cgroup, &net));
    let (receiver, to) = db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    assert_eq!(datagram(&canary, to, b"x"), Ok(1), "nobody judges yet");
    assert_eq!(db.receive(receiver, 1).unwrap().len(), 1);
    let mut agent = Agent::prepare(&lab, &policy(&lab, OPEN, ""), &AgentOptions::default()).unwrap();
    let dir = cgroups[3].dir().display().to_string();
    agent.start_by(&["sh", "-c", MOVE_AND_BECOME, &dir, "unshare", "--cgroup"]);
    agent.restart();
    assert_eq!(datagram(&web, to, b"allowed"), Ok(7));
    assert_eq!(db.receive(receiver, 1).unwrap()[0].data, b"allowed");
    // Beside the agent, not below it: a wrong root would leave these out.
    for denied in [&other, &canary] {
        assert_eq!(datagram(denied, to, b"denied"), Err(Errno::PERM));
    }
    assert_eq!(db.receive_for(receiver, 1, BRIEF), Ok(vec![]));
    agent.balance();
}

#[test]
fn g98_the_cgroup_of_the_agent_has_no_pass_and_a_fresh_host_keeps_its_management_port() {
    let fresh = |lab: &Lab, mode: &str| policy(lab, OPEN, "").replace("  defaults: { mode: enforce }\n", mode);
    let Some(lab) = Lab::open(&[Need::Ip, Need::Agent]) else { return };
    let net = NetNs::new();
    let names = ["web", "db", "other", "system.slice/eastwall.service", "system.slice/ssh.service"];
    let cgroups = names.map(|name| lab.cgroup().child(name));
    let [web, db, admin, beside, ssh] = cgroups.each_ref().map(|cgroup| lab.actor(cgroup, &net));
    // As a policy without modes has it.
    let mut agent = Agent::prepare(&lab, &fresh(&lab, ""), &AgentOptions::default()).unwrap();
    let dir = cgroups[3].dir().display().to_string();
    agent.start_by(&["sh", "-c", MOVE_AND_BECOME, &dir]);
    agent.restart();
    let (receiver, to) = db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    let (listener, port) = ssh.tcp_listen(SocketAddr::new(LOOPBACK[0], 22)).unwrap();
    let reach = |from: &Actor| {
        let caller = from.tcp_connect(port, LONG)?;
        let callee = ssh.accept(listener)?;
        from.close(caller);
        ssh.close(callee);
        Ok::<(), Errno>(())
    };
    assert!(cgroups[3].processes().contains(&i32::try_from(agent.pid().unwrap()).unwrap()));
    assert_eq!(reach(&admin), Ok(()), "nothing enforces on a fresh host");
    assert_eq!(datagram(&beside, to, b"observed"), Ok(8));
    assert_eq!(db.receive(receiver, 1).unwrap()[0].data, b"observed");
    agent.apply(&policy(&lab, OPEN, ""));
    assert_eq!(datagram(&web, to, b"allowed"), Ok(7));
    assert_eq!(db.receive(receiver, 1).unwrap()[0].data, b"allowed");
    assert_eq!(datagram(&beside, to, b"denied"), Err(Errno::PERM), "the agent's cgroup is one like any other");
    assert_eq!(beside.tcp_connect(port, Duration::from_secs(1)), Err(Errno::PERM));
    assert_eq!(reach(&admin), Err(Errno::PERM));
    assert_eq!(db.receive_for(receiver, 1, BRIEF), Ok(vec![]));
    let event = agent.event("the denial of the agent's cgroup", |e| {
        e.pointer("/src_endpoint/svc_name").and_then(Value::as_str) == Some("unit/eastwall.service")
    });
    assert_eq!(event.pointer("/action").and_then(Value::as_str), Some("Denied"), "{event:#}");
    // It is still there to be asked.
    agent.balance();
}
