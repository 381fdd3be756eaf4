//! `xtask setup`: finds what is missing on this machine and installs it, each at a pinned version.
//!
//! A second run finds everything in its place and takes a moment. What cannot be installed, such as a
//! kernel, is one line each that says what to do.

mod debian;
pub mod machine;
mod rustup;
mod tools;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    Scope,
    vm::{Arch, VIRTIOFSD, has_kvm},
    workspace::Workspace,
};

/// Debian packages that the kernel tests start programs of: `ip`, `nft`, `setpriv` and `unshare`, and `strace`, which
/// lets a system call fail when told to.
const KERNEL_TEST_PACKAGES: &[&str] = &["dnsmasq-base", "iproute2", "nftables", "strace", "util-linux"];

/// Debian packages that a machine with another kernel takes: emulator, first programs, modules, and what unpacks kernels.
const VM_PACKAGES: &[&str] = &["qemu-system-x86", "busybox-static", "kmod", "xz-utils", "zstd"];

/// The same for a guest of arm64; its first programs come with its files.
const VM_ARM64_PACKAGES: &[&str] = &["qemu-system-arm", "kmod", "xz-utils", "zstd"];

/// Debian packages of the demo: the services of a small shop, and their clients.
const DEMO_PACKAGES: &[&str] =
    &["nginx", "redis-server", "redis-tools", "postgresql", "postgresql-client", "curl", "iproute2", "util-linux"];

/// Debian packages that the fuzz targets need: libFuzzer is C++ and is compiled with them.
const FUZZ_PACKAGES: &[&str] = &["g++"];

/// Debian packages that say which shared libraries a program needs.
const DEB_PACKAGES: &[&str] = &["dpkg-dev"];

/// Prepares this machine for `scope`.
///
/// # Errors
///
/// Something is missing that only a person can bring; each has had its line by then.
pub fn run(workspace: &Workspace, scope: Scope) -> Result<()> {
    let mut report = Report::default();
    report.check("disk", machine::disk(&workspace.target));
    report.install("toolchain", rustup::ABOUT, |progress| rustup::install(workspace, progress));
    if scope.has_kernel() {
        for check in machine::KERNEL_CHECKS {
            report.check(check.name, (check.run)());
        }
        report.tool(workspace, &tools::BPF_LINKER);
        report.packages(KERNEL_TEST_PACKAGES);
    }
    if scope.has_fuzz() {
        report.tool(workspace, &tools::CARGO_FUZZ);
        report.packages(FUZZ_PACKAGES);
    }
    report.finish()
}

/// Prepares this machine for the fuzz targets.
///
/// # Errors
///
/// As [`run`].
pub fn fuzz(workspace: &Workspace) -> Result<()> {
    let mut report = Report::default();
    report.install("toolchain", rustup::ABOUT, |progress| rustup::install(workspace, progress));
    report.tool(workspace, &tools::CARGO_FUZZ);
    report.packages(FUZZ_PACKAGES);
    report.finish()
}

/// Prepares this machine for the demo.
///
/// # Errors
///
/// As [`run`].
pub fn demo(workspace: &Workspace) -> Result<()> {
    let mut report = Report::default();
    report.check("disk", machine::disk(&workspace.target));
    report.install("toolchain", rustup::ABOUT, |progress| rustup::install(workspace, progress));
    for check in machine::KERNEL_CHECKS {
        report.check(check.name, (check.run)());
    }
    report.tool(workspace, &tools::BPF_LINKER);
    report.packages(DEMO_PACKAGES);
    report.finish()
}

/// Prepares this machine for running commands under another kernel; with `builds`, those that are built here.
///
/// # Errors
///
/// As [`run`].
pub fn vm(workspace: &Workspace, arch: Arch, builds: bool) -> Result<()> {
    let mut report = Report::default();
    report.check("disk", machine::disk(&workspace.target));
    report.check("processor", machine::amd64());
    report.check("root", machine::only_root());
    report.packages(match arch {
        Arch::Amd64 => VM_PACKAGES,
        Arch::Arm64 | Arch::Arm64With16k => VM_ARM64_PACKAGES,
    });
    if builds {
        report.install("toolchain", rustup::ABOUT, |progress| rustup::install(workspace, progress));
        if let Some(target) = arch.target() {
            report.install("target", rustup::ABOUT, |progress| rustup::install_target(workspace, target, progress));
        }
        report.tool(workspace, &tools::BPF_LINKER);
    }
    // Debian 12 has it in a package of QEMU's.
    if !VIRTIOFSD.iter().any(|path| Path::new(path).exists()) {
        report.packages(&["virtiofsd"]);
    }
    let kvm = match arch {
        Arch::Amd64 if has_kvm() => "yes",
        Arch::Amd64 => "no, so the machine is emulated",
        Arch::Arm64 | Arch::Arm64With16k => "not for arm64, so the machine is emulated",
    };
    report.check("KVM", Ok(kvm.to_owned()));
    report.finish()
}

/// Prepares this machine for building the Debian package.
///
/// # Errors
///
/// As [`run`].
pub fn deb(workspace: &Workspace) -> Result<()> {
    let mut report = Report::default();
    report.install("toolchain", rustup::ABOUT, |progress| rustup::install(workspace, progress));
    report.tool(workspace, &tools::BPF_LINKER);
    report.tool(workspace, &tools::CARGO_DEB);
    report.packages(DEB_PACKAGES);
    report.finish()
}

/// What a check or an installation found: a short fact, printed behind its name.
type Found = Result<String>;

/// Called once, before something is fetched or built, with what that is.
type Progress<'a> = &'a mut dyn FnMut(&str);

/// Prints one line for each thing and remembers which are missing.
#[derive(Default)]
struct Report {
    missing: Vec<&'static str>,
}

impl Report {
    fn check(&mut self, name: &'static str, found: Found) {
        self.line(name, found, None);
    }

    fn tool(&mut self, workspace: &Workspace, tool: &tools::Tool) {
        self.install(tool.name, tool.about, |progress| tools::install(workspace, tool, progress));
    }

    fn packages(&mut self, packages: &[&str]) {
        self.install("Debian packages", debian::ABOUT, |progress| debian::install(packages, progress));
    }

    fn install(&mut self, name: &'static str, about: &str, work: impl FnOnce(Progress<'_>) -> Found) {
        let start = Instant::now();
        let mut installed = false;
        let found = work(&mut |what| {
            installed = true;
            eprintln!("  get   {name}: {what} ({about})");
        });
        self.line(name, found, installed.then(|| start.elapsed()));
    }

    fn line(&mut self, name: &'static str, found: Found, took: Option<Duration>) {
        match (found, took) {
            (Ok(fact), None) => eprintln!("  ok    {name}: {fact}"),
            (Ok(fact), Some(took)) => eprintln!("  ok    {name}: {fact}, after {} s", took.as_secs()),
            (Err(error), _) => {
                eprintln!("  FAIL  {name}: {error:#}");
                self.missing.push(name);
            }
        }
    }

    fn finish(self) -> Result<()> {
        if self.missing.is_empty() {
            return Ok(());
        }
        bail!("this machine is not ready: {}; the lines marked FAIL say what to do", self.missing.join(", "))
    }
}
