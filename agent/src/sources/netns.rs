//! The network namespaces of the host, and who lives in them.
//!
//! A namespace that no process is in, but only a mount or a descriptor, is not found, and a process is
//! where its first thread is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
    path::Path,
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, openat, statat},
    io::Errno,
};

/// More than `/proc/PID/cgroup` has, with a path for each of 16 hierarchies, in bytes.
const CGROUP_FILE_MAX: u64 = 64 << 10;

/// A network namespace that processes live in.
#[derive(Debug)]
pub struct Inhabited {
    /// The namespace, which stays while this is open.
    pub netns: File,
    /// Its inode, by which namespaces are told apart.
    pub inode: u64,
    /// The cgroups v2 of its processes, each a path from the root of the hierarchy as the caller's cgroup
    /// namespace shows it. What is no UTF-8 is replaced, as in [`super::cgroup`].
    pub cgroups: BTreeSet<String>,
}

/// Adds every network namespace that a process lives in to `found`, the caller's own among them.
///
/// A process that ends meanwhile is left out, and so is one that the caller may not look at, for which it
/// takes CAP_SYS_PTRACE.
///
/// # Errors
///
/// What the system says about /proc, or that no more files can be opened; then `found` has what was found
/// until then.
pub fn all(found: &mut Vec<Inhabited>) -> io::Result<()> {
    let mut by_inode = BTreeMap::new();
    let result = walk(&mut by_inode);
    found.extend(by_inode.into_values());
    result
}

/// Returns those of [`all`] that the calling thread is not in.
///
/// # Errors
///
/// As [`all`].
pub fn others() -> io::Result<Vec<Inhabited>> {
    let own = fs::metadata("/proc/thread-self/ns/net")?.ino();
    let mut found = Vec::new();
    all(&mut found)?;
    found.retain(|namespace| namespace.inode != own);
    Ok(found)
}

fn walk(found: &mut BTreeMap<u64, Inhabited>) -> io::Result<()> {
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // What is looked up from a descriptor is of this process, whoever has its number next.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Some(process) = there(openat(CWD, Path::new("/proc").join(name), flags, Mode::empty()))? else { continue };
        let Some(cgroups) = there(read(&process, "cgroup"))? else { continue };
        let Some(stat) = there(statat(&process, "ns/net", AtFlags::empty()))? else { continue };
        let mut inode = stat.st_ino;
        if !found.contains_key(&inode) {
            let Some(netns) = there(open(&process, "ns/net"))? else { continue };
            // It may have moved since.
            inode = netns.metadata()?.ino();
            found.entry(inode).or_insert_with(|| Inhabited { netns, inode, cgroups: BTreeSet::new() });
        }
        if let Some(namespace) = found.get_mut(&inode) {
            namespace.cgroups.extend(unified(&cgroups));
        }
    }
    Ok(())
}

fn open(process: &OwnedFd, name: &str) -> Result<File, Errno> {
    openat(process, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(File::from)
}

fn read(process: &OwnedFd, name: &str) -> Result<Vec<u8>, Errno> {
    let mut bytes = Vec::new();
    let read = open(process, name)?.take(CGROUP_FILE_MAX).read_to_end(&mut bytes);
    read.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    Ok(bytes)
}

/// None: the process is gone (a zombie has no namespace any more), or it hides.
fn there<T>(result: Result<T, Errno>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT | Errno::SRCH | Errno::ACCESS | Errno::PERM) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Returns the path of the cgroup v2 in the text of `/proc/PID/cgroup`.
///
/// Source: cgroups(7). A path has no newline: the kernel makes no cgroup of such a name.
fn unified(text: &[u8]) -> Option<String> {
    let path = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"0::"))?;
    Some(String::from_utf8_lossy(path).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_found_among_those_of_other_hierarchies() {
        let text = b"4:memory:/v1\n1:name=systemd:/0::/no\n0::/a b/c:d\xff\n";
        assert_eq!(unified(text).as_deref(), Some("/a b/c:d\u{fffd}"));
        assert_eq!(unified(b"0::/\n").as_deref(), Some("/"));
        assert_eq!(unified(b"10::/no\n"), None);
        assert_eq!(unified(b""), None);
    }

    #[test]
    fn this_process_is_in_one_that_is_not_among_the_others() {
        let own = fs::metadata("/proc/thread-self/ns/net").unwrap().ino();
        let cgroup = unified(&fs::read("/proc/self/cgroup").unwrap());
        let mut found = Vec::new();
        all(&mut found).unwrap();
        let here = found.iter().find(|namespace| namespace.inode == own).unwrap();
        assert!(cgroup.is_none_or(|cgroup| here.cgroups.contains(&cgroup)), "{here:?}");
        assert!(others().unwrap().iter().all(|namespace| namespace.inode != own));
    }
}
