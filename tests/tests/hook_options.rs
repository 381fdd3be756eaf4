//! Options of sockets, sockets of the kernel, and what others change in the network: G33, G35, G37, G39 and G95 of the
//! list of gaps.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    thread,
    time::Instant,
};

use agent_common::{
    layout::{Hook, names::program},
    verdict::Reason,
};
use eastwall::sources::cgroup::Hierarchy;
use rustix::mount::{MountFlags, mount};
use tempfile::TempDir;
use tests::{
    frames::FAMILIES,
    lab::{Actor, Errno, Family, Kind, Namespace, Need, Place, Scene, Socket, Wall, magic, require_or_skip},
    scene::{BRIEF, LONG, datagram},
};

/// linux/in.h, linux/in6.h, linux/tcp.h, asm-generic/socket.h.
const SOL_SOCKET: i32 = 1;
const SO_MARK: i32 = 36;
const SO_BINDTOIFINDEX: i32 = 62;
const IPPROTO_TCP: i32 = 6;
const TCP_REPAIR: i32 = 19;
/// Without the probe of a window.
const REPAIR_OFF: i32 = -1;

fn transparent(family: Family) -> (i32, i32) {
    if family == Family::V4 { (0, 19) } else { (41, 75) }
}

fn freebind(family: Family) -> (i32, i32) {
    if family == Family::V4 { (0, 15) } else { (41, 78) }
}

/// Takes programs away and waits until denials come from the next hook.
fn mask<T>(wall: &Wall, programs: &[&'static str], next: Hook, attempt: impl Fn() -> T) {
    wall.guard().detach(programs);
    let end = Instant::now() + LONG;
    loop {
        let _ = attempt();
        if wall.denials().causes().iter().all(|(hook, _)| *hook == next) {
            return;
        }
        assert!(Instant::now() < end, "{programs:?} are still there");
    }
}

#[test]
fn g37_no_option_of_a_socket_changes_a_verdict() {
    let Some(wall) = Wall::open(true) else { return };
    let index = wall.web.net.ip("-o link show dev web0").split(':').next().unwrap().parse().unwrap();
    let receivers = FAMILIES.map(|family| wall.db.udp(family));
    let send = |family: Family, option: Option<(i32, i32, i32)>, data: &[u8]| {
        let socket = wall.web.actor.socket(family, Kind::Datagram, 0).unwrap();
        if let Some((level, name, value)) = option {
            wall.web.actor.set_option(socket, level, name, value).unwrap();
        }
        let sent = wall.web.actor.send_to(socket, receivers[usize::from(family == Family::V6)].1, data);
        wall.web.actor.close(socket);
        sent
    };
    // Without what came before, the next layer stands alone.
    for hook in [Hook::Sendmsg4, Hook::Egress, Hook::TcFrom] {
        match hook {
            Hook::Egress => mask(&wall, &[program::SENDMSG4, program::SENDMSG6], hook, || send(Family::V4, None, b"-")),
            Hook::TcFrom => mask(&wall, &[program::EGRESS], hook, || send(Family::V4, None, b"-")),
            _ => {}
        }
        for (family, (receiver, _)) in FAMILIES.into_iter().zip(receivers) {
            let (hook, told) = match hook {
                Hook::Sendmsg4 => (family.sendmsg_hook(), Some(Errno::PERM)),
                Hook::Egress => (hook, Some(Errno::PERM)),
                _ => (hook, None),
            };
            let marks = [1, 0x0f00, 0x4000, i32::MAX, -1].map(|mark| (SOL_SOCKET, SO_MARK, mark));
            let (transparent, freebind) = (transparent(family), freebind(family));
            let more =
                [(SOL_SOCKET, SO_BINDTOIFINDEX, index), (transparent.0, transparent.1, 1), (freebind.0, freebind.1, 1)];
            for option in marks.into_iter().chain(more) {
                eprintln!("{hook:?} {family:?} {option:?}");
                wall.open_way("udp/any");
                send(family, Some(option), b"allowed").unwrap();
                assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, b"allowed");
                assert_eq!(wall.denials().denied(), 0);
                wall.allow(&[]);
                let magic = magic();
                let mut witness = wall.watch(&magic);
                assert_eq!(send(family, Some(option), &magic).err(), told);
                assert_eq!((witness.arrived(), wall.db.actor.received(receiver)), (0, Ok(vec![])));
                assert_eq!(wall.denials().causes(), [(hook, Reason::NoRule)]);
            }
        }
    }
}

#[test]
fn g37_an_address_that_an_option_lends_is_not_the_workloads() {
    let Some(wall) = Wall::open(true) else { return };
    wall.open_way("udp/any");
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        let lent: IpAddr = if family == Family::V4 { "10.9.0.77" } else { "fd09::77" }.parse().unwrap();
        for (level, name) in [transparent(family), freebind(family)] {
            let from = |addr: IpAddr, data: &[u8]| {
                let socket = wall.web.actor.socket(family, Kind::Datagram, 0).unwrap();
                wall.web.actor.set_option(socket, level, name, 1).unwrap();
                wall.web.actor.call(&bind(socket, SocketAddr::new(addr, 0))).unwrap();
                let sent = wall.web.actor.send_to(socket, to, data);
                wall.web.actor.close(socket);
                sent
            };
            from(wall.web.addr(family), b"its own").unwrap();
            assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, b"its own");
            assert_eq!(wall.denials().denied(), 0);
            let magic = magic();
            let mut witness = wall.watch(&magic);
            // The kernel may find no route from an address that is nobody's here.
            let sent = from(lent, &magic);
            assert!(sent.is_ok() || (level, name) == freebind(family), "{sent:?}");
            let causes = if sent.is_ok() { vec![(Hook::TcFrom, Reason::SpoofedSource)] } else { vec![] };
            assert_eq!((witness.arrived(), wall.db.actor.received(receiver)), (0, Ok(vec![])));
            assert_eq!(wall.denials().causes(), causes);
        }
    }
}

fn bind(socket: Socket, addr: SocketAddr) -> tests::lab::Command {
    tests::lab::Command::Bind { socket: socket.number(), addr }
}

/// A socket that says it is connected, without a word to its peer.
fn repaired(caller: &Actor, from: SocketAddr, to: SocketAddr) -> Result<Socket, Errno> {
    let socket = caller.socket(Family::of(to), Kind::Stream, 0)?;
    caller.set_option(socket, IPPROTO_TCP, TCP_REPAIR, 1)?;
    caller.call(&bind(socket, from))?;
    caller.connect(socket, to, BRIEF).inspect_err(|_| caller.close(socket))?;
    caller.set_option(socket, IPPROTO_TCP, TCP_REPAIR, REPAIR_OFF)?;
    Ok(socket)
}

#[test]
fn g35_a_connection_without_a_handshake_is_none() {
    let Some(wall) = Wall::open(true) else { return };
    let connect = [program::CONNECT4, program::CONNECT6];
    let mut port = 41_000;
    let mut next = |family: Family| {
        port += 1;
        wall.web.at(family, port)
    };
    let listeners = FAMILIES.map(|family| (family, wall.db.listen(family)));
    // At connect, which a repair does not leave out.
    for (family, (_, to)) in listeners {
        assert_eq!(repaired(&wall.web.actor, next(family), to).err(), Some(Errno::PERM));
        assert_eq!(wall.denials().causes(), [(family.connect_hook(), Reason::NoRule)]);
    }
    let to = listeners[0].1.1;
    mask(&wall, &connect, Hook::Egress, || wall.web.actor.tcp_connect(to, BRIEF));
    for (family, (listener, to)) in listeners {
        let speak = |from: SocketAddr| {
            let magic = magic();
            let mut witness = wall.watch(&magic);
            let socket = repaired(&wall.web.actor, from, to).unwrap();
            let _ = wall.denials();
            wall.web.actor.send(socket, &magic).unwrap();
            let end = Instant::now() + LONG;
            let causes = loop {
                let causes = wall.denials().causes();
                if !causes.is_empty() {
                    break causes;
                }
                assert!(Instant::now() < end, "nobody stops it");
            };
            assert_eq!(witness.arrived(), 0);
            assert_eq!(wall.db.actor.accept_now(listener), Err(Errno::AGAIN));
            wall.web.actor.close(socket);
            causes
        };
        wall.allow(&[]);
        assert_eq!(speak(next(family)), [(Hook::Egress, Reason::NoRule)]);
        // Where all of it is allowed, who has not been asked has no such connection.
        wall.open_way("tcp/any");
        let ours = wall.web.actor.tcp_connect(to, LONG).unwrap();
        let theirs = wall.db.actor.accept(listener).unwrap();
        wall.web.actor.send(ours, b"asked").unwrap();
        assert_eq!(wall.db.actor.receive(theirs, 1).unwrap()[0].data, b"asked");
        assert_eq!(speak(next(family)), [(Hook::TcTo, Reason::NoFlow)]);
    }
}

#[test]
fn g39_what_the_kernel_sends_around_a_packet_is_judged_as_well() {
    let Some(wall) = Wall::open(true) else { return };
    for family in FAMILIES {
        let (near, far) = (wall.web.addr(family), wall.db.addr(family));
        for (net, device, own, remote, addr) in
            [(&wall.web.net, "web0", near, far, "10.50.0.1/24"), (&wall.db.net, "db0", far, near, "10.50.0.2/24")]
        {
            let zero = if family == Family::V6 { "udp6zerocsumrx" } else { "" };
            net.ip(&format!(
                "link add vx type vxlan id 7 local {own} remote {remote} dev {device} dstport 4789 {zero}"
            ));
            net.ip(&format!("address add {addr} dev vx"));
            net.ip("link set vx up");
        }
        let (receiver, to) = wall.db.actor.udp_bind("10.50.0.2:0".parse().unwrap()).unwrap();
        let inner = [format!("web -> world: udp/{}", to.port()), format!("world -> db: udp/{}", to.port())];
        let outer = ["web -> db: udp/4789".to_owned(), "db -> web: udp/4789".to_owned()];
        let apply = |rules: &[&[String]]| {
            let rules = rules.concat();
            wall.allow(&rules.iter().map(String::as_str).collect::<Vec<_>>());
        };
        let socket = wall.web.actor.socket(Family::V4, Kind::Datagram, 0).unwrap();
        apply(&[&inner, &outer]);
        wall.web.actor.send_to(socket, to, b"allowed").unwrap();
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, b"allowed");
        let _ = wall.denials();
        // The packet inside may leave, the one around it not.
        apply(&[&inner]);
        let magic = magic();
        let mut witness = wall.watch(&magic);
        let _ = wall.web.actor.send_to(socket, to, &magic);
        assert_eq!((witness.arrived(), wall.db.actor.received(receiver)), (0, Ok(vec![])));
        let denials = wall.denials();
        let around = denials.records.iter().find(|r| r.peer_port == 4789).unwrap();
        assert_eq!((around.hook, around.reason), (Hook::TcFrom as u8, Reason::NoRule as u8), "{denials:#?}");
        // And the other way round.
        apply(&[&outer]);
        assert_eq!(wall.web.actor.send_to(socket, to, &magic), Err(Errno::PERM));
        assert_eq!((witness.arrived(), wall.db.actor.received(receiver)), (0, Ok(vec![])));
        for net in [&wall.web.net, &wall.db.net] {
            net.ip("link delete vx");
        }
    }
}

#[test]
fn g95_what_others_do_to_rules_and_routes_opens_nothing() {
    if require_or_skip(&[Need::Nft]).is_none() {
        return;
    }
    let Some(wall) = Wall::open(true) else { return };
    let rules = "table inet fw {\nchain f {\ntype filter hook forward priority 0; policy drop\n\
                 ip daddr 10.9.1.0/24 accept\nip saddr 10.9.1.0/24 accept\nmeta nfproto ipv6 accept\n}\n}\n";
    wall.host.nft(rules);
    wall.web.net.nft("table inet fw {\nchain o {\ntype filter hook output priority 0; meta mark set 0xf00\n}\n}\n");
    for flushed in [false, true] {
        if flushed {
            for net in [&wall.host, &wall.web.net, &wall.db.net] {
                net.nft("flush ruleset\n");
                net.run(|| {
                    for conf in ["all", "default"] {
                        fs::write(format!("/proc/sys/net/ipv4/conf/{conf}/rp_filter"), "0").unwrap();
                    }
                });
            }
            // Another way to the same place.
            wall.host.ip("route replace 10.9.1.2/32 dev to-db");
        }
        for family in FAMILIES {
            let (receiver, to) = wall.db.udp(family);
            let send = |data: &[u8]| datagram(&wall.web.actor, to, data);
            wall.open_way("udp/any");
            send(b"allowed").unwrap();
            assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
            assert_eq!(wall.denials().denied(), 0);
            let magic = magic();
            let mut witness = wall.watch(&magic);
            wall.allow(&[]);
            assert_eq!(send(&magic), Err(Errno::PERM));
            assert_eq!(wall.denials().causes(), [(family.sendmsg_hook(), Reason::NoRule)]);
            wall.allow_at_the_door(&[]);
            assert!(send(&magic).is_ok());
            assert_eq!(wall.denials().causes(), [(Hook::TcTo, Reason::NoRule)]);
            assert_eq!((witness.arrived(), wall.db.actor.received(receiver)), (0, Ok(vec![])));
        }
    }
}

#[test]
fn g33_beside_an_old_hierarchy_a_socket_keeps_its_label() {
    let Some(scene) = Scene::open(Place::Loopback, true) else { return };
    let hierarchy = Hierarchy::find().unwrap();
    assert_eq!(scene.web.cgroup.id(), fs::metadata(scene.web.cgroup.dir()).unwrap().ino());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let old = mounts.lines().filter(|line| line.contains(" - cgroup ")).count();
    println!("cgroup v2 at {}, {old} hierarchies of v1 beside it", hierarchy.mount().display());
    let dir = TempDir::new().unwrap();
    let net_cls = Namespace::mount(|| Ok(mount("none", dir.path(), "cgroup", MountFlags::empty(), Some(c"net_cls"))?));
    let Ok(net_cls) = net_cls else {
        println!("SKIP the class of a socket: this kernel has no net_cls");
        return;
    };
    let group = dir.path().join("eastwall-lab");
    let join = |group: &std::path::Path, pid: i32| fs::write(group.join("cgroup.procs"), pid.to_string()).unwrap();
    let pids = [&scene.web, &scene.other].map(|party| party.actor.process().pid());
    net_cls.run(|| {
        fs::create_dir(&group).unwrap();
        fs::write(group.join("net_cls.classid"), "0x00100001").unwrap();
        pids.iter().for_each(|&pid| join(&group, pid));
    });
    for family in FAMILIES {
        let (receiver, to) = scene.db.udp(family);
        scene.allow(&["web -> db: udp/any"]);
        let sender = scene.web.actor.socket(family, Kind::Datagram, 0).unwrap();
        scene.web.actor.send_to(sender, to, b"labelled").unwrap();
        assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"labelled");
        assert_eq!(scene.denials().denied(), 0);
        let magic = magic();
        let mut witness = scene.watch(&magic);
        let stranger = scene.other.actor.socket(family, Kind::Datagram, 0).unwrap();
        assert_eq!(scene.other.actor.send_to(stranger, to, &magic), Err(Errno::PERM));
        assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (0, Ok(vec![])));
        let denials = scene.denials();
        assert_eq!(denials.causes(), [(family.sendmsg_hook(), Reason::NoRule)]);
        assert_eq!(
            (denials.records[0].local_id, denials.records[0].cgroup),
            (scene.other.id().0, scene.other.cgroup.id())
        );
    }
    net_cls.run(|| {
        pids.iter().for_each(|&pid| join(dir.path(), pid));
        let end = Instant::now() + LONG;
        while fs::remove_dir(&group).is_err() {
            assert!(Instant::now() < end, "a group of net_cls cannot be removed");
            thread::yield_now();
        }
    });
}
