//! Fragments at a device. Only the first one says which flow a datagram belongs to; the others pass behind it, each
//! where the one before has ended.
//!
//! What was approved stands in the flow table, under an owner of its own, for at most
//! [`FRAGMENTS_TICKS`](agent_common::layout::FRAGMENTS_TICKS) and under the epoch of the first one. A fragment that is
//! not the next one (it overlaps, comes again, or comes before its turn) ends the datagram: none of it passes any
//! more, and its number may not be used again until that time is over. So nothing is ever put together from fragments
//! of which only some were judged, whatever the receiver makes of an overlap.

use agent_common::{
    addr,
    layout::{FRAGMENTS_TICKS, FlowKey, FlowState, fragments_owner, ways},
    parse::Piece,
};
use aya_ebpf::bindings::__sk_buff;

use crate::{
    atomic, flows, frames,
    judge::Case,
    maps::{FLOW_QUOTA, FLOWS},
    policy,
};

/// Stands in the place of the next offset once a datagram has ended.
const OVER: u64 = u64::MAX;
/// IANA "Assigned Internet Protocol Numbers": the fragment header of IPv6.
const FRAGMENT: u8 = 44;
/// linux/bpf.h: only if there is no such entry.
const BPF_NOEXIST: u64 = 1;
/// Of so many flows one may be a datagram in pieces.
const SHARE: u32 = 8;

/// Looks at a first fragment before it is judged. False: its datagram has begun already, and has ended with this.
#[inline(never)]
pub fn begins(skb: *mut __sk_buff, case: &Case, sharer: u64) -> bool {
    // Before anything else is on the stack, which is short.
    let mut piece = Piece::WHOLE;
    frames::ew_read_piece(skb, &raw mut piece) != 0 && begins_at(case, sharer, &piece)
}

#[inline(never)]
fn begins_at(case: &Case, sharer: u64, piece: &Piece) -> bool {
    let key = &key(case, sharer, piece);
    let Some(state) = FLOWS.get_ptr_mut(key) else {
        return true;
    };
    // SAFETY: a live element.
    unsafe {
        if is_fresh(state, case.epoch) {
            core::ptr::write_volatile(&raw mut (*state).peer_cgroup, OVER);
            return false;
        }
    }
    remove(key);
    true
}

/// Lets those behind a first fragment pass. False: there is no room, or another one is in its place.
#[inline(never)]
pub fn approve(skb: *mut __sk_buff, case: &Case, sharer: u64) -> bool {
    // Before anything else is on the stack, which is short.
    let mut piece = Piece::WHOLE;
    frames::ew_read_piece(skb, &raw mut piece) != 0 && approve_at(case, sharer, &piece)
}

#[inline(never)]
fn approve_at(case: &Case, sharer: u64, piece: &Piece) -> bool {
    let key = &key(case, sharer, piece);
    let quota = policy::settings(case.epoch & 1).map_or(0, |s| s.flow_quota) / SHARE;
    let state = FlowState {
        epoch: case.epoch,
        valid_until: 0,
        last_seen: flows::tick(),
        ways: ways::ONE,
        peer_cgroup: u64::from(piece.end),
    };
    flows::takes_room(key.owner, quota) && FLOWS.insert(key, state, BPF_NOEXIST).is_ok()
}

/// Says whether a later fragment is the next one of a datagram that passes.
#[inline(never)]
pub fn follows(skb: *mut __sk_buff, case: &Case, sharer: u64) -> bool {
    // Before anything else is on the stack, which is short.
    let mut piece = Piece::WHOLE;
    frames::ew_read_piece(skb, &raw mut piece) != 0 && follows_at(case, sharer, &piece)
}

#[inline(never)]
fn follows_at(case: &Case, sharer: u64, piece: &Piece) -> bool {
    let key = &key(case, sharer, piece);
    let Some(state) = FLOWS.get_ptr_mut(key) else {
        return false;
    };
    let next = if piece.more != 0 { u64::from(piece.end) } else { OVER };
    // SAFETY: a live element.
    unsafe {
        if !is_fresh(state, case.epoch) {
            return false;
        }
        // Of two at the same place one passes.
        if !atomic::replace(&raw mut (*state).peer_cgroup, u64::from(piece.begin), next) {
            core::ptr::write_volatile(&raw mut (*state).peer_cgroup, OVER);
            return false;
        }
    }
    if next == OVER {
        remove(key);
    }
    true
}

/// The datagram of a fragment: RFC 791, section 3.2, by addresses, number and protocol; RFC 8200, section 4.5, without
/// the protocol.
#[inline(always)]
fn key(case: &Case, sharer: u64, piece: &Piece) -> FlowKey {
    let proto = if addr::v4(&case.local_addr).is_some() { case.proto } else { FRAGMENT };
    let owner = fragments_owner(case.ifindex, sharer);
    let (high, low) = ((piece.id >> 16) as u16, piece.id as u16);
    let mut key = flows::key(owner, &case.local_addr, &case.peer_addr, high, low, proto);
    key.direction = u8::from(case.leaves);
    key
}

/// # Safety
///
/// `state` is a live element of the table.
#[inline(always)]
unsafe fn is_fresh(state: *mut FlowState, epoch: u32) -> bool {
    // SAFETY: the caller's promise; both are written once.
    unsafe { (*state).epoch == epoch && flows::tick().wrapping_sub((*state).last_seen) < FRAGMENTS_TICKS }
}

/// Removes an entry and gives its room back; if somebody else is faster, they do.
#[inline(always)]
fn remove(key: &FlowKey) {
    if FLOWS.remove(key).is_ok()
        && let Some(used) = FLOW_QUOTA.get_ptr_mut(key.owner)
    {
        // SAFETY: a live u64. The agent's sweep may have counted without this one: it sets that right.
        unsafe { atomic::add(used, u64::MAX) };
    }
}
