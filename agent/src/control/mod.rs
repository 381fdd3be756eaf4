//! The control socket: how the command line speaks to the agent.

pub mod access;
pub mod client;
pub mod server;
pub mod wire;
