//! What files a guest has: those of this machine, or Debian's for another processor with the checkout in between.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    apt::{Apt, extract},
    arch::Arch,
};
use crate::{run::read, workspace::Workspace};

/// What a guest of another processor has: a shell with the usual small programs, and all that tests start.
const PACKAGES: [&str; 14] = [
    "base-passwd",
    "busybox-static",
    "coreutils",
    "dash",
    "dnsmasq-base",
    "findutils",
    "grep",
    "iproute2",
    "kmod",
    "mount",
    "nftables",
    "sed",
    "strace",
    "util-linux",
];

/// Directories of which Debian's packages know only that they are links.
const MERGED: [&str; 3] = ["bin", "lib", "sbin"];

/// Directories that no package brings.
const EMPTY: [&str; 8] = ["dev", "etc", "proc", "root", "run", "sys", "tmp", "var/tmp"];

/// Files that every host has, of a host that has no network card.
const WRITTEN: [(&str, &str); 2] =
    [("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"), ("etc/resolv.conf", "nameserver 127.0.0.1\n")];

/// The files of a guest.
pub struct Files {
    /// The directory of this machine that is the guest's root, under a layer in its memory.
    pub root: PathBuf,
    /// Directories of this machine that the guest has under the same names, to be read.
    pub shared: Vec<PathBuf>,
    /// The guest's PATH.
    pub search: String,
}

impl Files {
    /// Returns the files for a processor, and fetches those that are missing to `directory`.
    ///
    /// # Errors
    ///
    /// They cannot be fetched.
    pub fn get(arch: Arch, workspace: &Workspace, directory: &Path) -> Result<Self> {
        let Some(target) = arch.target() else {
            let search = env::var("PATH").unwrap_or_default();
            return Ok(Self { root: PathBuf::from("/"), shared: Vec::new(), search });
        };
        let root = directory.join("root");
        let packages = PACKAGES.join("\n");
        if fs::read_to_string(root.join("packages")).ok().as_deref() != Some(&packages) {
            fetch(arch, directory, &root)
                .with_context(|| format!("fetch programs of Debian's for {}", arch.debian()))?;
            fs::write(root.join("packages"), packages).context("write down which packages there are")?;
        }
        let programs = workspace.target.join(target).join("debug");
        let search = format!("{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", programs.display());
        Ok(Self { root, shared: vec![workspace.root.clone(), workspace.target.clone()], search })
    }

    /// Says whether the guest has a directory of this machine, under the same name.
    pub fn has(&self, directory: &Path) -> bool {
        self.root == Path::new("/") || self.shared.iter().any(|shared| directory.starts_with(shared))
    }
}

fn fetch(arch: Arch, directory: &Path, root: &Path) -> Result<()> {
    eprintln!("  get   programs of Debian's for {}: {} (about 30 s)", arch.debian(), PACKAGES.join(", "));
    let apt = Apt::new(arch, directory);
    let mut install = apt.command("apt-get")?;
    install.args(["--yes", "--no-install-recommends", "--download-only", "install"]).args(PACKAGES);
    read(&mut install)?;
    let part = directory.join("root.part");
    let _ = fs::remove_dir_all(&part);
    let _ = fs::remove_dir_all(root);
    for name in EMPTY {
        fs::create_dir_all(part.join(name)).context("make a directory of the guest's root")?;
    }
    for name in MERGED {
        fs::create_dir_all(part.join("usr").join(name)).context("make a directory of the guest's root")?;
        symlink(Path::new("usr").join(name), part.join(name)).context("link a directory of the guest's root")?;
    }
    let debs = apt.archives();
    extract(&debs, &part)?;
    for name in ["passwd", "group"] {
        let master = part.join("usr/share/base-passwd").join(format!("{name}.master"));
        fs::copy(&master, part.join("etc").join(name)).with_context(|| format!("copy {}", master.display()))?;
    }
    for (name, text) in WRITTEN {
        fs::write(part.join(name), text).with_context(|| format!("write {name} of the guest"))?;
    }
    fs::remove_dir_all(&debs).context("remove packages")?;
    fs::create_dir_all(debs.join("partial")).context("make directories for apt")?;
    fs::rename(&part, root).with_context(|| format!("make {}", root.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_of_another_processor_has_what_is_shared_and_no_more() {
        let files = |root: &str| Files { root: root.into(), shared: vec!["/src".into()], search: String::new() };
        assert!(files("/").has(Path::new("/home")));
        assert!(files("/other").has(Path::new("/src/docs")));
        assert!(!files("/other").has(Path::new("/srclib")));
    }
}
