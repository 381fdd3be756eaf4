//! `xtask test`: the tests that need nothing, and those that need root and a kernel.

use std::{
    fs,
    io::{self, Write},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    Scope, fuzz, gaps,
    run::{cargo, cargo_for, read, run as run_command, tee},
    setup,
    workspace::Workspace,
};

/// What a run of tests printed and how it ended.
pub struct Ran {
    /// The lines of its standard output.
    pub lines: Vec<String>,
    /// The error says which command failed.
    pub passed: Result<()>,
}

/// Sets up what `scope` needs and runs its tests. A run of all of them ends in the table of gaps.
///
/// # Errors
///
/// Something is missing that cannot be installed, a test fails, or a gap has no test.
pub fn run(workspace: &Workspace, scope: Scope) -> Result<()> {
    let ran = run_tests(workspace, scope, &[], &mut io::stdout())?;
    let told = if matches!(scope, Scope::All) { gaps::tell_all(&ran.lines) } else { Ok(()) };
    ran.passed.and(told)?;
    if scope.has_fuzz() {
        fuzz::run(workspace, fuzz::SECONDS_SHORT, &[])?;
    }
    Ok(())
}

/// Sets up what `scope` needs, and runs those of its tests whose name has one of `filters` in it; all of
/// them if there is none. What they print is written to `out` as it comes.
///
/// # Errors
///
/// Something is missing that cannot be installed, or the tests cannot be started.
pub fn run_tests(workspace: &Workspace, scope: Scope, filters: &[String], out: &mut impl Write) -> Result<Ran> {
    setup::run(workspace, scope)?;
    if scope.has_kernel() {
        build_agents(workspace, None)?;
    }
    let mut command = cargo(workspace);
    command.args(["test", "--no-fail-fast"]);
    match scope {
        // The default members are those whose tests need no privileges. Without the kernel programs
        // they need no BPF toolchain either.
        Scope::Host => command.env("AYA_BUILD_SKIP", "1"),
        Scope::Kernel => command.args(["--package", "tests"]),
        // One command: a crate that both sides use is compiled once.
        Scope::All => command.args(["--workspace", "--exclude", "agent-ebpf"]),
    };
    if scope.has_kernel() {
        // Setup has found everything that a test may ask for, so a test that skips has failed.
        command.env("EASTWALL_REQUIRE_ALL", "1");
        if !setup::machine::is_root() {
            run_tests_by_sudo(&mut command)?;
        }
    }
    if !filters.is_empty() {
        command.arg("--").args(filters);
    }
    let (lines, passed) = tee(&mut command, out)?;
    Ok(Ran { lines, passed })
}

/// Builds what the tests start, for a target or this machine: cargo builds no program of a package that it only imports.
/// The usual agent last, so that it has its name.
///
/// # Errors
///
/// They cannot be built.
pub fn build_agents(workspace: &Workspace, target: Option<&str>) -> Result<()> {
    run_command(agent(workspace, target).args(["--features", "kernel-log"]))?;
    let programs = workspace.target.join(target.unwrap_or_default()).join("debug");
    fs::copy(programs.join("eastwall"), programs.join("eastwall-kernel-log")).context("keep the agent with a log")?;
    build_agent(workspace, target)
}

/// Builds the usual agent for a target or this machine.
///
/// # Errors
///
/// It cannot be built.
pub fn build_agent(workspace: &Workspace, target: Option<&str>) -> Result<()> {
    run_command(&mut agent(workspace, target))
}

fn agent(workspace: &Workspace, target: Option<&str>) -> Command {
    let mut build = cargo_for(workspace, "build", target);
    build.args(["--package", "eastwall", "--bins"]);
    build
}

/// Lets cargo build as the user and start the test programs as root.
fn run_tests_by_sudo(command: &mut Command) -> Result<()> {
    let version = read(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
    if read(Command::new("sudo").args(["--non-interactive", "true"])).is_err() {
        bail!("kernel tests need root: run as root, or where `sudo` asks for no password");
    }
    let variable = format!("CARGO_TARGET_{}_RUNNER", host.to_uppercase().replace('-', "_"));
    command.env(variable, "sudo --preserve-env");
    Ok(())
}
