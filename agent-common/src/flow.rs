//! What one attempt to communicate looks like to policy.

use crate::id::IdentityId;

/// One attempt, resolved to identities.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Flow {
    /// The caller: who sends the first packet.
    pub from: IdentityId,
    /// The callee.
    pub to: IdentityId,
    /// IP protocol number; ICMPv6 is given as 1, so that one rule covers both families.
    pub proto: u8,
    /// Target port in host order; for ICMP what [`icmp_port`] makes of its type; else 0.
    pub port: u16,
    /// Which end asks: `Egress` is the caller's exit, `Ingress` the callee's door.
    pub direction: Direction,
}

/// Returns the number that stands for a type of ICMP, or of ICMPv6, where other protocols have a port.
///
/// Shape: types of ICMP are themselves; an echo of ICMPv6 has the number of the ICMP one, because rules
/// mean both; every other type of ICMPv6 is moved by 256. Unmoved, its type 8, which is nothing, would be
/// an echo to every rule.
#[inline(always)]
#[must_use]
pub const fn icmp_port(protocol: u8, kind: u8) -> u16 {
    match (protocol, kind) {
        (proto::ICMPV6, 128) => 8,
        (proto::ICMPV6, 129) => 0,
        (proto::ICMPV6, _) => 256 + kind as u16,
        _ => kind as u16,
    }
}

/// Direction as the workload sees it.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Direction {
    /// The workload calls: its exit is asked.
    Egress = 0,
    /// The workload is called: its door is asked.
    Ingress = 1,
}

impl Direction {
    /// Reads the number on the wire.
    #[must_use]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            0 => Some(Self::Egress),
            1 => Some(Self::Ingress),
            _ => None,
        }
    }

    /// The word used in events, metrics and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
        }
    }
}

/// IP protocol numbers (IANA "Assigned Internet Protocol Numbers").
pub mod proto {
    /// ICMP, and ICMPv6 as policy sees it.
    pub const ICMP: u8 = 1;
    /// TCP, MPTCP included: on the wire it is TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMPv6 on the wire.
    pub const ICMPV6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
    /// UDP-Lite: never taken for UDP.
    pub const UDPLITE: u8 = 136;
}
