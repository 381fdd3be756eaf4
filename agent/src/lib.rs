//! The agent and the command line of eastwall.

pub mod cli;
pub mod clock;
pub mod datapath;
pub mod events;
pub mod identity;
pub mod policy;
pub mod sinks;
pub mod sources;
