//! Who is new is judged from its first packet on; and so is who was there before the agent.

use std::{net::SocketAddr, time::Instant};

use tests::{
    lab::{Agent, AgentOptions, Command, Errno, Exit, Lab, Need, NetNs, Witness, magic},
    scene::{BRIEF, LONG, LOOPBACK, PORT, Scene, policy, repetitions, with_latecomers},
};

const REFUSED: Exit = Exit::Status(1); // EPERM

#[test]
fn g30_the_first_packet_of_a_new_cgroup_is_judged_and_a_labelled_one_passes_soon() {
    assert_eq!(Errno::PERM.raw_os_error(), 1);
    let rounds = repetitions(1_000, 10_000);
    let Some(scene) = Scene::open_by(with_latecomers, &AgentOptions::default()) else { return };
    let used = || scene.agent.counter("cgroups.used");
    let used_before = used();
    let (receiver, to) = scene.db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    let once = |data: &[u8]| scene.lab.once(&Command::Send { socket: 0, to: Some(to), data: data.to_vec() });
    // Positive control: the same program in a cgroup that is allowed.
    assert_eq!(once(b"control").spawn(&scene.cgroups[0], &scene.net, None).unwrap().wait(), Exit::Status(0));
    assert_eq!(scene.db.receive(receiver, 1).unwrap()[0].data, b"control");
    let denied = magic();
    let mut witness = Witness::new(&scene.net, &denied);
    let program = once(&denied);
    let (mut labelled, mut inherited, mut received) = (Vec::new(), 0, Vec::new());
    for round in 0..rounds {
        let stranger = scene.lab.cgroup().child(&format!("stranger-{round}"));
        assert_eq!(program.spawn(&stranger, &scene.net, None).unwrap().wait(), REFUSED, "stranger {round}");
        let below = scene.cgroups[2].child(&format!("below-{round}"));
        assert_eq!(program.spawn(&below, &scene.net, None).unwrap().wait(), REFUSED, "below a denied one, {round}");
        if round % 20 == 0 {
            let below = scene.cgroups[0].child(&format!("below-{round}"));
            let exit = once(b"heir").spawn(&below, &scene.net, None).unwrap().wait();
            assert_eq!(exit, Exit::Status(0), "below an allowed one, {round}");
            inherited += 1;
            let start = Instant::now();
            let late = scene.lab.cgroup().child(&format!("late-{round}"));
            while once(b"late").spawn(&late, &scene.net, None).unwrap().wait() != Exit::Status(0) {
                assert!(start.elapsed() < LONG, "late-{round} is labelled");
            }
            labelled.push(start.elapsed());
            // A socket holds few hundred datagrams.
            received.append(&mut scene.db.received(receiver).unwrap());
        }
    }
    labelled.sort();
    println!(
        "{rounds} new cgroups: every first packet refused; {inherited} heirs passed at once; {} labelled ones passed \
         after {:?} (median) to {:?}, the start of a process included",
        labelled.len(),
        labelled[labelled.len() / 2],
        labelled[labelled.len() - 1],
    );
    assert_eq!(witness.arrived(), 0, "denied payloads");
    received.append(&mut scene.db.received(receiver).unwrap());
    assert!(received.iter().all(|m| m.data == b"heir" || m.data == b"late"));
    assert_eq!(received.len(), labelled.len() + inherited);
    let end = Instant::now() + LONG;
    while used() > used_before + 8 {
        assert!(Instant::now() < end, "cgroups that are gone are forgotten: {} of {used_before} before", used());
    }
    scene.agent.balance();
}

#[test]
fn g22_of_sockets_older_than_the_agent_the_denied_half_stops_and_the_allowed_half_goes_on() {
    let Some(lab) = Lab::open(&[Need::Ip, Need::Agent]) else { return };
    let net = NetNs::new();
    let cgroups = ["web", "db", "other"].map(|name| lab.cgroup().child(name));
    let [web, db, other] = cgroups.each_ref().map(|cgroup| lab.actor(cgroup, &net));
    let (listener, addr) = db.tcp_listen(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    let (receiver, udp) = db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    let [web_end, other_end] = [&web, &other].map(|actor| {
        let caller = actor.tcp_connect(addr, LONG).unwrap();
        let callee = db.accept(listener).unwrap();
        actor.send(caller, b"before").unwrap();
        assert_eq!(db.receive(callee, 1).unwrap()[0].data, b"before", "nobody judges yet");
        let sender = actor.socket(tests::lab::Family::V4, tests::lab::Kind::Datagram, 0).unwrap();
        actor.connect(sender, udp, LONG).unwrap();
        actor.send(sender, b"before").unwrap();
        assert_eq!(db.receive(receiver, 1).unwrap()[0].data, b"before", "nobody judges yet");
        (caller, callee, sender)
    });
    let rules = "[{ from: web, to: db, ports: [tcp/5432, udp/5432] }]";
    let agent = Agent::start(&lab, &policy(&lab, rules, ""), &AgentOptions::default());
    web.send(web_end.0, b"after").unwrap();
    assert_eq!(db.receive(web_end.1, 1).unwrap()[0].data, b"after", "the allowed half goes on");
    web.send(web_end.2, b"after").unwrap();
    assert_eq!(db.receive(receiver, 1).unwrap()[0].data, b"after", "the allowed datagrams go on");
    let denied = magic();
    let mut witness = Witness::new(&net, &denied);
    // The socket is cut or its packets are dropped; either way nothing arrives.
    let _ = other.send(other_end.0, &denied);
    let _ = other.send(other_end.2, &denied);
    let got = db.receive_for(other_end.1, 1, BRIEF);
    assert!(got.as_ref().is_err() || got.as_ref().is_ok_and(|m| m.iter().all(|m| m.data.is_empty())), "{got:?}");
    assert_eq!(db.receive_for(receiver, 1, BRIEF), Ok(vec![]));
    assert_eq!(witness.arrived(), 0);
    agent.balance();
}

#[test]
fn g20_a_socket_that_is_given_away_gains_nothing() {
    let rules = "[{ from: web, to: db, ports: [udp/5432] }]";
    let Some(scene) = Scene::open(rules, &AgentOptions::default()) else { return };
    let (receiver, to) = scene.db.udp_bind(SocketAddr::new(LOOPBACK[0], PORT)).unwrap();
    let of_web = scene.web.socket(tests::lab::Family::V4, tests::lab::Kind::Datagram, 0).unwrap();
    scene.web.send_to(of_web, to, b"control").unwrap();
    assert_eq!(scene.db.receive(receiver, 1).unwrap().len(), 1);
    // A socket belongs to the cgroup that made it: one made by `other` stays its own.
    let of_other = scene.other.socket(tests::lab::Family::V4, tests::lab::Kind::Datagram, 0).unwrap();
    let given = scene.other.give(of_other, &scene.web);
    assert_eq!(scene.web.send_to(given, to, b"smuggled"), Err(Errno::PERM));
    assert_eq!(scene.db.receive_for(receiver, 1, BRIEF), Ok(vec![]));
    scene.agent.balance();
}
