//! The numbers that stand for names.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The number of an identity: a SPIFFE ID, or a set of names that share an address.
///
/// Shape: the first 8 bytes of SHA-256 of the canonical SPIFFE ID, big-endian, top bit cleared; with
/// the top bit set it is a set. 0 to 255 are reserved and never made by hashing.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd,
)]
#[repr(transparent)]
pub struct IdentityId(pub u64);

impl IdentityId {
    /// Everyone but `UNKNOWN`; as a key, the wildcard edge.
    pub const ANY: Self = Self(0);
    /// What has no identity yet; no rule matches it.
    pub const UNKNOWN: Self = Self(1);
    /// An address outside every known range.
    pub const WORLD: Self = Self(2);
    /// Every number below is reserved.
    pub const FIRST_HASHED: u64 = 256;
    /// The bit that tells a set of names from one identity.
    pub const SET_BIT: u64 = 1 << 63;

    /// Says whether no rule can match this end.
    #[must_use]
    pub const fn is_unknown(self) -> bool {
        self.0 == Self::UNKNOWN.0
    }

    /// Says whether this stands for a set of names instead of one identity.
    #[must_use]
    pub const fn is_set(self) -> bool {
        self.0 & Self::SET_BIT != 0
    }
}

/// The number of a rule within one epoch: its rank among the sorted rule ids, from 1.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd,
)]
#[repr(transparent)]
pub struct RuleNumber(pub u32);

impl RuleNumber {
    /// No rule matched: default deny.
    pub const DEFAULT: Self = Self(0);
    /// Built-in `self`: an endpoint talks to itself.
    pub const BUILTIN_SELF: Self = Self(0xffff_ff01);
    /// Built-in `replies`: the packet answers a flow whose first packet was allowed.
    pub const BUILTIN_REPLIES: Self = Self(0xffff_ff02);
    /// Built-in `icmp-errors`: the kernel's own errors and resets, neighbour discovery, MLD.
    pub const BUILTIN_ICMP_ERRORS: Self = Self(0xffff_ff03);
    /// Built-in `dns`: any workload to the resolvers of the node ([`crate::builtin`]).
    pub const BUILTIN_DNS: Self = Self(0xffff_ff04);
    /// Numbers from here on are built-ins.
    pub const FIRST_BUILTIN: u32 = 0xffff_ff00;

    /// Says whether the number stands for a built-in rather than a rule of the policy.
    #[must_use]
    pub const fn is_builtin(self) -> bool {
        self.0 >= Self::FIRST_BUILTIN
    }
}

/// The number of the policy in force on a node. Its lowest bit names the side of the maps in use.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd,
)]
#[repr(transparent)]
pub struct Epoch(pub u32);

impl Epoch {
    /// Returns the side of the maps that this epoch uses: 0 or 1.
    #[must_use]
    pub const fn side(self) -> u32 {
        self.0 & 1
    }

    /// Returns the epoch after this one, which uses the other side. Never 0, which means "no policy".
    #[must_use]
    pub const fn next(self) -> Self {
        match self.0.checked_add(1) {
            Some(n) => Self(n),
            // 2 keeps the sides alternating: u32::MAX is odd.
            None => Self(2),
        }
    }

    /// Returns a later epoch of the same side: the same policy, under which every flow is asked about again.
    #[must_use]
    pub const fn again(self) -> Self {
        self.next().next()
    }
}

/// Seconds on the boot clock (`CLOCK_BOOTTIME`), which neither stops in suspend nor can be set back.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub struct BootSeconds(pub u32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_epoch_always_uses_the_other_side_and_is_never_zero() {
        for n in [0, 1, 2, 41, u32::MAX - 1, u32::MAX] {
            assert_ne!(Epoch(n).side(), Epoch(n).next().side(), "epoch {n}");
            assert_ne!(Epoch(n).next().0, 0);
            assert_eq!(Epoch(n).side(), Epoch(n).again().side(), "epoch {n}");
            assert!(Epoch(n).again() != Epoch(n) && Epoch(n).again().0 != 0);
        }
    }
}
