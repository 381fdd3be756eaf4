//! `xtask vm`: a command, or the tests, under another kernel.
//!
//! ```text
//! kernels    which Debian has, and one of them unpacked
//! image      the kernel out of its wrapping
//! initramfs  what the guest begins with; init.sh is its first process
//! machine    QEMU
//! tests      which tests, and how the guest runs them
//! outcome    what came of them
//! ```

mod image;
mod initramfs;
mod kernels;
mod machine;
mod outcome;
mod tests;

use std::{env, fmt::Write as _, io::Write as _, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use kernels::Kernels;
use machine::{Ended, Size};
pub use machine::{VIRTIOFSD, has_kvm};
use outcome::Report;

use crate::{setup, workspace::Workspace};

/// What `cargo xtask vm` takes.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask vm 6.1 -- uname -r
  cargo xtask vm newest -- target/debug/eastwall doctor
  cargo xtask vm 6.1 --tests                    # the tests that load kernel programs
  cargo xtask vm 6.1 --tests hook_ agent_starts # those of some files, by the beginning of the name
  cargo xtask vm 6.1 --tests hook_tcp::g5_      # some tests of a file
  cargo xtask vm --list

The guest sees the files of this machine, under a layer in its memory: it may write anywhere,
and nothing of that comes back. It has a cgroup v2 hierarchy, bpffs and lo, and no network card.
Its command starts in the same directory, with the same PATH. Kernels are kept in the build
output.

It ends with the status of the command; 124 says that time ran out. Without KVM the machine is
emulated: it boots in some 15 s, and what it runs takes about ten times as long.")]
pub struct Options {
    /// The beginning of a version, such as 6.1 (the newest such is taken), a whole one, or `newest`
    #[arg(required_unless_present = "list")]
    kernel: Option<String>,
    /// Print the versions that Debian has
    #[arg(long, conflicts_with = "kernel")]
    list: bool,
    /// Build the tests here, run them there, and print what passed, failed and was skipped: FILE is the beginning of
    /// a name in tests/tests, or FILE::TEST; all if none is named
    #[arg(long, num_args = 0.., value_name = "FILE", conflicts_with = "command")]
    tests: Option<Vec<String>>,
    /// End it, or each file of tests, after so many seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    timeout: u64,
    /// Processors
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Memory in MiB; half of it and more is for files
    #[arg(long, default_value_t = 2_048, value_name = "MIB")]
    memory: u32,
    /// A variable of this environment that the command is to have
    #[arg(long, value_name = "NAME")]
    env: Vec<String>,
    /// What to run
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// The status that says that time ran out, as timeout(1) has it.
const TIME_RAN_OUT: u8 = 124;

/// Sets up what is missing, boots the kernel, and runs the command.
///
/// # Errors
///
/// The machine cannot be set up, or dies.
pub fn run(workspace: &Workspace, options: &Options) -> Result<ExitCode> {
    let kernels = Kernels::new(workspace.target.join("vm"));
    let Some(wanted) = &options.kernel else {
        let text = kernels.list()?.join("\n");
        writeln!(std::io::stdout(), "{text}").context("print the versions")?;
        return Ok(ExitCode::SUCCESS);
    };
    if options.tests.is_none() && options.command.is_empty() {
        bail!("there is nothing to run: write it behind `--`, as in `cargo xtask vm {wanted} -- uname -r`");
    }
    setup::vm(workspace)?;
    let kernel = kernels.get(wanted)?;
    let size = Size { cpus: options.cpus, memory: options.memory };
    let limit = Duration::from_secs(options.timeout);
    let place = workspace.target.join("vm");
    if let Some(wanted) = &options.tests {
        let (script, files) = tests::script(workspace, wanted, limit)?;
        let script = variables(&options.env)? + &script;
        let mut report = Report::default();
        let read = |line: &str| {
            let _ = writeln!(std::io::stderr(), "{line}");
            report.read(line);
        };
        // How the whole ended is in the report as well.
        machine::run(&kernel, &script, size, tests::whole(limit, files), &place, read)?;
        return tests::tell(&kernel.release, &report);
    }
    let command = variables(&options.env)? + &script(&options.command)?;
    let print = |line: &str| {
        // Nobody reads on: the command still ends as it would.
        let _ = writeln!(std::io::stdout(), "{line}");
    };
    match machine::run(&kernel, &command, size, limit, &place, print)? {
        Ended::Status(status) => Ok(ExitCode::from(status)),
        Ended::TimeRanOut => {
            eprintln!("error: no end within {} s; `--timeout` allows more", options.timeout);
            Ok(ExitCode::from(TIME_RAN_OUT))
        }
    }
}

/// Returns what sets variables as they are here.
fn variables(names: &[String]) -> Result<String> {
    let mut script = String::new();
    for name in names {
        let value = env::var(name).with_context(|| format!("there is no variable `{name}` to hand on"))?;
        writeln!(script, "export {name}={}", quote(&value)).context("write a script")?;
    }
    Ok(script)
}

/// Returns the command as a script for sh(1), in the caller's directory.
fn script(command: &[String]) -> Result<String> {
    let mut script = String::new();
    let directory = env::current_dir().context("find the current directory")?;
    writeln!(script, "cd {}", quote(&directory.display().to_string())).context("write a script")?;
    let words: Vec<String> = command.iter().map(|word| quote(word)).collect();
    writeln!(script, "exec {}", words.join(" ")).context("write a script")?;
    Ok(script)
}

/// Returns a word as sh(1) reads it whole.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod word_tests {
    use super::*;

    #[test]
    fn a_word_is_read_as_it_was_given() {
        assert_eq!(quote("it's $HOME"), r"'it'\''s $HOME'");
    }
}
