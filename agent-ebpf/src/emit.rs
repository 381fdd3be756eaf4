//! A denial -> counters and, for the first of its key, a record in the ring. No verdict depends on it.
//!
//! Every denial adds one to `Denied` and one to exactly one of `Emitted`, `Repeated`, `Folded`, `Ring`.

use core::mem::MaybeUninit;

use agent_common::{
    id::{IdentityId, RuleNumber},
    layout::{DenyCounter, DenyKey, DenyRecord, DenyStat, LAYOUT_VERSION, record_flags},
    verdict::{Decision, Reason, Verdict},
};
use aya_ebpf::helpers::generated::bpf_ktime_get_boot_ns;

use crate::{
    atomic,
    judge::Case,
    maps::{DENY_BUDGET, DENY_COUNTS, DENY_FOLDED, DENY_SEEN, EVENTS},
    policy, sockets,
};

/// What a hook's report is told, as one number: a decision does not cross the border of a global function.
#[inline(always)]
pub const fn told(decision: &Decision, verdict: Verdict) -> u32 {
    decision.reason as u32 | (verdict as u32) << 8
}

/// The reverse of [`told`], with the decision's rule.
#[inline(always)]
pub fn heard(told: u32, rule: u32) -> (Decision, Verdict) {
    let reason = Reason::from_u8(told as u8).unwrap_or(Reason::Internal);
    let verdict = if told >> 8 == 0 { Verdict::Deny } else { Verdict::Allow };
    (Decision { rule: RuleNumber(rule), ..Decision::deny(reason) }, verdict)
}

/// Counts a denial and reports it. `fill` adds what only the hook knows.
#[inline(always)]
pub fn denial(case: &Case, decision: &Decision, verdict: Verdict, fill: impl FnOnce(&mut DenyRecord)) {
    let would = matches!(verdict, Verdict::Allow);
    count(DenyCounter::Denied);
    count(if would { DenyCounter::WouldDeny } else { DenyCounter::Dropped });
    // SAFETY: no arguments, no state.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    let mut key = MaybeUninit::uninit();
    // SAFETY: filled whole.
    let key = unsafe {
        write_key(key.as_mut_ptr(), case, decision.reason as u8, would);
        key.assume_init_ref()
    };
    if let Some(seen) = DENY_SEEN.get_ptr_mut(key) {
        add(seen, case.bytes, now);
        count(DenyCounter::Repeated);
        return;
    }
    if !budget(key.local, now, case.epoch & 1) {
        // Apart, so that what audit let pass is never told as denied.
        fold(key.local, u64::from(key.direction) | u64::from(key.would) << 1, case.bytes, now);
        return;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        // The key is not inserted, so that the next denial of it tries again.
        count(DenyCounter::Ring);
        return;
    };
    // SAFETY: reserved for this record and not shared yet.
    unsafe {
        let record = entry.as_mut_ptr();
        write_record(record, case, decision, now, would);
        fill(&mut *record);
    }
    note_first(key, now);
    entry.submit(0);
    count(DenyCounter::Emitted);
}

/// Writes what denials are told apart by. A frame of its own, as the stack is short.
///
/// # Safety
///
/// `k` is a key that nobody else knows.
#[inline(never)]
unsafe fn write_key(k: *mut DenyKey, case: &Case, reason: u8, would: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        // A workload without identity is told apart by its cgroup: one unknown must not speak for another.
        (*k).local = if case.slot.id.is_unknown() { case.cgroup } else { case.slot.id.0 };
        (*k).peer = case.peer.id.0;
        let by_address = case.peer.id.0 < IdentityId::FIRST_HASHED;
        sockets::store(&mut (*k).peer_addr, if by_address { case.peer_addr } else { [0; 2] });
        (*k).port = case.target_port();
        (*k).proto = case.proto;
        (*k).direction = case.flow_direction();
        (*k).reason = reason;
        (*k).would = u8::from(would);
        (*k).reserved = [0; 2];
    }
}

/// Notes that a key has had its record.
#[inline(never)]
fn note_first(key: &DenyKey, now: u64) {
    let stat = DenyStat { count: 0, bytes: 0, first_ns: now, last_ns: now };
    // Only if absent: another CPU may have been first and counted repeats already. A full table only
    // means no deduplication.
    let _ = DENY_SEEN.insert(key, stat, 1);
}

/// Writes what the case says. A frame of its own, as the stack is short; field by field, because a value
/// built on the stack first would be copied byte by byte.
///
/// # Safety
///
/// `r` is a record that nobody else knows yet.
#[inline(never)]
unsafe fn write_record(r: *mut DenyRecord, case: &Case, decision: &Decision, now: u64, would: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        (*r).version = LAYOUT_VERSION as u8;
        (*r).hook = case.hook;
        (*r).direction = case.flow_direction();
        (*r).mode = case.mode();
        (*r).reason = decision.reason as u8;
        (*r).flags = if would { record_flags::WOULD_DENY } else { 0 };
        (*r).proto = case.proto;
        (*r).tcp_flags = case.tcp_flags;
        (*r).icmp = case.icmp;
        (*r).known_by = case.peer.known_by as u8;
        (*r).reserved = 0;
        (*r).epoch = case.epoch;
        (*r).rule = decision.rule.0;
        (*r).ifindex = case.ifindex;
        (*r).boot_ns = now;
        (*r).local_id = case.slot.id.0;
        (*r).peer_id = case.peer.id.0;
        (*r).task_id = case.task.0;
        (*r).cgroup = case.cgroup;
        (*r).cookie = 0;
        (*r).netns = 0;
        sockets::store(&mut (*r).local_addr, case.local_addr);
        sockets::store(&mut (*r).peer_addr, case.peer_addr);
        (*r).local_port = case.local_port;
        (*r).peer_port = case.peer_port;
        (*r).pid = 0;
        (*r).uid = 0;
        (*r).bytes = case.bytes;
        (*r).comm = [0; 16];
    }
}

/// Adds one to a counter. Atomic although it is this CPU's own: a packet program can interrupt one.
#[inline(always)]
pub fn count(counter: DenyCounter) {
    count_index(counter as u32);
}

/// As [`count`], by index.
#[inline(always)]
pub fn count_index(index: u32) {
    if let Some(n) = DENY_COUNTS.get_ptr_mut(index) {
        // SAFETY: an aligned u64 of the map.
        unsafe { atomic::add(n, 1) };
    }
}

#[inline(always)]
fn add(stat: *mut DenyStat, bytes: u32, now: u64) {
    // SAFETY: a live element of the map, aligned; counts are touched atomically only.
    unsafe {
        atomic::add(&raw mut (*stat).count, 1);
        atomic::add(&raw mut (*stat).bytes, u64::from(bytes));
        core::ptr::write_volatile(&raw mut (*stat).last_ns, now);
    }
}

/// Takes one token of a workload's event budget.
///
/// Value: tokens << 32 | tick of 2²⁶ ns, of which 15 make a second. Two CPUs may take the same token:
/// one event more is reported, none is lost.
#[inline(never)]
fn budget(local: u64, now: u64, side: u32) -> bool {
    let Some(settings) = policy::settings(side) else {
        return true;
    };
    let tick = (now >> 26) as u32;
    let (tokens, last) = match DENY_BUDGET.get_ptr_mut(local) {
        // SAFETY: a live element.
        Some(value) => {
            let value = unsafe { core::ptr::read_volatile(value) };
            ((value >> 32) as u32, value as u32)
        }
        None => (settings.event_burst, tick),
    };
    let elapsed = tick.wrapping_sub(last).min(1 << 16);
    let earned = elapsed.wrapping_mul(settings.event_per_second) / 15;
    let tokens = (tokens.wrapping_add(earned)).min(settings.event_burst);
    let allowed = tokens != 0;
    // The tick moves on only with a token earned, or a fast caller would never earn one.
    let last = if earned != 0 { tick } else { last };
    let value = u64::from(tokens.saturating_sub(1)) << 32 | u64::from(last);
    let _ = DENY_BUDGET.insert(local, value, 0);
    allowed
}

#[inline(never)]
fn fold(local: u64, kind: u64, bytes: u32, now: u64) {
    let key = [local, kind];
    if let Some(stat) = DENY_FOLDED.get_ptr_mut(key) {
        add(stat, bytes, now);
        count(DenyCounter::Folded);
        return;
    }
    let stat = DenyStat { count: 1, bytes: u64::from(bytes), first_ns: now, last_ns: now };
    // Full, or another CPU was first by a moment: counted without a workload.
    count(if DENY_FOLDED.insert(key, stat, 1).is_ok() { DenyCounter::Folded } else { DenyCounter::Ring });
}
