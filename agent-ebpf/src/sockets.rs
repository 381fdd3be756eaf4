//! Sockets: what the kernel says about one, its storage, and looking one up.

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
    /// It accepts connections.
    pub const LISTEN: u32 = 10;
}

/// `SOCK_STREAM`, `SOCK_DGRAM` of socket(2).
pub const STREAM: u32 = 1;
/// See [`STREAM`].
pub const DGRAM: u32 = 2;

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
    let state = unsafe {
        bpf_sk_storage_get(
            (&raw const SOCKETS).cast_mut().cast(),
            sk.cast(),
            core::ptr::null_mut(),
            flags,
        )
    }
    .cast::<SockState>();
    (!state.is_null()).then_some(state)
}

/// Returns the peer of a connected socket: mapped address, port in host order.
///
/// Written word by word: the verifier refuses a copy of the socket's fields.
#[inline(always)]
pub fn peer(sk: *mut bpf_sock) -> ([u32; 4], u16) {
    // SAFETY: a full socket.
    unsafe {
        let port = u16::from_be((*sk).dst_port);
        if (*sk).family == 2 {
            ([0, 0, MAPPED, (*sk).dst_ip4], port)
        } else {
            ([(*sk).dst_ip6[0], (*sk).dst_ip6[1], (*sk).dst_ip6[2], (*sk).dst_ip6[3]], port)
        }
    }
}

/// The third word of a mapped address as it lies in memory: 0x0000ffff in network order.
pub const MAPPED: u32 = 0x0000_ffff_u32.to_be();

/// An address as four words as they lie in memory.
#[inline(always)]
pub fn words(addr: &[u8; 16]) -> [u32; 4] {
    [
        u32::from_ne_bytes([addr[0], addr[1], addr[2], addr[3]]),
        u32::from_ne_bytes([addr[4], addr[5], addr[6], addr[7]]),
        u32::from_ne_bytes([addr[8], addr[9], addr[10], addr[11]]),
        u32::from_ne_bytes([addr[12], addr[13], addr[14], addr[15]]),
    ]
}

/// The reverse of [`words`].
#[inline(always)]
pub fn bytes(w: [u32; 4]) -> [u8; 16] {
    let (a, b, c, d) = (w[0].to_ne_bytes(), w[1].to_ne_bytes(), w[2].to_ne_bytes(), w[3].to_ne_bytes());
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
    ]
}

/// Says whether an address is IPv4, mapped.
#[inline(always)]
pub fn is_v4(w: &[u32; 4]) -> bool {
    w[0] == 0 && w[1] == 0 && w[2] == MAPPED
}

/// A tuple to look a socket up with: `local` is the end whose socket is wanted.
///
/// Shape: 36 bytes, network order, as `struct bpf_sock_tuple`; 12 of them for IPv4.
pub struct Tuple {
    data: [u32; 9],
    len: u32,
}

impl Tuple {
    /// Makes it from addresses as words and ports in host order.
    #[inline(always)]
    pub fn new(remote: &[u32; 4], remote_port: u16, local: &[u32; 4], local_port: u16) -> Self {
        // In memory: source port, then destination port.
        let [a, b] = remote_port.to_be_bytes();
        let [c, d] = local_port.to_be_bytes();
        let ports = u32::from_ne_bytes([a, b, c, d]);
        if is_v4(local) {
            Self { data: [remote[3], local[3], ports, 0, 0, 0, 0, 0, 0], len: 12 }
        } else {
            Self {
                data: [
                    remote[0], remote[1], remote[2], remote[3], local[0], local[1], local[2], local[3], ports,
                ],
                len: 36,
            }
        }
    }

    /// For the helpers.
    #[inline(always)]
    pub fn as_ptr(&mut self) -> *mut bpf_sock_tuple {
        self.data.as_mut_ptr().cast()
    }

    /// Bytes of the tuple that count. The verifier wants a constant: compare before the call.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.len == 12
    }
}
