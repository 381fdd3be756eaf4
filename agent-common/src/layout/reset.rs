//! A call that a door has denied, and that is to be answered.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One record of the ring buffer `resets`: a SYN at the door of a workload with `onDeny: reset`.
#[derive(Clone, Copy, Debug, Default, Eq, FromBytes, Immutable, IntoBytes, KnownLayout, PartialEq)]
#[repr(C)]
pub struct ResetRecord {
    /// Who called, network order, IPv4 mapped.
    pub caller: [u8; 16],
    /// Who was called.
    pub callee: [u8; 16],
    /// Cookie of the network namespace in which the call came in; 0 = not known.
    pub netns: u64,
    /// Host order.
    pub caller_port: u16,
    /// Host order.
    pub callee_port: u16,
    /// The sequence number of the SYN, host order.
    pub sequence: u32,
}
layout!(ResetRecord, size 48, caller @ 0, callee @ 16, netns @ 32, caller_port @ 40, callee_port @ 42, sequence @ 44);
