//! What passed a device a moment ago, on each CPU: the fast path of nearly every packet there.
//!
//! A look at the flow table costs more than all else that such a packet needs. What the table said is good for a few
//! jiffies under the same epoch, unless a device changes hands. A slot is of the flow that used it last; whoever is
//! driven out of one asks the table again, so a flood costs time and nothing else.

use agent_common::{
    builtin::DNS_PORT,
    flow::proto,
    parse::{plain::Plain, tcp},
};
use aya_ebpf::{bindings::__sk_buff, helpers::generated::bpf_skb_cgroup_id};

use crate::{
    flows, frames,
    maps::{RECENT, RECENT_TURN},
    policy,
    sockets::Addr,
    who,
};

/// Slots of a CPU, a power of two.
pub const SLOTS: u32 = 1024;

/// So long a slot is good: 64 to 640 ms, by the rate of the kernel's timer interrupt. The table takes no flow for idle
/// within that, and hears of each as often.
const GOOD_JIFFIES: u64 = 64;

/// A packet that passed. Written and read by one program at a time, as those of devices run with softirqs off.
#[repr(C)]
pub struct Recent {
    src: Addr,
    dst: Addr,
    ports: u32,
    /// See [`way`].
    way: u32,
    ifindex: u32,
    /// Boot second; 0 = as long as the epoch.
    valid_until: u32,
    /// See [`standing`].
    standing: u64,
    /// In jiffies.
    at: u64,
    /// Of a packet that leaves: the Ethernet address it may come from.
    hardware: u64,
    /// Of one that leaves: the cgroup whose sockets may send it.
    cgroup: u64,
}

/// Under what a slot was written: the epoch, and how often the agent has dropped all slots. Read it before the table.
#[inline(always)]
pub fn standing() -> u64 {
    // SAFETY: a live element.
    let turn = RECENT_TURN.get_ptr(0).map_or(0, |turn| unsafe { core::ptr::read_volatile(turn) });
    u64::from(turn) << 32 | u64::from(policy::epoch())
}

/// The epoch of a standing.
#[inline(always)]
pub const fn epoch(standing: u64) -> u32 {
    standing as u32
}

/// Says whether an ordinary packet is of a flow that passed here a moment ago.
#[inline(always)]
pub fn passes(skb: *mut __sk_buff, plain: &Plain, standing: u64, leaves: bool, here: bool) -> bool {
    // SAFETY: the context.
    let (way, ifindex) = (way(plain, leaves, here), unsafe { (*skb).ifindex });
    let Some(slot) = slot(plain, way, ifindex) else {
        return false;
    };
    // SAFETY: a live element.
    let slot = unsafe { &*slot };
    slot.standing == standing
        && slot.src[0] == plain.src[0]
        && slot.src[1] == plain.src[1]
        && slot.dst[0] == plain.dst[0]
        && slot.dst[1] == plain.dst[1]
        && slot.ports == ports(plain)
        && slot.way == way
        && slot.ifindex == ifindex
        && !asks_table(plain)
        && flows::jiffies64().wrapping_sub(slot.at) < GOOD_JIFFIES
        && (slot.valid_until == 0 || policy::boot_seconds() < slot.valid_until)
        && (!leaves || frames::comes_from(skb, slot.hardware) && may_send(skb, slot.cgroup))
}

/// Notes that the flow table lets a packet pass, until a boot second; 0 = as long as the epoch.
#[inline(always)]
pub fn note(skb: *mut __sk_buff, plain: &Plain, seen: Seen, valid_until: u32) {
    if asks_table(plain) {
        return;
    }
    let Seen { standing, leaves, here, hardware, cgroup } = seen;
    // SAFETY: the context.
    let (way, ifindex) = (way(plain, leaves, here), unsafe { (*skb).ifindex });
    let Some(slot) = slot(plain, way, ifindex) else {
        return;
    };
    // SAFETY: a live element. Word by word: a copy would be on the stack first.
    unsafe {
        (*slot).src[0] = plain.src[0];
        (*slot).src[1] = plain.src[1];
        (*slot).dst[0] = plain.dst[0];
        (*slot).dst[1] = plain.dst[1];
        (*slot).ports = ports(plain);
        (*slot).way = way;
        (*slot).ifindex = ifindex;
        (*slot).valid_until = valid_until;
        (*slot).standing = standing;
        (*slot).at = flows::jiffies64();
        (*slot).hardware = hardware;
        (*slot).cgroup = cgroup;
    }
}

/// What [`note`] notes beside the packet.
#[derive(Clone, Copy)]
pub struct Seen {
    /// See [`standing`].
    pub standing: u64,
    /// The packet leaves its workload.
    pub leaves: bool,
    /// A process of the host sends it.
    pub here: bool,
    /// Of a packet that leaves, the Ethernet address of the device's other end.
    pub hardware: u64,
    /// Of one that leaves, the cgroup of the device's workload.
    pub cgroup: u64,
}

/// Says whether a frame was sent by no socket of this host, by the kernel, or by one of a cgroup.
#[inline(always)]
pub fn may_send(skb: *mut __sk_buff, cgroup: u64) -> bool {
    // SAFETY: the context.
    let sender = unsafe { bpf_skb_cgroup_id(skb) };
    sender <= who::ROOT_CGROUP || sender == cgroup
}

/// Says whether the table must see a packet: a segment by which a connection begins or ends, and an answer of a
/// resolver, which is read.
#[inline(always)]
const fn asks_table(plain: &Plain) -> bool {
    match plain.proto {
        proto::TCP => plain.tcp_flags & (tcp::SYN | tcp::FIN | tcp::RST) != 0,
        _ => plain.src_port == DNS_PORT,
    }
}

/// The place of a packet. One that crosses two devices has a slot for each.
#[inline(always)]
fn slot(plain: &Plain, way: u32, ifindex: u32) -> Option<*mut Recent> {
    let addrs = plain.src[0] ^ plain.src[1].rotate_left(16) ^ plain.dst[0].rotate_left(32) ^ plain.dst[1];
    let ends = addrs ^ addrs >> 32 ^ u64::from(ports(plain));
    let mixed = (ends ^ u64::from(way) << 32 ^ u64::from(ifindex) << 42).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    RECENT.get_ptr_mut((mixed >> 32) as u32 % SLOTS)
}

#[inline(always)]
const fn ports(plain: &Plain) -> u32 {
    (plain.src_port as u32) << 16 | plain.dst_port as u32
}

/// The protocol and which way a packet goes; never 0, as no protocol that has ports is.
#[inline(always)]
const fn way(plain: &Plain, leaves: bool, here: bool) -> u32 {
    plain.proto as u32 | (leaves as u32) << 8 | (here as u32) << 9
}
