//! The built-in `dns` under the kernel programs: who may ask a resolver without a rule, and who may not.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{net::SocketAddr, time::Duration};

use agent_common::{layout::Hook, verdict::Reason};
use eastwall::policy::{
    model::{Action, Place as Source, PortRange, PortSpec, Rule},
    resolvers::Resolvers,
};
use tests::lab::{Errno, Family, Kind, Party, Place, Scene, Socket, everywhere};

const BRIEF: Duration = Duration::from_millis(200);
const LONG: Duration = Duration::from_secs(20);

/// What `db` is asked at.
struct Resolver {
    udp: Socket,
    tcp: Socket,
    addr: SocketAddr,
}

impl Resolver {
    fn open(scene: &Scene, addr: SocketAddr) -> Self {
        let (udp, _) = scene.db.actor.udp_bind(addr).unwrap();
        let (tcp, _) = scene.db.actor.tcp_listen(addr).unwrap();
        Self { udp, tcp, addr }
    }

    fn close(self, scene: &Scene) {
        scene.db.actor.close(self.udp);
        scene.db.actor.close(self.tcp);
    }
}

/// Names the resolvers; they count when this returns.
fn resolvers(scene: &Scene, addrs: &[SocketAddr], policy: &[&str]) {
    let addrs: Vec<_> = addrs.iter().map(SocketAddr::ip).collect();
    scene.guard().resolvers(Resolvers::try_from(addrs).unwrap_or_default());
    scene.allow(policy);
}

/// Asks by UDP from one unconnected socket, by UDP from a connected one, and by TCP, and gets each answer.
fn is_answered(scene: &Scene, from: &Party, family: Family, at: &Resolver) {
    let one = from.actor.socket(family, Kind::Datagram, 0).unwrap();
    for query in [b"first".as_slice(), b"second"] {
        from.actor.send_to(one, at.addr, query).unwrap();
        let got = scene.db.actor.receive(at.udp, 1).unwrap();
        assert_eq!(got[0].data, query);
        scene.db.actor.send_to(at.udp, got[0].from.unwrap(), b"answer").unwrap();
        assert_eq!(from.actor.receive(one, 1).unwrap()[0].data, b"answer");
    }
    let other = from.actor.socket(family, Kind::Datagram, 0).unwrap();
    from.actor.connect(other, at.addr, BRIEF).unwrap();
    from.actor.send(other, b"connected").unwrap();
    let got = scene.db.actor.receive(at.udp, 1).unwrap();
    scene.db.actor.send_to(at.udp, got[0].from.unwrap(), b"answer").unwrap();
    assert_eq!(from.actor.receive(other, 1).unwrap()[0].data, b"answer");
    let caller = from.actor.tcp_connect(at.addr, LONG).unwrap();
    let callee = scene.db.actor.accept(at.tcp).unwrap();
    from.actor.send(caller, b"query").unwrap();
    assert_eq!(scene.db.actor.receive(callee, 1).unwrap()[0].data, b"query");
    scene.db.actor.send(callee, b"answer").unwrap();
    assert_eq!(from.actor.receive(caller, 1).unwrap()[0].data, b"answer");
    for socket in [one, other, caller] {
        from.actor.close(socket);
    }
    scene.db.actor.close(callee);
    assert_eq!(scene.denials().denied(), 0, "what is answered is not denied on the way");
}

/// Asks by UDP and TCP where each is refused at the exit, and checks why.
fn is_refused(scene: &Scene, from: &Party, family: Family, at: &Resolver, why: Reason) {
    let _ = scene.denials();
    let sender = from.actor.socket(family, Kind::Datagram, 0).unwrap();
    assert_eq!(from.actor.send_to(sender, at.addr, b"query"), Err(Errno::PERM));
    assert_eq!(scene.denials().causes(), [(scene.first_hook(family.sendmsg_hook()), why)]);
    assert_eq!(from.actor.tcp_connect(at.addr, BRIEF), Err(scene.refused()));
    assert_eq!(scene.denials().causes(), [(scene.first_hook(family.connect_hook()), why)]);
    assert_eq!(scene.db.actor.received(at.udp), Ok(vec![]), "nothing arrives");
    from.actor.close(sender);
}

/// The door of `db` needs a rule where its caller is an address; at the exit the built-in is all there is.
fn door(scene: &Scene) -> &'static [&'static str] {
    match scene.place {
        Place::Loopback => &[],
        Place::Veth => &["door web -> db: udp/53, tcp/53"],
    }
}

#[test]
fn a_workload_may_ask_a_resolver_of_the_node_and_nobody_else_without_a_rule() {
    everywhere(|scene, family| {
        let resolver = Resolver::open(scene, scene.db.at(family, 53));
        let elsewhere = Resolver::open(scene, scene.db.at(family, 5_353));
        resolvers(scene, &[], door(scene));
        is_refused(scene, &scene.web, family, &resolver, Reason::NoRule);

        resolvers(scene, &[resolver.addr], door(scene));
        is_answered(scene, &scene.web, family, &resolver);
        is_refused(scene, &scene.web, family, &elsewhere, Reason::NoRule);

        // Another address, where the same workload listens at the same port.
        let other = match family {
            Family::V4 => "10.200.0.53:53".parse().unwrap(),
            Family::V6 => "[fd0a::53]:53".parse().unwrap(),
        };
        resolvers(scene, &[other], door(scene));
        is_refused(scene, &scene.web, family, &resolver, Reason::NoRule);
        resolver.close(scene);
        elsewhere.close(scene);
    });
}

#[test]
fn a_resolver_that_is_none_any_more_is_refused_on_the_sockets_that_asked_it() {
    everywhere(|scene, family| {
        let resolver = Resolver::open(scene, scene.db.at(family, 53));
        resolvers(scene, &[resolver.addr], door(scene));
        let sender = scene.web.actor.socket(family, Kind::Datagram, 0).unwrap();
        scene.web.actor.send_to(sender, resolver.addr, b"query").unwrap();
        assert_eq!(scene.db.actor.receive(resolver.udp, 1).unwrap()[0].data, b"query");
        let connected = scene.web.actor.socket(family, Kind::Datagram, 0).unwrap();
        scene.web.actor.connect(connected, resolver.addr, BRIEF).unwrap();
        scene.web.actor.send(connected, b"query").unwrap();
        assert_eq!(scene.db.actor.receive(resolver.udp, 1).unwrap()[0].data, b"query");

        resolvers(scene, &[], door(scene));
        assert_eq!(scene.web.actor.send_to(sender, resolver.addr, b"query"), Err(Errno::PERM));
        assert_eq!(scene.web.actor.send(connected, b"query"), Err(Errno::PERM));
        assert_eq!(scene.db.actor.received(resolver.udp), Ok(vec![]));
        is_refused(scene, &scene.web, family, &resolver, Reason::NoRule);
        resolver.close(scene);
    });
}

#[test]
fn a_deny_rule_and_a_revocation_beat_the_built_in() {
    everywhere(|scene, family| {
        let resolver = Resolver::open(scene, scene.db.at(family, 53));
        resolvers(scene, &[resolver.addr], door(scene));
        is_answered(scene, &scene.web, family, &resolver);
        let to = if scene.place == Place::Loopback { "db" } else { "at-db" };

        let policy = scene.policy(door(scene));
        scene.guard().apply(&format!("{policy}  deny:\n    - {{ from: web, to: {to} }}\n"));
        is_refused(scene, &scene.web, family, &resolver, Reason::DenyRule);
        // A rule about another port is none about this one.
        scene.guard().apply(&format!("{policy}  deny:\n    - {{ from: web, to: {to}, ports: [tcp/80] }}\n"));
        is_answered(scene, &scene.web, family, &resolver);

        let revoked = Rule {
            id: "ov-1".to_owned(),
            action: Action::OverrideDeny,
            from: "web".to_owned(),
            to: to.to_owned(),
            ports: vec![PortSpec::Range(PortRange::ANY)],
            expires: None,
            reason: None,
            owner: None,
            ticket: None,
            place: Source::default(),
        };
        scene.guard().apply_with(&policy, &[revoked]);
        is_refused(scene, &scene.web, family, &resolver, Reason::OverrideDeny);
        scene.allow(door(scene));
        is_answered(scene, &scene.web, family, &resolver);
        resolver.close(scene);
    });
}

#[test]
fn the_door_of_a_resolver_opens_for_workloads_of_this_host_and_for_no_address() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Veth, fast_refusal) else { return };
        for family in [Family::V4, Family::V6] {
            let resolver = Resolver::open(&scene, scene.db.at(family, 53));
            resolvers(&scene, &[resolver.addr], door(&scene));
            is_answered(&scene, &scene.web, family, &resolver);
            // The exit lets it pass, and the door knows an address alone.
            resolvers(&scene, &[resolver.addr], &[]);
            let sender = scene.web.actor.socket(family, Kind::Datagram, 0).unwrap();
            scene.web.actor.send_to(sender, resolver.addr, b"query").unwrap();
            assert_eq!(scene.denials().causes(), [(Hook::Ingress, Reason::NoRule)]);
            assert_eq!(scene.db.actor.received(resolver.udp), Ok(vec![]));
            resolver.close(&scene);
        }
    }
}

#[test]
fn who_has_no_identity_may_not_ask() {
    for fast_refusal in [true, false] {
        let Some(scene) = Scene::open(Place::Loopback, fast_refusal) else { return };
        for family in [Family::V4, Family::V6] {
            let resolver = Resolver::open(&scene, scene.db.at(family, 53));
            resolvers(&scene, &[resolver.addr], &[]);
            is_answered(&scene, &scene.other, family, &resolver);
            scene.guard().label(scene.other.cgroup.id(), None);
            is_refused(&scene, &scene.other, family, &resolver, Reason::UnknownSelf);
            resolvers(&scene, &[resolver.addr], &[]);
            scene.guard().label(scene.db.cgroup.id(), None);
            is_refused(&scene, &scene.web, family, &resolver, Reason::UnknownTarget);
            resolver.close(&scene);
        }
    }
}
