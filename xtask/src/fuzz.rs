//! `xtask fuzz`: what reads bytes that others chose, under libFuzzer.
//!
//! The inputs in `tests/fuzz/corpus` are committed and only read; what the fuzzer adds stays in the
//! build output and is where the next run begins. An input that fails is kept in
//! `tests/fuzz/artifacts`: it belongs into a test beside the code that it broke.

use std::{
    fs,
    num::NonZero,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::{
    run::{cargo, read, run as run_command},
    setup,
    workspace::Workspace,
};

/// Time that finds the shallow slips in each target, in seconds.
pub const SECONDS_SHORT: u32 = 20;

/// The workspace of the fuzz targets, from the root of the checkout.
pub const MANIFEST: &str = "tests/fuzz/Cargo.toml";

/// The folder of the fuzz targets.
const FOLDER: &str = "tests/fuzz";

/// An input that takes longer than this is a finding, in seconds.
const TIMEOUT_SECONDS: u32 = 5;

/// A target that takes more memory than this has found an input that expands, in MiB.
const MEMORY_MAX_MIB: u32 = 1024;

/// Runs each target for `seconds`; all of them if `targets` is empty.
///
/// # Errors
///
/// Something is missing that cannot be installed, a target is not known or not built, or an input
/// was found that breaks a promise; the targets behind it are not run.
pub fn run(workspace: &Workspace, seconds: u32, targets: &[String]) -> Result<()> {
    setup::fuzz(workspace)?;
    let known = read(&mut cargo_fuzz(workspace, "list"))?;
    let known: Vec<&str> = known.lines().collect();
    if let Some(unknown) = targets.iter().find(|target| !known.contains(&target.as_str())) {
        bail!("there is no target `{unknown}`; known are {}", known.join(", "));
    }
    let chosen: Vec<&str> = if targets.is_empty() { known } else { targets.iter().map(String::as_str).collect() };
    run_command(built(&mut cargo_fuzz(workspace, "build"), seconds))?;
    // A target uses one CPU.
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    for targets in chosen.chunks(at_once) {
        thread::scope(|scope| {
            let runs: Vec<_> =
                targets.iter().map(|target| scope.spawn(move || fuzz(workspace, target, seconds))).collect();
            runs.into_iter().try_for_each(|run| run.join().map_err(|_| anyhow!("a run of the fuzzer has panicked"))?)
        })?;
    }
    Ok(())
}

fn fuzz(workspace: &Workspace, target: &str, seconds: u32) -> Result<()> {
    let found = workspace.target.join("fuzz-corpus").join(target);
    fs::create_dir_all(&found).with_context(|| format!("create {}", found.display()))?;
    let output = built(&mut cargo_fuzz(workspace, "run"), seconds)
        .arg(target)
        .arg(found)
        .arg(workspace.root.join(FOLDER).join("corpus").join(target))
        .arg("--")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={TIMEOUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MAX_MIB}"))
        .args(["-verbosity=0", "-print_final_stats=1"])
        .stdin(Stdio::null())
        .output()
        .context("start cargo fuzz")?;
    let talk = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        eprintln!("{talk}");
        bail!("{target} has found an input that breaks a promise; the text above says where it is kept");
    }
    let inputs = inputs(&talk).with_context(|| format!("{target} does not say how many inputs it tried"))?;
    if inputs == 0 {
        bail!("{target} has tried no input at all");
    }
    eprintln!("  ok    {target}: {inputs} inputs in {seconds} s");
    Ok(())
}

/// Reads how many inputs a run has tried from libFuzzer's statistics.
fn inputs(talk: &str) -> Option<u64> {
    talk.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:")?.trim().parse().ok())
}

/// Returns `cargo fuzz <verb>` with what all verbs take.
fn cargo_fuzz(workspace: &Workspace, verb: &str) -> Command {
    let mut command = cargo(workspace);
    command
        .args(["fuzz", verb, "--fuzz-dir", FOLDER])
        // Instrumented code beside the rest, and without the kernel programs.
        .env("CARGO_TARGET_DIR", workspace.target.join("fuzz"))
        .env("AYA_BUILD_SKIP", "1")
        // The fuzzer's instrumentation is unstable; the pinned stable toolchain has it behind this switch.
        .env("RUSTC_BOOTSTRAP", "1");
    command
}

/// Says how the targets are built for runs of `seconds`.
fn built(command: &mut Command, seconds: u32) -> &mut Command {
    // Our own code has no unsafe blocks to watch, and without the sanitizer it is tried more often.
    command.args(["--sanitizer", "none"]);
    if seconds <= SECONDS_SHORT {
        // Every crate is built for the fuzzer alone, and a short run is over before more would have paid for itself.
        command.args(["--codegen-units", "16"]).env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1");
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_inputs_is_read_from_the_statistics() {
        assert_eq!(
            inputs("###### End\nstat::number_of_executed_units: 119577\nstat::peak_rss_mb: 54\n"),
            Some(119_577)
        );
        assert_eq!(inputs("error: no such target\n"), None);
    }
}
