//! What a socket remembers: one verdict in its own storage, about its connection or its last flow.
//!
//! It is the fast path of nearly every packet. It can be evicted by nobody, is tied to the socket, the
//! peer, both ports and the epoch, and dies with the socket.

use core::ptr;

use agent_common::{
    cached::{self, Tuple},
    flow::proto,
    id::BootSeconds,
    layout::SockState,
    parse::{plain::Plain, tcp},
};
use aya_ebpf::bindings::{__sk_buff, bpf_sock};

use crate::{
    flows, globals, headers,
    judge::Case,
    policy,
    sockets::{self, Addr, state},
};

/// Says whether a packet passes by what its socket remembers; else it is to be judged.
#[inline(always)]
pub fn passes(skb: *mut __sk_buff, epoch: u32, leaves: bool) -> bool {
    // The storage helper refuses what is no full socket, so nobody else need be asked: on this path each
    // call counts.
    let Some(sk) = sockets::any(skb) else {
        return false;
    };
    let Some(stored) = remembered(sk, epoch) else {
        return false;
    };
    let (peer_addr, peer_port) = sockets::peer(sk);
    match (stored.proto, peer_port) {
        // Only a SYN-ACK leaves a listener, and only in answer to a SYN that its door let in.
        (proto::TCP, 0) if leaves => is_in(sk, state::LISTEN),
        (proto::TCP, 0) => listener_knows(skb, stored, epoch),
        // Every inbound packet of a connection is its peer's, so nothing of it is read; an outbound one may be
        // translated by now, and go elsewhere. All that a socket sends while it waits for the answer to its SYN
        // are SYNs, and those begin one.
        (proto::TCP, _) => {
            holds(stored, &Tuple { peer_addr, peer_port, local_port: 0 }, epoch)
                && (!leaves
                    || headers::goes_to(skb, &peer_addr, peer_port)
                        && (!is_in(sk, state::SYN_SENT) || cached::just_asked(stored, flows::jiffies())))
        }
        // The flow table keeps the flows of a socket that is not connected, and must see them.
        (proto::UDP, 0) => cached::is_fresh(stored, flows::jiffies()) && knows_datagram(skb, stored, epoch, leaves),
        // An inbound datagram reached a connected socket because it matches the socket's peer; an outbound
        // one can carry another address, so it is read.
        (proto::UDP, _) if leaves => knows_datagram(skb, stored, epoch, leaves),
        (proto::UDP, _) => {
            // SAFETY: a socket of the packet.
            let local_port = unsafe { (*sk).src_port } as u16;
            holds(stored, &Tuple { peer_addr, peer_port, local_port }, epoch)
        }
        _ => false,
    }
}

#[inline(always)]
fn is_in(sk: *mut bpf_sock, state: u32) -> bool {
    // SAFETY: a socket of the packet.
    unsafe { (*sk).state == state }
}

/// The packet that ends a handshake comes to the listener: it belongs to the SYN that was judged last, or
/// it is judged itself. A SYN is always judged, because its port may have changed hands.
#[inline(always)]
fn listener_knows(skb: *mut __sk_buff, stored: &SockState, epoch: u32) -> bool {
    match headers::plain(skb) {
        Some(plain) if plain.proto == proto::TCP && plain.tcp_flags & tcp::SYN == 0 => {
            holds(stored, &Tuple { local_port: 0, ..seen_from_here(&plain, false) }, epoch)
        }
        _ => false,
    }
}

#[inline(always)]
fn knows_datagram(skb: *mut __sk_buff, stored: &SockState, epoch: u32, leaves: bool) -> bool {
    match headers::plain(skb) {
        Some(plain) if plain.proto == proto::UDP => holds(stored, &seen_from_here(&plain, leaves), epoch),
        _ => false,
    }
}

/// A socket's storage, if there is a verdict of this epoch in it.
#[inline(always)]
fn remembered(sk: *mut bpf_sock, epoch: u32) -> Option<&'static SockState> {
    // SAFETY: storage of a socket that the packet keeps alive.
    let stored = unsafe { &*sockets::stored(sk)? };
    (stored.epoch == epoch).then_some(stored)
}

#[inline(always)]
fn holds(stored: &SockState, flow: &Tuple, epoch: u32) -> bool {
    cached::holds(stored, flow, epoch, || BootSeconds(policy::boot_seconds()), &globals::keys())
}

#[inline(always)]
const fn seen_from_here(plain: &Plain, leaves: bool) -> Tuple {
    if leaves {
        Tuple { peer_addr: plain.dst, peer_port: plain.dst_port, local_port: plain.src_port }
    } else {
        Tuple { peer_addr: plain.src, peer_port: plain.src_port, local_port: plain.dst_port }
    }
}

/// Lets a socket remember that a flow may pass; the seal is stored last.
///
/// # Safety
///
/// `stored` is the storage of a live socket.
#[inline(always)]
pub unsafe fn remember(stored: *mut SockState, case: &Case, valid_until: u32) {
    let (local_port, seen) = if case.proto == proto::UDP { (case.local_port, flows::jiffies()) } else { (0, 0) };
    // SAFETY: the caller's promise.
    unsafe { note(stored, case, local_port, valid_until, seen) };
}

/// Lets a TCP socket remember that it may call, before its SYN leaves.
///
/// # Safety
///
/// As [`remember`].
#[inline(always)]
pub unsafe fn remember_call(stored: *mut SockState, case: &Case, valid_until: u32) {
    // SAFETY: the caller's promise.
    unsafe { note(stored, case, 0, valid_until, cached::asked_at(flows::jiffies())) };
}

/// # Safety
///
/// As [`remember`].
#[inline(always)]
unsafe fn note(stored: *mut SockState, case: &Case, local_port: u16, valid_until: u32, seen: u32) {
    let flow = Tuple { peer_addr: case.peer_addr, peer_port: case.peer_port, local_port };
    let seal = cached::seal(&flow, case.epoch, valid_until, seen, &globals::keys());
    // SAFETY: the caller's promise. Field by field, so that what is known about the maker stays.
    unsafe {
        forget(stored);
        (*stored).peer_addr[0] = flow.peer_addr[0];
        (*stored).peer_addr[1] = flow.peer_addr[1];
        (*stored).peer_port = flow.peer_port;
        (*stored).local_port = flow.local_port;
        (*stored).epoch = case.epoch;
        (*stored).valid_until = valid_until;
        (*stored).seen = seen;
        (*stored).proto = case.proto;
        ptr::write_volatile(&raw mut (*stored).seal, seal);
    }
}

/// Lets a socket forget its verdict.
///
/// # Safety
///
/// As [`remember`].
#[inline(always)]
pub unsafe fn forget(stored: *mut SockState) {
    // SAFETY: the caller's promise.
    unsafe { ptr::write_volatile(&raw mut (*stored).seal, 0) };
}

/// Lets a socket forget its verdict if that is about this peer.
///
/// # Safety
///
/// As [`remember`].
#[inline(always)]
pub unsafe fn forget_peer(stored: *mut SockState, addr: &Addr, port: u16) {
    // SAFETY: the caller's promise.
    unsafe {
        if (*stored).peer_port == port && (*stored).peer_addr[0] == addr[0] && (*stored).peer_addr[1] == addr[1] {
            forget(stored);
        }
    }
}
