//! What a socket remembers is about one flow, and never a way around the judgement of another.

use std::{net::SocketAddr, time::Duration};

use agent_common::{layout::Hook, verdict::Reason};
use tests::lab::{Actor, Errno, Family, Kind, Place, Scene, Socket, everywhere};

/// Long enough for every answer that comes.
const LONG: Duration = Duration::from_secs(5);
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
