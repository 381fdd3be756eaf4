//! Nobody but root outside of every workload changes what is enforced: socket, pins, policy files.
//!
//! Source: security.md, S1, S2, S3, S6, S18.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::SocketAddr,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
        net::{UnixListener, UnixStream},
        process::CommandExt as _,
    },
    path::Path,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Gid, Signal, Uid};

use serde_json::{Map, json};
use tests::{
    lab::{Agent, AgentOptions, Exit, Lab, Need, NetNs, Program, patience},
    scene::{BRIEF, LONG, LOOPBACK, PORT, Scene, document, policy},
};

const OPEN: &str = "[{ from: web, to: db, ports: [tcp/5432] }]";
/// A user and a group that own nothing. Numbers are enough for the kernel.
const NOBODY: u32 = 65_534;

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn group(name: &str) -> u32 {
    let groups = fs::read_to_string("/etc/group").unwrap();
    let mut fields = groups.lines().map(|line| line.split(':'));
    let id = fields.find_map(|mut f| (f.next()? == name).then(|| f.nth(1)?.parse().ok())?);
    id.unwrap_or_else(|| panic!("every system has a group `{name}`"))
}

/// Asks the agent as another user, with a copy of the command line that this user can reach.
fn ask_as(agent: &Agent, uid: u32, gid: u32, words: &[&str]) -> Output {
    let dir = tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let binary = dir.path().join("eastwall");
    fs::copy(agent.binary(), &binary).unwrap();
    let mut command = Command::new(&binary);
    command.args(words).arg("--socket").arg(agent.control_socket()).uid(uid).gid(gid).output().unwrap()
}

#[test]
fn the_socket_is_for_root_and_the_group_reads_but_changes_nothing() {
    let gid = group("daemon");
    let more = Map::from_iter([("group".to_owned(), json!("daemon"))]);
    let Some(scene) = Scene::open(OPEN, &AgentOptions { more, ..AgentOptions::default() }) else { return };
    let socket = scene.agent.control_socket();
    assert_eq!((mode(&socket), fs::metadata(&socket).unwrap().gid()), (0o660, gid));
    assert_eq!(scene.agent.cli(&["status"]).status.code(), Some(0));
    // The directory of a test is closed to others; the socket itself must do.
    chmod(&scene.agent.path(""), 0o755);
    let stranger = ask_as(&scene.agent, NOBODY, NOBODY, &["status"]);
    assert_eq!(stranger.status.code(), Some(5), "another user: {stranger:?}");
    assert_eq!(ask_as(&scene.agent, NOBODY, gid, &["status"]).status.code(), Some(0), "the group reads");
    for words in [&["reload"][..], &["revoke", "web", "db", "--reason", "x"]] {
        let output = ask_as(&scene.agent, NOBODY, gid, words);
        assert_eq!(output.status.code(), Some(5), "the group changes nothing: {output:?}");
    }
    assert_eq!(scene.agent.status().overrides, 0);
    scene.agent.balance();
}

/// The command line of the agent, to be run somewhere.
fn asks(agent: &Agent, words: &[&str]) -> Program {
    let program = words.iter().fold(Program::new(agent.binary()), |program, word| program.arg(word));
    program.arg("--socket").arg(agent.control_socket())
}

#[test]
fn a_workload_is_refused_even_as_root() {
    let Some(scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    // Positive control: the same program beside the workloads.
    let revoke = ["revoke", "web", "db", "--reason", "x"];
    let run = |cgroup, words: &[&str]| asks(&scene.agent, words).spawn(cgroup, &scene.net, None).unwrap().wait();
    assert_eq!(run(scene.lab.cgroup(), &["status"]), Exit::Status(0));
    assert_eq!(run(&scene.cgroups[0], &["status"]), Exit::Status(5));
    assert_eq!(run(&scene.cgroups[0], &revoke), Exit::Status(5));
    // Not by hiding in a cgroup below, either.
    let below = scene.cgroups[0].child("below");
    assert_eq!(run(&below, &revoke), Exit::Status(5));
    assert_eq!(scene.agent.status().overrides, 0);
    scene.agent.balance();
}

#[test]
fn a_workload_in_a_cgroup_that_the_agent_has_not_heard_of_is_refused_too() {
    let Some(scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let revoke = ["revoke", "web", "db", "--reason", "x"];
    // It finds the caller and the news of its cgroup when it goes on; which comes first is chance.
    for round in 0..8 {
        scene.agent.signal(Signal::STOP);
        let newcomer = scene.cgroups[0].child(&format!("new-{round}"));
        let mut caller = asks(&scene.agent, &revoke).spawn(&newcomer, &scene.net, None).unwrap();
        thread::sleep(BRIEF);
        scene.agent.signal(Signal::CONT);
        assert_eq!(caller.wait(), Exit::Status(5), "round {round}");
    }
    assert_eq!(scene.agent.status().overrides, 0);
    scene.agent.balance();
}

fn place() -> Option<(Lab, Agent)> {
    let lab = Lab::open(&[Need::Ip, Need::Agent])?;
    let agent = Agent::prepare(&lab, &policy(&lab, OPEN, ""), &AgentOptions::default()).unwrap();
    Some((lab, agent))
}

#[test]
fn what_somebody_put_at_the_place_of_the_socket_is_never_used() {
    let Some((_lab, mut agent)) = place() else { return };
    let socket = agent.control_socket();
    let secret = agent.path("secret");
    fs::write(&secret, "kept").unwrap();
    symlink(&secret, &socket).unwrap();
    let (_, said) = agent.refuses_to_start();
    assert!(said.contains("in the way"), "{said}");
    assert_eq!(fs::read_to_string(&secret).unwrap(), "kept");
    fs::remove_file(&socket).unwrap();
    chmod(&agent.path(""), 0o777);
    let (_, said) = agent.refuses_to_start();
    assert!(said.contains("can be written by others"), "{said}");
    chmod(&agent.path(""), 0o700);
    // A dead socket of an agent before is no obstacle, and no trap: it is replaced.
    drop(UnixListener::bind(&socket).unwrap());
    chmod(&socket, 0o777);
    agent.restart();
    assert_eq!(mode(&socket) & 0o117, 0, "for root and one group: {:o}", mode(&socket));
    assert_eq!(agent.status().problems, Vec::<String>::new());
}

#[test]
fn the_socket_is_never_put_where_another_program_has_one_or_where_others_could() {
    let Some((_lab, mut agent)) = place() else { return };
    let socket = agent.control_socket();
    // Positive control: the same place, when nothing is in the way, whatever the mask of the agent is.
    agent.restart();
    assert_eq!(mode(&socket) & 0o117, 0);
    agent.stop();
    assert!(!socket.exists(), "an agent that stops takes its socket along");

    let foreign = UnixListener::bind(&socket).unwrap();
    let (_, said) = agent.refused();
    assert!(said.contains("is in use by another program"), "{said}");
    drop(foreign);
    std::os::unix::fs::chown(&socket, Some(NOBODY), None).unwrap();
    let (_, said) = agent.refused();
    assert!(said.contains("belongs to uid 65534"), "{said}");
    std::os::unix::fs::chown(&socket, Some(0), None).unwrap();
    let (path, other) = (socket.clone(), agent.path("other.sock"));
    drop(UnixListener::bind(&other).unwrap());
    agent.inside(|| rustix::mount::mount_bind(&other, &path).unwrap());
    let (_, said) = agent.refused();
    assert!(said.contains("is mounted there"), "{said}");
    agent.inside(|| rustix::mount::unmount(&path, rustix::mount::UnmountFlags::empty()).unwrap());

    // A directory of others, reached by a bind mount over one that was good.
    let (top, theirs) = (agent.path(""), tempfile::tempdir().unwrap());
    fs::copy(top.join("agent.yaml"), theirs.path().join("agent.yaml")).unwrap();
    std::os::unix::fs::chown(theirs.path(), Some(NOBODY), None).unwrap();
    let run = top.join("run");
    fs::create_dir(&run).unwrap();
    let text = fs::read_to_string(top.join("agent.yaml")).unwrap();
    fs::write(
        top.join("agent.yaml"),
        text.replace(&*socket.to_string_lossy(), &run.join("agent.sock").to_string_lossy()),
    )
    .unwrap();
    agent.inside(|| rustix::mount::mount_bind(theirs.path(), &run).unwrap());
    let (_, said) = agent.refused();
    assert!(said.contains("must belong to uid 0"), "{said}");
    agent.inside(|| rustix::mount::unmount(&run, rustix::mount::UnmountFlags::empty()).unwrap());
    fs::write(top.join("agent.yaml"), text).unwrap();
    agent.restart();
}

#[test]
fn an_agent_that_cannot_be_controlled_does_not_begin_to_enforce() {
    let Some(lab) = Lab::open(&[Need::Ip, Need::Agent]) else { return };
    let net = NetNs::new();
    let cgroups = ["web", "db"].map(|name| lab.cgroup().child(name));
    let [web, db] = cgroups.each_ref().map(|cgroup| lab.actor(cgroup, &net));
    let (_listener, addr) = db.tcp_listen(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    let closed = policy(&lab, "[{ from: db, to: web, ports: [tcp/1] }]", "");
    let mut agent = Agent::prepare(&lab, &closed, &AgentOptions::default()).unwrap();
    fs::create_dir(agent.control_socket()).unwrap();
    let (_, said) = agent.refused();
    assert!(said.contains("make the control socket; nothing was attached"), "{said}");
    assert!(web.tcp_connect(addr, LONG).is_ok(), "nothing is enforced");
    fs::remove_dir(agent.control_socket()).unwrap();
    // Positive control: the same agent with its socket.
    agent.restart();
    // The listener is older than the agent, so that only the boundary may know whose it is.
    assert!(web.tcp_connect(addr, BRIEF).is_err());
    // One that runs already goes on with the policy that it had.
    agent.kill();
    fs::remove_file(agent.control_socket()).unwrap();
    fs::create_dir(agent.control_socket()).unwrap();
    fs::write(agent.policy_file(), policy(&lab, OPEN, "")).unwrap();
    let (_, said) = agent.refused();
    assert!(said.contains("make the control socket"), "{said}");
    assert!(web.tcp_connect(addr, BRIEF).is_err(), "an adopted policy is not replaced");
}

#[test]
fn a_workload_that_has_the_directory_bind_mounted_is_refused_and_takes_no_place() {
    let Some(scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let mounted = tempfile::tempdir().unwrap();
    let (top, there) = (scene.agent.path(""), mounted.path().join("agent.sock"));
    let ask = |words: &[&str]| {
        let program = words.iter().fold(Program::new(scene.agent.binary()), |program, word| program.arg(word));
        program.arg("--socket").arg(&there)
    };
    scene.agent.inside(|| {
        rustix::mount::mount_bind(&top, mounted.path()).unwrap();
        // Positive control: it is a way to the agent for who may speak to it.
        assert_eq!(ask(&["status"]).spawn(scene.lab.cgroup(), &scene.net, None).unwrap().wait(), Exit::Status(0));
        for words in [&["status"][..], &["reload"]] {
            let asked = ask(words).spawn(&scene.cgroups[0], &scene.net, None).unwrap().wait();
            assert_eq!(asked, Exit::Status(5), "{words:?}");
        }
        rustix::mount::unmount(mounted.path(), rustix::mount::UnmountFlags::empty()).unwrap();
    });
}

/// Connections of another user that say nothing, as many as the kernel lets it have.
fn idle(socket: &Path, uid: u32, gid: u32, count: usize) -> Vec<UnixStream> {
    thread::scope(|threads| {
        let connecting = threads.spawn(|| {
            // Of this thread alone.
            rustix::thread::set_thread_groups(&[]).unwrap();
            rustix::thread::set_thread_gid(Gid::from_raw(gid)).unwrap();
            rustix::thread::set_thread_uid(Uid::from_raw(uid)).unwrap();
            (0..count).map(|_| UnixStream::connect(socket).unwrap()).collect()
        });
        connecting.join().unwrap()
    })
}

/// Whether a connection was ended by the other side, which may have said why.
fn is_over(stream: &UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let mut bytes = [0; 4096];
    loop {
        match (&*stream).read(&mut bytes) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(e) => return e.kind() != ErrorKind::WouldBlock,
        }
    }
}

#[test]
fn idle_slow_and_senseless_callers_keep_nobody_out() {
    const MANY: usize = 500;
    let gid = group("daemon");
    let more = Map::from_iter([("group".to_owned(), json!("daemon"))]);
    let Some(scene) = Scene::open(OPEN, &AgentOptions { more, ..AgentOptions::default() }) else { return };
    let (agent, socket) = (&scene.agent, scene.agent.control_socket());
    chmod(&agent.path(""), 0o755);
    let asks = |uid| ask_as(agent, uid, gid, &["status"]).status.code();
    assert_eq!(asks(NOBODY), Some(0), "positive control");

    let held = idle(&socket, NOBODY, gid, MANY);
    let start = Instant::now();
    assert_eq!(agent.cli(&["status"]).status.code(), Some(0), "root gets its place");
    println!("with {MANY} idle callers root is answered after {:?}", start.elapsed());
    assert!(start.elapsed() < patience(Duration::from_secs(2)));
    assert_eq!(asks(NOBODY), Some(6), "who holds too many is told so");
    assert_eq!(asks(NOBODY - 1), Some(0), "another user has its own places");
    let connection = scene.connection(LOOPBACK[0]);
    scene.talk(&connection);
    let end = Instant::now() + patience(Duration::from_secs(20));
    while !held.iter().all(is_over) {
        assert!(Instant::now() < end, "idle callers are let go");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(asks(NOBODY), Some(0), "and then it has a place again");

    // A byte a second is no request, and neither is garbage or more than anybody needs.
    let mut slow = UnixStream::connect(&socket).unwrap();
    let start = Instant::now();
    while slow.write_all(b"{").is_ok() && !is_over(&slow) {
        assert!(start.elapsed() < patience(Duration::from_secs(20)), "a slow caller is let go");
        thread::sleep(Duration::from_secs(1));
    }
    let mut reader = idle(&socket, NOBODY, gid, 1).remove(0);
    let long = vec![b' '; 1 << 20];
    // The agent may hang up before all is written.
    let _ = reader.write_all(&long);
    let mut said = String::new();
    let _ = reader.read_to_string(&mut said);
    assert!(said.contains("is longer than 65536 bytes"), "{said}");
    let mut root = UnixStream::connect(&socket).unwrap();
    let zeros = vec![0; 1 << 20];
    let written = (0..1024).take_while(|_| root.write_all(&zeros).is_ok()).count();
    assert!(written < 64, "a frame of 1 GiB ends after {written} MiB");
    for garbage in [&b"\n"[..], b"\xff\xfe\n", b"{\"verb\":\"obey\"}\n", b"[[[[[[[[\n"] {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(garbage).unwrap();
        let mut said = String::new();
        stream.read_to_string(&mut said).unwrap();
        assert!(said.contains("cannot be read"), "{said}");
    }
    // Who follows and hangs up gives its place back, also when there is nothing to tell.
    for _ in 0..4 {
        let mut followers = idle(&socket, NOBODY, gid, 16);
        for follower in &mut followers {
            follower.write_all(b"{\"verb\":\"follow\"}\n").unwrap();
            let mut line = [0; 8];
            follower.read_exact(&mut line).expect("a follower is let in");
        }
        drop(followers);
        while asks(NOBODY) != Some(0) {
            assert!(start.elapsed() < Duration::from_secs(60), "a follower that is gone holds no place");
        }
    }
    scene.talk(&connection);
    scene.hang_up(connection);
    agent.balance();
}

#[test]
fn what_others_chose_is_shown_and_never_obeyed() {
    let Some(scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    // What a terminal would obey, or hide: it clears, turns around, has no width, forges a line.
    let hostile = "x\u{1b}[2J\u{9b}1A\u{202e}\u{200b}\u{7f}\n0 denied";
    let reasons = ["plain, grün", hostile];
    for reason in reasons {
        scene.agent.change(&["revoke", "web", "db", "--reason", reason]);
    }
    let bad = scene.agent.path("policy.d").join(format!("{hostile}.yml"));
    fs::write(&bad, "").unwrap();
    let mut shown = Vec::new();
    for form in ["table", "wide", "json", "yaml", "jsonl"] {
        shown.push((form, scene.agent.cli(&["overrides", "-o", form, "--color", "always"])));
        shown.push((form, scene.agent.cli(&["status", "-o", form])));
    }
    shown.push(("error", scene.agent.cli(&["reload"])));
    for (form, output) in &shown {
        for text in [&output.stdout, &output.stderr] {
            let text = std::str::from_utf8(text).unwrap();
            let hidden = |c: char| (c.is_control() && c != '\n') || "\u{202e}\u{200b}".contains(c);
            assert!(!text.contains(hidden), "{form}: {text:?}");
            assert!(!text.lines().any(|line| line.starts_with("0 denied")), "{form}: {text:?}");
        }
    }
    assert!(String::from_utf8_lossy(&shown[0].1.stdout).contains("plain, grün"), "{:?}", shown[0]);
    // Nothing is lost where a machine reads.
    let told = document(&scene.agent.cli(&["overrides", "-o", "json"]));
    let told: Vec<&str> = told["overrides"].as_array().unwrap().iter().filter_map(|o| o["reason"].as_str()).collect();
    assert_eq!(told, reasons);
    fs::remove_file(bad).unwrap();
}

#[test]
fn pins_are_closed_and_a_foreign_directory_is_refused() {
    let Some((_lab, mut agent)) = place() else { return };
    let pins = agent.path("bpf/eastwall");
    let (made, target) = (pins.clone(), agent.path("bpf/elsewhere"));
    agent.inside(|| {
        fs::create_dir(&made).unwrap();
        std::os::unix::fs::chown(&made, Some(NOBODY), None).unwrap();
    });
    let (_, said) = agent.refuses_to_start();
    assert!(said.contains("is not a directory of root"), "{said}");
    agent.inside(|| {
        fs::remove_dir(&made).unwrap();
        fs::create_dir(&target).unwrap();
        chmod(&target, 0o700);
        symlink(&target, &made).unwrap();
    });
    let before = agent.log().len();
    let (_, said) = agent.refuses_to_start();
    assert!(said[before..].contains("is not a directory of root"), "{said}");
    agent.inside(|| fs::remove_file(&made).unwrap());
    agent.restart();
    fn check(dir: &Path) -> usize {
        assert_eq!(mode(dir), 0o700, "{}", dir.display());
        let entries = fs::read_dir(dir).unwrap().flatten();
        entries
            .map(|entry| match entry.file_type().unwrap().is_dir() {
                true => check(&entry.path()),
                false => {
                    assert_eq!(mode(&entry.path()), 0o600, "{}", entry.path().display());
                    1
                }
            })
            .sum()
    }
    let count = agent.inside(|| check(&pins));
    println!("{count} pins, all 0600 in directories of 0700");
    assert!(count > 10);
}

#[test]
fn g94_a_policy_file_that_another_could_have_written_is_never_in_force() {
    let Some(mut scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let before = scene.agent.status();
    let file = scene.agent.policy_file();
    let other = scene.agent.path("policy.d/other.yaml");
    let good = fs::read_to_string(&file).unwrap();
    let link_target = scene.agent.path("target.yaml");
    fs::write(&link_target, &good).unwrap();
    type Spoil<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let cases: [Spoil<'_>; 8] = [
        ("can be written by others", Box::new(|| chmod(&file, 0o666))),
        ("must belong to uid 0", Box::new(|| std::os::unix::fs::chown(&file, Some(NOBODY), None).unwrap())),
        ("is a symbolic link", Box::new(|| symlink(&link_target, &other).unwrap())),
        ("is a symbolic link", Box::new(|| symlink("/dev/zero", &other).unwrap())),
        (
            "is not a regular file",
            Box::new(|| {
                rustix::fs::mkfifoat(rustix::fs::CWD, &other, rustix::fs::Mode::RUSR).unwrap();
            }),
        ),
        ("is larger than", Box::new(|| fs::write(&other, vec![b'#'; 8 << 20]).unwrap())),
        ("can be written by others", Box::new(|| chmod(&scene.agent.path("policy.d"), 0o777))),
        // Who can write above it puts another directory in its place.
        ("can be written by others", Box::new(|| chmod(&scene.agent.path(""), 0o777))),
    ];
    let agent = &scene.agent;
    for (says, spoil) in &cases {
        spoil();
        let output = agent.cli(&["reload"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{says}: {said}");
        let status = agent.status();
        assert_eq!((&status.policy_hash, status.epoch), (&before.policy_hash, before.epoch), "{says}");
        assert!(status.problems.iter().any(|p| p.contains(says)), "{says}: {status:#?}");
        let _ = fs::remove_file(&other);
        std::os::unix::fs::chown(&file, Some(0), None).unwrap();
        chmod(&file, 0o644);
        chmod(&agent.path("policy.d"), 0o755);
        chmod(&agent.path(""), 0o700);
        assert!(agent.cli(&["reload"]).status.success(), "the same file, mended");
    }
    drop(cases);
    scene.agent.wait("no problem is left", |agent| agent.status().problems.is_empty());
    scene.agent.balance();
}
