//! What the kernel programs and the agent agree on.
//!
//! - [`layout`] is bytes without behaviour: keys and values of the maps, records of the ring buffer.
//! - [`decide`] is THE decision: a pure function over compiled policy, a flow and a time. The kernel
//!   programs, the host tests, `explain` and the policy tests call these same lines.
//! - [`parse`] reads packet headers. It parses fully or says why not; it never guesses.
//!
//! No std, no alloc, no I/O, no clock, no log.
#![cfg_attr(not(test), no_std)]

pub mod addr;
pub mod builtin;
pub mod cached;
pub mod decide;
pub mod flow;
pub mod id;
pub mod layout;
pub mod parse;
pub mod verdict;

#[cfg(feature = "user")]
mod pod;
