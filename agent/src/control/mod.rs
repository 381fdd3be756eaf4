//! The control socket: how the command line speaks to the agent.

pub mod access;
pub mod bind;
pub mod client;
mod flows;
mod frames;
pub mod places;
pub mod server;
pub mod wire;
