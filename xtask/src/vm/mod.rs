//! `xtask vm`: a command, or the tests, under another kernel.
//!
//! ```text
//! arch       what differs between processors
//! apt        Debian's packages for one
//! kernels    which Debian has, and one of them unpacked
//! image      the kernel out of its wrapping
//! files      what files the guest has
//! initramfs  what the guest begins with; init.sh is its first process
//! machine    QEMU
//! tests      which tests, and how the guest runs them
//! outcome    what came of them
//! ```

mod apt;
mod arch;
mod files;
mod image;
mod initramfs;
mod kernels;
mod machine;
mod outcome;
mod tests;

use std::{env, fmt::Write as _, io::Write as _, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
pub use arch::Arch;
use clap::Args;
use files::Files;
use kernels::Kernels;
use machine::{Ended, Size};
pub use machine::{VIRTIOFSD, has_kvm};
use outcome::Report;

use crate::{setup, test, workspace::Workspace};

/// What `cargo xtask vm` takes.
#[derive(Args)]
#[command(after_help = "\
Examples:
  cargo xtask vm 6.1 -- uname -r
  cargo xtask vm newest -- target/debug/eastwall doctor
  cargo xtask vm 6.1 --tests                    # the tests that load kernel programs
  cargo xtask vm 6.1 --tests hook_ agent_starts # those of some files, by the beginning of the name
  cargo xtask vm 6.1 --tests hook_tcp::g5_      # some tests of a file
  cargo xtask vm 6.1 --arch arm64 -- eastwall doctor
  cargo xtask vm --list

The guest sees the files of this machine, under a layer in its memory: it may write anywhere,
and nothing of that comes back. It has a cgroup v2 hierarchy, bpffs and lo, and no network card.
Its command starts in the same directory, with the same PATH. Kernels are kept in the build
output.

It ends with the status of the command; 124 says that time ran out. Without KVM the machine is
emulated: it boots in some 15 s, and what it runs takes about ten times as long.

A guest of arm64 is always emulated. It cannot run the programs of this machine, so it has small ones
of Debian's, and sees of this machine the checkout and the build output, which it cannot write. The
agent is built for it first, and is on its PATH.")]
pub struct Options {
    /// The beginning of a version, such as 6.1 (the newest such is taken), a whole one, or `newest`
    #[arg(required_unless_present = "list")]
    kernel: Option<String>,
    /// The guest's processor
    #[arg(long, default_value = "amd64")]
    arch: Arch,
    /// Print the versions that Debian has
    #[arg(long, conflicts_with = "kernel")]
    list: bool,
    /// Build the tests here, run them there, and print what passed, failed and was skipped: FILE is a name in
    /// tests/tests or the beginning of some, or FILE::TEST; all if none is named
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
    let arch = options.arch;
    let place = match arch {
        Arch::Amd64 => workspace.target.join("vm"),
        Arch::Arm64 | Arch::Arm64With16k => workspace.target.join("vm").join(arch.name()),
    };
    let kernels = Kernels::new(arch, place.clone());
    let Some(wanted) = &options.kernel else {
        let text = kernels.list()?.join("\n");
        writeln!(std::io::stdout(), "{text}").context("print the versions")?;
        return Ok(ExitCode::SUCCESS);
    };
    if options.tests.is_none() && options.command.is_empty() {
        bail!("there is nothing to run: write it behind `--`, as in `cargo xtask vm {wanted} -- uname -r`");
    }
    // A guest of another kind has an agent of its own.
    setup::vm(workspace, arch, options.tests.is_some() || arch.target().is_some())?;
    let kernel = kernels.get(wanted)?;
    let files = Files::get(arch, workspace, &place)?;
    let size = Size { cpus: options.cpus, memory: options.memory };
    let limit = Duration::from_secs(options.timeout);
    if let Some(wanted) = &options.tests {
        let (script, number) = tests::script(workspace, arch, wanted, limit)?;
        let script = variables(&options.env)? + &script;
        let mut report = Report::default();
        let read = |line: &str| {
            let _ = writeln!(std::io::stderr(), "{line}");
            report.read(line);
        };
        // How the whole ended is in the report as well.
        machine::run(&kernel, &files, &script, size, tests::whole(limit, number), &place, read)?;
        return tests::tell(&kernel.release, &report);
    }
    let command = variables(&options.env)? + &script(&options.command, &files)?;
    if arch.target().is_some() {
        test::build_agent(workspace, arch.target())?;
    }
    let print = |line: &str| {
        // Nobody reads on: the command still ends as it would.
        let _ = writeln!(std::io::stdout(), "{line}");
    };
    match machine::run(&kernel, &files, &command, size, limit, &place, print)? {
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
fn script(command: &[String], files: &Files) -> Result<String> {
    let mut script = String::new();
    let directory = env::current_dir().context("find the current directory")?;
    ensure!(files.has(&directory), "the guest has no {}: start this in the checkout", directory.display());
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
