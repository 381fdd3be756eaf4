//! Before there is an agent: a guard that knows no policy keeps workloads silent until the first one is in force.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{fs, net::SocketAddr, process::Output};

use serde_json::{Value, json};
use tests::{
    lab::{
        Actor, Agent, AgentOptions, Cgroup, Command, Errno, Exit, Lab, Need, NetNs, Socket, Witness, magic,
        require_or_skip,
    },
    scene::{BRIEF, LONG, LOOPBACK, PORT, datagram, document, policy, repetitions},
};

const OPEN: &str = "[{ from: web, to: db, ports: [tcp/5432, udp/5432] }]";
const REFUSED: Exit = Exit::Status(1); // EPERM

/// Workloads, and the place of an agent that does not run.
struct Boot {
    /// Declared first, so dropped first.
    agent: Agent,
    web: Actor,
    db: Actor,
    other: Actor,
    net: NetNs,
    cgroups: [Cgroup; 3],
    lab: Lab,
}

impl Boot {
    /// A lab where the guard is to keep `web`, `late` and `slice/late` silent.
    fn open() -> Option<Self> {
        let lab = Lab::open(&[Need::Ip, Need::Agent])?;
        let net = NetNs::new();
        let cgroups = ["web", "db", "other"].map(|name| lab.cgroup().child(name));
        let [web, db, other] = cgroups.each_ref().map(|cgroup| lab.actor(cgroup, &net));
        let named = ["web", "late", "slice/late"].map(|name| format!("{}/{name}", lab.cgroup().path()));
        let mut options = AgentOptions::default();
        options.more.insert("bootGuard".to_owned(), json!(named));
        let agent = Agent::prepare(&lab, &policy(&lab, OPEN, ""), &options).unwrap();
        Some(Self { agent, web, db, other, net, cgroups, lab })
    }

    fn guard(&self, words: &[&str]) -> Output {
        let config = self.agent.path("agent.yaml");
        self.agent.cli(&[&["boot-guard"], words, &["--config", config.to_str().unwrap()]].concat())
    }

    /// Raises the guard.
    fn raise(&self) {
        let raised = self.guard(&["on"]);
        assert!(raised.status.success(), "{raised:?}");
        assert!(String::from_utf8_lossy(&raised.stdout).starts_with("the boot guard stands"), "{raised:?}");
    }

    /// What `boot-guard show` says; `None` if no guard stands.
    fn standing(&self) -> Option<Value> {
        let shown = self.guard(&["show", "-o", "json"]);
        let stands = shown.status.code() == Some(0);
        let document = document(&shown);
        assert_eq!(document["stands"], json!(stands), "{shown:?}");
        stands.then_some(document)
    }

    /// Sends once from a process in a cgroup that was just made; says how it ended.
    fn once(&self, cgroup: &Cgroup, to: SocketAddr, data: &[u8]) -> Exit {
        let send = Command::Send { socket: 0, to: Some(to), data: data.to_vec() };
        self.lab.once(&send).spawn(cgroup, &self.net, None).unwrap().wait()
    }

    /// Checks that nothing of `web` arrives, by an open connection either.
    fn silent(&self, receiver: (Socket, SocketAddr), ends: (Socket, Socket), payload: &[u8], when: &str) {
        assert_eq!(datagram(&self.web, receiver.1, payload), Err(Errno::PERM), "{when}");
        assert_eq!(self.db.receive_for(receiver.0, 1, BRIEF), Ok(vec![]), "{when}");
        assert_eq!(self.db.receive_for(ends.1, 1, BRIEF), Ok(vec![]), "{when}");
    }
}

#[test]
fn g81_nothing_of_a_guarded_workload_passes_before_the_first_policy() {
    for addr in LOOPBACK {
        let Some(mut boot) = Boot::open() else { return };
        let to = SocketAddr::new(addr, PORT);
        let receiver = boot.db.udp_bind(to).unwrap();
        let (listener, door) = boot.db.tcp_listen(to).unwrap();
        let caller = boot.web.tcp_connect(door, LONG).unwrap();
        let callee = boot.db.accept(listener).unwrap();
        // Positive control: nobody judges.
        datagram(&boot.web, receiver.1, b"control").unwrap();
        assert_eq!(boot.db.receive(receiver.0, 1).unwrap()[0].data, b"control");
        let (to_web, inbox) = boot.web.udp_bind(SocketAddr::new(addr, PORT + 1)).unwrap();
        datagram(&boot.other, inbox, b"control").unwrap();
        assert_eq!(boot.web.receive(to_web, 1).unwrap()[0].data, b"control");

        boot.raise();
        let denied = magic();
        let mut witness = Witness::new(&boot.net, &denied);
        // By connections that were open, too. This is told later, once there is a policy that allows it.
        boot.web.send(caller, b"held").unwrap();
        boot.silent(receiver, (caller, callee), &denied, "the guard stands");
        assert!(boot.web.tcp_connect(door, BRIEF).is_err());
        // Whom it guards hears nothing.
        datagram(&boot.other, inbox, b"in vain").unwrap();
        assert_eq!(boot.web.receive_for(to_web, 1, BRIEF), Ok(vec![]));
        // Whom it was not told of goes on.
        datagram(&boot.other, receiver.1, b"other").unwrap();
        assert_eq!(boot.db.receive(receiver.0, 1).unwrap()[0].data, b"other");
        // Those that come later, and come again; what is below them; and not what is beside them.
        for round in 0..3 {
            let late = boot.lab.cgroup().child("late");
            assert_eq!(boot.once(&late, receiver.1, &denied), REFUSED, "late, round {round}");
            assert_eq!(boot.once(&late.child("below"), receiver.1, &denied), REFUSED, "below late, round {round}");
            let slice = boot.lab.cgroup().child("slice");
            let (late, free) = (slice.child("late"), slice.child("free"));
            assert_eq!(boot.once(&late, receiver.1, &denied), REFUSED, "slice/late, round {round}");
            assert_eq!(boot.once(&free, receiver.1, b"free"), Exit::Status(0), "slice/free, round {round}");
            assert_eq!(boot.db.receive(receiver.0, 1).unwrap()[0].data, b"free");
        }
        assert_eq!(boot.once(&boot.cgroups[0].child("below"), receiver.1, &denied), REFUSED);

        // An agent that comes to nothing changes nothing.
        let good = fs::read_to_string(boot.agent.policy_file()).unwrap();
        fs::write(boot.agent.policy_file(), good.replace("kind:", "kin:")).unwrap();
        assert_eq!(boot.agent.refused().0, Some(3));
        boot.silent(receiver, (caller, callee), &denied, "an agent was refused its policy");
        let before = boot.standing().unwrap();

        fs::write(boot.agent.policy_file(), good).unwrap();
        boot.agent.restart();
        datagram(&boot.web, receiver.1, b"allowed").unwrap();
        assert_eq!(boot.db.receive(receiver.0, 1).unwrap()[0].data, b"allowed", "at once, with the agent ready");
        assert_eq!(boot.db.receive(callee, 1).unwrap()[0].data, b"held", "what was open goes on");
        assert_eq!(datagram(&boot.other, receiver.1, &denied), Err(Errno::PERM), "policy judges");
        assert_eq!(witness.arrived(), 0, "denied payloads");
        assert_eq!(boot.standing(), None);

        // What the guard did is told.
        let told = boot.agent.event("the guard is taken off", |e| e.pointer("/unmapped/eastwall/boot_guard").is_some());
        assert_eq!(told["activity_name"], "Disable", "{told:#}");
        let told = &told["unmapped"]["eastwall"]["boot_guard"];
        let count = |value: &Value, name: &str| value[name].as_u64().unwrap();
        assert!(count(told, "packets_not_sent") >= count(&before, "packetsNotSent"), "{told} {before}");
        // Four datagrams a round, two to the receiver, one from below: each was counted.
        assert!(count(&before, "packetsNotSent") >= 3 * 3 + 3, "{before}");
        assert!(count(&before, "packetsNotReceived") >= 1, "{before}");

        // The agent needs no guard, alive or dead.
        let refused = boot.guard(&["on"]);
        assert_eq!(refused.status.code(), Some(6), "{refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("stop it first"), "{refused:?}");
        boot.agent.balance();
        boot.agent.kill();
        let judged = boot.guard(&["on"]);
        assert!(judged.status.success(), "{judged:?}");
        assert!(String::from_utf8_lossy(&judged.stdout).contains("nothing was changed"), "{judged:?}");
        assert_eq!(boot.standing(), None);
        assert_eq!(datagram(&boot.other, receiver.1, b"x"), Err(Errno::PERM));
    }
}

#[test]
fn the_boot_guard_is_taken_off_by_a_deliberate_command_and_says_what_is_wrong_with_its_settings() {
    let Some(boot) = Boot::open() else { return };
    let to = boot.db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap().1;
    let says = |output: &Output, code, text: &str| {
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(text), "{said}");
    };
    says(&boot.guard(&["off", "--yes"]), 0, "no boot guard stood");
    boot.raise();
    assert_eq!(datagram(&boot.web, to, b"x"), Err(Errno::PERM));
    // Raised again: it begins anew, and says what the one before did.
    says(&boot.guard(&["on"]), 0, "the one before had dropped 1 packets");
    assert_eq!(datagram(&boot.web, to, b"x"), Err(Errno::PERM));
    says(&boot.guard(&["off"]), 2, "boot-guard off --yes");
    assert_eq!(datagram(&boot.web, to, b"x"), Err(Errno::PERM));
    says(&boot.guard(&["off", "--yes"]), 0, "it dropped 2 packets to send and 0 to receive");
    datagram(&boot.web, to, b"x").unwrap();
    assert_eq!(boot.standing(), None);
    // It is gone when the command says so, and not some time later.
    for round in 0..repetitions(10, 100) {
        boot.raise();
        assert_eq!(datagram(&boot.web, to, b"x"), Err(Errno::PERM), "round {round}");
        says(&boot.guard(&["off", "--yes"]), 0, "it dropped 1 packets to send and 0 to receive");
        datagram(&boot.web, to, b"x").unwrap_or_else(|e| panic!("round {round}: {e}"));
    }

    let config = boot.agent.path("agent.yaml");
    let written: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    for (named, text) in [
        (json!([]), "name no cgroup"),
        (json!(["/"]), "`bootGuard` must not name `/`"),
        (json!([format!("{}/*", boot.lab.cgroup().path())]), "whole paths"),
        (json!(["/elsewhere"]), "that `scope` covers"),
    ] {
        let mut changed = written.clone();
        changed["bootGuard"] = named;
        fs::write(&config, changed.to_string()).unwrap();
        says(&boot.guard(&["on"]), 2, text);
    }
    fs::write(&config, written.to_string()).unwrap();
    assert_eq!(boot.standing(), None);

    // At boot the scope of the agent may be still to come.
    let scope = format!("{}/later", boot.lab.cgroup().path());
    let mut changed = written.clone();
    (changed["bootGuard"], changed["scope"]) = (json!([format!("{scope}/db")]), json!(scope));
    fs::write(&config, changed.to_string()).unwrap();
    boot.raise();
    let later = boot.lab.cgroup().child("later");
    assert_eq!(boot.once(&later.child("db"), to, b"x"), REFUSED);
    assert_eq!(boot.once(&later.child("other"), to, b"x"), Exit::Status(0));
    says(&boot.guard(&["off", "--yes"]), 0, "it dropped 1 packets to send");
    datagram(&boot.web, to, b"x").unwrap();
}

#[test]
fn g81_a_boot_guard_that_cannot_be_raised_whole_does_not_stand_at_all() {
    if require_or_skip(&[Need::Strace]).is_none() {
        return;
    }
    let Some(boot) = Boot::open() else { return };
    let to = boot.db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap().1;
    let config = boot.agent.path("agent.yaml");
    let trace = boot.agent.path("trace");
    let raise = |more: &[&str]| {
        let mut command = std::process::Command::new("strace");
        command.args(["-D", "-qq", "-e", "trace=bpf", "-o"]).arg(&trace).args(more);
        command.arg(boot.agent.binary()).args(["boot-guard", "on", "--config"]).arg(&config);
        boot.agent.inside(|| command.output().unwrap())
    };
    assert!(raise(&[]).status.success());
    // -D: strace may write its last line after the end of what it follows.
    let calls = fs::read_to_string(&trace).unwrap().matches("bpf(").count();
    assert!(boot.guard(&["off", "--yes"]).status.success());
    let mut failed = 0;
    for n in (1..=calls).step_by(repetitions(4, 1)) {
        let raised = raise(&["-e", &format!("inject=bpf:error=ENOMEM:when={n}")]);
        if raised.status.success() {
            // Some calls only ask what the kernel can do.
            assert_eq!(datagram(&boot.web, to, b"x"), Err(Errno::PERM), "call {n} failed, and nobody was told");
            assert!(boot.guard(&["off", "--yes"]).status.success());
        } else {
            failed += 1;
            assert_eq!(boot.standing(), None, "call {n}");
        }
        datagram(&boot.web, to, b"x").unwrap_or_else(|e| panic!("after call {n}, something of it stands: {e}"));
    }
    println!("{calls} calls of bpf(2); {failed} that were made to fail ended it, and left nothing");
    assert!(failed > 4, "{failed}");
}
