//! The lab itself: without positive controls, a test that sees nothing proves nothing.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use eastwall::sources::cgroup::Hierarchy;
use tests::lab::{
    Actor, Cgroup, Command, Errno, Exit, Family, Kind, Lab, Message, Namespace, Need, NetNs, Reply, VethEnd, Witness,
    magic,
};

/// Long enough for every answer that comes. Where none comes, `BRIEF` is waited for.
const LONG: Duration = Duration::from_secs(20);
const BRIEF: Duration = Duration::from_millis(200);

/// Two actors in cgroups of their own, and the addresses at which the second is reached.
struct Pair {
    web: Actor,
    db: Actor,
    web_net: NetNs,
    /// None if both are in one namespace.
    db_net: Option<NetNs>,
    addrs: [IpAddr; 2],
    _cgroups: [Cgroup; 2],
}

impl Pair {
    fn on_loopback(lab: &Lab) -> Self {
        let net = NetNs::new();
        let cgroups = [lab.cgroup().child("web"), lab.cgroup().child("db")];
        let (web, db) = (lab.actor(&cgroups[0], &net), lab.actor(&cgroups[1], &net));
        Self { web, db, web_net: net, db_net: None, addrs: ips(["127.0.0.1", "::1"]), _cgroups: cgroups }
    }

    fn by_veth(lab: &Lab) -> Self {
        let nets = [NetNs::new(), NetNs::new()];
        NetNs::veth(
            VethEnd { netns: &nets[0], device: "web0", addrs: &["10.9.0.1/24", "fd09::1/64"] },
            VethEnd { netns: &nets[1], device: "db0", addrs: &["10.9.0.2/24", "fd09::2/64"] },
        );
        let cgroups = [lab.cgroup().child("web"), lab.cgroup().child("db")];
        let (web, db) = (lab.actor(&cgroups[0], &nets[0]), lab.actor(&cgroups[1], &nets[1]));
        let [web_net, db_net] = nets;
        Self { web, db, web_net, db_net: Some(db_net), addrs: ips(["10.9.0.2", "fd09::2"]), _cgroups: cgroups }
    }

    fn receiver_net(&self) -> &NetNs {
        self.db_net.as_ref().unwrap_or(&self.web_net)
    }
}

fn ips(texts: [&str; 2]) -> [IpAddr; 2] {
    texts.map(|text| text.parse().unwrap())
}

fn payloads(messages: &[Message]) -> Vec<&[u8]> {
    messages.iter().map(|m| m.data.as_slice()).collect()
}

/// Runs a test over loopback and over a veth pair, for IPv4 and IPv6.
fn everywhere(test: impl Fn(&Pair, IpAddr)) {
    let Some(lab) = Lab::open(&[Need::Ip]) else { return };
    for make in [Pair::on_loopback, Pair::by_veth] {
        let pair = make(&lab);
        for addr in pair.addrs {
            test(&pair, addr);
        }
    }
}

#[test]
fn tcp_carries_payload_both_ways_and_the_witness_counts_it() {
    everywhere(|pair, addr| {
        let (there, back) = (magic(), magic());
        let mut witness = Witness::new(pair.receiver_net(), &there);
        let (listener, addr) = pair.db.tcp_listen(SocketAddr::new(addr, 0)).unwrap();
        let caller = pair.web.tcp_connect(addr, LONG).unwrap();
        let callee = pair.db.accept(listener).unwrap();
        assert_eq!(pair.web.send(caller, &there), Ok(there.len()));
        assert_eq!(payloads(&pair.db.receive(callee, 1).unwrap()), [&there[..]]);
        pair.db.send(callee, &back).unwrap();
        assert_eq!(payloads(&pair.web.receive(caller, 1).unwrap()), [&back[..]]);
        assert_eq!(witness.arrived(), 1, "{addr}");
        pair.web.close(caller);
        assert_eq!(payloads(&pair.db.receive(callee, 1).unwrap()), [b""], "the end of the stream");
    });
}

#[test]
fn udp_carries_each_datagram_once_and_the_witness_counts_exactly() {
    everywhere(|pair, addr| {
        let magic = magic();
        let mut witness = Witness::new(pair.receiver_net(), &magic);
        let (receiver, addr) = pair.db.udp_bind(SocketAddr::new(addr, 0)).unwrap();
        let sender = pair.web.socket(Family::of(addr), Kind::Datagram, 0).unwrap();
        assert_eq!(witness.arrived(), 0);
        for n in 1..=25 {
            pair.web.send_to(sender, addr, &magic).unwrap();
            assert_eq!(witness.arrived(), n, "{addr}");
        }
        assert_eq!(pair.web.send_many(sender, vec![(addr, magic.clone()); 5]), Ok(5));
        pair.web.send_to(sender, addr, b"something else").unwrap();
        assert_eq!(witness.arrived(), 30);
        let got = pair.db.receive(receiver, 31).unwrap();
        assert_eq!(payloads(&got[..30]), [&magic[..]; 30]);
        assert_eq!(pair.db.received(receiver), Ok(vec![]));
    });
}

#[test]
fn raw_sockets_and_echoes_get_through() {
    everywhere(|pair, addr| {
        // 253 is for experiments (RFC 3692), so the kernel has no use for it.
        let magic = magic();
        let receiver = pair.db.socket(Family::of(SocketAddr::new(addr, 0)), Kind::Raw, 253).unwrap();
        let sender = pair.web.socket(Family::of(SocketAddr::new(addr, 0)), Kind::Raw, 253).unwrap();
        let mut witness = Witness::new(pair.receiver_net(), &magic);
        pair.web.send_to(sender, SocketAddr::new(addr, 0), &magic).unwrap();
        let got = pair.db.receive(receiver, 1).unwrap();
        assert!(got[0].data.ends_with(&magic));
        assert_eq!(witness.arrived(), 1);
        assert_eq!(pair.web.ping(addr, &magic, LONG), Ok(()), "{addr}");
        let on_loopback = u64::from(pair.db_net.is_none());
        assert_eq!(witness.arrived(), 2 + on_loopback, "the answer stays on loopback");
    });
}

#[test]
fn refusals_and_silence_have_their_errno() {
    let Some(lab) = Lab::open(&[Need::Ip]) else { return };
    let pair = Pair::by_veth(&lab);
    for addr in pair.addrs {
        let (closed, closed_addr) = pair.db.tcp_listen(SocketAddr::new(addr, 0)).unwrap();
        pair.db.close(closed);
        assert_eq!(pair.web.tcp_connect(closed_addr, LONG), Err(Errno::CONNREFUSED));
    }
    pair.receiver_net().ip("link set db0 down");
    pair.web_net.ip("neighbor replace 10.9.0.2 lladdr 02:00:00:00:00:01 dev web0");
    let nobody = SocketAddr::new(pair.addrs[0], 9);
    let silence = pair.web.tcp_connect(nobody, BRIEF).unwrap_err();
    assert!([Errno::TIMEDOUT, Errno::HOSTUNREACH, Errno::NETUNREACH].contains(&silence), "{silence:?}");
    let never = lab.actor(lab.cgroup(), &pair.web_net);
    let (socket, _) = never.udp_bind("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_eq!(never.receive_for(socket, 1, BRIEF), Ok(vec![]));
    assert_eq!(never.call(&Command::Close { socket: 99 }), Err(Errno::BADF));
}

#[test]
fn frames_pass_without_any_socket_of_the_receiver() {
    let Some(lab) = Lab::open(&[Need::Ip]) else { return };
    let pair = Pair::by_veth(&lab);
    let magic = magic();
    let mut witness = Witness::new(pair.receiver_net(), &magic);
    let mut leaving = Witness::new(&pair.web_net, &magic);
    let mut frame = vec![0xff; 12];
    frame.extend([0x88, 0xb5]);
    frame.extend(&magic);
    pair.web.call(&Command::SendFrame { device: "web0".into(), frame: frame.clone(), bypass: false }).unwrap();
    assert_eq!((witness.arrived(), leaving.left(), leaving.arrived()), (1, 1, 0));
    assert_eq!(
        pair.web.call(&Command::SendFrame { device: "nothing0".into(), frame, bypass: false }),
        Err(Errno::NODEV)
    );
}

#[test]
fn an_actor_is_in_its_cgroup_from_the_start_and_moves_when_told() {
    let Some(lab) = Lab::open(&[Need::Ip]) else { return };
    let (here, there, net) = (lab.cgroup().child("here"), lab.cgroup().child("there/below"), NetNs::new());
    let actor = lab.actor(&here, &net);
    let pid = actor.process().pid();
    assert_eq!((here.processes(), there.processes()), (vec![pid], vec![]));
    actor.move_to(&there);
    assert_eq!((here.processes(), there.processes()), (vec![], vec![pid]));
    drop(there);
    assert!(actor_is_gone(pid), "a cgroup takes its processes along");
}

fn actor_is_gone(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // Reaped, or a zombie that the actor's handle will reap.
    stat.is_empty() || stat.contains(") Z ")
}

#[test]
fn a_program_that_does_one_thing_exits_with_its_errno() {
    let Some(lab) = Lab::open(&[Need::Ip]) else { return };
    let pair = Pair::on_loopback(&lab);
    let (_listener, addr) = pair.db.tcp_listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let connect = |addr| lab.once(&Command::Connect { socket: 0, addr, timeout_ms: 5000 });
    let run = |addr| connect(addr).spawn(lab.cgroup(), &pair.web_net, None).unwrap().wait();
    assert_eq!(run(addr), Exit::Status(0));
    assert_eq!(run("127.0.0.1:1".parse().unwrap()), Exit::Status(Errno::CONNREFUSED.raw_os_error()));
    let (receiver, addr) = pair.db.udp_bind("[::1]:0".parse().unwrap()).unwrap();
    let send = Command::Send { socket: 0, to: Some(addr), data: b"first".to_vec() };
    let exit = lab.once(&send).spawn(lab.cgroup(), &pair.web_net, None).unwrap().wait();
    assert_eq!(exit, Exit::Status(0));
    assert_eq!(payloads(&pair.db.receive(receiver, 1).unwrap()), [b"first"]);
}

#[test]
fn a_socket_goes_from_one_actor_to_another() {
    let Some(lab) = Lab::open(&[Need::Ip]) else { return };
    let pair = Pair::on_loopback(&lab);
    let (listener, addr) = pair.db.tcp_listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let socket = pair.db.socket(Family::V4, Kind::Stream, 0).unwrap();
    let given = pair.db.give(socket, &pair.web);
    pair.web.connect(given, addr, LONG).unwrap();
    let callee = pair.db.accept(listener).unwrap();
    pair.db.send(socket, b"either end").unwrap();
    assert_eq!(payloads(&pair.db.receive(callee, 1).unwrap()), [b"either end"]);
}

#[test]
fn an_actor_enters_and_leaves_network_namespaces() {
    let Some(lab) = Lab::open(&[Need::Ip]) else { return };
    let pair = Pair::by_veth(&lab);
    let (_listener, addr) = pair.db.tcp_listen("10.9.0.2:0".parse().unwrap()).unwrap();
    assert_eq!(pair.web.call(&Command::UnshareNetNs), Ok(Reply::Done));
    assert_eq!(pair.web.tcp_connect(addr, LONG), Err(Errno::NETUNREACH));
    pair.web.enter(pair.receiver_net());
    assert!(pair.web.tcp_connect(addr, LONG).is_ok());
}

#[test]
fn a_lab_leaves_no_cgroup_and_no_process_behind() {
    let Some(lab) = Lab::open(&[Need::Ip]) else { return };
    let (dir, net) = (lab.cgroup().dir().to_owned(), NetNs::new());
    let actor = lab.actor(lab.cgroup(), &net);
    for made in [dir.join("made"), dir.join("made/below")] {
        // By the actor, so that no handle of the lab knows of it.
        assert_eq!(actor.call(&Command::MakeCgroup { cgroup: made.clone() }), Ok(Reply::Done));
        assert!(made.exists());
    }
    let pid = actor.process().pid();
    drop(lab);
    assert!(!dir.exists() && actor_is_gone(pid));
}

#[test]
fn the_walk_finds_every_cgroup_with_its_id_and_parent() {
    let Some(lab) = Lab::open(&[]) else { return };
    let hierarchy = Hierarchy::find().unwrap();
    let scope = lab.cgroup().path();
    let children = ["a", "a/b c", "a/b c/d (deleted)", "e"].map(|name| lab.cgroup().child(name));
    let mut found: Vec<(String, u64)> = Vec::new();
    let walked = hierarchy.walk(scope).unwrap();
    for cgroup in &walked {
        found.push((cgroup.path.clone(), cgroup.id));
        assert_eq!(hierarchy.path_of(cgroup.id).unwrap().as_deref(), Some(&*cgroup.path));
        let chain = hierarchy.chain_of(cgroup.id, scope).unwrap();
        assert_eq!((chain[0].id, chain.last()), (lab.cgroup().id(), Some(cgroup)));
        let above = walked.iter().find(|c| Some(c.id) == cgroup.parent).map(|c| &*c.path);
        assert_eq!(above, cgroup.path.rsplit_once('/').map(|(above, _)| above).filter(|_| cgroup.path != scope));
    }
    let mut expected = vec![(scope.to_owned(), lab.cgroup().id())];
    expected.extend(children.iter().map(|c| (c.path().to_owned(), c.id())));
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let gone = children[3].id();
    drop(children);
    assert_eq!(hierarchy.path_of(gone).unwrap(), None);
    assert_eq!(hierarchy.chain_of(lab.cgroup().id(), "/elsewhere").ok(), None);
    assert!(hierarchy.walk(&format!("{scope}/gone")).is_err());
}

#[test]
fn the_walk_survives_cgroups_that_vanish() {
    let Some(lab) = Lab::open(&[]) else { return };
    let (dir, scope) = (lab.cgroup().dir().to_owned(), lab.cgroup().path().to_owned());
    let hierarchy = Hierarchy::find().unwrap();
    let stays = lab.cgroup().child("stays");
    std::thread::scope(|threads| {
        let churn = threads.spawn(|| {
            for n in 0..3000 {
                let outer = dir.join(format!("churn-{}", n % 7));
                std::fs::create_dir_all(outer.join("inner")).unwrap();
                std::fs::remove_dir(outer.join("inner")).unwrap();
                std::fs::remove_dir(outer).unwrap();
            }
        });
        while !churn.is_finished() {
            let walked = hierarchy.walk(&scope).unwrap();
            assert!(walked.iter().any(|c| c.id == stays.id()));
            for cgroup in &walked[1..] {
                assert!(walked.iter().any(|c| Some(c.id) == cgroup.parent), "{cgroup:?} has its parent");
            }
        }
    });
}

#[test]
fn what_is_mounted_for_an_agent_is_seen_by_nobody_else() {
    let Some(_lab) = Lab::open(&[]) else { return };
    let dir = tempfile::tempdir().unwrap();
    let pin = dir.path().join("pin");
    let mounts = Namespace::mount(|| {
        rustix::mount::mount("bpf", dir.path(), "bpf", rustix::mount::MountFlags::empty(), Some(c"mode=700"))?;
        Ok(())
    })
    .unwrap();
    mounts.run(|| std::fs::create_dir(&pin)).unwrap();
    assert!(!pin.exists() && mounts.run(|| pin.exists()), "it stays for the next one who enters");
}
