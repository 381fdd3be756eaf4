//! Cgroups come and go: a new one has its entry before mkdir(2) returns, so that no first packet of it
//! is without a judgement.

use agent_common::layout::{IdentEntry, IdentSlot, ident_flags};
use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};

use crate::{
    emit, globals,
    kernfs::{id, read},
    maps::{CGROUP_EVENTS, CGROUP_EVENTS_LOST, CGRP_IDENT},
};

/// A cgroup was made.
const MADE: u64 = 1;
/// A cgroup is gone, and no socket refers to it any more.
const RELEASED: u64 = 2;

/// Gives a new cgroup what its parent hands down, and tells the agent.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn ew_cgrp_mkdir(ctx: BtfTracePointContext) -> i32 {
    let cgroup: *const u8 = ctx.arg(0);
    if let Some((id, parent)) = ids(cgroup) {
        made(id, parent);
    }
    0
}

/// Tells the agent that a cgroup's entry can go.
#[btf_tracepoint(function = "cgroup_release")]
pub fn ew_cgrp_release(ctx: BtfTracePointContext) -> i32 {
    let cgroup: *const u8 = ctx.arg(0);
    if let Some((id, parent)) = ids(cgroup) {
        // SAFETY: read only to see whether it is ours.
        if unsafe { CGRP_IDENT.get(id) }.is_some() {
            let _ = CGRP_IDENT.remove(id);
            tell(RELEASED, id, parent);
        }
    }
    0
}

#[inline(always)]
fn made(id: u64, parent: u64) {
    // SAFETY: copied; a slot is written whole by the agent or not at all.
    let Some(of_parent) = (unsafe { CGRP_IDENT.get(parent) }).copied() else {
        // Outside the agent's scope.
        return;
    };
    let entry = IdentEntry { slots: [inherited(&of_parent.slots[0]), inherited(&of_parent.slots[1])] };
    // Full: the cgroup has no entry and is `unknown`, which is denied where that is enforced.
    let _ = CGRP_IDENT.insert(id, entry, 0);
    tell(MADE, id, parent);
}

/// A child of a unit or container is that workload; a child of a slice is unknown until it is labelled.
#[inline(always)]
fn inherited(parent: &IdentSlot) -> IdentSlot {
    if parent.flags & ident_flags::INHERIT != 0 { *parent } else { IdentSlot::default() }
}

#[inline(always)]
fn tell(kind: u64, id: u64, parent: u64) {
    match CGROUP_EVENTS.reserve(0) {
        Some(mut entry) => {
            entry.write([kind, id, parent]);
            entry.submit(0);
        }
        None => emit::count_index(CGROUP_EVENTS_LOST),
    }
}

/// Reads the ids of a cgroup and of its parent; the root has none.
#[inline(always)]
fn ids(cgroup: *const u8) -> Option<(u64, u64)> {
    // `self` is the first field of `struct cgroup`, so its parent's address is the parent's.
    let parent: *const u8 = read(cgroup, globals::off_parent())?;
    if parent.is_null() {
        return None;
    }
    Some((id(cgroup)?, id(parent)?))
}
