//! What is remembered about a flow: in the socket, or in the flow table.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

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
/// INVARIANT: the verdict is an allow and `seal` was made by [`crate::cached::seal`] over the other
/// fields of the verdict. Two CPUs that write at once leave a seal that fits neither, and the next
/// packet is decided again.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct SockState {
    /// Peer of the cached verdict.
    pub peer_addr: [u8; 16],
    /// Its port, host order.
    pub peer_port: u16,
    /// Local port, host order.
    pub local_port: u16,
    /// Epoch under which it was made.
    pub epoch: u32,
    /// Boot second until which it holds; 0 = as long as the epoch.
    pub valid_until: u32,
    /// Role of this socket in the cached flow, a [`Role`].
    pub role: u8,
    /// Role of the socket for its whole life, once known; of a socket that is not TCP, whether it has
    /// been called.
    pub sticky_role: u8,
    /// IP protocol.
    pub proto: u8,
    /// 0 = nothing about the maker below.
    pub maker_known: u8,
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
}
layout!(SockState, size 80, peer_addr @ 0, peer_port @ 16, local_port @ 18, epoch @ 20, valid_until @ 24, role @ 28,
    sticky_role @ 29, proto @ 30, maker_known @ 31, seal @ 32, cgroup @ 40, netns @ 48, pid @ 56, uid @ 60, comm @ 64);

/// Key of `flows`: a flow seen from one end.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct FlowKey {
    /// Cgroup of the local socket: one workload's entries say nothing about another's.
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
    /// Boot second of the newest packet.
    pub last_seen: u32,
    /// 1 = packets went both ways.
    pub both_ways: u32,
}
layout!(FlowState, size 16, epoch @ 0, valid_until @ 4, last_seen @ 8, both_ways @ 12);
