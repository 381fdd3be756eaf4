//! `eastwall flows`: denials as they happen.

use std::path::Path;

use clap::Args;
use serde_json::Value;

use super::{failed, refusal};
use crate::{
    cli::{
        exit::{CliError, Exit},
        output::Output,
    },
    control::{
        client,
        wire::{Reply, Request},
    },
};

#[derive(Debug, Args)]
pub(crate) struct FlowsArgs {
    /// Denials and would-be denials; the only flows that are shown one by one
    #[arg(long, required = true)]
    denied: bool,
    /// Go on until interrupted
    #[arg(long, required = true)]
    follow: bool,
    /// Only from this caller
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
    /// Only to this callee
    #[arg(long, value_name = "NAME")]
    to: Option<String>,
    /// Only for this reason
    #[arg(long, value_name = "REASON")]
    reason: Option<String>,
    /// End after so many
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// Shows denials from this moment on.
pub(crate) fn flows(socket: &Path, args: &FlowsArgs, output: &mut Output) -> Result<Exit, CliError> {
    let mut shown = 0;
    for reply in client::stream(socket, &Request::Follow).map_err(failed)? {
        match refusal(reply.map_err(failed)?)? {
            Reply::Denial { record, line } => {
                if !wanted(args, &record) {
                    continue;
                }
                if output.for_people() {
                    output.write(&format!("{line}\n"))?;
                } else {
                    output.write(&format!("{record}\n"))?;
                }
                shown += 1;
                if args.count.is_some_and(|n| shown >= n) {
                    return Ok(Exit::Done);
                }
            }
            Reply::Missed { count: 0 } => {
                if output.for_people() && !output.quiet {
                    output.talk(&crate::events::line::header());
                }
            }
            Reply::Missed { count } => {
                output.talk(&format!("{count} denials came too fast to be shown; they are in the events file"));
            }
            other => return Err(super::unexpected(&other)),
        }
    }
    Ok(Exit::Done)
}

fn wanted(args: &FlowsArgs, record: &Value) -> bool {
    let is = |wanted: &Option<String>, pointer: &str| {
        wanted.as_ref().is_none_or(|w| record.pointer(pointer).and_then(Value::as_str) == Some(w))
    };
    is(&args.from, "/src_endpoint/svc_name")
        && is(&args.to, "/dst_endpoint/svc_name")
        && is(&args.reason, "/status_code")
}
