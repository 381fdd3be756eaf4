//! The agent and the command line of eastwall.

pub mod agent;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod datapath;
pub mod doctor;
pub mod events;
pub mod identity;
pub mod memory;
pub mod netlink;
pub mod policy;
pub mod reconcile;
pub mod sinks;
pub mod sources;
