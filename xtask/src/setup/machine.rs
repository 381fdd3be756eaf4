//! What only the machine's owner can change: root, the kernel, its mounts, room on the disk.

use std::{fs, path::Path};

use anyhow::{Context as _, bail};

use super::Found;

/// Free space that a full build and its tests take, in bytes, rounded up: 8 GiB.
const DISK_NEEDED_BYTES: u64 = 8 << 30;

/// The oldest kernel that eastwall supports, as major and minor version.
const KERNEL_OLDEST: (u32, u32) = (6, 1);

/// One check.
pub struct Check {
    /// What is checked.
    pub name: &'static str,
    /// Returns a fact, or an error that says what to do.
    pub run: fn() -> Found,
}

/// What loading kernel programs asks of a machine.
pub const KERNEL_CHECKS: [Check; 5] = [
    Check { name: "root", run: root },
    Check { name: "kernel", run: kernel },
    Check { name: "cgroup2", run: cgroup2 },
    Check { name: "BTF", run: btf },
    Check { name: "bpffs", run: bpffs },
];

/// Says whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Checks that there is room for a build in `target`.
pub fn disk(target: &Path) -> Found {
    // The folder is made by the first build; until then its parent is on the same disk.
    let place = target.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/"));
    let stat = rustix::fs::statvfs(place).with_context(|| format!("ask for the free space of {}", place.display()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let gib = free >> 30;
    if free < DISK_NEEDED_BYTES {
        bail!(
            "{gib} GiB free for {}, a build takes {}: make room, or set CARGO_TARGET_DIR to a larger disk",
            target.display(),
            DISK_NEEDED_BYTES >> 30
        );
    }
    Ok(format!("{gib} GiB free"))
}

fn root() -> Found {
    if is_root() {
        return Ok("yes".to_owned());
    }
    if crate::run::read(std::process::Command::new("sudo").args(["--non-interactive", "true"])).is_ok() {
        return Ok("by sudo".to_owned());
    }
    bail!("loading kernel programs needs root: run as root, or `cargo xtask test host` for the tests that do not")
}

/// Checks that machines can be run whose processor is like this one's.
pub fn amd64() -> Found {
    if std::env::consts::ARCH == "x86_64" {
        return Ok("amd64".to_owned());
    }
    bail!("{}: other kernels are run on amd64 alone", std::env::consts::ARCH)
}

/// Checks for root itself: the guest reads every file of this machine.
pub fn only_root() -> Found {
    if is_root() {
        return Ok("yes".to_owned());
    }
    bail!("the guest reads this machine's files as root: run as root")
}

fn kernel() -> Found {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("read the kernel's release")?;
    let release = release.trim();
    let (major, minor) = KERNEL_OLDEST;
    match version(release) {
        Some(found) if found >= KERNEL_OLDEST => Ok(release.to_owned()),
        Some(_) => bail!("{release} is too old: boot Linux {major}.{minor} or newer"),
        None => bail!("`{release}` does not begin with a version: boot Linux {major}.{minor} or newer"),
    }
}

/// Reads the major and minor version from a release such as `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn cgroup2() -> Found {
    match mounts("cgroup2")?.into_iter().next() {
        Some(mount) => Ok(format!("at {mount}")),
        None => bail!("not mounted: mount -t cgroup2 none /sys/fs/cgroup"),
    }
}

fn btf() -> Found {
    let path = "/sys/kernel/btf/vmlinux";
    match fs::metadata(path) {
        Ok(file) => Ok(format!("{} KiB", file.len() >> 10)),
        Err(error) => bail!("{path}: {error}: boot a kernel that is built with CONFIG_DEBUG_INFO_BTF=y"),
    }
}

fn bpffs() -> Found {
    if let Some(mount) = mounts("bpf")?.into_iter().next() {
        return Ok(format!("at {mount}"));
    }
    let known = fs::read_to_string("/proc/filesystems").context("read /proc/filesystems")?;
    if known.lines().any(|line| line.split_whitespace().last() == Some("bpf")) {
        return Ok("not mounted, but the kernel has it; tests mount their own".to_owned());
    }
    bail!("this kernel has none: boot a kernel that is built with CONFIG_BPF_SYSCALL=y")
}

/// Returns where file systems of `kind` are mounted.
///
/// # Errors
///
/// The list of mounts cannot be read.
pub fn mounts(kind: &str) -> anyhow::Result<Vec<String>> {
    let text = fs::read_to_string("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
    Ok(mount_points(&text, kind).map(str::to_owned).collect())
}

/// Returns where file systems of `kind` are mounted.
///
/// proc_pid_mountinfo(5): the mount point is the fifth field; the kind is the first one behind a
/// lone `-`, which ends a list of optional fields.
fn mount_points<'a>(mountinfo: &'a str, kind: &str) -> impl Iterator<Item = &'a str> {
    mountinfo.lines().filter_map(move |line| {
        let (before, behind) = line.split_once(" - ")?;
        (behind.split(' ').next() == Some(kind)).then(|| before.split(' ').nth(4)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
25 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
31 24 0:27 / /sys/fs/cgroup ro,nosuid shared:4 - tmpfs tmpfs ro,mode=755
32 31 0:28 / /sys/fs/cgroup/unified rw,nosuid shared:5 master:2 - cgroup2 cgroup2 rw
33 31 0:29 / /sys/fs/cgroup/cpu rw,nosuid - cgroup cgroup rw,cpu
";

    #[test]
    fn a_mount_is_found_by_its_kind_whatever_optional_fields_it_has() {
        assert_eq!(mount_points(HYBRID, "cgroup2").collect::<Vec<_>>(), ["/sys/fs/cgroup/unified"]);
        assert_eq!(mount_points(HYBRID, "cgroup").collect::<Vec<_>>(), ["/sys/fs/cgroup/cpu"]);
        assert_eq!(mount_points(HYBRID, "bpf").count(), 0);
    }

    #[test]
    fn kernel_versions_compare_as_numbers() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("6.18.44"), Some((6, 18)));
        assert!(version("6.12-rc1") > version("6.1.170"));
        assert!(version("5.15.0") < Some(KERNEL_OLDEST));
        assert_eq!(version("rolling"), None);
    }
}
