//! apt with lists of its own: those of the machine stay as they are.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::arch::Arch;
use crate::run::{read, run};

/// Where Debian signs its lists with.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// How long an answer of the mirror's is believed.
const FRESH: Duration = Duration::from_hours(12);

/// The packages that Debian has for a processor.
pub struct Apt {
    arch: Arch,
    directory: PathBuf,
}

impl Apt {
    /// Those whose lists are under `directory`, which is made when they are fetched.
    pub fn new(arch: Arch, directory: &Path) -> Self {
        Self { arch, directory: directory.join("apt") }
    }

    /// Returns where apt leaves packages that it fetched.
    pub fn archives(&self) -> PathBuf {
        self.directory.join("cache/archives")
    }

    /// Returns a program of apt's that knows these lists alone.
    ///
    /// # Errors
    ///
    /// The lists cannot be fetched.
    pub fn command(&self, program: &str) -> Result<Command> {
        let sources = self.directory.join("sources.list");
        let mut command = Command::new(program);
        command.arg("--quiet=2");
        let path = |name: &str| self.directory.join(name).display().to_string();
        for (option, value) in [
            ("Dir::State", path("state")),
            ("Dir::State::status", "/dev/null".to_owned()),
            ("Dir::Cache", path("cache")),
            ("Dir::Etc::sourcelist", sources.display().to_string()),
            ("Dir::Etc::sourceparts", "/dev/null".to_owned()),
            ("Dir::Etc::preferencesparts", "/dev/null".to_owned()),
            ("APT::Architecture", self.arch.debian().to_owned()),
            ("APT::Architectures", self.arch.debian().to_owned()),
            ("APT::Sandbox::User", "root".to_owned()),
            ("Acquire::Languages", "none".to_owned()),
        ] {
            command.args(["--option", &format!("{option}={value}")]);
        }
        if !is_fresh(&sources) {
            for part in ["state/lists/partial", "cache/archives/partial"] {
                fs::create_dir_all(self.directory.join(part)).context("make directories for apt")?;
            }
            let aside = self.directory.join("sources.new");
            fs::write(&aside, sources_of_this_machine(self.arch)?).context("write the sources of kernels")?;
            eprintln!("  get   lists of Debian's packages for {} (about 10 s)", self.arch.debian());
            let mut update = Command::new("apt-get");
            update.args(command.get_args());
            update.arg("--option").arg(format!("Dir::Etc::sourcelist={}", aside.display())).arg("update");
            run(&mut update).context("fetch the lists of Debian's packages: check the network")?;
            fs::rename(&aside, &sources).context("keep the sources of kernels")?;
        }
        Ok(command)
    }
}

/// Unpacks every package in `debs` to `tree`, without running anything of theirs.
///
/// # Errors
///
/// A package cannot be read, or its files cannot be written.
pub fn extract(debs: &Path, tree: &Path) -> Result<()> {
    for deb in fs::read_dir(debs).context("list packages")? {
        let deb = deb?.path();
        if deb.extension().is_some_and(|extension| extension == "deb") {
            read(Command::new("dpkg-deb").arg("--extract").arg(deb).arg(tree))?;
        }
    }
    Ok(())
}

/// Says whether a file is of the last hours.
pub fn is_fresh(path: &Path) -> bool {
    let age = fs::metadata(path).and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age < FRESH)
}

/// Takes the mirrors of the machine's own apt, and names the suites with kernels of the last years.
fn sources_of_this_machine(arch: Arch) -> Result<String> {
    let uris = read(Command::new("apt-get").args(["--print-uris", "update"]))?;
    let mut hosts: Vec<&str> =
        uris.lines().filter_map(|line| line.strip_prefix('\'')?.split("/dists/").next()).collect();
    hosts.dedup();
    let security = hosts.iter().find(|host| host.contains("security"));
    let main = hosts.iter().find(|host| host.trim_end_matches('/').ends_with("/debian") && !host.contains("security"));
    let (Some(security), Some(main)) = (security, main) else {
        bail!("apt of this machine has no source of Debian and of its security updates: add them, as Debian has them");
    };
    ensure!(Path::new(KEYRING).exists(), "{KEYRING} is missing: apt-get install debian-archive-keyring");
    let line = |host: &str, suite: &str| format!("deb [signed-by={KEYRING}] {host} {suite} main\n");
    let suites = ["bullseye-security", "bookworm-security", "trixie-security"].map(|suite| line(security, suite));
    // A guest that has no root of this machine's has programs of a whole release.
    let release = if arch.target().is_some() { line(main, "trixie") } else { String::new() };
    Ok(suites.concat() + &line(main, "trixie-backports") + &release)
}
