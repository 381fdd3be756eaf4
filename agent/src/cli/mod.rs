//! The command line. One file for each subcommand; stdout is data, stderr is talk.

mod boot_guard;
mod daemon;
mod doctor;
pub mod exit;
mod explain;
mod guide;
mod live;
pub mod output;
mod policy;
mod version;
mod visible;

use std::{io, path::Path, process::ExitCode};

use clap::{Parser, Subcommand};

use self::{
    exit::{CliError, Exit},
    output::{Output, OutputOptions},
};

/// Workload identity for every connection of this host, and an allow map that the kernel enforces
#[derive(Debug, Parser)]
#[command(name = "eastwall", version, propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    output: OutputOptions,
    #[command(flatten)]
    agent: live::SocketArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent in the foreground
    Agent(daemon::AgentArgs),
    /// Show the state of the agent; exit code 1 if something is wrong
    Status,
    /// Show who is who on this host
    Identities,
    /// Show the devices of workloads with a network of their own, and whose they are
    Devices,
    /// Show denials: those that were, or those that come
    Flows(live::FlowsArgs),
    /// Show what the kernel holds
    #[command(subcommand)]
    Map(live::MapCommand),
    /// Deny an edge above all rules and cut its flows
    Revoke(live::RevokeArgs),
    /// Allow an edge above the rules for a while
    BreakGlass(live::BreakGlassArgs),
    /// Show the overrides in force
    Overrides,
    /// Check the host: what eastwall needs, and what it does not cover; or say who dropped a flow
    Doctor(doctor::DoctorArgs),
    /// Make the agent read its policy directory again
    Reload,
    /// Take every program off the kernel: the deliberate way out
    Detach(daemon::DetachArgs),
    /// Keep workloads silent until a policy is in force, for the time before there is an agent
    #[command(subcommand)]
    BootGuard(boot_guard::BootGuardCommand),
    /// Check, test and compare policy files without agent and root; give them to the agent
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Say why a flow is allowed or denied, or what a code of `policy check` means
    Explain(explain::ExplainArgs),
    /// Write the completions of a shell to stdout
    Completion(guide::CompletionArgs),
    /// Write the manual page of a command to stdout
    Man(guide::ManArgs),
    /// Print the version of this binary and of what it shares with the kernel
    Version,
}

/// Runs the command line and returns the exit code of the process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers; everything else is wrong usage.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            // There is nobody left to tell that telling failed.
            let _ = error.print();
            return exit.into();
        }
    };
    let mut output = Output::new(&cli.output);
    match run(cli.command, &cli.agent.socket, &mut output) {
        Ok(exit) => exit.into(),
        // Whoever reads has seen enough: `eastwall ... | head`.
        Err(error) if is_broken_pipe(&error.source) => Exit::Done.into(),
        Err(CliError { exit, source }) => {
            output.talk(&format!("eastwall: {source:#}"));
            exit.into()
        }
    }
}

fn run(command: Command, socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    match command {
        Command::Agent(args) => daemon::agent(&args),
        Command::Status => live::status(socket, output),
        Command::Identities => live::identities(socket, output),
        Command::Devices => live::devices(socket, output),
        Command::Flows(args) => live::flows(socket, &args, output),
        Command::Map(command) => live::map(socket, command, output),
        Command::Revoke(args) => live::revoke(socket, args, output),
        Command::BreakGlass(args) => live::break_glass(socket, args, output),
        Command::Overrides => live::overrides(socket, output),
        Command::Doctor(args) => doctor::run(&args, socket, output),
        Command::Reload => live::reload(socket, output),
        Command::Detach(args) => daemon::detach(&args, output),
        Command::BootGuard(command) => boot_guard::run(&command, output),
        Command::Policy(command) => policy::run(command, socket, output),
        Command::Explain(args) => explain::run(&args, socket, output),
        Command::Completion(args) => guide::completion(&args, output),
        Command::Man(args) => guide::man(&args, output),
        Command::Version => version::run(output),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
