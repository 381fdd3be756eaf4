//! `xtask bench`: builds the benchmark for release and runs it as root.

use std::process::Command;

use anyhow::Result;

use crate::{
    Scope,
    run::{cargo, run as run_command},
    setup,
    workspace::Workspace,
};

/// Runs `parts` of the benchmark, all of it if none is named. Numbers go to `bench/latest.json` in the
/// build output.
///
/// # Errors
///
/// Something is missing that cannot be installed, a measurement failed, or with `check` a number missed
/// its target.
pub fn run(workspace: &Workspace, quick: bool, check: bool, parts: &[String]) -> Result<()> {
    setup::run(workspace, Scope::Kernel)?;
    run_command(cargo(workspace).args(["build", "--release", "--package", "tests", "--bins"]))?;
    let binary = workspace.target.join("release/bench");
    let mut command = if setup::machine::is_root() {
        Command::new(binary)
    } else {
        let mut sudo = Command::new("sudo");
        sudo.arg(binary);
        sudo
    };
    command.arg("--json").arg(workspace.target.join("bench/latest.json")).args(parts);
    for (flag, wanted) in [("--quick", quick), ("--check", check)] {
        if wanted {
            command.arg(flag);
        }
    }
    run_command(&mut command)
}
