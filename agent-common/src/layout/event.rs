//! One denial, as the kernel reports it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The hook that decided. Numbers are on the wire and never reused.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
#[repr(u8)]
pub enum Hook {
    /// cgroup/connect4
    Connect4 = 1,
    /// cgroup/connect6
    Connect6 = 2,
    /// cgroup/sendmsg4
    Sendmsg4 = 3,
    /// cgroup/sendmsg6
    Sendmsg6 = 4,
    /// cgroup_skb/egress
    Egress = 5,
    /// cgroup_skb/ingress
    Ingress = 6,
    /// TC ingress on the host's side of a device: what leaves the workload behind it.
    TcFrom = 7,
    /// TC egress there: what enters the workload.
    TcTo = 8,
    /// TC egress at a device of the host: what its processes send past their sockets.
    TcHost = 9,
    /// cgroup/setsockopt
    Setsockopt = 10,
}

impl Hook {
    /// Reads the number on the wire.
    #[must_use]
    pub const fn from_u8(n: u8) -> Option<Self> {
        match n {
            1 => Some(Self::Connect4),
            2 => Some(Self::Connect6),
            3 => Some(Self::Sendmsg4),
            4 => Some(Self::Sendmsg6),
            5 => Some(Self::Egress),
            6 => Some(Self::Ingress),
            7 => Some(Self::TcFrom),
            8 => Some(Self::TcTo),
            9 => Some(Self::TcHost),
            10 => Some(Self::Setsockopt),
            _ => None,
        }
    }

    /// The name used in events.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect4 => "connect4",
            Self::Connect6 => "connect6",
            Self::Sendmsg4 => "sendmsg4",
            Self::Sendmsg6 => "sendmsg6",
            Self::Egress => "cgroup_skb/egress",
            Self::Ingress => "cgroup_skb/ingress",
            Self::TcFrom => "tc/from",
            Self::TcTo => "tc/to",
            Self::TcHost => "tc/host",
            Self::Setsockopt => "setsockopt",
        }
    }
}

/// How the identity of the peer was found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum KnownBy {
    /// It was not.
    Nothing = 0,
    /// The cgroup of the peer's socket on this host.
    Socket = 1,
    /// A range of an external.
    Address = 2,
    /// No known range: `world`.
    World = 3,
    /// The kernel of this host itself.
    Host = 4,
}

impl KnownBy {
    /// The word used in events.
    #[must_use]
    pub const fn name(n: u8) -> &'static str {
        match n {
            1 => "socket",
            2 => "address",
            3 => "world",
            4 => "host",
            _ => "nothing",
        }
    }
}

/// Bits of [`DenyRecord::flags`].
pub mod record_flags {
    /// Denied by `decide` but let pass by mode audit.
    pub const WOULD_DENY: u8 = 1;
    /// `pid`, `uid` and `comm` are known.
    pub const PROCESS: u8 = 2;
    /// The local port is known.
    pub const LOCAL_PORT: u8 = 4;
    /// The local address is known.
    pub const LOCAL_ADDR: u8 = 8;
    /// The caller saw EPERM.
    pub const EPERM: u8 = 16;
}

/// One record of the ring buffer `events`: a first denial of its key.
///
/// Shape: 144 bytes. Nothing here but `comm` is a string.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct DenyRecord {
    /// [`super::LAYOUT_VERSION`].
    pub version: u8,
    /// [`Hook`].
    pub hook: u8,
    /// [`crate::flow::Direction`] of the check: exit or door of the local end.
    pub direction: u8,
    /// [`crate::verdict::Mode`] of the local end in that direction.
    pub mode: u8,
    /// [`crate::verdict::Reason`].
    pub reason: u8,
    /// Bits of [`record_flags`].
    pub flags: u8,
    /// IP protocol on the wire.
    pub proto: u8,
    /// TCP flags, or 0.
    pub tcp_flags: u8,
    /// ICMP type and code on the wire, or 0.
    pub icmp: [u8; 2],
    /// [`KnownBy`] of the peer.
    pub known_by: u8,
    /// Zero.
    pub reserved: u8,
    /// Epoch of the decision.
    pub epoch: u32,
    /// Rule that decided; 0 = default.
    pub rule: u32,
    /// Interface, as the program saw it; 0 = not known.
    pub ifindex: u32,
    /// Boot clock, ns.
    pub boot_ns: u64,
    /// Identity of this end.
    pub local_id: u64,
    /// Identity of the other end, as believed.
    pub peer_id: u64,
    /// Identity of the acting task if it is another workload; else 0.
    pub task_id: u64,
    /// Cgroup of the socket.
    pub cgroup: u64,
    /// Cookie of the socket.
    pub cookie: u64,
    /// Cookie of the network namespace; 0 = not known.
    pub netns: u64,
    /// This end.
    pub local_addr: [u8; 16],
    /// The other end.
    pub peer_addr: [u8; 16],
    /// Host order.
    pub local_port: u16,
    /// Host order.
    pub peer_port: u16,
    /// Acting process.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Length of the packet, or 0.
    pub bytes: u32,
    /// Name of the acting process, NUL-padded bytes that the workload chose.
    pub comm: [u8; 16],
}
layout!(DenyRecord, size 144, version @ 0, hook @ 1, direction @ 2, mode @ 3, reason @ 4, flags @ 5, proto @ 6,
    tcp_flags @ 7, icmp @ 8, known_by @ 10, reserved @ 11, epoch @ 12, rule @ 16, ifindex @ 20, boot_ns @ 24,
    local_id @ 32, peer_id @ 40, task_id @ 48, cgroup @ 56, cookie @ 64, netns @ 72, local_addr @ 80, peer_addr @ 96,
    local_port @ 112, peer_port @ 114, pid @ 116, uid @ 120, bytes @ 124, comm @ 128);

/// Key of `deny_seen`: what makes two denials equal.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct DenyKey {
    /// Identity of this end, or its cgroup if it is `unknown`.
    pub local: u64,
    /// Identity of the other end.
    pub peer: u64,
    /// Its address if that identity is reserved (`unknown`, `world`), else zero.
    pub peer_addr: [u8; 16],
    /// Target port, host order.
    pub port: u16,
    /// IP protocol.
    pub proto: u8,
    /// [`crate::flow::Direction`].
    pub direction: u8,
    /// [`crate::verdict::Reason`].
    pub reason: u8,
    /// 1 = let pass by audit.
    pub would: u8,
    /// Zero.
    pub reserved: [u8; 2],
}
layout!(DenyKey, size 40, local @ 0, peer @ 8, peer_addr @ 16, port @ 32, proto @ 34, direction @ 35, reason @ 36,
    would @ 37, reserved @ 38);

/// Value of `deny_seen`: repeats of a key since its window began.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct DenyStat {
    /// Denials after the first.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Boot clock of the first, which is in its own record, ns.
    pub first_ns: u64,
    /// Boot clock of the newest, ns.
    pub last_ns: u64,
}
layout!(DenyStat, size 32, count @ 0, bytes @ 8, first_ns @ 16, last_ns @ 24);
