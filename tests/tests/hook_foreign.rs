//! Kernel programs of others beside ours: G41 and G72 of the list of gaps.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::net::{IpAddr, SocketAddr};

use agent_common::{layout::Hook, verdict::Reason};
use tests::{
    frames::{FAMILIES, frame, ip_udp},
    lab::{Cgroup, Errno, Family, Foreign, GuardOptions, Kind, Layers, Wall, magic},
    scene::{BRIEF, LONG},
};

/// When the other program has its turn.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Turn {
    /// Beside ours, before it.
    Before,
    /// Beside ours, behind it.
    Behind,
    /// At the workload itself: the kernel begins with the innermost cgroup.
    Inside,
}

/// Ports of `db`: the one that is allowed, and the other. At the service address they have another name.
const OPEN: u16 = 7001;
const SHUT: u16 = 7002;

/// The service address.
fn vip(family: Family, backend: u16) -> SocketAddr {
    let vip: IpAddr = if family == Family::V4 { "10.96.0.10" } else { "fd96::10" }.parse().unwrap();
    SocketAddr::new(vip, backend + 100)
}

/// Puts programs in place that rewrite service addresses.
fn rewriting(wall: &Wall, at: &Cgroup) -> Vec<Foreign> {
    let places = FAMILIES.iter().flat_map(|&family| [OPEN, SHUT].map(|backend| (family, backend)));
    let attach = |(family, backend)| Foreign::rewrites(at, vip(family, backend), wall.db.at(family, backend));
    places.flat_map(attach).collect()
}

#[test]
fn g41_an_address_that_another_program_rewrites_is_judged_as_what_it_becomes() {
    for turn in [Turn::Before, Turn::Behind, Turn::Inside] {
        let Some(wall) = Wall::unguarded(GuardOptions::default()) else { return };
        wall.give_addresses();
        let attach_ours = || wall.guard().reattach().unwrap();
        if turn != Turn::Before {
            attach_ours();
        }
        let at = if turn == Turn::Inside { &wall.web.cgroup } else { wall.lab().cgroup() };
        let _foreign = rewriting(&wall, at);
        if turn == Turn::Before {
            attach_ours();
        }
        for family in FAMILIES {
            for backend in [OPEN, SHUT] {
                eprintln!("{turn:?} {family:?} {backend}");
                check(&wall, turn, family, vip(family, backend), backend);
            }
        }
    }
}

fn check(wall: &Wall, turn: Turn, family: Family, vip: SocketAddr, backend: u16) {
    let to = wall.db.at(family, backend);
    let (listener, _) = wall.db.actor.tcp_listen(to).unwrap();
    let (receiver, _) = wall.db.actor.udp_bind(to).unwrap();
    let rules = ["web -> vip: any".to_owned(), format!("web -> db: tcp/{OPEN}, udp/{OPEN}")];
    let rules = rules.each_ref().map(String::as_str);
    let socket = wall.web.actor.socket(family, Kind::Datagram, 0).unwrap();
    if backend == OPEN {
        wall.allow(&rules);
        let ours = wall.web.actor.tcp_connect(vip, LONG).unwrap();
        let theirs = wall.db.actor.accept(listener).unwrap();
        wall.web.actor.send(ours, b"ask").unwrap();
        assert_eq!(wall.db.actor.receive(theirs, 1).unwrap()[0].data, b"ask");
        wall.db.actor.send(theirs, b"answer").unwrap();
        assert_eq!(wall.web.actor.receive(ours, 1).unwrap()[0].data, b"answer");
        wall.web.actor.send_to(socket, vip, b"ask").unwrap();
        let asked = wall.db.actor.receive(receiver, 1).unwrap();
        wall.db.actor.send_to(receiver, asked[0].from.unwrap(), b"answer").unwrap();
        assert_eq!(wall.web.actor.receive(socket, 1).unwrap()[0].data, b"answer");
        assert_eq!(wall.denials().denied(), 0);
        // Ours knows no more than what it is shown: behind it, the address that was asked for must be allowed too.
        wall.allow(&rules[1..]);
        let asked = wall.web.actor.tcp_connect(vip, LONG);
        assert_eq!(asked.is_ok(), turn != Turn::Behind, "{asked:?}");
        let _ = wall.denials();
        return;
    }
    // The exit alone.
    wall.allow_at_the_exit(&rules);
    let magic = magic();
    let mut witness = wall.watch(&magic);
    let early = turn != Turn::Behind;
    let told = if early { Errno::PERM } else { Errno::TIMEDOUT };
    assert_eq!(wall.web.actor.tcp_connect(vip, BRIEF), Err(told));
    let connect = if early { family.connect_hook() } else { Hook::Egress };
    assert_eq!(wall.denials().calls(), [(connect, Reason::NoRule)]);
    assert_eq!(wall.web.actor.send_to(socket, vip, &magic), Err(Errno::PERM));
    let sendmsg = if early { family.sendmsg_hook() } else { Hook::Egress };
    let denials = wall.denials();
    assert_eq!(denials.causes(), [(sendmsg, Reason::NoRule)]);
    assert_eq!((denials.records[0].peer_port, denials.records[0].peer_id), (SHUT, wall.db.id().0));
    assert_eq!(wall.db.actor.accept_now(listener), Err(Errno::AGAIN));
    assert_eq!((witness.arrived(), wall.db.actor.received(receiver)), (0, Ok(vec![])));
}

/// Lets frames that `web` sends jump into the network of `db`, past the rest of the host.
fn jumping(wall: &Wall, layers: Layers, first: bool) -> Foreign {
    let [web, db] = wall.devices();
    // What is addressed to the host is taken by `db` as well.
    let (_, host) = wall.ethernet();
    let address: Vec<String> = host.iter().map(|byte| format!("{byte:02x}")).collect();
    wall.db.net.ip(&format!("link set db0 address {}", address.join(":")));
    if layers.has_devices() {
        // By which `db` sends from now on.
        wall.guard_device(&wall.host.device("to-db", &wall.db.net, "db0"), wall.db.cgroup.id());
    }
    Foreign::takes_to_peer(&wall.host, web.index, db.index, first)
}

#[test]
fn g72_what_jumps_past_the_devices_is_judged_at_the_door_of_the_socket() {
    for (layers, first) in [(Layers::All, true), (Layers::All, false), (Layers::Sockets, true)] {
        let Some(wall) = Wall::by(layers, GuardOptions::default()) else { return };
        let _foreign = jumping(&wall, layers, first);
        for (family, by_frame) in FAMILIES.iter().flat_map(|&family| [(family, false), (family, true)]) {
            eprintln!("{layers:?}, first {first}, by frame {by_frame}, {family:?}");
            let (receiver, to) = wall.db.udp(family);
            let send = |data: &[u8]| {
                if by_frame {
                    let packet = ip_udp(wall.web.at(family, 40_001), to, data);
                    wall.send_frame(&frame(&wall, &packet), true).unwrap();
                } else {
                    let socket = wall.web.actor.socket(family, Kind::Datagram, 0).unwrap();
                    wall.web.actor.send_to(socket, to, data).unwrap();
                    wall.web.actor.close(socket);
                }
            };
            wall.open_way("udp/any");
            let _ = wall.denials();
            send(b"allowed");
            assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, b"allowed");
            assert_eq!(wall.denials().denied(), 0);
            // Nothing but the door says no: the device of `db` is jumped over, and a sniffer there sees it.
            wall.allow_at_the_door(&[]);
            let magic = magic();
            let mut sniffer = wall.watch(&magic);
            (0..3).for_each(|_| send(&magic));
            assert_eq!((sniffer.arrived(), wall.db.actor.received(receiver)), (3, Ok(vec![])));
            let denials = wall.denials();
            assert_eq!(denials.causes().first(), Some(&(Hook::Ingress, Reason::NoRule)), "{:#?}", denials.records);
            assert!(denials.records.iter().all(|r| r.local_id == wall.db.id().0 && r.peer_id == wall.web.id().0));
            assert_eq!(denials.denied(), 3);
        }
    }
}

#[test]
fn g72_without_the_door_of_the_socket_a_jump_is_seen_to_succeed() {
    let Some(wall) = Wall::by(Layers::Devices, GuardOptions::default()) else { return };
    let foreign = jumping(&wall, Layers::Devices, true);
    let (receiver, to) = wall.db.udp(Family::V4);
    let socket = wall.web.actor.socket(Family::V4, Kind::Datagram, 0).unwrap();
    wall.allow(&[]);
    wall.web.actor.send_to(socket, to, b"past every device").unwrap();
    assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1, "else the test above proves nothing");
    // Nor is it hidden by what is behind: ours is not run at all.
    assert_eq!(wall.denials().denied(), 0);
    drop(foreign);
}
