//! Who is who: cgroup -> identity, address -> identity.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::id::IdentityId;

/// Bits of [`IdentSlot::flags`].
pub mod flags {
    /// The cgroup has been looked at under this policy; without it the socket is `unknown`.
    pub const LABELLED: u8 = 1;
    /// New child cgroups have this identity too (a unit, a container); else they start `unknown`.
    pub const INHERIT: u8 = 2;
    /// The identity depends on who owns the socket: `uid_ident` may narrow it, or has done so.
    pub const ASK_UID: u8 = 4;
    /// The identity comes from a workload that policy declares, not from a derived name. Only such
    /// an acting task takes part in the check of the acting task.
    pub const DECLARED: u8 = 8;
}

/// What one side of the maps says about a cgroup.
///
/// Shape: 16 bytes. All zero is "unknown, enforced".
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct IdentSlot {
    /// The identity.
    pub id: IdentityId,
    /// [`crate::verdict::Mode`] of the door.
    pub ingress_mode: u8,
    /// [`crate::verdict::Mode`] of the exit.
    pub egress_mode: u8,
    /// 0 = drop, 1 = reset.
    pub on_deny: u8,
    /// Bits of [`flags`].
    pub flags: u8,
    /// Dense number of the endpoint on this node; 0 = none.
    pub endpoint: u32,
}
layout!(IdentSlot, size 16, id @ 0, ingress_mode @ 8, egress_mode @ 9, on_deny @ 10, flags @ 11, endpoint @ 12);

/// Value of `cgrp_ident` and `uid_ident`: one slot for each side.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct IdentEntry {
    /// By side: epoch & 1.
    pub slots: [IdentSlot; 2],
}
layout!(IdentEntry, size 32, slots @ 0);

/// Key of `uid_ident`.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd,
)]
#[repr(C)]
pub struct UidKey {
    /// Cgroup id.
    pub cgroup: u64,
    /// Owner of the socket.
    pub uid: u32,
    /// Zero.
    pub reserved: u32,
}
layout!(UidKey, size 16, cgroup @ 0, uid @ 8, reserved @ 12);

/// Value of `dev_owner`: who is behind a device.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct DeviceEntry {
    /// A cgroup of the workload, whose label is the device's; 0 = no one workload; [`HOST_OWNER`].
    pub cgroup: u64,
    /// [`hardware`] of the device's other end; 0 = not known, and nothing leaves by it. Of a device of the host its own,
    /// where 0 says that its frames begin with an IP header.
    pub hardware: u64,
    /// The network namespace at the device's other end, by its id in the namespace of the device; of a device of the
    /// host 0.
    pub netns: u32,
    /// Zero.
    pub reserved: u32,
}
layout!(DeviceEntry, size 24, cgroup @ 0, hardware @ 8, netns @ 16, reserved @ 20);

/// In the place of a cgroup, in `dev_owner` and `addr_owner`: the host's own network, which no one workload has. No
/// cgroup has this number.
pub const HOST_OWNER: u64 = u64::MAX;

/// An Ethernet address as one number, which is never 0.
#[inline(always)]
#[must_use]
pub const fn hardware(address: [u8; 6]) -> u64 {
    let [a, b, c, d, e, f] = address;
    u64::from_be_bytes([0x80, 0, a, b, c, d, e, f])
}

/// Key of `addr_ext` as the kernel's LPM trie wants it.
///
/// Shape: prefix length in bits over the mapped form (IPv4 /24 is 120), then the address.
#[derive(
    Clone, Copy, Debug, Default, Eq, FromBytes, Hash, Immutable, IntoBytes, KnownLayout, Ord, PartialEq, PartialOrd,
)]
#[repr(C)]
pub struct PrefixKey {
    /// 0 to 128.
    pub bits: u32,
    /// Network order, IPv4 mapped.
    pub addr: [u8; 16],
}
layout!(PrefixKey, size 20, bits @ 0, addr @ 4);

/// Bits of [`AddrEntry::flags`].
pub mod addr_flags {
    /// A workload of another host is there, so no external names the address, whatever DNS says.
    pub const LABELLED: u64 = 1;
}

/// Value of `addr_ext`: what an address stands for.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct AddrEntry {
    /// An identity, or a set of them.
    pub id: IdentityId,
    /// Bits of [`addr_flags`].
    pub flags: u64,
}
layout!(AddrEntry, size 16, id @ 0, flags @ 8);
