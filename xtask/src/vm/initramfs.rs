//! The file system that the guest begins with, as cpio(5) in its "new" format.

use std::{fs, io::Write as _, path::Path, process::Command};

use anyhow::{Context as _, Result, bail};

use super::{files::Files, kernels::Kernel, quote};
use crate::run::read;

/// What the first process is.
const INIT: &str = include_str!("init.sh");

/// Modules that the guest needs before it sees the host's files; those they need come along.
const MODULES: [&str; 4] = ["virtio_pci", "virtio_console", "virtiofs", "overlay"];

/// An archive that grows.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let length = |n: usize| u32::try_from(n).context("a file is too large for the guest's first file system");
        let (size, name_size) = (length(content.len())?, length(name.len() + 1)?);
        // Inode, mode, user, group, links, time, size, device, device of a node, length of the name, checksum.
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            write!(self.bytes, "{field:08x}").context("write a number")?;
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Result<Vec<u8>> {
        self.add("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }
}

/// Makes the archive for one run: `command` is a script for sh(1).
///
/// # Errors
///
/// busybox or a module cannot be read.
pub fn build(kernel: &Kernel, files: &Files, command: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "modules"] {
        archive.add(directory, DIRECTORY, &[])?;
    }
    let busybox =
        ["bin/busybox", "usr/bin/busybox"].map(|path| files.root.join(path)).into_iter().find(|path| path.exists());
    let busybox = fs::read(busybox.context("busybox is missing")?).context("read busybox")?;
    archive.add("bin/busybox", PROGRAM, &busybox)?;
    let mut order = String::new();
    for (name, content) in modules(kernel)? {
        archive.add(&format!("modules/{name}"), PROGRAM, &content)?;
        order = order + &name + "\n";
    }
    archive.add("modules/order", PROGRAM, order.as_bytes())?;
    archive.add("init", PROGRAM, INIT.as_bytes())?;
    archive.add("values", PROGRAM, values(kernel, files).as_bytes())?;
    let shared: String = files.shared.iter().map(|path| format!("{}\n", path.display())).collect();
    archive.add("shared", PROGRAM, shared.as_bytes())?;
    archive.add("command", PROGRAM, command.as_bytes())?;
    archive.finish()
}

/// What the first process has to know, as sh(1) reads it.
fn values(kernel: &Kernel, files: &Files) -> String {
    let root = files.root.display().to_string();
    let values = [
        ("RELEASE", kernel.release.as_str()),
        ("MODULES", &kernel.modules.display().to_string()),
        ("ROOT", root.trim_end_matches('/')),
        ("SEARCH", &files.search),
    ];
    values.iter().map(|(name, value)| format!("{name}={}\n", quote(value))).collect()
}

/// The modules to load, in order, unpacked.
fn modules(kernel: &Kernel) -> Result<Vec<(String, Vec<u8>)>> {
    let mut modules: Vec<(String, Vec<u8>)> = Vec::new();
    for wanted in MODULES {
        let mut modprobe = Command::new("modprobe");
        modprobe.arg("--dirname").arg(&kernel.root).args(["--set-version", &kernel.release, "--show-depends", wanted]);
        // What is built in has no line that begins so.
        for line in read(&mut modprobe)?.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let path = Path::new(line.trim());
            let (name, content) = module(path)?;
            if !modules.iter().any(|(known, _)| *known == name) {
                modules.push((name, content));
            }
        }
    }
    Ok(modules)
}

fn module(path: &Path) -> Result<(String, Vec<u8>)> {
    let name = path.file_name().context("a module has no name")?.to_string_lossy().into_owned();
    let Some((plain, packing)) = name.rsplit_once(".ko.") else {
        return Ok((name, fs::read(path).with_context(|| format!("read {}", path.display()))?));
    };
    let program = match packing {
        "xz" => "xz",
        "zst" => "zstd",
        "gz" => "gzip",
        _ => bail!("{} is packed in an unknown way", path.display()),
    };
    let unpacked = Command::new(program).args(["--decompress", "--stdout"]).arg(path).output();
    let unpacked = unpacked.with_context(|| format!("start {program}"))?;
    if !unpacked.status.success() {
        bail!("{program} cannot unpack {}: {}", path.display(), String::from_utf8_lossy(&unpacked.stderr).trim());
    }
    Ok((format!("{plain}.ko"), unpacked.stdout))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_what_cpio_reads() {
        let mut archive = Archive::default();
        archive.add("ab", PROGRAM, b"12345").unwrap();
        let bytes = archive.finish().unwrap();
        let (head, rest) = bytes.split_at(110);
        assert_eq!(&head[..6], b"070701");
        assert_eq!(&head[14..22], b"000081ed");
        assert_eq!(&head[54..62], b"00000005");
        assert_eq!(&rest[..14], b"ab\x00\x00\x00\x0012345\x00\x00\x00");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0"));
    }
}
