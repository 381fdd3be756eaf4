//! `eastwall completion` and `eastwall man`: help that is generated from the command line itself.

use anyhow::anyhow;
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::{
    Cli,
    exit::{CliError, Exit},
    output::Output,
};

#[derive(Debug, Args)]
pub(super) struct CompletionArgs {
    /// Which shell
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Which command, for example `policy check`; none for the program itself
    command: Vec<String>,
}

pub(super) fn completion(args: &CompletionArgs, output: &mut Output) -> Result<Exit, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "eastwall", &mut script);
    output.write(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Done)
}

pub(super) fn man(args: &ManArgs, output: &mut Output) -> Result<Exit, CliError> {
    let mut command = Cli::command();
    command.build();
    for name in &args.command {
        let unknown = || CliError::new(Exit::Usage, anyhow!("there is no command `{}`", args.command.join(" ")));
        command = command.find_subcommand(name).ok_or_else(unknown)?.clone();
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    output.write(&String::from_utf8_lossy(&page))?;
    Ok(Exit::Done)
}
