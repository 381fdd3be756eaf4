//! Whose a device and an address are: G28, G52 and G80 of the list of gaps, at the programs of devices.

use std::{
    net::{IpAddr, SocketAddr},
    time::Instant,
};

use agent_common::{layout::Hook, verdict::Reason};
use tests::{
    frames::{FAMILIES, forged_sources, frame, ip_tcp, ip_udp, nothing_arrives, stopped_at_the_exit},
    lab::{Command, Family, GuardOptions, Kind, Wall, magic},
    scene::{BRIEF, LONG},
};

/// A raw socket whose packets bring their IP header (linux/in.h).
const IPPROTO_RAW: u32 = 255;

/// The wall without the hooks of sockets.
fn wall() -> Option<Wall> {
    Wall::open(false)
}

#[test]
fn a_connection_older_than_the_programs_at_its_device_is_judged_like_any_other() {
    // With the hooks of sockets, a socket knows which end of the connection it is; else its listener says so.
    for (family, sockets) in FAMILIES.into_iter().flat_map(|family| [(family, false), (family, true)]) {
        let Some(wall) = Wall::unguarded(GuardOptions::default()) else { return };
        wall.open_way("tcp/any");
        if sockets {
            wall.give_addresses();
            wall.guard().reattach().unwrap();
        }
        let (listener, to) = wall.db.listen(family);
        let ours = wall.web.actor.tcp_connect(to, LONG).unwrap();
        let theirs = wall.db.actor.accept(listener).unwrap();
        if sockets {
            wall.db.actor.close(listener);
        }
        let talk = |data: &[u8]| {
            // The callee speaks first.
            wall.db.actor.send(theirs, data).unwrap();
            assert_eq!(wall.web.actor.receive(ours, 1).unwrap()[0].data, data);
            wall.web.actor.send(ours, data).unwrap();
            assert_eq!(wall.db.actor.receive(theirs, 1).unwrap()[0].data, data);
        };
        talk(b"before");
        let _ = wall.denials();
        wall.guard_devices();
        wall.open_way("tcp/any");
        talk(b"after");
        assert_eq!(wall.denials().denied(), 0);
        // Segments that only look like a part of it.
        let from = wall.web.actor.local_addr(ours).unwrap();
        let magic = magic();
        let mut sniffer = wall.watch(&magic);
        for (from, to) in [(wall.web.at(family, from.port() ^ 1), to), (from, wall.db.at(family, to.port() ^ 1))] {
            wall.send_frame(&frame(&wall, &ip_tcp(from, to, |tcp| tcp.ack(1), &magic)), true).unwrap();
        }
        assert_eq!(sniffer.arrived(), 0);
        let denials = wall.denials();
        assert_eq!((denials.causes(), denials.denied()), (vec![(Hook::TcFrom, Reason::NoFlow); 2], 2));
        // The edge is gone, and that from the callee to the caller is no way back.
        wall.allow(&["db -> web: tcp/any"]);
        let mut sniffer = wall.watch(&magic);
        let _ = wall.web.actor.send(ours, &magic);
        assert_eq!((wall.db.actor.receive_for(theirs, 1, BRIEF), sniffer.arrived()), (Ok(vec![]), 0));
        assert!(wall.denials().denied() > 0);
        let _ = (wall.web.actor.close(ours), wall.db.actor.close(theirs), wall.guard().look());
    }
}

#[test]
fn g28_a_frame_by_the_device_of_another_workload_is_denied() {
    let Some(wall) = wall() else { return };
    let stranger = wall.lab().actor(&wall.db.cgroup, &wall.web.net);
    let (receiver, to) = wall.db.udp(Family::V4);
    let from = wall.web.at(Family::V4, 40_004);
    // Both may do this, each by its own device.
    wall.allow(&["web -> db: udp/any", "db -> db: udp/any"]);
    for bypass in [false, true] {
        let send = |data: &[u8]| Command::SendFrame {
            device: "web0".to_owned(),
            frame: frame(&wall, &ip_udp(from, to, data)),
            bypass,
        };
        wall.web.actor.call(&send(b"its own")).unwrap();
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
        assert_eq!(wall.denials().denied(), 0);
        // On the flow that was allowed a moment ago.
        let magic = magic();
        nothing_arrives(&wall, receiver, &magic, || drop(stranger.call(&send(&magic)).unwrap()));
        let denials = wall.denials();
        assert_eq!(denials.causes(), [(Hook::TcFrom, Reason::DeviceMismatch)]);
        assert_eq!(denials.records[0].cgroup, wall.db.cgroup.id());
    }
}

#[test]
fn g52_what_leaves_by_a_device_has_an_address_of_its_workload_for_its_source() {
    let Some(wall) = wall() else { return };
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        wall.open_way("udp/any");
        let send = |from: SocketAddr, data: &[u8], bypass: bool| {
            wall.send_frame(&frame(&wall, &ip_udp(from, to, data)), bypass).unwrap();
        };
        let own = wall.web.at(family, 40_010);
        send(own, b"its own", false);
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
        assert_eq!(wall.denials().denied(), 0);
        let magic = magic();
        let stopped = |source: IpAddr, reason: Reason| {
            let from = SocketAddr::new(source, own.port());
            for bypass in [false, true] {
                nothing_arrives(&wall, receiver, &magic, || send(from, &magic, bypass));
                stopped_at_the_exit(&wall, &wall.denials(), reason, 1);
            }
            // The kernel writes an address of its own where there is none.
            if source.is_unspecified() {
                return;
            }
            let raw = wall.web.actor.socket(family, Kind::Raw, IPPROTO_RAW).unwrap();
            nothing_arrives(&wall, receiver, &magic, || {
                let packet = ip_udp(from, to, &magic);
                wall.web.actor.send_to(raw, SocketAddr::new(to.ip(), 0), &packet).unwrap();
            });
            stopped_at_the_exit(&wall, &wall.denials(), reason, 1);
            wall.web.actor.close(raw);
        };
        for source in forged_sources(family) {
            stopped(source, Reason::SpoofedSource);
        }
        if family == Family::V6 {
            // No IPv6 packet passes for one of an IPv4 address.
            stopped("::ffff:10.9.0.1".parse().unwrap(), Reason::Malformed);
        }
    }
}

#[test]
fn g80_an_address_that_changes_hands_takes_no_edge_along() {
    let Some(wall) = wall() else { return };
    let [device, _] = wall.devices();
    // Nothing but the door of `db` judges, by what it knows of the address.
    wall.guard().inside(|d| d.release_device(device.index)).unwrap();
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        let (sender, from) = wall.web.udp(family);
        wall.open_way("udp/any");
        let ask = |data: &[u8]| wall.web.actor.send_to(sender, to, data).map(drop).unwrap();
        ask(b"as web");
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
        let stranger = wall.lab().cgroup().child("stranger");
        wall.give_address(from.ip(), stranger.id());
        let magic = magic();
        // On the flow that was allowed a moment ago.
        nothing_arrives(&wall, receiver, &magic, || ask(&magic));
        assert_eq!(wall.denials().causes(), [(Hook::TcTo, Reason::UnknownCaller)]);
        wall.give_address(from.ip(), wall.web.cgroup.id());
        ask(b"as web again");
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
        assert_eq!(wall.denials().denied(), 0);
    }
}

#[test]
fn programs_at_a_device_are_replaced_in_place_and_a_new_device_gets_its_own() {
    let Some(wall) = wall() else { return };
    let (receiver, to) = wall.db.udp(Family::V4);
    let sender = wall.web.actor.socket(Family::V4, Kind::Datagram, 0).unwrap();
    wall.open_way("udp/any");
    wall.web.actor.send_to(sender, to, b"before").unwrap();
    // As an agent does that comes after another one.
    wall.guard_devices();
    wall.web.actor.send_to(sender, to, b"after").unwrap();
    assert_eq!(wall.db.actor.receive(receiver, 2).unwrap().len(), 2);
    let guarded = wall.guard().datapath().guarded_devices().unwrap();
    let owners: Vec<(u32, u64)> = guarded.into_iter().map(|(index, entry)| (index, entry.cgroup)).collect();
    let [web, db] = wall.devices();
    assert_eq!(owners, [(web.index, wall.web.cgroup.id()), (db.index, wall.db.cgroup.id())]);

    // The device of `web` dies, and its link with it. Another one takes its index, and its Ethernet address.
    let hardware = wall.ethernet().0.map(|byte| format!("{byte:02x}")).join(":");
    wall.host.ip("link delete to-web");
    let peer = format!("/proc/{}/ns/net", wall.web.actor.process().pid());
    wall.host
        .ip(&format!("link add to-web index {} type veth peer name web0 address {hardware} netns {peer}", web.index));
    for (netns, commands) in [
        (&wall.host, ["address add 10.9.0.254/24 dev to-web", "link set to-web up", "link show to-web"]),
        (&wall.web.net, ["address add 10.9.0.1/24 dev web0", "link set web0 up", "route add default via 10.9.0.254"]),
    ] {
        let _ = commands.map(|command| netns.ip(command));
    }
    wall.guard_devices();
    let end = Instant::now() + LONG;
    while wall.db.actor.receive_for(receiver, 1, BRIEF).unwrap().is_empty() {
        assert!(Instant::now() < end, "nothing passes the new device");
        let _ = wall.web.actor.send_to(sender, to, b"by the new device");
    }
    wall.allow(&[]);
    let _ = (wall.db.actor.received(receiver), wall.denials());
    let magic = magic();
    nothing_arrives(&wall, receiver, &magic, || {
        wall.web.actor.send_to(sender, to, &magic).unwrap();
    });
    stopped_at_the_exit(&wall, &wall.denials(), Reason::NoRule, 1);
}

#[test]
fn a_new_owner_of_a_device_begins_without_flows() {
    let Some(wall) = wall() else { return };
    let [device, _] = wall.devices();
    let own = |cgroup: u64| wall.guard_device(device, cgroup);
    let (receiver, to) = wall.db.udp(Family::V4);
    let (sender, from) = wall.web.udp(Family::V4);
    wall.open_way("udp/any");
    wall.web.actor.send_to(sender, to, b"ask").unwrap();
    assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
    own(wall.web.cgroup.id());
    wall.db.actor.send_to(receiver, from, b"the same owner").unwrap();
    assert_eq!(wall.web.actor.receive(sender, 1).unwrap().len(), 1);
    assert_eq!(wall.denials().denied(), 0);
    own(wall.db.cgroup.id());
    wall.db.actor.send_to(receiver, from, b"another").unwrap();
    let denials = wall.denials();
    assert_eq!(denials.causes(), [(Hook::TcTo, Reason::NoRule)]);
    assert_eq!(wall.web.actor.received(sender), Ok(vec![]));
    own(wall.web.cgroup.id());
    wall.db.actor.send_to(receiver, from, b"the first one again").unwrap();
    assert_eq!(wall.denials().causes(), [(Hook::TcTo, Reason::NoRule)]);
}

#[test]
fn g28_behind_a_device_that_several_share_the_socket_tells_who_it_is() {
    let Some(wall) = Wall::open(true) else { return };
    let stranger = wall.lab().actor(&wall.db.cgroup, &wall.web.net);
    wall.share_device_of_web();
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        let (web, from) = wall.web.udp(family);
        let frame = frame(&wall, &ip_udp(from, to, b"a frame of nobody"));
        wall.allow_at_the_exit(&["web -> db: udp/any"]);
        wall.web.actor.send_to(web, to, b"web").unwrap();
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, b"web");
        assert_eq!(wall.denials().denied(), 0);
        // The hooks of sockets see none of these.
        for (actor, id) in [(&wall.web.actor, wall.web.id()), (&stranger, wall.db.id())] {
            let other = ip_udp(wall.web.at(family, 40_020), to, b"by a frame");
            let bytes = [&frame[..14], &other].concat();
            let send = Command::SendFrame { device: "web0".to_owned(), frame: bytes, bypass: true };
            actor.call(&send).unwrap();
            let arrived = wall.db.actor.receive_for(receiver, 1, BRIEF).unwrap().len();
            let denials = wall.denials();
            if id == wall.web.id() {
                assert_eq!((arrived, denials.denied()), (1, 0));
                continue;
            }
            assert_eq!((arrived, denials.causes()), (0, vec![(Hook::TcFrom, Reason::NoRule)]));
            assert_eq!(denials.records[0].local_id, id.0);
        }
        // Towards them: by who would receive.
        let (open, at) = wall.web.udp(family);
        for (rules, passes) in [(&["db -> web: udp/any"][..], true), (&[], false)] {
            wall.allow_at_the_door_of_web(rules);
            let (caller, _) = wall.db.udp(family);
            wall.db.actor.send_to(caller, at, b"to web").unwrap();
            assert_eq!(wall.web.actor.receive_for(open, 1, BRIEF).unwrap().len(), usize::from(passes));
            let denials = wall.denials();
            if !passes {
                assert_eq!(denials.causes(), [(Hook::TcTo, Reason::NoRule)]);
                assert_eq!(denials.records[0].local_id, wall.web.id().0);
            }
        }
    }
}

#[test]
fn a_workload_that_is_narrowed_by_owner_has_its_edges_behind_a_device_as_well() {
    let Some(wall) = Wall::open(true) else { return };
    let policy = |rule: &str| {
        format!(
            "apiVersion: eastwall.dev/v1alpha1\nkind: Policy\nmetadata: {{ name: wall }}\nspec:\n  trustDomain: \
             lab.example\n  defaults: {{ mode: enforce }}\n  workloads:\n    - {{ name: web, select: {{ cgroup: {web} \
             }} }}\n    - {{ name: web-root, select: {{ cgroup: {web}, uid: [0] }} }}\n    - {{ name: db, select: {{ \
             cgroup: {db} }}, egressMode: observe }}\n  allow: [{{ {rule}, ports: [udp/any] }}]\n",
            web = wall.web.cgroup.path(),
            db = wall.db.cgroup.path(),
        )
    };
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        let (sender, from) = wall.web.udp(family);
        // The door of `db` knows an address, which has the name without an owner.
        wall.guard().apply(&policy("from: web-root, to: db").replace("egressMode", "ingressMode"));
        wall.web.actor.send_to(sender, to, b"by root").unwrap();
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, b"by root");
        assert_eq!(wall.denials().denied(), 0);
        // What root in another cgroup may do is nothing to this one.
        wall.guard().apply(&policy("from: web, to: db").replace("egressMode", "ingressMode"));
        let other = ip_udp(wall.web.at(family, 40_030), to, b"by a frame");
        wall.send_frame(&frame(&wall, &other), true).unwrap();
        assert_eq!(wall.denials().causes(), [(Hook::TcFrom, Reason::NoRule)]);
        // Towards it, by the socket that would receive.
        wall.guard().apply(&policy("from: db, to: web-root"));
        let (caller, _) = wall.db.udp(family);
        wall.db.actor.send_to(caller, from, b"to root").unwrap();
        assert_eq!(wall.web.actor.receive(sender, 1).unwrap()[0].data, b"to root");
        assert_eq!(wall.denials().denied(), 0);
        wall.guard().apply(&policy("from: db, to: web"));
        let (caller, _) = wall.db.udp(family);
        wall.db.actor.send_to(caller, from, b"to root").unwrap();
        assert_eq!(wall.denials().causes(), [(Hook::TcTo, Reason::NoRule)]);
    }
}
