//! Tools that cargo installs, each pinned, installed beside the build output and never in the user's home.

use std::process::Command;

use anyhow::Context as _;

use super::{Found, Progress};
use crate::{
    run::{cargo, read, run},
    workspace::Workspace,
};

/// One tool.
pub struct Tool {
    /// The name of its package and of its program.
    pub name: &'static str,
    /// The version, and no other.
    pub version: &'static str,
    /// How long its installation takes on two cores.
    pub about: &'static str,
    /// What its build is told by the environment.
    pub settings: &'static [(&'static str, &'static str)],
}

/// For a tool whose work others do, LLVM or cargo: to optimise it would take longer than it ever saves.
const PLAIN: &[(&str, &str)] = &[("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"), ("CARGO_PROFILE_RELEASE_DEBUG", "0")];

/// Links the kernel programs. Its LLVM must be the one of the toolchain, so both are raised together.
pub const BPF_LINKER: Tool = Tool { name: "bpf-linker", version: "0.10.3", about: "about a minute", settings: PLAIN };

/// Builds and runs the fuzz targets.
pub const CARGO_FUZZ: Tool = Tool { name: "cargo-fuzz", version: "0.13.2", about: "about 40 s", settings: PLAIN };

/// Builds the Debian package.
pub const CARGO_DEB: Tool = Tool { name: "cargo-deb", version: "3.8.0", about: "about 40 s", settings: &[] };

/// Installs `tool` if no program of that version is found.
///
/// # Errors
///
/// cargo cannot fetch or build it.
pub fn install(workspace: &Workspace, tool: &Tool, progress: Progress<'_>) -> Found {
    let &Tool { name, version, .. } = tool;
    let own = workspace.tools().join("bin").join(name);
    if has_version(Command::new(&own), version) {
        return Ok(format!("{version} in {}", workspace.tools().display()));
    }
    if has_version(Command::new(name), version) {
        return Ok(format!("{version} on the path"));
    }
    progress(&format!("{version} by cargo install"));
    run(cargo(workspace)
        // A build output of its own, so that the caller's holds nothing but the project.
        .env_remove("CARGO_TARGET_DIR")
        .envs(tool.settings.iter().copied())
        .args(["install", "--quiet", "--locked", "--force", "--version", version, "--root"])
        .arg(workspace.tools())
        .arg(name))
    .with_context(|| format!("install {name} {version}: check the network, then run this again"))?;
    Ok(format!("{version} in {}", workspace.tools().display()))
}

/// Says whether the program is there and prints `version` as a word of its own.
fn has_version(mut program: Command, version: &str) -> bool {
    read(program.arg("--version")).is_ok_and(|text| text.split_whitespace().any(|word| word == version))
}
