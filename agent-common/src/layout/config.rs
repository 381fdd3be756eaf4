//! Switches and counters that belong to no flow.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{addr::Addr, builtin::RESOLVERS_MAX};

/// Value of `settings`, by side: flips with the policy.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct Settings {
    /// [`crate::verdict::Mode`] of local sockets without a label.
    pub unknown_mode: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// First rule number of this side in `rule_stats`.
    pub stats_base: u32,
    /// Number of rules.
    pub rules: u32,
    /// Tokens of the event budget of one workload: burst.
    pub event_burst: u32,
    /// Tokens of the event budget a second.
    pub event_per_second: u32,
    /// Flow table entries one cgroup may hold.
    pub flow_quota: u32,
    /// Whom the built-in `dns` lets every workload ask; unused entries are zero, and all of them if it is off.
    pub resolvers: [Addr; RESOLVERS_MAX],
    /// Cookie of the host's network namespace, in which nobody but the host has the addresses of resolvers.
    pub host_netns: u64,
    /// Whose answers name externals; as `resolvers`, but all zero if no external has a DNS name.
    pub dns_resolvers: [Addr; RESOLVERS_MAX],
    /// Addresses that one external may have by DNS.
    pub dns_quota: u32,
    /// Zero.
    pub reserved_end: u32,
}
layout!(Settings, size 296, unknown_mode @ 0, reserved @ 1, stats_base @ 4, rules @ 8, event_burst @ 12,
    event_per_second @ 16, flow_quota @ 20, resolvers @ 24, host_netns @ 152, dns_resolvers @ 160, dns_quota @ 288,
    reserved_end @ 292);

/// Index in `deny_counts`. Every path of a denial adds to `Denied` and to exactly one of `Emitted`,
/// `Repeated`, `Folded`, `Ring`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum DenyCounter {
    /// Denials and would-be denials.
    Denied = 0,
    /// Written to the ring.
    Emitted = 1,
    /// Counted in `deny_seen`.
    Repeated = 2,
    /// Counted in `deny_folded`: beyond the budget of one workload.
    Folded = 3,
    /// Lost: ring full.
    Ring = 4,
    /// Of `Denied`: really dropped or refused.
    Dropped = 5,
    /// Of `Denied`: let pass by audit.
    WouldDeny = 6,
    /// Packets allowed without a decision of their own (cached); for `status` only.
    Cached = 7,
    /// Decisions made.
    Decided = 8,
    /// Answers of resolvers that name an external, and were read.
    DnsRead = 9,
    /// Answers that could not be read, or not to their end.
    DnsUnread = 10,
    /// Addresses of an external for which there was no room: they stay unknown.
    DnsFull = 11,
}

impl DenyCounter {
    /// Length of the array.
    pub const COUNT: u32 = 16;
}
