//! `eastwall boot-guard`.

use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use serde_json::json;

use super::{
    daemon,
    exit::{CliError, Exit},
    output::Output,
};
use crate::{
    config::Config,
    datapath::{
        Pins,
        boot_guard::{BootCounts, BootGuard, Standing},
    },
    sources::cgroup::Hierarchy,
};

#[derive(Debug, Subcommand)]
pub(super) enum BootGuardCommand {
    /// Raise the guard: the cgroups of `bootGuard` send and receive nothing until a policy is in force
    On(Which),
    /// Take it off without a policy
    Off(OffArgs),
    /// Show whether it stands, and what it dropped; exit code 1 if it does not
    Show(Which),
}

#[derive(Debug, Args)]
pub(super) struct Which {
    /// Settings; without it those in /etc/eastwall/agent.yaml, if it exists
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct OffArgs {
    #[command(flatten)]
    which: Which,
    /// Do it: nothing keeps those cgroups silent afterwards
    #[arg(long)]
    yes: bool,
}

pub(super) fn run(command: &BootGuardCommand, output: &mut Output) -> Result<Exit, CliError> {
    let which = match command {
        BootGuardCommand::On(which) | BootGuardCommand::Show(which) => which,
        BootGuardCommand::Off(args) => &args.which,
    };
    let config = daemon::settings(which.config.as_ref())?;
    if !rustix::process::geteuid().is_root() {
        let message = "only root can raise, lift or see the boot guard; try `sudo`";
        return Err(CliError::new(Exit::NotPermitted, anyhow!(message)));
    }
    let guard = BootGuard::beside(&config.pin_directory);
    match command {
        BootGuardCommand::On(_) => on(&config, &guard, output),
        BootGuardCommand::Off(args) => off(&guard, args.yes, output),
        BootGuardCommand::Show(_) => show(&guard, output),
    }
}

fn on(config: &Config, guard: &BootGuard, output: &mut Output) -> Result<Exit, CliError> {
    if config.boot_guard.is_empty() {
        let message = "the settings name no cgroup to guard; write for instance `bootGuard: [/kubepods.slice]`";
        return Err(CliError::new(Exit::Usage, anyhow!(message)));
    }
    std::fs::create_dir_all(config.run_directory()).context("make the run directory")?;
    // An agent that starts meanwhile would not see the guard that it has to take off.
    let _lock = Pins::open(&config.pin_directory, config.run_directory()).map_err(anyhow::Error::from)?;
    if Pins::has_links(&config.pin_directory).map_err(anyhow::Error::from)? {
        output.write("programs of an agent are attached, and judge already; nothing was changed\n")?;
        return Ok(Exit::Done);
    }
    let hierarchy = Hierarchy::find().map_err(anyhow::Error::from)?;
    if !hierarchy.is_real_root() {
        let message = "the cgroup2 mount is not the root of the hierarchy, so paths of cgroups mean something else: run this in \
                       the host's cgroup namespace";
        return Err(CliError::new(Exit::Partly, anyhow!(message)));
    }
    let before = guard.standing().map_err(anyhow::Error::from)?;
    // At boot there may be nothing yet of what the agent will guard.
    let scope = hierarchy.dir(&config.scope);
    let root = scope.ancestors().find(|path| path.exists()).unwrap_or(hierarchy.mount());
    guard.raise(root, &config.boot_guard, |path| hierarchy.dir(path)).context("raise the boot guard")?;
    let cgroups = config.boot_guard.join(", ");
    output.write(&match before {
        None => format!("the boot guard stands: nothing enters or leaves {cgroups}\n"),
        Some(Standing { counts, .. }) => format!(
            "the boot guard stands: nothing enters or leaves {cgroups}; the one before had dropped {} packets\n",
            counts.sent + counts.received
        ),
    })?;
    Ok(Exit::Done)
}

fn off(guard: &BootGuard, yes: bool, output: &mut Output) -> Result<Exit, CliError> {
    if !yes {
        let message = "the cgroups that it keeps silent would send and receive whatever they like, unless a policy is in force; \
                       write `eastwall boot-guard off --yes`";
        return Err(CliError::new(Exit::Usage, anyhow!(message)));
    }
    output.write(&match guard.lift().map_err(anyhow::Error::from)? {
        None => "no boot guard stood\n".to_owned(),
        Some(Standing { counts, .. }) => format!(
            "the boot guard is lifted; it dropped {} packets to send and {} to receive\n",
            counts.sent, counts.received
        ),
    })?;
    Ok(Exit::Done)
}

fn show(guard: &BootGuard, output: &mut Output) -> Result<Exit, CliError> {
    let standing = guard.standing().map_err(anyhow::Error::from)?;
    let stands = standing.is_some();
    let Standing { cgroups, counts } = standing.unwrap_or_default();
    if !output.for_people() {
        let document = json!({
            "stands": stands,
            "cgroups": cgroups,
            "packetsNotSent": counts.sent,
            "packetsNotReceived": counts.received,
            "nothingPasses": counts.missed != 0,
        });
        output.machine(document.clone(), [document])?;
    } else if stands {
        let (cgroups, BootCounts { sent, received, missed }) = (cgroups.join(", "), counts);
        let all = if missed == 0 { "" } else { "a cgroup could not be looked at, so nothing passes at all\n" };
        output.write(&format!(
            "the boot guard stands\nsilent   {cgroups}\ndropped  {sent} packets to send, {received} to receive\n{all}"
        ))?;
    } else {
        output.write("no boot guard stands\n")?;
    }
    Ok(if stands { Exit::Done } else { Exit::No })
}
