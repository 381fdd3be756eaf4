//! The compiled policy as the pinned maps hold it.

use agent_common::{
    addr::Addr,
    builtin,
    decide::{Clock, PolicyMap},
    id::BootSeconds,
    layout::{EdgeEntry, EdgeKey, Settings, SpillEntry},
};
use aya_ebpf::helpers::generated::{bpf_ktime_get_boot_ns, bpf_ktime_get_coarse_ns, bpf_map_lookup_elem};

use crate::maps::{EDGES, EPOCH, RULE_STATS, SETTINGS, SPILL};

/// One side of the policy maps.
pub struct KernelPolicy {
    /// The side.
    pub side: u32,
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
        SPILL.get_value(self.side, &index).map(|words| {
            // SAFETY: an entry in words.
            unsafe { &*core::ptr::from_ref(words).cast() }
        })
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

/// Returns the seconds on the boot clock.
#[inline(always)]
pub fn boot_seconds() -> u32 {
    BootClock.boot_seconds().0
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

/// Counts the hit of a rule.
///
/// Global, so that the verifier checks it once.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_count_hit(rule: u32, side: u32) -> u32 {
    if let Some(settings) = settings(side & 1)
        && rule <= settings.rules
        && let Some(stat) = RULE_STATS.get_ptr_mut(settings.stats_base.wrapping_add(rule))
    {
        // SAFETY: this CPU's share; a program that interrupts this one may add to it in between, which
        // loses one hit of a statistic and nothing else.
        unsafe {
            (*stat).decisions += 1;
            (*stat).last_ns = bpf_ktime_get_coarse_ns();
        }
    }
    0
}

/// Says whether an address is one of a resolver that every workload may ask.
#[inline(always)]
pub fn is_resolver(addr: &Addr, epoch: u32) -> bool {
    ew_is_resolver(addr[0], addr[1], epoch, 0) != 0
}

/// Says whether an address is one of a resolver whose answers name externals.
#[inline(always)]
pub fn names_externals(addr: &Addr, epoch: u32) -> bool {
    ew_is_resolver(addr[0], addr[1], epoch, 1) != 0
}

/// Global and by value: checked once, and nothing of it is on the stack of a caller.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn ew_is_resolver(first: u64, second: u64, epoch: u32, names: u32) -> u32 {
    let Some(settings) = settings(epoch & 1) else {
        return 0;
    };
    let resolvers = if names == 0 { &settings.resolvers } else { &settings.dns_resolvers };
    u32::from(builtin::is_resolver(&[first, second], resolvers))
}
