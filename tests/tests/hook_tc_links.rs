//! What a device lets pass below IP: Ethernet addresses, ARP and neighbour discovery. G52 of the list of gaps.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::{net::IpAddr, time::Instant};

use agent_common::{layout::Hook, verdict::Reason};
use etherparse::PacketBuilder;
use tests::{
    frames::{FAMILIES, framed, ip_udp, nothing_arrives, stopped_at_the_exit},
    lab::{Wall, magic},
    scene::LONG,
};

/// An Ethernet address that nobody has.
const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
/// To everybody on the link.
const BROADCAST: [u8; 6] = [0xff; 6];

/// Says what the host believes about an address on the link to `web`.
fn believed(wall: &Wall, addr: IpAddr) -> String {
    wall.host.ip(&format!("neigh show {addr} dev to-web"))
}

/// Lets the host believe that nobody's device has an address.
fn forget(wall: &Wall, addr: IpAddr) {
    wall.host.ip(&format!("neigh replace {addr} dev to-web lladdr 02:00:00:00:00:77 nud stale"));
}

/// An announcement of an address by `web`: of ARP (RFC 826), or of neighbour discovery (RFC 4861, section 4.4).
fn announcement(wall: &Wall, from: [u8; 6], source: IpAddr, about: IpAddr) -> Vec<u8> {
    match (source, about) {
        (_, IpAddr::V4(about)) => {
            let about = about.octets();
            let head = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2];
            [&BROADCAST[..], &from, &head, &from, &about, &from, &about].concat()
        }
        (IpAddr::V6(source), IpAddr::V6(about)) => {
            let all_nodes = "ff02::1".parse::<std::net::Ipv6Addr>().unwrap().octets();
            let mut packet = Vec::new();
            let body = [&about.octets()[..], &[2, 1], &from].concat();
            // To override what is known.
            let builder = PacketBuilder::ipv6(source.octets(), all_nodes, 255).icmpv6_raw(136, 0, [0x20, 0, 0, 0]);
            builder.write(&mut packet, &body).unwrap();
            framed((wall.ethernet().0, [0x33, 0x33, 0, 0, 0, 1]), &packet)
        }
        _ => panic!("one family"),
    }
}

#[test]
fn g52_what_leaves_by_a_device_comes_from_its_ethernet_address() {
    let Some(wall) = Wall::open(false) else { return };
    let (own, host) = wall.ethernet();
    let (of_db, _) = wall.ethernet_of_db();
    let near = [own[0], own[1], own[2], own[3], own[4], own[5] ^ 1];
    for family in FAMILIES {
        let (receiver, to) = wall.db.udp(family);
        let from = wall.web.at(family, 40_040);
        wall.open_way("udp/any");
        let send = |ethernet: [u8; 6], data: &[u8], bypass: bool| {
            wall.send_frame(&framed((ethernet, host), &ip_udp(from, to, data)), bypass).unwrap();
        };
        for bypass in [false, true] {
            send(own, b"its own", bypass);
            assert_eq!(wall.db.actor.receive(receiver, 1).unwrap().len(), 1);
            assert_eq!(wall.denials().denied(), 0);
            let magic = magic();
            for other in [of_db, host, near, NOBODY, BROADCAST, [0; 6]] {
                // On the flow that was allowed a moment ago.
                nothing_arrives(&wall, receiver, &magic, || send(other, &magic, bypass));
                stopped_at_the_exit(&wall, &wall.denials(), Reason::SpoofedSource, 1);
            }
        }
    }
}

#[test]
fn g52_arp_and_neighbour_discovery_speak_of_own_addresses() {
    let Some(wall) = Wall::open(false) else { return };
    let (own, _) = wall.ethernet();
    let text = own.map(|byte| format!("{byte:02x}")).join(":");
    for (family, others) in FAMILIES.into_iter().zip([["10.9.0.77", "10.9.0.254"], ["fd09::77", "fd09::ff"]]) {
        let addr = wall.web.addr(family);
        forget(&wall, addr);
        wall.send_frame(&announcement(&wall, own, addr, addr), true).unwrap();
        let end = Instant::now() + LONG;
        while !believed(&wall, addr).contains(&text) {
            assert!(Instant::now() < end, "{addr}: the host does not hear it: {}", believed(&wall, addr));
        }
        assert_eq!(wall.denials().denied(), 0);

        let other: IpAddr = others[0].parse().unwrap();
        forget(&wall, other);
        // Of an address of nobody, and of the host; by an address of its own, and by that one.
        for (source, about) in [(addr, other), (other, other), (addr, others[1].parse().unwrap())] {
            wall.send_frame(&announcement(&wall, own, source, about), true).unwrap();
            let denials = wall.denials();
            assert_eq!(
                (denials.causes(), denials.denied()),
                (vec![(Hook::TcFrom, Reason::SpoofedSource)], 1),
                "{about}"
            );
        }
        // Its own address, at another's device.
        let mut elsewhere = announcement(&wall, own, addr, addr);
        elsewhere[6..12].copy_from_slice(&NOBODY);
        wall.send_frame(&elsewhere, true).unwrap();
        let reason = if addr.is_ipv4() { Reason::LinkProtocol } else { Reason::SpoofedSource };
        stopped_at_the_exit(&wall, &wall.denials(), reason, 1);
        assert!(!believed(&wall, other).contains(&text), "{}", believed(&wall, other));
        assert!(believed(&wall, addr).contains(&text), "{}", believed(&wall, addr));
    }
}

#[test]
fn whoever_tries_out_an_address_may_ask_whether_it_is_taken() {
    let Some(wall) = Wall::open(false) else { return };
    let (own, _) = wall.ethernet();
    let head = [0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1];
    let probe = [&BROADCAST[..], &own, &head, &own, &[0; 4], &[0; 6], &[10, 9, 0, 77]].concat();
    wall.send_frame(&probe, true).unwrap();
    // Duplicate address detection: RFC 4862, section 5.4.2.
    let [nobody, asked, group] =
        ["::", "fd09::77", "ff02::1:ff00:77"].map(|addr| addr.parse::<std::net::Ipv6Addr>().unwrap().octets());
    let mut packet = Vec::new();
    let solicitation = PacketBuilder::ipv6(nobody, group, 255).icmpv6_raw(135, 0, [0; 4]);
    solicitation.write(&mut packet, &asked).unwrap();
    wall.send_frame(&framed((own, [0x33, 0x33, 0xff, 0, 0, 0x77]), &packet), true).unwrap();
    assert_eq!(wall.denials().denied(), 0);
}
