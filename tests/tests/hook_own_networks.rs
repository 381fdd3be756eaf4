//! Namespaces that a workload makes for itself: G29 of the list of gaps.

use std::net::SocketAddr;

use agent_common::{layout::Hook, verdict::Reason};
use tests::{
    lab::{Command, Errno, Family, Kind, NetNs, Tun, Wall, magic},
    scene::{BRIEF, LONG},
};

#[test]
fn g29_who_makes_a_network_of_its_own_stays_the_workload_and_so_does_its_relay() {
    let Some(wall) = Wall::open(true) else { return };
    // A part of `web`, which is root in there and nowhere else.
    let cgroup = wall.web.cgroup.child("inner");
    let inner = wall.lab().actor(&cgroup, &wall.web.net);
    for command in [Command::UnshareUserNs, Command::UnshareNetNs] {
        inner.call(&command).unwrap();
    }
    let own = NetNs::of(inner.process());
    let Some(mut tun) = Tun::open(&own, "t0") else {
        println!("SKIP: this machine has no /dev/net/tun");
        return;
    };
    for words in ["address add 10.77.0.1/24 dev t0", "address add fd77::1/64 dev t0 nodad", "link set t0 up"] {
        own.ip(words);
    }
    for family in [Family::V4, Family::V6] {
        own.ip(if family == Family::V4 { "route add default dev t0" } else { "-6 route add default dev t0" });
        let (receiver, to) = wall.db.udp(family);
        let elsewhere: SocketAddr =
            if family == Family::V4 { "198.51.100.1:7000" } else { "[2001:db8::1]:7000" }.parse().unwrap();
        let sender = inner.socket(family, Kind::Datagram, 0).unwrap();
        let relay = wall.web.actor.socket(family, Kind::Datagram, 0).unwrap();
        let magic = magic();
        let mut witness = wall.watch(&magic);
        // By its own name: what `web` may, it may, and its relay as well.
        wall.open_way("udp/any");
        inner.send_to(sender, to, &magic).unwrap();
        let packet = tun.next_with(&magic, LONG).unwrap();
        wall.web.actor.send_to(relay, to, &packet[packet.len() - magic.len()..]).unwrap();
        assert_eq!(wall.db.actor.receive(receiver, 1).unwrap()[0].data, magic);
        let denials = wall.denials();
        assert_eq!(denials.denied(), 0, "{denials:#?}");
        // What it may not, it may not there: nothing gets to the relay.
        wall.allow(&["web -> world: any"]);
        assert_eq!(inner.send_to(sender, to, &magic), Err(Errno::PERM));
        assert_eq!(tun.next_with(&magic, BRIEF), None);
        let denials = wall.denials();
        assert_eq!(denials.causes(), [(family.sendmsg_hook(), Reason::NoRule)]);
        assert_eq!((denials.records[0].local_id, denials.records[0].cgroup), (wall.web.id().0, cgroup.id()));
        // It may send elsewhere, and its relay may not take that to where it may not go.
        inner.send_to(sender, elsewhere, &magic).unwrap();
        assert!(tun.next_with(&magic, LONG).is_some());
        assert_eq!(wall.web.actor.send_to(relay, to, &magic), Err(Errno::PERM));
        assert_eq!(wall.denials().causes(), [(family.sendmsg_hook(), Reason::NoRule)]);
        // Nor by a raw socket, whatever it calls itself.
        let raw = wall.web.actor.socket(family, Kind::Raw, 17).unwrap();
        let datagram = [&7000_u16.to_be_bytes()[..], &to.port().to_be_bytes(), &[0, 44, 0, 0], &magic].concat();
        assert_eq!(wall.web.actor.send_to(raw, SocketAddr::new(to.ip(), 0), &datagram), Err(Errno::PERM));
        let causes = wall.denials().causes();
        assert!(causes.iter().all(|(hook, _)| *hook == Hook::Egress) && !causes.is_empty(), "{causes:?}");
        if family == Family::V6 {
            // As the kernel looks for a neighbour, which it may do in a network of the workload's making.
            let raw = wall.web.actor.socket(family, Kind::Raw, 58).unwrap();
            let solicitation = [&[135, 0, 0, 0, 0, 0, 0, 0][..], &magic].concat();
            assert!(wall.web.actor.send_to(raw, SocketAddr::new(to.ip(), 0), &solicitation).is_err());
            assert_eq!(wall.denials().causes(), [(Hook::Egress, Reason::NoRule)]);
        }
        assert_eq!((witness.arrived(), wall.db.actor.received(receiver)), (1, Ok(vec![])));
    }
}
