//! `eastwall policy`: what can be said about policy files, and giving them to the agent.

mod check;
mod diff;
mod junit;
mod sarif;
pub(super) mod set;
mod show;
mod test;

use std::path::Path;

use clap::Subcommand;

use super::{
    exit::{CliError, Exit},
    output::Output,
};

#[derive(Debug, Subcommand)]
pub(super) enum PolicyCommand {
    /// Say everything that is wrong or odd about a policy, and run its tests
    Check(check::CheckArgs),
    /// Run the tests of a policy
    Test(test::TestArgs),
    /// Show the rules of a policy, or every edge they open
    Show(show::ShowArgs),
    /// Show what a policy decides otherwise than another or than the one in force; 1 if something differs
    Diff(diff::DiffArgs),
    /// Check, test, install and load a policy; returns when the kernel holds it
    Apply(super::live::ApplyArgs),
}

pub(super) fn run(command: PolicyCommand, socket: &Path, output: &mut Output) -> Result<Exit, CliError> {
    match command {
        PolicyCommand::Check(args) => check::run(&args, output),
        PolicyCommand::Test(args) => test::run(&args, output),
        PolicyCommand::Show(args) => show::run(&args, socket, output),
        PolicyCommand::Diff(args) => diff::run(&args, socket, output),
        PolicyCommand::Apply(args) => super::live::apply(socket, &args, output),
    }
}
