//! The lab: namespaces, cgroups, sockets and an independent witness.
//!
//! - [`lab`] is what tests use: it builds places, puts actors into them and takes all of it down again.
//! - [`scene`] is what most tests of the agent begin with.
//! - [`labd`] is the actor: a small process that does one socket operation at a time, on command, and
//!   answers with the errno that it got.
//! - [`frames`] are packets that no socket sends.
//! - [`bpf`] is what an intruder with rights of their own may do to programs and links.
//! - [`filters`] are the same on kernels without TCX.
//! - [`dns`] is what resolvers are asked, and what they answer.
//! - [`bench`] measures what eastwall costs, in a lab.

pub mod bench;
pub mod bpf;
pub mod dns;
pub mod filters;
pub mod frames;
pub mod lab;
pub mod labd;
pub mod scene;
