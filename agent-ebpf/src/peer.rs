//! The other end: who is it?
//!
//! On the same host and network namespace the peer is a socket and has a cgroup: certain. Elsewhere it
//! is an address, and the ranges of the policy's externals say what it stands for.

use agent_common::{
    flow::proto,
    id::IdentityId,
    layout::{AddrEntry, HOST_OWNER, KnownBy, PrefixKey, addr_flags},
};
use aya_ebpf::{
    bindings::bpf_sock,
    helpers::generated::{bpf_map_lookup_elem, bpf_sk_cgroup_id, bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release},
};

use crate::{
    maps::{ADDR_EXT, ADDR_OWNER},
    sockets::{self, Addr, CURRENT_NETNS, Tuple, state},
    who,
};

/// The other end as this end believes it to be.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Peer {
    /// Identity.
    pub id: IdentityId,
    /// How it is known.
    pub known_by: KnownBy,
    /// The address may have names by DNS: no workload is known to be there.
    pub is_outside: bool,
    /// Zero: see [`crate::judge::Case`].
    reserved: [u8; 6],
}

impl Peer {
    /// Nobody that is known.
    pub const UNKNOWN: Self = Self::new(IdentityId::UNKNOWN, KnownBy::Nothing);

    /// Somebody.
    #[inline(always)]
    pub const fn new(id: IdentityId, known_by: KnownBy) -> Self {
        Self { id, known_by, is_outside: false, reserved: [0; 6] }
    }

    /// Somebody of whom nothing but the address is known, and what that stands for.
    #[inline(always)]
    const fn outside(id: IdentityId, known_by: KnownBy) -> Self {
        Self { is_outside: true, ..Self::new(id, known_by) }
    }
}

/// What a look-up of a socket found.
pub struct Found {
    /// Cgroup of the socket; 0 = not known at this hook.
    pub cgroup: u64,
    /// It is a TCP listener.
    pub listens: bool,
}

/// Finds the socket at the `local` end of a tuple, in the network namespace of the packet or the caller.
#[inline(always)]
pub fn find(
    ctx: *mut core::ffi::c_void,
    protocol: u8,
    tuple: &mut Tuple,
    cgroup_of: impl FnOnce(*mut bpf_sock) -> u64,
) -> Option<Found> {
    find_in(ctx, CURRENT_NETNS, protocol, tuple, cgroup_of)
}

/// As [`find`], in a network namespace by its id in that of the packet.
#[inline(always)]
pub fn find_in(
    ctx: *mut core::ffi::c_void,
    netns: u64,
    protocol: u8,
    tuple: &mut Tuple,
    cgroup_of: impl FnOnce(*mut bpf_sock) -> u64,
) -> Option<Found> {
    // The length must be a constant for the verifier, hence the four calls.
    // SAFETY: the helpers read the tuple, and every socket found is released below.
    let sk = unsafe {
        match (protocol, tuple.is_v4()) {
            (proto::TCP, true) => bpf_sk_lookup_tcp(ctx, tuple.as_ptr(), 12, netns, 0),
            (proto::TCP, false) => bpf_sk_lookup_tcp(ctx, tuple.as_ptr(), 36, netns, 0),
            (proto::UDP, true) => bpf_sk_lookup_udp(ctx, tuple.as_ptr(), 12, netns, 0),
            (proto::UDP, false) => bpf_sk_lookup_udp(ctx, tuple.as_ptr(), 36, netns, 0),
            _ => return None,
        }
    };
    if sk.is_null() {
        return None;
    }
    // SAFETY: not null.
    let listens = protocol == proto::TCP && unsafe { (*sk).state } == state::LISTEN;
    let cgroup = cgroup_of(sk);
    // SAFETY: taken above, released once.
    unsafe { bpf_sk_release(sk.cast()) };
    Some(Found { cgroup, listens })
}

/// Says whether somebody listens for TCP at an address, in a network namespace by its id in that of the packet.
#[inline(always)]
pub fn listens(ctx: *mut core::ffi::c_void, netns: u64, addr: &Addr, port: u16, remote: &Addr) -> bool {
    // Remote port 0 matches no connection, so only a listener can be found.
    let mut tuple = Tuple::new(remote, 0, addr, port);
    find_in(ctx, netns, proto::TCP, &mut tuple, |_| 0).is_some()
}

/// The cgroup of a looked-up socket, where the helper exists: cgroup_skb.
#[inline(always)]
pub fn cgroup_by_helper(sk: *mut bpf_sock) -> u64 {
    // SAFETY: a referenced full socket.
    unsafe { bpf_sk_cgroup_id(sk.cast()) }
}

/// The cgroup of a looked-up socket from its storage: where that helper is not. 0 = older than the agent.
#[inline(always)]
pub fn cgroup_by_storage(sk: *mut bpf_sock) -> u64 {
    // SAFETY: storage of a referenced socket.
    sockets::stored(sk).map_or(0, |s| unsafe { (*s).cgroup })
}

/// The identity of a socket on this host by its cgroup.
#[inline(always)]
pub fn by_cgroup(cgroup: u64, side: u32) -> Peer {
    // Who owns the peer's socket is not known here, so a workload narrowed by uid is its cgroup's.
    let slot = who::slot_of(cgroup, || u32::MAX, side);
    Peer::new(slot.id, KnownBy::Socket)
}

/// The identity of an address: that of the workload of this host which has it, else the longest range of an
/// external, else `world`.
#[inline(always)]
pub fn by_address(addr: &Addr, side: u32) -> Peer {
    if let Some(owner) = owner_of(addr).filter(|&owner| owner != HOST_OWNER) {
        return Peer::new(by_cgroup(owner, side).id, KnownBy::Address);
    }
    let Some(trie) = ADDR_EXT.get(side) else {
        return Peer::UNKNOWN;
    };
    // A `PrefixKey`, by words.
    let (a, b) = sockets::halves(addr[0]);
    let (c, d) = sockets::halves(addr[1]);
    let key: [u32; 5] = [128, a, b, c, d];
    const _: () = assert!(size_of::<[u32; 5]>() == size_of::<PrefixKey>());
    // SAFETY: an inner map of `addr_ext`; its values are not written while their side is used.
    let entry = unsafe {
        bpf_map_lookup_elem(core::ptr::from_ref(trie).cast_mut().cast(), core::ptr::from_ref(&key).cast())
            .cast::<AddrEntry>()
            .as_ref()
    };
    match entry {
        Some(entry) if entry.flags & addr_flags::LABELLED != 0 => Peer::new(entry.id, KnownBy::Address),
        Some(entry) => Peer::outside(entry.id, KnownBy::Address),
        None => Peer::outside(IdentityId::WORLD, KnownBy::World),
    }
}

/// A cgroup of the workload of this host that has an address; 0 if that is no one workload; [`HOST_OWNER`].
#[inline(always)]
pub fn owner_of(addr: &Addr) -> Option<u64> {
    // Before Linux 6.2 a key is on the stack or in a map, and nowhere else.
    let key = *addr;
    // SAFETY: a word that the agent stores whole.
    unsafe { ADDR_OWNER.get(key) }.copied()
}
