//! Map keys, map values and events: the bytes both sides share.
//!
//! - `#[repr(C)]`, integers and byte arrays only. A `bool` or an enum that holds a value the other
//!   side did not expect is undefined behaviour.
//! - No padding: it would be part of a hash key, and nobody zeroes it.
//! - Integers are in host order, byte arrays in network order; addresses are 16 bytes, IPv4 mapped.

/// The version of everything below. Raised with every change of a layout; part of the pin path.
pub const LAYOUT_VERSION: u32 = 3;
/// The oldest version in which `sockets`, `dev_owner`, `flows`, `flow_quota` and `dns_addrs` are as in this one: an agent
/// goes on with what it finds there. What a newer version means by its own, this one cannot know.
pub const STATE_SINCE: u32 = 2;

/// Asserts at compile time the size in bytes and the offset of every field.
macro_rules! layout {
    ($name:ident, size $size:literal, $($field:ident @ $offset:literal),+ $(,)?) => {
        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(core::mem::offset_of!($name, $field) == $offset);)+
            // Names every field, so that a new one cannot be left out of the list.
            const fn every_field(value: $name) { let $name { $($field: _),+ } = value; }
            let _ = every_field;
        };
    };
}

mod boot;
mod config;
mod dns;
mod edge;
mod event;
mod flow;
mod identity;
pub mod names;
mod reset;

pub use boot::{BOOT_DEPTH_MAX, BOOT_PATH_BYTES, BOOT_PATH_MAX, BOOT_PATHS, BootPath, boot_count};
pub use config::{DenyCounter, Settings};
pub use dns::{AddrNames, DNS_NAMES_MAX, DNS_TEXT_BYTES, DNS_TEXT_MAX, DNS_TTL_MAX, DNS_TTL_MIN, NameKey};
pub use edge::{EdgeEntry, EdgeKey, INLINE_RANGES, Range, RuleStat, SPILL_RANGES, SpillEntry, level};
pub use event::{DenyKey, DenyRecord, DenyStat, Hook, KnownBy, record_flags};
pub use flow::{
    FRAGMENTS_TICKS, FlowKey, FlowState, IDLE_BOTH_WAYS_TICKS, IDLE_CONNECTION_TICKS, IDLE_ONE_WAY_TICKS, Role,
    SOCKET_REMEMBERS_JIFFIES, SOCKET_REMEMBERS_TICKS, SYN_FOLLOWS_JIFFIES, SockState, TICK_SHIFT, device_owner,
    fragments_owner, idle_limit, is_of_device, ways,
};
pub use identity::{
    AddrEntry, DeviceEntry, HOST_OWNER, IdentEntry, IdentSlot, PrefixKey, UidKey, addr_flags, flags as ident_flags,
    hardware,
};
pub use reset::ResetRecord;
