//! The compiled policy as the pinned maps hold it.

use agent_common::{
    decide::{Clock, PolicyMap, decide},
    flow::Flow,
    id::BootSeconds,
    layout::{EdgeEntry, EdgeKey, RuleStat, Settings, SpillEntry},
    verdict::Decision,
};
use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_map_lookup_elem};

use crate::maps::{EDGES, EPOCH, RULE_STATS, SETTINGS, SPILL};

/// One side of the policy maps.
pub struct KernelPolicy {
    side: u32,
}

impl PolicyMap for KernelPolicy {
    #[inline(always)]
    fn edge(&self, key: &EdgeKey) -> Option<&EdgeEntry> {
        let inner = EDGES.get(self.side)?;
        // SAFETY: an inner map of `edges`; the entry is not written while its side is in use.
        unsafe {
            bpf_map_lookup_elem(core::ptr::from_ref(inner).cast_mut().cast(), core::ptr::from_ref(key).cast())
                .cast::<EdgeEntry>()
                .as_ref()
        }
    }

    #[inline(always)]
    fn spill(&self, index: u32) -> Option<&SpillEntry> {
        SPILL.get_value(self.side, &index)
    }
}

/// The boot clock.
pub struct BootClock;

impl Clock for BootClock {
    #[inline(always)]
    fn boot_seconds(&self) -> BootSeconds {
        // SAFETY: no arguments, no state.
        BootSeconds((unsafe { bpf_ktime_get_boot_ns() } / 1_000_000_000) as u32)
    }
}

/// Returns the epoch in force. Read once in a run of a program, before anything else of the policy.
/// 0 = no policy has ever been applied.
#[inline(always)]
pub fn epoch() -> u32 {
    match EPOCH.get(0) {
        // SAFETY: written by the agent with one store; volatile so that it is read once.
        Some(epoch) => (unsafe { core::ptr::read_volatile(epoch) }) as u32,
        None => 0,
    }
}

/// Returns the switches of a side.
#[inline(always)]
pub fn settings(side: u32) -> Option<&'static Settings> {
    SETTINGS.get(side)
}

/// Decides a flow under one epoch and counts the hit of the rule.
#[inline(never)]
pub fn decide_counted(flow: &Flow, epoch: u32, out: &mut Decision) {
    let side = epoch & 1;
    let decision = decide(&KernelPolicy { side }, flow, &BootClock);
    if let Some(settings) = settings(side)
        && decision.rule.0 <= settings.rules
        && let Some(stat) = RULE_STATS.get_ptr_mut(settings.stats_base.wrapping_add(decision.rule.0))
    {
        // SAFETY: this CPU's share; a program that interrupts this one may add to it in between, which
        // loses one hit of a statistic and nothing else.
        unsafe {
            (*stat).decisions += 1;
            (*stat).last_ns = bpf_ktime_get_boot_ns();
        }
    }
    *out = decision;
}

const _: () = assert!(size_of::<RuleStat>() == 16);
