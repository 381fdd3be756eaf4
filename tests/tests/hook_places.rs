//! Where a workload is: G25 to G28, G57, G87 and G97 of the list of gaps. Cgroups decide, whatever they are
//! nested in and seen from; network namespaces and addresses do not.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use agent_common::{layout::Hook, verdict::Reason};
use eastwall::identity::spiffe::SpiffeId;
use etherparse::PacketBuilder;
use tests::lab::{Actor, Cgroup, Command, Errno, Family, Kind, Party, Place, Scene, everywhere, magic};

/// Long enough for every answer that comes. Where none comes, `BRIEF` is waited for.
const LONG: Duration = Duration::from_secs(20);
const BRIEF: Duration = Duration::from_millis(200);

/// Sends one datagram from a new socket.
fn datagram(from: &Actor, to: SocketAddr, data: &[u8]) -> Result<usize, Errno> {
    let socket = from.socket(Family::of(to), Kind::Datagram, 0)?;
    let sent = from.send_to(socket, to, data);
    from.close(socket);
    sent
}

/// Makes cgroups one in the other, the outermost in `top`.
fn nest(top: &Cgroup, depth: usize) -> Vec<Cgroup> {
    let names: Vec<String> = (1..=depth).map(|n| vec!["deeper"; n].join("/")).collect();
    names.iter().map(|name| top.child(name)).collect()
}

#[test]
fn g25_whatever_is_nested_in_a_workload_is_that_workload_from_its_first_packet_on() {
    const DEPTH: usize = 10;
    everywhere(|scene, family| {
        let (receiver, to) = scene.db.udp(family);
        scene.allow(&["web -> db: udp/any"]);
        // Made now, when the policy and the labels are there already.
        scene.web.cgroup.write("cgroup.max.depth", "10").unwrap();
        let (inside, beside) = (nest(&scene.web.cgroup, DEPTH), nest(&scene.other.cgroup, DEPTH));
        let too_deep = inside[DEPTH - 1].dir().join("deeper");
        assert_eq!(std::fs::create_dir(too_deep).unwrap_err().raw_os_error(), Some(libc::EAGAIN));
        let magic = magic();
        let mut witness = scene.watch(&magic);
        for (depth, (ours, theirs)) in inside.iter().zip(&beside).enumerate() {
            let send = |cgroup: &Cgroup, data: &[u8]| {
                let command = Command::Send { socket: 0, to: Some(to), data: data.to_vec() };
                scene.lab().once(&command).spawn(cgroup, &scene.web.net, None).unwrap().wait()
            };
            assert_eq!(send(ours, b"heir"), tests::lab::Exit::Status(0), "depth {depth}");
            assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"heir");
            assert_eq!(scene.denials().denied(), 0);
            assert_eq!(send(theirs, &magic), tests::lab::Exit::Status(Errno::PERM.raw_os_error()), "depth {depth}");
            let denials = scene.denials();
            assert_eq!(denials.causes(), [(scene.first_hook(family.sendmsg_hook()), Reason::NoRule)]);
            assert_eq!((denials.records[0].local_id, denials.records[0].cgroup), (scene.other.id().0, theirs.id()));
        }
        assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (0, Ok(vec![])));
        scene.web.cgroup.write("cgroup.max.depth", "max").unwrap();
        // From the deepest on: each is removed before the one around it.
        inside.into_iter().rev().chain(beside.into_iter().rev()).for_each(drop);
    });
}

#[test]
fn g26_a_thread_in_a_threaded_cgroup_is_of_the_workload_around_it() {
    everywhere(|scene, family| {
        let (listener, to) = scene.db.listen(family);
        scene.allow(&["web -> db: tcp/any"]);
        let in_thread = |party: &Party, timeout: Duration| {
            let threads = party.cgroup.child("threads");
            threads.write("cgroup.type", "threaded").unwrap();
            let connected = party.actor.connect_in_thread(&threads, to, timeout);
            (connected, threads)
        };
        let (connected, threads) = in_thread(&scene.web, LONG);
        let caller = connected.unwrap();
        let callee = scene.db.actor.accept(listener).unwrap();
        scene.web.actor.send(caller, b"by another thread").unwrap();
        assert_eq!(scene.db.actor.receive(callee, 1).unwrap()[0].data, b"by another thread");
        assert_eq!(scene.denials().calls(), []);
        drop(threads);
        let (refused, threads) = in_thread(&scene.other, BRIEF);
        assert_eq!(refused, Err(scene.refused()));
        assert_eq!(scene.db.actor.accept_now(listener), Err(Errno::AGAIN));
        let denials = scene.denials();
        assert_eq!(denials.calls(), [(scene.first_hook(family.connect_hook()), Reason::NoRule)]);
        let record = denials.records.iter().find(|r| r.local_id == scene.other.id().0).unwrap();
        assert_eq!(record.cgroup, threads.id());
        drop(threads);
        scene.web.actor.close(caller);
        scene.db.actor.close(callee);
    });
}

#[test]
fn g27_a_cgroup_namespace_changes_no_verdict() {
    everywhere(|scene, family| {
        let (receiver, to) = scene.db.udp(family);
        scene.allow(&["web -> db: udp/any"]);
        let magic = magic();
        let mut witness = scene.watch(&magic);
        for _ in 0..2 {
            // The second time from within the namespace of the first.
            for party in [&scene.web, &scene.other] {
                party.actor.call(&Command::UnshareCgroupNs).unwrap();
            }
            assert_eq!(datagram(&scene.web.actor, to, b"allowed"), Ok(7));
            assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"allowed");
            assert_eq!(scene.denials().denied(), 0);
            assert_eq!(datagram(&scene.other.actor, to, &magic), Err(Errno::PERM));
            let denials = scene.denials();
            assert_eq!(denials.causes(), [(scene.first_hook(family.sendmsg_hook()), Reason::NoRule)]);
            assert_eq!(denials.records[0].local_id, scene.other.id().0);
        }
        assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (0, Ok(vec![])));
    });
}

#[test]
fn g87_no_name_that_a_workload_gives_its_cgroups_is_a_label() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Loopback, fast_refusal) else { return };
        // Two units, as the manager of the system makes them.
        let [unit, trusted] = ["box.service", "trusted.service"].map(|name| scene.lab().cgroup().child(name));
        let units = ["box", "trusted"]
            .map(|name| format!("    - {{ name: {name}, select: {{ systemd: {{ unit: {name}.service }} }} }}\n"));
        let text = scene.policy(&["trusted -> db: udp/any"]);
        let text = text.replace("  workloads:\n", &format!("  workloads:\n{}", units.concat()));
        scene.guard().apply(&text);
        let [actor, allowed] = [&unit, &trusted].map(|cgroup| scene.lab().actor(cgroup, &scene.web.net));
        let own = SpiffeId::new("lab.example", "box").unwrap().number();
        let (receiver, to) = scene.db.udp(Family::V4);
        assert_eq!(datagram(&allowed, to, b"allowed"), Ok(7));
        assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"allowed");
        assert_eq!(scene.denials().denied(), 0);
        let magic = magic();
        let mut witness = scene.watch(&magic);
        // Named like the other, like the path of the other, and as the manager of the system would.
        for name in ["trusted.service", trusted.path(), "system.slice/trusted.service"] {
            let mut cgroup = unit.dir().to_owned();
            for segment in name.split('/').filter(|segment| !segment.is_empty()) {
                cgroup.push(segment);
                if !cgroup.exists() {
                    actor.call(&Command::MakeCgroup { cgroup: cgroup.clone() }).unwrap();
                }
            }
            actor.call(&Command::MoveTo { cgroup }).unwrap();
            // By what it has from its parent, and after the tree was walked.
            for walked in [false, true] {
                if walked {
                    scene.guard().apply(&text);
                }
                assert_eq!(datagram(&actor, to, &magic), Err(Errno::PERM), "{name} {walked}");
                let denials = scene.denials();
                assert_eq!(denials.causes(), [(scene.first_hook(Hook::Sendmsg4), Reason::NoRule)], "{name} {walked}");
                assert_eq!(denials.records[0].local_id, own.0, "{name} {walked}");
            }
            actor.move_to(&unit);
        }
        // A cgroup has the name that it was made with, and one place: not even root changes that.
        let (named, beside) = (unit.dir().join("trusted.service"), scene.lab().cgroup().dir().join("renamed.service"));
        assert!(std::fs::rename(&named, &beside).is_err());
        assert!(std::os::unix::fs::symlink(trusted.dir(), unit.dir().join("link.service")).is_err());
        assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (0, Ok(vec![])));
    }
}

#[test]
fn g28_who_enters_the_namespace_of_another_gets_its_address_and_not_its_edges() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Veth, fast_refusal) else { return };
        let other = &scene.other.actor;
        for family in [Family::V4, Family::V6] {
            let (receiver, to) = scene.web.udp(family);
            let (listener, tcp) = scene.web.listen(family);
            scene.allow(&["db -> web: udp/any, tcp/any"]);
            assert_eq!(datagram(&scene.db.actor, to, b"allowed"), Ok(7));
            let from = scene.web.actor.receive(receiver, 1).unwrap()[0].from.unwrap().ip();
            let caller = scene.db.actor.tcp_connect(tcp, LONG).unwrap();
            scene.web.actor.accept(listener).unwrap();
            scene.db.actor.close(caller);
            assert_eq!(scene.denials().calls(), []);
            other.enter(&scene.db.net);
            // What it sends would have the address that the edge speaks of.
            let (socket, bound) = other.udp_bind(SocketAddr::new(from, 0)).unwrap();
            assert_eq!(bound.ip(), scene.db.addr(family));
            let magic = magic();
            let mut witness = tests::lab::Witness::new(&scene.web.net, &magic);
            assert_eq!(other.send_to(socket, to, &magic), Err(Errno::PERM));
            assert_eq!(other.tcp_connect(tcp, BRIEF), Err(scene.refused()));
            assert_eq!((witness.arrived(), scene.web.actor.received(receiver)), (0, Ok(vec![])));
            assert_eq!(scene.web.actor.accept_now(listener), Err(Errno::AGAIN));
            let denials = scene.denials();
            let hooks = [family.sendmsg_hook(), family.connect_hook()];
            assert_eq!(denials.calls(), hooks.map(|hook| (scene.first_hook(hook), Reason::NoRule)));
            assert!(denials.records.iter().any(|r| r.local_id == scene.other.id().0));
            other.enter(&scene.web.net);
        }
    }
}

#[test]
fn g57_over_loopback_a_workload_reaches_itself_and_others_by_their_edges_only() {
    for (place, addrs) in
        [(Place::Loopback, ["127.0.0.1", "127.0.0.2", "::1"]), (Place::Veth, ["10.9.0.1", "fd09::1", "::1"])]
    {
        for fast_refusal in [true, false] {
            let Some(scene) = Scene::open(place, fast_refusal) else { return };
            let web = &scene.web.actor;
            for addr in addrs.map(|addr| addr.parse::<IpAddr>().unwrap()) {
                let (receiver, udp) = web.udp_bind(SocketAddr::new(addr, 0)).unwrap();
                let (listener, tcp) = web.tcp_listen(SocketAddr::new(addr, 0)).unwrap();
                let both_pass = |from: &Actor| {
                    assert_eq!(datagram(from, udp, b"allowed"), Ok(7), "{addr}");
                    assert_eq!(web.receive(receiver, 1).unwrap()[0].data, b"allowed");
                    let caller = from.tcp_connect(tcp, LONG).unwrap();
                    let callee = web.accept(listener).unwrap();
                    from.close(caller);
                    web.close(callee);
                    assert_eq!(scene.denials().calls(), [], "{addr}");
                };
                scene.allow(&[]);
                both_pass(web);
                scene.allow(&["other -> web: tcp/any, udp/any"]);
                both_pass(&scene.other.actor);
                scene.allow(&["web -> other: tcp/any, udp/any"]);
                let magic = magic();
                let mut witness = tests::lab::Witness::new(&scene.web.net, &magic);
                assert_eq!(datagram(&scene.other.actor, udp, &magic), Err(Errno::PERM), "{addr}");
                assert_eq!(scene.other.actor.tcp_connect(tcp, BRIEF), Err(scene.refused()), "{addr}");
                assert_eq!((witness.arrived(), web.received(receiver)), (0, Ok(vec![])));
                assert_eq!(web.accept_now(listener), Err(Errno::AGAIN));
                let family = Family::of(udp);
                let hooks = [family.sendmsg_hook(), family.connect_hook()];
                assert_eq!(
                    scene.denials().calls(),
                    hooks.map(|hook| (scene.first_hook(hook), Reason::NoRule)),
                    "{addr}"
                );
            }
        }
    }
}

#[test]
fn g57_a_neighbour_that_reaches_a_loopback_address_is_a_neighbour() {
    let Some(scene) = Scene::open(Place::Veth, true) else { return };
    // What some machines set so that services on loopback can be published.
    scene.web.net.run(|| {
        for (name, value) in
            [("all/route_localnet", "1"), ("web0/route_localnet", "1"), ("all/rp_filter", "0"), ("web0/rp_filter", "0")]
        {
            std::fs::write(format!("/proc/sys/net/ipv4/conf/{name}"), value).unwrap();
        }
    });
    let link = scene.web.net.ip("-o link show dev web0");
    let mac = link.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    let mac: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
    let (receiver, to) = scene.web.actor.udp_bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let send = |from: [u8; 4], payload: &[u8]| {
        let mut frame = [&mac[..], &[2; 6], &[0x08, 0x00]].concat();
        PacketBuilder::ipv4(from, [127, 0, 0, 1], 64).udp(40_000, to.port()).write(&mut frame, payload).unwrap();
        // Past every hook of the sender: only the door is asked.
        scene.db.actor.call(&Command::SendFrame { device: "db0".to_owned(), frame, bypass: false }).unwrap();
    };
    scene.allow(&["door db -> web: udp/any"]);
    send([10, 9, 0, 2], b"allowed");
    assert_eq!(scene.web.actor.receive(receiver, 1).unwrap()[0].data, b"allowed", "the packet gets this far");
    assert_eq!(scene.denials().denied(), 0);
    // It is no local caller, whatever it says: neither `self` nor a workload of this namespace.
    for (allowed, source) in
        [(&[][..], [10, 9, 0, 2]), (&["other -> web: udp/any"], [127, 0, 0, 1]), (&[], [10, 9, 0, 1])]
    {
        scene.allow(allowed);
        let magic = magic();
        let mut witness = tests::lab::Witness::new(&scene.web.net, &magic);
        send(source, &magic);
        assert_eq!(witness.arrived(), 1, "{source:?} reaches the namespace");
        assert_eq!(scene.web.actor.received(receiver), Ok(vec![]), "{source:?}");
        let causes = scene.denials().causes();
        // A source that is an address of this host is refused by the kernel itself.
        assert!(causes == [(Hook::Ingress, Reason::NoRule)] || source[3] == 1 && causes.is_empty(), "{causes:?}");
    }
}

#[test]
fn g97_a_workload_in_any_corner_of_the_tree_is_judged_before_and_after_it_has_a_name() {
    const CORNERS: [&str; 5] = [
        "init.scope",
        "user.slice/user-1000.slice/user@1000.service/app.slice/run-1.scope",
        "machine.slice/machine-guest.scope",
        "system.slice/cron.service",
        "a-new-top-level-cgroup",
    ];
    everywhere(|scene, family| {
        let (receiver, to) = scene.db.udp(family);
        scene.allow(&["web -> db: udp/any"]);
        let magic = magic();
        let mut witness = scene.watch(&magic);
        let corners = CORNERS.map(|corner| {
            let cgroup = scene.lab().cgroup().child(corner);
            let actor = scene.lab().actor(&cgroup, &scene.web.net);
            (cgroup, actor)
        });
        for is_named in [false, true] {
            if is_named {
                scene.allow(&["web -> db: udp/any"]);
            }
            assert_eq!(datagram(&scene.web.actor, to, b"allowed"), Ok(7));
            assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"allowed");
            assert_eq!(scene.denials().denied(), 0);
            for (cgroup, actor) in &corners {
                assert_eq!(datagram(actor, to, &magic), Err(Errno::PERM), "{}", cgroup.path());
                let denials = scene.denials();
                let (hook, reason) = denials.causes()[0];
                assert_eq!((denials.denied(), hook), (1, scene.first_hook(family.sendmsg_hook())));
                // One that is made below a named one has its name from the start.
                let is_known = reason == Reason::NoRule || !is_named && reason == Reason::UnknownSelf;
                assert!(is_known, "{}: {reason:?}", cgroup.path());
                assert_eq!(denials.records[0].cgroup, cgroup.id());
            }
        }
        assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (0, Ok(vec![])));
    });
}
