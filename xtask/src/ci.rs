//! `xtask ci`: all that must pass before a change lands, the quick checks first.

use std::time::Duration;

use anyhow::Result;

use crate::{
    Scope, deb, fuzz, licences,
    run::{cargo, run as run_command, step},
    setup, test, tidy,
    workspace::Workspace,
};

/// Runs every check and then every test, and says how long each step took.
///
/// # Errors
///
/// The first step that fails; those behind it are not run.
pub fn run(workspace: &Workspace) -> Result<()> {
    let mut took = Vec::new();
    let mut step = |name, work: &dyn Fn() -> Result<()>| -> Result<()> {
        took.push((name, step(name, work)?));
        Ok(())
    };
    step("setup", &|| setup::run(workspace, Scope::All))?;
    step("format", &|| format(workspace))?;
    step("tidy", &|| tidy::run(workspace))?;
    step("licences", &|| licences::run(workspace))?;
    step("clippy", &|| clippy(workspace))?;
    step("clippy of the kernel programs", &|| clippy_ebpf(workspace))?;
    step("tests", &|| test::run(workspace, Scope::All))?;
    step("package", &|| deb::run(workspace))?;

    eprintln!("== passed");
    for (name, time) in &took {
        eprintln!("  {:>4} s  {name}", time.as_secs());
    }
    eprintln!("  {:>4} s  in all", took.iter().map(|(_, time)| *time).sum::<Duration>().as_secs());
    Ok(())
}

fn format(workspace: &Workspace) -> Result<()> {
    run_command(cargo(workspace).args(["fmt", "--all", "--check"]))?;
    run_command(cargo(workspace).args(["fmt", "--manifest-path", fuzz::MANIFEST, "--check"]))
}

fn clippy(workspace: &Workspace) -> Result<()> {
    run_command(cargo(workspace).args([
        "clippy",
        "--workspace",
        "--exclude",
        "agent-ebpf",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

/// The kernel programs compile for one target only, and `core` must be built for it.
fn clippy_ebpf(workspace: &Workspace) -> Result<()> {
    let arch = std::env::consts::ARCH;
    run_command(
        cargo(workspace)
            // build-std is unstable; the pinned stable toolchain has it behind this switch.
            .env("RUSTC_BOOTSTRAP", "1")
            // aya-ebpf picks its bindings by it, as in a build by `agent/build.rs`.
            .env("CARGO_ENCODED_RUSTFLAGS", format!("--cfg=bpf_target_arch=\"{arch}\""))
            .args(["clippy", "--package", "agent-ebpf", "--release", "--target", "bpfel-unknown-none"])
            .args(["-Z", "build-std=core", "--", "-D", "warnings"]),
    )
}
