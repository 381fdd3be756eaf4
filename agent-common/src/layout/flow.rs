//! What is remembered about a flow: in the socket, or in the flow table.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::addr::Addr;

/// Ticks of the flow table are 2³⁰ ns, about 1.07 s, of `CLOCK_MONOTONIC_COARSE`: a shift is cheaper than
/// a division.
pub const TICK_SHIFT: u32 = 30;
/// For so long a socket's own storage may answer in the place of the flow table: 1 to 10 s, by the rate of
/// the kernel's timer interrupt.
pub const SOCKET_REMEMBERS_JIFFIES: u32 = 1024;
/// At most so many ticks are that, with the slowest timer, which has 100 interrupts in a second.
pub const SOCKET_REMEMBERS_TICKS: u32 = 10;
/// A SYN that leaves within this time after connect asked for it, about as long as connect takes, is that one.
pub const SYN_FOLLOWS_JIFFIES: u32 = 4;
/// Idle ticks after which a flow seen in one direction only is forgotten: 30 s, and what a socket may
/// have kept to itself.
pub const IDLE_ONE_WAY_TICKS: u32 = 28 + SOCKET_REMEMBERS_TICKS;
/// The same once both directions were seen: 180 s.
pub const IDLE_BOTH_WAYS_TICKS: u32 = 168 + SOCKET_REMEMBERS_TICKS;

/// The same for a TCP connection at a device, where no socket says how long it lives: 2.4 hours, a little more
/// than a usual keepalive takes to find out that its peer is gone.
pub const IDLE_CONNECTION_TICKS: u32 = 8192;

/// Values of [`FlowState::ways`].
pub mod ways {
    /// One direction was seen.
    pub const ONE: u32 = 0;
    /// Both were.
    pub const BOTH: u32 = 1;
    /// Both were, it is a TCP connection at a device, and neither end has said that it is over.
    pub const CONNECTION: u32 = 2;
}

/// Returns the idle ticks after which a flow is forgotten, by its [`FlowState::ways`].
#[inline(always)]
#[must_use]
pub const fn idle_limit(ways: u32) -> u32 {
    match ways {
        ways::ONE => IDLE_ONE_WAY_TICKS,
        ways::CONNECTION => IDLE_CONNECTION_TICKS,
        _ => IDLE_BOTH_WAYS_TICKS,
    }
}

/// Ticks within which all fragments of a datagram pass a device: 30 s, as long as receivers keep them.
pub const FRAGMENTS_TICKS: u32 = 28;

/// The owner of the flows that pass a device, for [`FlowKey::owner`]; `sharer` is the cgroup of one of several
/// workloads behind it, else 0.
///
/// No cgroup has this number: the kernel counts the ids of cgroups up from 1, so the highest bit of one is
/// never set. Of a sharer it holds the lowest 31 bits, which are those that differ.
#[inline(always)]
#[must_use]
pub const fn device_owner(ifindex: u32, sharer: u64) -> u64 {
    1 << 63 | (sharer & 0x7fff_ffff) << 32 | ifindex as u64
}

/// Says whether an owner is a device, or who shares it.
#[must_use]
pub const fn is_of_device(owner: u64, ifindex: u32) -> bool {
    owner >> 63 == 1 && owner & 0x7fff_ffff == ifindex as u64
}

/// The owner of datagrams that pass a device in pieces, beside its flows; see [`device_owner`].
///
/// No device has this index: the kernel counts them in an `int`, from 1.
#[inline(always)]
#[must_use]
pub const fn fragments_owner(ifindex: u32, sharer: u64) -> u64 {
    device_owner(ifindex, sharer) | 1 << 31
}

/// Which end of its flow a socket is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
pub enum Role {
    /// Not known yet.
    Unknown = 0,
    /// It called: its exit is asked.
    Caller = 1,
    /// It was called: its door is asked.
    Callee = 2,
}

/// Value of `sockets`: one socket's storage.
///
/// The verdict is about one flow: that of the connection, or the last one of a socket that has many.
///
/// INVARIANT: the verdict is an allow and `seal` was made by [`crate::cached::seal`] over the other
/// fields of the verdict. Two CPUs that write at once leave a seal that fits neither, and the next
/// packet is decided again.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct SockState {
    /// Peer of the cached verdict.
    pub peer_addr: Addr,
    /// Its port, host order.
    pub peer_port: u16,
    /// Local port, host order.
    pub local_port: u16,
    /// Epoch under which it was made.
    pub epoch: u32,
    /// Boot second until which it holds; 0 = as long as the epoch.
    pub valid_until: u32,
    /// In jiffies: when the flow table was last asked about this flow, or, for TCP, when connect asked for
    /// it; 0 if a packet did.
    pub seen: u32,
    /// Seal over the verdict.
    pub seal: u64,
    /// Cgroup of the socket, from sock_create; 0 = not known.
    pub cgroup: u64,
    /// Cookie of the network namespace; 0 = not known.
    pub netns: u64,
    /// Process that last connected or sent with an address, else the maker.
    pub pid: u32,
    /// Its user.
    pub uid: u32,
    /// Its name as the kernel has it.
    pub comm: [u8; 16],
    /// Role of the socket for its whole life, once known; of a socket that is not TCP, whether it has
    /// been called.
    pub sticky_role: u8,
    /// 0 = nothing about the process above.
    pub maker_known: u8,
    /// IP protocol of a socket that has had a verdict: TCP or UDP, and what it is does not change.
    pub proto: u8,
    /// 1 = a socket by which an agent answers for doors ([`super::ResetRecord`]); written by it alone.
    pub answers: u8,
    /// Zero.
    pub reserved: [u8; 4],
}
layout!(SockState, size 88, peer_addr @ 0, peer_port @ 16, local_port @ 18, epoch @ 20, valid_until @ 24, seen @ 28,
    seal @ 32, cgroup @ 40, netns @ 48, pid @ 56, uid @ 60, comm @ 64, sticky_role @ 80, maker_known @ 81,
    proto @ 82, answers @ 83, reserved @ 84);

/// Key of `flows`: a flow seen from one end.
///
/// Of a datagram that passes a device in pieces ([`fragments_owner`]) the ports are its number, upper and lower half,
/// and the direction is 1 if it leaves the workload.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct FlowKey {
    /// Cgroup of the local socket, or [`device_owner`]: one workload's entries say nothing about another's.
    pub owner: u64,
    /// This end's address.
    pub local_addr: [u8; 16],
    /// The other end's address.
    pub peer_addr: [u8; 16],
    /// This end's port, host order; for ICMP the echo id.
    pub local_port: u16,
    /// The other end's port, host order; for ICMP the echo id.
    pub peer_port: u16,
    /// IP protocol.
    pub proto: u8,
    /// [`crate::flow::Direction`] of the first packet.
    pub direction: u8,
    /// Zero.
    pub reserved: [u8; 2],
}
layout!(FlowKey, size 48, owner @ 0, local_addr @ 8, peer_addr @ 24, local_port @ 40, peer_port @ 42, proto @ 44,
    direction @ 45, reserved @ 46);

/// Value of `flows`.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct FlowState {
    /// Epoch under which its first packet was allowed.
    pub epoch: u32,
    /// Boot second until which that holds; 0 = as long as the epoch.
    pub valid_until: u32,
    /// Tick (2³⁰ ns) of the newest packet that asked the table.
    pub last_seen: u32,
    /// Which ways packets went, of [`ways`].
    pub ways: u32,
    /// Cgroup of the other end's socket when it was judged; 0 = the other end is known by its address.
    /// Of a datagram in pieces, where the next one begins, in bytes.
    pub peer_cgroup: u64,
}
layout!(FlowState, size 24, epoch @ 0, valid_until @ 4, last_seen @ 8, ways @ 12, peer_cgroup @ 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_its_sharers_and_cgroups_are_different_owners() {
        let fragments = [fragments_owner(7, 0), fragments_owner(7, 40)];
        let owners = [device_owner(7, 0), device_owner(7, 40), device_owner(7, 41)];
        let others = [device_owner(8, 40), fragments_owner(8, 0), 7, 40];
        let owners = [&fragments[..], &owners, &others].concat();
        for (i, owner) in owners.iter().enumerate() {
            assert!(owners[..i].iter().all(|other| other != owner), "{owner:#x}");
            assert_eq!(is_of_device(*owner, 7), i < 5, "{owner:#x}");
        }
    }
}
