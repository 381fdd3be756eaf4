//! Commands that speak to the running agent.

mod apply;
mod devices;
mod flows;
mod identities;
mod map;
mod overrides;
mod status;

pub(super) use self::{
    apply::{ApplyArgs, apply, reload},
    devices::devices,
    flows::{FlowsArgs, flows},
    identities::identities,
    map::{MapCommand, map},
    overrides::{BreakGlassArgs, RevokeArgs, break_glass, overrides, revoke},
    status::status,
};

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;

use super::exit::{CliError, Exit};
use crate::control::{
    client::{self, ClientError},
    wire::{Reply, Request},
};

/// Which agent.
#[derive(Clone, Debug, Args)]
pub(super) struct SocketArgs {
    /// Control socket of the agent
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/eastwall/agent.sock")]
    pub(super) socket: PathBuf,
}

/// Asks, and turns a refusal into the failure it is.
pub(super) fn ask(socket: &Path, request: &Request) -> Result<Reply, CliError> {
    refusal(client::ask(socket, request).map_err(failed)?)
}

fn refusal(reply: Reply) -> Result<Reply, CliError> {
    match reply {
        Reply::Refused { message, code } => Err(CliError::new(exit(code), anyhow!(message))),
        reply => Ok(reply),
    }
}

fn failed(error: ClientError) -> CliError {
    let exit = match &error {
        ClientError::Unreachable { .. } | ClientError::NoAnswer => Exit::Unreachable,
        ClientError::Silent { .. } => Exit::TimeOut,
        ClientError::NotPermitted { .. } => Exit::NotPermitted,
        ClientError::Answer(_) | ClientError::Io(_) => Exit::Partly,
    };
    CliError::new(exit, error)
}

/// An answer to another question: the agent is of another version.
pub(super) fn unexpected(reply: &Reply) -> CliError {
    CliError::new(Exit::Partly, anyhow!("the agent gave another answer than was asked for: {reply:?}"))
}

const fn exit(code: u8) -> Exit {
    match code {
        0 => Exit::Done,
        1 => Exit::No,
        2 => Exit::Usage,
        3 => Exit::Invalid,
        4 => Exit::Unreachable,
        5 => Exit::NotPermitted,
        7 => Exit::TimeOut,
        _ => Exit::Partly,
    }
}
