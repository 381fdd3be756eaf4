//! The answer to a call that a door denies, where the workload gives one. Programs cannot send packets: the agent does.

use agent_common::{
    flow::proto,
    layout::{Hook, ResetRecord},
    parse::{Source as _, tcp},
};
use aya_ebpf::bindings::__sk_buff;

use crate::{headers::Skb, judge::Case, maps::RESETS, sockets};

/// The next header is that of TCP: where IPv6 says so, and how long its header is.
const V6_NEXT: usize = 6;
const V6_BYTES: usize = 40;
/// Where the sequence number is in a header of TCP.
const SEQUENCE: usize = 4;

/// Says whether a packet that was denied is a call which the workload answers.
#[inline(always)]
pub const fn is_due(case: &Case) -> bool {
    case.slot.on_deny != 0
        && !case.leaves
        && case.proto == proto::TCP
        && case.tcp_flags & (tcp::SYN | tcp::ACK | tcp::RST) == tcp::SYN
}

/// Asks the agent for the answer. `ip` is where the IP header begins. No room: the caller hears nothing, as from other
/// doors.
///
/// Global, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_ask_reset(skb: *mut __sk_buff, case: *const Case, ip: u32) -> u32 {
    // SAFETY: the verifier knows the size behind the pointer, and that it may be null.
    let Some(case) = (unsafe { case.as_ref() }) else {
        return 0;
    };
    let Some(sequence) = sequence(skb, ip as usize) else {
        return 0;
    };
    let is_socket = case.hook == Hook::Ingress as u8;
    let stored = if is_socket { sockets::full(skb).and_then(sockets::stored) } else { None };
    // SAFETY: storage of a live socket.
    let netns = stored.map_or(0, |stored| unsafe { (*stored).netns });
    let Some(mut entry) = RESETS.reserve(0) else {
        return 0;
    };
    let record: *mut ResetRecord = entry.as_mut_ptr();
    // SAFETY: reserved for this record and not shared yet.
    unsafe {
        sockets::store(&mut (*record).caller, case.peer_addr);
        sockets::store(&mut (*record).callee, case.local_addr);
        (*record).netns = netns;
        (*record).caller_port = case.peer_port;
        (*record).callee_port = case.local_port;
        (*record).sequence = sequence;
    }
    entry.submit(0);
    1
}

/// Reads the sequence number of a segment. None: there are extension headers, and whoever uses those can wait.
#[inline(always)]
fn sequence(skb: *mut __sk_buff, ip: usize) -> Option<u32> {
    let packet = Skb { skb };
    let (mut first, mut next, mut sequence) = ([0; 1], [0; 1], [0; 4]);
    if !packet.load(ip, &mut first) {
        return None;
    }
    let tcp = match first[0] >> 4 {
        4 => ip + (first[0] & 15) as usize * 4,
        6 if packet.load(ip + V6_NEXT, &mut next) && next[0] == proto::TCP => ip + V6_BYTES,
        _ => return None,
    };
    packet.load(tcp + SEQUENCE, &mut sequence).then_some(u32::from_be_bytes(sequence))
}
