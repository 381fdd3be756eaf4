//! The pinned toolchain's components: clippy, rustfmt, and the source of `core`, which the kernel
//! programs are built from; and the standard library for other processors.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{Found, Progress, debian};
use crate::{
    run::{read, run},
    workspace::Workspace,
};

/// How long the installation takes.
pub const ABOUT: &str = "about 10 s";

/// Adds the components that are missing.
///
/// # Errors
///
/// rustup cannot fetch one, and for the source of `core` Debian has no package of this version.
pub fn install(workspace: &Workspace, progress: Progress<'_>) -> Found {
    let version = &workspace.toolchain;
    let sysroot = sysroot(workspace)?;
    let missing: Vec<_> = COMPONENTS.iter().filter(|component| !component.is_in(&sysroot)).collect();
    if !missing.is_empty() {
        let names = missing.iter().map(|component| component.name).collect::<Vec<_>>();
        progress(&names.join(", "));
        let added = run(Command::new("rustup").args(["component", "add", "--toolchain", version]).args(&names));
        if let Err(error) = added {
            fall_back(version, &sysroot, &missing).with_context(|| format!("{error:#}"))?;
        }
        if let Some(component) = missing.iter().find(|component| !component.is_in(&sysroot)) {
            bail!(
                "{} is still missing in {}; is `rustc` the one of rustup's toolchain {version}?",
                component.name,
                sysroot.display()
            );
        }
    }
    Ok(format!("{version} with clippy, rustfmt, rust-src"))
}

/// Adds the standard library for a target if it is missing.
///
/// # Errors
///
/// rustup cannot fetch it.
pub fn install_target(workspace: &Workspace, target: &str, progress: Progress<'_>) -> Found {
    let version = &workspace.toolchain;
    let library = sysroot(workspace)?.join("lib/rustlib").join(target).join("lib");
    if !library.exists() {
        progress(target);
        run(Command::new("rustup").args(["target", "add", "--toolchain", version, target]))
            .context("check the network, then run this again")?;
        if !library.exists() {
            bail!("{} is still missing; is `rustc` the one of rustup's toolchain {version}?", library.display());
        }
    }
    Ok(target.to_owned())
}

fn sysroot(workspace: &Workspace) -> Result<PathBuf> {
    let path = read(Command::new("rustc").current_dir(&workspace.root).args(["--print", "sysroot"]))?;
    Ok(PathBuf::from(path.trim()))
}

struct Component {
    name: &'static str,
    /// A file that is there if and only if the component is.
    file: &'static str,
}

impl Component {
    fn is_in(&self, sysroot: &Path) -> bool {
        sysroot.join(self.file).exists()
    }
}

const COMPONENTS: [Component; 3] = [
    Component { name: "clippy", file: "bin/clippy-driver" },
    Component { name: "rustfmt", file: "bin/rustfmt" },
    Component { name: RUST_SRC, file: "lib/rustlib/src/rust/library/core/src/lib.rs" },
];

const RUST_SRC: &str = "rust-src";

/// Takes the source of `core` from Debian if rustup cannot fetch it.
///
/// Only the very same version will do: `core` and the compiler are made for each other.
fn fall_back(version: &str, sysroot: &Path, missing: &[&Component]) -> Result<()> {
    if let Some(component) = missing.iter().find(|component| component.name != RUST_SRC) {
        bail!("{} comes from rustup only: check the network, then run this again", component.name);
    }
    if !debian::has_version(RUST_SRC, version) {
        bail!("Debian has no {RUST_SRC} {version} either: check the network, then run this again");
    }
    debian::install(&[RUST_SRC], &mut |_| {})?;
    let source = format!("/usr/src/rustc-{version}/library");
    let place = sysroot.join("lib/rustlib/src/rust");
    std::fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
    std::os::unix::fs::symlink(&source, place.join("library")).with_context(|| format!("link {source}"))
}
