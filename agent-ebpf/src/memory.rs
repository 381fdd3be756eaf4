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
    policy::BootClock,
    sockets::{self, state},
};

/// Says whether a packet passes by what its socket remembers; else it is to be judged.
#[inline(always)]
pub fn passes(skb: *mut __sk_buff, epoch: u32, leaves: bool) -> bool {
    let Some(sk) = sockets::full(skb) else {
        return false;
    };
    // SAFETY: a full socket.
    let (protocol, kind) = unsafe { ((*sk).protocol, (*sk).type_) };
    if protocol == u32::from(proto::TCP) && kind == sockets::STREAM {
        // SAFETY: as above.
        let listens = unsafe { (*sk).state } == state::LISTEN;
        return match (listens, leaves) {
            (false, _) => knows_connection(sk, epoch),
            // Only a SYN-ACK leaves a listener, and only in answer to a SYN that its door let in.
            (true, true) => true,
            (true, false) => listener_knows(skb, sk, epoch),
        };
    }
    if protocol == u32::from(proto::UDP) && kind == sockets::DGRAM {
        // An inbound datagram reached a connected socket because it matches the socket's peer; an outbound
        // one can carry another address, so it is read.
        // SAFETY: as above.
        let connected = unsafe { (*sk).dst_port } != 0;
        return if connected && !leaves {
            knows_connection(sk, epoch)
        } else {
            knows_datagram(skb, sk, epoch, leaves, connected)
        };
    }
    false
}

/// A connected socket whose packets can be its peer's only: nothing of the packet is read.
#[inline(always)]
fn knows_connection(sk: *mut bpf_sock, epoch: u32) -> bool {
    let Some(stored) = remembered(sk, epoch) else {
        return false;
    };
    let (peer_addr, peer_port) = sockets::peer(sk);
    // SAFETY: a full socket.
    let flow = Tuple { peer_addr, peer_port, local_port: unsafe { (*sk).src_port } as u16 };
    peer_port != 0 && holds(stored, &flow, epoch)
}

/// The packet that ends a handshake comes to the listener: it belongs to the SYN that was judged last, or
/// it is judged itself. A SYN is always judged, because its port may have changed hands.
#[inline(always)]
fn listener_knows(skb: *mut __sk_buff, sk: *mut bpf_sock, epoch: u32) -> bool {
    let Some(stored) = remembered(sk, epoch) else {
        return false;
    };
    match headers::plain(skb) {
        Some(plain) if plain.proto == proto::TCP && plain.tcp_flags & tcp::SYN == 0 => {
            holds(stored, &seen_from_here(&plain, false), epoch)
        }
        _ => false,
    }
}

#[inline(always)]
fn knows_datagram(skb: *mut __sk_buff, sk: *mut bpf_sock, epoch: u32, leaves: bool, connected: bool) -> bool {
    let Some(stored) = remembered(sk, epoch) else {
        return false;
    };
    // The flow table keeps the flows of a socket that is not connected, and must see them.
    if !connected && !cached::is_fresh(stored, flows::jiffies()) {
        return false;
    }
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
    cached::holds(stored, flow, epoch, now, &globals::keys())
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
    let flow = Tuple { peer_addr: case.peer_addr, peer_port: case.peer_port, local_port: case.local_port };
    let seen = if case.proto == proto::UDP { flows::jiffies() } else { 0 };
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

#[inline(always)]
fn now() -> BootSeconds {
    use agent_common::decide::Clock as _;
    BootClock.boot_seconds()
}
