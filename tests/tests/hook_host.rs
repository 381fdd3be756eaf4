//! The host's own addresses: G58 of the list of gaps.
#![expect(clippy::unwrap_used, reason = "a test fails by it")]

use std::net::{SocketAddr, SocketAddrV6, UdpSocket};

use agent_common::{layout::Hook, verdict::Reason};
use tests::{
    lab::{Errno, Family, GuardOptions, Kind, Layers, Wall, Witness, magic},
    scene::LONG,
};

/// Where cloud providers answer who asks for the secrets of a machine.
const METADATA: &str = "169.254.169.254";

/// Addresses of the host, as `web` can name them: where it is the router, on the other side, on no link at all, the
/// metadata of a cloud, and link-local.
fn addresses(wall: &Wall) -> Vec<SocketAddr> {
    for more in ["10.8.8.8/32", "fd88::8/128", &format!("{METADATA}/32")] {
        wall.host.ip(&format!("address add {more} dev lo"));
    }
    let link_local = |netns: &tests::lab::NetNs, device: &str| {
        let line = netns.ip(&format!("-6 -o address show dev {device} scope link"));
        line.split_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned()
    };
    let index = wall.web.net.ip("-o link show dev web0").split(':').next().unwrap().parse().unwrap();
    let near = link_local(&wall.host, "to-web").parse().unwrap();
    // Whose that is, an agent learns as for any other address.
    wall.give_address(link_local(&wall.web.net, "web0").parse().unwrap(), wall.web.cgroup.id());
    let mut all: Vec<SocketAddr> =
        ["10.9.0.254", "10.9.1.254", "10.8.8.8", METADATA, "fd09::ff", "fd09:1::ff", "fd88::8"]
            .map(|addr| SocketAddr::new(addr.parse().unwrap(), 0))
            .into();
    all.push(SocketAddrV6::new(near, 0, 0, index).into());
    all
}

/// A socket of the host itself, which nothing guards.
fn service(wall: &Wall, at: SocketAddr) -> (UdpSocket, SocketAddr) {
    let any: SocketAddr = if at.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = wall.host.run(|| UdpSocket::bind(any).unwrap());
    socket.set_read_timeout(Some(LONG)).unwrap();
    let port = socket.local_addr().unwrap().port();
    let mut to = at;
    to.set_port(port);
    (socket, to)
}

#[test]
fn g58_no_address_of_the_host_is_open_without_a_rule() {
    for layers in Layers::ALL {
        let Some(wall) = Wall::by(layers, GuardOptions::default()) else { return };
        let sockets = layers.has_sockets();
        for at in addresses(&wall) {
            eprintln!("{at}, {layers:?}");
            let family = Family::of(at);
            let (service, to) = service(&wall, at);
            let socket = wall.web.actor.socket(family, Kind::Datagram, 0).unwrap();
            let names = ["world", "host", "metadata"].map(|name| format!("web -> {name}: udp/{}", to.port()));
            wall.allow(&names.each_ref().map(String::as_str));
            let _ = wall.denials();
            wall.web.actor.send_to(socket, to, b"allowed").unwrap();
            assert_eq!(service.recv(&mut [0; 16]).unwrap(), 7);
            assert_eq!(wall.denials().denied(), 0);

            let magic = magic();
            let mut witness = Witness::new(&wall.host, &magic);
            let refused = |hook: Hook, reason: Reason| {
                let told = if sockets { Err(Errno::PERM) } else { Ok(magic.len()) };
                assert_eq!(wall.web.actor.send_to(socket, to, &magic), told);
                assert_eq!(wall.denials().causes(), [(hook, reason)]);
            };
            let hook = if sockets { family.sendmsg_hook() } else { Hook::TcFrom };
            // What is allowed to others, or to other ports, opens none.
            wall.allow(&["web -> db: any", &format!("web -> host: udp/{}", to.port() ^ 1), "db -> host: any"]);
            refused(hook, Reason::NoRule);
            if at.ip().to_string() == METADATA {
                // A way into the world that leaves this one out.
                wall.allow(&["web -> world: any", "deny web -> metadata: any"]);
                refused(hook, Reason::DenyRule);
            }
            // A sniffer of the host stands before the device: only a socket of `web` could keep it blind.
            assert!(!sockets || witness.arrived() == 0);
            service.set_nonblocking(true).unwrap();
            assert!(service.recv(&mut [0; 64]).is_err(), "a datagram came through");
        }
    }
}

#[test]
fn g58_who_listens_on_the_loopback_of_the_host_is_out_of_reach() {
    for layers in Layers::ALL {
        let Some(wall) = Wall::by(layers, GuardOptions::default()) else { return };
        wall.allow(&["web -> world: any", "web -> host: any"]);
        // A host that takes addresses of loopback from its devices, as some do for services on them.
        let route = |value: &str| {
            wall.host.run(|| std::fs::write("/proc/sys/net/ipv4/conf/to-web/route_localnet", value).unwrap());
        };
        route("1");
        let service = wall.host.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
        service.set_read_timeout(Some(LONG)).unwrap();
        let to = service.local_addr().unwrap();
        // By a frame: a socket of `web` would reach its own loopback.
        let send = |data: &[u8]| {
            let packet = tests::frames::ip_udp(wall.web.at(Family::V4, 40_001), to, data);
            wall.send_frame(&tests::frames::frame(&wall, &packet), true).unwrap();
        };
        send(b"to the loopback");
        assert_eq!(service.recv(&mut [0; 16]).unwrap(), 15, "the control: it is the world, which is allowed");
        wall.allow(&["web -> host: any", "web -> db: any"]);
        let _ = wall.denials();
        send(b"to the loopback");
        if !layers.has_devices() {
            // No socket of a workload has to do with it, at either end.
            assert_eq!((service.recv(&mut [0; 16]).unwrap(), wall.denials().denied()), (15, 0));
            continue;
        }
        assert_eq!(wall.denials().causes(), [(Hook::TcFrom, Reason::NoRule)]);
        service.set_nonblocking(true).unwrap();
        assert!(service.recv(&mut [0; 64]).is_err());
    }
}
