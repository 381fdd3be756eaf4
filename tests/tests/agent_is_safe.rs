//! Nobody but root outside of every workload changes what is enforced: socket, pins, policy files.
//!
//! Source: security.md, S1, S3, S6.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _, symlink},
        net::UnixListener,
        process::CommandExt as _,
    },
    path::Path,
    process::{Command, Output},
};

use serde_json::{Map, json};
use tests::{
    lab::{Agent, AgentOptions, Exit, Lab, Need, Program},
    scene::{Scene, policy},
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
    let daemon = fs::read_to_string("/etc/group").unwrap();
    let daemon = daemon.lines().find_map(|line| line.strip_prefix("daemon:")?.split(':').nth(1)?.parse().ok());
    let gid: u32 = daemon.expect("every system has a group `daemon`");
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

#[test]
fn a_workload_is_refused_even_as_root() {
    let Some(scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let ask = |words: &[&str]| {
        let program = words.iter().fold(Program::new(scene.agent.binary()), |program, word| program.arg(word));
        program.arg("--socket").arg(scene.agent.control_socket())
    };
    // Positive control: the same program beside the workloads.
    let revoke = ["revoke", "web", "db", "--reason", "x"];
    let run = |cgroup, words: &[&str]| ask(words).spawn(cgroup, &scene.net, None).unwrap().wait();
    assert_eq!(run(scene.lab.cgroup(), &["status"]), Exit::Status(0));
    assert_eq!(run(&scene.cgroups[0], &["status"]), Exit::Status(5));
    assert_eq!(run(&scene.cgroups[0], &revoke), Exit::Status(5));
    // Not by hiding in a cgroup below, either.
    let below = scene.cgroups[0].child("below");
    assert_eq!(run(&below, &revoke), Exit::Status(5));
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
    assert!(said.contains("nobody else can write"), "{said}");
    chmod(&agent.path(""), 0o700);
    // A dead socket of an agent before is no obstacle, and no trap: it is replaced.
    drop(UnixListener::bind(&socket).unwrap());
    chmod(&socket, 0o777);
    agent.restart();
    assert_eq!(mode(&socket) & 0o117, 0, "for root and one group: {:o}", mode(&socket));
    assert_eq!(agent.status().problems, Vec::<String>::new());
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
fn a_policy_file_that_another_could_have_written_is_never_in_force() {
    let Some(mut scene) = Scene::open(OPEN, &AgentOptions::default()) else { return };
    let before = scene.agent.status();
    let file = scene.agent.policy_file();
    let other = scene.agent.path("policy.d/other.yaml");
    let good = fs::read_to_string(&file).unwrap();
    let link_target = scene.agent.path("target.yaml");
    fs::write(&link_target, &good).unwrap();
    type Spoil<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let cases: [Spoil<'_>; 6] = [
        ("can be written by others", Box::new(|| chmod(&file, 0o666))),
        ("must belong to uid 0", Box::new(|| std::os::unix::fs::chown(&file, Some(NOBODY), None).unwrap())),
        ("other.yaml", Box::new(|| symlink(&link_target, &other).unwrap())),
        (
            "is not a regular file",
            Box::new(|| {
                rustix::fs::mkfifoat(rustix::fs::CWD, &other, rustix::fs::Mode::RUSR).unwrap();
            }),
        ),
        ("is larger than", Box::new(|| fs::write(&other, vec![b'#'; 8 << 20]).unwrap())),
        ("can be written by others", Box::new(|| chmod(&scene.agent.path("policy.d"), 0o777))),
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
        assert!(agent.cli(&["reload"]).status.success(), "the same file, mended");
    }
    drop(cases);
    scene.agent.wait("no problem is left", |agent| agent.status().problems.is_empty());
    scene.agent.balance();
}
