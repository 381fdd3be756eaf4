//! Tables that are full, with all layers, with the hooks of sockets alone, and with the programs at devices alone: G66
//! and G68 of the list of gaps.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
};

use agent_common::{
    layout::{
        DenyCounter, Hook,
        names::program::{self, CGROUP_MKDIR, CGROUP_RELEASE},
    },
    verdict::Reason,
};
use eastwall::datapath::Capacity;
use tests::{
    frames::FAMILIES,
    lab::{Family, GuardOptions, Kind, Layers, Wall, magic},
    scene::LONG,
};

#[test]
fn g66_a_flood_takes_its_own_share_and_nothing_of_anybody_else_by_one_layer_or_the_next() {
    const FLOOD: u16 = 5_000;
    const QUOTA: u32 = 256;
    for layers in Layers::ALL {
        let capacity = Capacity { flows: 1_024, ..Capacity::default() };
        let options = GuardOptions { capacity, flow_quota: QUOTA, ..GuardOptions::default() };
        let Some(wall) = Wall::by(layers, options) else { return };
        // What is sent to the service goes no further.
        for service in ["10.96.0.10/32", "fd96::10/128"] {
            wall.host.ip(&format!("route add blackhole {service}"));
        }
        for family in FAMILIES {
            eprintln!("{layers:?}, {family:?}");
            wall.allow(&["host -> db: tcp/any, udp/any", "web -> vip: udp/any"]);
            let db = &wall.db.actor;
            let (listener, tcp) = wall.db.listen(family);
            let (receiver, udp) = wall.db.udp(family);
            let call = || wall.host.run(|| TcpStream::connect_timeout(&tcp, LONG).unwrap());
            let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
            let socket = || wall.host.run(|| UdpSocket::bind(any).unwrap());
            let (mut caller, asking) = (call(), socket());
            let callee = db.accept(listener).unwrap();
            let mut ask = |text: &[u8]| {
                let mut room = [0; 16];
                asking.send_to(text, udp).unwrap();
                let request = db.receive(receiver, 1).unwrap();
                assert_eq!(request[0].data, text);
                db.send_to(receiver, request[0].from.unwrap(), b"reply").unwrap();
                asking.set_read_timeout(Some(LONG)).unwrap();
                assert_eq!(asking.recv(&mut room).unwrap(), 5);
                caller.write_all(text).unwrap();
                assert_eq!(db.receive(callee, 1).unwrap()[0].data, text);
                db.send(callee, b"reply").unwrap();
                caller.set_read_timeout(Some(LONG)).unwrap();
                assert_eq!(caller.read(&mut room).unwrap(), 5);
            };
            ask(b"before");
            let _ = wall.denials();
            let service: IpAddr = if family == Family::V4 { "10.96.0.10" } else { "fd96::10" }.parse().unwrap();
            let flood = wall.web.actor.socket(family, Kind::Datagram, 0).unwrap();
            wall.web.actor.flood(flood, SocketAddr::new(service, 20_000), FLOOD, b"x").unwrap();
            let denials = wall.denials();
            let passed = u64::from(FLOOD) - denials.count(DenyCounter::Dropped);
            assert!(passed > 0 && passed <= u64::from(QUOTA), "{passed} flows, and the share is {QUOTA}");
            let hook = if layers.has_sockets() { Hook::Egress } else { Hook::TcFrom };
            assert!(denials.causes().iter().all(|cause| *cause == (hook, Reason::Internal)), "{:?}", denials.causes());
            // Flows of others go on, new ones begin, and what is denied stays so.
            ask(b"after");
            let (new, another) = (call(), socket());
            let accepted = db.accept(listener).unwrap();
            another.send_to(b"new", udp).unwrap();
            assert_eq!(db.receive(receiver, 1).unwrap()[0].data, b"new");
            assert_eq!(wall.denials().denied(), 0);
            let magic = magic();
            let mut witness = wall.watch(&magic);
            let stranger = wall.web.actor.socket(family, Kind::Datagram, 0).unwrap();
            let _ = wall.web.actor.send_to(stranger, udp, &magic);
            let denials = wall.denials();
            assert_eq!((denials.denied(), witness.arrived()), (1, 0), "{:?}", denials.causes());
            drop((caller, asking, new, another));
            for socket in [flood, stranger] {
                wall.web.actor.close(socket);
            }
            for socket in [callee, accepted, listener, receiver] {
                db.close(socket);
            }
            // The next family begins with an empty table.
            wall.guard().forget_flows();
        }
    }
}

#[test]
fn g68_a_cgroup_without_room_for_its_label_is_denied_by_one_layer_or_the_next() {
    // The lab itself, two workloads, and one more.
    const ROOM: u32 = 4;
    for layers in Layers::ALL {
        let capacity = Capacity { cgroups: ROOM, ..Capacity::default() };
        let Some(wall) = Wall::unguarded(GuardOptions { capacity, ..GuardOptions::default() }) else { return };
        // New cgroups have labels by programs of tracing, under whichever layer.
        wall.guard().reattach().unwrap();
        if !layers.has_sockets() {
            let of_sockets = program::ALL.into_iter().filter(|name| ![CGROUP_MKDIR, CGROUP_RELEASE].contains(name));
            wall.guard().detach(&of_sockets.collect::<Vec<_>>());
        }
        if layers.has_devices() {
            wall.guard_devices();
        } else {
            wall.give_addresses();
        }
        wall.open_way("udp/any");
        let cgroups = ["labelled", "late"].map(|name| wall.web.cgroup.child(name));
        for (cgroup, is_labelled) in cgroups.iter().zip([true, false]) {
            assert_eq!(wall.guard().datapath().label_of(cgroup.id()).unwrap().is_some(), is_labelled);
            let actor = wall.lab().actor(cgroup, &wall.web.net);
            if layers.has_devices() {
                wall.guard_device(&wall.devices()[0], cgroup.id());
            }
            for family in FAMILIES {
                eprintln!("{layers:?}, {family:?}, labelled {is_labelled}");
                wall.give_address(wall.web.addr(family), cgroup.id());
                let (receiver, to) = wall.db.udp(family);
                let magic = magic();
                let mut witness = wall.watch(&magic);
                let _ = wall.denials();
                let socket = actor.socket(family, Kind::Datagram, 0).unwrap();
                let _ = actor.send_to(socket, to, &magic);
                if is_labelled {
                    assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, magic);
                    continue;
                }
                let hook = if layers.has_sockets() { family.sendmsg_hook() } else { Hook::TcFrom };
                assert_eq!(wall.denials().causes(), [(hook, Reason::UnknownSelf)]);
                assert_eq!((witness.arrived(), wall.db.actor.received(receiver)), (0, Ok(vec![])));
            }
        }
    }
}
