//! Kernels that Debian has: which there are, and one of them unpacked beside the build output.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{
    apt::{Apt, extract, is_fresh},
    arch::Arch,
    image,
};
use crate::run::read;

/// A kernel that is ready to boot.
pub struct Kernel {
    /// What it is for.
    pub arch: Arch,
    /// As `uname -r` prints it.
    pub release: String,
    /// What QEMU boots.
    pub image: PathBuf,
    /// The directory that the guest has as `/lib/modules/RELEASE`.
    pub modules: PathBuf,
    /// The directory that has `lib/modules`, for modprobe(8).
    pub root: PathBuf,
}

/// The kernels that were fetched, and the lists they were chosen from.
pub struct Kernels {
    arch: Arch,
    directory: PathBuf,
    apt: Apt,
}

impl Kernels {
    /// Those of a processor under `directory`, which is made when something is kept.
    pub fn new(arch: Arch, directory: PathBuf) -> Self {
        let apt = Apt::new(arch, &directory);
        Self { arch, directory, apt }
    }

    /// Returns the versions that Debian has, oldest first.
    ///
    /// # Errors
    ///
    /// The lists cannot be fetched.
    pub fn list(&self) -> Result<Vec<String>> {
        let names = read(self.apt.command("apt-cache")?.args(["pkgnames", "linux-image-"]))?;
        let versions = names.lines().filter_map(|name| version_of(name, self.arch));
        let mut versions: Vec<String> = versions.map(str::to_owned).collect();
        versions.sort_by_key(|version| numbers(version));
        Ok(versions)
    }

    /// Returns the kernel that `wanted` means, and fetches it if it is not here: the beginning of a version (the newest
    /// such is taken), a version, or `newest`.
    ///
    /// # Errors
    ///
    /// There is none such, or it cannot be fetched.
    pub fn get(&self, wanted: &str) -> Result<Kernel> {
        let version = self.choose(wanted)?;
        let place = self.directory.join(&version);
        if !place.join("release").exists() {
            self.fetch(&version, &place).with_context(|| format!("fetch Debian's kernel {version}"))?;
        }
        let release = fs::read_to_string(place.join("release")).context("read the release of a kernel")?;
        let modules = place.join("lib/modules").join(&release);
        let image = place.join("image");
        Ok(Kernel { arch: self.arch, release, image, modules, root: place })
    }

    /// Returns a version. An answer of the last hours is not asked for again.
    fn choose(&self, wanted: &str) -> Result<String> {
        if self.directory.join(wanted).join("release").exists() {
            return Ok(wanted.to_owned());
        }
        let choice = self.directory.join(format!("choice-{wanted}"));
        if is_fresh(&choice) {
            return fs::read_to_string(&choice).context("read which kernel was chosen");
        }
        let versions = self.list()?;
        let Some(version) = versions.iter().rfind(|version| matches(version, wanted)) else {
            let arch = self.arch.name();
            bail!("Debian has no kernel {wanted} for {arch}; `cargo xtask vm --list --arch {arch}` names those it has");
        };
        fs::write(&choice, version).with_context(|| format!("write {}", choice.display()))?;
        Ok(version.clone())
    }

    fn fetch(&self, version: &str, place: &Path) -> Result<()> {
        eprintln!("  get   kernel {version} (about 20 s)");
        let work = place.with_extension("part");
        let _ = fs::remove_dir_all(&work);
        let (debs, tree) = (work.join("debs"), work.join("tree"));
        fs::create_dir_all(&debs).context("make a directory for packages")?;
        let of = |part: &str| format!("linux-{part}-{version}-{}", self.arch.flavour());
        // From 7.0 on Debian splits the package.
        let is_split =
            read(self.apt.command("apt-cache")?.args(["show", &of("modules")])).is_ok_and(|text| !text.is_empty());
        let parts: &[&str] = if is_split { &["binary", "modules", "base"] } else { &["image"] };
        read(self.apt.command("apt-get")?.current_dir(&debs).arg("download").args(parts.iter().map(|part| of(part))))?;
        extract(&debs, &tree)?;
        // Some packages have their files below /usr, where the system has merged the two.
        let lib = [tree.join("usr/lib/modules"), tree.join("lib/modules")];
        let modules = lib.iter().find(|path| path.exists()).context("the package has no modules")?;
        let release = only_entry(modules)?;
        let part = work.join("kernel");
        fs::create_dir_all(part.join("lib")).context("make a directory for modules")?;
        fs::rename(modules, part.join("lib/modules")).context("keep the modules")?;
        read(Command::new("depmod").arg("--basedir").arg(&part).arg(&release))?;
        let packed = [
            tree.join("boot").join(format!("vmlinuz-{release}")),
            part.join("lib/modules").join(&release).join("vmlinuz"),
        ];
        let packed = packed.iter().find(|path| path.exists()).context("the package has no kernel")?;
        image::unpack(packed, &part.join("image"))?;
        fs::write(part.join("release"), &release).context("write the release of a kernel")?;
        fs::rename(&part, place).with_context(|| format!("make {}", place.display()))?;
        fs::remove_dir_all(&work).context("remove packages")
    }
}

/// The version in the name of a package, if it is a usual kernel of the flavour.
fn version_of(package: &str, arch: Arch) -> Option<&str> {
    let version = package.strip_prefix("linux-image-")?.strip_suffix(arch.flavour())?.strip_suffix('-')?;
    let is_usual = version.starts_with(|c: char| c.is_ascii_digit())
        && !version.contains("rt")
        // Kernels of one release, built again for the release before.
        && !version.contains(".deb11.");
    is_usual.then_some(version)
}

/// Says whether a version is `wanted`, or begins with it.
fn matches(version: &str, wanted: &str) -> bool {
    let rest = version.strip_prefix(wanted);
    wanted == "newest" || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '+', '-']))
}

/// The numbers in a version, by which versions are sorted.
fn numbers(version: &str) -> Vec<u64> {
    version.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn only_entry(directory: &Path) -> Result<String> {
    let entry = fs::read_dir(directory).ok().and_then(|mut entries| entries.next()).context("the package is empty")?;
    Ok(entry?.file_name().to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_usual_kernels_of_the_flavour_are_kernels() {
        assert_eq!(version_of("linux-image-6.1.0-56-cloud-amd64", Arch::Amd64), Some("6.1.0-56"));
        assert_eq!(version_of("linux-image-6.12.118+deb13-cloud-amd64", Arch::Amd64), Some("6.12.118+deb13"));
        assert_eq!(version_of("linux-image-6.1.0-56-cloud-arm64", Arch::Arm64), Some("6.1.0-56"));
        assert_eq!(version_of("linux-image-6.12.118+deb13-arm64-16k", Arch::Arm64With16k), Some("6.12.118+deb13"));
        for other in [
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-0.deb11.5-cloud-amd64",
            "linux-image-cloud-amd64",
            "linux-image-6.1.0-56-rt-cloud-amd64",
            "linux-headers-6.1.0-56-cloud-amd64",
            "linux-image-6.1.0-56-cloud-arm64",
            "linux-image-6.1.0-56-cloud-arm64-unsigned",
        ] {
            assert_eq!(version_of(other, Arch::Amd64), None, "{other}");
        }
    }

    #[test]
    fn a_version_is_meant_by_its_beginning_up_to_a_border() {
        assert!(matches("6.1.0-56", "6.1"));
        assert!(!matches("6.12.1", "6.1"));
        assert!(matches("6.12.118+deb13", "6.12.118"));
        assert!(matches("7.3.4+deb13", "newest"));
    }

    #[test]
    fn versions_are_sorted_as_numbers() {
        let mut versions = ["6.12.118+deb13", "6.1.0-9", "5.10.0-46", "6.1.0-56"];
        versions.sort_by_key(|version| numbers(version));
        assert_eq!(versions, ["5.10.0-46", "6.1.0-9", "6.1.0-56", "6.12.118+deb13"]);
    }
}
