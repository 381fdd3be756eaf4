//! The flow table: flows that no socket is tied to (unconnected UDP, ICMP, raw sockets), and all that pass a
//! workload's device.
//!
//! The owner and the direction of the first packet are part of the key: what one workload may do says
//! nothing about another, and a reply never passes for a request. Entries are not evicted; when the
//! table or the owner's quota is full, new flows are denied, and running ones go on.

use agent_common::{
    flow::proto,
    layout::{FlowKey, FlowState, TICK_SHIFT, idle_limit, ways},
    parse::tcp,
};
use aya_ebpf::{
    btf_maps::HashMap,
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns},
};

use crate::{
    atomic,
    maps::{FLOW_QUOTA, FLOWS, NO_PREALLOC},
    policy,
    sockets::{self, Addr},
};

/// What the table says about a flow.
#[derive(Clone, Copy, PartialEq)]
pub enum Known {
    /// Its first packet was let pass under this epoch, until this boot second; 0 = as long as the epoch.
    Live(u32),
    /// It is running, but was judged under another epoch or its rule ran out: judge it again.
    Stale,
    /// Nothing.
    No,
}

/// What [`find`] finds.
pub struct Found {
    /// What the table says about the flow.
    pub known: Known,
    /// The packet goes against the direction of its flow.
    pub reply: bool,
}

/// A key whose direction is still to be set. Ports in host order.
#[inline(always)]
pub fn key(owner: u64, local: &Addr, peer: &Addr, local_port: u16, peer_port: u16, proto: u8) -> FlowKey {
    let mut key = FlowKey {
        owner,
        local_addr: [0; 16],
        peer_addr: [0; 16],
        local_port,
        peer_port,
        proto,
        direction: 0,
        reserved: [0; 2],
    };
    sockets::store(&mut key.local_addr, *local);
    sockets::store(&mut key.peer_addr, *peer);
    key
}

/// Looks up the flow of a packet that leaves its owner or enters it, and notes the packet. Afterwards the key
/// has the direction of that flow, or of the one that the packet begins.
#[inline(always)]
pub fn find(key: &mut FlowKey, epoch: u32, leaves: bool, tcp_flags: u8, echo: Option<u8>) -> Found {
    // What asks is no answer, whatever its ports or its identifier are.
    if !asks(key.proto, tcp_flags, echo) {
        let known = see(key, epoch, leaves, tcp_flags, true);
        // And an answer to an echo is part of nothing else.
        if !matches!(known, Known::No) || echo == Some(0) {
            return Found { known, reply: true };
        }
    }
    Found { known: see(key, epoch, leaves, tcp_flags, false), reply: false }
}

/// Says whether a packet can only be the first of a flow.
#[inline(always)]
pub const fn asks(protocol: u8, tcp_flags: u8, echo: Option<u8>) -> bool {
    match protocol {
        proto::TCP => tcp_flags & (tcp::SYN | tcp::ACK) == tcp::SYN,
        _ => matches!(echo, Some(8)),
    }
}

/// Looks up the flow in which a packet is a reply, or is not, and notes the packet.
#[inline(always)]
pub fn see(key: &mut FlowKey, epoch: u32, leaves: bool, tcp_flags: u8, reply: bool) -> Known {
    key.direction = u8::from(leaves == reply);
    let key: &FlowKey = key;
    let Some(state) = FLOWS.get_ptr_mut(key) else {
        return Known::No;
    };
    // SAFETY: a live element.
    unsafe {
        let known = note(state, epoch, reply);
        if key.proto == proto::TCP && !matches!(known, Known::No) {
            note_segment(state, reply, tcp_flags);
        }
        known
    }
}

/// Notes a segment of TCP, where no socket keeps the state of its connection.
///
/// A connection that was answered may be silent for longer than other flows, until one end says that it is
/// over. Only the answer to a SYN makes it one.
///
/// # Safety
///
/// `state` is a live element of the table.
#[inline(always)]
unsafe fn note_segment(state: *mut FlowState, reply: bool, tcp_flags: u8) {
    // SAFETY: the caller's promise; as in `note`.
    unsafe {
        if tcp_flags & (tcp::FIN | tcp::RST) != 0 {
            (*state).ways = (*state).ways.min(ways::BOTH);
        } else if reply && tcp_flags & tcp::SYN != 0 {
            (*state).ways = ways::CONNECTION;
        }
    }
}

/// Says whether a flow was let pass under this epoch and is not over, in either direction. Notes nothing: who asks is no
/// packet of it.
#[inline(always)]
pub fn is_live(key: &mut FlowKey, epoch: u32) -> bool {
    let mut live = false;
    for direction in [0, 1] {
        key.direction = direction;
        let key: &FlowKey = key;
        if let Some(state) = FLOWS.get_ptr_mut(key) {
            // SAFETY: a live element, read only.
            let FlowState { epoch: judged, valid_until, last_seen, ways, .. } = unsafe { *state };
            live |= judged == epoch
                && tick().wrapping_sub(last_seen) <= idle_limit(ways)
                && (valid_until == 0 || policy::boot_seconds() < valid_until);
        }
    }
    live
}

/// # Safety
///
/// `state` is a live element of the table.
#[inline(always)]
unsafe fn note(state: *mut FlowState, epoch: u32, reply: bool) -> Known {
    let now = tick();
    // SAFETY: the caller's promise; fields are written whole, and a lost update costs a tick of idle time.
    unsafe {
        let idle = now.wrapping_sub((*state).last_seen);
        if idle > idle_limit((*state).ways) {
            return Known::No;
        }
        if idle != 0 {
            (*state).last_seen = now;
        }
        if reply && (*state).ways == ways::ONE {
            (*state).ways = ways::BOTH;
        }
        let valid_until = (*state).valid_until;
        if (*state).epoch != epoch || (valid_until != 0 && policy::boot_seconds() >= valid_until) {
            return Known::Stale;
        }
        Known::Live(valid_until)
    }
}

/// Records that a flow may pass under `epoch`. False: no room, the flow must be denied.
#[inline(never)]
pub fn record(key: &FlowKey, epoch: u32, valid_until: u32, peer_cgroup: u64) -> bool {
    let quota = policy::settings(epoch & 1).map_or(0, |s| s.flow_quota);
    let state = FlowState { epoch, valid_until, last_seen: tick(), ways: ways::ONE, peer_cgroup };
    if let Some(old) = FLOWS.get_ptr_mut(key) {
        // SAFETY: a live element. The verdict's fields are written one by one, so the epoch comes last:
        // until then the entry is stale and the packet is judged again.
        unsafe {
            (*old).valid_until = valid_until;
            (*old).last_seen = state.last_seen;
            (*old).peer_cgroup = peer_cgroup;
            core::ptr::write_volatile(&raw mut (*old).epoch, epoch);
        }
        return true;
    }
    takes_room(key.owner, quota) && FLOWS.insert(key, state, 0).is_ok()
}

/// Counts one more entry of an owner. False: it has as many as it may have.
#[inline(always)]
pub fn takes_room(owner: u64, quota: u32) -> bool {
    takes_room_in(&FLOW_QUOTA, owner, quota)
}

/// Counts one more entry of an owner in a map of counts. False: it has as many as it may have.
#[inline(always)]
pub fn takes_room_in<const N: usize>(
    counts: &'static HashMap<u64, u64, N, NO_PREALLOC>,
    owner: u64,
    quota: u32,
) -> bool {
    match counts.get_ptr_mut(owner) {
        Some(used) => {
            // Below zero is what two that give back at once may leave behind.
            // SAFETY: a live u64.
            if unsafe { core::ptr::read_volatile(used) } as i64 >= i64::from(quota) {
                return false;
            }
            // SAFETY: as above.
            unsafe { atomic::add(used, 1) };
            true
        }
        // The first of this owner. Another CPU may be first as well: one entry goes uncounted
        // until the next sweep.
        None => counts.insert(owner, 1, 0).is_ok(),
    }
}

/// Removes a flow. The agent's sweep sets the owner's quota right.
#[inline(always)]
pub fn forget(key: &FlowKey) {
    // Somebody else has removed it, if this fails.
    let _ = FLOWS.remove(key);
}

/// Removes a flow unless its other end is a socket of `peer_cgroup`. The agent's sweep sets the owner's
/// quota right.
#[inline(always)]
pub fn forget_unless(key: &FlowKey, peer_cgroup: u64) {
    // SAFETY: a live element, read only.
    if FLOWS.get_ptr_mut(key).is_some_and(|state| unsafe { (*state).peer_cgroup } != peer_cgroup) {
        forget(key);
    }
}

/// The kernel's count of timer interrupts.
#[inline(always)]
pub fn jiffies64() -> u64 {
    // SAFETY: no arguments, no state.
    unsafe { bpf_jiffies64() }
}

/// Its lower half.
#[inline(always)]
pub fn jiffies() -> u32 {
    jiffies64() as u32
}

/// The clock of the table.
#[inline(always)]
pub fn tick() -> u32 {
    // SAFETY: no arguments, no state.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32
}
