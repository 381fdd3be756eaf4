//! `eastwall agent` and `eastwall detach`.

use std::{io::IsTerminal as _, path::PathBuf};

use anyhow::{Context as _, anyhow};
use clap::Args;
use tracing_subscriber::EnvFilter;

use super::{
    exit::{CliError, Exit},
    output::Output,
};
use crate::{
    agent,
    config::{Config, DEFAULT_PATH},
    datapath::{Pins, log::BUILT_IN as KERNEL_LOG},
    memory,
};

#[derive(Debug, Args)]
pub(super) struct AgentArgs {
    /// Settings; without it those in /etc/eastwall/agent.yaml, if it exists
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Let the kernel programs say in this log what each denied packet was; for whoever works on them
    #[arg(long)]
    kernel_log: bool,
}

#[derive(Debug, Args)]
pub(super) struct DetachArgs {
    /// Settings; without it those in /etc/eastwall/agent.yaml, if it exists
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Do it: nothing is enforced afterwards
    #[arg(long)]
    yes: bool,
}

/// Runs the daemon in the foreground.
pub(super) fn agent(args: &AgentArgs) -> Result<Exit, CliError> {
    let mut config = settings(args.config.as_ref())?;
    config.kernel_log |= args.kernel_log;
    if config.kernel_log && !KERNEL_LOG {
        let message = "the kernel programs of this binary have no log; build it with `--features kernel-log`";
        return Err(CliError::new(Exit::Usage, anyhow!(message)));
    }
    if !rustix::process::geteuid().is_root() {
        let message = "the agent must run as root, because it loads programs into the kernel; try `sudo`";
        return Err(CliError::new(Exit::NotPermitted, anyhow!(message)));
    }
    let usual = if config.kernel_log { "info,kernel=debug" } else { "info" };
    let filter = EnvFilter::try_from_env("EASTWALL_LOG").unwrap_or_else(|_| EnvFilter::new(usual));
    // stdout belongs to events.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    memory::give_back_what_is_free();
    match agent::run(config) {
        Ok(()) => Ok(Exit::Done),
        Err(e) => {
            let exit = if agent::is_policy_error(&e) { Exit::Invalid } else { Exit::Partly };
            Err(CliError::new(exit, e))
        }
    }
}

/// Takes every program off the kernel: the deliberate way out.
pub(super) fn detach(args: &DetachArgs, output: &mut Output) -> Result<Exit, CliError> {
    let config = settings(args.config.as_ref())?;
    if !args.yes {
        let message = "nothing would be enforced afterwards; stop the agent, then write `eastwall detach --yes`";
        return Err(CliError::new(Exit::Usage, anyhow!(message)));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(CliError::new(Exit::NotPermitted, anyhow!("only root can detach; try `sudo`")));
    }
    if config.pin_directory.exists() {
        // The lock says whether an agent runs; it would attach again within a second.
        std::fs::create_dir_all(config.run_directory()).context("make the run directory")?;
        drop(Pins::open(&config.pin_directory, config.run_directory()).map_err(anyhow::Error::from)?);
    }
    if agent::ran_elsewhere(&config) && Pins::has_filters(&config.pin_directory).map_err(anyhow::Error::from)? {
        let message = "devices are guarded by filters of `clsact` in another network namespace, and cannot be reached from \
                       this one; nothing was changed. Run it where the agent ran: `nsenter --net=FILE eastwall detach \
                       --yes`, with that namespace for FILE, such as /proc/1/ns/net";
        return Err(CliError::new(Exit::Usage, anyhow!(message)));
    }
    agent::unmark(&config).context("forget that programs were attached")?;
    let links = Pins::remove_all(&config.pin_directory).map_err(anyhow::Error::from)?;
    output.write(&match links {
        0 => "nothing was attached\n".to_owned(),
        n => format!("detached {n} programs; nothing is enforced\n"),
    })?;
    Ok(Exit::Done)
}

/// Reads the settings that a command was given, or the usual ones.
pub(super) fn settings(path: Option<&PathBuf>) -> Result<Config, CliError> {
    let default = PathBuf::from(DEFAULT_PATH);
    Config::read(path.unwrap_or(&default), path.is_some()).map_err(|e| CliError::new(Exit::Usage, e))
}
