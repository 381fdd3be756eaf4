//! `eastwall policy apply` and `eastwall reload`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::to_value;

use super::{ask, unexpected};
use crate::{
    cli::{
        exit::{CliError, Exit},
        output::Output,
        policy::set::{self, count},
    },
    control::wire::{Applied, Reply, Request},
};

#[derive(Debug, Args)]
pub(crate) struct ApplyArgs {
    /// Files or directories; they replace what is in the policy directory of the agent
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
}

/// Checks, tests, installs and loads a policy; returns when the kernel holds it.
pub(crate) fn apply(socket: &Path, args: &ApplyArgs, output: &mut Output) -> Result<Exit, CliError> {
    let files = set::read(&args.paths)?;
    // Checked here as well, for carets and colours; the agent trusts nobody and checks again.
    if let Err(findings) = set::Set::compile(&files, None)
        && !findings.iter().all(|f| f.code == crate::policy::codes::Code::E04)
    {
        return set::refuse(&files, &findings, output);
    }
    let files = files.into_iter().map(|f| (f.name, f.text)).collect();
    show(ask(socket, &Request::Apply { files })?, output)
}

/// Makes the agent read its policy directory again.
pub(crate) fn reload(socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    show(ask(socket, &Request::Reload)?, output)
}

fn show(reply: Reply, output: &mut Output) -> Result<Exit, CliError> {
    match reply {
        Reply::Applied(applied) => applied_text(&applied, output, "policy in force"),
        other => Err(unexpected(&other)),
    }
}

/// One line, or the machine form. Partly done, if flows could not be cut.
pub(super) fn applied_text(applied: &Applied, output: &mut Output, what: &str) -> Result<Exit, CliError> {
    if output.for_people() {
        if !applied.warnings.is_empty() && !output.quiet {
            output.talk(&applied.warnings);
        }
        let (edges, cut) = (count(applied.edges, "edge"), count(applied.cut, "socket"));
        let Applied { epoch, unchanged, opened, closed, millis, .. } = applied;
        output.write(&match unchanged {
            true => format!("nothing to do: this is the policy in force, epoch {epoch}, {edges}\n"),
            false => {
                format!("{what} in {millis} ms: epoch {epoch}, {edges}; {opened} opened, {closed} closed, {cut} cut\n")
            }
        })?;
    } else {
        let value = to_value(applied).map_err(anyhow::Error::from)?;
        output.machine(value.clone(), [value])?;
    }
    let Some(problem) = &applied.cut_problem else { return Ok(Exit::Done) };
    output.talk(&format!("eastwall: {problem}"));
    Ok(Exit::Partly)
}
