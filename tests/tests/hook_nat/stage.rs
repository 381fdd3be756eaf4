//! Two workloads whose addresses are translated on the way, looked at from every layer.

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU16, Ordering},
    time::Instant,
};

use agent_common::{
    layout::{Hook, names::program},
    verdict::Reason,
};
use tests::{
    frames::FAMILIES,
    lab::{Denials, Errno, Family, GuardOptions, Kind, Need, NetNs, Socket, Wall, require_or_skip},
    scene::{BRIEF, LONG},
};

/// What stops packets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Layers {
    All,
    Sockets,
    Devices,
}

impl Layers {
    /// The first hook after `connect` that meets what leaves `web`.
    pub fn exit(self) -> Hook {
        if self == Self::Devices { Hook::TcFrom } else { Hook::Egress }
    }

    /// The first hook at the end of `db`.
    pub fn door(self) -> Hook {
        if self == Self::Sockets { Hook::Ingress } else { Hook::TcTo }
    }
}

/// Runs a test under each set of layers, for both families.
pub fn everywhere(test: impl Fn(&Wall, Layers, Family)) {
    if require_or_skip(&[Need::Nft]).is_none() {
        return;
    }
    let Some(wall) = Wall::unguarded(GuardOptions::default()) else { return };
    wall.guard().reattach().unwrap();
    wall.give_addresses();
    // What an open connection still sends when nobody translates any more gets no answer.
    for route in ["10.96.0.10/32", "fd96::10/128"] {
        wall.host.ip(&format!("route add blackhole {route}"));
    }
    for layers in [Layers::Sockets, Layers::All, Layers::Devices] {
        match layers {
            Layers::Sockets => {}
            Layers::All => wall.guard_devices(),
            Layers::Devices => without_sockets(&wall),
        }
        for family in FAMILIES {
            // The harness shows this if the test fails.
            eprintln!("{layers:?} {family:?}");
            wall.allow(&[]);
            let _ = wall.denials();
            test(&wall, layers, family);
        }
    }
}

/// Takes the hooks of sockets away, and waits until they are gone.
pub fn without_sockets(wall: &Wall) {
    wall.guard().detach(&[
        program::CONNECT4,
        program::CONNECT6,
        program::SENDMSG4,
        program::SENDMSG6,
        program::EGRESS,
        program::INGRESS,
    ]);
    let socket = wall.web.actor.socket(Family::V4, Kind::Datagram, 0).unwrap();
    let end = Instant::now() + LONG;
    while wall.web.actor.send_to(socket, wall.db.at(Family::V4, 9), b"denied") == Err(Errno::PERM) {
        assert!(Instant::now() < end, "the hooks of sockets are still there");
    }
    wall.web.actor.close(socket);
    // Ingress went with the others, and has no call that tells.
    std::thread::sleep(BRIEF);
}

/// A port of the service address, which nobody has.
pub fn vip(family: Family) -> SocketAddr {
    let addr: IpAddr = if family == Family::V4 { "10.96.0.10" } else { "fd96::10" }.parse().unwrap();
    SocketAddr::new(addr, 7000)
}

/// The words of nft for a family.
pub fn words(family: Family) -> &'static str {
    if family == Family::V4 { "ip" } else { "ip6" }
}

/// Puts one chain in place of what was there; nothing if it is empty.
pub fn chain(netns: &NetNs, family: Family, chain: &str) {
    let table = format!("table {} lab", words(family));
    let chain = if chain.is_empty() { String::new() } else { format!("chain one {{\n{chain}\n}}\n") };
    // At once, so that no packet goes between the two.
    netns.nft(&format!("{table} {{ }}\ndelete {table}\n{table} {{\n{chain}}}\n"));
}

/// Gives the service address a backend, in the network of the caller or of the host.
pub fn serve(netns: &NetNs, hook: &str, backend: SocketAddr) {
    serve_at(netns, hook, vip(Family::of(backend)), backend);
}

/// As [`serve`], at another port of the service address.
pub fn serve_at(netns: &NetNs, hook: &str, from: SocketAddr, backend: SocketAddr) {
    let family = Family::of(backend);
    let ip = words(family);
    let to = format!("{ip} daddr {} meta l4proto {{ tcp, udp }} th dport {}", from.ip(), from.port());
    chain(netns, family, &format!("type nat hook {hook} priority -100; {to} dnat to {backend}"));
}

/// A UDP socket of `web` at a port that no other had before: what is translated is remembered by its ports, and would go
/// where the datagrams of the one before went.
pub fn caller(wall: &Wall, family: Family) -> Socket {
    static USED: AtomicU16 = AtomicU16::new(0);
    // Below those that the kernel chooses from.
    let port = 10_000 + USED.fetch_add(1, Ordering::Relaxed);
    wall.web.actor.udp_bind(wall.web.at(family, port)).unwrap().0
}

/// A connection from `web`, over which something is said in both directions.
pub fn converse(wall: &Wall, to: SocketAddr, listener: Socket) -> (Socket, Socket) {
    let ours = wall.web.actor.tcp_connect(to, LONG).unwrap();
    let theirs = wall.db.actor.accept(listener).unwrap();
    say(wall, ours, theirs);
    (ours, theirs)
}

pub fn say(wall: &Wall, ours: Socket, theirs: Socket) {
    for _ in 0..3 {
        wall.web.actor.send(ours, b"ask").unwrap();
        assert_eq!(wall.db.actor.receive(theirs, 1).unwrap()[0].data, b"ask");
        wall.db.actor.send(theirs, b"answer").unwrap();
        assert_eq!(wall.web.actor.receive(ours, 1).unwrap()[0].data, b"answer");
    }
}

/// Two ports of `db` at which it listens.
pub fn listeners(wall: &Wall, family: Family) -> [(Socket, SocketAddr); 2] {
    [wall.db.listen(family), wall.db.listen(family)]
}

/// Checks that a call of `web` is refused after `connect` let it pass, and by whom.
pub fn refused_on_the_way(wall: &Wall, to: SocketAddr, listener: Socket, hook: Hook) -> Denials {
    assert_eq!(wall.web.actor.tcp_connect(to, BRIEF), Err(Errno::TIMEDOUT));
    assert_eq!(wall.db.actor.accept_now(listener), Err(Errno::AGAIN));
    let denials = wall.denials();
    assert_eq!(denials.calls(), [(hook, Reason::NoRule)], "{denials:#?}");
    denials
}
