//! TCP under the kernel programs: G5 to G7 and G42 of the list of gaps, and flows that outlive a policy.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use agent_common::{
    flow::Direction,
    layout::{DenyCounter, Hook},
    parse::tcp,
    verdict::Reason,
};
use eastwall::datapath::cut::Diag;
use tests::lab::{Command, Errno, Family, Kind, Place, Scene, Socket, everywhere, magic, slowness};

/// Long enough for every answer that comes. Where none comes, `BRIEF` is waited for: less than the second
/// after which a SYN is sent again.
const LONG: Duration = Duration::from_secs(20);
const BRIEF: Duration = Duration::from_millis(200);
const PLACES: [(Place, bool); 4] =
    [(Place::Loopback, true), (Place::Loopback, false), (Place::Veth, true), (Place::Veth, false)];

/// linux/tcp.h, linux/in.h.
const SOL_TCP: i32 = 6;
const TCP_FASTOPEN: i32 = 23;
const TCP_FASTOPEN_CONNECT: i32 = 30;
const IPPROTO_MPTCP: u32 = 262;

/// The hook that refuses to connect.
fn connect(family: Family) -> Hook {
    if family == Family::V4 { Hook::Connect4 } else { Hook::Connect6 }
}

/// What the caller sees when its exit says no.
fn refused(scene: &Scene) -> Errno {
    if scene.fast_refusal { Errno::PERM } else { Errno::TIMEDOUT }
}

fn received(scene: &Scene, socket: Socket) -> Vec<u8> {
    scene.db.actor.received(socket).unwrap().into_iter().flat_map(|m| m.data).collect()
}

/// A connection from `web` to `db`: the socket of each.
fn connection(scene: &Scene, family: Family) -> (Socket, Socket) {
    let (listener, to) = scene.db.listen(family);
    let caller = scene.web.actor.tcp_connect(to, LONG).unwrap();
    let callee = scene.db.actor.accept(listener).unwrap();
    scene.db.actor.close(listener);
    (caller, callee)
}

/// Sends from `web` to `db` and back.
fn talk(scene: &Scene, (caller, callee): (Socket, Socket)) {
    scene.web.actor.send(caller, b"there").unwrap();
    assert_eq!(scene.db.actor.receive(callee, 1).unwrap()[0].data, b"there");
    scene.db.actor.send(callee, b"back").unwrap();
    assert_eq!(scene.web.actor.receive(caller, 1).unwrap()[0].data, b"back");
}

#[test]
fn tcp_passes_if_allowed_and_is_refused_if_not() {
    everywhere(|scene, family| {
        let (listener, to) = scene.db.listen(family);
        scene.allow(&["web -> db: tcp/any"]);
        let caller = scene.web.actor.tcp_connect(to, LONG).unwrap();
        let callee = scene.db.actor.accept(listener).unwrap();
        talk(scene, (caller, callee));
        scene.web.actor.close(caller);
        assert_eq!(scene.db.actor.receive(callee, 1).unwrap()[0].data, b"", "the end of the stream");
        // Or what it sends again on a slow machine would be counted.
        scene.db.actor.close(callee);
        assert_eq!(scene.denials().denied(), 0);

        // The edge has a direction.
        let (_, back) = scene.web.listen(family);
        assert_eq!(scene.db.actor.tcp_connect(back, BRIEF), Err(refused(scene)));
        assert_eq!(scene.denials().causes(), [(scene.first_hook(connect(family)), Reason::NoRule)]);

        scene.allow(&[]);
        assert_eq!(scene.web.actor.tcp_connect(to, BRIEF), Err(refused(scene)));
        assert_eq!(scene.db.actor.accept_now(listener), Err(Errno::AGAIN));
        let denials = scene.denials();
        assert_eq!(denials.causes(), [(scene.first_hook(connect(family)), Reason::NoRule)]);
        // On a slow machine a caller that hears nothing has time to ask again.
        assert!(denials.denied() == 1 || slowness() > 1, "{}", denials.denied());
        let record = denials.records[0];
        assert_eq!((record.local_id, record.peer_port, record.proto), (scene.web.id().0, to.port(), 6));
        assert_eq!(i32::try_from(record.pid).unwrap(), scene.web.actor.process().pid());
        assert_eq!(record.direction, Direction::Egress as u8);
    });
}

#[test]
fn the_door_stops_a_connection_that_the_exit_lets_pass() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Veth, fast_refusal) else { return };
        for family in [Family::V4, Family::V6] {
            let (listener, to) = scene.db.listen(family);
            scene.allow(&["exit web -> db: tcp/any"]);
            assert_eq!(scene.web.actor.tcp_connect(to, BRIEF), Err(Errno::TIMEDOUT));
            assert_eq!(scene.db.actor.accept_now(listener), Err(Errno::AGAIN));
            let denials = scene.denials();
            assert_eq!(denials.causes(), [(Hook::Ingress, Reason::NoRule)]);
            let record = denials.records[0];
            assert_eq!((record.tcp_flags, record.local_port, record.pid), (tcp::SYN, to.port(), 0));
            assert_eq!((record.local_id, record.direction), (scene.db.id().0, Direction::Ingress as u8));
        }
    }
}

#[test]
fn a_flow_that_stays_allowed_is_never_cut() {
    everywhere(|scene, family| {
        scene.allow(&["web -> db: tcp/any"]);
        let sockets = connection(scene, family);
        for _ in 0..10 {
            talk(scene, sockets);
            scene.allow(&["web -> db: tcp/any"]);
        }
        scene.allow(&["web -> db: tcp/any", "other -> db: udp/53"]);
        talk(scene, sockets);
        assert_eq!(scene.denials().denied(), 0);
    });
}

#[test]
fn g70_an_open_flow_stops_with_its_edge_and_goes_on_with_it() {
    everywhere(|scene, family| {
        scene.allow(&["web -> db: tcp/any"]);
        let (caller, callee) = connection(scene, family);
        talk(scene, (caller, callee));
        scene.allow(&[]);
        let magic = magic();
        let mut witness = scene.watch(&magic);
        scene.web.actor.send(caller, &magic).unwrap();
        assert_eq!(witness.arrived(), 0);
        assert_eq!(scene.db.actor.received(callee), Ok(vec![]));
        let denials = scene.denials();
        assert_eq!(denials.causes()[0], (Hook::Egress, Reason::NoRule));
        // What was not delivered is sent again, and passes then.
        scene.allow(&["web -> db: tcp/any"]);
        assert_eq!(scene.db.actor.receive(callee, 1).unwrap()[0].data, magic);
        // The other direction of the same flow, and its other end.
        scene.allow(&[]);
        let _ = scene.denials();
        scene.db.actor.send(callee, b"back").unwrap();
        assert_eq!(scene.web.actor.received(caller), Ok(vec![]));
        let denials = scene.denials();
        let record = denials.records[0];
        assert_eq!((record.local_id, record.hook), (scene.db.id().0, Hook::Egress as u8));
        assert_eq!(record.direction, Direction::Ingress as u8, "it is the door of `db` that forbids the flow");
    });
}

#[test]
fn g70_a_flow_that_is_cut_resets_its_peer_though_everything_is_denied() {
    everywhere(|scene, family| {
        scene.allow(&["web -> db: tcp/any"]);
        let (caller, callee) = connection(scene, family);
        talk(scene, (caller, callee));
        let local = scene.web.actor.local_addr(caller).unwrap();
        scene.allow(&[]);
        scene.web.net.run(|| {
            let mut diag = Diag::open().unwrap();
            let sockets = diag.list().unwrap();
            let ours = sockets.iter().find(|s| s.local == (local.ip(), local.port()) && s.cgroup != 0).unwrap();
            assert!(diag.destroy(ours).unwrap());
        });
        assert_eq!(scene.db.actor.receive(callee, 1), Err(Errno::CONNRESET));
        assert_eq!(scene.web.actor.receive(caller, 1), Err(Errno::CONNABORTED));
    });
}

#[test]
fn a_closed_port_of_an_allowed_peer_refuses_at_once() {
    everywhere(|scene, family| {
        let (listener, to) = scene.db.listen(family);
        scene.db.actor.close(listener);
        // Over loopback nobody is at that port, so nobody can be allowed.
        scene.allow(&["web -> db: tcp/any"]);
        let expected = match scene.place {
            Place::Veth => Errno::CONNREFUSED,
            Place::Loopback => refused(scene),
        };
        assert_eq!(scene.web.actor.tcp_connect(to, BRIEF), Err(expected));
        let denials = scene.denials();
        match scene.place {
            Place::Veth => assert_eq!(denials.denied(), 0),
            Place::Loopback => assert_eq!(denials.causes()[0].1, Reason::UnknownTarget),
        }
    });
}

#[test]
fn g5_tcp_from_an_ipv6_socket_to_an_ipv4_address_is_ipv4() {
    for (place, fast_refusal) in PLACES {
        let Some(scene) = Scene::open(place, fast_refusal) else { return };
        for listens_at in [scene.db.at(Family::V4, 0), "[::]:0".parse().unwrap()] {
            let (listener, bound) = scene.db.actor.tcp_listen(listens_at).unwrap();
            let IpAddr::V4(ip) = scene.db.addr(Family::V4) else { panic!("an IPv4 address") };
            let to = SocketAddr::new(ip.to_ipv6_mapped().into(), bound.port());
            scene.allow(&["web -> db: tcp/any"]);
            let caller = scene.web.actor.tcp_connect(to, LONG).unwrap();
            let callee = scene.db.actor.accept(listener).unwrap();
            talk(&scene, (caller, callee));
            assert_eq!(scene.denials().denied(), 0);
            scene.allow(&[]);
            assert_eq!(scene.web.actor.tcp_connect(to, BRIEF), Err(refused(&scene)));
            assert_eq!(scene.db.actor.accept_now(listener), Err(Errno::AGAIN));
            let denials = scene.denials();
            assert_eq!(denials.causes(), [(scene.first_hook(Hook::Connect6), Reason::NoRule)]);
            assert_eq!(denials.records[0].peer_addr, ip.to_ipv6_mapped().octets());
        }
    }
}

#[test]
fn g6_fast_open_carries_no_byte_of_a_denied_flow() {
    everywhere(|scene, family| {
        for net in [&scene.web.net, &scene.db.net] {
            net.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3")).unwrap();
        }
        let (listener, to) = scene.db.listen(family);
        scene.db.actor.set_option(listener, SOL_TCP, TCP_FASTOPEN, 8).unwrap();
        scene.allow(&["web -> db: tcp/any"]);
        let web = &scene.web.actor;
        // The first brings the cookie, the second uses it.
        for payload in [b"first!", b"second"] {
            let caller = web.socket(family, Kind::Stream, 0).unwrap();
            assert_eq!(web.send_fast(caller, to, payload, LONG), Ok(6));
            let callee = scene.db.actor.accept(listener).unwrap();
            assert_eq!(scene.db.actor.receive(callee, 1).unwrap()[0].data, payload);
            web.close(caller);
            scene.db.actor.close(callee);
        }
        let fast_opened = scene.db.net.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat")).unwrap();
        assert_ne!(counter(&fast_opened, "TCPFastOpenPassive"), 0, "a payload came with a SYN");
        assert_eq!(scene.denials().denied(), 0);

        scene.allow(&[]);
        let magic = magic();
        let mut witness = scene.watch(&magic);
        let caller = web.socket(family, Kind::Stream, 0).unwrap();
        match web.send_fast(caller, to, &magic, BRIEF) {
            // With a cookie it does not wait for an answer.
            Ok(sent) => assert!(!scene.fast_refusal && sent == magic.len()),
            Err(errno) => assert_eq!(errno, refused(scene)),
        }
        web.close(caller);
        let caller = web.socket(family, Kind::Stream, 0).unwrap();
        web.set_option(caller, SOL_TCP, TCP_FASTOPEN_CONNECT, 1).unwrap();
        match web.connect(caller, to, BRIEF) {
            Ok(()) => {
                assert!(!scene.fast_refusal, "connect is refused at once");
                // It only begins with the first payload.
                let sent = web.send_fast(caller, to, &magic, BRIEF);
                assert!(matches!(sent, Ok(_) | Err(Errno::TIMEDOUT)), "{sent:?}");
            }
            Err(errno) => assert_eq!(errno, refused(scene)),
        }
        web.close(caller);
        assert_eq!(witness.arrived(), 0);
        assert_eq!(scene.db.actor.accept_now(listener), Err(Errno::AGAIN));
        let denials = scene.denials();
        assert_eq!(denials.calls(), [(scene.first_hook(connect(family)), Reason::NoRule)]);
        assert!(denials.denied() >= 2);
    });
}

/// Reads a counter of /proc/net/netstat.
fn counter(netstat: &str, name: &str) -> u64 {
    let lines: Vec<&str> = netstat.lines().collect();
    let pair = lines.chunks(2).find(|pair| pair[0].split(' ').any(|word| word == name)).unwrap();
    let index = pair[0].split(' ').position(|word| word == name).unwrap();
    pair[1].split(' ').nth(index).unwrap().parse().unwrap()
}

#[test]
fn g6_the_door_drops_a_fast_open_with_its_payload() {
    let Some(scene) = Scene::open(Place::Veth, true) else { return };
    for net in [&scene.web.net, &scene.db.net] {
        net.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3")).unwrap();
    }
    for family in [Family::V4, Family::V6] {
        let (listener, to) = scene.db.listen(family);
        scene.db.actor.set_option(listener, SOL_TCP, TCP_FASTOPEN, 8).unwrap();
        scene.allow(&["web -> db: tcp/any"]);
        let caller = scene.web.actor.socket(family, Kind::Stream, 0).unwrap();
        scene.web.actor.send_fast(caller, to, b"cookie", LONG).unwrap();
        let callee = scene.db.actor.accept(listener).unwrap();
        scene.db.actor.close(callee);
        scene.web.actor.close(caller);
        scene.allow(&["exit web -> db: tcp/any"]);
        let magic = magic();
        let mut witness = scene.watch(&magic);
        let caller = scene.web.actor.socket(family, Kind::Stream, 0).unwrap();
        let _ = scene.web.actor.send_fast(caller, to, &magic, BRIEF);
        assert_eq!(witness.arrived(), 1, "the SYN carries it");
        assert_eq!(scene.db.actor.accept_now(listener), Err(Errno::AGAIN));
        assert_eq!(scene.denials().causes()[0].0, Hook::Ingress);
    }
}

#[test]
fn g7_mptcp_is_tcp() {
    everywhere(|scene, family| {
        for server_protocol in [0, IPPROTO_MPTCP] {
            let (listener, to) = scene.db.actor.bind(Kind::Stream, server_protocol, scene.db.at(family, 0)).unwrap();
            scene.db.actor.listen(listener).unwrap();
            let web = &scene.web.actor;
            let caller = || web.socket(family, Kind::Stream, IPPROTO_MPTCP).unwrap();
            scene.allow(&["web -> db: tcp/any"]);
            let socket = caller();
            web.connect(socket, to, LONG).unwrap();
            let callee = scene.db.actor.accept(listener).unwrap();
            talk(scene, (socket, callee));
            web.close(socket);
            scene.db.actor.close(callee);
            assert_eq!(scene.denials().calls(), [], "server of protocol {server_protocol}");

            scene.allow(&[]);
            let socket = caller();
            // The kernel makes the socket of a subflow, and connect does not know whose it is: the boundary
            // decides.
            assert_eq!(web.connect(socket, to, BRIEF), Err(Errno::TIMEDOUT));
            assert_eq!(scene.db.actor.accept_now(listener), Err(Errno::AGAIN));
            assert_eq!(scene.denials().calls(), [(Hook::Egress, Reason::NoRule)]);
            web.close(socket);
            // An established one stops, too.
            scene.allow(&["web -> db: tcp/any"]);
            let socket = caller();
            web.connect(socket, to, LONG).unwrap();
            let callee = scene.db.actor.accept(listener).unwrap();
            talk(scene, (socket, callee));
            scene.allow(&[]);
            let magic = magic();
            let mut witness = scene.watch(&magic);
            web.send(socket, &magic).unwrap();
            assert_eq!((witness.arrived(), received(scene, callee)), (0, vec![]));
            let _ = scene.denials();
        }
    });
}

#[test]
fn g42_two_that_call_each_other_need_both_edges() {
    for place in [Place::Loopback, Place::Veth] {
        // With the fast refusal neither gets as far as a SYN.
        let Some(scene) = Scene::open(place, false) else { return };
        for (edges, connects) in
            [(&["web -> db: tcp/any", "db -> web: tcp/any"][..], true), (&["web -> db: tcp/any"], false)]
        {
            scene.allow(&[]);
            let ends = [&scene.web, &scene.db].map(|party| {
                let (socket, addr) = party.actor.bind(Kind::Stream, 0, party.at(Family::V4, 0)).unwrap();
                (party, socket, addr)
            });
            // Both first SYNs are dropped, so both wait when the policy comes; then they are sent again.
            for (me, peer) in [(0, 1), (1, 0)] {
                let (party, socket, _) = ends[me];
                let to = ends[peer].2;
                party.actor.begin(&Command::Connect { socket: socket.number(), addr: to, timeout_ms: 3_500 }, None);
            }
            while scene.guard().datapath().deny_counts().unwrap()[DenyCounter::Denied as usize] % 2 != 0 {
                std::thread::yield_now();
            }
            scene.allow(edges);
            for (party, socket, _) in ends {
                let result = party.actor.end().map(drop);
                assert_eq!(result, if connects { Ok(()) } else { Err(Errno::TIMEDOUT) }, "{place:?}");
                party.actor.close(socket);
            }
        }
    }
}
