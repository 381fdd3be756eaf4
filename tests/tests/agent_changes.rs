//! Changes of what is in force: they act on open connections, and a bad one changes nothing.

use std::{
    fmt::Write as _,
    fs,
    net::SocketAddr,
    time::{Duration, Instant},
};

use eastwall::control::{
    client,
    wire::{Applied, Reply, Request},
};
use serde_json::Value;
use tests::{
    lab::{Actor, Agent, AgentOptions, Errno, Lab, Reply as Done, Socket, Witness, magic, patience},
    scene::{BRIEF, LONG, LOOPBACK, PORT, Scene, document, is_long, policy, repetitions},
};

const OPEN: &str = "[{ from: web, to: db, ports: [tcp/5432] }]";
/// Nothing for `web`; a policy without any rule is not valid.
const CLOSED: &str = "[{ from: db, to: other, ports: [tcp/1] }]";
/// Slowest end of a connection that lost its rule, in 99 of 100 rounds.
const CUT_MAX: Duration = Duration::from_secs(1);

/// Slowest refusal of a new flow after the change was acknowledged, in 99 of 100 rounds.
const REFUSED_MAX: Duration = Duration::from_millis(100);
/// Rules of the policy under which a revocation is timed.
const RULES: usize = 1_000;

/// [`OPEN`] among [`RULES`] rules in all, and the externals that the others speak of.
fn many_rules() -> (String, String) {
    let (mut rules, mut externals) = (OPEN.trim_end_matches(']').to_owned(), "  externals:\n".to_owned());
    for n in 1..RULES {
        let _ = write!(rules, ", {{ from: db, to: partner-{n}, ports: [tcp/443] }}");
        let _ = writeln!(externals, "    - {{ name: partner-{n}, cidrs: [198.18.{}.{}/32] }}", n / 250, n % 250 + 1);
    }
    rules.push(']');
    (rules, externals)
}

/// Whether the receive that an actor waits in ended with the connection.
fn ended(actor: &Actor) -> bool {
    match actor.end() {
        Err(_) => true,
        Ok(Done::Messages(messages)) => messages.iter().any(|m| m.data.is_empty()),
        Ok(other) => panic!("a receive gives messages: {other:?}"),
    }
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).saturating_sub(1)]
}

#[test]
fn g70_a_revocation_ends_the_open_connection_at_both_ends_and_its_undoing_restores_the_flow() {
    let rounds = repetitions(50, 200);
    let (rules, externals) = many_rules();
    let policy_of = |lab: &Lab| policy(lab, &rules, &externals);
    let Some(scene) = Scene::open_by(policy_of, &AgentOptions::default()) else { return };
    let (mut times, mut refusals) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let addr = LOOPBACK[round % 2];
        let connection = scene.connection(addr);
        scene.talk(&connection);
        // Each end waits for a byte that never comes.
        let wait = |socket: Socket| socket.receive_command(1, LONG);
        scene.web.begin(&wait(connection.caller), None);
        scene.db.begin(&wait(connection.callee), None);
        let start = Instant::now();
        let applied = scene.agent.change(&["revoke", "web", "db", "--reason", "test"]);
        assert!(ended(&scene.web), "the caller sees the end in round {round}");
        assert!(ended(&scene.db), "the callee sees the end in round {round}");
        times.push(start.elapsed());
        assert!(applied.cut >= 1, "{applied:?}");
        let acknowledged = Instant::now();
        assert_eq!(scene.web.tcp_connect(connection.addr, LONG), Err(Errno::PERM), "a new flow in round {round}");
        refusals.push(acknowledged.elapsed());
        scene.agent.change(&["revoke", "--undo", applied.id.as_deref().unwrap()]);
        scene.hang_up(connection);
    }
    scene.hang_up(scene.connection(LOOPBACK[0]));
    times.sort();
    let (p50, p99) = (percentile(&times, 50), percentile(&times, 99));
    refusals.sort();
    let refused = percentile(&refusals, 99);
    println!(
        "revoke under {RULES} rules to the end at both ends, {rounds} rounds: p50 {p50:?}, p99 {p99:?}, command line \
         included; the next flow refused after p99 {refused:?}"
    );
    // A few rounds on a machine that does much else say little of a percentile.
    let promised = |time| if is_long() { patience(time) } else { patience(LONG) };
    assert!(p99 < promised(CUT_MAX), "{p99:?}");
    assert!(refused < promised(REFUSED_MAX), "{refused:?}");
    let status = scene.agent.balance();
    assert_eq!((status.overrides, status.lost), (0, 0), "{status:#?}");
    scene.agent.event("the cut", |e| e.pointer("/metadata/event_code").is_some_and(|c| c == "cut"));
}

#[test]
fn g70_of_many_streams_the_revoked_half_ends_and_the_other_half_goes_on() {
    const EACH: usize = 25;
    const BOTH: &str = "[{ from: web, to: db, ports: [tcp/5432] }, { from: other, to: db, ports: [tcp/5432] }]";
    let Some(scene) = Scene::open(BOTH, &AgentOptions::default()) else { return };
    for addr in LOOPBACK {
        scene.rules(BOTH);
        let (listener, addr) = scene.db.tcp_listen(SocketAddr::new(addr, PORT)).expect("listen");
        let open = |from: &Actor| -> Vec<(Socket, Socket)> {
            let one = |_| {
                let caller = from.tcp_connect(addr, LONG).expect("an allowed connection");
                (caller, scene.db.accept(listener).expect("accept it"))
            };
            (0..EACH).map(one).collect()
        };
        let (kept, revoked) = (open(&scene.web), open(&scene.other));
        let carry = |from: &Actor, flows: &[(Socket, Socket)]| {
            for &(caller, callee) in flows {
                from.send(caller, b"stream").expect("an open stream takes payload");
                assert_eq!(scene.db.receive(callee, 1).expect("it arrives")[0].data, b"stream");
            }
        };
        carry(&scene.web, &kept);
        carry(&scene.other, &revoked);
        scene.rules(OPEN);
        let denied = magic();
        let mut witness = Witness::new(&scene.net, &denied);
        let start = Instant::now();
        for &(caller, callee) in &revoked {
            // Nothing that is sent after the new policy is acknowledged arrives, and nobody hangs.
            let _ = scene.other.send(caller, &denied);
            let end = scene.db.receive_for(callee, 1, LONG);
            assert!(end == Err(Errno::CONNRESET) || end == Err(Errno::CONNABORTED), "{end:?}");
        }
        assert!(start.elapsed() < patience(CUT_MAX * 5), "{:?}", start.elapsed());
        assert_eq!(witness.arrived(), 0);
        carry(&scene.web, &kept);
        for (party, flows) in [(&scene.web, kept), (&scene.other, revoked)] {
            for (caller, callee) in flows {
                party.close(caller);
                scene.db.close(callee);
            }
        }
        scene.db.close(listener);
    }
    scene.agent.balance();
}

#[test]
fn an_override_survives_a_restart_of_the_agent() {
    let Some(mut scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    scene.hang_up(scene.connection(LOOPBACK[0]));
    let id = scene.agent.change(&["revoke", "web", "db", "--reason", "test"]).id.unwrap();
    scene.agent.kill();
    scene.agent.restart();
    let (_listener, addr) = scene.db.tcp_listen(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    assert_eq!(scene.web.tcp_connect(addr, LONG), Err(Errno::PERM));
    scene.agent.change(&["revoke", "--undo", &id]);
    assert!(scene.web.tcp_connect(addr, LONG).is_ok());
    scene.agent.balance();
}

#[test]
fn g88_break_glass_opens_a_flow_until_it_ends_by_itself_and_then_cuts_it() {
    let Some(scene) = Scene::open(CLOSED, &AgentOptions::default()) else { return };
    let (listener, addr) = scene.db.tcp_listen(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    assert_eq!(scene.web.tcp_connect(addr, LONG), Err(Errno::PERM));
    let words = ["break-glass", "web", "db:tcp/5432", "--reason", "test", "--for", "3s", "--yes"];
    scene.agent.change(&words);
    let caller = scene.web.tcp_connect(addr, LONG).unwrap();
    let callee = scene.db.accept(listener).unwrap();
    scene.db.begin(&callee.receive_command(1, Duration::from_secs(20)), None);
    scene.web.send(caller, b"x").unwrap();
    assert!(matches!(scene.db.end(), Ok(Done::Messages(m)) if m.len() == 1));
    scene.db.begin(&callee.receive_command(1, Duration::from_secs(20)), None);
    assert!(ended(&scene.db), "the connection ends with the permission");
    assert_eq!(scene.web.tcp_connect(addr, LONG), Err(Errno::PERM));
    scene.agent.balance();
}

#[test]
fn a_bad_policy_is_refused_whole_and_the_running_one_goes_on() {
    let Some(scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let connection = scene.connection(LOOPBACK[0]);
    let before = scene.agent.status();
    let bad = [
        ("an unknown field", scene.policy(CLOSED, "  nonsense: 1\n")),
        ("an unknown name", scene.policy("[{ from: nobody, to: db, ports: [tcp/1] }]", "")),
        ("no YAML", "spec: [".to_owned()),
        ("nothing", String::new()),
    ];
    for (what, text) in bad {
        let output = scene.agent.try_apply(&text);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{what}: {said}");
        // The command line checks first; the agent trusts no command line.
        let files = vec![("lab.yaml".to_owned(), text.clone())];
        match client::ask(&scene.agent.control_socket(), &Request::Apply { files }).unwrap() {
            Reply::Refused { code, .. } => assert_eq!(code, 3, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    let tests = "  tests: [{ from: web, deny: [db:tcp/5432] }]\n";
    let output = scene.agent.try_apply(&scene.policy(OPEN, tests));
    assert_eq!(output.status.code(), Some(1), "tests that fail: {}", String::from_utf8_lossy(&output.stderr));
    let after = scene.agent.status();
    assert_eq!((&after.policy_hash, after.epoch), (&before.policy_hash, before.epoch));
    assert!(scene.agent.policy_file().exists(), "a refusal leaves the directory as it is");
    scene.talk(&connection);
    scene.agent.apply(&scene.policy(CLOSED, ""));
    assert!(scene.web.send(connection.caller, b"x").is_err(), "a good policy is taken, and cuts");
    scene.agent.balance();
}

#[test]
fn g94_an_edit_of_the_policy_directory_is_picked_up_by_itself_and_a_bad_one_is_a_problem() {
    let Some(mut scene) = Scene::open(CLOSED, &AgentOptions::default()) else { return };
    let (_listener, addr) = scene.db.tcp_listen(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    assert_eq!(scene.web.tcp_connect(addr, LONG), Err(Errno::PERM));
    let closed_hash = scene.agent.status().policy_hash;
    let edit = |text: &str| {
        let new = scene.agent.path("policy.d/.lab.yaml.new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, scene.agent.policy_file()).unwrap();
    };
    let open = scene.policy(OPEN, "");
    let start = Instant::now();
    edit(&open);
    scene.agent.wait("the edit is in force", |agent| agent.status().policy_hash != closed_hash);
    println!("an edit of the directory is in force after {:?}", start.elapsed());
    assert!(scene.web.tcp_connect(addr, LONG).is_ok());
    let good = scene.agent.status();
    fs::write(scene.agent.policy_file(), "spec: [").unwrap();
    scene.agent.wait("the bad edit is a problem", |agent| !agent.status().problems.is_empty());
    let status = scene.agent.status();
    assert_eq!((status.policy_hash, status.epoch), (good.policy_hash, good.epoch));
    assert!(scene.web.tcp_connect(addr, LONG).is_ok(), "the last complete policy stays in force");
    // What is in force does not depend on the directory being good when the agent starts.
    scene.agent.kill();
    scene.agent.restart();
    assert!(scene.web.tcp_connect(addr, LONG).is_ok());
    assert!(!scene.agent.status().problems.is_empty());
    fs::write(scene.agent.policy_file(), &open).unwrap();
    scene.agent.wait("the problem is gone", |agent| agent.status().problems.is_empty());
    scene.agent.balance();
}

#[test]
fn a_change_says_how_many_edges_it_opens_and_closes() {
    let Some(mut scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let told = |agent: &Agent, epoch: u32| {
        let event = agent.event("a change of policy", |e| {
            e.pointer("/metadata/event_code").is_some_and(|c| c == "policy")
                && e.pointer("/unmapped/eastwall/epoch").is_some_and(|n| *n == epoch)
        });
        let number = |field| event.pointer(&format!("/unmapped/eastwall/{field}")).and_then(Value::as_u64).unwrap();
        (number("edges_opened"), number("edges_closed"))
    };
    assert_eq!(told(&scene.agent, 1), (1, 0), "the first policy opens what it allows");
    let more = "[{ from: web, to: db, ports: [tcp/5432] }, { from: other, to: db, ports: [tcp/5432] }]";
    scene.rules(more);
    assert_eq!(told(&scene.agent, 2), (1, 0));
    scene.rules(CLOSED);
    assert_eq!(told(&scene.agent, 3), (1, 2));
    scene.rules(OPEN);
    assert_eq!(told(&scene.agent, 4), (1, 1));
    let revoked = scene.agent.change(&["revoke", "web", "db", "--reason", "test"]);
    assert_eq!((revoked.opened, revoked.closed), (0, 1), "{revoked:?}");
    assert_eq!(told(&scene.agent, 5), (0, 1));
    let undone = scene.agent.change(&["revoke", "--undo", revoked.id.as_deref().unwrap()]);
    assert_eq!((undone.opened, undone.closed), (1, 0), "{undone:?}");
    let glass = ["break-glass", "other", "db:tcp/5432", "--reason", "test", "--for", "3s", "--yes"];
    assert_eq!(scene.agent.change(&glass).opened, 1);
    assert_eq!(told(&scene.agent, 8), (0, 1), "what ends by itself is closed");
    // A successor compares with what its predecessor left.
    scene.agent.kill();
    scene.agent.restart();
    assert_eq!(told(&scene.agent, 9), (0, 0));
    scene.agent.balance();
}

#[test]
fn flows_that_cannot_be_cut_are_said_to_be_and_carry_nothing_all_the_same() {
    // Positive control: with CAP_NET_ADMIN the same change cuts.
    for may_cut in [true, false] {
        let least = "+bpf,+perfmon,+net_broadcast,+sys_admin,+sys_ptrace,+dac_read_search,+chown";
        let capabilities = Some(if may_cut { format!("{least},+net_admin") } else { least.to_owned() });
        let options = AgentOptions { capabilities, ..AgentOptions::default() };
        let Some(mut scene) = Scene::open(OPEN, &options) else { return };
        let connection = scene.connection(LOOPBACK[0]);
        scene.talk(&connection);
        let output = scene.agent.cli(&["revoke", "web", "db", "--reason", "test", "-o", "json"]);
        let applied: Applied = serde_json::from_value(document(&output)).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(scene.web.tcp_connect(connection.addr, LONG), Err(Errno::PERM), "a new flow is refused");
        if may_cut {
            assert_eq!((output.status.code(), applied.uncut, &applied.cut_problem), (Some(0), 0, &None), "{applied:?}");
            assert!(applied.cut >= 1, "{applied:?}");
            scene.agent.wait("nothing is left to cut", nothing_is_uncut);
            continue;
        }
        assert_eq!((output.status.code(), applied.cut), (Some(6), 0), "{applied:?}");
        assert!(applied.uncut >= 1, "{applied:?}");
        let shown = scene.agent.status().problems.join("\n");
        for text in [&*said, &*applied.cut_problem.clone().unwrap_or_default(), &*shown, &*scene.agent.log()] {
            assert!(text.contains("could not be cut") && text.contains("CAP_NET_ADMIN"), "{text}");
        }
        // It is open, but nothing gets through.
        scene.web.send(connection.caller, b"leak").unwrap();
        let leaked = scene.db.receive_for(connection.callee, 1, BRIEF);
        assert!(leaked.iter().flatten().all(|m| m.data != b"leak"), "{leaked:?}");
        // Once nothing is left to cut, the problem is gone.
        let _ = scene.agent.cli(&["revoke", "--undo", applied.id.as_deref().unwrap()]);
        scene.agent.wait("nothing is left to cut", nothing_is_uncut);
        scene.hang_up(connection);
    }
}

/// Without the right to cut, other things are wrong as well.
fn nothing_is_uncut(agent: &Agent) -> bool {
    !agent.status().problems.iter().any(|problem| problem.contains("could not be cut"))
}
