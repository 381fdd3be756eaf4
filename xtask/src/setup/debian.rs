//! Debian packages, installed without starting the services they bring.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use super::{Found, Progress, machine};
use crate::run::read;

/// How long the installation takes.
pub const ABOUT: &str = "about 20 s";

/// Installs those of `packages` that are missing.
///
/// # Errors
///
/// This is not Debian and a package has to be installed by hand; not root; apt fails.
pub fn install(packages: &[&str], progress: Progress<'_>) -> Found {
    if read(Command::new("dpkg-query").arg("--version")).is_err() {
        bail!("this machine has no dpkg: install what Debian calls {} by hand", packages.join(", "));
    }
    let missing: Vec<_> = packages.iter().copied().filter(|package| !is_installed(package)).collect();
    if !missing.is_empty() {
        if !machine::is_root() {
            bail!("run as root: apt-get install --no-install-recommends {}", missing.join(" "));
        }
        progress(&missing.join(", "));
        let _guard = NoServices::begin()?;
        // A source of the machine's that does not answer is no reason to stop: what matters is
        // whether the packages can be had, and the next command tells.
        let _ = read(apt().arg("update"));
        read(apt().args(["install", "--yes", "--no-install-recommends"]).args(&missing))?;
    }
    Ok(packages.join(", "))
}

/// Says whether Debian offers `package` in upstream version `version`.
pub fn has_version(package: &str, version: &str) -> bool {
    read(Command::new("apt-cache").args(["madison", package])).is_ok_and(|rows| offers(&rows, version))
}

/// Reads rows such as `rust-src | 1.63.0+dfsg1-2 | ...`.
fn offers(rows: &str, version: &str) -> bool {
    rows.lines().filter_map(|row| row.split('|').nth(1)).any(|offered| {
        let rest = offered.trim().strip_prefix(version);
        rest.is_some_and(|rest| !rest.starts_with(|next: char| next == '.' || next.is_ascii_digit()))
    })
}

fn is_installed(package: &str) -> bool {
    read(Command::new("dpkg-query").args(["--show", "--showformat=${db:Status-Status}", package]))
        .is_ok_and(|status| status == "installed")
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    // Another apt may be at work: wait for it for two minutes, in seconds.
    apt.args(["-o", "DPkg::Lock::Timeout=120"]);
    apt
}

/// Forbids packages to start their services for as long as it lives.
///
/// `policy-rc.d` is Debian's way to say so: 101 is "action forbidden by policy". A file that is there
/// already is the machine's owner's, and is left as it is.
struct NoServices {
    created: Option<PathBuf>,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";
const POLICY_TEXT: &str = "#!/bin/sh\n# By `cargo xtask setup`, for as long as it installs packages.\nexit 101\n";

impl NoServices {
    fn begin() -> anyhow::Result<Self> {
        let path = Path::new(POLICY);
        // One of ours that a killed run has left behind is taken over, and so removed in the end.
        if path.exists() && fs::read_to_string(path).ok().as_deref() != Some(POLICY_TEXT) {
            return Ok(Self { created: None });
        }
        fs::write(path, POLICY_TEXT).with_context(|| format!("write {POLICY}"))?;
        let guard = Self { created: Some(path.to_owned()) };
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(|| format!("chmod {POLICY}"))?;
        Ok(guard)
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(path) = &self.created
            && let Err(error) = fs::remove_file(path)
        {
            eprintln!("warning: remove {}: {error}", path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_same_version_of_a_package_will_do() {
        let rows = "  rust-src | 1.63.0+dfsg1-2 | mirror bookworm/main amd64 Packages\n\
                    rust-src | 1.95.0+dfsg2-1 | mirror sid/main amd64 Packages\n";
        assert!(offers(rows, "1.95.0"));
        assert!(offers(rows, "1.63.0"));
        assert!(!offers(rows, "1.95"));
        assert!(!offers(rows, "1.6"));
        assert!(!offers(rows, "1.94.0"));
        assert!(!offers("", "1.95.0"));
    }
}
