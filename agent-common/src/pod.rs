//! Lets aya read and write the shared types. Beside zerocopy's derives, which prove that every byte
//! is initialised, this is the only other claim about them.
#![allow(unsafe_code)]

use crate::layout::{
    DenyKey, DenyRecord, DenyStat, EdgeEntry, EdgeKey, FlowKey, FlowState, IdentEntry, IdentSlot, PrefixKey, Range,
    RuleStat, Settings, SockState, SpillEntry, UidKey,
};

macro_rules! pod {
    ($($name:ident),+ $(,)?) => {
        $(
            // SAFETY: `repr(C)`, integers and byte arrays only, no padding: zerocopy's `IntoBytes` and
            // `FromBytes` are derived for the type and would not compile otherwise.
            unsafe impl aya::Pod for $name {}
        )+
    };
}

pod!(
    DenyKey, DenyRecord, DenyStat, EdgeEntry, EdgeKey, FlowKey, FlowState, IdentEntry, IdentSlot, PrefixKey, Range,
    RuleStat, Settings, SockState, SpillEntry, UidKey,
);
