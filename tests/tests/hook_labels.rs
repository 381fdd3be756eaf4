//! Whose a socket is: G20, G21, G23 and G24 of the list of gaps. A socket belongs to the cgroup that made
//! it, whoever holds it; and who acts on a foreign socket must be allowed as well.
//!
//! That last rule is asked at connect and sendmsg alone, where the acting task is known.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{net::SocketAddr, os::fd::AsFd as _, time::Duration};

use agent_common::{
    layout::{DenyRecord, Hook},
    verdict::Reason,
};
use tests::lab::{Actor, Command, Errno, Exit, Family, Kind, Place, Scene, Socket, everywhere, magic};

/// Long enough for every answer that comes. Where none comes, `BRIEF` is waited for.
const LONG: Duration = Duration::from_secs(20);
const BRIEF: Duration = Duration::from_millis(200);
const OPEN: &[&str] = &["web -> db: tcp/any, udp/any"];

/// Sends on a connection and hears it at the other end, both ways.
fn talk(caller: (&Actor, Socket), callee: (&Actor, Socket)) {
    for ((from, socket), (to, peer)) in [(caller, callee), (callee, caller)] {
        from.send(socket, b"payload").unwrap();
        assert_eq!(to.receive(peer, 1).unwrap()[0].data, b"payload");
    }
}

/// What a task of another workload gets: refused where tasks are asked, else what the socket may do.
fn by_task<T>(scene: &Scene, allowed: T) -> Result<T, Errno> {
    if scene.fast_refusal { Err(Errno::PERM) } else { Ok(allowed) }
}

/// Checks that one denial was told, and that it names the workload of the socket and that of the task.
fn names_both(scene: &Scene, hook: Hook) {
    let denials = scene.denials();
    if !scene.fast_refusal {
        assert_eq!(denials.calls(), []);
        return;
    }
    assert_eq!(denials.calls(), [(hook, Reason::TaskMismatch)]);
    let DenyRecord { local_id, task_id, pid, .. } = *denials.records.iter().find(|r| r.task_id != 0).unwrap();
    assert_eq!((local_id, task_id), (scene.web.id().0, scene.other.id().0));
    assert_eq!(i32::try_from(pid).unwrap(), scene.other.actor.process().pid());
}

/// A way to get at the socket of another workload.
type Handover = fn(&Actor, Socket, &Actor) -> Socket;

fn a_socket_stays_its_makers(scene: &Scene, family: Family, hand_over: Handover) {
    let (web, other) = (&scene.web.actor, &scene.other.actor);
    let (listener, tcp) = scene.db.listen(family);
    let (receiver, udp) = scene.db.udp(family);
    scene.allow(OPEN);
    // Positive control, and a connected one to be handed over.
    let connected = web.tcp_connect(tcp, LONG).unwrap();
    let callee = scene.db.actor.accept(listener).unwrap();
    talk((web, connected), (&scene.db.actor, callee));
    assert_eq!(scene.denials().calls(), []);

    // Connected: its flow is its maker's, in any hands, and ends with its maker's edge.
    let held = hand_over(web, connected, other);
    talk((other, held), (&scene.db.actor, callee));
    assert_eq!(scene.denials().calls(), []);

    // Not yet connected, of who is allowed, used by who is not.
    let socket = hand_over(web, web.socket(family, Kind::Stream, 0).unwrap(), other);
    assert_eq!(other.connect(socket, tcp, BRIEF), by_task(scene, ()));
    names_both(scene, family.connect_hook());
    let accepted = scene.db.actor.accept_now(listener);
    assert_eq!(accepted.is_ok(), !scene.fast_refusal);
    let socket = hand_over(web, web.socket(family, Kind::Datagram, 0).unwrap(), other);
    assert_eq!(other.send_to(socket, udp, b"held"), by_task(scene, 4));
    names_both(scene, family.sendmsg_hook());
    assert_eq!(scene.db.actor.received(receiver).unwrap().len(), usize::from(!scene.fast_refusal));

    // The other way round: who is allowed gains nothing for a socket that is not.
    let magic = magic();
    let mut witness = scene.watch(&magic);
    let socket = hand_over(other, other.socket(family, Kind::Stream, 0).unwrap(), web);
    assert_eq!(web.connect(socket, tcp, BRIEF), Err(scene.refused()));
    // Or it would go on calling.
    web.disconnect(socket).unwrap();
    let socket = hand_over(other, other.socket(family, Kind::Datagram, 0).unwrap(), web);
    assert_eq!(web.send_to(socket, udp, &magic), Err(Errno::PERM));
    assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (0, Ok(vec![])));
    assert_eq!(scene.db.actor.accept_now(listener), Err(Errno::AGAIN));
    let denials = scene.denials();
    let hooks = [family.connect_hook(), family.sendmsg_hook()].map(|hook| (scene.first_hook(hook), Reason::NoRule));
    assert_eq!(denials.calls(), hooks);

    // The one that was handed over while open ends with the edge of its maker.
    scene.allow(&["other -> db: tcp/any, udp/any"]);
    other.send(held, &magic).unwrap();
    assert_eq!((witness.arrived(), scene.db.actor.received(callee)), (0, Ok(vec![])));
    assert!(scene.denials().records.iter().any(|r| r.local_id == scene.web.id().0));
}

#[test]
fn g20_a_socket_that_is_given_away_stays_its_makers() {
    everywhere(|scene, family| a_socket_stays_its_makers(scene, family, |from, socket, to| from.give(socket, to)));
}

#[test]
fn g20_a_listener_that_is_given_away_stays_its_makers() {
    everywhere(|scene, family| {
        let (web, db, other) = (&scene.web.actor, &scene.db.actor, &scene.other.actor);
        scene.allow(&["web -> db: tcp/any"]);
        let (listener, to) = scene.db.listen(family);
        let given = db.give(listener, other);
        let caller = web.tcp_connect(to, LONG).unwrap();
        let callee = other.accept(given).unwrap();
        talk((web, caller), (other, callee));
        assert_eq!(scene.denials().calls(), []);
        // One of `other`, in the hands of `db`: the edge to `db` does not open it.
        let (listener, to) = scene.other.listen(family);
        let given = other.give(listener, db);
        assert_eq!(web.tcp_connect(to, BRIEF), Err(scene.refused()));
        assert_eq!(db.accept_now(given), Err(Errno::AGAIN));
        assert_eq!(scene.denials().calls(), [(scene.first_hook(family.connect_hook()), Reason::NoRule)]);
        // The door of its maker judges what comes: an edge to `db` that ends is the end of it.
        scene.allow(&["web -> other: tcp/any"]);
        web.send(caller, b"late").unwrap();
        assert_eq!(other.received(callee), Ok(vec![]));
    });
}

#[test]
fn g21_a_socket_that_is_stolen_stays_its_makers() {
    everywhere(|scene, family| {
        a_socket_stays_its_makers(scene, family, |from, socket, to| to.steal(from, socket).unwrap());
    });
}

#[test]
fn g21_a_socket_that_a_new_program_inherits_stays_its_makers() {
    everywhere(|scene, family| {
        let (listener, tcp) = scene.db.listen(family);
        scene.allow(OPEN);
        // Runs a program in the cgroup of a party, with a socket of another as its standard input.
        let run = |maker: &Actor, heir: &tests::lab::Party, command: &Command| {
            let socket = maker.socket(family, Kind::Stream, 0).unwrap();
            let copy = maker.copy(socket);
            let exit =
                scene.lab().once(command).spawn(&heir.cgroup, &scene.web.net, Some(copy.as_fd())).unwrap().wait();
            // Or it would go on calling.
            maker.disconnect(socket).unwrap();
            exit
        };
        let connect = Command::Connect { socket: 1, addr: tcp, timeout_ms: 200 };
        let (web, other) = (&scene.web, &scene.other);
        assert_eq!(run(&web.actor, web, &connect), Exit::Status(0), "positive control");
        scene.db.actor.accept(listener).unwrap();
        assert_eq!(scene.denials().calls(), []);
        let errno = |errno: Errno| Exit::Status(errno.raw_os_error());
        let expected = if scene.fast_refusal { errno(Errno::PERM) } else { Exit::Status(0) };
        assert_eq!(run(&web.actor, other, &connect), expected, "a foreign task on an allowed socket");
        let expected: &[_] = if scene.fast_refusal { &[(family.connect_hook(), Reason::TaskMismatch)] } else { &[] };
        assert_eq!(scene.denials().calls(), expected);
        assert_eq!(scene.db.actor.accept_now(listener).is_ok(), !scene.fast_refusal);
        assert_eq!(run(&other.actor, web, &connect), errno(scene.refused()), "an allowed task on a denied socket");
        assert_eq!(scene.db.actor.accept_now(listener), Err(Errno::AGAIN));
        assert_eq!(scene.denials().calls(), [(scene.first_hook(family.connect_hook()), Reason::NoRule)]);
    });
}

#[test]
fn g23_an_accepted_socket_is_its_listeners_wherever_it_is_accepted() {
    everywhere(|scene, family| {
        let (web, db) = (&scene.web.actor, &scene.db.actor);
        let (listener, to) = scene.db.listen(family);
        let connect = |timeout: Duration| {
            let caller = web.tcp_connect(to, timeout)?;
            Ok((caller, db.accept(listener).unwrap()))
        };
        scene.allow(&["web -> db: tcp/any"]);
        let (caller, callee) = connect(LONG).unwrap();
        talk((web, caller), (db, callee));
        // Accepted by a process that is elsewhere by now.
        db.move_to(&scene.other.cgroup);
        let (caller, callee) = connect(LONG).unwrap();
        talk((web, caller), (db, callee));
        assert_eq!(scene.denials().calls(), []);
        // Where the process is now says nothing.
        scene.allow(&["web -> other: tcp/any"]);
        assert_eq!(connect(BRIEF), Err(scene.refused()));
        db.send(callee, b"late").unwrap();
        assert_eq!(web.received(caller), Ok(vec![]));
        assert!(scene.denials().calls().iter().all(|(_, reason)| *reason == Reason::NoRule));
        db.move_to(&scene.db.cgroup);
    });
}

#[test]
fn g23_a_listener_made_where_no_label_is_opens_no_door() {
    for (place, fast_refusal) in [(Place::Loopback, true), (Place::Loopback, false), (Place::Veth, false)] {
        let Some(scene) = Scene::open(place, fast_refusal) else { return };
        for family in [Family::V4, Family::V6] {
            // Whoever makes sockets for others, as a manager of services does.
            let manager = scene.lab().actor(scene.lab().cgroup(), &scene.db.net);
            scene.allow(&["web -> db: tcp/any"]);
            let (own, at_own) = scene.db.listen(family);
            let (made, to) = manager.tcp_listen(scene.db.at(family, 0)).unwrap();
            let inherited = manager.give(made, &scene.db.actor);
            manager.close(made);
            let _caller = scene.web.actor.tcp_connect(at_own, LONG).unwrap();
            scene.db.actor.accept(own).unwrap();
            assert_eq!(scene.denials().calls(), []);
            // Over loopback the exit knows the listener; elsewhere it knows the address, and the door decides.
            let hook = match place {
                Place::Loopback => scene.first_hook(family.connect_hook()),
                Place::Veth => Hook::Ingress,
            };
            let refused = if place == Place::Veth { Errno::TIMEDOUT } else { scene.refused() };
            assert_eq!(scene.web.actor.tcp_connect(to, BRIEF), Err(refused));
            assert_eq!(scene.db.actor.accept_now(inherited), Err(Errno::AGAIN));
            assert_eq!(scene.denials().calls(), [(hook, Reason::NoRule)]);
        }
    }
}

#[test]
fn g24_a_process_that_moves_takes_no_label_along_and_leaves_none_behind() {
    everywhere(|scene, family| {
        let (web, db, other) = (&scene.web.actor, &scene.db.actor, &scene.other.actor);
        let (listener, tcp) = scene.db.listen(family);
        let (receiver, udp) = scene.db.udp(family);
        let datagram = |from: &Actor, to: SocketAddr, data: &[u8]| {
            let socket = from.socket(family, Kind::Datagram, 0).unwrap();
            let sent = from.send_to(socket, to, data);
            from.close(socket);
            sent
        };
        scene.allow(OPEN);
        let [idle, early] = [Kind::Stream, Kind::Datagram].map(|kind| web.socket(family, kind, 0).unwrap());
        let (caller, callee) = (web.tcp_connect(tcp, LONG).unwrap(), db.accept(listener).unwrap());
        let theirs = other.socket(family, Kind::Datagram, 0).unwrap();
        web.send_to(early, udp, b"early").unwrap();
        assert_eq!(datagram(web, udp, b"new"), Ok(3));
        assert_eq!(db.receive(receiver, 2).unwrap().len(), 2);
        assert_eq!(scene.denials().calls(), []);

        // To where nothing is allowed, and back and forth under traffic.
        for round in 0..10 {
            web.move_to(if round % 2 == 0 { &scene.other.cgroup } else { &scene.web.cgroup });
            talk((web, caller), (db, callee));
        }
        web.move_to(&scene.other.cgroup);
        talk((web, caller), (db, callee));
        assert_eq!(scene.denials().calls(), [], "an open flow is its maker's");
        assert_eq!(datagram(web, udp, b"x"), Err(Errno::PERM), "a new socket is of the new place");
        assert_eq!(scene.denials().records[0].local_id, scene.other.id().0);
        assert_eq!(web.connect(idle, tcp, BRIEF), by_task(scene, ()), "an old one that connects now");
        let told = scene.denials();
        assert_eq!(told.calls().len(), usize::from(scene.fast_refusal));
        assert!(told.records.iter().all(|r| (r.local_id, r.task_id) == (scene.web.id().0, scene.other.id().0)));
        web.move_to(&scene.web.cgroup);

        // From where nothing is allowed.
        let magic = magic();
        let mut witness = scene.watch(&magic);
        other.move_to(&scene.web.cgroup);
        assert_eq!(other.send_to(theirs, udp, &magic), Err(Errno::PERM), "an old socket is of the old place");
        assert_eq!(witness.arrived(), 0);
        assert_eq!(scene.denials().records[0].local_id, scene.other.id().0);
        assert_eq!(datagram(other, udp, b"new"), Ok(3), "a new one is of the new place");
        assert_eq!(db.receive(receiver, 1).unwrap()[0].data, b"new");
        other.move_to(&scene.other.cgroup);
    });
}
