//! `eastwall policy`: what can be said about policy files without an agent.

mod check;
pub(super) mod set;
mod show;
mod test;

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
}

pub(super) fn run(command: PolicyCommand, output: &mut Output) -> Result<Exit, CliError> {
    match command {
        PolicyCommand::Check(args) => check::run(&args, output),
        PolicyCommand::Test(args) => test::run(&args, output),
        PolicyCommand::Show(args) => show::run(&args, output),
    }
}
