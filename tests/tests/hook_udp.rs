//! UDP under the kernel programs: G1 to G5 of the list of gaps.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use agent_common::{layout::Hook, verdict::Reason};
use tests::lab::{Errno, Family, Kind, Place, Scene, Socket, everywhere, magic};

const BRIEF: Duration = Duration::from_millis(200);
/// linux/udp.h.
const SOL_UDP: i32 = 17;
const UDP_SEGMENT: i32 = 103;

/// The hook that refuses a datagram with an address.
fn sendmsg(family: Family) -> Hook {
    if family == Family::V4 { Hook::Sendmsg4 } else { Hook::Sendmsg6 }
}

/// The hook that refuses to connect.
fn connect(family: Family) -> Hook {
    if family == Family::V4 { Hook::Connect4 } else { Hook::Connect6 }
}

/// Checks that nothing has arrived, neither in the socket nor on the wire.
fn nothing_arrives(scene: &Scene, receiver: Socket, magic: &[u8], send: impl FnOnce()) {
    let mut witness = scene.watch(magic);
    send();
    assert_eq!(witness.arrived(), 0, "the witness saw a packet");
    assert_eq!(scene.db.actor.received(receiver), Ok(vec![]), "the socket got a payload");
}

#[test]
fn g1_unconnected_udp_passes_if_allowed_and_is_refused_if_not() {
    everywhere(|scene, family| {
        let (receiver, to) = scene.db.udp(family);
        let sender = scene.web.actor.socket(family, Kind::Datagram, 0).unwrap();
        scene.allow(&["web -> db: udp/any"]);
        for _ in 0..3 {
            scene.web.actor.send_to(sender, to, b"allowed").unwrap();
        }
        let got = scene.db.actor.receive(receiver, 3).unwrap();
        assert_eq!(got.len(), 3);
        scene.db.actor.send_to(receiver, got[0].from.unwrap(), b"reply").unwrap();
        assert_eq!(scene.web.actor.receive(sender, 1).unwrap()[0].data, b"reply");
        assert_eq!(scene.denials().denied(), 0);

        // On the same socket, which has an allowed flow behind it.
        scene.allow(&[]);
        let magic = magic();
        nothing_arrives(scene, receiver, &magic, || {
            for _ in 0..5 {
                assert_eq!(scene.web.actor.send_to(sender, to, &magic), Err(Errno::PERM));
            }
        });
        let denials = scene.denials();
        assert_eq!(denials.causes(), [(scene.first_hook(sendmsg(family)), Reason::NoRule)]);
        assert_eq!(denials.denied(), 5);
        let record = denials.records[0];
        assert_eq!((record.local_id, record.proto, record.peer_port), (scene.web.id().0, 17, to.port()));
        assert_eq!(record.cgroup, scene.web.cgroup.id());
        assert_eq!(i32::try_from(record.pid).unwrap(), scene.web.actor.process().pid());
    });
}

#[test]
fn g1_a_reply_is_no_call_and_a_call_back_is_none_either() {
    everywhere(|scene, family| {
        let (receiver, to) = scene.db.udp(family);
        let (sender, from) = scene.web.udp(family);
        let (elsewhere, other_port) = scene.web.udp(family);
        scene.allow(&["web -> db: udp/any"]);
        scene.web.actor.send_to(sender, to, b"request").unwrap();
        assert_eq!(scene.db.actor.receive(receiver, 1).unwrap().len(), 1);
        scene.db.actor.send_to(receiver, from, b"reply").unwrap();
        assert_eq!(scene.web.actor.receive(sender, 1).unwrap().len(), 1);
        // The same socket to a port that asked nothing.
        assert_eq!(scene.db.actor.send_to(receiver, other_port, b"call"), Err(Errno::PERM));
        // Another socket of the same workload to the port that did ask.
        let (another, _) = scene.db.udp(family);
        assert_eq!(scene.db.actor.send_to(another, from, b"call"), Err(Errno::PERM));
        assert_eq!(scene.web.actor.received(elsewhere), Ok(vec![]));
        assert_eq!(scene.web.actor.received(sender), Ok(vec![]));
        assert_eq!(scene.denials().denied(), 2);
        // A reply goes on when the same policy is put in force again, and ends with the edge.
        scene.allow(&["web -> db: udp/any"]);
        scene.db.actor.send_to(receiver, from, b"reply").unwrap();
        assert_eq!(scene.web.actor.receive(sender, 1).unwrap().len(), 1);
        scene.allow(&[]);
        assert_eq!(scene.db.actor.send_to(receiver, from, b"reply"), Err(Errno::PERM));
        assert_eq!(scene.web.actor.received(sender), Ok(vec![]));
    });
}

#[test]
fn g1_the_door_stops_what_the_exit_lets_pass() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Veth, fast_refusal) else { return };
        for family in [Family::V4, Family::V6] {
            let (receiver, to) = scene.db.udp(family);
            let sender = scene.web.actor.socket(family, Kind::Datagram, 0).unwrap();
            scene.allow(&["exit web -> db: udp/any"]);
            let magic = magic();
            let mut witness = scene.watch(&magic);
            for _ in 0..4 {
                scene.web.actor.send_to(sender, to, &magic).unwrap();
            }
            assert_eq!(witness.arrived(), 4, "the exit lets them pass");
            assert_eq!(scene.db.actor.received(receiver), Ok(vec![]));
            let denials = scene.denials();
            assert_eq!(denials.causes(), [(Hook::Ingress, Reason::NoRule)]);
            assert_eq!(denials.denied(), 4);
            let record = denials.records[0];
            assert_eq!((record.local_id, record.local_port), (scene.db.id().0, to.port()));
            scene.allow(&["web -> db: udp/any"]);
            scene.web.actor.send_to(sender, to, &magic).unwrap();
            assert_eq!(scene.db.actor.receive(receiver, 1).unwrap().len(), 1);
        }
    }
}

#[test]
fn g2_of_many_messages_exactly_the_denied_one_fails() {
    everywhere(|scene, family| {
        let (allowed, good) = scene.db.udp(family);
        let (denied, bad) = scene.db.udp(family);
        let sender = scene.web.actor.socket(family, Kind::Datagram, 0).unwrap();
        scene.allow(&[&format!("web -> db: udp/{}", good.port())]);
        let magic = magic();
        let messages = vec![(good, b"first".to_vec()), (bad, magic.clone()), (good, b"last".to_vec())];
        nothing_arrives(scene, denied, &magic, || {
            // sendmmsg(2) ends at the first that fails.
            assert_eq!(scene.web.actor.send_many(sender, messages.clone()), Ok(1));
            assert_eq!(scene.web.actor.send_many(sender, messages[1..].to_vec()), Err(Errno::PERM));
            assert_eq!(scene.web.actor.send_many(sender, messages[2..].to_vec()), Ok(1));
        });
        let got = scene.db.actor.receive(allowed, 2).unwrap();
        assert_eq!(got.iter().map(|m| &m.data[..]).collect::<Vec<_>>(), [&b"first"[..], b"last"]);
        let denials = scene.denials();
        assert_eq!(denials.denied(), 2, "once behind the first, once at the head");
        assert_eq!(denials.causes(), [(scene.first_hook(sendmsg(family)), Reason::NoRule)]);
    });
}

#[test]
fn g2_a_datagram_that_is_cut_into_segments_is_judged_as_one() {
    everywhere(|scene, family| {
        let (receiver, to) = scene.db.udp(family);
        let sender = scene.web.actor.socket(family, Kind::Datagram, 0).unwrap();
        scene.web.actor.set_option(sender, SOL_UDP, UDP_SEGMENT, 500).unwrap();
        let magic = magic();
        let payload: Vec<u8> = magic.iter().copied().chain(std::iter::repeat(0)).take(5_000).collect();
        scene.allow(&["web -> db: udp/any"]);
        assert_eq!(scene.web.actor.send_to(sender, to, &payload), Ok(5_000));
        assert_eq!(scene.db.actor.receive(receiver, 10).unwrap().len(), 10);
        assert_eq!(scene.denials().denied(), 0);
        scene.allow(&[]);
        nothing_arrives(scene, receiver, &magic, || {
            assert_eq!(scene.web.actor.send_to(sender, to, &payload), Err(Errno::PERM));
        });
        assert_eq!(scene.denials().denied(), 1);
    });
}

#[test]
fn g2_another_source_address_is_no_other_workload() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Loopback, fast_refusal) else { return };
        let (receiver, to) = scene.db.udp(Family::V4);
        let (sender, _) = scene.web.actor.udp_bind("127.0.0.9:0".parse().unwrap()).unwrap();
        scene.allow(&["web -> db: udp/any"]);
        scene.web.actor.send_to(sender, to, b"allowed").unwrap();
        assert_eq!(scene.db.actor.receive(receiver, 1).unwrap().len(), 1);
        scene.allow(&["other -> db: udp/any"]);
        let magic = magic();
        nothing_arrives(&scene, receiver, &magic, || {
            assert_eq!(scene.web.actor.send_to(sender, to, &magic), Err(Errno::PERM));
        });
    }
}

#[test]
fn g3_a_connected_socket_is_judged_again_when_its_peer_changes() {
    everywhere(|scene, family| {
        let (allowed, good) = scene.db.udp(family);
        let (denied, bad) = scene.db.udp(family);
        let web = &scene.web.actor;
        let sender = web.socket(family, Kind::Datagram, 0).unwrap();
        let edge = format!("web -> db: udp/{}", good.port());
        scene.allow(&[&edge]);
        web.connect(sender, good, BRIEF).unwrap();
        for _ in 0..3 {
            web.send(sender, b"allowed").unwrap();
        }
        assert_eq!(scene.db.actor.receive(allowed, 3).unwrap().len(), 3);

        let magic = magic();
        nothing_arrives(scene, denied, &magic, || {
            // Past the verdict that the socket remembers.
            assert_eq!(web.send_to(sender, bad, &magic), Err(Errno::PERM));
            let connected = web.connect(sender, bad, BRIEF);
            assert_eq!(connected, if scene.fast_refusal { Err(Errno::PERM) } else { Ok(()) });
            if scene.fast_refusal {
                // A socket that may not connect anew keeps its old peer.
                assert_eq!(web.send(sender, b"old peer"), Ok(8));
            } else {
                assert_eq!(web.send(sender, &magic), Err(Errno::PERM));
            }
            web.disconnect(sender).unwrap();
            assert_eq!(web.send_to(sender, bad, &magic), Err(Errno::PERM));
        });
        assert_eq!(scene.db.actor.received(allowed).unwrap().len(), usize::from(scene.fast_refusal));
        let causes = scene.denials().causes();
        let expected = if scene.fast_refusal { sendmsg(family) } else { Hook::Egress };
        assert_eq!(causes, [(expected, Reason::NoRule)], "all are repeats of the first");

        web.connect(sender, good, BRIEF).unwrap();
        web.send(sender, b"allowed").unwrap();
        assert_eq!(scene.db.actor.receive(allowed, 1).unwrap().len(), 1);
        // What the socket remembers ends with the policy.
        scene.allow(&[]);
        nothing_arrives(scene, allowed, &magic, || {
            assert_eq!(web.send(sender, &magic), Err(Errno::PERM));
        });
        assert_eq!(scene.denials().causes(), [(Hook::Egress, Reason::NoRule)]);
        if scene.fast_refusal {
            let another = scene.web.actor.socket(family, Kind::Datagram, 0).unwrap();
            assert_eq!(scene.web.actor.connect(another, good, BRIEF), Err(Errno::PERM));
            assert_eq!(scene.denials().causes(), [(connect(family), Reason::NoRule)]);
        }
    });
}

#[test]
fn g4_an_address_without_a_family_is_judged_like_any_other() {
    for (place, fast_refusal) in
        [(Place::Loopback, true), (Place::Loopback, false), (Place::Veth, true), (Place::Veth, false)]
    {
        let Some(scene) = Scene::open(place, fast_refusal) else { return };
        let (receiver, to) = scene.db.udp(Family::V4);
        let SocketAddr::V4(to) = to else { panic!("an IPv4 socket has an IPv4 address") };
        let sender = scene.web.actor.socket(Family::V4, Kind::Datagram, 0).unwrap();
        scene.allow(&["web -> db: udp/any"]);
        scene.web.actor.send_unspec(sender, to, b"allowed").unwrap();
        assert_eq!(scene.db.actor.receive(receiver, 1).unwrap().len(), 1);
        scene.allow(&[]);
        let magic = magic();
        nothing_arrives(&scene, receiver, &magic, || {
            assert_eq!(scene.web.actor.send_unspec(sender, to, &magic), Err(Errno::PERM));
        });
        let denials = scene.denials();
        assert_eq!(denials.causes(), [(scene.first_hook(Hook::Sendmsg4), Reason::NoRule)]);
        assert_eq!(denials.records[0].peer_port, to.port());
    }
}

#[test]
fn g5_an_ipv4_address_on_an_ipv6_socket_is_ipv4() {
    for (place, fast_refusal) in
        [(Place::Loopback, true), (Place::Loopback, false), (Place::Veth, true), (Place::Veth, false)]
    {
        let Some(scene) = Scene::open(place, fast_refusal) else { return };
        // Each kind of receiver takes IPv4: its own family, or both.
        for receiver_at in [scene.db.at(Family::V4, 0), "[::]:0".parse().unwrap()] {
            let (receiver, bound) = scene.db.actor.udp_bind(receiver_at).unwrap();
            let v4 = scene.db.at(Family::V4, bound.port());
            let IpAddr::V4(ip) = v4.ip() else { panic!("an IPv4 address") };
            let mapped = SocketAddr::new(Ipv4Addr::to_ipv6_mapped(&ip).into(), bound.port());
            for (how, to) in [("mapped", mapped), ("plain", v4)] {
                for connects in [false, true] {
                    let web = &scene.web.actor;
                    let send = |data: &[u8]| {
                        let sender = web.socket(Family::V6, Kind::Datagram, 0)?;
                        if !connects {
                            return web.send_to(sender, to, data).map(drop);
                        }
                        web.connect(sender, to, BRIEF)?;
                        web.send(sender, data).map(drop)
                    };
                    scene.allow(&["web -> db: udp/any"]);
                    assert_eq!(send(b"allowed"), Ok(()), "{how} {connects}");
                    assert_eq!(scene.db.actor.receive(receiver, 1).unwrap().len(), 1, "{how} {connects}");
                    assert_eq!(scene.denials().denied(), 0);

                    scene.allow(&[]);
                    let magic = magic();
                    nothing_arrives(&scene, receiver, &magic, || {
                        assert_eq!(send(&magic), Err(Errno::PERM), "{how} {connects}");
                    });
                    let denials = scene.denials();
                    assert_eq!((denials.denied(), denials.records.len()), (1, 1));
                    let record = denials.records[0];
                    let hooks = match (fast_refusal, connects) {
                        (false, _) => [Hook::Egress; 2],
                        (true, true) => [Hook::Connect4, Hook::Connect6],
                        (true, false) => [Hook::Sendmsg4, Hook::Sendmsg6],
                    };
                    assert!(hooks.iter().any(|hook| *hook as u8 == record.hook), "{how} {connects}: {record:?}");
                    assert_eq!(record.peer_addr, ip.to_ipv6_mapped().octets());
                }
            }
        }
    }
}
