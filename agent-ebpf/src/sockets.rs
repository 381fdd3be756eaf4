//! Sockets: what the kernel says about one, its storage, and looking one up.

pub use agent_common::addr::{Addr, halves, mapped, pair, v4};
use agent_common::layout::SockState;
use aya_ebpf::{
    bindings::{__sk_buff, bpf_sock, bpf_sock_tuple},
    helpers::generated::{bpf_sk_fullsock, bpf_sk_storage_get},
};

use crate::maps::SOCKETS;

/// TCP states of `include/net/tcp_states.h`.
pub mod state {
    /// A connect is under way.
    pub const SYN_SENT: u32 = 2;
    /// It has no connection.
    pub const CLOSE: u32 = 7;
    /// It accepts connections.
    pub const LISTEN: u32 = 10;
}

/// `SOCK_STREAM`, `SOCK_DGRAM` of socket(2).
pub const STREAM: u32 = 1;
/// See [`STREAM`].
pub const DGRAM: u32 = 2;
/// See [`STREAM`].
pub const RAW: u32 = 3;

/// The loopback device has this index in every network namespace.
pub const LOOPBACK: u32 = 1;

/// A look-up in the network namespace of the packet or the caller.
pub const CURRENT_NETNS: u64 = u64::MAX;

/// Returns the full socket of a packet: not a time-wait or request one.
#[inline(always)]
pub fn full(skb: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // SAFETY: fields of the context; the verifier checks both pointers for null.
    unsafe {
        let sk = (*skb).__bindgen_anon_2.sk;
        if sk.is_null() {
            return None;
        }
        let sk = bpf_sk_fullsock(sk);
        (!sk.is_null()).then_some(sk)
    }
}

/// Returns the socket of a packet, of whatever kind: its type and protocol cannot be read.
#[inline(always)]
pub fn any(skb: *mut __sk_buff) -> Option<*mut bpf_sock> {
    // SAFETY: a field of the context.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    (!sk.is_null()).then_some(sk)
}

/// Says whether the agent sends a packet by a socket of its own, to answer for a door.
#[inline(always)]
pub fn answers(skb: *mut __sk_buff) -> bool {
    // SAFETY: storage of a live socket.
    full(skb).and_then(stored).is_some_and(|stored| unsafe { (*stored).answers } != 0)
}

/// Returns the storage of a socket, making it if there is none; `None` if memory is short.
#[inline(always)]
pub fn storage(sk: *mut bpf_sock) -> Option<*mut SockState> {
    get(sk, 1)
}

/// Returns the storage of a socket if there is one.
#[inline(always)]
pub fn stored(sk: *mut bpf_sock) -> Option<*mut SockState> {
    get(sk, 0)
}

#[inline(always)]
fn get(sk: *mut bpf_sock, flags: u64) -> Option<*mut SockState> {
    // SAFETY: a socket the verifier knows, and our own map.
    let state =
        unsafe { bpf_sk_storage_get((&raw const SOCKETS).cast_mut().cast(), sk.cast(), core::ptr::null_mut(), flags) }
            .cast::<SockState>();
    (!state.is_null()).then_some(state)
}

/// Reads an address field of a packet or a shared layout.
#[inline(always)]
pub const fn load(bytes: &[u8; 16]) -> &Addr {
    // SAFETY: every address field of `Packet` and of the layouts with addresses lies at a multiple of 8
    // in a type that is aligned to 8 (asserted below).
    unsafe { &*core::ptr::from_ref(bytes).cast() }
}

/// Writes an address field of a packet or a shared layout.
#[inline(always)]
pub const fn store(bytes: &mut [u8; 16], addr: Addr) {
    // SAFETY: as in `load`.
    unsafe { *core::ptr::from_mut(bytes).cast() = addr }
}

const _: () = {
    use agent_common::{
        layout::{DenyKey, DenyRecord, FlowKey},
        parse::Packet,
    };
    use core::mem::offset_of;
    assert!(align_of::<Packet>() == 8 && offset_of!(Packet, src) % 8 == 0 && offset_of!(Packet, dst) % 8 == 0);
    assert!(align_of::<FlowKey>() == 8 && offset_of!(FlowKey, local_addr) % 8 == 0);
    assert!(offset_of!(FlowKey, peer_addr) % 8 == 0);
    assert!(align_of::<DenyKey>() == 8 && offset_of!(DenyKey, peer_addr) % 8 == 0);
    assert!(align_of::<DenyRecord>() == 8 && offset_of!(DenyRecord, local_addr) % 8 == 0);
    assert!(offset_of!(DenyRecord, peer_addr) % 8 == 0);
};

/// Returns the peer of a connected socket: address, port in host order.
///
/// Both families' fields are read whatever the family is: a choice between two addresses of the socket
/// would be pointer arithmetic, which the verifier refuses.
#[inline(always)]
pub fn peer(sk: *mut bpf_sock) -> (Addr, u16) {
    use core::ptr::read_volatile;
    // SAFETY: a full socket.
    unsafe {
        let port = u16::from_be((*sk).dst_port);
        let v4 = read_volatile(&raw const (*sk).dst_ip4);
        let v6 = [
            pair(read_volatile(&raw const (*sk).dst_ip6[0]), read_volatile(&raw const (*sk).dst_ip6[1])),
            pair(read_volatile(&raw const (*sk).dst_ip6[2]), read_volatile(&raw const (*sk).dst_ip6[3])),
        ];
        (if (*sk).family == AF_INET { mapped(v4) } else { v6 }, port)
    }
}

/// `AF_INET` of socket(2).
const AF_INET: u32 = 2;

/// A tuple to look a socket up with: `local` is the end whose socket is wanted.
///
/// Shape: as `struct bpf_sock_tuple`, network order: 12 bytes that count for IPv4, 36 for IPv6.
pub struct Tuple {
    data: [u64; 5],
    is_v4: bool,
}

impl Tuple {
    /// Makes it; ports in host order.
    #[inline(always)]
    pub fn new(remote: &Addr, remote_port: u16, local: &Addr, local_port: u16) -> Self {
        // In memory: source port, then destination port.
        let [a, b] = remote_port.to_be_bytes();
        let [c, d] = local_port.to_be_bytes();
        let ports = pair(u32::from_ne_bytes([a, b, c, d]), 0);
        match v4(local) {
            Some(local) => Self { data: [pair(halves(remote[1]).1, local), ports, 0, 0, 0], is_v4: true },
            None => Self { data: [remote[0], remote[1], local[0], local[1], ports], is_v4: false },
        }
    }

    /// For the helpers.
    #[inline(always)]
    pub const fn as_ptr(&mut self) -> *mut bpf_sock_tuple {
        self.data.as_mut_ptr().cast()
    }

    /// Says which length counts. The verifier wants a constant: compare before the call.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.is_v4
    }
}
