//! What a socket remembers is about one flow, and never a way around the judgement of another.

use std::{net::SocketAddr, thread, time::Duration};

use agent_common::{flow::proto, layout::Hook, verdict::Reason};
use tests::lab::{Actor, Errno, Family, Kind, Place, Scene, Socket, everywhere};

/// Long enough for every answer that comes.
const LONG: Duration = Duration::from_secs(20);
/// As long as a jiffy can be, many times.
const MANY_JIFFIES: Duration = Duration::from_millis(100);
/// Of tcp(7).
const TCP_FASTOPEN: i32 = 23;
/// See [`TCP_FASTOPEN`].
const TCP_FASTOPEN_CONNECT: i32 = 30;
/// Less than the second after which a SYN is sent again.
const BRIEF: Duration = Duration::from_millis(200);

/// Connects from a port of the caller's choice.
fn connect_from(actor: &Actor, from: SocketAddr, to: SocketAddr, timeout: Duration) -> Result<Socket, Errno> {
    let (socket, _) = actor.bind(Kind::Stream, 0, from)?;
    let connected = actor.connect(socket, to, timeout);
    if connected.is_err() {
        actor.close(socket);
    }
    connected.map(|()| socket)
}

#[test]
fn a_listener_that_remembers_a_caller_judges_the_next_one_on_the_same_port() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Loopback, fast_refusal) else { return };
        for family in [Family::V4, Family::V6] {
            let (listener, to) = scene.db.listen(family);
            // The exit of `other` only looks on, so the door of `db` is alone.
            let text = scene.policy(&["web -> db: tcp/any"]);
            scene.guard().apply(&text.replace("name: other,", "name: other, egressMode: observe,"));
            let (probe, from) = scene.web.actor.bind(Kind::Stream, 0, scene.web.at(family, 0)).unwrap();
            scene.web.actor.close(probe);
            for _ in 0..3 {
                let caller = connect_from(&scene.web.actor, from, to, LONG).unwrap();
                let callee = scene.db.actor.accept(listener).unwrap();
                scene.web.actor.send(caller, b"there").unwrap();
                assert_eq!(scene.db.actor.receive(callee, 1).unwrap()[0].data, b"there");
                // A reset: no end of the connection is left over, and the port is free.
                scene.web.actor.disconnect(caller).unwrap();
                scene.web.actor.close(caller);
                scene.db.actor.close(callee);
                assert_eq!(scene.denials().denied(), 0);

                assert_eq!(connect_from(&scene.other.actor, from, to, BRIEF), Err(Errno::TIMEDOUT));
                assert_eq!(scene.db.actor.accept_now(listener), Err(Errno::AGAIN));
                assert_eq!(scene.denials().causes(), [(Hook::Ingress, Reason::NoRule)]);
            }
        }
    }
}

#[test]
fn a_connection_is_judged_again_when_the_policy_changes_although_its_listener_remembered_it() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Veth, fast_refusal) else { return };
        for family in [Family::V4, Family::V6] {
            let (listener, to) = scene.db.listen(family);
            scene.allow(&["web -> db: tcp/any"]);
            let caller = scene.web.actor.tcp_connect(to, LONG).unwrap();
            // Nothing was sent yet: what the child knows, it has from its listener.
            let callee = scene.db.actor.accept(listener).unwrap();
            scene.allow(&["exit web -> db: tcp/any"]);
            scene.web.actor.send(caller, b"there").unwrap();
            assert_eq!(scene.db.actor.receive_for(callee, 1, BRIEF), Ok(vec![]));
            // The connection of the first family may still send again what the second one is asked about.
            let mut causes = scene.denials().causes();
            causes.dedup();
            assert_eq!(causes, [(Hook::Ingress, Reason::NoRule)]);
        }
    }
}

#[test]
fn a_socket_that_talks_to_two_peers_passes_to_the_allowed_one_only() {
    everywhere(|scene, family| {
        let (to_db, db) = scene.db.udp(family);
        let (to_other, other) = scene.other.udp(family);
        let (socket, _) = scene.web.udp(family);
        scene.allow(&["web -> db: udp/any", "web -> other: udp/any"]);
        let send = |to: SocketAddr| scene.web.actor.send_to(socket, to, b"there");
        for _ in 0..3 {
            send(db).unwrap();
            send(other).unwrap();
        }
        assert_eq!(scene.db.actor.receive(to_db, 3).unwrap().len(), 3);
        assert_eq!(scene.other.actor.receive(to_other, 3).unwrap().len(), 3);
        scene.allow(&["web -> db: udp/any"]);
        for _ in 0..3 {
            send(db).unwrap();
            assert_eq!(send(other), Err(Errno::PERM));
        }
        assert_eq!(scene.db.actor.receive(to_db, 3).unwrap().len(), 3);
        assert_eq!(scene.other.actor.receive_for(to_other, 1, BRIEF), Ok(vec![]));
    });
}

#[test]
fn a_udp_port_that_changes_hands_takes_no_flow_along() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Loopback, fast_refusal) else { return };
        for family in [Family::V4, Family::V6] {
            // The exit of `other` only looks on, so the door of `db` is alone.
            let text = scene.policy(&["web -> db: udp/any"]);
            scene.guard().apply(&text.replace("name: other,", "name: other, egressMode: observe,"));
            let (receiver, to) = scene.db.udp(family);
            let (probe, from) = scene.web.udp(family);
            scene.web.actor.close(probe);
            // With an answer and without one: a flow of both directions, and of one.
            for answers in [true, false] {
                let (sender, _) = scene.web.actor.bind(Kind::Datagram, 0, from).unwrap();
                for _ in 0..2 {
                    scene.web.actor.send_to(sender, to, b"there").unwrap();
                    assert_eq!(scene.db.actor.receive(receiver, 1).unwrap()[0].data, b"there");
                }
                if answers {
                    scene.db.actor.send_to(receiver, from, b"back").unwrap();
                    assert_eq!(scene.web.actor.receive(sender, 1).unwrap()[0].data, b"back");
                }
                scene.web.actor.close(sender);
                assert_eq!(scene.denials().denied(), 0);

                let (heir, _) = scene.other.actor.bind(Kind::Datagram, 0, from).unwrap();
                for _ in 0..2 {
                    scene.other.actor.send_to(heir, to, b"mine").unwrap();
                }
                assert_eq!(scene.db.actor.receive_for(receiver, 1, BRIEF), Ok(vec![]));
                scene.other.actor.close(heir);
                let mut causes = scene.denials().causes();
                causes.dedup();
                assert_eq!(causes, [(Hook::Ingress, Reason::NoRule)]);
            }
        }
    }
}

/// `db` may be called. The door of `other` only looks on, so the exit of `web` is alone.
fn only_exits(scene: &Scene) {
    let text = scene.policy(&["web -> db: tcp/any"]);
    scene.guard().apply(&text.replace("name: other,", "name: other, ingressMode: observe,"));
}

#[test]
fn a_socket_that_calls_the_same_address_again_is_judged_again() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Loopback, fast_refusal) else { return };
        only_exits(&scene);
        for family in [Family::V4, Family::V6] {
            let (listener, to) = scene.db.listen(family);
            let web = &scene.web.actor;
            let (socket, _) = web.bind(Kind::Stream, 0, scene.web.at(family, 0)).unwrap();
            for _ in 0..2 {
                web.connect(socket, to, LONG).unwrap();
                let callee = scene.db.actor.accept(listener).unwrap();
                web.send(socket, b"there").unwrap();
                assert_eq!(scene.db.actor.receive(callee, 1).unwrap()[0].data, b"there");
                web.disconnect(socket).unwrap();
                scene.db.actor.close(callee);
            }
            assert_eq!(scene.denials().denied(), 0);

            scene.db.actor.close(listener);
            let (heir, _) = scene.other.actor.tcp_listen(to).unwrap();
            assert_eq!(web.connect(socket, to, BRIEF), Err(scene.refused()));
            assert_eq!(scene.other.actor.accept_now(heir), Err(Errno::AGAIN));
            let hook = if family == Family::V4 { Hook::Connect4 } else { Hook::Connect6 };
            assert_eq!(scene.denials().causes(), [(scene.first_hook(hook), Reason::NoRule)]);
            // It sends its SYN again for as long as it lives.
            web.close(socket);
            scene.other.actor.close(heir);
        }
    }
}

#[test]
fn a_syn_that_does_not_follow_its_connect_at_once_is_judged() {
    let Some(scene) = Scene::open(Place::Loopback, true) else { return };
    scene.web.net.run(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "3")).unwrap();
    only_exits(&scene);
    for family in [Family::V4, Family::V6] {
        let tcp = i32::from(proto::TCP);
        let (listener, to) = scene.db.listen(family);
        scene.db.actor.set_option(listener, tcp, TCP_FASTOPEN, 8).unwrap();
        let web = &scene.web.actor;
        let caller = web.socket(family, Kind::Stream, 0).unwrap();
        web.send_fast(caller, to, b"cookie", LONG).unwrap();
        // With the cookie a connect sends nothing until there is a payload.
        let connect_only = || {
            let caller = web.socket(family, Kind::Stream, 0).unwrap();
            web.set_option(caller, tcp, TCP_FASTOPEN_CONNECT, 1).unwrap();
            web.connect(caller, to, LONG).unwrap();
            thread::sleep(MANY_JIFFIES);
            caller
        };
        let late = connect_only();
        web.send_fast(late, to, b"late", LONG).unwrap();
        for payload in [&b"cookie"[..], b"late"] {
            let callee = scene.db.actor.accept(listener).unwrap();
            assert_eq!(scene.db.actor.receive(callee, 1).unwrap()[0].data, payload);
            // A reset: nothing keeps the port.
            web.disconnect(if payload == b"late" { late } else { caller }).unwrap();
            scene.db.actor.close(callee);
        }
        assert_eq!(scene.denials().denied(), 0);

        let late = connect_only();
        scene.db.actor.close(listener);
        let (heir, _) = scene.other.actor.tcp_listen(to).unwrap();
        scene.other.actor.set_option(heir, tcp, TCP_FASTOPEN, 8).unwrap();
        let _ = web.send_fast(late, to, b"mine", BRIEF);
        assert_eq!(scene.other.actor.accept_now(heir), Err(Errno::AGAIN));
        // Before anything else: it would send its SYN again.
        web.close(late);
        assert_eq!(scene.denials().causes()[0], (Hook::Egress, Reason::NoRule));
        scene.other.actor.close(heir);
    }
}
