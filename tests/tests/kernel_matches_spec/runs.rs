//! A flow to try -> a packet for a program, and where it is tried.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use agent_common::{
    flow::{Direction, proto},
    id::IdentityId,
    layout::DenyKey,
    verdict::Reason,
};
use eastwall::policy::{
    ask::octets,
    map_state::MapState,
    random::{self, Case, Random},
    resolvers::Resolvers,
    spec::{Attempt, End},
};

use super::frames::{self, Damage, Packet};

/// Where the second actor has sockets, TCP and UDP, IPv4 and IPv6: around every port that the random
/// policies name.
pub const PEER_PORTS: [u16; 28] = [
    1, 2, 6, 7, 8, 52, 53, 54, 79, 80, 81, 82, 84, 86, 88, 89, 90, 91, 92, 93, 8079, 8080, 8081, 9089, 9090, 9091,
    65_534, 65_535,
];
/// Packets, by number, that ask a resolver whose socket is the local one.
const RESOLVERS_DOORS: [u32; 2] = [100, 500];
/// Where nobody has a socket.
const NOBODYS_PORT: u16 = 4_444;

/// How the other end is known.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Way {
    /// By its address, at the socket of the local end.
    Address,
    /// By its address, at the device of the local end.
    Device,
    /// By its socket on the same host.
    Socket,
    /// On the same host, without a socket.
    Nobody,
    /// It is the host.
    Host,
}

impl Way {
    /// Says whether nothing is known of the other end but its address.
    pub const fn is_by_address(self) -> bool {
        matches!(self, Self::Address | Self::Device)
    }
}

/// Packets that can be tried together.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Group {
    /// Identity of the local end.
    pub local: IdentityId,
    /// Identity of the other end.
    pub peer: IdentityId,
    /// How it is known.
    pub way: Way,
    /// Egress.
    pub leaves: bool,
}

/// One packet and what must become of it.
#[derive(Clone, Debug)]
pub struct Run {
    /// What it is to the specification.
    pub attempt: Attempt,
    /// From the Ethernet header on.
    pub frame: Vec<u8>,
    /// Why it is denied before policy is asked, or `Allowed`.
    pub reason: Reason,
    /// Whether it goes through.
    pub passes: bool,
    /// Whether it is the built-in `dns` that allows it.
    pub by_dns: bool,
    /// Whether it is allowed by what answers of resolvers say of an address, or denied.
    pub by_name: bool,
    /// Whether the other end is where the workloads of other hosts are.
    pub is_elsewhere: bool,
    packet: Packet,
}

/// Turns an attempt into a packet, changing what no packet can say. `n` makes it unique under a policy,
/// so that no verdict on another one is remembered for it.
pub fn run(case: &Case, map: &MapState, mut attempt: Attempt, n: u32, random: &mut Random) -> (Group, Run) {
    if RESOLVERS_DOORS.contains(&n) {
        attempt.direction = Direction::Ingress;
        attempt.proto = *random.pick(&[proto::UDP, proto::UDP, proto::UDP, proto::TCP]);
        attempt.port = *random.pick(&[53, 53, 53, 54]);
    }
    let leaves = attempt.direction == Direction::Egress;
    let (way, peer_addr) = place(&mut attempt, random);
    // No IPv6 packet is taken for one of an IPv4 address.
    let peer_addr = peer_addr.to_canonical();
    let is_v6 = matches!(peer_addr, IpAddr::V6(_));
    let mut packet = Packet {
        leaves,
        local: local_addr(is_v6, leaves, n),
        peer: peer_addr,
        proto: attempt.proto,
        local_port: 0,
        peer_port: 0,
        icmp_type: 0,
    };
    let has_ports = matches!(attempt.proto, proto::TCP | proto::UDP | proto::SCTP | proto::UDPLITE);
    match attempt.proto {
        proto::ICMP if attempt.port == 8 => packet.icmp_type = if is_v6 { 128 } else { 8 },
        // At a device an error belongs to the flow that it is about, and what is about neighbours to the device.
        proto::ICMP if way == Way::Device => {
            packet.icmp_type = *random.pick(if is_v6 { &[150, 200] } else { &[15, 128] });
            attempt.port = u16::from(packet.icmp_type) + if is_v6 { 256 } else { 0 };
        }
        proto::ICMP => {
            // Among them 8 as a type of ICMPv6, which is no echo; none whose length is fixed.
            packet.icmp_type = if is_v6 { *random.pick(&[1, 3, 8, 133, 200]) } else { *random.pick(&[3, 5, 15, 128]) };
            attempt.port = u16::from(packet.icmp_type) + if is_v6 { 256 } else { 0 };
        }
        _ if !has_ports => attempt.port = 0,
        _ => {}
    }
    if has_ports {
        if way == Way::Socket && leaves && matches!(attempt.proto, proto::TCP | proto::UDP) {
            attempt.port = if PEER_PORTS.contains(&attempt.port) { attempt.port } else { *random.pick(&PEER_PORTS) };
        }
        if way == Way::Nobody && leaves && attempt.proto != proto::SCTP {
            attempt.port = NOBODYS_PORT;
        }
        let other = match way {
            Way::Socket => *random.pick(&PEER_PORTS),
            Way::Nobody => NOBODYS_PORT,
            Way::Address | Way::Device | Way::Host => u16::try_from(random.below(1 << 16)).unwrap(),
        };
        (packet.local_port, packet.peer_port) = if leaves { (other, attempt.port) } else { (attempt.port, other) };
    }
    attempt.asked = Some(if leaves { packet.peer } else { packet.local });
    attempt.here = way == Way::Socket;
    attempt.named = if way.is_by_address() { case.names_at(peer_addr) } else { BTreeSet::new() };
    let is_elsewhere =
        way.is_by_address() && (case.peers.names(peer_addr).is_some() || case.peers.is_in_range(peer_addr));
    let damage = if random.one_in(12) { Damage::any(&packet, random) } else { None };
    let reason = match damage {
        None => Reason::Allowed,
        Some(Damage::Fragment) => Reason::Fragment,
        Some(Damage::EchoReply | Damage::NoSyn) => Reason::NoFlow,
        Some(_) => Reason::Malformed,
    };
    let frame = frames::frame(&packet, damage);
    let flow = random::flow(&case.policy, map, &attempt);
    let (local, peer) = if leaves { (flow.from, flow.to) } else { (flow.to, flow.from) };
    (
        Group { local, peer, way, leaves },
        Run { attempt, frame, reason, passes: false, by_dns: false, by_name: false, is_elsewhere, packet },
    )
}

/// The resolvers of a case, one on loopback, and two whose own door is asked.
pub fn resolvers(case: &Case, random: &mut Random) -> Resolvers {
    let here: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let doors = RESOLVERS_DOORS.iter().flat_map(|&n| [false, true].map(|is_v6| local_addr(is_v6, false, n)));
    let all: Vec<IpAddr> =
        case.resolvers.addresses().iter().copied().chain([*random.pick(&here)]).chain(doors).collect();
    all.try_into().unwrap()
}

/// Chooses how the other end is known, and its address.
fn place(attempt: &mut Attempt, random: &mut Random) -> (Way, IpAddr) {
    let leaves = attempt.direction == Direction::Egress;
    let is_by_socket = matches!(attempt.proto, proto::TCP | proto::UDP);
    let peer = if leaves { &mut attempt.to } else { &mut attempt.from };
    if let End::Address(addr) = peer {
        return (if random.one_in(2) { Way::Device } else { Way::Address }, *addr);
    }
    let here = if random.one_in(2) { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
    if !is_by_socket {
        return (Way::Host, here);
    }
    if !leaves && attempt.proto == proto::TCP {
        // What is found on the caller's port is a listener, and that is not the caller.
        *peer = End::Unknown;
    }
    let nobody = *peer == End::Unknown && random.one_in(2);
    (if nobody { Way::Nobody } else { Way::Socket }, here)
}

/// The addresses from which the local end of so many packets may send.
pub fn local_addresses(packets: u32) -> impl Iterator<Item = IpAddr> {
    (0..packets).flat_map(|n| [false, true].map(|is_v6| local_addr(is_v6, true, n)))
}

/// An address of the local end. Only the program at the device, and only when it leaves, asks whether it is one.
fn local_addr(is_v6: bool, leaves: bool, n: u32) -> IpAddr {
    let n = n << 1 | u32::from(leaves);
    if is_v6 {
        Ipv6Addr::from_bits(0xfd77 << 112 | u128::from(n)).into()
    } else {
        Ipv4Addr::from_bits(0xac10_0000 | n).into()
    }
}

/// The key under which a denial by policy is counted; None for one that policy was not asked about.
pub fn deny_key(group: &Group, run: &Run, cgroup: u64) -> Option<DenyKey> {
    if matches!(run.reason, Reason::NoFlow | Reason::Fragment | Reason::Malformed) {
        return None;
    }
    let is_v6 = matches!(run.packet.peer, IpAddr::V6(_));
    Some(DenyKey {
        local: if group.local.is_unknown() { cgroup } else { group.local.0 },
        peer: group.peer.0,
        peer_addr: if group.peer.0 < IdentityId::FIRST_HASHED { octets(run.packet.peer) } else { [0; 16] },
        port: run.attempt.port,
        proto: if run.packet.proto == proto::ICMP && is_v6 { proto::ICMPV6 } else { run.packet.proto },
        direction: if group.leaves { Direction::Egress as u8 } else { Direction::Ingress as u8 },
        reason: run.reason as u8,
        would: u8::from(run.passes),
        reserved: [0; 2],
    })
}
