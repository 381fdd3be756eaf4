//! Addresses that the network of `web` translates after its sockets have asked.

use std::net::SocketAddr;

use agent_common::{layout::Hook, verdict::Reason};
use tests::{
    frames::FAMILIES,
    lab::{Family, Wall},
};

use crate::stage::{Ends, Fate, Opens, Policy, Receiver, Row, by_socket, from_device};

use Fate::Stopped;

/// Of `db`, behind the service address; and where `web` calls by another's address.
const BACKEND: u16 = 5300;
const MASKED: u16 = 5301;

/// A service address, which every policy here lets `web` call.
fn vip(family: Family) -> SocketAddr {
    if family == Family::V4 { "10.96.0.10:80" } else { "[fd96::10]:80" }.parse().unwrap()
}

pub fn prepare(wall: &Wall) {
    for (family, mask) in FAMILIES.into_iter().zip(["10.9.0.77", "fd09::77"]) {
        let ip = if family == Family::V4 { "ip" } else { "ip6" };
        let (to, backend) = (vip(family), wall.db.at(family, BACKEND));
        wall.web.net.nft(&format!(
            "table {ip} lab {{\nchain out {{\ntype nat hook output priority -100; {ip} daddr {} udp dport {} dnat to \
             {backend}\n}}\nchain last {{\ntype nat hook postrouting priority 100; udp dport {MASKED} snat to \
             {mask}\n}}\n}}\n",
            to.ip(),
            to.port()
        ));
    }
}

pub fn rows(family: Family) -> Vec<Row> {
    let udp = |name, send, fates| Row::udp(family, name, send, fates);
    vec![
        Row {
            opens: Opens::By(|wall, _, family| {
                let (socket, _) = wall.db.actor.udp_bind(wall.db.at(family, BACKEND)).unwrap();
                Ends { receiver: Receiver::Messages(socket), to: vip(family), sockets: [None; 2] }
            }),
            // The exit judges what it has become: the service address alone is no pass.
            ..udp("g59 a service address", |stage, data| stage.datagram(stage.to, data), by_socket(Hook::Egress))
        },
        Row {
            opens: Opens::By(|wall, _, family| {
                let (socket, to) = wall.db.actor.udp_bind(wall.db.at(family, MASKED)).unwrap();
                Ends { receiver: Receiver::Messages(socket), to, sockets: [None; 2] }
            }),
            ..udp(
                "g60 by the address of another",
                |stage, data| stage.datagram(stage.to, data),
                // The door knows nobody by that address.
                vec![(
                    Policy::Open,
                    [
                        from_device(Reason::SpoofedSource),
                        Stopped(Hook::Ingress, Reason::NoRule),
                        from_device(Reason::SpoofedSource),
                    ],
                )],
            )
        },
    ]
}
