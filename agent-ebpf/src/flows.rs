//! The flow table: flows that no socket is tied to (unconnected UDP, ICMP, raw sockets), and all that pass a
//! workload's device.
//!
//! The owner and the direction of the first packet are part of the key: what one workload may do says
//! nothing about another, and a reply never passes for a request. Entries are not evicted; when the
//! table or the owner's quota is full, new flows are denied, and running ones go on.

use agent_common::{
    layout::{FlowKey, FlowState, TICK_SHIFT, idle_limit, ways},
    parse::tcp,
};
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns};

use crate::{
    atomic,
    maps::{FLOW_QUOTA, FLOWS},
    policy,
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

/// Looks a flow up and notes the packet. `reply`: the packet goes against the flow's direction.
#[inline(always)]
pub fn see(key: &FlowKey, epoch: u32, reply: bool, boot_seconds: impl FnOnce() -> u32) -> Known {
    match FLOWS.get_ptr_mut(key) {
        // SAFETY: a live element.
        Some(state) => unsafe { note(state, epoch, reply, boot_seconds) },
        None => Known::No,
    }
}

/// As [`see`], for a segment of TCP where no socket keeps the state of its connection.
///
/// A connection that was answered may be silent for longer than other flows, until one end says that it is
/// over. Only the answer to a SYN makes it one.
#[inline(always)]
pub fn see_segment(key: &FlowKey, epoch: u32, reply: bool, tcp_flags: u8, boot_seconds: impl FnOnce() -> u32) -> Known {
    let Some(state) = FLOWS.get_ptr_mut(key) else {
        return Known::No;
    };
    // SAFETY: a live element; as in `note`.
    unsafe {
        let known = note(state, epoch, reply, boot_seconds);
        if tcp_flags & (tcp::FIN | tcp::RST | tcp::SYN) != 0 && !matches!(known, Known::No) {
            if tcp_flags & (tcp::FIN | tcp::RST) != 0 {
                (*state).both_ways = (*state).both_ways.min(ways::BOTH);
            } else if reply {
                (*state).both_ways = ways::CONNECTION;
            }
        }
        known
    }
}

/// # Safety
///
/// `state` is a live element of the table.
#[inline(always)]
unsafe fn note(state: *mut FlowState, epoch: u32, reply: bool, boot_seconds: impl FnOnce() -> u32) -> Known {
    let now = tick();
    // SAFETY: the caller's promise; fields are written whole, and a lost update costs a tick of idle time.
    unsafe {
        let idle = now.wrapping_sub((*state).last_seen);
        if idle > idle_limit((*state).both_ways) {
            return Known::No;
        }
        if idle != 0 {
            (*state).last_seen = now;
        }
        if reply && (*state).both_ways == ways::ONE {
            (*state).both_ways = ways::BOTH;
        }
        let valid_until = (*state).valid_until;
        if (*state).epoch != epoch || (valid_until != 0 && boot_seconds() >= valid_until) {
            return Known::Stale;
        }
        Known::Live(valid_until)
    }
}

/// Records that a flow may pass under `epoch`. False: no room, the flow must be denied.
#[inline(never)]
pub fn record(key: &FlowKey, epoch: u32, valid_until: u32, peer_cgroup: u64) -> bool {
    let quota = policy::settings(epoch & 1).map_or(0, |s| s.flow_quota);
    let state = FlowState { epoch, valid_until, last_seen: tick(), both_ways: 0, peer_cgroup };
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
    match FLOW_QUOTA.get_ptr_mut(key.owner) {
        Some(used) => {
            // SAFETY: a live u64.
            if unsafe { core::ptr::read_volatile(used) } >= u64::from(quota) {
                return false;
            }
            // SAFETY: as above.
            unsafe { atomic::add(used, 1) };
        }
        // The first flow of this owner. Another CPU may be first as well: one entry goes uncounted
        // until the next sweep.
        None if FLOW_QUOTA.insert(key.owner, 1, 0).is_err() => return false,
        None => {}
    }
    FLOWS.insert(key, state, 0).is_ok()
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
        // Somebody else has removed it, if this fails.
        let _ = FLOWS.remove(key);
    }
}

/// The kernel's count of timer interrupts.
#[inline(always)]
pub fn jiffies() -> u32 {
    // SAFETY: no arguments, no state.
    unsafe { bpf_jiffies64() as u32 }
}

#[inline(always)]
fn tick() -> u32 {
    // SAFETY: no arguments, no state.
    (unsafe { bpf_ktime_get_coarse_ns() } >> TICK_SHIFT) as u32
}
