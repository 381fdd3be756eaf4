//! One edge of the allow map, as the maps hold it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::id::IdentityId;

/// Key of `edges`: one pair of identities. Exit and door ask the same key, each with its own belief.
///
/// Shape: 16 bytes, host order. [`IdentityId::ANY`] in either field is the wildcard edge.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd,
)]
#[repr(C)]
pub struct EdgeKey {
    /// The caller.
    pub from: IdentityId,
    /// The callee.
    pub to: IdentityId,
}
layout!(EdgeKey, size 16, from @ 0, to @ 8);

/// The precedence of a range: the levels of policy.md, "The decision". Even levels deny.
pub mod level {
    /// Revoke, quarantine.
    pub const OVERRIDE_DENY: u8 = 0;
    /// Break-glass.
    pub const OVERRIDE_ALLOW: u8 = 1;
    /// A guard-rail.
    pub const DENY: u8 = 2;
    /// An allow rule.
    pub const ALLOW: u8 = 3;
    /// The bits of `flags` that hold the level.
    pub const MASK: u8 = 0b111;
}

/// Ports of one protocol under one rule.
///
/// Shape: 16 bytes. `proto` 0 is every protocol; `lo` and `hi` are both included, host order.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd,
)]
#[repr(C)]
pub struct Range {
    /// IP protocol number as in [`crate::flow::Flow::proto`]; 0 = any.
    pub proto: u8,
    /// Bits 0-2: level.
    pub flags: u8,
    /// First port.
    pub lo: u16,
    /// Last port.
    pub hi: u16,
    /// Zero.
    pub reserved: u16,
    /// Rule number.
    pub rule: u32,
    /// Boot-clock second from which the range no longer matches; 0 = never.
    pub expires: u32,
}
layout!(Range, size 16, proto @ 0, flags @ 1, lo @ 2, hi @ 4, reserved @ 6, rule @ 8, expires @ 12);

impl Range {
    /// Returns the level.
    #[must_use]
    pub const fn level(&self) -> u8 {
        self.flags & level::MASK
    }
}

/// Ranges that fit an entry; one more would push the element into the next allocation class.
pub const INLINE_RANGES: usize = 3;
/// Ranges that fit the spill of an entry.
pub const SPILL_RANGES: usize = 16;

/// Value of `edges`.
///
/// Shape: 56 bytes. Ranges are sorted by (level, rule); the first that matches decides. Exact keys
/// are self-contained: every wildcard rule that also applies to the pair is merged in.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct EdgeEntry {
    /// Ranges in all, spill included: 1 to `INLINE_RANGES + SPILL_RANGES`.
    pub count: u8,
    /// Zero.
    pub reserved: [u8; 3],
    /// Index in `spill` of the ranges beyond the third, if `count` says there are any.
    pub spill: u32,
    /// The first ranges.
    pub ranges: [Range; INLINE_RANGES],
}
layout!(EdgeEntry, size 56, count @ 0, reserved @ 1, spill @ 4, ranges @ 8);

/// Value of `spill`: the ranges of an edge beyond the third.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct SpillEntry {
    /// In the order of the entry.
    pub ranges: [Range; SPILL_RANGES],
}
layout!(SpillEntry, size 256, ranges @ 0);

/// Value of `rule_stats`, one CPU's share.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct RuleStat {
    /// Decisions made by the rule.
    pub decisions: u64,
    /// When the last one was made, ns: `CLOCK_MONOTONIC_COARSE`, which costs a packet next to nothing.
    pub last_ns: u64,
}
layout!(RuleStat, size 16, decisions @ 0, last_ns @ 8);
