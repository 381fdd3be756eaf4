//! DNS names of externals, and the addresses that answers gave them.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::id::IdentityId;

/// Most externals that one DNS name or one address stands for.
pub const DNS_NAMES_MAX: usize = 4;
/// Longest DNS name that is compared to its end, in bytes: the rest of a longer one is left out.
pub const DNS_TEXT_MAX: u32 = 127;
/// The same with the 0 behind it.
pub const DNS_TEXT_BYTES: usize = DNS_TEXT_MAX as usize + 1;
/// An address is kept for as long as the answer says, and for at least so many seconds: who has just been told an address
/// takes some time to use it.
pub const DNS_TTL_MIN: u32 = 60;
/// And for at most so many, a week: what an answer says is somebody else's word.
pub const DNS_TTL_MAX: u32 = 604_800;

/// Key of `dns_names` as the kernel's LPM trie wants it.
///
/// Shape: the length in bits of what follows, then the name backwards in lower case, as in `elpmaxe.ipa`. A 0 ends one that
/// is meant whole; one that is meant with all names below it ends with a dot.
#[derive(Clone, Copy, Debug, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd)]
#[repr(C)]
pub struct NameKey {
    /// 0 to 1,024.
    pub bits: u32,
    /// Zero behind the end.
    pub text: [u8; DNS_TEXT_BYTES],
}
layout!(NameKey, size 132, bits @ 0, text @ 4);

impl Default for NameKey {
    fn default() -> Self {
        Self { bits: 0, text: [0; DNS_TEXT_BYTES] }
    }
}

/// Value of `dns_addrs`: the externals that live answers name with an address.
///
/// INVARIANT: a name is stored before the time until which it holds, so what is half written has run out.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct AddrNames {
    /// Identities of externals; 0 = none.
    pub names: [IdentityId; DNS_NAMES_MAX],
    /// Boot second from which no new flow is named by it.
    pub until: [u32; DNS_NAMES_MAX],
}
layout!(AddrNames, size 48, names @ 0, until @ 32);

impl AddrNames {
    /// Returns the name at a place if it counts at a moment, in boot seconds. A flow that is running keeps its name when the
    /// answer runs out.
    #[inline(always)]
    #[must_use]
    pub const fn name(&self, place: usize, now: u32, is_running: bool) -> Option<IdentityId> {
        let (name, until) = (self.names[place], self.until[place]);
        if name.0 != 0 && (is_running || now < until) { Some(name) } else { None }
    }

    /// Returns every name that counts; see [`Self::name`].
    pub fn live(&self, now: u32, is_running: bool) -> impl Iterator<Item = IdentityId> {
        (0..DNS_NAMES_MAX).filter_map(move |place| self.name(place, now, is_running))
    }
}
