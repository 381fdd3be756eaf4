//! The kernel programs of eastwall: each fills a flow, calls the decision and returns its hook's code.
//!
//! `hooks` holds the programs, by name as in `agent_common::layout::names::program`. cgroup_skb is the
//! boundary of sockets, and TC that of devices; connect and sendmsg are the fast and explained refusal and
//! decide nothing that the boundary would not decide as well.
#![no_std]
#![no_main]
// Atomic addition is an instruction of the target that `core` has no stable name for.
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod atomic;
mod dns;
mod emit;
mod flows;
mod fragments;
mod frames;
mod globals;
mod headers;
mod hooks;
mod judge;
mod kernfs;
mod log;
mod maps;
mod memory;
mod object;
mod on_error;
mod peer;
mod policy;
mod quotes;
mod recent;
mod reset;
mod sockets;
mod who;
