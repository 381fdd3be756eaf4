//! Cgroup -> identity of the local end.

use agent_common::{
    id::IdentityId,
    layout::{IdentEntry, IdentSlot, UidKey, ident_flags},
};

use crate::{
    maps::{CGRP_IDENT, UID_IDENT},
    policy,
};

/// The cgroup at the root of the hierarchy: the kernel's own sockets live there.
pub const ROOT_CGROUP: u64 = 1;

/// Returns what `side` says about a cgroup; without a label it is `unknown`, in the mode set for such.
#[inline(always)]
pub fn slot_of(cgroup: u64, uid: impl FnOnce() -> u32, side: u32) -> IdentSlot {
    // SAFETY: the entry may be rewritten by the agent while it is copied. A slot of the side in use is
    // rewritten only to label what was unknown, and relabelling goes through the other side.
    let Some(slot) = (unsafe { CGRP_IDENT.get(cgroup) }).and_then(|e| of_side(e, side)) else {
        return unknown(side);
    };
    if slot.flags & ident_flags::ASK_UID != 0 {
        let key = UidKey { cgroup, uid: uid(), reserved: 0 };
        // SAFETY: as above.
        if let Some(narrowed) = (unsafe { UID_IDENT.get(key) }).and_then(|e| of_side(e, side)) {
            return narrowed;
        }
    }
    slot
}

/// Says whether a cgroup is below the one that the agent guards.
#[inline(always)]
pub fn is_guarded(cgroup: u64) -> bool {
    // All have an entry, but for want of room; the root has one only where that is all cgroups.
    // SAFETY: read only to see whether it is there.
    unsafe { CGRP_IDENT.get(cgroup).is_some() || CGRP_IDENT.get(ROOT_CGROUP).is_some() }
}

#[inline(always)]
fn of_side(entry: &IdentEntry, side: u32) -> Option<IdentSlot> {
    let slot = if side & 1 == 0 { entry.slots[0] } else { entry.slots[1] };
    (slot.flags & ident_flags::LABELLED != 0).then_some(slot)
}

#[inline(always)]
fn unknown(side: u32) -> IdentSlot {
    // No settings is no policy: mode 0, enforce.
    let mode = policy::settings(side).map_or(0, |s| s.unknown_mode);
    IdentSlot { id: IdentityId::UNKNOWN, ingress_mode: mode, egress_mode: mode, ..IdentSlot::default() }
}
