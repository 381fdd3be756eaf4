//! Running other programs, and saying how long they took.

use std::{
    env,
    ffi::OsString,
    io::{BufRead as _, BufReader, Write},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail};

use crate::workspace::Workspace;

/// Returns `cargo` of the pinned toolchain, in the checkout, with the pinned tools on its path.
///
/// `cargo run` describes the package `xtask` in the environment; what a nested build finds there
/// counts as its input, so those variables are taken away.
pub fn cargo(workspace: &Workspace) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&workspace.root);
    command.env("CARGO_TARGET_DIR", &workspace.target);
    command.env("PATH", path_with_tools(workspace));
    for (name, _) in env::vars_os() {
        if let Some(name) = name.to_str()
            && (name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    command
}

/// Returns `cargo TASK` for a target, or for this machine; see [`cargo`].
///
/// The toolchain's own linker will do for another processor: the target brings a C library, and nothing is written in C.
pub fn cargo_for(workspace: &Workspace, task: &str, target: Option<&str>) -> Command {
    let mut command = cargo(workspace);
    command.arg(task);
    if let Some(target) = target {
        let variable = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"));
        command.env(variable, "rust-lld").args(["--target", target]);
    }
    command
}

fn path_with_tools(workspace: &Workspace) -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let tools = workspace.tools().join("bin");
    env::join_paths(std::iter::once(tools).chain(env::split_paths(&path))).unwrap_or(path)
}

/// Runs `command` with its output on the terminal.
///
/// # Errors
///
/// It cannot be started, or ends with anything but 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs `command` and returns what it wrote to its standard output.
///
/// # Errors
///
/// As [`run`]; the error ends in what the command wrote to its standard error.
pub fn read(command: &mut Command) -> Result<String> {
    let line = line(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start `{line}`"))?;
    if !output.status.success() {
        let talk = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed: {}: {}", output.status, talk.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command`, writes what it prints to `out` line by line, and returns those lines and how it ended.
///
/// # Errors
///
/// It cannot be started, or its output cannot be read or written. That it fails is no error here.
pub fn tee(command: &mut Command, out: &mut impl Write) -> Result<(Vec<String>, Result<()>)> {
    let line = line(command);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("start `{line}`"))?;
    let mut lines = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        for bytes in BufReader::new(stdout).split(b'\n') {
            let bytes = bytes.with_context(|| format!("read what `{line}` prints"))?;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            writeln!(out, "{text}").context("print what a command prints")?;
            lines.push(text);
        }
    }
    let status = child.wait().with_context(|| format!("wait for `{line}`"))?;
    let passed = if status.success() { Ok(()) } else { Err(anyhow!("`{line}` failed: {status}")) };
    Ok((lines, passed))
}

/// Runs `work` under a heading and returns how long it took.
///
/// # Errors
///
/// Those of `work`, with the heading in front.
pub fn step(name: &'static str, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    eprintln!("== {name}");
    let start = Instant::now();
    work().context(name)?;
    Ok(start.elapsed())
}

/// Returns the command as a person would type it.
fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
