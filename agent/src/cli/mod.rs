//! The command line. One file for each subcommand; stdout is data, stderr is talk.

pub mod exit;
mod explain;
mod guide;
pub mod output;
mod policy;
mod version;

use std::{io, process::ExitCode};

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
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Check, test and show policies; needs no agent and no root
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
    match run(cli.command, &mut output) {
        Ok(exit) => exit.into(),
        // Whoever reads has seen enough: `eastwall ... | head`.
        Err(error) if is_broken_pipe(&error.source) => Exit::Done.into(),
        Err(CliError { exit, source }) => {
            output.talk(&format!("eastwall: {source:#}"));
            exit.into()
        }
    }
}

fn run(command: Command, output: &mut Output) -> Result<Exit, CliError> {
    match command {
        Command::Policy(command) => policy::run(command, output),
        Command::Explain(args) => explain::run(&args, output),
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
