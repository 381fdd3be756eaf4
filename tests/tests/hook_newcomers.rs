//! Cgroups and sockets that come and go around the programs: G22, G30 and G31 of the list of gaps.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use agent_common::verdict::Reason;
use tests::{
    lab::{Cgroup, Command, Errno, Exit, Family, GuardOptions, Kind, Party, Place, Scene, Socket, everywhere, magic},
    scene::repetitions,
};

/// Long enough for every answer that comes.
const LONG: Duration = Duration::from_secs(20);
const PLACES: [(Place, bool); 4] =
    [(Place::Loopback, true), (Place::Loopback, false), (Place::Veth, true), (Place::Veth, false)];

/// A program whose first and last act is a datagram.
fn send_at_once(scene: &Scene, from: &Cgroup, to: SocketAddr, data: &[u8]) -> Exit {
    let command = Command::Send { socket: 0, to: Some(to), data: data.to_vec() };
    scene.lab().once(&command).spawn(from, &scene.web.net, None).unwrap().wait()
}

fn refused() -> Exit {
    Exit::Status(Errno::PERM.raw_os_error())
}

/// TCP connections and UDP sockets of a party, with their ends at `db`.
struct Flows {
    connections: Vec<(Socket, Socket)>,
    datagrams: Vec<Socket>,
}

impl Flows {
    fn open(scene: &Scene, party: &Party, family: Family, listener: Socket, [tcp, udp]: [SocketAddr; 2]) -> Self {
        let connect = |_| {
            let caller = party.actor.tcp_connect(tcp, LONG).unwrap();
            (caller, scene.db.actor.accept(listener).unwrap())
        };
        // Half of the datagram sockets have a peer, half have not.
        let bind = |n: usize| {
            let socket = party.actor.socket(family, Kind::Datagram, 0).unwrap();
            if n.is_multiple_of(2) {
                party.actor.connect(socket, udp, LONG).unwrap();
            }
            socket
        };
        Self { connections: (0..10).map(connect).collect(), datagrams: (0..4).map(bind).collect() }
    }

    /// Sends by every flow, and gives the payloads that arrive.
    fn send(&self, scene: &Scene, party: &Party, udp: SocketAddr, receiver: Socket, data: &[u8]) -> usize {
        for &(caller, _) in &self.connections {
            // A denied one takes the payload and cannot get rid of it.
            party.actor.send(caller, data).unwrap();
        }
        for (n, &socket) in self.datagrams.iter().enumerate() {
            let _ = match n.is_multiple_of(2) {
                true => party.actor.send(socket, data),
                false => party.actor.send_to(socket, udp, data),
            };
        }
        // Whatever is under way has arrived after this.
        let _ = scene.watch(&magic()).arrived();
        let by_tcp =
            self.connections.iter().filter(|(_, callee)| !scene.db.actor.received(*callee).unwrap().is_empty());
        by_tcp.count() + scene.db.actor.received(receiver).unwrap().len()
    }
}

#[test]
fn g22_sockets_older_than_the_programs_and_the_policy_are_judged_by_both() {
    for (place, fast_refusal) in PLACES {
        let options = GuardOptions { fast_refusal, ..GuardOptions::default() };
        let Some(scene) = Scene::unguarded(place, options) else { return };
        for family in [Family::V4, Family::V6] {
            let (listener, tcp) = scene.db.listen(family);
            let (receiver, udp) = scene.db.udp(family);
            let open = |party| Flows::open(&scene, party, family, listener, [tcp, udp]);
            if family == Family::V6 {
                // These are older than a policy only.
                let from_other = if place == Place::Veth { "exit other -> db" } else { "other -> db" };
                scene.allow(&["web -> db: tcp/any, udp/any", &format!("{from_other}: tcp/any, udp/any")]);
            }
            let (ours, theirs) = (open(&scene.web), open(&scene.other));
            let all = ours.connections.len() + ours.datagrams.len();
            assert_eq!(ours.send(&scene, &scene.web, udp, receiver, b"before"), all, "positive control");
            assert_eq!(theirs.send(&scene, &scene.other, udp, receiver, b"before"), all, "positive control");
            scene.allow(&["web -> db: tcp/any, udp/any"]);
            if family == Family::V4 {
                scene.guard().reattach().expect("attach the programs");
            }
            let _ = scene.denials();
            let magic = magic();
            let mut witness = scene.watch(&magic);
            assert_eq!(theirs.send(&scene, &scene.other, udp, receiver, &magic), 0, "{place:?} {family:?}");
            assert_eq!(witness.arrived(), 0);
            assert!(scene.denials().records.iter().any(|r| r.local_id == scene.other.id().0));
            assert_eq!(ours.send(&scene, &scene.web, udp, receiver, b"after"), all, "{place:?} {family:?}");
            for (caller, callee) in ours.connections {
                scene.db.actor.send(callee, b"back").unwrap();
                assert_eq!(scene.web.actor.receive(caller, 1).unwrap()[0].data, b"back");
            }
        }
    }
}

#[test]
fn g30_without_a_label_not_even_the_first_packet_passes_and_with_it_the_next_one_does() {
    const ROUNDS: usize = 25;
    everywhere(|scene, family| {
        let (receiver, to) = scene.db.udp(family);
        scene.allow(&["web -> db: udp/any"]);
        assert_eq!(send_at_once(scene, &scene.web.cgroup, to, b"control"), Exit::Status(0));
        assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"control");
        assert_eq!(scene.denials().denied(), 0);
        let magic = magic();
        let mut witness = scene.watch(&magic);
        for round in 0..ROUNDS {
            // Nobody labels here: the labeller is stopped.
            let stranger = scene.lab().cgroup().child(&format!("stranger-{round}"));
            assert_eq!(send_at_once(scene, &stranger, to, &magic), refused(), "{round}");
        }
        assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (0, Ok(vec![])));
        let denials = scene.denials();
        assert_eq!((denials.denied(), denials.records.len()), (ROUNDS as u64, ROUNDS), "no stranger for another");
        let cause = (scene.first_hook(family.sendmsg_hook()), Reason::UnknownSelf);
        assert!(denials.causes().iter().all(|found| *found == cause), "{:?}", denials.causes());

        // The label comes late, to a socket that is there already.
        let late = scene.lab().cgroup().child("late");
        let actor = scene.lab().actor(&late, &scene.web.net);
        let socket = actor.socket(family, Kind::Datagram, 0).unwrap();
        assert_eq!(actor.send_to(socket, to, &magic), Err(Errno::PERM));
        let slot = scene.guard().datapath().label_of(scene.web.cgroup.id()).unwrap();
        scene.guard().label(late.id(), slot);
        assert_eq!(actor.send_to(socket, to, b"labelled"), Ok(8));
        let request = scene.db.actor.receive(receiver, 1).unwrap();
        scene.db.actor.send_to(receiver, request[0].from.unwrap(), b"reply").unwrap();
        assert_eq!(actor.receive(socket, 1).unwrap()[0].data, b"reply");
        // And goes again.
        scene.guard().label(late.id(), None);
        let another = actor.socket(family, Kind::Datagram, 0).unwrap();
        assert_eq!(actor.send_to(another, to, &magic), Err(Errno::PERM));
        assert_eq!(witness.arrived(), 0);
    });
}

#[test]
fn g31_a_cgroup_that_dies_keeps_its_label_for_its_sockets_and_hands_it_to_nobody() {
    everywhere(|scene, family| {
        let (listener, tcp) = scene.db.listen(family);
        let (receiver, udp) = scene.db.udp(family);
        scene.allow(&["web -> db: tcp/any, udp/any"]);
        let slot = scene.guard().datapath().label_of(scene.web.cgroup.id()).unwrap();
        let first = scene.lab().cgroup().child("instance");
        scene.guard().label(first.id(), slot);
        let actor = scene.lab().actor(&first, &scene.web.net);
        let caller = actor.tcp_connect(tcp, LONG).unwrap();
        let callee = scene.db.actor.accept(listener).unwrap();
        let socket = actor.socket(family, Kind::Datagram, 0).unwrap();
        // Sockets stay; the process goes to where it is the same workload, and the cgroup is removed.
        actor.move_to(&scene.web.cgroup);
        let (id, dir) = (first.id(), first.dir().to_owned());
        drop(first);
        assert!(!dir.exists());
        let second = scene.lab().cgroup().child("instance");
        assert_ne!(second.id(), id);
        actor.send(caller, b"alive").unwrap();
        assert_eq!(scene.db.actor.receive(callee, 1).unwrap()[0].data, b"alive");
        actor.send_to(socket, udp, b"alive").unwrap();
        assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"alive");
        assert_eq!(scene.denials().calls(), []);
        // The path is the same, the cgroup is not.
        let magic = magic();
        let mut witness = scene.watch(&magic);
        assert_eq!(send_at_once(scene, &second, udp, &magic), refused());
        assert_eq!(scene.denials().records[0].cgroup, second.id());
        // What it is now says nothing about the sockets of what was there before.
        let other = scene.guard().datapath().label_of(scene.other.cgroup.id()).unwrap();
        scene.guard().label(second.id(), other);
        assert_eq!(send_at_once(scene, &second, udp, &magic), refused());
        assert_eq!(scene.denials().records[0].local_id, scene.other.id().0);
        actor.send(caller, b"still").unwrap();
        assert_eq!(scene.db.actor.receive(callee, 1).unwrap()[0].data, b"still");
        assert_eq!(witness.arrived(), 0);
        // A new policy judges it by what it was, and another policy denies it.
        scene.allow(&["other -> db: tcp/any, udp/any"]);
        assert_eq!(actor.send_to(socket, udp, &magic), Err(Errno::PERM));
        assert_eq!((witness.arrived(), scene.db.actor.received(receiver)), (0, Ok(vec![])));
        scene.allow(&["web -> db: tcp/any, udp/any"]);
        assert_eq!(actor.send_to(socket, udp, b"again"), Ok(5));
        assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"again");
        // With its last socket goes its label.
        assert!(scene.guard().datapath().label_of(id).unwrap().is_some());
        drop(actor);
        scene.db.actor.close(callee);
        let end = Instant::now() + Duration::from_secs(30);
        while scene.guard().datapath().label_of(id).unwrap().is_some() {
            assert!(Instant::now() < end, "the label of a cgroup that is gone stays");
            thread::sleep(Duration::from_millis(5));
        }
    });
}

#[test]
fn g31_cgroups_that_come_and_go_leave_nothing_in_the_map() {
    let cycles = repetitions(1_000, 100_000);
    let Some(scene) = Scene::open(Place::Loopback, true) else { return };
    scene.allow(&[]);
    let labelled = || scene.guard().datapath().labelled_cgroups().unwrap().len();
    let before = labelled();
    let path = scene.web.cgroup.dir().join("short-lived");
    for cycle in 0..cycles {
        std::fs::create_dir(&path).unwrap();
        if cycle == 0 {
            assert_eq!(labelled(), before + 1, "a new cgroup has its entry at once");
        }
        std::fs::remove_dir(&path).unwrap();
    }
    let end = Instant::now() + Duration::from_secs(30);
    while labelled() > before {
        assert!(Instant::now() < end, "{} entries, {before} before", labelled());
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(scene.denials().denied(), 0);
}
