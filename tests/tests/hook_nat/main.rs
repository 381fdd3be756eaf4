//! Addresses that the network translates on the way: G59 to G61 of the list of gaps.
//!
//! Each hook judges what the packet says where it stands: `connect` and `sendmsg` what the caller asks for, the exit
//! what leaves the caller's network, a device what passes there, the door what arrives.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

mod stage;

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use agent_common::{
    layout::{Hook, KnownBy},
    verdict::Reason,
};
use tests::{
    frames::FAMILIES,
    lab::{Errno, Family, Need, Place, Scene, magic, require_or_skip},
    scene::{BRIEF, LONG, datagram},
};

use stage::{
    Layers, caller, chain, converse, everywhere, listeners, refused_on_the_way, say, serve, serve_at, vip, words,
};

#[test]
fn g59_what_the_caller_translates_is_judged_as_what_it_becomes() {
    everywhere(|wall, layers, family| {
        let [(listener, to), (closed, elsewhere)] = listeners(wall, family);
        let (port, vip) = (to.port(), vip(family));
        let rules = ["web -> vip: any".to_owned(), format!("web -> db: tcp/{port}")];
        let rules = rules.each_ref().map(String::as_str);
        wall.allow(&rules);
        serve(&wall.web.net, "output", to);
        let (ours, theirs) = converse(wall, vip, listener);
        assert_eq!(wall.denials().calls(), []);

        // Another backend, which the exit alone refuses.
        wall.allow_at_the_exit(&rules);
        serve(&wall.web.net, "output", elsewhere);
        let denials = refused_on_the_way(wall, vip, closed, layers.exit());
        assert_eq!((denials.records[0].peer_port, denials.records[0].local_id), (elsewhere.port(), wall.web.id().0));
        // The connection that is open goes on.
        say(wall, ours, theirs);
        // And the first again.
        serve(&wall.web.net, "output", to);
        let _ = converse(wall, vip, listener);
        assert_eq!(wall.denials().calls(), []);

        // What is asked for must be allowed as well, where that is seen.
        wall.allow(&rules[1..]);
        let asked = wall.web.actor.tcp_connect(vip, BRIEF);
        match layers {
            Layers::Devices => assert!(asked.is_ok()),
            _ => {
                assert_eq!(asked, Err(Errno::PERM));
                let denials = wall.denials();
                assert_eq!(denials.calls(), [(family.connect_hook(), Reason::NoRule)], "{denials:#?}");
            }
        }
        chain(&wall.web.net, family, "");
    });
}

#[test]
fn g59_datagrams_that_the_caller_translates_are_judged_as_what_they_become() {
    everywhere(|wall, layers, family| {
        let ((receiver, to), (closed, elsewhere)) = (wall.db.udp(family), wall.db.udp(family));
        let vip = vip(family);
        let rules = ["web -> vip: any".to_owned(), format!("web -> db: udp/{}", to.port())];
        let rules = rules.each_ref().map(String::as_str);
        for connected in [false, true] {
            let send = |data: &[u8]| {
                let socket = caller(wall, family);
                let sent = if connected {
                    wall.web.actor.connect(socket, vip, BRIEF).and_then(|()| wall.web.actor.send(socket, data))
                } else {
                    wall.web.actor.send_to(socket, vip, data)
                };
                wall.web.actor.close(socket);
                sent
            };
            wall.allow(&rules);
            serve(&wall.web.net, "output", to);
            send(b"allowed").unwrap();
            assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, b"allowed");
            assert_eq!(wall.denials().denied(), 0);

            wall.allow_at_the_exit(&rules);
            serve(&wall.web.net, "output", elsewhere);
            let magic = magic();
            let mut witness = wall.watch(&magic);
            let told = if layers == Layers::Devices { Ok(magic.len()) } else { Err(Errno::PERM) };
            assert_eq!(send(&magic), told);
            assert_eq!((witness.arrived(), wall.db.actor.received(closed)), (0, Ok(vec![])));
            assert_eq!(wall.denials().causes(), [(layers.exit(), Reason::NoRule)]);
        }
        // The answer comes from the service address, which the exit of `web` asked for under another name.
        serve(&wall.web.net, "output", to);
        for answers in [&["vip -> web: udp/any"][..], &[]] {
            wall.allow(&[&rules, answers].concat());
            let socket = caller(wall, family);
            wall.web.actor.send_to(socket, vip, b"ask").unwrap();
            let asked = wall.db.actor.receive(receiver, 1).unwrap();
            wall.db.actor.send_to(receiver, asked[0].from.unwrap(), b"answer").unwrap();
            let passes = layers == Layers::Devices || !answers.is_empty();
            let answered = wall.web.actor.receive_for(socket, 1, if passes { LONG } else { BRIEF }).unwrap();
            assert_eq!(answered.len(), usize::from(passes));
            let causes = if passes { vec![] } else { vec![(Hook::Ingress, Reason::NoRule)] };
            assert_eq!(wall.denials().causes(), causes);
            wall.web.actor.close(socket);
        }
        chain(&wall.web.net, family, "");
    });
}

#[test]
fn g59_an_open_connection_is_not_taken_elsewhere() {
    everywhere(|wall, layers, family| {
        let (listener, to) = wall.db.listen(family);
        wall.allow_at_the_exit(&[&format!("web -> db: tcp/{}", to.port())]);
        let (ours, theirs) = converse(wall, to, listener);
        assert_eq!(wall.denials().denied(), 0);
        // Each packet by itself, without regard to its connection: to another port, and to another address.
        let ip = words(family);
        let another = if family == Family::V4 { "10.9.1.77" } else { "fd09:1::77" };
        for change in [format!("tcp dport set {}", to.port() ^ 1), format!("{ip} daddr set {another}")] {
            let magic = magic();
            let rule =
                format!("type filter hook output priority 0; {ip} daddr {} tcp dport {} {change}", to.ip(), to.port());
            chain(&wall.web.net, family, &rule);
            // It is sent again and again until it is acknowledged, so the host sees it if nothing stops it.
            let mut witness = tests::lab::Witness::new(&wall.host, &magic);
            assert_eq!(wall.web.actor.send(ours, &magic), Ok(magic.len()));
            let end = Instant::now() + LONG;
            let denials = loop {
                let denials = wall.denials();
                if denials.denied() > 0 {
                    break denials;
                }
                assert!(Instant::now() < end, "nobody stops it");
                std::thread::sleep(std::time::Duration::from_millis(10));
            };
            let reason = if layers == Layers::Devices { Reason::NoFlow } else { Reason::NoRule };
            assert_eq!(denials.causes(), [(layers.exit(), reason)]);
            assert_eq!((witness.left(), wall.db.actor.received(theirs)), (0, Ok(vec![])));
            // Untouched again, it arrives.
            chain(&wall.web.net, family, "");
            assert_eq!(wall.db.actor.receive(theirs, 1).unwrap()[0].data, magic);
            let _ = wall.denials();
        }
        say(wall, ours, theirs);
    });
}

#[test]
fn g59_behind_a_service_address_of_the_host_the_door_has_the_last_word() {
    everywhere(|wall, layers, family| {
        let [(listener, to), (closed, elsewhere)] = listeners(wall, family);
        let ((receiver, at), (deaf, nowhere)) = (wall.db.udp(family), wall.db.udp(family));
        let vip = vip(family);
        let rules = ["web -> vip: any".to_owned(), format!("web -> db: tcp/{}, udp/{}", to.port(), at.port())];
        let rules = rules.each_ref().map(String::as_str);
        wall.allow(&rules);
        serve(&wall.host, "prerouting", to);
        let (ours, theirs) = converse(wall, vip, listener);
        serve(&wall.host, "prerouting", at);
        let socket = caller(wall, family);
        wall.web.actor.send_to(socket, vip, b"ask").unwrap();
        let asked = wall.db.actor.receive(receiver, 1).unwrap();
        wall.db.actor.send_to(receiver, asked[0].from.unwrap(), b"answer").unwrap();
        assert_eq!(wall.web.actor.receive(socket, 1).unwrap()[0].from, Some(vip));
        assert_eq!(wall.denials().calls(), []);

        // The exit knows the service address, which is allowed: only the door knows the backend.
        serve(&wall.host, "prerouting", elsewhere);
        let denials = refused_on_the_way(wall, vip, closed, layers.door());
        let record = denials.records[0];
        assert_eq!(
            (record.local_id, record.local_port, record.peer_id),
            (wall.db.id().0, elsewhere.port(), wall.web.id().0)
        );
        say(wall, ours, theirs);
        serve(&wall.host, "prerouting", nowhere);
        let magic = magic();
        let mut witness = wall.watch(&magic);
        wall.web.actor.send_to(caller(wall, family), vip, &magic).unwrap();
        let arrived = u64::from(layers == Layers::Sockets);
        assert_eq!((witness.arrived(), wall.db.actor.received(deaf)), (arrived, Ok(vec![])));
        assert_eq!(wall.denials().causes(), [(layers.door(), Reason::NoRule)]);

        // Without the service address the exit says no, whatever is behind it.
        serve(&wall.host, "prerouting", to);
        wall.allow(&rules[1..]);
        let refused = if layers == Layers::Devices { Errno::TIMEDOUT } else { Errno::PERM };
        assert_eq!(wall.web.actor.tcp_connect(vip, BRIEF), Err(refused));
        let hook = if layers == Layers::Devices { Hook::TcFrom } else { family.connect_hook() };
        let denials = wall.denials();
        assert_eq!(denials.calls(), [(hook, Reason::NoRule)], "{denials:#?}");
        chain(&wall.host, family, "");
    });
}

#[test]
fn g59_a_service_address_can_stand_for_its_workload() {
    everywhere(|wall, layers, family| {
        let [(listener, to), (closed, elsewhere)] = listeners(wall, family);
        let vip = SocketAddr::new(vip(family).ip(), to.port());
        // One rule, by name: the exit takes the service address for the workload, as the door takes what arrives.
        let rules = [format!("web -> db: tcp/{}", to.port())];
        let rules = rules.each_ref().map(String::as_str);
        wall.give_address(vip.ip(), wall.db.cgroup.id());
        wall.allow(&rules);
        for (net, hook) in [(&wall.host, "prerouting"), (&wall.web.net, "output")] {
            serve_at(net, hook, vip, to);
            let _ = converse(wall, vip, listener);
            assert_eq!(wall.denials().calls(), []);
            serve_at(net, hook, vip, elsewhere);
            let by = if hook == "output" { layers.exit() } else { layers.door() };
            let _ = refused_on_the_way(wall, vip, closed, by);
            chain(net, family, "");
        }
    });
}

#[test]
fn g60_who_is_masqueraded_is_an_address_and_nobody_that_has_a_name() {
    everywhere(|wall, layers, family| {
        let ((receiver, to), (listener, at)) = (wall.db.udp(family), wall.db.listen(family));
        let send = |data: &[u8]| datagram(&wall.web.actor, to, data);
        let ports = format!("udp/{}, tcp/{}", to.port(), at.port());
        let (web, host) = (format!("web -> db: {ports}"), format!("host -> db: {ports}"));
        wall.allow(&[&web]);
        send(b"as web").unwrap();
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
        assert_eq!(wall.denials().denied(), 0);

        chain(&wall.host, family, "type nat hook postrouting priority 100; oifname \"to-db\" masquerade");
        let masked = if family == Family::V4 { "10.9.1.254" } else { "fd09:1::ff" }.parse::<IpAddr>().unwrap();
        let magic = magic();
        let mut witness = wall.watch(&magic);
        send(&magic).unwrap();
        let arrived = u64::from(layers == Layers::Sockets);
        assert_eq!((witness.arrived(), wall.db.actor.received(receiver)), (arrived, Ok(vec![])));
        let denials = wall.denials();
        assert_eq!(denials.causes(), [(layers.door(), Reason::NoRule)]);
        let record = denials.records[0];
        assert_eq!(IpAddr::from(record.peer_addr).to_canonical(), masked);
        assert_eq!(record.known_by, KnownBy::Address as u8);
        assert!(![wall.web.id().0, wall.db.id().0].contains(&record.peer_id));
        let _ = refused_on_the_way(wall, at, listener, layers.door());

        // Whoever lets that address in, lets in whose exit allows it, and nobody else.
        wall.allow(&[&web, &host]);
        send(b"by the host").unwrap();
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].from.unwrap().ip(), masked);
        assert_eq!(wall.denials().denied(), 0);
        wall.allow(&[&host]);
        let told = if layers == Layers::Devices { Ok(magic.len()) } else { Err(Errno::PERM) };
        assert_eq!(send(&magic), told);
        assert_eq!((witness.arrived(), wall.db.actor.received(receiver)), (arrived, Ok(vec![])));
        let hook = if layers == Layers::Devices { Hook::TcFrom } else { family.sendmsg_hook() };
        assert_eq!(wall.denials().causes(), [(hook, Reason::NoRule)]);
        chain(&wall.host, family, "");
    });
}

#[test]
fn g60_a_workload_that_masks_itself_as_another_gains_nothing() {
    everywhere(|wall, layers, family| {
        let (receiver, to) = wall.db.udp(family);
        let send = |data: &[u8]| datagram(&wall.web.actor, to, data);
        wall.allow(&["host -> db: any", "web -> db: any"]);
        send(b"as web").unwrap();
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
        assert_eq!(wall.denials().denied(), 0);
        // A neighbour's address, which no rule names, and that of the router, which one does.
        let [neighbour, router] = match family {
            Family::V4 => ["10.9.0.77", "10.9.0.254"],
            Family::V6 => ["fd09::77", "fd09::ff"],
        };
        for mask in [neighbour, router] {
            chain(
                &wall.web.net,
                family,
                &format!("type nat hook postrouting priority 100; oifname \"web0\" snat to {mask}"),
            );
            let magic = magic();
            let mut witness = wall.watch(&magic);
            if layers == Layers::Sockets {
                // By its own name at the exit, whatever address it has; and at the door no more than the mask.
                wall.allow(&["host -> db: any"]);
                assert_eq!(send(&magic), Err(Errno::PERM));
                assert_eq!(wall.denials().causes(), [(family.sendmsg_hook(), Reason::NoRule)]);
                wall.allow(&["host -> db: any", "web -> db: any"]);
            } else {
                send(&magic).unwrap();
                assert_eq!(wall.denials().causes(), [(Hook::TcFrom, Reason::SpoofedSource)]);
            }
            assert_eq!((witness.arrived(), wall.db.actor.received(receiver)), (0, Ok(vec![])));
        }
        chain(&wall.web.net, family, "");
    });
}

#[test]
fn g61_a_workload_that_calls_itself_by_a_service_address_is_the_mask_of_the_host() {
    everywhere(|wall, layers, family| {
        let (listener, to) = wall.web.listen(family);
        let converse = || {
            let ours = wall.web.actor.tcp_connect(vip(family), LONG).unwrap();
            let theirs = wall.web.actor.accept(listener).unwrap();
            wall.web.actor.send(ours, b"to itself").unwrap();
            assert_eq!(wall.web.actor.receive(theirs, 1).unwrap()[0].data, b"to itself");
        };
        serve(&wall.host, "prerouting", to);
        let ip = words(family);
        wall.host.nft(&format!(
            "table {ip} lab {{\nchain two {{\ntype nat hook postrouting priority 100; oifname \"to-web\" \
             masquerade\n}}\n}}\n"
        ));
        wall.allow(&["web -> vip: any", &format!("host -> web: tcp/{}", to.port())]);
        converse();
        assert_eq!(wall.denials().denied(), 0);
        // The host's address is not the workload's, so nothing of the workload's own pass counts.
        wall.allow(&["web -> vip: any"]);
        assert_eq!(wall.web.actor.tcp_connect(vip(family), BRIEF), Err(Errno::TIMEDOUT));
        assert_eq!(wall.web.actor.accept_now(listener), Err(Errno::AGAIN));
        let door = if layers == Layers::Sockets { Hook::Ingress } else { Hook::TcTo };
        let denials = wall.denials();
        assert_eq!(denials.calls(), [(door, Reason::NoRule)]);
        assert_eq!(denials.records[0].local_id, wall.web.id().0);
        chain(&wall.host, family, "");
    });
}

#[test]
fn g61_who_calls_a_sibling_by_a_service_address_is_unknown_to_it() {
    if require_or_skip(&[Need::Nft]).is_none() {
        return;
    }
    let Some(scene) = Scene::open(Place::Loopback, true) else { return };
    for family in FAMILIES {
        let (ip, vip) = (words(family), vip(family));
        let own = if family == Family::V4 { "10.7.0.1" } else { "fd07::1" };
        let bits = if family == Family::V4 { 32 } else { 128 };
        scene.web.net.ip(&format!("address add {own}/{bits} dev lo nodad"));
        scene.web.net.ip(&format!("route add {} dev lo src {own}", vip.ip()));
        // To a sibling, which is an edge, and to itself.
        for (party, edge) in [(&scene.db, "web -> db: any"), (&scene.web, "web -> other: any")] {
            eprintln!("{family:?} {}", party.name);
            let (listener, to) = party.listen(family);
            let named = "  externals:\n    - { name: vip, cidrs: [10.96.0.10/32, \"fd96::10/128\"] }\n";
            let policy = scene.policy(&["web -> vip: any", edge]).replace("  externals:\n", named);
            scene.guard().apply(&policy);
            let direct = scene.web.actor.tcp_connect(to, LONG).unwrap();
            let accepted = party.actor.accept(listener).unwrap();
            assert_eq!(scene.denials().denied(), 0);
            let _ = (scene.web.actor.close(direct), party.actor.close(accepted));

            // The same call by another address: the door finds no socket that has it, and takes nobody's word.
            serve(&scene.web.net, "output", to);
            let mask = to.ip();
            scene.web.net.nft(&format!(
                "table {ip} lab {{\nchain two {{\ntype nat hook postrouting priority 100; oifname \"lo\" {ip} daddr {mask} \
                 snat to {mask}\n}}\n}}\n"
            ));
            assert_eq!(scene.web.actor.tcp_connect(vip, BRIEF), Err(Errno::TIMEDOUT));
            assert_eq!(party.actor.accept_now(listener), Err(Errno::AGAIN));
            let denials = scene.denials();
            assert_eq!(denials.calls(), [(Hook::Ingress, Reason::UnknownCaller)]);
            assert_eq!(denials.records[0].local_id, party.id().0);
            chain(&scene.web.net, family, "");
        }
    }
}
